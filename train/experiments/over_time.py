"""When a picture can be decoded, and from how long a window (paper 3.1, figures 4, 5 and 6)."""

from __future__ import annotations

from nsd import TR_S
from train.experiments.catalogue import OFFSETS, by_length, general, shifted, specialised
from train.experiments.report import Entry, Finding, Judge, Report, above_chance, is_better, said
from train.experiments.workbench import Probe, Workbench
from train.table import compare, see

LATE_S = 10.0
"""Start of the window of which the paper says that specialised models still decode it."""
STRIP_OFFSETS = (-3, 0, 3, 6, 9)


def end_s(offset_volumes: int, length_volumes: int) -> float:
    """Seconds from a picture's onset to the end of the window."""
    return (offset_volumes + length_volumes) * TR_S


def time_resolved(bench: Workbench) -> Report:
    """The general model on shifted windows, and specialised models each on its own (figures 4, 5)."""
    judge, model, window = Judge(bench), general(bench), bench.recipe.window
    ends = {offset: end_s(offset, window.length_volumes) for offset in OFFSETS}
    tests = {offset: Probe(window=shifted(window, offset)) for offset in OFFSETS}
    one = {offset: judge.entry("general", model, tests[offset], ends[offset]) for offset in OFFSETS}
    models = specialised(bench)
    own = {
        offset: judge.entry("specialised", special, tests[offset], ends[offset])
        for offset, special in models.items()
    }
    near = [
        _against_neighbour(bench, step, name, tests[offset], ends[offset])
        for step, name in ((-1, "general, against the picture before"), (1, "general, against the one after"))
        for offset in OFFSETS
    ]
    strips = [("shown", judge.pictures)]
    for offset in STRIP_OFFSETS:
        name = f"window ends {ends[offset]:.1f} s after onset"
        strips.append((f"general, {name}", bench.decodes(model, tests[offset])))
        if offset in models:
            strips.append((f"specialised, {name}", bench.decodes(models[offset], tests[offset])))
    return Report(
        name="time-resolved",
        title="Decoding over time: one general model and specialised ones",
        question="When after its onset can a picture be decoded, and until when?",
        entries=[*one.values(), *own.values(), *near],
        findings=[_begins(own), _lasts(one, own, window.offset_volumes), _shows_neighbours(near, one)],
        axis="end of the window, seconds after the picture's onset",
        chance_at="Chance is 50 % in identification.",
        strips=strips,
        notes=[
            f"Windows of {window.length_volumes} volumes. The general model was trained on windows that end "
            f"{ends[window.offset_volumes]:.1f} s after onset; each specialised one on its own."
        ],
    )


def _against_neighbour(bench: Workbench, step: int, series: str, test: Probe, x: float) -> Entry:
    """The general model's decodes against the picture before or after the one they are aligned to."""
    has_one, neighbours = bench.neighbours(step)
    decoded = bench.decodes(general(bench), test)[has_one]
    seen = see({"shown": neighbours, "decoded": decoded}, None)
    return Entry(series=series, x=x, scores=compare(seen["shown"], seen["decoded"]))


def _begins(own: dict[int, Entry]) -> Finding:
    ends_s = [entry.x or 0.0 for entry in own.values()]
    works = [above_chance(entry) for entry in own.values()]
    begins_s = next((end for end, is_above in zip(ends_s, works, strict=True) if is_above), None)
    grid = ", ".join(f"{end:.1f}" for end in ends_s)
    return Finding(
        claim="decoding begins to work about 3 s after onset, as the haemodynamic response lets expect",
        appears=begins_s is not None and begins_s > ends_s[0] and begins_s <= 6,
        here=f"windows of specialised models end at {grid} s after onset; "
        + (
            f"the first above chance in pixels ends at {begins_s:.1f} s."
            if begins_s
            else "none is above chance."
        )
        + " The simulated responses peak 4.5 to 7.5 s after onset.",
    )


def _lasts(one: dict[int, Entry], own: dict[int, Entry], trained: int) -> Finding:
    late = min(own, key=lambda offset: abs(offset * TR_S - LATE_S))
    better = is_better(own[late], one[late], "Pixels")
    closest = all(not is_better(one[offset], own[offset], "Pixels") for offset in own)
    return Finding(
        claim="specialised models are best at their own time, and still decode a window that starts 10 s "
        "after onset, where the general model fails",
        appears=better and closest and above_chance(own[late]),
        here=f"from a window that starts {late * TR_S:.1f} s after onset the specialised model reaches "
        f"{said(own[late])}, the general one {said(one[late])}; at its own start, {trained * TR_S:.1f} s, "
        f"the general one reaches {said(one[trained])}.",
    )


def _shows_neighbours(near: list[Entry], one: dict[int, Entry]) -> Finding:
    def best(series_part: str) -> Entry:
        return max(
            (entry for entry in near if series_part in entry.series), key=lambda e: e.score("Pixels").value
        )

    before, after = best("before"), best("after")
    current = max(one.values(), key=lambda entry: entry.score("Pixels").value)
    in_order = (before.x or 0) < (current.x or 0) < (after.x or 0)
    return Finding(
        claim="on windows shifted by one trial the general model decodes the previous and the next picture",
        appears=in_order and above_chance(before) and above_chance(after),
        here=f"against the picture before, it is best on windows that end at {before.x:.1f} s "
        f"({said(before)}); against the one shown, at {current.x:.1f} s; against the one after, at "
        f"{after.x:.1f} s ({said(after)}).",
    )


def window_length(bench: Workbench) -> Report:
    """Windows of 1 to 6 volumes from the same start (figure 6)."""
    judge, models = Judge(bench), dict(sorted(by_length(bench).items()))
    entries = {
        length: judge.entry(
            "own model for each length", model, Probe(window=model.recipe.window), length * TR_S
        )
        for length, model in models.items()
    }
    longest, three, single = entries[max(entries)], entries[3], entries[min(entries)]
    nearly = not is_better(longest, three, "Pixels") and not is_better(longest, three, "EffNet-Lite0")
    return Report(
        name="window-length",
        title="Length of the window",
        question="How many volumes does a decode need?",
        entries=list(entries.values()),
        findings=[
            Finding(
                claim="longer windows decode better, and 3 volumes are almost as good as 6",
                appears=nearly and is_better(longest, single, "Pixels"),
                here=f"1 volume: {said(single)}; 3 volumes: {said(three)}; 6 volumes: {said(longest)}.",
            )
        ],
        axis="length of the window, seconds",
        chance_at="Chance is 50 % in identification.",
        strips=[("shown", judge.pictures)]
        + [
            (f"{length} volume{'s' * (length > 1)}", bench.decodes(model, Probe(window=model.recipe.window)))
            for length, model in models.items()
        ],
        notes=[
            "All windows start 3 volumes (4 s) after onset, as the paper's; each length has its own model."
        ],
    )
