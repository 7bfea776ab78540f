"""The last measure: pictures of the bundle, by the runtime, beside those of torch and diffusers."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.parity import gate_psnr, psnr_db
from export.provenance import Ledger
from export.samplers import diffusers_steps
from export.source import latent_shape
from realtime.bundle import Bundle, Sampler
from realtime.decode import Decoder, initial_noise
from realtime.engines import open_engine
from train.checkpoint import Checkpoint
from train.linearbrain import LinearBrain
from train.pretrain import decode_latents

N_WINDOWS = 4


def note_pictures(ledger: Ledger, bundle: Bundle, checkpoint: Checkpoint, least_db: float, seed: int) -> None:
    """Decode seeded windows both ways, gate their PSNR, and add the stage ``pictures``.

    By the first sampler and the last; that each is what diffusers does has been measured on its own.

    :raises ExportError: when a picture differs too much
    """
    window = bundle.spec.decoders[0].window.length_volumes
    shape = (N_WINDOWS, bundle.spec.roi.n_voxels, window)
    windows = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    engine = open_engine(bundle, "onnxruntime-cpu")
    decoder = Decoder(bundle, engine, seed=seed)
    parity, digest = {}, hashlib.sha256()
    measured = dict.fromkeys((bundle.spec.samplers[0], bundle.spec.samplers[-1]))
    for sampler in measured:
        found = [decoder.decode(window, sampler).image for window in windows]
        expected = torch_pictures(checkpoint, windows, sampler, seed)
        parity[f"{sampler.name}_psnr_db"] = min(map(psnr_db, found, expected))
        digest.update(np.stack(found).tobytes())
    ledger.note(
        "pictures",
        digest.hexdigest(),
        [f"{graph} stored" for graph in ("brain", "denoise", "vae")] + [s.name for s in measured],
        parity=gate_psnr("pictures", parity, least_db),
        notes={
            "against": "torch and diffusers, before any merge",
            "limit": f"at least {least_db:g} dB",
            "windows": f"{N_WINDOWS}, standard normal, of numpy's default_rng({seed})",
            "engine": engine.description,
        },
    )


@torch.no_grad()
def torch_pictures(
    checkpoint: Checkpoint, windows: NDArray[np.float32], sampler: Sampler, seed: int
) -> NDArray[np.uint8]:
    """Pictures uint8 ``[B, H, W, 3]`` of windows ``[B, V, T]``: diffusers' scheduler, LoRA unmerged."""
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
