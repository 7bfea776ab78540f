"""Experiments with several subjects, and with a new subject (paper, appendix E: table 8 and figure 9)."""

from __future__ import annotations

from collections.abc import Sequence

from train.experiments.catalogue import N_SESSIONS, new_subject, several_subjects
from train.experiments.entries import Entry
from train.experiments.findings import LINEAR, Judge, Report
from train.experiments.verdicts import (
    LOW_LEVEL,
    Finding,
    all_have_learned,
    all_of,
    better,
    gains_more,
    on_par,
    said,
)
from train.experiments.workbench import Probe, Workbench


def multi_subject(bench: Workbench) -> Report:
    """One model for four subjects compared with models of one subject (table 8)."""
    together, alone = several_subjects(bench)
    window = bench.recipe.window
    judges = {subject: Judge(bench, subject) for subject in together.subjects}
    tests = {subject: Probe(window=window, subject=subject) for subject in together.subjects}
    references = {
        subject: judge.reference(f"subject {subject}, {LINEAR}", together, tests[subject])
        for subject, judge in judges.items()
    }
    shared = {
        subject: judge.entry(
            f"subject {subject}, of a model of four",
            together,
            tests[subject],
            reference=references[subject],
        )
        for subject, judge in judges.items()
    }
    own = {
        subject: judges[subject].entry(
            f"subject {subject}, of its own model", model, tests[subject], reference=references[subject]
        )
        for subject, model in alone.items()
    }
    return Report(
        name="multi-subject",
        title="One model for several subjects",
        question="Is a model that four subjects share as good as models of their own (table 8)?",
        entries=[*shared.values(), *own.values(), *references.values()],
        findings=[
            Finding.of(
                "a multi-subject model is on par with single-subject models",
                all_of(*(on_par(shared[subject], own[subject]) for subject in own)),
                _trained([*(shared[subject] for subject in own), *own.values()]),
            )
        ],
        strips=[
            strip
            for subject, judge in judges.items()
            for strip in (
                (f"shown to subject {subject}", judge.pictures),
                ("of a model of four", bench.pictures(together, tests[subject])),
            )
        ],
        notes=[
            f"{N_SESSIONS} sessions of each subject; tested on held-out runs of each. The linear reference "
            "is of the subject alone."
        ],
        chance_at="Chance is 50 % in identification.",
    )


def _trained(entries: Sequence[Entry]) -> str:
    """How long models were trained, if all have learned what they can."""
    if not all_have_learned(entries):
        return ""
    return "Each is trained until its loss on held-out presentations falls no more."


def fine_tuning(bench: Workbench) -> Report:
    """Subject 1 by sessions, from scratch and from a model of the other subjects (figure 9)."""
    judge, test = Judge(bench), Probe(window=bench.recipe.window)
    from_nothing, from_others = new_subject(bench)
    references = {n: judge.reference(LINEAR, model, test, n) for n, model in from_nothing.items()}
    fresh = {
        n: judge.entry("from nothing", model, test, n, references[n]) for n, model in from_nothing.items()
    }
    tuned = {
        n: judge.entry("from a model of three others", model, test, n, references[n])
        for n, model in from_others.items()
    }
    few, many = min(fresh), max(fresh)
    return Report(
        name="new-subject",
        title="A new subject",
        question="Does a model of other subjects save recordings of a new one (figure 9)?",
        entries=[*fresh.values(), *tuned.values(), *references.values()],
        findings=[
            Finding.of(
                "with few sessions, fine-tuning a model of other subjects is better than starting anew",
                better(tuned[few], fresh[few]),
            ),
            Finding.of(
                f"more sessions decode better: {many} than {few}",
                better(fresh[many], fresh[few]),
                f"Linear reference: {few} session{'s' * (few > 1)} {said(references[few])}; {many} sessions "
                f"{said(references[many])}.",
            ),
            Finding.of(
                f"the gain from other subjects shrinks with sessions, from {few} to {many}",
                gains_more((tuned[few], fresh[few]), (tuned[many], fresh[many]), LOW_LEVEL),
            ),
        ],
        axis="sessions of the new subject",
        chance_at="Chance is 50 % in identification.",
        strips=[("shown", judge.pictures)]
        + [
            (f"{n} session{'s' * (n > 1)}, {how}", bench.pictures(model, test))
            for n in from_nothing
            for how, model in (("from nothing", from_nothing[n]), ("from others", from_others[n]))
        ],
        notes=[
            "Subject and timestep layers begin anew, everything else goes on (appendix E). Models that go on "
            "have the steps of the others' model behind them besides."
        ],
    )
