"""A bundle from a checkpoint, step by step; each is measured against the one before and gated.

base model, checkpoint ─► merged ─► brain, denoise, vae in ONNX (fp32) ─► stored (weights fp16) ─► pictures

Where nothing was tuned beside the weights, *model* takes the place of *merged*: there is nothing to merge.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from export import onnxgraph
from export.card import card
from export.graphs import Graph, brain_graph, denoise_graph, vae_graph
from export.parity import Limits, compare, gate
from export.pictures import note_pictures
from export.provenance import Ledger, library_versions, model_stage, note_sources, weights_sha256
from export.samplers import bundle_samplers, diffusers_error, diffusers_scheduler
from export.source import (
    Subject,
    latent_shape,
    read_checkpoint,
    read_evaluation,
    read_subject,
    write_subject,
)
from export.staging import check_replaceable, staging
from realtime import bundle
from realtime.bundle import SPEC_FILE, Bundle, Sampler
from realtime.bundlefiles import file_sha256
from train.cache import streaming_settings
from train.checkpoint import Checkpoint, merged_unet
from train.diffusion import make_scheduler

SEED = 1
CARD_FILE = "README.md"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Export:
    """What an export is about, and what is known of it so far."""

    checkpoint: Checkpoint
    subject: Subject
    name: str
    quality: str | None
    limits: Limits
    folder: Path
    ledger: Ledger = field(default_factory=Ledger)


def export_bundle(
    checkpoint_folder: Path,
    out: Path,
    *,
    base: Path | None = None,
    subject: int | None = None,
    name: str | None = None,
    evaluation: Path | None = None,
    limits: Limits | None = None,
) -> Bundle:
    """Export a checkpoint; ``out`` appears whole, or stays as it was.

    :param base: folder of the base model, where it has moved since training
    :param subject: whose decoder, where the checkpoint has several
    :param name: of the bundle; by default the subject, as ``sub-01``
    :param evaluation: ``table.md`` of ``python -m train evaluate``, for the model card
    :raises ExportError: what is missing, in the way, or too far from the step before
    """
    check_replaceable(out)
    checkpoint = read_checkpoint(checkpoint_folder, base, subject)
    region, quality = read_subject(checkpoint), read_evaluation(evaluation)
    with staging(out) as folder:
        export = _Export(
            checkpoint=checkpoint,
            subject=region,
            name=name or f"sub-{checkpoint.subject.number:02d}",
            quality=quality,
            limits=limits or Limits(),
            folder=folder,
        )
        _build(export)
    return Bundle.open(out)


def _build(export: _Export) -> None:
    """Fill the folder. The pictures need a bundle that opens, so the specification is written twice."""
    folder, checkpoint, ledger = export.folder, export.checkpoint, export.ledger
    note_sources(ledger, checkpoint)
    samplers = _samplers(export)
    write_subject(checkpoint, export.subject, folder)
    graphs = {graph.name: _export_graph(export, graph) for graph in _merged_graphs(export, samplers[0])}
    spec = _spec(export, samplers, graphs)
    bundle.write_spec(folder, spec)
    note_pictures(ledger, Bundle.open(folder), checkpoint, export.limits.psnr_db, SEED)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != SPEC_FILE}
    (folder / CARD_FILE).write_text(
        card(spec, ledger.stages, sizes, checkpoint, export.quality), encoding="utf-8"
    )
    bundle.write_spec(folder, _spec(export, samplers, graphs))
    Bundle.open(folder)


def _samplers(export: _Export) -> tuple[Sampler, ...]:
    """The tables of the recipe, each proven against diffusers."""
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


@torch.no_grad()
def _merged_graphs(export: _Export, sampler: Sampler) -> list[Graph]:
    """Fold LoRA into the UNet's weights, where there is one, and make the three graphs."""
    checkpoint = export.checkpoint
    is_merged = checkpoint.recipe.finetune.layers == "lora"
    merged = merged_unet(checkpoint) if is_merged else checkpoint.unet
    shape = latent_shape(checkpoint)
    alphas = make_scheduler().alphas_cumprod
    brain = brain_graph(checkpoint.brain, SEED)
    condition = torch.from_numpy(onnxgraph.torch_runner(brain)(brain.cases[0])["condition"])
    conditions = torch.cat([checkpoint.null_NW[None], condition])
    denoise, unmerged = (
        denoise_graph(unet, alphas, sampler, conditions, shape, SEED) for unet in (merged, checkpoint.unet)
    )
    parity: dict[str, float] = {}
    notes: dict[str, str] = {}
    if is_merged:
        limit = export.limits.merged
        difference = compare(denoise, onnxgraph.torch_runner(denoise), onnxgraph.torch_runner(unmerged))
        parity = gate("merged", difference, limit)
        notes = {"against": "torch, LoRA beside the weights", "limit": f"{limit:g}"}
    parts = {"brain": checkpoint.brain, "image_unet": merged, "vae": checkpoint.vae}
    parameters = {f"{name}_parameters": str(_count(part)) for name, part in parts.items()}
    export.ledger.note(
        model_stage(checkpoint),
        weights_sha256(parts),
        ["checkpoint", "base model"],
        parity=parity,
        notes=notes | parameters | library_versions(),
    )
    return [brain, denoise, vae_graph(checkpoint.vae, shape, SEED)]


def _count(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _export_graph(export: _Export, graph: Graph) -> bundle.Graph:
    """Trace a graph, store it compactly in the bundle, and measure both steps."""
    ledger, limits = export.ledger, export.limits
    path = export.folder / f"{graph.name}.onnx"
    _log.info("%-15s tracing …", graph.name)
    model = onnxgraph.trace(graph)
    inputs, outputs = onnxgraph.signature_of(model)
    with TemporaryDirectory(dir=export.folder) as scratch:
        exact_path = Path(scratch) / path.name
        onnxgraph.save(model, exact_path)
        exact = onnxgraph.onnx_runner(exact_path)
        step = f"{graph.name} onnx"
        ledger.note(
            step,
            onnxgraph.files_sha256(exact_path),
            [model_stage(export.checkpoint)],
            parity=gate(step, compare(graph, exact, onnxgraph.torch_runner(graph)), limits.onnx),
            notes={"against": "torch", "limit": f"{limits.onnx:g}", "opset": str(onnxgraph.OPSET)},
        )
        n_stored = onnxgraph.store_compactly(model)
        onnxgraph.save(model, path)
        step = f"{graph.name} stored"
        ledger.note(
            step,
            onnxgraph.files_sha256(path),
            [f"{graph.name} onnx"],
            parity=gate(step, compare(graph, onnxgraph.onnx_runner(path), exact), limits.stored),
            notes={"against": "ONNX in fp32", "limit": f"{limits.stored:g}", "fp16_weights": str(n_stored)},
        )
    return bundle.Graph(file=path.name, precision="float32", inputs=inputs, outputs=outputs)


def _spec(export: _Export, samplers: tuple[Sampler, ...], graphs: dict[str, bundle.Graph]) -> bundle.Spec:
    """The specification of what the folder holds now."""
    info, recipe = export.checkpoint.info, export.checkpoint.recipe
    window = bundle.Window(
        offset_volumes=recipe.window.offset_volumes, length_volumes=recipe.window.length_volumes
    )
    height, width, _ = graphs["vae"].outputs[0].shape
    tokens, token_width = export.checkpoint.null_NW.shape
    paths = sorted(path for path in export.folder.iterdir() if path.name != SPEC_FILE)
    return bundle.Spec(
        format_version=bundle.FORMAT_VERSION,
        name=export.name,
        subject=export.checkpoint.subject.number,
        roi=export.subject.roi,
        tr_s=info.tr_s,
        preprocessing=streaming_settings(recipe.preprocessing),
        latent_shape=latent_shape(export.checkpoint),
        image_size_px=(int(height), int(width)),
        condition_shape=(tokens, token_width),
        decoders=(bundle.Decoder(name="general", graph="brain", window=window),),
        samplers=samplers,
        graphs=graphs,
        files={path.name: file_sha256(path) for path in paths},
        provenance=export.ledger.stages,
    )
