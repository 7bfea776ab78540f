"""The table of metrics: the paper's ten, and three that need no download.

Features are computed once: :func:`see` runs every network over all sets of pictures, one network after the
other, and :func:`compare` scores any two sets. A metric whose network is missing keeps its place, with the
command that downloads it; tables for people name it in one line.

Legend: n trials, d features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from realtime.report.identification import hog, stack
from train.errors import TrainError
from train.evaluation.bootstrap import PerTrial, Resampling, resample
from train.evaluation.metrics import (
    correlation_distance,
    cosine_distance,
    mean_iou,
    pixcorr,
    ssim,
    two_way,
    two_way_by_picture,
)
from train.evaluation.networks.efficientnet_lite import efficientnet_lite0
from train.evaluation.networks.registry import NETWORKS, Device, Features, Pictures, features, resized

_log = logging.getLogger(__name__)
PIXEL_METRICS_PX = 425
"""Side to which pictures are resized for PixCorr and SSIM: that of NSD's pictures."""
PIXELS_PX = 64
N_RESAMPLES = 10_000
DEFAULT_FOLDER = Path("networks")
"""The folder in messages when the user gave none."""

BY_DECODE, BY_PICTURE = "by decode", "by picture"
DIRECTIONS = (
    f"Identification {BY_DECODE}: each decode against all pictures, as in Brain-Diffuser; {BY_PICTURE}: each "
    "picture against all decodes, as in the code of Dynadiff's authors."
)
"""What the two directions are, for below a table."""

_FETCH = "`table.json` has the commands that fetch them"
_PAPER = "Dynadiff (Careil et al. 2025), 2.3 and table 1"
_OURS = "computed everywhere; not in the paper"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table: ``formula`` of the true and the decoded features of a ``kind``, by trial.

    Values are fractions where the unit is %. ``note`` says why a metric is not comparable with the paper's.
    """

    name: str
    kind: str
    formula: Callable[[Any, Any], NDArray[np.float64]]
    better: Literal["higher", "lower"] = "higher"
    source: str = _PAPER
    chance: float | None = None
    unit: Literal["", "%"] = ""
    note: str = ""
    way: str = ""
    """What follows the name in tables for people: the direction of an identification."""

    @property
    def heading(self) -> str:
        """The metric's name in tables for people."""
        return f"{self.name} {self.way}".strip()


def _identification(name: str, kind: str, source: str = _PAPER) -> tuple[Metric, Metric]:
    """A two-way identification in both directions; by decode it keeps the name that earlier tables have."""
    one = Metric(name=name, kind=kind, formula=two_way, source=source, chance=0.5, unit="%", way=BY_DECODE)
    return one, replace(one, name=f"{name} {BY_PICTURE}", formula=two_way_by_picture, way="")


METRICS: tuple[Metric, ...] = (
    Metric(name="SSIM", kind="pictures", formula=ssim),
    Metric(name="PixCorr", kind="pictures", formula=pixcorr),
    *_identification("AlexNet(2)", "alexnet_2"),
    *_identification("AlexNet(5)", "alexnet_5"),
    *_identification(
        "CLIP", "clip"
    ),  # "CLIP-12" in the paper's tables: see train.evaluation.networks.registry
    *_identification("Inception", "inception"),
    Metric(name="EffNet", kind="efficientnet_b1", formula=correlation_distance, better="lower"),
    Metric(name="SwAV", kind="swav", formula=correlation_distance, better="lower"),
    Metric(
        name="mIoU",
        kind="semantic_map",
        formula=mean_iou,
        unit="%",
        note="classes of the true map, as in the paper, but maps by Mask2Former (Swin-L, COCO panoptic: 133 "
        "classes) in place of ViT-Adapter (COCO-Stuff: 171): near the paper's, not comparable with it",
    ),
    Metric(name="DreamSim", kind="dreamsim", formula=cosine_distance, better="lower", unit="%"),
    *_identification("EffNet-Lite0", "efficientnet_lite0", _OURS),
    *_identification("HOG", "hog", _OURS),
    *_identification("Pixels", "pixels", _OURS),
)


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's mean over trials, its standard error, and its 95 % bootstrap interval."""

    value: float
    standard_error: float
    low: float
    high: float
    n_trials: int


class NotComputed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A metric whose network is missing or damaged: ``needs`` is the command that downloads it."""

    needs: str
    damaged: str = ""
    """The file or folder that exists but cannot be read."""


Row = dict[str, Score | NotComputed]
"""Scores by the metric's name, for all of METRICS in their order."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The features of a set of pictures by kind, ``[n, ...]``, and the kinds that could not be computed."""

    features: dict[str, Features]
    missing: dict[str, NotComputed]

    def reordered(self, order: NDArray[np.int64]) -> Seen:
        """The same pictures in another order; shuffled over trials, they are the floor."""
        return Seen(
            features={kind: rows[order] for kind, rows in self.features.items()}, missing=self.missing
        )


def see(sets: Mapping[str, Pictures], networks: Path | None, device: Device = "cpu") -> dict[str, Seen]:
    """Features of every set of RGB pictures ``[n, H, W, 3]``, by the set's name.

    One network is in memory at a time. A set of 1 000 pictures takes 1.6 GB, mostly for AlexNet's layer 2,
    and comparing two sets briefly takes some 6 GB. Weights that cannot be read count as missing, so that one
    damaged file does not stop an evaluation after hours of decoding.

    :param networks: folder of the networks' weights; see :mod:`train.evaluation.networks.registry`
    :param device: where the networks run
    """
    found = {name: _unaided(name, pictures, device) for name, pictures in sets.items()}
    missing: dict[str, NotComputed] = {}
    for network in NETWORKS:
        path, fetch = network.weights.find(networks), network.weights.fetch(networks or DEFAULT_FOLDER)
        if path is None:
            missing |= dict.fromkeys(network.kinds, NotComputed(needs=fetch))
            continue
        try:
            for name, kind, rows in features(network, path, dict(sets), device):
                found[name][kind] = rows
        except TrainError as error:
            _log.warning("%s is not used: %s", network.name, error)
            missing |= dict.fromkeys(network.kinds, NotComputed(needs=fetch, damaged=str(path)))
    return {name: Seen(features=kinds, missing=missing) for name, kinds in found.items()}


def _unaided(name: str, pictures: Pictures, device: Device) -> dict[str, Features]:
    """The features that need no download."""
    return {
        "pictures": resized(pictures, PIXEL_METRICS_PX, Image.Resampling.BICUBIC),
        "pixels": resized(pictures, PIXELS_PX, Image.Resampling.BOX).reshape(len(pictures), -1),
        "hog": stack([hog(picture) for picture in pictures]),
        "efficientnet_lite0": efficientnet_lite0(pictures, device, name),
    }


def per_trial(shown: Seen, decoded: Seen, name: str | None = None) -> dict[str, PerTrial | NotComputed]:
    """Every metric's value for each trial ``[n]``, for decoded pictures against the shown ones.

    :param name: name of the decoded pictures on the progress bar; None for no bar
    :raises TrainError: the two sets differ in their number of trials, or have fewer than two
    """
    n_trials, n_decoded = len(shown.features["pictures"]), len(decoded.features["pictures"])
    if n_trials != n_decoded or n_trials < 2:
        raise TrainError(
            f"expected as many decoded as shown pictures, at least two; got {n_decoded} and {n_trials}"
        )
    missing = shown.missing | decoded.missing
    return {
        metric.name: missing[metric.kind]
        if metric.kind in missing
        else metric.formula(shown.features[metric.kind], decoded.features[metric.kind])
        for metric in tqdm(METRICS, desc=f"metrics, {name}", unit="metric", disable=name is None)
    }


def summarise(
    values: Mapping[str, PerTrial | NotComputed], pictures: NDArray[np.int64], *, seed: int = 0
) -> Row:
    """Each metric's mean over trials with its interval; repetitions of a picture are drawn together.

    Values are ``[n]``, or of several trainings ``[s, n]``.

    :param pictures: a number for the picture that each trial showed, ``[n]``
    :param seed: seed of the bootstrap's draws
    """
    resampling = resample(pictures, N_RESAMPLES, seed)
    return {
        name: those if isinstance(those, NotComputed) else _summary(those, resampling)
        for name, those in values.items()
    }


def _summary(values: PerTrial, resampling: Resampling) -> Score:
    low, high = resampling.interval(values)
    return Score(
        value=float(values.mean()),
        standard_error=resampling.standard_error(values),
        low=low,
        high=high,
        n_trials=values.shape[-1],
    )


def as_markdown(rows: Mapping[str, Row], facts: Sequence[str] = ()) -> str:
    """The table in Markdown: a row per metric, a column per way of decoding, with 95 % intervals.

    Notes below it say what the two directions of identification are, which metrics are not comparable with
    the paper's and, in one line, which are missing.

    :param facts: sentences on what the table rests on
    """
    known = [m for m in METRICS if any(isinstance(row.get(m.name), Score) for row in rows.values())]
    lines = [
        f"| metric | better | chance | {' | '.join(rows)} |",
        f"|---|---|---|{'---|' * len(rows)}",
    ]
    for metric in known:
        chance = "" if metric.chance is None else _number(metric, metric.chance)
        cells = [cell(metric, row.get(metric.name)) for row in rows.values()]
        lines.append(f"| {metric.heading} | {metric.better} | {chance} | {' | '.join(cells)} |")
    notes = [f"- {fact}" for fact in (*facts, DIRECTIONS)]
    notes += [f"- {metric.name}: {metric.note}" for metric in known if metric.note]
    return "\n".join([*lines, "", *notes, *_missing(rows.values())]) + "\n"


def _missing(rows: Iterable[Row]) -> list[str]:
    """A line on the metrics that were not computed, and one for each damaged file of weights."""
    lacks: dict[NotComputed, dict[str, None]] = {}
    for row in rows:
        for name, score in row.items():
            if isinstance(score, NotComputed) and not name.endswith(BY_PICTURE):
                lacks.setdefault(score, {})[name] = None
    damaged = {lack: names for lack, names in lacks.items() if lack.damaged}
    lines = [
        f"- Not computed, since `{lack.damaged}` is damaged: {', '.join(names)}; remove it, {_FETCH}"
        for lack, names in damaged.items()
    ]
    absent = {name for lack, names in lacks.items() if lack not in damaged for name in names}
    if absent:
        names = ", ".join(metric.name for metric in METRICS if metric.name in absent)
        lines.append(f"- Not computed, since their networks are not on this machine: {names}; {_FETCH}")
    return lines


def cell(metric: Metric, score: Score | NotComputed | None) -> str:
    """A score as text: its value and its 95 % interval; None is of an earlier version without this metric."""
    if score is None:
        return "not measured"
    if isinstance(score, NotComputed):
        return "not computed"
    value, low, high = (_number(metric, number) for number in (score.value, score.low, score.high))
    return f"{value} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def _number(metric: Metric, value: float) -> str:
    return f"{100 * value:.1f} %" if metric.unit == "%" else f"{value:.2f}"
