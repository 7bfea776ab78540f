"""Measures optimizer steps of the paper's model at full size in the training loop.

    python benchmarks/full_size_step.py --out docs/results/full_size_step.json

It uses the recipe ``paper`` with a batch of one window: brain module for 15 724 voxels and 6 volumes,
Versatile Diffusion's UNet with LoRA, latents 4 x 64 x 64, condition 257 x 768, DeepSpeed ZeRO-2 with
optimizer offload. Weights, windows and latents are random, which affects neither time nor memory. The results
are the times of the first step (which allocates memory) and of later steps, the checkpoint's size, and the
peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from machine import machine
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.loop.deepspeed_engine import choose_precision
from train.loop.loop import fit
from train.model.base_model import make_unet
from train.model.batch import Batch
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable
from train.recipe import Recipe, read_recipe

N_VOXELS, LATENT_SHAPE = 15_724, (4, 64, 64)


def main() -> None:
    """Train for some steps and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--precision", help="fp32, bf16, fp16 (default: the recipe's, auto)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    recipe = read_recipe(Path("paper"))
    settings = msgspec.structs.replace(
        recipe.fit,
        steps=options.steps,
        batch=1,
        micro_batch=1,
        warmup_steps=1,
        precision=options.precision or recipe.fit.precision,
    )
    results = measure(msgspec.structs.replace(recipe, fit=settings))
    text = json.dumps(results, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(recipe: Recipe) -> dict[str, Any]:
    """Train for the recipe's steps in a temporary folder and read the figures that the loop logs."""
    begun = time.perf_counter()
    torch.manual_seed(1)
    model = untrained(recipe)
    parameters = {
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "frozen": sum(p.numel() for p in model.parameters() if not p.requires_grad),
    }
    built_s = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        losses = fit(model, batch_of, 1, recipe.fit, folder=Path(folder), seed=1, name="full size")
        fit_s = time.perf_counter() - begun
        steps_s = [recipe.fit.batch / rate for rate in logged(Path(folder), "examples_per_s")]
        norms = logged(Path(folder), "gradient_norm")
        checkpoint = sum(file.stat().st_size for file in Path(folder).glob("checkpoint-*/*"))
    return {
        "parameters": parameters,
        "precision": choose_precision(recipe.fit.precision),
        "batch": recipe.fit.batch,
        "build_s": round(built_s, 1),
        "first_step_s": round(steps_s[0], 1),
        "later_steps_s": [round(seconds, 1) for seconds in steps_s[1:]],
        "start_and_checkpoint_s": round(fit_s - sum(steps_s), 1),
        "checkpoint_gb": round(checkpoint / 1e9, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1),
        "losses": [round(loss, 4) for loss in losses],
        "gradient_norms": [round(norm, 4) for norm in norms],
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "machine": machine("torch", "deepspeed"),
    }


def untrained(recipe: Recipe) -> Dynadiff:
    """Make the recipe's model with random weights."""
    unet = make_unet(recipe.base)
    set_trainable(unet, recipe.finetune)
    brain = BrainModule(brain_config(recipe, N_VOXELS))
    null_NW = torch.zeros(recipe.base.n_tokens, recipe.base.token_width)
    return Dynadiff(brain, unet, null_NW, recipe)


def batch_of(chosen: NDArray[np.int64]) -> Batch:
    """Draw windows and latents of full size."""
    return {
        "windows": torch.randn(len(chosen), N_VOXELS, 6),
        "subjects": torch.zeros(len(chosen), dtype=torch.int64),
        "latents": torch.randn(len(chosen), *LATENT_SHAPE),
    }


def logged(folder: Path, name: str) -> list[float]:
    """Read a scalar of every step from the loop's TensorBoard log."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


if __name__ == "__main__":
    main()
