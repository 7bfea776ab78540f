"""``python -m train``: the offline half, one command for each thing it makes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nsd import NsdError
from realtime.errors import RealtimeError
from train.errors import TrainError
from train.recipe import DemoBase, Recipe, demo_base, read_recipe

if TYPE_CHECKING:
    from train.order import Order

_EPILOG = """\
the way through, for the demo (about two hours on two cores; every command can be interrupted and
given again to go on):

  python -m sim synthesize --out data/nsd --subject 1 --sessions 40 --seed 1
  python -m train base --nsd data/nsd --subject 1 --out checkpoints/base
  python -m train fit --nsd data/nsd --subject 1 --base checkpoints/base --out checkpoints/sub-01
  python -m train evaluate --nsd data/nsd --checkpoint checkpoints/sub-01 --out results
"""


_EXPERIMENTS = """\
Trains the models of an experiment for minutes each, decodes held-out runs with them, and writes NAME.html
and NAME.json: the figures, and in words whether the paper's finding appears in the synthetic data. Models
that are there already are not trained again; experiments share them through --work. An interrupted experiment
goes on.

  time-resolved   a general model on shifted windows beside specialised ones (figures 4, 5)
  window-length   windows of 1 to 6 volumes (figure 6)
  baseline        beside Brain-Diffuser (table 1)
  brain-module    without timestep layers, with early aggregation, … (table 2)
  finetuning      what of the UNet learns (table 3)
  preprocessing   whole-run against causal
  betas           single-trial betas in place of windows (table 4); needs `python -m sim betas`
  multi-subject   one model for subjects 1, 2, 5 and 7 (table 8)
  new-subject     subject 1 by sessions, from nothing and from the others' model (figure 9)

The last two need 10 sessions of subjects 2, 5 and 7, all need 40 of subject 1: `python -m sim synthesize`.
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
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_base,
        _add_prepare,
        _add_fit,
        _add_ridge,
        _add_evaluate,
        _add_experiment,
        _add_released,
        _add_describe,
        _add_score,
    ):
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
    parser.add_argument("--out", type=Path, required=True, help="folder of the caches: sub-01, …")
    parser.add_argument("--workers", type=int, help="processes, each holding one run (default: the cores)")
    _recipe_options(parser)
    parser.set_defaults(run=_prepare)


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("fit", help="Dynadiff's single stage: brain module and LoRA, jointly")
    parser.add_argument("--nsd", type=Path, required=True, help="root of NSD or of a synthetic subject")
    parser.add_argument(
        "--subject",
        type=int,
        nargs="+",
        required=True,
        help="subject numbers, from 1; several share one model",
    )
    parser.add_argument("--sessions", type=int, help="train on the first so many sessions (default: all)")
    parser.add_argument(
        "--from",
        dest="pretrained",
        type=Path,
        help="checkpoint of other subjects to begin with; the layers that read voxels begin anew",
    )
    parser.add_argument(
        "--base", help="folder of the base model, or its name on the hub (default: the recipe's source)"
    )
    parser.add_argument("--cache", type=Path, help="what `prepare` wrote (default: made in --out)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    _recipe_options(parser)
    parser.set_defaults(run=_fit)


def _add_ridge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "ridge",
        help="the baseline Brain-Diffuser: ridge regressions to the base model's tokens and latents",
        description="Fit the paper's baseline Brain-Diffuser on the trials that `fit` trains on: ridge "
        "regressions from a window to the seen picture's tokens and to its latents, from which, with noise "
        "on them, the base model starts. Its checkpoint is evaluated, exported and served like any other.",
    )
    _nsd_options(parser)
    parser.add_argument(
        "--base", help="folder of the base model, or its name on the hub (default: the recipe's source)"
    )
    parser.add_argument("--cache", type=Path, help="what `prepare` wrote (default: made in --out)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    _recipe_options(parser)
    parser.set_defaults(run=_ridge)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="decode held-out presentations and compare with what was shown, by the paper's metrics",
        description="Metrics whose networks are not there are reported as not computed, with the command "
        "that fetches what they need.",
    )
    parser.add_argument("--nsd", type=Path, required=True, help="root of NSD or of a synthetic subject")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that `fit` or `ridge` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the picture grid")
    parser.add_argument("--subject", type=int, help="whose decoder, where there are several")
    parser.add_argument("--cache", type=Path, help="what `prepare` wrote (default: made in --checkpoint)")
    parser.add_argument("--networks", type=Path, help="folder of the evaluation networks' weights")
    parser.add_argument(
        "--trials", type=int, default=1000, help="held-out trials at most (default: %(default)s)"
    )
    parser.add_argument(
        "--average", action="store_true", help="average the repetitions of an image before decoding"
    )
    parser.add_argument(
        "--offsets",
        type=int,
        nargs="+",
        default=[],
        metavar="VOLUMES",
        help="window starts after onset to decode instead of the recipe's, such as -3 0 3 6",
    )
    parser.set_defaults(run=_evaluate)


def _add_experiment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "experiment",
        help="one of the paper's experiments on synthetic subjects, as a page",
        description=_EXPERIMENTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="which of them", metavar="NAME")
    parser.add_argument("--nsd", type=Path, required=True, help="root of the synthetic subjects")
    parser.add_argument("--base", required=True, help="folder that `base` wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder that models and decodes are kept in")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="of the page (default: %(default)s)"
    )
    parser.add_argument(
        "--recipe", type=Path, default=Path("experiments"), help="what is varied (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, data order and noise")
    parser.set_defaults(run=_experiment)


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
    from train.cache import prepare, subject_cache

    recipe, folder = read_recipe(options.recipe), subject_cache(options.out, options.subject)
    prepare(options.nsd, options.subject, recipe, folder, seed=options.seed, workers=options.workers)


def _fit(options: argparse.Namespace) -> None:
    from train.fit import fit_subjects

    fit_subjects(_order(options, options.subject, options.pretrained, options.sessions))


def _ridge(options: argparse.Namespace) -> None:
    from train.braindiffuser import fit_baseline

    fit_baseline(_order(options, [options.subject]))


def _order(
    options: argparse.Namespace,
    subjects: list[int],
    pretrained: Path | None = None,
    n_sessions: int | None = None,
) -> Order:
    from train.order import Order

    recipe = read_recipe(options.recipe)
    return Order(
        root=options.nsd,
        subjects=subjects,
        recipe=recipe,
        base=options.base or _source(recipe),
        out=options.out,
        seed=options.seed,
        caches=options.cache,
        pretrained=pretrained,
        n_sessions=n_sessions,
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
    from train.evaluate import Evaluation, evaluate

    evaluate(
        Evaluation(
            root=options.nsd,
            checkpoint=options.checkpoint,
            out=options.out,
            subject=options.subject,
            caches=options.cache,
            networks=options.networks,
            n_trials=options.trials,
            average=options.average,
            offsets=options.offsets,
        )
    )


def _experiment(options: argparse.Namespace) -> None:
    from train.experiments.run import run_experiment

    recipe = read_recipe(options.recipe)
    run_experiment(options.name, options.nsd, options.base, options.work, options.out, recipe, options.seed)


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
