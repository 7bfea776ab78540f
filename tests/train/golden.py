"""The losses that the recipe gives, kept in ``golden_losses.tsv``: whoever changes them should know it.

    python tests/train/golden.py      # write them anew

The real objective, small: brain module, UNet with LoRA, cubic timesteps, offset noise, dropouts, AdamW,
warm-up and cosine, accumulation, clipping; made-up windows and latents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from train.loop.loop import fit
from train.model.base_model import make_unet
from train.model.batch import Batch
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable
from train.recipe import Recipe, Training, demo_base, read_recipe

GOLDEN = Path(__file__).parent / "golden_losses.tsv"
SEED, N_EXAMPLES, N_VOXELS = 11, 20, 50


def golden_recipe() -> Recipe:
    """The demo's recipe with smaller widths and few steps."""
    demo = read_recipe()
    base = msgspec.structs.replace(
        demo.base, latent_channels=4, unet_widths=(32, 32), attention_head_width=16, token_width=16
    )
    training = Training(
        steps=12, batch=8, micro_batch=4, peak_learning_rate=2e-2, warmup_steps=3, precision="fp32"
    )
    brain = msgspec.structs.replace(demo.brain, hidden_width=24)
    return msgspec.structs.replace(demo, base=base, brain=brain, fit=training)


def losses_of(recipe: Recipe, folder: Path, on_batch: Callable[[], None] = lambda: None) -> list[float]:
    """Train on made-up data; the loss of every step. ``on_batch`` is called before each micro-batch."""
    model, batch_of, n_examples = made_up(recipe, on_batch)
    return fit(model, batch_of, n_examples, recipe.fit, folder=folder, seed=SEED, name="golden")


def made_up(
    recipe: Recipe, on_batch: Callable[[], None] = lambda: None
) -> tuple[Dynadiff, Callable[[NDArray[np.int64]], Batch], int]:
    """A model before its first step, its batches of made-up data, and how many examples there are."""
    draw = torch.Generator().manual_seed(SEED)
    n_volumes, size = recipe.window.length_volumes, 8
    windows = torch.randn(N_EXAMPLES, N_VOXELS, n_volumes, generator=draw)
    latents = torch.randn(N_EXAMPLES, demo_base(recipe).latent_channels, size, size, generator=draw)
    torch.manual_seed(SEED)
    unet = make_unet(recipe.base)
    with torch.no_grad():  # what the untrained UNet predicts is weak: stronger, it shows in the losses
        unet.conv_out.weight *= 6
    set_trainable(unet, recipe.finetune)
    brain = BrainModule(brain_config(recipe, N_VOXELS))
    model = Dynadiff(brain, unet, torch.randn(recipe.base.n_tokens, recipe.base.token_width), recipe)

    def batch_of(chosen: NDArray[np.int64]) -> Batch:
        on_batch()
        subjects = torch.zeros(len(chosen), dtype=torch.int64)
        return {"windows": windows[chosen], "subjects": subjects, "latents": latents[chosen]}

    return model, batch_of, N_EXAMPLES


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses_of(golden_recipe(), Path(folder))
        GOLDEN.write_text((Path(folder) / "losses.tsv").read_text())


if __name__ == "__main__":
    main()
