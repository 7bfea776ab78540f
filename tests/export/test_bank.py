"""A bank: bundles of several decoders become one, which decodes what each of them did."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.__main__ import main
from export.bundle.bank import make_bank
from export.errors import ExportError
from export.graphs import onnx_model
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import Window
from realtime.bundle.trained_on import held_out_runs, trained_on
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine

from .conftest import Exported

Specialise = Callable[..., Path]


@pytest.fixture
def specialise(exported: Exported, tmp_path: Path) -> Specialise:
    """A bundle as the export of another training would be: another window, other weights in some graphs."""

    def make(offset_volumes: int, tuned: tuple[str, ...], *, beside: bool = False, **changes: object) -> Path:
        folder = tmp_path / f"from{offset_volumes}"
        shutil.copytree(exported.folder, folder)
        for name in ("brain", "denoise", "vae"):
            model = onnx.load(folder / f"{name}.onnx")
            model.metadata_props.add(key="note", value=f"of the window from {offset_volumes}")
            for tensor in model.graph.initializer if name in tuned else ():
                values = numpy_helper.to_array(tensor)
                if values.dtype.kind == "f" and values.ndim > 1:
                    weaker = (0.9 * values).astype(values.dtype)
                    tensor.CopyFrom(numpy_helper.from_array(weaker, tensor.name))
            file = f"{name}.onnx"
            (folder / file).unlink()
            onnx.save(model, folder / file, save_as_external_data=beside, location=f"{file}.data")
        window = Window(offset_volumes=offset_volumes, length_volumes=6)
        decoder = msgspec.structs.replace(exported.bundle.spec.decoders[0], window=window)
        names = sorted(path.name for path in folder.iterdir() if path.name != bundle_spec.SPEC_FILE)
        files = {name: file_sha256(folder / name) for name in names}
        spec = msgspec.structs.replace(exported.bundle.spec, decoders=(decoder,), files=files, **changes)
        bundle_spec.write_spec(folder, spec)
        return folder

    return make


def pictures(folder: Path, decoder: str | None = None) -> np.ndarray:
    opened = Bundle.open(folder)
    made = Decoder(opened, open_engine(opened, "onnxruntime-cpu"), seed=3, name=decoder)
    windows = np.random.default_rng(4).standard_normal((2, 30, 6), dtype=np.float32)
    return np.stack([made.decode(window, opened.spec.samplers[-1]).image for window in windows])


def test_each_decoder_makes_the_pictures_that_it_made_alone(
    exported: Exported, specialise: Specialise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early, late = specialise(-2, ("brain", "denoise")), specialise(5, ("brain",))
    options = ["bank", "--general", str(exported.folder), "--specialised", str(early), str(late)]
    assert main([*options, "--out", str(tmp_path / "bank")]) == 0
    assert "general, before-2, after-5; 6 graphs" in capsys.readouterr().out
    bank = Bundle.open(tmp_path / "bank")
    windows = {decoder.name: decoder.window for decoder in bank.spec.decoders}
    assert windows["before-2"] == Window(offset_volumes=-2, length_volumes=6)
    made = [pictures(bank.folder, name) for name in ("general", "before-2", "after-5")]
    for ours, alone in zip(made, (exported.folder, early, late), strict=True):
        np.testing.assert_array_equal(ours, pictures(alone))
    assert (made[0] != made[1]).any()
    assert (made[0] != made[2]).any()
    # What computes the same is there, and is loaded, once, whatever its file says of its origin.
    assert {decoder.name: decoder.denoise for decoder in bank.spec.decoders} == {
        "general": "denoise",
        "before-2": "denoise-before-2",
        "after-5": "denoise",
    }
    stages = {stage.name for stage in bank.spec.provenance}
    assert {"checkpoint", "before-2: checkpoint", "after-5: brain onnx"} <= stages
    assert {"parity-before-2.html", "parity-after-5.json", "parity.html"} <= bank.spec.files.keys()
    assert "| `before-2` | -2 |" in (bank.folder / "README.md").read_text()


def test_a_run_that_one_decoder_was_trained_on_is_not_held_out_of_the_bank(
    exported: Exported, specialise: Specialise, tmp_path: Path
) -> None:
    other = specialise(5, ("brain",), trained_sessions=(2, 3), held_out_runs=((2, 5), (2, 6), (3, 7)))
    spec = make_bank(exported.folder, [other], tmp_path / "bank").spec
    assert spec.trained_sessions == (1, 2, 3)
    assert held_out_runs(spec) == spec.held_out_runs == ((1, 3), (2, 5), (3, 7))


def test_a_bank_claims_nothing_that_an_older_decoder_does_not_say(
    exported: Exported, specialise: Specialise, tmp_path: Path
) -> None:
    """Of decoders without a list of sessions, only the notes on the checkpoint tell, if any."""

    def older(offset_volumes: int, **notes: str) -> Path:
        stages = [
            msgspec.structs.replace(each, notes=notes) if each.name == "checkpoint" else each
            for each in exported.bundle.spec.provenance
        ]
        silent = {"trained_sessions": (), "held_out_runs": ()}
        return specialise(offset_volumes, ("brain",), provenance=tuple(stages), **silent)

    general = exported.bundle.spec
    assert held_out_runs(general) == ((1, 3), (2, 5))
    name = "sub-01_ses-nsd{:02d}_task-nsdcore_run-{:02d}".format
    for source, expected in (
        (older(-2), None),
        (older(5, held_out_runs="1/3 1/7"), ((1, 3),)),
        (older(6, held_out_runs="1/7", sessions="1"), ((2, 5),)),
    ):
        spec = make_bank(exported.folder, [source], tmp_path / f"bank-{source.name}").spec
        assert not spec.trained_sessions
        assert not spec.held_out_runs
        assert held_out_runs(spec) == expected
        assert bool(trained_on(spec, name(1, 7))) == (expected is not None), (
            "the general one did not hold it out"
        )
        for run in expected or ():
            assert trained_on(spec, name(*run)) == ""


def test_weights_beside_a_graph_come_along(
    exported: Exported, specialise: Specialise, tmp_path: Path
) -> None:
    late = specialise(5, ("brain", "denoise"), beside=True)
    general = specialise(3, (), beside=True)
    bank = make_bank(general, [late], tmp_path / "bank")
    assert "denoise-after-5.onnx.data" in bank.spec.files
    np.testing.assert_array_equal(pictures(bank.folder, "after-5"), pictures(late))
    renamed = next(stage for stage in bank.spec.provenance if stage.name == "denoise-after-5: renamed")
    assert renamed.sha256 == onnx_model.files_sha256(bank.folder / "denoise-after-5.onnx")
    assert renamed.made_from == (onnx_model.files_sha256(late / "denoise.onnx"),)


def test_what_does_not_fit_is_refused_and_nothing_is_written(
    exported: Exported, specialise: Specialise, tmp_path: Path
) -> None:
    late = specialise(5, ("brain",))
    with pytest.raises(ExportError, match=r"second whose window starts 5 volumes after the onset"):
        make_bank(exported.folder, [late, late], tmp_path / "bank")
    with pytest.raises(ExportError, match=r"from7 differs from .* in VAE"):
        make_bank(exported.folder, [specialise(7, ("vae",))], tmp_path / "bank")
    spec = Bundle.open(late).spec
    (late / "bundle.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, subject=2)))
    with pytest.raises(ExportError, match=r"from5 differs from .* in subject"):
        make_bank(exported.folder, [late], tmp_path / "bank")
    bank = make_bank(exported.folder, [specialise(1, ("brain",))], tmp_path / "bank")
    with pytest.raises(ExportError, match="is a bank$"):
        make_bank(bank.folder, [late], tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank", "from1", "from5", "from7"]
