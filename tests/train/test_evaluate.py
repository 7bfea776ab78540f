"""What was decoded is not decoded again, and not taken for something else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from nsd import Layout, shared_images
from train.__main__ import main
from train.checkpoints.checkpoint import Checkpoint, load_checkpoint, read_info
from train.data.cache import prepare, subject_cache
from train.errors import TrainError
from train.evaluation import evaluate as module
from train.evaluation.decode_cache import kept
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.held_out import decode_windows, held_out_windows
from train.evaluation.results_table import Score, see
from train.evaluation.scored_pictures import Scoring
from train.model.sample import Pictures

from .conftest import link_runs

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path, tiny_base: Path) -> Path:
    """A copy to change, its base model where it says."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy, ignore=shutil.ignore_patterns("training"))
    path = copy / "checkpoint.json"
    path.write_text(path.read_text().replace(read_info(tiny_checkpoint).base, str(tiny_base)))
    return copy


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ways that were decoded since, each by its name."""
    names: list[str] = []

    def note(
        checkpoint: Checkpoint, windows: NDArray[np.float16], seed: int, name: str, trials: Sequence[int]
    ) -> Pictures:
        names.append(name)
        return decode_windows(checkpoint, windows, seed, name, trials)

    monkeypatch.setattr(module, "decode_windows", note)
    return names


def test_a_second_call_scores_what_was_decoded(
    checkpoint: Path, tiny_nsd: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def order(n_trials: int = 3, seed: int = 1) -> Evaluation:
        return Evaluation(
            root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", n_trials=n_trials, seed=seed
        )

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(module, "see", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            evaluate(order())
    assert decoded == ["offline", "streaming"]
    first = evaluate(order())
    assert decoded == ["offline", "streaming"]
    folder = tmp_path / "out" / "decodes"
    assert {path.name for path in folder.iterdir()} == {"offline.npz", "streaming.npz"}
    pictures = np.load(folder / "offline.npz")["pictures"]
    assert (pictures.dtype, pictures.shape) == (np.uint8, (3, 64, 64, 3))

    cut_short(folder / "streaming.npz")
    assert evaluate(order()) == first
    assert decoded[2:] == ["streaming"], "of which a file was cut short"

    evaluate(order(n_trials=2))
    evaluate(order(n_trials=2, seed=2))
    assert decoded[3:] == ["offline", "streaming"] * 2

    weights = load_file(checkpoint / "brain.safetensors")
    name = next(name for name in weights if name.startswith("brain."))
    save_file(weights | {name: weights[name] + 0.1}, checkpoint / "brain.safetensors")
    evaluate(order(n_trials=2, seed=2))
    assert decoded[7:] == ["offline", "streaming"], "by other weights"


def test_it_samples_and_scores_as_the_authors_code_does_when_asked(
    checkpoint: Path, tiny_nsd: Path, tmp_path: Path, decoded: list[str]
) -> None:
    out = tmp_path / "out"
    plain = Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=out, n_trials=3)
    theirs = dataclasses.replace(
        plain, sampler="ddpm", scoring=Scoring(blur_faces="decoded", upsample_truth=True)
    )
    evaluate(plain)
    table = json.loads((out / "table.json").read_text())
    assert (table["sampler"], table["scoring"]["blur_faces"]) == ("ddim", "none")
    offline = np.load(out / "decodes/offline.npz")["pictures"]
    first = evaluate(theirs)
    assert decoded == ["offline", "streaming"] * 2, "another sampler decodes anew"
    noisy = np.load(out / "decodes/offline.npz")["pictures"]
    assert not np.array_equal(noisy, offline)
    table = json.loads((out / "table.json").read_text())
    assert (table["sampler"], table["scoring"]) == (
        "ddpm",
        {"blur_faces": "decoded", "upsample_truth": True},
    )
    said = (out / "table.md").read_text()
    assert "Sampled by DDPM of 4 steps, guidance 3," in said
    assert "faces in the decodes were blurred" in said
    assert evaluate(dataclasses.replace(theirs, out=tmp_path / "again")) == first
    assert np.array_equal(np.load(tmp_path / "again/decodes/offline.npz")["pictures"], noisy)
    evaluate(dataclasses.replace(theirs, out=tmp_path / "more", n_trials=5))
    more = np.load(tmp_path / "more/decodes/offline.npz")["pictures"].astype(int)
    for picture in noisy:  # the noise of a trial does not depend on the others, nor on its place among them
        assert np.abs(more - picture).max(axis=(1, 2, 3)).min() <= 1


def test_images_that_the_split_withholds_are_scored_apart(
    checkpoint: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    """What is pooled hides how kinds of objects are decoded that the decoder never saw."""
    loaded = load_checkpoint(checkpoint).info
    recipe = msgspec.structs.replace(loaded.recipe, split="runs-and-shared")
    changed = msgspec.structs.replace(loaded, recipe=recipe)
    (checkpoint / "checkpoint.json").write_bytes(msgspec.json.encode(changed))
    caches, out = tmp_path / "caches", tmp_path / "apart"
    rows = evaluate(Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=out, caches=caches))
    cache = prepare(tiny_nsd, 1, recipe, subject_cache(caches, 1))
    is_shared = np.isin(cache.images[cache.is_test], shared_images(Layout(tiny_nsd)))
    assert 2 <= is_shared.sum() < len(is_shared) / 2
    for way in ("offline", "streaming"):
        shared, others = rows[f"{way}, shared images"]["Pixels"], rows[f"{way}, other images"]["Pixels"]
        whole = rows[way]["Pixels"]
        assert isinstance(shared, Score)
        assert isinstance(others, Score)
        assert isinstance(whole, Score)
        assert (shared.n_trials, others.n_trials) == (is_shared.sum(), (~is_shared).sum())
        sums = [each.value * each.n_trials for each in (shared, others, whole)]
        assert sums[0] + sums[1] == pytest.approx(sums[2])
        assert shared.low <= shared.value <= shared.high
    assert [name for name in rows if "," not in name] == ["offline", "streaming", "ceiling", "floor"]
    said = (out / "table.md").read_text()
    assert f"{is_shared.sum()} of the trials show shared images" in said
    assert "| streaming, shared images | streaming, other images |" in said


def test_windows_for_an_export_have_the_priors_of_the_training(
    checkpoint: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    places = [(session, run) for session in (1, 2) for run in (1, 3, 4)]
    root = link_runs(tiny_nsd, tmp_path / "nsd", *places).root
    loaded = load_checkpoint(checkpoint)
    trained = dataclasses.replace(loaded, info=msgspec.structs.replace(loaded.info, n_sessions=1))
    held_out_windows(trained, root, tmp_path / "cache", 2, seed=1)
    folder = subject_cache(tmp_path / "cache", 1)
    assert (folder / "prior-first-1.npz").exists()
    assert not (folder / "prior.npz").exists()


def test_decodes_of_something_else_are_not_taken(tmp_path: Path) -> None:
    one, two = np.full((2, 2, 8, 8, 3), [[[[[1]]]], [[[[2]]]]], dtype=np.uint8)
    path = tmp_path / "decodes" / "offline.npz"
    assert np.array_equal(kept(path, "these", lambda: one), one)
    assert np.array_equal(kept(path, "these", lambda: two), one)
    assert np.array_equal(kept(path, "others", lambda: two), two)
    assert np.array_equal(kept(path, "others", lambda: one), two)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_identity(path: Path) -> None:
    np.savez(path, pictures=np.zeros((2, 8, 8, 3), np.uint8))


def of_another_type(path: Path) -> None:
    np.savez(path, pictures=np.zeros((2, 8, 8, 3)), made_from=np.array("these"))


@pytest.mark.parametrize("spoil", [Path.unlink, empty, cut_short, without_identity, of_another_type])
def test_decodes_that_cannot_be_read_are_made_again(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    one, two = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8, 3), np.uint8)
    path = tmp_path / "offline.npz"
    kept(path, "these", lambda: one)
    spoil(path)
    assert np.array_equal(kept(path, "these", lambda: two), two)


def test_networks_run_where_the_decoder_does(
    checkpoint: Path, tiny_nsd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[object] = []

    def note(*arguments: object) -> object:
        devices.append(arguments[2])
        return see(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "see", note)
    evaluate(Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", n_trials=2))
    assert devices == [torch.device("cuda" if torch.cuda.is_available() else "cpu")]


def test_help_says_where_the_commands_are_that_fetch_networks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "`table.json` has the commands that download" in " ".join(capsys.readouterr().out.split())


def test_one_trial_is_not_enough(checkpoint: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    order = Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", n_trials=1)
    with pytest.raises(TrainError, match="expected as many decoded as shown pictures, at least two"):
        evaluate(order)
    far = Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", offsets=[215])
    with pytest.raises(TrainError, match="expected at least two held-out presentations to decode, found 0"):
        evaluate(far)
