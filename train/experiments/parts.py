"""The model beside the baseline, and what its parts are for (paper, tables 1, 2 and 3)."""

from __future__ import annotations

from train.experiments.catalogue import baseline, brain_modules, finetunings, general
from train.experiments.report import Entry, Finding, Judge, Report, Strip, is_clearly_better, said
from train.experiments.workbench import Probe, Variant, Workbench


def comparison(bench: Workbench) -> Report:
    """Dynadiff beside Brain-Diffuser (table 1), offline and streaming."""
    judge, window = Judge(bench), bench.recipe.window
    models = {"Dynadiff": general(bench), "Brain-Diffuser": baseline(bench)}
    probes = {"offline": Probe(window=window), "streaming": Probe(window=window, form="causal")}
    rows = [(f"{name}, {how}", models[name], probes[how]) for how in probes for name in models]
    entries = {name: judge.entry(name, model, probe) for name, model, probe in rows}
    ours, theirs = entries["Dynadiff, offline"], entries["Brain-Diffuser, offline"]
    return Report(
        name="baseline",
        title="Beside a linear baseline",
        question="Is the single stage better than two ridge regressions into the base model (table 1)?",
        entries=list(entries.values()),
        findings=[
            Finding(
                claim="Dynadiff is better than Brain-Diffuser, but for PixCorr, where they are equal",
                appears=is_clearly_better(ours, theirs),
                here=f"Dynadiff: {said(ours)}; Brain-Diffuser: {said(theirs)}. Dynadiff is trained for "
                "minutes here, and there are 64 objects to tell apart, which a linear map can learn.",
            )
        ],
        strips=[("shown", judge.pictures)]
        + [(name, bench.decodes(model, probe)) for name, model, probe in rows],
        chance_at="Chance is 50 % in identification.",
    )


def brain_module(bench: Workbench) -> Report:
    """The rows of table 2."""
    entries, strips = _rows(bench, brain_modules(bench))
    ours, shared, early = (
        entries[name]
        for name in ("as in the paper", "one layer for all volumes", "merged before the subject layer")
    )
    return Report(
        name="brain-module",
        title="The brain module, part by part",
        question="What do timestep layers and late aggregation contribute (table 2)?",
        entries=list(entries.values()),
        findings=[
            Finding(
                claim="a layer for each volume is better than one for all",
                appears=is_clearly_better(ours, shared),
                here=f"own layers: {said(ours)}; one layer: {said(shared)}.",
            ),
            Finding(
                claim="merging the volumes late is better than before the subject layer",
                appears=is_clearly_better(ours, early),
                here=f"late: {said(ours)}; early: {said(early)}.",
            ),
        ],
        strips=strips,
        chance_at="Chance is 50 % in identification.",
    )


def finetuning(bench: Workbench) -> Report:
    """The rows of table 3."""
    entries, strips = _rows(bench, finetunings(bench))
    lora, nothing = entries["LoRA"], entries["nothing"]
    return Report(
        name="finetuning",
        title="What of the diffusion model learns",
        question="Is LoRA on the cross-attention enough, and is it needed (table 3)?",
        entries=list(entries.values()),
        findings=[
            Finding(
                claim="adapting the diffusion model is better than leaving it as it is",
                appears=is_clearly_better(lora, nothing),
                here=f"LoRA: {said(lora)}; nothing: {said(nothing)}.",
            ),
            Finding(
                claim="in high-level metrics LoRA is better than tuning cross-attention, linear layers, all",
                appears=all(
                    is_clearly_better(lora, entries[name])
                    for name in ("cross-attention", "linear layers", "everything")
                ),
                here=f"LoRA: {said(lora)}; "
                + "; ".join(
                    f"{name}: {said(entries[name])}"
                    for name in ("cross-attention", "linear layers", "everything")
                )
                + ". The training here is short: it leaves little time to overfit.",
            ),
        ],
        strips=strips,
        chance_at="Chance is 50 % in identification.",
    )


def _rows(bench: Workbench, variants: dict[str, Variant]) -> tuple[dict[str, Entry], list[Strip]]:
    judge, test = Judge(bench), Probe(window=bench.recipe.window)
    variants = variants | {"Brain-Diffuser (baseline)": baseline(bench)}
    entries = {name: judge.entry(name, variant, test) for name, variant in variants.items()}
    strips = [("shown", judge.pictures)]
    strips += [(name, bench.decodes(variant, test)) for name, variant in variants.items()]
    return entries, strips
