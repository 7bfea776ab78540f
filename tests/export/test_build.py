from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from onnxscript import ir
from safetensors.torch import load_file, save_file

from export.bundle import build
from export.bundle.build import export_bundle
from export.bundle.card import card
from export.errors import ExportError
from export.graphs import onnx_model
from export.graphs.graphs import DenoiseGraph, brain_graph
from export.graphs.samplers import bundle_samplers
from export.lineage.provenance import CHECKPOINT_FILES, Ledger, folder_sha256, note_sources
from export.parity.decodes import torch_pictures
from export.parity.differences import psnr_db
from export.parity.limits import Limits, gate, gate_psnr
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import SPEC_FILE, Stage, decode_spec
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from train.checkpoints.checkpoint import Parent, load_checkpoint
from train.model.diffusion import make_scheduler
from train.model.finetune import merge_adapter

from .conftest import STORED_ELEMENTS, Exported


def stages_of(bundle: Bundle) -> dict[str, Stage]:
    return {stage.name: stage for stage in bundle.spec.provenance}


def test_the_bundle_is_what_the_checkpoint_says(exported: Exported) -> None:
    spec, recipe = exported.bundle.spec, exported.checkpoint.recipe
    assert (spec.name, spec.subject, spec.tr_s) == ("sub-01", 1, 4 / 3)
    assert (spec.latent_shape, spec.image_size_px, spec.condition_shape) == ((4, 16, 16), (64, 64), (3, 8))
    assert spec.preprocessing.high_pass_hz == recipe.preprocessing.high_pass_hz
    assert spec.drift_prior == exported.checkpoint.subject.drift_prior is not None
    assert spec.decoders[0].window.length_volumes == recipe.window.length_volumes
    assert spec.decoders[0].window.offset_volumes == recipe.window.offset_volumes
    assert spec.samplers == bundle_samplers(recipe.diffusion)
    assert (spec.samplers[0].name, spec.samplers[0].guidance) == ("ddim-4", (3.0,) * 4)
    np.testing.assert_array_equal(exported.bundle.null_conditions["general"], exported.checkpoint.null_NW)


def test_the_bundle_tells_which_runs_the_decoder_was_trained_on(exported: Exported) -> None:
    spec = exported.bundle.spec
    trained = {(session, run) for session in range(1, 5) for run in range(1, 13) if session <= 2}
    trained -= {(1, 3), (2, 5)}
    for session in range(1, 5):
        for run in range(1, 13):
            assert spec.was_trained_on(session, run) == ((session, run) in trained)
    earlier = msgspec.json.decode((exported.folder / SPEC_FILE).read_bytes())
    del earlier["trained_sessions"], earlier["held_out_runs"]
    assert not decode_spec(msgspec.json.encode(earlier)).was_trained_on(1, 1), "it tells nothing"


def test_it_holds_what_it_lists_and_nothing_else(exported: Exported) -> None:
    found = {path.name for path in exported.folder.iterdir()}
    assert found == {SPEC_FILE, *exported.bundle.spec.files}
    assert "README.md" in found
    assert [path.name for path in exported.root.iterdir()] == ["sub-01"], "no half-written folder beside it"


def test_the_command_says_what_it_made(exported: Exported) -> None:
    size = sum(path.stat().st_size for path in exported.folder.iterdir())
    assert f"{size / 1e6:.1f} MB, sha256 {exported.bundle.sha256}" in exported.said
    assert f"realtime serve --subject 1 --bundle {exported.folder}" in exported.said


def test_the_runtime_decodes_windows_into_the_pictures_of_torch(exported: Exported) -> None:
    """Other windows and another seed than those measured at export."""
    windows = np.random.default_rng(11).standard_normal((3, 30, 6), dtype=np.float32)
    decoder = Decoder(exported.bundle, open_engine(exported.bundle, "onnxruntime-cpu"), seed=12)
    for sampler in exported.bundle.spec.samplers:
        found = [decoder.decode(window, sampler).image for window in windows]
        expected = torch_pictures(exported.checkpoint, windows, sampler, seed=12)
        for ours, theirs in zip(found, expected, strict=True):
            assert psnr_db(ours, theirs) > 50
        assert psnr_db(found[0], found[1]) < 45, "the window must matter, else nothing is tested"


def test_lora_is_merged_and_matters(exported: Exported) -> None:
    checkpoint = exported.checkpoint
    merged, unmerged = load_checkpoint(checkpoint.folder).unet, checkpoint.unet
    merge_adapter(merged)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    latents, condition = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 8)
    with torch.no_grad():
        expected = unmerged(latents, 301, condition).sample
        found = merged(latents, 301, condition).sample
        unmerged.disable_adapters()
        without = unmerged(latents, 301, condition).sample
        unmerged.enable_adapters()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((without - expected).abs().max()) > 1e-2
    onnx = onnx_model.onnx_runner(exported.bundle.graph_path("denoise"))
    module = DenoiseGraph(merged, make_scheduler().alphas_cumprod)
    inputs = {
        "latents": latents,
        "previous": latents,
        "timestep": torch.tensor([301]),
        "conditions": condition,
        "weights": torch.ones(1),
        "coefficients": torch.tensor([0.0, 1.0, 0.0]),
    }
    np.testing.assert_allclose(onnx(inputs)["next"], module(**inputs)[0], atol=2e-2)


def test_every_stage_is_measured_and_within_its_limit(exported: Exported) -> None:
    stages = stages_of(exported.bundle)
    assert list(stages) == [
        *("base model", "checkpoint", *(s.name for s in exported.bundle.spec.samplers), "merged"),
        *(f"{graph} {step}" for graph in ("brain", "denoise", "vae") for step in ("onnx", "stored")),
        "decodes",
    ]
    assert set(stages["merged"].parity) == {"next", "noise"}
    assert 0 < stages["merged"].parity["noise"] <= 1e-4
    for graph in ("brain", "denoise", "vae"):
        assert max(stages[f"{graph} onnx"].parity.values()) <= 1e-4
        assert max(stages[f"{graph} stored"].parity.values()) <= 1e-2
    assert 1e-5 < stages["denoise stored"].parity["noise"], "rounded weights must show"
    assert {"torch, merged, dB", "ONNX in fp32, dB", "compact, onnxruntime-cpu, dB"} <= stages[
        "decodes"
    ].parity.keys()
    assert min(stages["decodes"].parity.values()) >= 30


def test_the_way_is_linked_by_hashes(exported: Exported, tiny_checkpoint: Path) -> None:
    stages = stages_of(exported.bundle)
    seen: set[str] = set()
    for stage in exported.bundle.spec.provenance:
        assert set(stage.made_from) <= seen, stage.name
        seen.add(stage.sha256)
    assert stages["checkpoint"].made_from == (stages["base model"].sha256,)
    assert stages["merged"].made_from == (stages["checkpoint"].sha256, stages["base model"].sha256)
    assert stages["checkpoint"].sha256 == folder_sha256(tiny_checkpoint, CHECKPOINT_FILES)
    for graph in ("brain", "denoise", "vae"):
        assert stages[f"{graph} onnx"].made_from == (stages["merged"].sha256,)
        assert stages[f"{graph} stored"].made_from == (stages[f"{graph} onnx"].sha256,)
        assert stages[f"{graph} stored"].sha256 == exported.bundle.spec.files[f"{graph}.onnx"]
        assert stages[f"{graph} stored"].sha256 in stages["decodes"].made_from


def test_the_same_checkpoint_gives_the_same_graph(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "MIN_STORED_ELEMENTS", STORED_ELEMENTS)
    noted = dict(ir.load(exported.bundle.graph_path("brain")).metadata_props)
    model = onnx_model.trace(brain_graph(exported.checkpoint.brain, build.SEED), noted)
    onnx_model.save(model, tmp_path / "exact.onnx")
    onnx_model.store_compactly(model)
    onnx_model.save(model, tmp_path / "stored.onnx")
    stages = stages_of(exported.bundle)
    assert file_sha256(tmp_path / "exact.onnx") == stages["brain onnx"].sha256
    assert file_sha256(tmp_path / "stored.onnx") == stages["brain stored"].sha256


def test_the_card_says_what_a_person_should_know(exported: Exported, tiny_checkpoint: Path) -> None:
    card = (exported.folder / "README.md").read_text()
    for fact in (
        "synthetic",
        "OpenMoji",
        "CC BY-SA 4.0",
        "1234 presentations",
        "Held out: session 1: run 3; session 2: run 5.",
        "The decoder's training used no picture that is shown there.",
        "python -m sim replay --nsd DIR --subject 1 --session 1 --run 3",
        "settled after 30\nvolumes",
        "2 of the 40 sessions",
        "71 of the 1000 shared images",
        "30 voxels",
        "`ddim-4`",
        "12.0 s",
        "| offline | 0.987 |",
    ):
        assert fact in card
    assert "trusted" not in card, "the page's word is settled"
    for stage in exported.bundle.spec.provenance:
        for what, value in stage.parity.items():
            row = rf"\| {re.escape(stage.name)} \|[^|]*\| {re.escape(what)} \| {re.escape(f'{value:.2g}')} \|"
            assert re.search(row, card)
    for text in (card, (exported.folder / SPEC_FILE).read_text()):
        assert str(tiny_checkpoint.parent) not in text


def test_the_card_says_how_the_decoder_was_made(exported: Exported) -> None:
    spec, checkpoint = exported.bundle.spec, exported.checkpoint
    replace = msgspec.structs.replace

    def card_of(**changes: object) -> str:
        changed = dataclasses.replace(checkpoint, info=replace(checkpoint.info, **changes))
        return card(spec, spec.provenance, {}, changed, "compact")

    plain = card_of()
    assert "began with" not in plain
    assert "a line was removed" not in plain
    assert "1234 presentations of the first 3 session(s) for" in card_of(n_sessions=3)
    parent = Parent(folder="../others", subjects=[2, 5, 7], identity="0123456789abcdef")
    assert "began with a model of subject(s) 2, 5, 7 (checkpoint 0123456789abcdef)" in card_of(parent=parent)
    imported = card_of(imported_from="sub-01, layer 0")
    assert "imported from their checkpoint `sub-01, layer 0`" in imported
    assert "presentations for" not in imported
    recipe = checkpoint.recipe
    linear = replace(recipe, preprocessing=replace(recipe.preprocessing, drift="linear"))
    assert "a line was removed, not cosines" in card_of(recipe=linear)
    assert "DDPM" not in plain
    noisy = checkpoint.sampled_by("ddpm").recipe
    assert "samples with DDPM, whose steps add noise; these add none" in card_of(recipe=noisy)


def test_an_imported_checkpoint_is_noted_as_that(exported: Exported) -> None:
    info = msgspec.structs.replace(exported.checkpoint.info, imported_from="sub-01, layer 0")
    ledger = Ledger()
    note_sources(ledger, dataclasses.replace(exported.checkpoint, info=info))
    notes = ledger.stages[-1].notes
    assert notes["imported_from"] == "sub-01, layer 0"
    assert not notes.keys() & {"trials", "steps", "seed"}


@pytest.mark.parametrize(
    ("limits", "step"),
    [(Limits(sampler=0), "sampler ddim-4"), (Limits(merged=0), "merged"), (Limits(onnx=-1), "brain onnx")],
)
def test_a_step_beyond_its_limit_is_named_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, limits: Limits, step: str
) -> None:
    with pytest.raises(ExportError, match=rf"^{step}: expected \w+ to stay within"):
        export_bundle(tiny_checkpoint, tmp_path / "out", limits=limits)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_changed_on_the_way_is_found(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store_and_spoil(model: ir.Model) -> int:
        value = max(
            model.graph.initializers.values(), key=lambda v: v.const_value.nbytes if v.const_value else 0
        )
        assert value.const_value is not None
        spoiled = value.const_value.numpy().copy()
        spoiled.flat[0] += 10
        value.const_value = ir.tensor(spoiled, name=value.name)
        return 1

    monkeypatch.setattr(onnx_model, "store_compactly", store_and_spoil)
    with pytest.raises(ExportError, match="^brain stored: expected condition to stay within 0.01"):
        export_bundle(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    weights = load_file(copied / "brain.safetensors")
    weights["null_condition"][0, 0] = torch.nan
    save_file(weights, copied / "brain.safetensors")
    with pytest.raises(ExportError, match="^merged: expected next to stay within 0.0001 .* got nan"):
        export_bundle(copied, tmp_path / "out", base=tiny_checkpoint.parent / "base")
    assert not (tmp_path / "out").exists()


def test_gates_let_nothing_undefined_pass() -> None:
    for value in (float("nan"), float("inf"), 2e-4):
        with pytest.raises(ExportError, match="step: expected figure"):
            gate("step", {"figure": value}, 1e-4)
    for value in (float("nan"), 29.9):
        with pytest.raises(ExportError, match="step: expected a PSNR"):
            gate_psnr("step", {"figure": value}, 30)
    assert gate("step", {"figure": 1e-4}, 1e-4) == {"figure": 1e-4}
    assert gate_psnr("step", {"figure": 30.0}, 30) == {"figure": 30.0}


def test_psnr_of_one_level_and_of_none() -> None:
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr_db(black + np.uint8(1), black) == pytest.approx(48.13, abs=0.01)
    assert psnr_db(black, black) == 100.0


def test_the_runtime_is_told_how_well_the_decoder_decodes(exported: Exported) -> None:
    told = {(each.decoded_from, each.metric): each.value for each in exported.bundle.spec.evaluation}
    assert told == {("streaming", "HOG"): 0.857, ("offline", "HOG"): 0.9}, "identification by decode only"
    assert {each.chance for each in exported.bundle.spec.evaluation} == {0.5}
