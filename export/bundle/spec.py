"""``bundle.json`` of an export, and the metadata of its graph files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from export.bundle.export import Export
from export.lineage.provenance import model_stage
from export.lineage.source import latent_shape
from realtime.bundle import spec as bundle_spec
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import SPEC_FILE, Sampler
from train.recipe import Preprocessing


def specification(
    export: Export,
    samplers: tuple[Sampler, ...],
    graphs: Mapping[str, bundle_spec.Graph],
    hashes: Mapping[str, str],
) -> bundle_spec.Spec:
    """The content of ``bundle.json``, with the stages that have been noted so far.

    :param hashes: SHA-256 of the bundle's files by name
    """
    checkpoint = export.checkpoint
    height, width, _ = graphs["vae"].outputs[0].shape
    tokens, token_width = checkpoint.null_NW.shape
    return bundle_spec.Spec(
        format_version=bundle_spec.FORMAT_VERSION,
        name=export.name,
        subject=checkpoint.subject.number,
        roi=export.subject.roi,
        tr_s=checkpoint.info.tr_s,
        preprocessing=_streaming(checkpoint.recipe.preprocessing),
        drift_prior=checkpoint.subject.drift_prior,
        evaluation=export.evaluation,
        latent_shape=latent_shape(checkpoint),
        image_size_px=(int(height), int(width)),
        condition_shape=(tokens, token_width),
        decoders=(bundle_spec.Decoder(name="general", graph="brain", window=checkpoint.recipe.window),),
        samplers=samplers,
        graphs=dict(graphs),
        trained_sessions=tuple(checkpoint.subject.trained_sessions),
        held_out_runs=tuple((session, run) for _, session, run in checkpoint.subject.held_out_runs),
        files=dict(hashes),
        provenance=export.ledger.stages,
    )


def _streaming(preprocessing: Preprocessing) -> bundle_spec.Preprocessing:
    """The part of a recipe's preprocessing that the runtime needs."""
    return msgspec.convert(preprocessing, bundle_spec.Preprocessing, from_attributes=True)


def facts(export: Export) -> dict[str, str]:
    """The metadata of a graph's file: whose model it belongs to, and the hashes of what it was made from."""
    checkpoint, ledger = export.checkpoint, export.ledger
    window = checkpoint.recipe.window
    return {
        "subject": str(checkpoint.subject.number),
        "window": f"{window.length_volumes} volumes, from {window.offset_volumes} after the picture's onset",
        "tr_s": f"{checkpoint.info.tr_s:.4f}",
        "checkpoint_sha256": ledger.sha256("checkpoint"),
        "base_model_sha256": ledger.sha256("base model"),
        "weights_sha256": ledger.sha256(model_stage(checkpoint)),
    }


def hash_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of files in a bundle's folder by name; by default of all except ``bundle.json``."""
    if names is None:
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name != SPEC_FILE]
    return {name: file_sha256(folder / name) for name in sorted(names)}


def sizes(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the files in a bundle's folder by name, except ``bundle.json``."""
    return {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != SPEC_FILE
    }
