"""The last measure: pictures of the bundle, by the runtime, beside those of torch and diffusers."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from export.parity import gate_psnr, psnr_db
from export.provenance import Ledger
from export.samplers import schedule_lengths
from export.source import latent_shape
from realtime.bundle import Bundle, Sampler
from realtime.decode import Decoder, initial_noise
from realtime.engines import open_engine
from train.autoencoder import decode_latents
from train.checkpoint import Checkpoint
from train.linearbrain import LinearBrain
from train.sample import sample

N_WINDOWS = 4


def note_pictures(ledger: Ledger, bundle: Bundle, checkpoint: Checkpoint, least_db: float, seed: int) -> None:
    """Decode seeded windows both ways, gate their PSNR, and add the stage ``pictures``.

    :raises ExportError: when a picture differs too much
    """
    window = bundle.spec.decoders[0].window.length_volumes
    shape = (N_WINDOWS, bundle.spec.roi.n_voxels, window)
    windows = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    engine = open_engine(bundle, "onnxruntime-cpu")
    decoder = Decoder(bundle, engine, seed=seed)
    parity, digest = {}, hashlib.sha256()
    lengths = schedule_lengths(checkpoint.recipe.diffusion)
    for sampler, n_steps in zip(bundle.spec.samplers, lengths, strict=True):
        found = [decoder.decode(window, sampler).image for window in windows]
        expected = torch_pictures(checkpoint, windows, sampler, seed, n_steps)
        parity[f"{sampler.name}_psnr_db"] = min(map(psnr_db, found, expected))
        digest.update(np.stack(found).tobytes())
    ledger.note(
        "pictures",
        digest.hexdigest(),
        [f"{graph} stored" for graph in ("brain", "denoise", "vae")] + [s.name for s in bundle.spec.samplers],
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
    checkpoint: Checkpoint,
    windows: NDArray[np.float32],
    sampler: Sampler,
    seed: int,
    n_steps: int | None = None,
) -> NDArray[np.uint8]:
    """Pictures uint8 ``[B, H, W, 3]`` of windows ``[B, V, T]``: diffusers' scheduler, LoRA unmerged.

    :param n_steps: of the schedule whose end the sampler is; by default it is all of one
    """
    brain, seen = checkpoint.brain, torch.from_numpy(windows)
    conditions = brain(seen, torch.zeros(len(windows), dtype=torch.long))
    start = brain.start(seen) if isinstance(brain, LinearBrain) else None
    noise = torch.from_numpy(initial_noise((1, *latent_shape(checkpoint)), seed))
    settings = msgspec.structs.replace(
        checkpoint.recipe.diffusion,
        inference_steps=n_steps or len(sampler.timesteps),
        guidance=sampler.guidance[0],
    )
    noises = noise.repeat(len(windows), 1, 1, 1)
    strength = checkpoint.recipe.ridge.diffusion_strength
    latents = sample(checkpoint.unet, conditions, checkpoint.null_NW, noises, settings, start, strength)
    return decode_latents(checkpoint.vae, latents)
