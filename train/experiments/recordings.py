"""What a decoder is fed: whole runs or what the runtime knows so far; windows or betas (paper, table 4)."""

from __future__ import annotations

from train.experiments.catalogue import baseline, by_preprocessing, general, of_betas
from train.experiments.report import Finding, Judge, Report, is_better, is_clearly_better, said
from train.experiments.workbench import Probe, Workbench


def preprocessing(bench: Workbench) -> Report:
    """Each way of training, tested on whole runs and as the runtime would stream them."""
    judge, window = Judge(bench), bench.recipe.window
    offline, streaming = Probe(window=window), Probe(window=window, form="causal")
    models = by_preprocessing(bench)
    entries = {
        (name, test.form): judge.entry(f"trained on {name}, tested {where}", model, test)
        for name, model in models.items()
        for test, where in ((offline, "offline"), (streaming, "streaming"))
    }
    whole_off, whole_on = entries["whole run", "whole_run"], entries["whole run", "causal"]
    causal_on, both_on = entries["causal", "causal"], entries["both", "causal"]
    best = max((whole_on, causal_on, both_on), key=lambda entry: entry.score("Pixels").value)
    return Report(
        name="preprocessing",
        title="Whole-run against causal preprocessing",
        question="What does it cost that a streaming decoder knows only the past of a run, and can training "
        "on what it will be fed make up for it?",
        entries=list(entries.values()),
        findings=[
            Finding(
                source="Expected (the paper does not decode causally)",
                claim="it costs something to know only the past of a run",
                appears=is_clearly_better(whole_off, best),
                here=f"offline: {said(whole_off)}; streaming at best: {said(best)} ({best.series}).",
            ),
            Finding(
                source="Expected (the paper does not decode causally)",
                claim="training on causal windows helps streaming",
                appears=is_better(causal_on, whole_on, "Pixels") or is_better(both_on, whole_on, "Pixels"),
                here=f"streaming, trained on whole runs: {said(whole_on)}; on causal windows: "
                f"{said(causal_on)}; on both: {said(both_on)}.",
            ),
        ],
        strips=[("shown", judge.pictures)]
        + [
            (f"trained on {name}, streaming", bench.decodes(model, streaming))
            for name, model in models.items()
        ],
        chance_at="Chance is 50 % in identification.",
    )


def betas(bench: Workbench) -> Report:
    """One beta a trial against a window of volumes (table 4)."""
    judge, single = Judge(bench), of_betas(bench)
    series = {"Dynadiff": general(bench), "Brain-Diffuser": baseline(bench)}
    window = Probe(window=bench.recipe.window)
    beta = Probe(window=single["Dynadiff"].recipe.window, form="betas")
    rows = [
        (f"{method}, {what}", model, probe)
        for method in series
        for what, model, probe in (
            (f"windows of {bench.recipe.window.length_volumes} volumes", series[method], window),
            ("betas", single[method], beta),
        )
    ]
    entries = [judge.entry(name, model, probe) for name, model, probe in rows]
    of_series, of_single, _, of_baseline = entries
    return Report(
        name="betas",
        title="Betas in place of a window of volumes",
        question="Does the model work on single-trial responses of a general linear model (table 4)?",
        entries=entries,
        findings=[
            Finding(
                claim="made for series, the model is competitive on betas with systems made for them (the "
                "paper's table does not hold Brain-Diffuser, which stands for them here)",
                appears=not is_clearly_better(of_baseline, of_single),
                here=f"on betas, Dynadiff: {said(of_single)}; Brain-Diffuser: {said(of_baseline)}.",
            ),
            Finding(
                source="Expected (the paper does not compare the two)",
                claim="a window of volumes holds at least what a beta does",
                appears=not is_clearly_better(of_single, of_series),
                here=f"windows: {said(of_series)}; betas: {said(of_single)}.",
            ),
        ],
        strips=[("shown", judge.pictures)]
        + [(name, bench.decodes(model, probe)) for name, model, probe in rows],
        chance_at="Chance is 50 % in identification.",
        notes=[
            "Betas of single trials, as `python -m sim betas` estimates them from the recorded runs; the "
            "paper's table 4 averages the repetitions of a picture."
        ],
    )
