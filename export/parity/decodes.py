"""The last comparison: whole decodes by each step from checkpoint to bundle, against torch and diffusers.

torch, LoRA beside the weights ─► torch, merged ─► ONNX in fp32 ─► the bundle, on every engine that runs here
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export.errors import ExportError
from export.graphs.samplers import diffusers_steps
from export.lineage.provenance import Ledger
from export.lineage.source import latent_shape
from export.parity.differences import psnr_db
from export.parity.limits import Limits, gate, gate_psnr
from export.parity.parity_report import DecodeParity, GraphParity, Parity
from export.resources import give_back_memory
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder, initial_noise
from realtime.decoding.engines.choose import AUTO_ORDER, open_engine
from realtime.decoding.pace import StepTimes
from realtime.errors import EngineError
from realtime.report.identification import Identification, hog, identification, pixels, stack
from train.checkpoints.checkpoint import Checkpoint
from train.errors import TrainError
from train.evaluation.held_out import held_out_windows
from train.evaluation.networks.registry import resized
from train.model.linear_brain import LinearBrain
from train.model.sample import Pictures
from train.model.vae import decode_latents

REFERENCE = "torch"
N_RANDOM, N_HELD_OUT = 4, 100
_COMPARED_PX = 64
_EVERYWHERE = AUTO_ORDER[-1]
_TAKES_TWICE = "openvino"
"""Compiles the UNet for each number of conditions with separate weights: too much for a large one."""

_UNTIMED = StepTimes(brain_s=1, guided_s=1, unguided_s=1, vae_s=1)
"""Step times that are not measured: they do not affect pictures, and measuring them takes long."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Windows to decode and, if they come from recordings, the pictures that were shown."""

    windows: NDArray[np.float32]
    """[n, V, T]"""
    shown: Pictures | None
    description: str
    identification: str
    """What identification is measured on, or why it is not measured."""


def random_windows(checkpoint: Checkpoint, n: int, seed: int) -> Seen:
    """Standard normal windows, like z-scores without a stimulus."""
    shape = (n, checkpoint.subject.n_voxels, checkpoint.recipe.window.length_volumes)
    return Seen(
        windows=np.random.default_rng(seed).standard_normal(shape, dtype=np.float32),
        shown=None,
        description=f"{n} window{'s' if n > 1 else ''}, standard normal, of numpy's default_rng({seed})",
        identification="Whether identification changes was not measured: --nsd names the recordings.",
    )


def recorded_windows(checkpoint: Checkpoint, nsd: Path, cache: Path | None, seed: int) -> Seen:
    """Held-out windows, preprocessed as in the runtime, and the pictures that were shown.

    :raises ExportError: the recordings in ``nsd`` cannot be read or do not match the checkpoint
    """
    try:
        windows, shown = held_out_windows(checkpoint, nsd, cache, N_HELD_OUT, seed)
    except (TrainError, OSError) as error:
        raise ExportError(f"cannot read held-out windows from {nsd}: {error}") from error
    return Seen(
        windows=windows.astype(np.float32),
        shown=shown,
        description=f"{len(windows)} held-out windows, preprocessed as the runtime does",
        identification=(
            f"Two-way identification of what was shown among {len(windows)} held-out trials, with its 95 % "
            "interval over trials; chance is 50 %."
        ),
    )


@dataclass(kw_only=True)
class Decodes:
    """Decodes of the same windows in several ways; all are compared with the first one.

    Identification uses the pictures of the first sampler.
    """

    seen: Seen
    samplers: tuple[Sampler, ...]
    seed: int
    limits: Limits
    is_large: bool = False
    rows: list[DecodeParity] = field(default_factory=list)
    digest: str = ""
    """SHA-256 of the pictures that were decoded last."""
    _reference: Pictures | None = None

    def by_torch(self, way: str, checkpoint: Checkpoint) -> None:
        """Decode with the checkpoint's own modules and diffusers' scheduler."""
        _log.info("%-15s decoding …", way)
        by_sampler = [
            torch_pictures(checkpoint, self.seen.windows, sampler, self.seed) for sampler in self.samplers
        ]
        self._add(way, f"torch {torch.__version__}, diffusers' scheduler", np.concatenate(by_sampler))

    def by_engine(self, way: str, bundle: Bundle, name: str) -> None:
        """Decode with the runtime; for an engine that cannot run here, the reason is recorded.

        :raises ExportError: the engine that every machine can run does not run
        """
        _log.info("%-15s decoding …", way)
        measured = msgspec.structs.replace(bundle.spec, samplers=self.samplers)  # others are not prepared
        try:
            engine = open_engine(bundle, name)
            decoder = Decoder(replace(bundle, spec=measured), engine, seed=self.seed, step_times=_UNTIMED)
            pictures = [
                decoder.decode(window, sampler).image
                for sampler in self.samplers
                for window in self.seen.windows
            ]
        except EngineError as error:
            if name == _EVERYWHERE:
                raise ExportError(
                    f"{way}: cannot decode on this machine: {error}; no bundle was written"
                ) from error
            self._leave_out(way, str(error))
            return
        description = engine.description
        del decoder, engine
        give_back_memory()
        self._add(way, description, np.stack(pictures))

    def by_every_engine(self, form: str, bundle: Bundle) -> None:
        """Decode the bundle on each engine; the last is ONNX Runtime's CPU engine, which runs everywhere."""
        for name in AUTO_ORDER:
            way = f"{form}, {name}"
            if self.is_large and name == _TAKES_TWICE:
                self._leave_out(way, "not tried: it would take more than 18 GB")
            else:
                self.by_engine(way, bundle, name)

    def note(self, ledger: Ledger, made_from: list[str]) -> None:
        """Add the stage ``decodes`` to the provenance."""
        ran = [row for row in self.rows if row.runs_on is not None]
        ledger.note(
            "decodes",
            self.digest,
            made_from,
            parity={f"{row.way}, dB": row.psnr_db for row in ran if row.psnr_db is not None},
            notes={
                "against": "torch and diffusers, before any merge",
                "limit": f"at least {self.limits.psnr_db:g} dB",
                "windows": self.seen.description,
                "samplers": " ".join(sampler.name for sampler in self.samplers),
            }
            | {f"{row.way} on": str(row.runs_on) for row in ran},
        )

    def report(self, form: str, graphs: list[GraphParity]) -> Parity:
        """The parity report."""
        return Parity(
            form=form,
            windows=self.seen.description,
            samplers=[sampler.name for sampler in self.samplers],
            seed=self.seed,
            identification=self.seen.identification,
            limits=asdict(self.limits),
            graphs=graphs,
            decodes=self.rows,
        )

    def _leave_out(self, way: str, reason: str) -> None:
        self.rows.append(DecodeParity(way=way, reason=reason))
        _log.info("%-15s left out: %s", way, reason)

    def _add(self, way: str, runs_on: str, pictures: Pictures) -> None:
        identified = self._identify(pictures[: len(self.seen.windows)])
        self.digest = hashlib.sha256(pictures.tobytes()).hexdigest()
        if self._reference is None:
            self._reference = pictures
            self.rows.append(DecodeParity(way=way, runs_on=runs_on, identification=identified))
            return
        reference = self._reference
        least = min(map(psnr_db, pictures, reference))
        apart = int(np.abs(pictures.astype(np.int16) - reference).max())
        gate_psnr("decodes", {way: least}, self.limits.psnr_db)
        before = self.rows[0].identification
        gate(f"decodes, {way}", _changes(identified, before), self.limits.identification)
        self.rows.append(
            DecodeParity(
                way=way,
                runs_on=runs_on,
                psnr_db=least,
                largest_levels=apart,
                relative=apart / max(int(reference.max()), 1),
                identification=identified,
            )
        )
        _log.info("%-15s %.1f dB", way, least)

    def _identify(self, pictures: Pictures) -> dict[str, Identification]:
        if self.seen.shown is None:
            return {}
        shown, decoded = (
            resized(each, _COMPARED_PX, Image.Resampling.BOX) for each in (self.seen.shown, pictures)
        )
        kinds = {"pixels": pixels, "HOG": hog}
        return {
            name: identification(stack(list(map(kind, shown))), stack(list(map(kind, decoded))))
            for name, kind in kinds.items()
        }


def _changes(found: Mapping[str, Identification], before: Mapping[str, Identification]) -> dict[str, float]:
    values = {name: (one.value, before[name].value) for name, one in found.items()}
    return {
        f"identification by {name}": abs(now - then)
        for name, (now, then) in values.items()
        if now is not None and then is not None
    }


@torch.no_grad()
def torch_pictures(
    checkpoint: Checkpoint, windows: NDArray[np.float32], sampler: Sampler, seed: int
) -> NDArray[np.uint8]:
    """Decode windows ``[B, V, T]`` to pictures uint8 ``[B, H, W, 3]`` with torch and diffusers' scheduler."""
    brain, seen = checkpoint.brain, torch.from_numpy(windows)
    conditions = brain(seen, torch.zeros(len(windows), dtype=torch.long))
    start = brain.start(seen) if isinstance(brain, LinearBrain) else None
    noise = torch.from_numpy(initial_noise((1, *latent_shape(checkpoint)), seed))
    noise = noise.repeat(len(windows), 1, 1, 1)

    def noise_of(latents: Tensor, timestep: Tensor, given: Tensor) -> Tensor:
        noises: Tensor = checkpoint.unet(latents, timestep, given, return_dict=False)[0]
        return noises

    *_, latents = diffusers_steps(sampler, noise_of, conditions, checkpoint.null_NW, noise, start)
    return decode_latents(checkpoint.vae, latents)
