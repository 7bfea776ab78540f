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
    for add in (_add_base, _add_prepare, _add_fit, _add_evaluate, _add_released, _add_describe, _add_score):
        add(commands)
    return parser


def _add_base(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "base", help="train the demo's base model (VAE and image-conditioned UNet) once"
    )
    _nsd_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the base model")
    _recipe_options(parser)
    parser.set_defaults(run=_base)


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "prepare", help="read, mask, detrend and z-score a subject's runs once, into a memory-mapped cache"
    )
    _nsd_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--workers", type=int, help="processes, each holding one run (default: the cores)")
    _recipe_options(parser)
    parser.set_defaults(run=_prepare)


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("fit", help="Dynadiff's single stage: brain module and LoRA, jointly")
    _nsd_options(parser)
    parser.add_argument(
        "--base", help="folder of the base model, or its name on the hub (default: the recipe's source)"
    )
    parser.add_argument("--cache", type=Path, help="what `prepare` wrote (default: made in --out)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    _recipe_options(parser)
    parser.set_defaults(run=_fit)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("evaluate", help="decode the held-out runs and compare with what was shown")
    parser.add_argument("--nsd", type=Path, required=True, help="root of NSD or of a synthetic subject")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that `fit` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the picture grid")
    parser.add_argument(
        "--trials", type=int, default=1000, help="held-out trials at most (default: %(default)s)"
    )
    parser.set_defaults(run=_evaluate)


def _add_released(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "import-released",
        help="turn a checkpoint that the paper's authors released into one of this project",
        description="Turn a subject's folder of facebook/dynadiff into a checkpoint that `export bundle` "
        "takes. It holds pickles: import only what comes from a source you trust.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the subject's folder, with `checkpoint/`"
    )
    parser.add_argument("--subject", type=int, required=True, help="subject number in NSD, from 1")
    parser.add_argument(
        "--nsd", type=Path, help="root of NSD: its region and runs are what serving needs besides"
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=0,
        help="place of the subject's layer where there are several, from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--base", help="folder of the base model, or its name on the hub (default: the recipe's)"
    )
    parser.add_argument("--recipe", type=Path, default=Path("paper"), help="recipe (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.set_defaults(run=_import_released)


def _add_describe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "describe", help="parameters of a recipe's model by part, without allocating them"
    )
    parser.add_argument("recipe", type=Path, help="recipe file, or a shipped recipe: demo, paper")
    parser.add_argument(
        "--subject",
        type=int,
        nargs="+",
        default=[1],
        help="subjects of NSD whose regions it reads; several share one model (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=_describe)


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "score", help="identification of a recorded run in EfficientNet-Lite0 features"
    )
    parser.add_argument(
        "--run", dest="folder", type=Path, required=True, help="run folder that `realtime` wrote"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=_score)


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
