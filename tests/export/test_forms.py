"""The forms besides the demo's, and what an engine says to files that were damaged on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnxscript import ir

from export.__main__ import main
from export.bundle.build import export_bundle
from export.errors import ExportError
from export.graphs import onnx_model
from export.parity.differences import psnr_db
from export.parity.limits import Limits
from export.parity.parity_report import Parity
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import SPEC_FILE, write_spec
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.errors import BundleError, EngineError

from .conftest import Exported, tiny_recipe, write_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Bundles of a smaller model in fp32, whose weights lie beside the graphs, and in fp16."""
    root, recipe = tmp_path_factory.mktemp("forms"), tiny_recipe()
    base = msgspec.structs.replace(recipe.base, unet_widths=(32,))
    _, checkpoint = write_checkpoint(root, msgspec.structs.replace(recipe, base=base))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_model, "MAX_INLINE_BYTES", 2000)
        beside = export_bundle(checkpoint, root / "fp32", form="fp32")
    command = ["bundle", "--precision", "fp16", "--checkpoint", str(checkpoint)]
    assert main([*command, "--out", str(root / "fp16")]) == 0
    return {"fp32": beside, "fp16": Bundle.open(root / "fp16")}


def test_forms_differ_in_what_is_stored_and_computed(exported: Exported, made: dict[str, Bundle]) -> None:
    kinds = {}
    for form, bundle in (made | {"compact": exported.bundle}).items():
        graphs = [ir.load(bundle.graph_path(name)).graph for name in ("brain", "denoise", "vae")]
        kinds[form] = (
            {graph.precision for graph in bundle.spec.graphs.values()},
            {value.dtype == ir.DataType.FLOAT16 for g in graphs for value in g.initializers.values()},
            {v.dtype == ir.DataType.FLOAT16 for g in graphs for n in g for v in n.outputs},
        )
    assert kinds["fp32"] == ({"float32"}, {False}, {False})
    assert kinds["compact"] == ({"float32"}, {True, False}, {False})
    assert kinds["fp16"] == ({"float16"}, {True, False}, {True, False})


def test_forms_decode_to_the_same_pictures(made: dict[str, Bundle]) -> None:
    window = np.random.default_rng(21).standard_normal((30, 6), dtype=np.float32)
    images = {
        form: Decoder(bundle, open_engine(bundle, "onnxruntime-cpu"), seed=3).decode(window).image
        for form, bundle in made.items()
    }
    assert 35 < psnr_db(images["fp16"], images["fp32"]) < 100, "rounding must show, else nothing is tested"


@pytest.mark.parametrize("form", ["fp32", "fp16", "compact"])
def test_the_report_holds_every_measure(exported: Exported, made: dict[str, Bundle], form: str) -> None:
    bundle = (made | {"compact": exported.bundle})[form]
    assert {"parity.json", "parity.html"} <= bundle.spec.files.keys()
    parity = msgspec.json.decode((bundle.folder / "parity.json").read_bytes(), type=Parity)
    steps = {row.step for row in parity.graphs}
    final = {"compact": ["stored"], "fp32": [], "fp16": ["fp16", "fp16, torch"]}[form]
    graphs = ("brain", "denoise", "vae")
    assert steps == {"merged", *(f"{graph} {step}" for graph in graphs for step in ("onnx", *final))}
    assert all(row.relative <= row.limit for row in parity.graphs)
    assert all(row.largest > 0 for row in parity.graphs if row.step.startswith("denoise"))
    ways = {row.way: row for row in parity.decodes}
    assert list(ways)[:2] == ["torch", "torch, merged"]
    assert ("ONNX in fp32" in ways) == (form != "fp32")
    assert ways[f"{form}, tensorrt"].reason
    on_cpu = ways[f"{form}, onnxruntime-cpu"]
    assert on_cpu.psnr_db is not None
    assert on_cpu.psnr_db >= 30
    assert "--nsd names the recordings" in parity.identification
    page = (bundle.folder / "parity.html").read_text()
    assert all(f"<td>{row.step}</td>" in page for row in parity.graphs)
    assert f"{on_cpu.psnr_db:.3g}" in page


def test_what_an_engine_may_compute_in_fp32_is_noted(made: dict[str, Bundle]) -> None:
    for stage in made["fp16"].spec.provenance:
        name, _, step = stage.name.partition(" ")
        if step == "fp16":
            model = ir.load(made["fp16"].graph_path(name))
            assert stage.notes["float32_nodes"] == model.metadata_props["float32_nodes"]
            assert set(stage.notes["float32_nodes"].split()) <= {str(node.name) for node in model.graph}


def test_the_card_tells_the_form_and_what_to_do_with_it(exported: Exported, made: dict[str, Bundle]) -> None:
    assert "python -m export engines --bundle" in (made["fp16"].folder / "README.md").read_text()
    assert "export with `--precision fp16`" in (made["fp32"].folder / "README.md").read_text()
    assert "Weights are stored as float16" in (exported.folder / "README.md").read_text()


def test_fp16_beyond_its_limit_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^brain fp16: expected condition to stay within 1e-06"):
        export_bundle(tiny_checkpoint, tmp_path / "out", form="fp16", limits=Limits(stored=1e-6))
    assert list(tmp_path.iterdir()) == []


def test_compact_is_of_fp32_alone(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bundle", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert main([*command, "--precision", "fp16", "--compact"]) == 2
    assert "expected --compact only with fp32 arithmetic" in capsys.readouterr().err


@pytest.fixture
def copied(made: dict[str, Bundle], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["fp32"].folder, tmp_path / "copied"))


@pytest.mark.parametrize("file", ["denoise.onnx", "denoise.onnx.data"])
def test_a_truncated_file_is_refused(copied: Path, file: str) -> None:
    whole = (copied / file).read_bytes()
    (copied / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=rf"{file}: changed since the bundle was made.*copy it again"):
        Bundle.open(copied)


@pytest.mark.parametrize("file", ["denoise.onnx", "denoise.onnx.data"])
def test_a_file_listed_as_damaged_does_not_load(copied: Path, file: str) -> None:
    spec = Bundle.open(copied).spec
    whole = (copied / file).read_bytes()
    (copied / file).write_bytes(whole[: len(whole) // 2])
    files = spec.files | {file: file_sha256(copied / file)}
    write_spec(copied, msgspec.structs.replace(spec, files=files))
    with pytest.raises(EngineError, match=r"denoise\.onnx: expected an ONNX graph"):
        open_engine(Bundle.open(copied), "onnxruntime-cpu")


def test_weights_that_lie_beside_a_graph_belong_to_the_bundle(made: dict[str, Bundle]) -> None:
    bundle = made["fp32"]
    assert {f"{name}.onnx.data" for name in ("brain", "denoise", "vae")} <= bundle.spec.files.keys()
    found = {path.name for path in bundle.folder.iterdir()}
    assert found == {SPEC_FILE, *bundle.spec.files}
