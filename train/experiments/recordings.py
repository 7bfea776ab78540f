"""Experiments on a decoder's input: whole-run or causal preprocessing, windows or betas (table 4)."""

from __future__ import annotations

from train.experiments.catalogue import baseline, by_preprocessing, general, linear, of_betas
from train.experiments.findings import LINEAR, Judge, Report
from train.experiments.verdicts import Finding, all_of, any_of, at_least_as_good, better, said
from train.experiments.workbench import Probe, Workbench

_EXPECTED = "Expected (the paper does not decode causally)"


def preprocessing(bench: Workbench) -> Report:
    """Each way of training, tested on whole runs and on windows preprocessed as in the runtime."""
    judge, window = Judge(bench), bench.recipe.window
    models = by_preprocessing(bench)
    tests = {
        "offline": Probe(window=window),
        "streaming": Probe(window=window, form="causal"),
    }
    rows = {(name, where): f"trained on {name}, tested {where}" for name in models for where in tests}
    references = {
        (name, where): judge.reference(f"{LINEAR}, {row}", models[name], tests[where])
        for (name, where), row in rows.items()
    }
    entries = {
        (name, where): judge.entry(row, models[name], tests[where], reference=references[name, where])
        for (name, where), row in rows.items()
    }
    offline = entries["whole run", "offline"]
    streamed = {name: entries[name, "streaming"] for name in models}
    linear_offline, linear_streaming, linear_causal = (
        said(references[way])
        for way in (("whole run", "offline"), ("whole run", "streaming"), ("causal", "streaming"))
    )
    return Report(
        name="preprocessing",
        title="Whole-run against causal preprocessing",
        question="What does it cost that a streaming decoder knows only the past of a run, and can training "
        "on what it will be fed make up for it?",
        entries=[*entries.values(), *references.values()],
        findings=[
            Finding.of(
                "it costs something to know only the past of a run, however the decoder is trained",
                all_of(*(better(offline, entry) for entry in streamed.values())),
                f"Linear reference, trained on whole runs: offline {linear_offline}; streaming "
                f"{linear_streaming}.",
                _EXPECTED,
            ),
            Finding.of(
                "training on causal windows, alone or besides, helps streaming",
                any_of(*(better(streamed[name], streamed["whole run"]) for name in ("causal", "both"))),
                f"Linear reference, streaming: trained on whole runs {linear_streaming}; on causal windows "
                f"{linear_causal}.",
                _EXPECTED,
            ),
        ],
        strips=[("shown", judge.pictures)]
        + [
            (f"trained on {name}, streaming", bench.pictures(model, tests["streaming"]))
            for name, model in models.items()
        ],
        chance_at="Chance is 50 % in identification.",
    )


def betas(bench: Workbench) -> Report:
    """One beta per trial compared with a window of volumes (table 4)."""
    judge, single = Judge(bench), of_betas(bench)
    what = f"windows of {bench.recipe.window.length_volumes} volumes"
    window, beta = Probe(window=bench.recipe.window), Probe(window=single.recipe.window, form="betas")
    rows = [
        (f"Brain-Diffuser, {what}", baseline(bench), window),
        ("Brain-Diffuser, betas", linear(bench, single), beta),
        (f"Dynadiff, {what}", general(bench), window),
        ("Dynadiff, betas", single, beta),
    ]
    baselines = [judge.entry(*row) for row in rows[:2]]
    of_series, of_single = (
        judge.entry(*row, reference=reference) for row, reference in zip(rows[2:], baselines, strict=True)
    )
    return Report(
        name="betas",
        title="Betas in place of a window of volumes",
        question="Does the model work on single-trial responses of a general linear model (table 4)?",
        entries=[of_series, of_single, *baselines],
        findings=[
            Finding.of(
                "made for series, the model is competitive on betas with systems made for them (the paper's "
                "table does not hold Brain-Diffuser, which stands for them here)",
                at_least_as_good(of_single, baselines[1]),
            ),
            Finding.of(
                "a window of volumes holds at least what a beta does: the model",
                at_least_as_good(of_series, of_single),
                source="Expected (the paper does not compare the two)",
            ),
            Finding.of(
                "a window of volumes holds at least what a beta does: the linear reference",
                at_least_as_good(baselines[0], baselines[1]),
                source="Expected (the paper does not compare the two)",
            ),
        ],
        strips=[("shown", judge.pictures)]
        + [(name, bench.pictures(model, probe)) for name, model, probe in [*rows[2:], *rows[:2]]],
        chance_at="Chance is 50 % in identification.",
        notes=[
            "Betas of single trials, as `python -m sim betas` estimates them from the recorded runs; the "
            "paper's table 4 averages the repetitions of a picture."
        ],
    )
