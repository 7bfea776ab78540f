"""``python -m train``: the offline half, one command for each thing it makes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from nsd import NsdError
from realtime.errors import RealtimeError
from train.errors import TrainError
from train.recipe import DEMO, read_recipe

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

    fit = commands.add_parser("fit", help="Dynadiff's single stage: brain module and LoRA, jointly")
    _nsd_options(fit)
    fit.add_argument("--base", type=Path, required=True, help="folder of the base model")
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
    parser.add_argument("--recipe", type=Path, default=DEMO, help="recipe file (default: the demo's)")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, data order and noise")


def _base(options: argparse.Namespace) -> None:
    from train.pretrain import base_pictures, train_base

    recipe = read_recipe(options.recipe)
    pictures = base_pictures(options.nsd, options.subject, recipe.base.n_pictures, options.seed)
    train_base(pictures, recipe, options.out, options.seed)


def _fit(options: argparse.Namespace) -> None:
    from train.fit import fit_subject

    recipe = read_recipe(options.recipe)
    fit_subject(options.nsd, options.subject, recipe, options.base, options.out, options.seed)


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
