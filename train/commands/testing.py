"""Commands that measure how well a model decodes: evaluate, experiment, score."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from train.commands.options import Commands, base_for, base_options
from train.recipe import read_recipe

_EXPERIMENTS = """\
Trains the models of an experiment, three times each, until their loss on held-out presentations falls no
more, and decodes held-out runs with them. Writes NAME.html, its figure as NAME.svg, and NAME.json with the
numbers and whether the paper's finding appears in the synthetic data. Experiments share models through
--work; existing models are not trained again. As many models as there are cores are trained at the same time.
Stop it as you like (Ctrl-C, kill), and run it again to continue it.

  all             all of these, those first whose results are complete soonest
  time-resolved   a general model on shifted windows, and specialised models (figures 4, 5)
  window-length   windows of 1 to 6 volumes (figure 6)
  baseline        comparison with Brain-Diffuser (table 1)
  brain-module    without timestep layers, with early aggregation, … (table 2)
  finetuning      which part of the UNet is tuned (table 3)
  preprocessing   whole-run against causal preprocessing
  betas           single-trial betas instead of windows (table 4); needs `python -m sim betas`
  multi-subject   one model for subjects 1, 2, 5 and 7 (table 8)
  new-subject     subject 1 by sessions, from scratch and from a model of the others (figure 9)

All need 40 sessions of subject 1, the last two also 10 of subjects 2, 5 and 7: `python -m sim synthesize`.
"""


def add_evaluate(commands: Commands) -> None:
    """Add ``evaluate``."""
    parser = commands.add_parser(
        "evaluate",
        help="decode held-out presentations and compare with the shown pictures, by the paper's metrics",
        description="Metrics whose networks are missing are reported as not computed; `table.json` has the "
        "commands that download the networks. mIoU uses another segmentation network than the paper's, so "
        "the two are not comparable.",
    )
    parser.add_argument("--nsd", type=Path, required=True, help="root of NSD or of a synthetic subject")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that `fit` or `ridge` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the picture grid")
    parser.add_argument("--subject", type=int, help="whose decoder, when there are several subjects")
    parser.add_argument("--cache", type=Path, help="what `prepare` wrote (default: made in --checkpoint)")
    parser.add_argument("--networks", type=Path, help="folder of the evaluation networks' weights")
    parser.add_argument(
        "--trials", type=int, default=1000, help="largest number of held-out trials (default: %(default)s)"
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
    parser.add_argument(
        "--sampler", choices=["ddim", "ddpm"], help="sampler of the decodes (default: the recipe's)"
    )
    parser.add_argument(
        "--blur-faces",
        choices=["none", "decoded", "both"],
        default="none",
        help="blur faces before scoring: in no pictures (the default), in the decodes as in the authors' "
        "code, or in the shown pictures too; found by dlib's detector, not by the authors' RetinaFace",
    )
    parser.add_argument(
        "--upsample-truth",
        action="store_true",
        help="before scoring, resize the shown pictures to the decodes' size, as in the authors' code",
    )
    parser.set_defaults(run=_evaluate)


def add_experiment(commands: Commands) -> None:
    """Add ``experiment``."""
    parser = commands.add_parser(
        "experiment",
        help="one of the paper's experiments on synthetic subjects, as a page",
        description=_EXPERIMENTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="which of them", metavar="NAME")
    parser.add_argument("--nsd", type=Path, required=True, help="root of the synthetic subjects")
    base_options(parser)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder in which models and decodes are kept"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of NAME.html, .svg and .json; those there are replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path("experiments"),
        metavar="RECIPE",
        help="recipe that the experiment varies (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of weights, data order and noise (default: %(default)s)"
    )
    parser.set_defaults(run=_experiment)


def add_score(commands: Commands) -> None:
    """Add ``score``."""
    parser = commands.add_parser(
        "score", help="identification of a recorded run in EfficientNet-Lite0 features"
    )
    parser.add_argument(
        "--run", dest="folder", type=Path, required=True, help="run folder that `realtime` wrote"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=_score)


def _evaluate(options: argparse.Namespace) -> None:
    from train.evaluation.evaluate import Evaluation, evaluate
    from train.evaluation.scored_pictures import Scoring

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
            sampler=options.sampler,
            scoring=Scoring(blur_faces=options.blur_faces, upsample_truth=options.upsample_truth),
        )
    )


def _experiment(options: argparse.Namespace) -> None:
    from train.experiments.run import EXPERIMENTS, run_experiments

    names = list(EXPERIMENTS) if options.name == "all" else [options.name]
    recipe = read_recipe(options.recipe)
    base = base_for(options.base, recipe)
    run_experiments(names, options.nsd, base, options.work, options.out, recipe, options.seed)


def _score(options: argparse.Namespace) -> None:
    from train.evaluation.score_run import score_run

    result = score_run(options.folder)
    if options.json:
        print(json.dumps(result))
    else:
        ways = {"by decode": result, "by picture": result["by_picture"]}
        found = (f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}] {way}" for way, of in ways.items())
        print(
            f"EfficientNet-Lite0 two-way identification: {', '.join(found)} "
            f"over {result['n_trials']} trials, chance {result['chance']}"
        )
