"""How well a decoder decodes, for ``bundle.json``: what an evaluation wrote beside its table for the card."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from export.errors import ExportError
from realtime.bundle.spec import Evaluated
from train.evaluation.results_table import BY_DECODE, METRICS
from train.evaluation.scored_pictures import Scoring
from train.recipe import SamplerName

_WAYS = ("streaming", "offline")
"""The ways of decoding of which a bundle tells; ceiling, floor and other windows are for the card alone."""
_log = logging.getLogger(__name__)


class _Cell(msgspec.Struct, frozen=True):
    """A metric of one way of decoding; without a value where it was not computed."""

    value: float | None = None
    low: float = 0.0
    high: float = 1.0
    n_trials: int = 0


class _Table(msgspec.Struct, frozen=True):
    """The fields of ``table.json`` that are read; earlier versions wrote only those without a default."""

    average: bool
    rows: dict[str, dict[str, _Cell]]
    subject: int | None = None
    sampler: SamplerName = "ddim"
    scoring: Scoring = Scoring()


def read_scores(card_table: Path | None, subject: int) -> tuple[Evaluated, ...]:
    """The identifications by decode in the ``table.json`` beside a ``table.md``; none where there is no such.

    None is taken of what a live run does not show: see :func:`_not_live`.

    :param subject: whose decoder is exported
    :raises ExportError: when the file is no table of ``python -m train evaluate``, or another subject's
    """
    path = card_table.with_name("table.json") if card_table else None
    if path is None or not path.exists():
        if path:
            _log.warning("no %s: the runtime will not tell how well the bundle decodes", path)
        return ()
    try:
        table = msgspec.json.decode(path.read_bytes(), type=_Table)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path}: expected what `python -m train evaluate` wrote beside {card_table}: {error}; evaluate "
            "again, or leave --evaluation out"
        ) from error
    if table.subject not in (None, subject):
        raise ExportError(
            f"{path}: expected an evaluation of subject {subject}, found one of subject {table.subject}; "
            "evaluate this subject's decoder, or leave --evaluation out"
        )
    if reasons := _not_live(table):
        _log.warning(
            "%s is %s, unlike a live run: the runtime will not tell how well the bundle decodes; for that, "
            "evaluate again without these options (--sampler ddim)",
            path,
            ", and ".join(reasons),
        )
        return ()
    return tuple(_scores(table))


def _not_live(table: _Table) -> list[str]:
    """In what the decodes of an evaluation, or their scores, differ from those of a live run."""
    reasons = {
        "of averaged presentations": table.average,
        f"of decodes by {table.sampler.upper()}": table.sampler != "ddim",
        "of pictures that were changed before they were scored (blurred faces, enlarged truth)": table.scoring
        != Scoring(),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _scores(table: _Table) -> Iterator[Evaluated]:
    chances = {metric.name: metric.chance for metric in METRICS if metric.way == BY_DECODE}
    for way in _WAYS:
        for name, chance in chances.items():
            cell = table.rows.get(way, {}).get(name, _Cell())
            if cell.value is None or chance is None:
                continue
            yield Evaluated(
                metric=name,
                decoded_from=way,
                value=cell.value,
                low=cell.low,
                high=cell.high,
                chance=chance,
                n_trials=cell.n_trials,
            )
