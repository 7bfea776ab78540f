"""How far the models of experiments are, from their folders, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from train.checkpoints.checkpoint import read_info
from train.errors import TrainError


@dataclass
class Progress:
    """Steps of trainings, and the pace at which they are taken since this object was made."""

    folders: Sequence[Path]
    """Of all models that are trained step by step."""
    most_steps: int
    """Steps after which a training ends in any case."""
    begun_s: float
    _begun_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self._begun_steps = sum(map(steps_of, self.folders))

    @property
    def n_made(self) -> int:
        """Models whose training has ended."""
        return sum(is_made(folder, self.most_steps) for folder in self.folders)

    def hours_left(self, now_s: float) -> float | None:
        """Time that the trainings will take at the pace so far; None before the first steps.

        Trainings that have not ended are expected to take as many steps as those that have, or the most.
        """
        taken = {folder: steps_of(folder) for folder in self.folders}
        made = {folder for folder in taken if is_made(folder, self.most_steps)}
        ended = [taken[folder] for folder in made]
        expected = median(ended) if ended else self.most_steps
        left = sum(max(0.0, expected - steps) for folder, steps in taken.items() if folder not in made)
        gone = sum(taken.values()) - self._begun_steps
        return left / gone * (now_s - self.begun_s) / 3600 if gone > 0 else None


def is_made(folder: Path, most_steps: int) -> bool:
    """Whether a model's training has ended: at its plateau, or after ``most_steps``.

    One that was given fewer goes on. A linear reference takes none.
    """
    if not (folder / "checkpoint.json").exists():
        return False
    try:
        info = read_info(folder)
    except TrainError:  # said by the job that needs the model, which others do not
        return True
    is_over = info.method == "brain-diffuser" or bool(info.reached_plateau)
    return is_over or info.recipe.fit.steps >= most_steps


def steps_of(folder: Path) -> int:
    """Steps that the training in ``folder`` has behind it."""
    return len(_lines(folder / "training" / "losses.tsv"))


def state_of(folder: Path) -> str:
    """A training's steps and its newest loss on held-out presentations, as text."""
    measured = _lines(folder / "training" / "held_out.tsv")
    held_out = f", held out {float(measured[-1].split()[1]):.4f}" if measured else ""
    return f"{folder.name} step {steps_of(folder)}{held_out}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
