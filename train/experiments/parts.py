"""Experiments on the baseline and on parts of the model (paper, tables 1, 2 and 3)."""

from __future__ import annotations

from train.experiments.catalogue import (
    RATE_OF_WEIGHTS,
    baseline,
    brain_modules,
    finetunings,
    general,
    with_the_papers_loss_and_dropout,
)
from train.experiments.entries import Entry
from train.experiments.findings import Judge, Report, Strip
from train.experiments.verdicts import HIGH_LEVEL, Finding, all_of, better, on_par
from train.experiments.workbench import Probe, Variant, Workbench


def comparison(bench: Workbench) -> Report:
    """Dynadiff compared with Brain-Diffuser (table 1), and with itself with the paper's loss weight and
    dropout, offline and streaming.
    """
    judge, window = Judge(bench), bench.recipe.window
    models = {
        "Dynadiff": general(bench),
        "Dynadiff with the paper's loss weight and dropout": with_the_papers_loss_and_dropout(bench),
        "Brain-Diffuser": baseline(bench),
    }
    probes = {"offline": Probe(window=window), "streaming": Probe(window=window, form="causal")}
    rows = [(f"{name}, {how}", models[name], probes[how]) for how in probes for name in models]
    entries = {name: judge.entry(name, model, probe) for name, model, probe in rows}
    ours, control, theirs = (entries[f"{name}, offline"] for name in models)
    return Report(
        name="baseline",
        title="Beside a linear baseline",
        question="Is the single stage better than two ridge regressions into the base model (table 1)?",
        entries=list(entries.values()),
        findings=[
            Finding.of(
                "Dynadiff is better than Brain-Diffuser, but for PixCorr, where they are equal",
                all_of(better(ours, theirs), on_par(ours, theirs, ("PixCorr",))),
            ),
            Finding.of(
                "these experiments' loss weight and lower dropout are better than the paper's",
                better(ours, control),
                source="Expected (they are this project's)",
            ),
        ],
        strips=[("shown", judge.pictures)]
        + [(name, bench.pictures(model, probe)) for name, model, probe in rows],
        chance_at="Chance is 50 % in identification.",
    )


def brain_module(bench: Workbench) -> Report:
    """The rows of table 2."""
    entries, strips = _rows(bench, brain_modules(bench))
    ours, shared, early = (
        entries[name]
        for name in (
            "a layer for each volume, merged late",
            "one layer for all volumes",
            "merged before the subject layer",
        )
    )
    return Report(
        name="brain-module",
        title="The brain module, part by part",
        question="What do timestep layers and late aggregation contribute (table 2)?",
        entries=list(entries.values()),
        findings=[
            Finding.of("a layer for each volume is better than one for all", better(ours, shared)),
            Finding.of(
                "merging the volumes late is better than before the subject layer", better(ours, early)
            ),
        ],
        strips=strips,
        chance_at="Chance is 50 % in identification.",
    )


def finetuning(bench: Workbench) -> Report:
    """The rows of table 3."""
    variants = finetunings(bench)
    entries, strips = _rows(bench, variants)
    lora = entries["LoRA"]
    tuned = [entries[name] for name in ("cross-attention", "linear layers", "everything")]
    return Report(
        name="finetuning",
        title="What of the diffusion model learns",
        question="Is LoRA on the cross-attention enough, and is it needed (table 3)?",
        entries=list(entries.values()),
        findings=[
            Finding.of(
                "adapting the diffusion model is better than leaving it as it is",
                better(lora, entries["nothing"]),
            ),
            Finding.of(
                "in high-level metrics LoRA is better than tuning cross-attention, linear layers, all",
                all_of(*(better(lora, other, (HIGH_LEVEL,)) for other in tuned)),
            ),
        ],
        strips=strips,
        chance_at="Chance is 50 % in identification.",
        notes=[
            f"The UNet's own weights are tuned at {RATE_OF_WEIGHTS:g} times the learning rate of LoRA, "
            "because they first lose at that rate what the base model knows. The brain module's rate is the "
            "same in all rows."
        ],
    )


def _rows(bench: Workbench, variants: dict[str, Variant]) -> tuple[dict[str, Entry], list[Strip]]:
    judge, test = Judge(bench), Probe(window=bench.recipe.window)
    name_of_reference = "Brain-Diffuser (linear reference)"
    reference = judge.entry(name_of_reference, baseline(bench), test)
    entries = {
        name: judge.entry(name, variant, test, reference=reference) for name, variant in variants.items()
    }
    strips = [("shown", judge.pictures)]
    strips += [(name, bench.pictures(variant, test)) for name, variant in variants.items()]
    strips.append((name_of_reference, bench.pictures(baseline(bench), test)))
    return entries | {name_of_reference: reference}, strips
