"""What pictures are encoded to, as the recipe says: mode or sample of the VAE's posterior, how resized."""

from __future__ import annotations

from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from nsd import Layout, Stimuli, run_trials, runs
from train.data.latents import encode_stimuli, shown_latents
from train.fitting.fit import fit_subjects
from train.fitting.job import Order
from train.model.base_model import load_vae
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.vae import draw_latents, encode_latents, encode_posterior, to_tensor
from train.recipe import Latents, Recipe
from train.store.fingerprints import digest, pictures_identity, vae_identity

SAMPLES = Latents(posterior="sample")


@torch.no_grad()
def test_the_posterior_is_the_encoders_gaussian_scaled_for_the_unet(
    tiny_base: Path, pictures: NDArray[np.uint8]
) -> None:
    vae = load_vae(tiny_base)
    vae.register_to_config(shift_factor=0.3)
    mean, log_variance = vae.quant_conv(vae.encoder(to_tensor(pictures))).chunk(2, dim=1)
    scale = vae.config.scaling_factor
    expected = torch.cat([(mean - 0.3) * scale, torch.exp(log_variance.clamp(-30, 20) / 2) * scale], dim=1)
    posterior = encode_posterior(vae, pictures)
    torch.testing.assert_close(posterior, expected, rtol=1e-4, atol=1e-6)
    assert posterior.chunk(2, dim=1)[1].min() > 0
    torch.testing.assert_close(encode_latents(vae, pictures), posterior.chunk(2, dim=1)[0], rtol=0, atol=0)
    torch.manual_seed(3)
    theirs = vae.encode(to_tensor(pictures)).latent_dist.sample()
    torch.manual_seed(3)
    torch.testing.assert_close(draw_latents(posterior), (theirs - 0.3) * scale, rtol=1e-4, atol=1e-5)


class Guess(nn.Module):
    """Predicts noise that follows from what it sees."""

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Tensor) -> object:
        self.sample = torch.sin(3 * noisy)
        return self


def drawn(recipe: Recipe) -> tuple[BrainModule, Tensor, Tensor, dict[str, Tensor]]:
    """A brain module, a null condition, four pictures' means and SDs of latents, and windows."""
    torch.manual_seed(2)
    brain = BrainModule(brain_config(recipe, 10)).eval()
    null = torch.zeros(recipe.base.n_tokens, recipe.base.token_width)
    batch = {
        "windows": torch.randn(4, 10, recipe.window.length_volumes),
        "subjects": torch.zeros(4, dtype=torch.int64),
    }
    return brain, null, torch.rand(4, 8, 8, 8), batch


@pytest.mark.parametrize("draws_per_window", [1, 3])
def test_the_loss_is_that_of_samples_which_each_draw_has_of_its_own(
    tiny_recipe: Recipe, draws_per_window: int
) -> None:
    replace = msgspec.structs.replace
    diffusion = replace(tiny_recipe.diffusion, draws_per_window=draws_per_window)
    recipe = replace(tiny_recipe, diffusion=diffusion, latents=SAMPLES)
    as_modes = replace(recipe, latents=Latents(), diffusion=replace(diffusion, draws_per_window=1))
    brain, null, posterior, batch = drawn(recipe)
    repeated = {name: value.repeat_interleave(draws_per_window, dim=0) for name, value in batch.items()}
    torch.manual_seed(7)
    samples = draw_latents(posterior.repeat_interleave(draws_per_window, dim=0))
    assert len(np.unique(samples.flatten(1).numpy(), axis=0)) == 4 * draws_per_window
    expected = Dynadiff(brain, Guess(), null, as_modes)(repeated | {"latents": samples})
    torch.manual_seed(7)
    found = Dynadiff(brain, Guess(), null, recipe)(batch | {"latents": posterior})
    torch.testing.assert_close(found, expected)


def test_a_training_on_samples_is_measured_on_modes(tiny_recipe: Recipe) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, latents=SAMPLES)
    brain, null, posterior, batch = drawn(recipe)
    modes = batch | {"latents": posterior.chunk(2, dim=1)[0]}
    expected = Dynadiff(brain, Guess(), null, tiny_recipe).steady_loss(modes, 5)
    found = Dynadiff(brain, Guess(), null, recipe).steady_loss(batch | {"latents": posterior}, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
def test_pictures_are_enlarged_as_the_recipe_says(resampling: str, tiny_base: Path, tmp_path: Path) -> None:
    """By 1.2, as from NSD's 425 px to 512; Pillow's bilinear is what the authors' code calls."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, size=(3, 53, 53, 3), dtype=np.uint8)
    layout = Layout(tmp_path)
    layout.stimuli().parent.mkdir(parents=True)
    with h5py.File(layout.stimuli(), "w") as file:
        file["imgBrick"] = small
    vae = load_vae(tiny_base)
    settings = Latents(resampling=resampling)  # type: ignore[arg-type]
    with Stimuli(layout) as stimuli:
        found = encode_stimuli(stimuli, [0, 1, 2], vae, 8, settings)
    size = (64, 64)
    bilinear = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in small]
    apart = (found - encode_latents(vae, np.stack(bilinear))).square().mean().sqrt()
    # Levels are rounded otherwise by one at most, which is 2 % of the distance to bicubic.
    assert (apart < 0.05 * found.std()) == (resampling == "bilinear")


def test_settings_have_files_of_their_own_and_earlier_ones_are_found(
    tiny_base: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    layout = Layout(tiny_nsd)
    images = np.unique([item.trial.image for item in run_trials(layout, runs(layout, 1))])[:4]
    modes = shown_latents(layout, images, tiny_base, 8, tmp_path)
    (path,) = tmp_path.glob("latents-*")
    name_of_earlier_versions = digest([vae_identity(tiny_base), pictures_identity(layout), 8])
    assert path.name == f"latents-{name_of_earlier_versions}.safetensors"
    posterior = shown_latents(layout, images, tiny_base, 8, tmp_path, SAMPLES)
    torch.testing.assert_close(posterior.chunk(2, dim=1)[0], modes, rtol=1e-5, atol=1e-6)
    shown_latents(layout, images, tiny_base, 8, tmp_path, Latents(resampling="bilinear"))
    assert len(list(tmp_path.glob("latents-*"))) == 3
    again = shown_latents(layout, images, tiny_base, 8, tmp_path)
    torch.testing.assert_close(again, modes, rtol=0, atol=0)


def test_a_training_on_samples_has_its_own_losses_every_time(
    tiny_base: Path, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    def losses_of(latents: Latents, name: str) -> list[str]:
        recipe = msgspec.structs.replace(tiny_recipe, latents=latents)
        out = tmp_path / name
        caches = tmp_path / "caches"
        order = Order(root=tiny_nsd, subjects=[1], recipe=recipe, base=tiny_base, out=out, caches=caches)
        fit_subjects(order)
        return (out / "training" / "losses.tsv").read_text().splitlines()

    first = losses_of(SAMPLES, "first")
    assert losses_of(SAMPLES, "again") == first
    assert losses_of(Latents(), "modes") != first
