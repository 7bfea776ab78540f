"""What was decoded is not decoded again, and not taken for something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from train import evaluate as module
from train.checkpoint import Checkpoint, read_info
from train.decodes import Identity, kept
from train.errors import TrainError
from train.evaluate import Evaluation, evaluate
from train.sample import Pictures

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
    decode_windows = module.decode_windows

    def note(checkpoint: Checkpoint, windows: NDArray[np.float16], seed: int, name: str) -> Pictures:
        names.append(name)
        return decode_windows(checkpoint, windows, seed, name)

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
    assert {path.name for path in folder.iterdir()} == {
        *("offline.npy", "offline.json", "streaming.npy", "streaming.json")
    }
    pictures = np.load(folder / "offline.npy")
    assert (pictures.dtype, pictures.shape) == (np.uint8, (3, 64, 64, 3))

    cut = (folder / "streaming.npy").read_bytes()[:-100]
    (folder / "streaming.npy").write_bytes(cut)
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


def identity(**changes: object) -> Identity:
    fields = {"checkpoint_json": "a", "weights": "b", "trials": [[0], [4]], "decoded_from": "c", "seed": 1}
    return Identity(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [{"checkpoint_json": "d"}, {"weights": "d"}, {"trials": [[0], [5]]}, {"decoded_from": "d"}, {"seed": 2}],
)
def test_decodes_of_something_else_are_not_taken(other: dict[str, object], tmp_path: Path) -> None:
    one, two = np.full((2, 2, 8, 8, 3), [[[[[1]]]], [[[[2]]]]], dtype=np.uint8)
    assert np.array_equal(kept(tmp_path, "from 4.0 s", identity(), lambda: one), one)
    assert np.array_equal(kept(tmp_path, "from 4.0 s", identity(), lambda: two), one)
    assert np.array_equal(kept(tmp_path, "from 4.0 s", identity(**other), lambda: two), two)
    assert np.array_equal(kept(tmp_path, "from 4.0 s", identity(**other), lambda: one), two)


def spoil_identity(folder: Path) -> None:
    (folder / "a.json").write_text("{")


def drop_pictures(folder: Path) -> None:
    (folder / "a.npy").unlink()


def empty_pictures(folder: Path) -> None:
    (folder / "a.npy").write_bytes(b"")


def fewer_pictures(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("spoil", [spoil_identity, drop_pictures, empty_pictures, fewer_pictures])
def test_decodes_that_cannot_be_read_are_made_again(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    one, two = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8, 3), np.uint8)
    kept(tmp_path, "a", identity(), lambda: one)
    spoil(tmp_path)
    assert np.array_equal(kept(tmp_path, "a", identity(), lambda: two), two)


def test_networks_run_where_the_decoder_does(
    checkpoint: Path, tiny_nsd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[object] = []
    see = module.see

    def note(*arguments: object) -> object:
        devices.append(arguments[2])
        return see(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "see", note)
    evaluate(Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", n_trials=2))
    assert devices == [torch.device("cuda" if torch.cuda.is_available() else "cpu")]


def test_one_trial_is_not_enough(checkpoint: Path, tiny_nsd: Path, tmp_path: Path) -> None:
    order = Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", n_trials=1)
    with pytest.raises(TrainError, match="expected as many decoded pictures as shown ones, two at least"):
        evaluate(order)
    far = Evaluation(root=tiny_nsd, checkpoint=checkpoint, out=tmp_path / "out", offsets=[215])
    with pytest.raises(TrainError, match="expected at least two held-out presentations to decode, found 0"):
        evaluate(far)
