"""One model for several subjects, and for a new one (paper, appendix E: table 8 and figure 9)."""

from __future__ import annotations

from train.experiments.catalogue import N_SESSIONS, new_subject, several_subjects
from train.experiments.report import Finding, Judge, Report, is_better, is_clearly_better, said
from train.experiments.workbench import Probe, Workbench


def multi_subject(bench: Workbench) -> Report:
    """One model for four subjects beside models of one (table 8)."""
    together, alone = several_subjects(bench)
    window = bench.recipe.window
    judges = {subject: Judge(bench, subject) for subject in together.subjects}
    tests = {subject: Probe(window=window, subject=subject) for subject in together.subjects}
    shared = {
        subject: judge.entry(f"subject {subject}, of a model of four", together, tests[subject])
        for subject, judge in judges.items()
    }
    own = {
        subject: judges[subject].entry(f"subject {subject}, of its own model", model, tests[subject])
        for subject, model in alone.items()
    }
    on_par = all(not is_clearly_better(own[subject], shared[subject]) for subject in own)
    return Report(
        name="multi-subject",
        title="One model for several subjects",
        question="Is a model that four subjects share as good as models of their own (table 8)?",
        entries=[*shared.values(), *own.values()],
        findings=[
            Finding(
                claim="a multi-subject model is on par with single-subject models",
                appears=on_par,
                here="; ".join(
                    f"subject {subject}: shared {said(shared[subject])}, own {said(own[subject])}"
                    for subject in own
                )
                + ". Both train for as many steps: the shared one sees each subject a quarter as often.",
            )
        ],
        strips=[
            strip
            for subject, judge in judges.items()
            for strip in (
                (f"shown to subject {subject}", judge.pictures),
                ("of a model of four", bench.decodes(together, tests[subject])),
            )
        ],
        notes=[f"{N_SESSIONS} sessions of each subject; tested on held-out runs of each."],
        chance_at="Chance is 50 % in identification.",
    )


def fine_tuning(bench: Workbench) -> Report:
    """Subject 1 by sessions, from nothing and from a model of the others (figure 9)."""
    judge, test = Judge(bench), Probe(window=bench.recipe.window)
    from_nothing, from_others = new_subject(bench)
    fresh = {n: judge.entry("from nothing", model, test, n) for n, model in from_nothing.items()}
    tuned = {
        n: judge.entry("from a model of three others", model, test, n) for n, model in from_others.items()
    }
    few, many = min(fresh), max(fresh)
    gain = {n: tuned[n].score("Pixels").value - fresh[n].score("Pixels").value for n in fresh}
    return Report(
        name="new-subject",
        title="A new subject",
        question="Does a model of other subjects save recordings of a new one (figure 9)?",
        entries=[*fresh.values(), *tuned.values()],
        findings=[
            Finding(
                claim="with few sessions, fine-tuning a model of other subjects is better than starting anew",
                appears=is_clearly_better(tuned[few], fresh[few]),
                here=f"{few} session: from nothing {said(fresh[few])}, from the others {said(tuned[few])}.",
            ),
            Finding(
                claim="more sessions decode better, and the gain shrinks with them",
                appears=is_better(fresh[many], fresh[few], "Pixels") and gain[many] < gain[few],
                here="gain in pixel identification: "
                + ", ".join(
                    f"{n} session{'s' * (n > 1)} {100 * value:+.1f} points" for n, value in gain.items()
                )
                + f"; from nothing, {many} sessions: {said(fresh[many])}.",
            ),
        ],
        axis="sessions of the new subject",
        chance_at="Chance is 50 % in identification.",
        strips=[("shown", judge.pictures)]
        + [
            (f"{n} session{'s' * (n > 1)}, {how}", bench.decodes(model, test))
            for n in from_nothing
            for how, model in (("from nothing", from_nothing[n]), ("from others", from_others[n]))
        ],
        notes=[
            "Subject and timestep layers begin anew, everything else goes on (appendix E). Models that go on "
            "have the steps of the others' model behind them besides."
        ],
    )
