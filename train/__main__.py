"""``python -m train``: the offline half, one command for each thing it makes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from nsd import NsdError
from realtime.errors import RealtimeError
from train.errors import TrainError
from train.recipe import DemoBase, Recipe, demo_base, read_recipe

_EPILOG = """\
the way through, for the demo (about two hours on two cores; every command can be interrupted and
given again to go on):

  python -m sim synthesize --out data/nsd --subject 1 --sessions 40 --seed 1
  python -m train base --nsd data/nsd --subject 1 --out checkpoints/base
  python -m train fit --nsd data/nsd --subject 1 --base checkpoints/base --out checkpoints/sub-01
  python -m train evaluate --nsd data/nsd --checkpoint checkpoints/sub-01 --out results
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for anything that the message explains."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options.run(options)
    except (TrainError, NsdError, RealtimeError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train and evaluate the decoder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    base = commands.add_parser(
        "base", help="train the demo's base model (VAE and image-conditioned UNet) once"
    )
    _nsd_options(base)
    base.add_argument("--out", type=Path, required=True, help="folder of the base model")
    _recipe_options(base)
    base.set_defaults(run=_base)

    prepare = commands.add_parser(
        "prepare", help="read, mask, detrend and z-score a subject's runs once, into a memory-mapped cache"
    )
    _nsd_options(prepare)
    prepare.add_argument("--out", type=Path, required=True, help="folder of the cache")
    prepare.add_argument("--workers", type=int, help="processes, each holding one run (default: the cores)")
    _recipe_options(prepare)
    prepare.set_defaults(run=_prepare)

    fit = commands.add_parser("fit", help="Dynadiff's single stage: brain module and LoRA, jointly")
    _nsd_options(fit)
    fit.add_argument(
        "--base", help="folder of the base model, or its name on the hub (default: the recipe's source)"
    )
    fit.add_argument("--cache", type=Path, help="what `prepare` wrote (default: made in --out)")
    fit.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    _recipe_options(fit)
    fit.set_defaults(run=_fit)

    evaluate = commands.add_parser(
        "evaluate", help="decode the held-out runs and compare with what was shown"
    )
    evaluate.add_argument("--nsd", type=Path, required=True, help="root of NSD or of a synthetic subject")
    evaluate.add_argument("--checkpoint", type=Path, required=True, help="folder that `fit` wrote")
    evaluate.add_argument("--out", type=Path, required=True, help="folder of the table and the picture grid")
    evaluate.add_argument(
        "--trials", type=int, default=1000, help="held-out trials at most (default: %(default)s)"
    )
    evaluate.set_defaults(run=_evaluate)

    released = commands.add_parser(
        "import-released",
        help="turn a checkpoint that the paper's authors released into one of this project",
        description="Turn a subject's folder of facebook/dynadiff into a checkpoint that `export bundle` "
        "takes. It holds pickles: import only what comes from a source you trust.",
    )
    released.add_argument(
        "--checkpoint", type=Path, required=True, help="the subject's folder, with `checkpoint/`"
    )
    released.add_argument("--subject", type=int, required=True, help="subject number in NSD, from 1")
    released.add_argument(
        "--nsd", type=Path, help="root of NSD: its region and runs are what serving needs besides"
    )
    released.add_argument(
        "--layer",
        type=int,
        default=0,
        help="place of the subject's layer where there are several, from 0 (default: %(default)s)",
    )
    released.add_argument(
        "--base", help="folder of the base model, or its name on the hub (default: the recipe's)"
    )
    released.add_argument("--recipe", type=Path, default=Path("paper"), help="recipe (default: %(default)s)")
    released.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    released.set_defaults(run=_import_released)

    describe = commands.add_parser(
        "describe", help="parameters of a recipe's model by part, without allocating them"
    )
    describe.add_argument("recipe", type=Path, help="recipe file, or a shipped recipe: demo, paper")
    describe.add_argument(
        "--subject",
        type=int,
        nargs="+",
        default=[1],
        help="subjects of NSD whose regions it reads; several share one model (default: 1)",
    )
    describe.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    describe.set_defaults(run=_describe)

    score = commands.add_parser(
        "score", help="identification of a recorded run in EfficientNet-Lite0 features"
    )
    score.add_argument(
        "--run", dest="folder", type=Path, required=True, help="run folder that `realtime` wrote"
    )
    score.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    score.set_defaults(run=_score)
    return parser


def _nsd_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nsd", type=Path, required=True, help="root of NSD or of a synthetic subject")
    parser.add_argument("--subject", type=int, required=True, help="subject number, from 1")


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path("demo"),
        help="recipe file, or a shipped recipe by name: demo, paper (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, data order and noise")


def _base(options: argparse.Namespace) -> None:
    from train.pretrain import base_pictures, train_base

    recipe = read_recipe(options.recipe)
    pictures = base_pictures(options.nsd, options.subject, demo_base(recipe).n_pictures, options.seed)
    train_base(pictures, recipe, options.out, options.seed)


def _prepare(options: argparse.Namespace) -> None:
    from train.cache import prepare

    recipe = read_recipe(options.recipe)
    prepare(options.nsd, options.subject, recipe, options.out, seed=options.seed, workers=options.workers)


def _fit(options: argparse.Namespace) -> None:
    from train.fit import fit_subject

    recipe = read_recipe(options.recipe)
    base = options.base or _source(recipe)
    fit_subject(
        options.nsd, options.subject, recipe, base, options.out, options.seed, cache_folder=options.cache
    )


def _import_released(options: argparse.Namespace) -> None:
    from train.released import import_released

    recipe = read_recipe(options.recipe)
    base = options.base or _source(recipe)
    import_released(
        options.checkpoint, options.subject, recipe, base, options.out, layer=options.layer, nsd=options.nsd
    )


def _source(recipe: Recipe) -> str:
    """Where a recipe's base model comes from, when no --base says so."""
    if isinstance(recipe.base, DemoBase):
        raise TrainError("expected --base, the folder that `python -m train base` wrote")
    return recipe.base.source


def _describe(options: argparse.Namespace) -> None:
    from train.describe import as_text, describe

    parts = describe(read_recipe(options.recipe), options.subject)
    if options.json:
        print(json.dumps({part.name: asdict(part) for part in parts}, indent=2))
    else:
        print(as_text(parts))


def _evaluate(options: argparse.Namespace) -> None:
    from train.evaluate import evaluate

    evaluate(options.nsd, options.checkpoint, options.out, max_trials=options.trials)


def _score(options: argparse.Namespace) -> None:
    from train.score import score_run

    result = score_run(options.folder)
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"EfficientNet-Lite0 two-way identification: {result['value']:.3f} "
            f"[{result['low']:.3f}, {result['high']:.3f}] over {result['n_trials']} trials, "
            f"chance {result['chance']}"
        )


if __name__ == "__main__":
    sys.exit(main())
