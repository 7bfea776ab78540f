"""Commands that prepare data and train models: base, prepare, fit, ridge."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from train.commands.options import Commands, base_for, base_options, nsd_options, recipe_options
from train.recipe import demo_base, read_recipe

if TYPE_CHECKING:
    from train.fitting.job import Order


def add_base(commands: Commands) -> None:
    """Add ``base``."""
    parser = commands.add_parser(
        "base",
        help="train the demo's base model (VAE and image-conditioned UNet) once",
        description="Train the small latent diffusion model that stands for Versatile Diffusion in the "
        "recipes demo and experiments, on pictures that the subject is never shown: 70 minutes for the demo "
        "on two cores. The recipe paper takes a pretrained one.",
    )
    nsd_options(parser, "number of the subject whose pictures it must not see")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the base model")
    recipe_options(parser)
    parser.set_defaults(run=_base)


def add_prepare(commands: Commands) -> None:
    """Add ``prepare``."""
    parser = commands.add_parser(
        "prepare",
        help="read, mask, detrend and z-score a subject's runs once, into a memory-mapped cache",
        description="Read each run once, keep the ROI's voxels, detrend and z-score them as the recipe "
        "says, and write a memory-mapped cache for `fit`, `ridge` and `evaluate`. Run it again after an "
        "interruption to continue.",
    )
    nsd_options(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the caches: sub-01, …"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes, each with one run in memory (default: the cores)",
    )
    recipe_options(parser)
    parser.set_defaults(run=_prepare)


def add_fit(commands: Commands) -> None:
    """Add ``fit``."""
    parser = commands.add_parser(
        "fit",
        help="Dynadiff's single stage: brain module and LoRA, jointly",
        description="Train the brain module and the tuned part of the UNet together, in one stage, in one "
        "process; `deepspeed --module train fit …` uses all GPUs of a machine. Run it again after an "
        "interruption: it continues from the last checkpoint, with the losses of an uninterrupted training. "
        "With more steps in the recipe, and nothing else changed, it extends a training.",
    )
    parser.add_argument(
        "--nsd", type=Path, required=True, metavar="DIR", help="root of NSD or of a synthetic subject"
    )
    parser.add_argument(
        "--subject",
        type=int,
        nargs="+",
        required=True,
        metavar="N",
        help="subject numbers, from 1; several share one model",
    )
    parser.add_argument(
        "--sessions", type=int, metavar="N", help="train on the first N sessions only (default: all)"
    )
    parser.add_argument(
        "--from",
        dest="pretrained",
        type=Path,
        metavar="DIR",
        help="checkpoint of other subjects to start from; the layers that read voxels start from scratch",
    )
    base_options(parser)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="what `prepare` wrote (default: made in --out)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    recipe_options(parser)
    parser.set_defaults(run=_fit)


def add_ridge(commands: Commands) -> None:
    """Add ``ridge``."""
    parser = commands.add_parser(
        "ridge",
        help="the baseline Brain-Diffuser: ridge regressions to the base model's tokens and latents",
        description="Fit the paper's baseline Brain-Diffuser on the trials that `fit` trains on: ridge "
        "regressions from a window to the seen picture's tokens and to its latents. The base model starts "
        "from these latents with noise added. Its checkpoint is evaluated, exported and served like others.",
    )
    nsd_options(parser)
    base_options(parser)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="what `prepare` wrote (default: made in --out)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    recipe_options(parser)
    parser.set_defaults(run=_ridge)


def _base(options: argparse.Namespace) -> None:
    from train.fitting.pretrain import base_pictures, train_base

    recipe = read_recipe(options.recipe)
    pictures = base_pictures(options.nsd, options.subject, demo_base(recipe).n_pictures, options.seed)
    train_base(pictures, recipe, options.out, options.seed)


def _prepare(options: argparse.Namespace) -> None:
    from train.data.cache import prepare, subject_cache

    recipe, folder = read_recipe(options.recipe), subject_cache(options.out, options.subject)
    prepare(options.nsd, options.subject, recipe, folder, seed=options.seed, workers=options.workers)


def _fit(options: argparse.Namespace) -> None:
    from train.fitting.fit import fit_subjects

    order = _order(options, options.subject, options.pretrained, options.sessions)
    fit_subjects(order)
    _say_what_next(order)


def _ridge(options: argparse.Namespace) -> None:
    from train.systems.brain_diffuser.fit import fit_baseline

    order = _order(options, [options.subject])
    fit_baseline(order)
    _say_what_next(order)


def _say_what_next(order: Order) -> None:
    """Print what was held out, and the commands that test the decoder on it."""
    from train.checkpoints.checkpoint import read_info
    from train.data.replays import held_out_in_words, replay_command
    from train.loop.distributed import is_main_process

    if not is_main_process():
        return
    for subject in read_info(order.out).subjects:
        chosen = ["--subject", str(subject.number)] if len(order.subjects) > 1 else []
        words = ["--nsd", str(order.root), "--checkpoint", str(order.out), *chosen, "--out", "results"]
        print(
            f"{order.out}: held out of subject {subject.number}: {held_out_in_words(subject.held_out_runs)}"
        )
        print(f"evaluate it: python -m train evaluate {shlex.join(words)}")
        if subject.held_out_runs:
            print(f"replay a held-out run: {replay_command(min(subject.held_out_runs), order.root)}")


def _order(
    options: argparse.Namespace,
    subjects: list[int],
    pretrained: Path | None = None,
    n_sessions: int | None = None,
) -> Order:
    from train.fitting.job import Order

    recipe = read_recipe(options.recipe)
    return Order(
        root=options.nsd,
        subjects=subjects,
        recipe=recipe,
        base=base_for(options.base, recipe),
        out=options.out,
        seed=options.seed,
        caches=options.cache,
        pretrained=pretrained,
        n_sessions=n_sessions,
    )
