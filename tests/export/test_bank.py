"""A bank: bundles of several decoders become one, which decodes what each of them did."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from export import onnxgraph
from export.__main__ import main
from export.bank import make_bank
from export.build import export_bundle
from export.errors import ExportError
from realtime.bundle import Bundle, Window
from realtime.decode import Decoder
from realtime.engines import open_engine
from train.recipe import Recipe

from .conftest import tiny_recipe, write_checkpoint

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Exports a tiny checkpoint of a window; ``tuned`` has another adapter than the rest."""
    made: dict[tuple[int, bool], Path] = {}

    def make(offset_volumes: int, tuned: bool = False) -> Path:
        key = offset_volumes, tuned
        if key not in made:
            root = tmp_path_factory.mktemp("specialised")
            _, checkpoint = write_checkpoint(root, of_window(offset_volumes))
            if tuned:
                file = checkpoint / "adapter" / "pytorch_lora_weights.safetensors"
                save_file({name: 2 * weight for name, weight in load_file(file).items()}, file)
            made[key] = export_bundle(checkpoint, root / "bundle").folder
        return made[key]

    return make


def of_window(offset_volumes: int) -> Recipe:
    recipe = tiny_recipe()
    window = msgspec.structs.replace(recipe.window, offset_volumes=offset_volumes)
    return msgspec.structs.replace(recipe, window=window)


def pictures(folder: Path, decoder: str | None = None) -> np.ndarray:
    bundle = Bundle.open(folder)
    made = Decoder(bundle, open_engine(bundle, "onnxruntime-cpu"), seed=3, name=decoder)
    windows = np.random.default_rng(4).standard_normal((2, 30, 6), dtype=np.float32)
    return np.stack([made.decode(window, bundle.spec.samplers[-1]).image for window in windows])


def test_each_decoder_makes_the_pictures_that_it_made_alone(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    general, early, late = make_bundle(3), make_bundle(-2, tuned=True), make_bundle(5)
    options = ["bank", "--general", str(general), "--specialised", str(early), str(late)]
    assert main([*options, "--out", str(tmp_path / "bank")]) == 0
    assert "general, before-2, after-5; 6 graphs" in capsys.readouterr().out
    bank = Bundle.open(tmp_path / "bank")
    windows = {decoder.name: decoder.window for decoder in bank.spec.decoders}
    assert windows["before-2"] == Window(offset_volumes=-2, length_volumes=6)
    for name, alone in (("general", general), ("before-2", early), ("after-5", late)):
        np.testing.assert_array_equal(pictures(bank.folder, name), pictures(alone))
    # What computes the same is there, and is loaded, once: the models of two of the windows are equal.
    assert {decoder.name: decoder.denoise for decoder in bank.spec.decoders} == {
        "general": "denoise",
        "before-2": "denoise-before-2",
        "after-5": "denoise",
    }
    stages = {stage.name for stage in bank.spec.provenance}
    assert {"checkpoint", "before-2: checkpoint", "after-5: brain onnx"} <= stages
    assert {"parity-before-2.html", "parity-after-5.json", "parity.html"} <= bank.spec.files.keys()
    assert "| `before-2` | -2 |" in (bank.folder / "README.md").read_text()


def test_weights_beside_a_graph_come_along(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxgraph, "MAX_INLINE_BYTES", 1_000)
    parts = []
    for offset, factor in ((3, 1), (5, 2)):
        _, checkpoint = write_checkpoint(tmp_path / str(offset), of_window(offset))
        file = checkpoint / "adapter" / "pytorch_lora_weights.safetensors"
        save_file({name: factor * weight for name, weight in load_file(file).items()}, file)
        parts.append(export_bundle(checkpoint, tmp_path / f"bundle{offset}").folder)
    bank = make_bank(parts[0], parts[1:], tmp_path / "bank")
    assert "denoise-after-5.onnx.data" in bank.spec.files
    np.testing.assert_array_equal(pictures(bank.folder, "after-5"), pictures(parts[1]))
    renamed = next(stage for stage in bank.spec.provenance if stage.name == "denoise-after-5: renamed")
    assert renamed.sha256 == onnxgraph.files_sha256(bank.folder / "denoise-after-5.onnx")
    assert renamed.made_from == (onnxgraph.files_sha256(parts[1] / "denoise.onnx"),)


def test_what_does_not_fit_is_refused_and_nothing_is_written(make_bundle: MakeBundle, tmp_path: Path) -> None:
    general, late = make_bundle(3), make_bundle(5)
    with pytest.raises(ExportError, match=r"second whose window starts 5 volumes after the onset"):
        make_bank(general, [late, late], tmp_path / "bank")
    other = tmp_path / "other"
    shutil.copytree(late, other)
    spec = Bundle.open(other).spec
    (other / "bundle.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, subject=2)))
    with pytest.raises(ExportError, match=r"other differs from .* in subject"):
        make_bank(general, [other], tmp_path / "bank")
    bank = make_bank(general, [late], tmp_path / "bank")
    with pytest.raises(ExportError, match="is a bank already"):
        make_bank(bank.folder, [late], tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank", "other"]
