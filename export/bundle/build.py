"""Makes a bundle from a checkpoint in steps; each step must stay within a limit of the one before.

base model, checkpoint ─► merged ─► brain, denoise, vae in ONNX (fp32) ─► stored, or fp16 ─► decodes

Without LoRA there is nothing to merge, and *model* takes the place of *merged*. Weights are in memory once:
LoRA is merged in place, and a module is freed when its graph has been written.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from export.atomic_folder import check_replaceable, staging
from export.bundle.card import card
from export.bundle.convert import convert
from export.bundle.export import Export
from export.bundle.spec import hash_files, sizes, specification
from export.errors import ExportError
from export.graphs.graphs import Graph, brain_graph, denoise_graph, vae_graph
from export.graphs.onnx_model import Arrays, outputs_of, torch_runner
from export.graphs.samplers import bundle_samplers, diffusers_error, diffusers_scheduler
from export.lineage.provenance import library_versions, model_stage, note_sources, weights_sha256
from export.lineage.scores import read_scores
from export.lineage.source import (
    latent_shape,
    read_checkpoint,
    read_evaluation,
    read_info_of,
    read_subject,
    write_subject,
)
from export.parity import parity_report
from export.parity.decodes import N_RANDOM, REFERENCE, Decodes, Seen, random_windows, recorded_windows
from export.parity.limits import Limits, compare, gate
from export.precision_forms import FINAL_STEPS, Form
from export.resources import check_disk, check_memory, count_weights, is_out_of_memory
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from train.model.diffusion import make_scheduler
from train.model.finetune import merge_adapter

SEED = 1
CARD_FILE = "README.md"
_LARGE = 10**8
"""Number of weights above which only one window is decoded, with the shortest sampler: on a CPU, one step of
the paper's model takes seconds."""


def export_bundle(
    checkpoint_folder: Path,
    out: Path,
    *,
    form: Form = "compact",
    base: Path | None = None,
    subject: int | None = None,
    name: str | None = None,
    evaluation: Path | None = None,
    nsd: Path | None = None,
    cache: Path | None = None,
    limits: Limits | None = None,
) -> Bundle:
    """Export a checkpoint; ``out`` is written completely or stays as it was.

    :param form: form of the graphs, see :mod:`export.precision_forms`
    :param base: folder of the base model, if it has been moved since training
    :param subject: number of the subject; needed when the checkpoint has several
    :param name: name of the bundle; by default the subject's, such as ``sub-01``
    :param evaluation: ``table.md`` that ``python -m train evaluate`` wrote, for the model card; the
        ``table.json`` beside it is for the runtime
    :param nsd: root of the recordings, to measure whether identification changes
    :param cache: folder that ``python -m train prepare`` wrote; by default in the checkpoint's folder
    :raises ExportError: something is missing, ``out`` may not be replaced, or a step exceeds its limit
    """
    check_replaceable(out)
    n_weights = count_weights(checkpoint_folder, read_info_of(checkpoint_folder))
    check_disk(n_weights, form, out)
    check_memory(n_weights)
    try:
        checkpoint = read_checkpoint(checkpoint_folder, base, subject)
        region, quality = read_subject(checkpoint), read_evaluation(evaluation)
        seen = recorded_windows(checkpoint, nsd, cache, SEED) if nsd else None
        # A place for the fp32 graphs of other forms, which is removed before the bundle takes its place.
        with staging(out) as folder, TemporaryDirectory(dir=folder, prefix="exact-") as scratch:
            export = Export(
                checkpoint=checkpoint,
                subject=region,
                form=form,
                name=name or f"sub-{checkpoint.subject.number:02d}",
                quality=quality,
                evaluation=read_scores(evaluation, checkpoint.subject.number),
                limits=limits or Limits(),
                folder=folder,
                exact=folder if form == "fp32" else Path(scratch),
                is_large=n_weights > _LARGE,
            )
            made = _build(export, seen)
    except Exception as error:  # ONNX Runtime's exceptions have no narrower base class
        if not is_out_of_memory(error):
            raise
        raise ExportError(
            f"out of memory ({error}); nothing was written. End other programs, or use a larger machine"
        ) from error
    return replace(made, folder=out)


def _build(export: Export, seen: Seen | None) -> Bundle:
    """Fill the folder. The specification is written twice, because decoding needs a bundle that opens."""
    folder, checkpoint, ledger = export.folder, export.checkpoint, export.ledger
    note_sources(ledger, checkpoint)
    samplers = _samplers(export)
    decodes = _decodes(export, seen, samplers)
    write_subject(checkpoint, export.subject, folder)
    graphs = _convert(export, decodes)
    hashes = hash_files(folder)
    bundle_spec.write_spec(folder, specification(export, samplers, graphs, hashes))
    made = Bundle.open(folder)
    if export.form != "fp32":
        decodes.by_engine("ONNX in fp32", replace(made, folder=export.exact), "onnxruntime-cpu")
    decodes.by_every_engine(export.form, made)
    finals = [f"{graph} {FINAL_STEPS[export.form]}" for graph in graphs]
    decodes.note(ledger, finals)
    parity_report.write(folder, decodes.report(export.form, export.parity), export.name)
    text = card(made.spec, ledger.stages, sizes(folder), checkpoint, export.form, export.quality)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    hashes |= hash_files(folder, (parity_report.JSON_FILE, parity_report.PAGE_FILE, CARD_FILE))
    bundle_spec.write_spec(folder, specification(export, samplers, graphs, hashes))
    return Bundle.open(folder)


def _convert(export: Export, decodes: Decodes) -> dict[str, bundle_spec.Graph]:
    """Run the model in torch, unmerged and merged, and convert its graphs one by one."""
    graphs, expected = _in_torch(export, decodes)
    entries = {}
    while graphs:  # frees each graph before the next one is converted
        graph = graphs.pop(0)
        entries[graph.name] = convert(export, graph, expected.pop(graph.name))
    return entries


def _samplers(export: Export) -> tuple[Sampler, ...]:
    """The samplers' tables for the recipe, each checked against diffusers."""
    recipe, limit = export.checkpoint.recipe, export.limits.sampler
    is_baseline = export.checkpoint.info.method == "brain-diffuser"
    strength = recipe.ridge.diffusion_strength if is_baseline else None
    samplers = bundle_samplers(recipe.diffusion, strength)
    for sampler in samplers:
        scheduler = type(diffusers_scheduler(sampler)).__name__
        export.ledger.note(
            sampler.name,
            hashlib.sha256(msgspec.json.encode(sampler)).hexdigest(),
            parity=gate(f"sampler {sampler.name}", {"latents": diffusers_error(sampler)}, limit),
            notes={"against": f"diffusers' {scheduler}, whole trajectories", "limit": f"{limit:g}"},
        )
    return samplers


def _decodes(export: Export, seen: Seen | None, samplers: tuple[Sampler, ...]) -> Decodes:
    """Whole decodes with the first and the last sampler, or with the last one only for a large model."""
    is_large = export.is_large
    return Decodes(
        seen=seen or random_windows(export.checkpoint, 1 if is_large else N_RANDOM, SEED),
        samplers=samplers[-1:] if is_large else tuple(dict.fromkeys((samplers[0], samplers[-1]))),
        seed=SEED,
        limits=export.limits,
        is_large=is_large,
    )


@torch.no_grad()
def _in_torch(export: Export, decodes: Decodes) -> tuple[list[Graph], dict[str, list[Arrays]]]:
    """The graphs, with LoRA merged into the UNet where there is one, and torch's outputs for their cases."""
    checkpoint = export.checkpoint
    graphs = _graphs(export, decodes.samplers[0])
    denoise = graphs[1]
    decodes.by_torch(REFERENCE, checkpoint)
    expected = {graph.name: outputs_of(graph, torch_runner(graph)) for graph in graphs}
    parity: dict[str, float] = {}
    notes: dict[str, str] = {}
    if checkpoint.recipe.finetune.layers == "lora":
        merge_adapter(checkpoint.unet)
        merged, limit = outputs_of(denoise, torch_runner(denoise)), export.limits.merged
        notes = {"against": "torch, LoRA beside the weights", "limit": f"{limit:g}"}
        found = compare(denoise, merged, expected[denoise.name])
        parity = export.measure("merged", notes["against"], found, limit)
        expected[denoise.name] = merged
        decodes.by_torch("torch, merged", checkpoint)
    parts = {"brain": checkpoint.brain, "image_unet": checkpoint.unet, "vae": checkpoint.vae}
    parameters = {f"{name}_parameters": str(_count(part)) for name, part in parts.items()}
    export.ledger.note(
        model_stage(checkpoint),
        weights_sha256(parts),
        ["checkpoint", "base model"],
        parity=parity,
        notes=notes | parameters | library_versions(),
    )
    return graphs, expected


def _graphs(export: Export, sampler: Sampler) -> list[Graph]:
    """The three graphs, with fewer cases for a large model."""
    checkpoint, shape = export.checkpoint, latent_shape(export.checkpoint)
    brain = brain_graph(checkpoint.brain, SEED)
    condition = torch.from_numpy(torch_runner(brain)(brain.cases[0])["condition"])
    conditions = torch.cat([checkpoint.null_NW[None], condition])
    alphas = make_scheduler().alphas_cumprod
    denoise = denoise_graph(checkpoint.unet, alphas, sampler, conditions, shape, SEED)
    vae = vae_graph(checkpoint.vae, shape, SEED)
    if not export.is_large:
        return [brain, denoise, vae]
    return [brain, replace(denoise, cases=denoise.cases[:2]), replace(vae, cases=vae.cases[:1])]


def _count(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
