"""Commands about the paper's full-size model: import-released, describe."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from train.commands.options import Commands, base_for, base_options
from train.recipe import read_recipe, shipped_recipes


def add_released(commands: Commands) -> None:
    """Add ``import-released``."""
    parser = commands.add_parser(
        "import-released",
        help="turn a checkpoint that the paper's authors released into one of this project",
        description="Turn a subject's folder of facebook/dynadiff into a checkpoint that `export bundle` "
        "accepts. It contains pickles, which can run code: import only files from a source you trust.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the subject's folder, with `checkpoint/`"
    )
    parser.add_argument("--subject", type=int, required=True, help="subject number in NSD, from 1")
    parser.add_argument(
        "--nsd",
        type=Path,
        help="root of NSD, for the subject's ROI and prior, without which it cannot be exported",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=0,
        help="index of the subject's layer in a checkpoint of several, from 0 (default: %(default)s)",
    )
    base_options(parser)
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path("authors"),
        help="recipe with the released model's sizes; what their code does is theirs whatever it says "
        "(default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.set_defaults(run=_import_released)


def add_describe(commands: Commands) -> None:
    """Add ``describe``."""
    parser = commands.add_parser(
        "describe", help="parameters of a recipe's model by part, without allocating them"
    )
    parser.add_argument(
        "recipe", type=Path, help=f"recipe file, or one by name: {', '.join(shipped_recipes())}"
    )
    parser.add_argument(
        "--nsd", type=Path, metavar="DIR", help="root of the data set whose ROIs count (default: NSD's own)"
    )
    parser.add_argument(
        "--subject",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="subjects whose ROIs it reads; several share one model (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=_describe)


def _import_released(options: argparse.Namespace) -> None:
    from train.checkpoints.released import import_released

    recipe = read_recipe(options.recipe)
    base = base_for(options.base, recipe)
    import_released(
        options.checkpoint, options.subject, recipe, base, options.out, layer=options.layer, nsd=options.nsd
    )


def _describe(options: argparse.Namespace) -> None:
    from train.model.describe import as_text, describe, region_sizes

    n_voxels = region_sizes(options.subject, options.nsd)
    parts = describe(read_recipe(options.recipe), list(n_voxels.values()))
    if options.json:
        print(json.dumps({part.name: asdict(part) for part in parts}, indent=2))
        return
    sizes = ", ".join(f"{size:,} voxels of subject {subject}" for subject, size in n_voxels.items())
    whose = options.nsd or "NSD; --nsd counts those of another data set"
    print(f"for {sizes} ({whose})\n{as_text(parts)}")
