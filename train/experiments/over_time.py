"""Experiments on when a picture can be decoded, and on the window's length (paper 3.1, figures 4, 5, 6)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from nsd import TR_S
from train.evaluation.results_table import see
from train.experiments.catalogue import (
    OFFSETS,
    baseline,
    by_length,
    general,
    linear,
    shifted,
    specialised,
)
from train.experiments.entries import Entry, entry_of
from train.experiments.findings import LINEAR, Judge, Report, Strip
from train.experiments.verdicts import (
    LOW_LEVEL,
    Finding,
    Judgement,
    Verdict,
    all_of,
    at_least_as_good,
    better,
    decodes,
    said,
)
from train.experiments.workbench import ROWS_PER_TRIAL, Probe, Variant, Workbench

BEGINS_S = 3.0
"""Time after onset at which decoding begins to work in the paper."""
LATE_S = 10.0
"""Start of a late window that specialised models still decode in the paper."""
STRIP_OFFSETS = (-3, 0, 3, 6, 9)
ByOffset = dict[int, Entry]
"""Entries by the start of their windows, in volumes after onset."""


def end_s(offset_volumes: int, length_volumes: int) -> float:
    """Seconds from a picture's onset to the end of the window."""
    return (offset_volumes + length_volumes) * TR_S


def time_resolved(bench: Workbench) -> Report:
    """The general model on shifted windows, and specialised models, each on its own window (figures 4, 5).

    The linear reference is tested in both ways, because the recordings contain what it decodes.
    """
    judge, window = Judge(bench), bench.recipe.window
    models = specialised(bench)
    references = {offset: linear(bench, model) for offset, model in models.items()}
    one_linear = _one_on_all(judge, f"general, {LINEAR}", baseline(bench), {})
    own_linear = _each_on_its_own(judge, f"specialised, {LINEAR}", references, {})
    one = _one_on_all(judge, "general", general(bench), {})
    own = _each_on_its_own(judge, "specialised", models, own_linear)
    before = _against_neighbour(judge, -1, "general, against the picture before")
    after = _against_neighbour(judge, 1, "general, against the one after")
    findings = [
        begins(own, window.length_volumes, "specialised models"),
        begins(own_linear, window.length_volumes, "the linear reference"),
        lasts(own, one, "the model"),
        lasts(own_linear, one_linear, "the linear reference"),
        shows_neighbours(before, after, window.offset_volumes),
    ]
    lines = (one, own, one_linear, own_linear, before, after)
    return Report(
        name="time-resolved",
        title="Decoding over time: one general model and specialised ones",
        question="When after its onset can a picture be decoded, and until when?",
        entries=[entry for line in lines for entry in line.values()],
        findings=findings,
        axis="end of the window, seconds after the picture's onset",
        chance_at="Chance is 50 % in identification.",
        strips=_strips(judge, models),
        notes=[
            f"Windows of {window.length_volumes} volumes. The general model was trained on windows that end "
            f"{end_s(window.offset_volumes, window.length_volumes):.1f} s after onset; each specialised one "
            "on its own."
        ],
    )


def _one_on_all(judge: Judge, series: str, model: Variant, references: ByOffset) -> ByOffset:
    models = dict.fromkeys(OFFSETS, model)
    return _each_on_its_own(judge, series, models, references)


def _each_on_its_own(judge: Judge, series: str, models: dict[int, Variant], references: ByOffset) -> ByOffset:
    window = judge.bench.recipe.window
    return {
        offset: judge.entry(
            series,
            model,
            Probe(window=shifted(window, offset)),
            end_s(offset, window.length_volumes),
            references.get(offset),
        )
        for offset, model in models.items()
    }


def _against_neighbour(judge: Judge, step: int, series: str) -> ByOffset:
    """The general model's decodes, scored against the picture before or after their own."""
    bench, window, model = judge.bench, judge.bench.recipe.window, general(judge.bench)
    has_one, images, neighbours = bench.neighbours(step)
    shown = see({"shown": neighbours}, None)["shown"]
    entries = {}
    for offset in OFFSETS:
        decoded = bench.decodes(model, Probe(window=shifted(window, offset)))
        values = judge.values(shown, [pictures[has_one] for pictures in decoded])
        end = end_s(offset, window.length_volumes)
        entries[offset] = entry_of(series, values, images, end, unfinished=bench.unfinished(model))
    return entries


def _strips(judge: Judge, models: dict[int, Variant]) -> list[Strip]:
    bench, window = judge.bench, judge.bench.recipe.window
    strips = [("shown", judge.pictures)]
    for offset in STRIP_OFFSETS:
        test = Probe(window=shifted(window, offset))
        name = f"window ends {end_s(offset, window.length_volumes):.1f} s after onset"
        strips.append((f"general, {name}", bench.pictures(general(bench), test)))
        if offset in models:
            strips.append((f"specialised, {name}", bench.pictures(models[offset], test)))
    return strips


def begins(own: ByOffset, length_volumes: int, whose: str) -> Finding:
    """Whether the first decodable window is the first one that ends after the paper's 3 s."""
    found = {end_s(offset, length_volumes): decodes(own[offset]) for offset in sorted(own)}
    judgement = _began({end: each.verdict for end, each in found.items()})
    near = [end for end in found if abs(end - BEGINS_S) < ROWS_PER_TRIAL * TR_S]
    if judgement.verdict == "cannot be said":
        near += [end for end in found if found[end].verdict == "cannot be said"]
    return Finding.of(
        f"decoding begins to work about 3 s after onset, as the haemodynamic response lets expect: {whose}",
        Judgement(
            verdict=judgement.verdict,
            why="; ".join([judgement.why, *(found[end].why for end in dict.fromkeys(near))]),
        ),
        f"Windows end at {', '.join(f'{end:.1f}' for end in found)} s after onset.",
    )


def _began(decodes_by_end_s: dict[float, Verdict]) -> Judgement:
    """Judge from the verdicts on windows, which are in ascending order of their ends."""
    first_s = next((end for end, verdict in decodes_by_end_s.items() if verdict == "appears"), None)
    fails_s = [
        end
        for end, verdict in decodes_by_end_s.items()
        if verdict == "does not appear" and (first_s is None or end < first_s)
    ]
    if first_s is None:
        none_does = len(fails_s) == len(decodes_by_end_s)
        return Judgement(
            verdict="does not appear" if none_does else "cannot be said", why="no window is shown to decode"
        )
    if not fails_s:
        early: Verdict = "does not appear" if first_s < BEGINS_S else "cannot be said"
        return Judgement(verdict=early, why=f"windows that end by {first_s:.1f} s decode, none fails before")
    why = f"windows that end at {fails_s[-1]:.1f} s fail, the first that decode end at {first_s:.1f} s"
    if fails_s[-1] >= BEGINS_S or first_s < BEGINS_S:
        return Judgement(verdict="does not appear", why=why)
    is_next = (fails_s[-1], first_s) in pairwise(decodes_by_end_s)
    return Judgement(verdict="appears" if is_next else "cannot be said", why=why)


def lasts(own: ByOffset, one: ByOffset, whose: str) -> Finding:
    """Specialised models compared with the general model on the same windows."""
    late = min(own, key=lambda offset: abs(offset * TR_S - LATE_S))
    verdicts = {offset: (decodes(own[offset]).verdict, decodes(one[offset]).verdict) for offset in own}
    decoded = [offset for offset, either in verdicts.items() if "appears" in either]
    at_own_time = all_of(*(at_least_as_good(own[at], one[at], (LOW_LEVEL,)) for at in decoded))
    if at_own_time.verdict == "appears":
        at_own_time = replace(at_own_time, why="at its own time no specialised model is worse by 5 points")
    return Finding.of(
        "specialised models are best at their own time, and still decode a window that starts 10 s after "
        f"onset, better than the general model: {whose}",
        all_of(
            decodes(own[late]),
            better(own[late], one[late], (LOW_LEVEL,)),
            at_own_time,
        ),
        f"From a window that starts {late * TR_S:.1f} s after onset: specialised {said(own[late])}; general "
        f"{said(one[late])}.",
    )


def shows_neighbours(before: ByOffset, after: ByOffset, trained: int) -> Finding:
    """Whether the general model decodes the neighbouring picture from windows shifted by one trial."""
    return Finding.of(
        "on windows shifted by one trial the general model decodes the previous and the next picture",
        all_of(decodes(before[trained - ROWS_PER_TRIAL]), decodes(after[trained + ROWS_PER_TRIAL])),
    )


def window_length(bench: Workbench) -> Report:
    """Windows of 1 to 6 volumes from the same start (figure 6)."""
    judge, models = Judge(bench), dict(sorted(by_length(bench).items()))
    tests = {length: Probe(window=model.recipe.window) for length, model in models.items()}
    references = {
        length: judge.reference(LINEAR, model, tests[length], length * TR_S)
        for length, model in models.items()
    }
    entries = {
        length: judge.entry(
            "own model for each length", model, tests[length], length * TR_S, references[length]
        )
        for length, model in models.items()
    }
    longest, three, single = entries[max(entries)], entries[3], entries[min(entries)]
    names = {length: f"{length} volume{'s' * (length > 1)}" for length in models}
    return Report(
        name="window-length",
        title="Length of the window",
        question="How many volumes does a decode need?",
        entries=[*entries.values(), *references.values()],
        findings=[
            Finding.of("longer windows decode better: 6 volumes than 1", better(longest, single)),
            Finding.of("3 volumes are almost as good as 6", at_least_as_good(three, longest)),
        ],
        axis="length of the window, seconds",
        chance_at="Chance is 50 % in identification.",
        strips=[("shown", judge.pictures)]
        + [(names[length], bench.pictures(model, tests[length])) for length, model in models.items()],
        notes=[
            "All windows start 3 volumes (4 s) after onset, as the paper's; each length has its own model, "
            "and its own linear reference."
        ],
    )
