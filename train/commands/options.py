"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from train.errors import TrainError
from train.recipe import DemoBase, Recipe

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The parser's subcommands, to which each command adds its own parser."""


def nsd_options(parser: argparse.ArgumentParser, subject: str = "subject number, from 1") -> None:
    """Add the options that choose the recordings: ``--nsd``, ``--subject``."""
    parser.add_argument(
        "--nsd", type=Path, required=True, metavar="DIR", help="root of NSD or of a synthetic subject"
    )
    parser.add_argument("--subject", type=int, required=True, metavar="N", help=subject)


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training: ``--recipe``, ``--seed``."""
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
    """The source of a recipe's base model, for when --base is not given.

    :raises TrainError: the recipe's base model is trained by this project, so --base is needed
    """
    if isinstance(recipe.base, DemoBase):
        raise TrainError("expected --base, the folder that `python -m train base` wrote")
    return recipe.base.source
