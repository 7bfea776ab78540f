"""Decode held-out presentations and compare the decodes with the pictures that were shown (paper 2.3).

OUT/table.json, table.md   every metric, for each way of decoding
OUT/grid.png               held-out trials drawn by seed: the shown pictures, then a row for each way
OUT/decodes                the decodes, for a second call: see :mod:`train.evaluation.decode_cache`

*offline* and *streaming* differ in preprocessing. The *ceiling* is the base model conditioned on the true
picture, the *floor* is the first way's decodes shuffled over trials. Where other window starts than the
recipe's are given, each start is one way of decoding (figures 4, 5). Where the split withholds images from
the training in all runs, the decodes of these and of the others have rows of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from nsd import Layout, Stimuli
from realtime.atomic import whole, write_whole
from realtime.bundle.spec import Window
from train.checkpoints.checkpoint import Checkpoint, load_checkpoint
from train.data.cache import Cache, prepare, subject_cache
from train.data.dataset import averaged_windows
from train.data.found import found
from train.data.replays import held_out_in_words, replay_command
from train.data.trials import Trials, n_warming
from train.errors import TrainError
from train.evaluation.bootstrap import PerTrial
from train.evaluation.decode_cache import array_digest, kept, weights_digest
from train.evaluation.held_out import decode_pictures, decode_windows, held_out_groups, images_of
from train.evaluation.picture_grid import write_grid
from train.evaluation.results_table import NotComputed, Row, as_markdown, per_trial, see, summarise
from train.evaluation.scored_pictures import Scoring, as_scored
from train.model.sample import Pictures
from train.recipe import DemoBase, Diffusion, Form, Recipe, SamplerName
from train.store.fingerprints import digest
from train.store.lock import alone_in

_log = logging.getLogger(__name__)
GRID_TRIALS = 32
_NAMES: dict[Form, str] = {"whole_run": "offline", "causal": "streaming", "betas": "betas"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation: the decoder, the recordings, and the folder of the results."""

    root: Path
    """Root of the data set."""
    checkpoint: Path
    out: Path
    subject: int | None = None
    """Whose decoder to evaluate; needed when the checkpoint has several subjects."""
    caches: Path | None = None
    """Folder of prepared recordings, prepared if missing; by default in the checkpoint's folder."""
    networks: Path | None = None
    """Folder of the networks' weights: see :mod:`train.evaluation.networks.registry`."""
    n_trials: int = 1000
    average: bool = False
    """Decode the mean window over an image's held-out presentations (paper, table 7)."""
    offsets: Sequence[int] = ()
    """Window starts in volumes after onset; by default only the recipe's, offline and streaming."""
    seed: int = 1
    sampler: SamplerName | None = None
    """Samples the decodes in place of the recipe's sampler."""
    scoring: Scoring = Scoring()
    """What becomes of the pictures before every metric."""


def evaluate(order: Evaluation) -> dict[str, Row]:
    """Write the table and the grid, and return the table.

    Decodes are written before they are scored, and read again by a later call with the same checkpoint,
    trials and seed. A missing evaluation network can therefore be downloaded later. Networks run on the
    decoder's device.

    :raises TrainError: the checkpoint or the subject does not exist, the checkpoint was trained on other
        recordings, or there is nothing to decode
    """
    checkpoint = load_checkpoint(order.checkpoint, subject=order.subject).on_device()
    if order.sampler:
        checkpoint = checkpoint.sampled_by(order.sampler)
    recipe, number = checkpoint.recipe, checkpoint.subject.number
    folder = subject_cache(order.caches or order.checkpoint / "cache", number)
    info = checkpoint.info
    cache = prepare(order.root, number, recipe, folder, seed=info.seed, n_sessions=info.n_sessions)
    if checkpoint.subject.data not in (None, cache.data):
        # Added runs count too: the held-out runs are then drawn anew, and may include training runs.
        raise TrainError(
            f"expected the recordings of subject {number} that {order.checkpoint} was trained on, found "
            f"other recordings in {order.root}; give their folder with --nsd, or train again"
        )
    ways = _ways(checkpoint, order)
    windows = [window for _, window in ways.values()]
    groups = held_out_groups(
        cache, recipe, windows, average=order.average, seed=order.seed, n_groups=order.n_trials
    )
    images = images_of(cache, groups)
    _log.info("held out: %s; decoding %d trials", held_out_in_words(cache.test_runs), len(groups))
    with Stimuli(Layout(order.root)) as stimuli:
        shown = stimuli.images(images.tolist())
    decoded = _decode(checkpoint, cache, groups, ways, order)
    if isinstance(recipe.base, DemoBase):
        decoded["ceiling"] = decode_pictures(checkpoint, shown, order.seed, _numbers(groups))
    parts = _parts(images, cache.withheld)
    rows = _score(shown, decoded, images, parts, order, checkpoint.null_NW.device)
    here = found(Layout(order.root), cache, recipe)
    decodes = np.concatenate(groups)
    n_early = n_warming(cache, decodes, recipe.window, recipe.preprocessing.warmup_volumes)
    table = {
        "subject": number,
        "split": recipe.split,
        "held_out_runs": [(key.session, key.run) for key in cache.test_runs],
        "trials": len(groups),
        "average": order.average,
        "found": msgspec.to_builtins(here),
        "presentations": len(decodes),
        "within_warmup": n_early,
        "sampler": recipe.diffusion.sampler,
        "scoring": msgspec.to_builtins(order.scoring),
        "rows": msgspec.to_builtins(rows),
    }
    facts = [here.in_words(number), *_early(ways, n_early, len(decodes), recipe)]
    facts += [*_in_parts(parts), _sampled(recipe.diffusion), *order.scoring.in_words]
    markdown = as_markdown(rows, facts)
    drawn = np.sort(np.random.default_rng(order.seed).permutation(len(groups))[:GRID_TRIALS])
    with alone_in(order.out, wait=True):
        write_whole(order.out / "table.json", json.dumps(table, indent=2))
        write_whole(order.out / "table.md", markdown)
        with whole(order.out / "grid.png") as partial:
            write_grid(partial, {name: rows[drawn] for name, rows in {"shown": shown, **decoded}.items()})
    _log.info("%s", markdown)
    if cache.test_runs:
        _log.info("replay a held-out run: %s", replay_command(cache.test_runs[0], order.root))
    return rows


def _decode(
    checkpoint: Checkpoint,
    cache: Cache,
    groups: Sequence[Trials],
    ways: dict[str, tuple[Form, Window]],
    order: Evaluation,
) -> dict[str, Pictures]:
    """The pictures of each way of decoding, read from an earlier call where it left them."""
    of_all = [checkpoint.info, weights_digest(checkpoint), [group.tolist() for group in groups], order.seed]
    decoded: dict[str, Pictures] = {}
    for name, (form, window) in ways.items():
        windows = averaged_windows(cache, groups, window, form, checkpoint.recipe)
        path = order.out / "decodes" / f"{name.replace(' ', '_')}.npz"
        decode = partial(decode_windows, checkpoint, windows, order.seed, name, _numbers(groups))
        decoded[name] = kept(path, digest([*of_all, array_digest(windows)]), decode)
    return decoded


def _numbers(groups: Sequence[Trials]) -> list[int]:
    """A number for each decode, its first presentation's, which is the same in an evaluation of others."""
    return [int(group[0]) for group in groups]


def _ways(checkpoint: Checkpoint, order: Evaluation) -> dict[str, tuple[Form, Window]]:
    """The form and the window of each way of decoding, by name."""
    recipe = checkpoint.recipe
    if "betas" in recipe.preprocessing.train_on:
        return {_NAMES["betas"]: ("betas", recipe.window)}
    if not order.offsets:
        forms: tuple[Form, ...] = ("whole_run", "causal")
        return {_NAMES[form]: (form, recipe.window) for form in forms}
    return {
        f"from {offset * recipe.preprocessing.tr_s:.1f} s": (
            "whole_run",
            Window(offset_volumes=offset, length_volumes=recipe.window.length_volumes),
        )
        for offset in order.offsets
    }


def _early(ways: dict[str, tuple[Form, Window]], n_early: int, n_decoded: int, recipe: Recipe) -> list[str]:
    """A sentence about the streamed presentations of which the runtime would say that it is warming."""
    if _NAMES["causal"] not in ways:
        return []
    warmup = recipe.preprocessing.warmup_volumes
    return [
        f"Streaming: of {n_early} of the {n_decoded} presentations the window ends within the run's first "
        f"{warmup} volumes, in which the runtime is warming. They count here, not in reports of live runs."
    ]


def _sampled(diffusion: Diffusion) -> str:
    noise = "a noise of its own for each trial" if diffusion.sampler == "ddpm" else "no noise in its steps"
    return (
        f"Sampled by {diffusion.sampler.upper()} of {diffusion.inference_steps} steps, guidance "
        f"{diffusion.guidance:g}, from the same noise for every trial, with {noise}."
    )


def _score(
    shown: Pictures,
    decoded: dict[str, Pictures],
    images: NDArray[np.int64],
    parts: dict[str, NDArray[np.bool_]],
    order: Evaluation,
    device: torch.device,
) -> dict[str, Row]:
    """The rows of the table; those of a part of the trials follow that of all, which they are averaged to."""
    seen = see(as_scored(shown, decoded, order.scoring), order.networks, device)
    shuffled = np.random.default_rng(order.seed).permutation(len(shown))
    seen["floor"] = seen[next(iter(decoded))].reordered(shuffled)
    ways = {name: those for name, those in seen.items() if name != "shown"}
    rows: dict[str, Row] = {}
    for name, those in ways.items():
        values = per_trial(seen["shown"], those, name)
        rows[name] = summarise(values, images)
        for part, chosen in parts.items() if name in _NAMES.values() else ():
            if len(np.unique(images[chosen])) > 1:  # a single picture has no interval
                rows[f"{name}, {part}"] = summarise(_of(values, chosen), images[chosen])
    return rows


def _parts(images: NDArray[np.int64], withheld: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which trials show an image that the split withholds, and which another; empty if it withholds none."""
    is_shared = np.isin(images, withheld)
    return {"shared images": is_shared, "other images": ~is_shared} if len(withheld) else {}


def _in_parts(parts: dict[str, NDArray[np.bool_]]) -> list[str]:
    """A sentence about the trials of each part."""
    if not parts:
        return []
    n_shared, n_others = (int(chosen.sum()) for chosen in parts.values())
    return [
        f"{n_shared} of the trials show shared images, of which the split trains on no presentation: in the "
        f"natural world, kinds of objects that the decoder never saw. {n_others} show other images, of kinds "
        "that it knows. Each decode is compared with the pictures of all trials."
    ]


def _of(
    values: dict[str, PerTrial | NotComputed], chosen: NDArray[np.bool_]
) -> dict[str, PerTrial | NotComputed]:
    """Every metric's values for the chosen trials."""
    return {name: each if isinstance(each, NotComputed) else each[chosen] for name, each in values.items()}
