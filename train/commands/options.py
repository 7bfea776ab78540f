"""Options that several commands share."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TypeAlias

from train.recipe import Recipe, shipped_recipes

_log = logging.getLogger(__name__)

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
        help=f"recipe file, or a shipped one by name: {', '.join(shipped_recipes())} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of weights, data order and noise (default: %(default)s)"
    )


def base_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--base``."""
    parser.add_argument(
        "--base",
        metavar="BASE",
        help="base model: a folder, a shipped one by name, or a name on the hub (default: the one that "
        "belongs to the recipe)",
    )


def base_for(given: str | None, recipe: Recipe) -> str:
    """The base model that ``--base`` names; where it was not given, the recipe's, which is said.

    :raises TrainError: none was given, and no shipped one belongs to the recipe
    """
    from train.model.base_of_recipe import default_base  # imports torch

    if given:
        return given
    base = default_base(recipe)
    _log.info("base model: %s, since it belongs to the recipe and no --base was given", base)
    return base
