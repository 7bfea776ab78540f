"""Options that several commands share, and what follows from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from train.errors import TrainError
from train.recipe import DemoBase, Recipe

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command adds its own parser to."""


def nsd_options(parser: argparse.ArgumentParser, subject: str = "subject number, from 1") -> None:
    """Whose recordings: ``--nsd``, ``--subject``."""
    parser.add_argument(
        "--nsd", type=Path, required=True, metavar="DIR", help="root of NSD or of a synthetic subject"
    )
    parser.add_argument("--subject", type=int, required=True, metavar="N", help=subject)


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """How it is made: ``--recipe``, ``--seed``."""
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path("demo"),
        help="recipe file, or a shipped recipe by name: demo, paper, experiments (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of weights, data order and noise (default: %(default)s)"
    )


def source_of(recipe: Recipe) -> str:
    """Where a recipe's base model comes from, when no --base says so.

    :raises TrainError: when it is one that is trained here.
    """
    if isinstance(recipe.base, DemoBase):
        raise TrainError("expected --base, the folder that `python -m train base` wrote")
    return recipe.base.source
