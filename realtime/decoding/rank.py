"""Ranks the engines that ``auto`` may take by how fast each decodes a bundle on this machine.

A GPU's engines are measured where one can run here, otherwise the CPU's. Each is measured in the trial of the
bundle (:mod:`realtime.decoding.trial`), before anything is served, and the user's cache keeps the figure.
Where it cannot, speed ranks nothing: two engines that are close could change places at every start.

A restart in the middle of a run takes the engine that the run was begun on, whatever is faster by now.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import is_shipped
from realtime.decoding import trial
from realtime.decoding.engines.choose import AUTO_GROUPS, AUTO_ORDER, Ranking, probe
from realtime.errors import EngineError

CLOSE = 1.05
"""An engine that takes at most this many times as long as the fastest counts as equally fast."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What ``auto`` tries, and why in this order."""

    ranking: Ranking
    reason: str
    """Empty where there was no choice."""


def rank(bundle: Bundle, begun_on: str = "") -> Ranked:
    """Rank the engines that can run a bundle here.

    :param begun_on: the engine of a run that is gone on with, which goes first where it still runs
    :raises EngineError: when none can
    """
    failed: dict[str, str] = {}
    """Why engines are passed over."""
    if begun_on in AUTO_ORDER and _still_runs(bundle, begun_on, failed):
        return _ranked([begun_on], f"a run that is still open was begun on {begun_on}", failed)
    for group in AUTO_GROUPS:
        candidates = [probe(bundle, name) for name in group]
        failed |= {each.name: each.reason for each in candidates if not each.available}
        available = [each.name for each in candidates if each.available]
        order, reason = _order(bundle, available, failed)
        if order:
            return _ranked(order, reason, failed)
    said = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    raise EngineError(f"expected an engine that runs this bundle here, found none: {said}")


def by_speed(decode_s: Mapping[str, float]) -> list[str]:
    """Engines by the time that a decode takes, the fastest first.

    Of those that are as good as equally fast, the first of ``AUTO_ORDER`` goes first, so that noise in a
    measurement changes nothing.
    """
    limit_s = CLOSE * min(decode_s.values())
    first = next(name for name in AUTO_ORDER if decode_s.get(name, limit_s + 1) <= limit_s)
    return [first, *sorted(decode_s.keys() - {first}, key=decode_s.__getitem__)]


def in_words(order: list[str], decode_s: Mapping[str, float], sampler: str) -> str:
    """Why the first engine is taken; empty where there was no choice."""
    first, *others = order
    if not others:
        return ""
    slower = ", ".join(f"{name} {1e3 * decode_s[name]:.0f} ms" for name in others)
    return (
        f"a decode with {sampler} takes {1e3 * decode_s[first]:.0f} ms on {first}, {slower} "
        "(measured on this machine)"
    )


def _still_runs(bundle: Bundle, name: str, failed: dict[str, str]) -> bool:
    try:
        if not (candidate := probe(bundle, name)).available:
            raise EngineError(candidate.reason)
        trial.try_bundle(bundle, name)
    except EngineError as error:
        failed[name] = str(error)
    return name not in failed


def _order(bundle: Bundle, names: list[str], failed: dict[str, str]) -> tuple[list[str], str]:
    """Those of a group's available engines that pass their trial, and why in this order."""
    if is_shipped(bundle.folder):  # trusted: its trials only measure
        if len(names) < 2:
            return names, ""
        if not (_are_known(bundle, names) or trial.can_remember(bundle)):
            return names, _unkept(names)
    measured_s = _measure(bundle, names, failed)
    if len(measured_s) < 2:
        return list(measured_s), ""
    if not _are_known(bundle, measured_s):
        return list(measured_s), _unkept(measured_s)
    order = by_speed(measured_s)
    return order, in_words(order, measured_s, bundle.sampler().name)


def _are_known(bundle: Bundle, names: Iterable[str]) -> bool:
    return all(trial.is_known(bundle, name) for name in names)


def _unkept(names: Iterable[str]) -> str:
    return (
        f"{' before '.join(names)}, whichever is faster: the user's cache does not keep what is measured, so "
        "the next start could choose another"
    )


def _measure(bundle: Bundle, names: list[str], failed: dict[str, str]) -> dict[str, float]:
    measured_s = {}
    for name in names:
        try:
            measured_s[name] = trial.decode_s(bundle, name)
        except EngineError as error:
            failed[name] = str(error)
    return measured_s


def _ranked(order: list[str], why: str, failed: Mapping[str, str]) -> Ranked:
    for name, reason in failed.items():
        _log.info("engine %s is passed over: %s", name, reason)
    others = [name for name in AUTO_ORDER if name not in failed and name not in order]
    return Ranked(
        ranking=Ranking(
            order=(*order, *others),
            passed_over=tuple(f"{name}: {reason}" for name, reason in failed.items()),
        ),
        reason=why,
    )
