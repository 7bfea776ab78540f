"""Compares whole decodes on this CPU: the runtime's engines and the same model in torch and diffusers.

    python benchmarks/full_size_export.py --recipe demo --forms compact --work W --keep
    python benchmarks/cpu_engines.py --checkpoint W/checkpoint --bundle W/compact
        --out docs/results/cpu_engines.json

and at full size:

    python benchmarks/full_size_export.py --forms fp32 --work W --keep
    python benchmarks/cpu_engines.py --checkpoint W/checkpoint --bundle W/fp32 --steps 2 -n 3
        --one-at-a-time --out docs/results/cpu_engines_full_size.json

Times do not depend on the weights, so a random checkpoint suffices.

A decode consists of window, brain module, DDIM with classifier-free guidance, VAE and 8-bit picture. Every
mode is a separate process with all cores, and all use the same weights, windows and noise. The modes
alternate, so that a slowdown of the machine affects all of them equally; large models are measured one after
the other instead. The results are medians, their ratios to eager torch in fp32 with the adapter beside the
weights (as in the paper's released code), and the lowest PSNR against its pictures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from machine import machine
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder, initial_noise
from realtime.decoding.engines.choose import open_engine, probe, usable_cores
from realtime.decoding.pace import StepTimes

Decode = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
REFERENCE = "torch eager fp32, adapter beside"
SEED = 1


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model for torch")
    parser.add_argument("--bundle", type=Path, help="bundle of the checkpoint (default: export one)")
    parser.add_argument("--steps", type=int, default=20, help="steps of DDIM (default: %(default)s)")
    parser.add_argument("-n", type=int, default=15, help="decodes per mode (default: %(default)s)")
    parser.add_argument("--mode", nargs="+", help="prefixes of modes to run besides the reference")
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="for models too large to keep all loaded"
    )
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or exported(options.checkpoint, Path(scratch) / "bundle")
        modes = chosen_modes(options.checkpoint, bundle, options.steps, options.mode)
        windows = windows_for(Bundle.open(bundle), options.n)
        measure = one_after_the_other if options.one_at_a_time else in_turns
        results = summary(measure(modes, windows)) | {"steps": options.steps}
    results["machine"] = machine("torch", "diffusers", "onnxruntime-gpu", "openvino")
    text = json.dumps(results, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def exported(checkpoint: Path, out: Path) -> Path:
    """Export a bundle of the checkpoint."""
    from export.bundle.build import export_bundle

    return export_bundle(checkpoint, out).folder


def windows_for(bundle: Bundle, n: int) -> NDArray[np.float32]:
    """Draw standard normal windows ``[n + 1, V, T]``; the first is for warming up."""
    shape = (n + 1, bundle.spec.roi.n_voxels, bundle.decoder().window.length_volumes)
    return np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)


def chosen_modes(
    checkpoint: Path, bundle: Path, steps: int, wanted: list[str] | None
) -> dict[str, Callable[[], Decode]]:
    """Return the modes by name; each is created in its own process."""
    torch_way = partial(torch_decode, checkpoint, steps)
    modes: dict[str, Callable[[], Decode]] = {
        REFERENCE: partial(torch_way, merged=False, bf16=False, compiled=False),
        "torch eager fp32": partial(torch_way, merged=True, bf16=False, compiled=False),
        "torch eager bf16": partial(torch_way, merged=True, bf16=True, compiled=False),
        "torch compile fp32": partial(torch_way, merged=True, bf16=False, compiled=True),
        "torch compile bf16": partial(torch_way, merged=True, bf16=True, compiled=True),
    }
    opened = Bundle.open(bundle)
    for name in ("onnxruntime-cpu", "openvino", "openvino-bf16"):
        candidate = probe(opened, name)
        if candidate.available:
            modes[name] = partial(engine_decode, bundle, name, steps)
        else:
            print(f"{name}: {candidate.reason}")
    return {
        name: make
        for name, make in modes.items()
        if wanted is None or name == REFERENCE or name.startswith(tuple(wanted))
    }


def engine_decode(bundle: Path, name: str, steps: int) -> Decode:
    """Decode with the runtime; only one sampler is prepared."""
    from export.graphs.samplers import ddim

    opened = Bundle.open(bundle)
    sampler = ddim(steps, opened.sampler().guidance[0])
    opened = replace(opened, spec=msgspec.structs.replace(opened.spec, samplers=(sampler,)))
    untimed = StepTimes(brain_s=1, guided_s=1, unguided_s=1, vae_s=1)
    decoder = Decoder(opened, open_engine(opened, name), SEED, step_times=untimed)
    return lambda window: decoder.decode(window, sampler).image


def torch_decode(checkpoint: Path, steps: int, *, merged: bool, bf16: bool, compiled: bool) -> Decode:
    """Decode with torch like diffusers' pipelines: their scheduler, both conditions in one batch."""
    import torch

    from train.checkpoints.checkpoint import load_checkpoint
    from train.model.diffusion import make_scheduler
    from train.model.finetune import merge_adapter
    from train.model.vae import decode_latents

    torch.set_num_threads(usable_cores())
    loaded = load_checkpoint(checkpoint)
    dtype = torch.bfloat16 if bf16 else torch.float32
    unet = loaded.unet
    if merged and loaded.recipe.finetune.layers == "lora":
        merge_adapter(unet)
    unet = unet.to(dtype)
    brain, vae, null = loaded.brain, loaded.vae.to(dtype), loaded.null_NW[None]
    size = unet.config.sample_size
    noise = torch.from_numpy(initial_noise((1, unet.config.in_channels, size, size), SEED))
    guidance = loaded.recipe.diffusion.guidance
    if compiled:
        unet = torch.compile(unet)

    @torch.inference_mode()
    def decode(window: NDArray[np.float32]) -> NDArray[np.uint8]:
        condition = brain(torch.from_numpy(window[None]), torch.zeros(1, dtype=torch.long))
        both = torch.cat([null, condition]).to(dtype)
        scheduler = make_scheduler()
        scheduler.set_timesteps(steps)
        latents = noise
        for timestep in scheduler.timesteps:
            repeated = torch.cat([latents, latents]).to(dtype)
            unguided, guided = unet(repeated, timestep, encoder_hidden_states=both).sample.float().chunk(2)
            predicted = unguided + guidance * (guided - unguided)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
        image: NDArray[np.uint8] = decode_latents(vae, latents.to(dtype))[0]
        return image

    return decode


def serve(make: Callable[[], Decode], requests: Connection) -> None:
    """Run a mode's process: decode every window received, until None."""
    decode = make()
    while (window := requests.recv()) is not None:
        began = perf_counter()
        image = decode(window)
        requests.send((perf_counter() - began, image))


class Mode:
    """The process of a mode, seen from the parent."""

    def __init__(self, name: str, make: Callable[[], Decode], warm_up: NDArray[np.float32]) -> None:
        context = multiprocessing.get_context("spawn")
        self._requests, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.taken_s: list[float] = []
        self.images: list[NDArray[np.uint8]] = []
        self.decode(warm_up)
        print(f"{name}: first decode {self.taken_s.pop():.2f} s", flush=True)
        self.images.clear()

    def decode(self, window: NDArray[np.float32]) -> None:
        """Send a window to the process and wait for the result."""
        self._requests.send(window)
        taken_s, image = self._requests.recv()
        self.taken_s.append(taken_s)
        self.images.append(image)

    def end(self) -> None:
        """End the process, which frees its memory."""
        self._requests.send(None)
        self._process.join()


def in_turns(modes: dict[str, Callable[[], Decode]], windows: NDArray[np.float32]) -> dict[str, Mode]:
    """Decode the first window in every mode, then the second one, and so on."""
    running = {name: Mode(name, make, windows[0]) for name, make in modes.items()}
    for window in windows[1:]:
        for mode in running.values():
            mode.decode(window)
    for mode in running.values():
        mode.end()
    return running


def one_after_the_other(
    modes: dict[str, Callable[[], Decode]], windows: NDArray[np.float32]
) -> dict[str, Mode]:
    """Decode all windows in one mode and end it before the next mode begins."""
    done = {}
    for name, make in modes.items():
        done[name] = Mode(name, make, windows[0])
        for window in windows[1:]:
            done[name].decode(window)
        done[name].end()
    return done


def summary(measured: dict[str, Mode]) -> dict[str, Any]:
    """Return medians, ratios of medians and the PSNR of pictures against the reference's."""
    reference = measured[REFERENCE]
    reference_s = float(np.median(reference.taken_s))
    return {
        "reference": REFERENCE,
        "n": len(reference.taken_s),
        "modes": {
            name: {
                "median_ms": round(1e3 * float(np.median(mode.taken_s)), 1),
                "p95_ms": round(1e3 * float(np.percentile(mode.taken_s, 95)), 1),
                "least_ms": round(1e3 * min(mode.taken_s), 1),
                "times_faster": round(reference_s / float(np.median(mode.taken_s)), 2),
                "least_psnr_db": round(min(map(psnr_db, mode.images, reference.images)), 1),
            }
            for name, mode in measured.items()
        },
    }


def psnr_db(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Return the PSNR of 8-bit pictures in dB, 100 if they are equal."""
    from export.parity.differences import psnr_db as psnr

    return psnr(found, expected)


if __name__ == "__main__":
    main()
