"""What a bundle's files and its specification say of the model they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from export.lineage.provenance import Ledger, model_stage
from export.lineage.source import latent_shape
from realtime.bundle import spec as bundle_spec
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import SPEC_FILE, Sampler, Stage
from train.checkpoints.checkpoint import Checkpoint
from train.recipe import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What goes into ``bundle.json`` besides hashes and provenance."""

    checkpoint: Checkpoint
    roi: bundle_spec.Roi
    name: str
    samplers: tuple[Sampler, ...]
    graphs: Mapping[str, bundle_spec.Graph]

    def spec(self, hashes: Mapping[str, str], stages: tuple[Stage, ...]) -> bundle_spec.Spec:
        """The specification of a folder with these files, made in these stages."""
        info, recipe = self.checkpoint.info, self.checkpoint.recipe
        height, width, _ = self.graphs["vae"].outputs[0].shape
        tokens, token_width = self.checkpoint.null_NW.shape
        return bundle_spec.Spec(
            format_version=bundle_spec.FORMAT_VERSION,
            name=self.name,
            subject=self.checkpoint.subject.number,
            roi=self.roi,
            tr_s=info.tr_s,
            preprocessing=_streaming(recipe.preprocessing),
            latent_shape=latent_shape(self.checkpoint),
            image_size_px=(int(height), int(width)),
            condition_shape=(tokens, token_width),
            decoders=(bundle_spec.Decoder(name="general", graph="brain", window=recipe.window),),
            samplers=self.samplers,
            graphs=dict(self.graphs),
            files=dict(hashes),
            provenance=stages,
        )


def _streaming(preprocessing: Preprocessing) -> bundle_spec.Preprocessing:
    """What the runtime needs of a recipe's preprocessing."""
    return msgspec.convert(preprocessing, bundle_spec.Preprocessing, from_attributes=True)


def facts(checkpoint: Checkpoint, ledger: Ledger) -> dict[str, str]:
    """Whose model a graph is of and what it was made from, for the metadata of its file."""
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
    """SHA-256 of files of a bundle's folder by name; by default of all but the specification."""
    if names is None:
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name != SPEC_FILE]
    return {name: file_sha256(folder / name) for name in sorted(names)}


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a bundle's folder by name, but for the specification."""
    return {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != SPEC_FILE
    }
