"""Textured backgrounds: one or two surfaces, each a procedural texture between two near colours."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def draw_background(size_px: int, rng: np.random.Generator) -> F32:
    """Draw a background, RGB float ``[size, size, 3]`` from 0 to 255; every second one has a horizon."""
    lower = _draw_surface(size_px, rng)
    upper = _draw_surface(size_px, rng)
    horizon_px = size_px * rng.uniform(0.3, 0.65)
    slope = rng.uniform(-0.15, 0.15)
    rows, columns = np.mgrid[:size_px, :size_px].astype(np.float32)
    below = np.clip(rows - horizon_px - slope * (columns - size_px / 2) + 0.5, 0, 1)[..., None]
    if rng.random() < 0.5:
        below = np.ones_like(below)
    return np.asarray(below * lower + (1 - below) * upper, dtype=np.float32)


def _draw_surface(size_px: int, rng: np.random.Generator) -> F32:
    texture = _TEXTURES[int(rng.integers(len(_TEXTURES)))](size_px, rng)
    hue = rng.uniform(0, 180) + np.array([0, rng.uniform(-14, 14)])
    saturation = rng.uniform(30, 130) + np.array([0, rng.uniform(-30, 30)])
    value = rng.uniform(120, 225) + np.array([0, rng.choice([-1, 1]) * rng.uniform(15, 45)])
    hsv = np.stack([hue % 180, np.clip(saturation, 0, 255), np.clip(value, 0, 255)], axis=1)
    first, second = cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    return np.asarray(first + (second - first) * texture[..., None], dtype=np.float32)


def _noise(size_px: int, rng: np.random.Generator, transfer: Callable[[F32, F32], F32]) -> F32:
    """Filter white noise: periodic, mean 0, SD 1; ``transfer`` is given frequencies in cycles per pixel."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size_px), np.fft.rfftfreq(size_px), indexing="ij")
    gain = transfer(fy.astype(np.float32), fx.astype(np.float32))
    gain[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size_px, size_px))) * gain, (size_px, size_px))
    return np.asarray(field / field.std(), dtype=np.float32)


def _clouds(size_px: int, rng: np.random.Generator) -> F32:
    slope = rng.uniform(1.0, 1.8)
    field = _noise(size_px, rng, lambda fy, fx: (fy**2 + fx**2 + 1e-9) ** np.float32(-slope / 2))
    return np.asarray(np.clip(0.5 + 0.3 * field, 0, 1), dtype=np.float32)


def _spots(size_px: int, rng: np.random.Generator) -> F32:
    centre = 1 / rng.uniform(6, 12)
    field = _noise(
        size_px, rng, lambda fy, fx: np.exp(-((np.hypot(fy, fx) - centre) ** 2) / (2 * (0.3 * centre) ** 2))
    )
    return np.asarray(1 / (1 + np.exp(-4 * (field - rng.uniform(-0.3, 0.9)))), dtype=np.float32)


def _blades(size_px: int, rng: np.random.Generator) -> F32:
    """Short strokes in about one direction, like grass, wood or fur."""
    angle = rng.uniform(0, np.pi)
    along, across = rng.uniform(10, 24), rng.uniform(1.2, 2.5)

    def transfer(fy: F32, fx: F32) -> F32:
        first, second = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
        return np.asarray(np.exp(-((along * first) ** 2 + (across * second) ** 2) * 2), dtype=np.float32)

    return np.asarray(np.clip(0.5 + 0.3 * _noise(size_px, rng, transfer), 0, 1), dtype=np.float32)


def _waves(size_px: int, rng: np.random.Generator) -> F32:
    """Bent stripes, or two sets of them, which make a weave."""
    rows, columns = np.mgrid[:size_px, :size_px].astype(np.float32)
    bend = rng.uniform(0, 0.9) * _clouds(size_px, rng)
    angle, wavelength_px = rng.uniform(0, np.pi), rng.uniform(5, 14)
    turn = 2 * np.pi / wavelength_px
    first = np.sin(turn * (columns * np.cos(angle) + rows * np.sin(angle)) + 4 * bend)
    if rng.random() < 0.5:
        return np.asarray(0.5 + 0.5 * first, dtype=np.float32)
    second = np.sin(turn * (rows * np.cos(angle) - columns * np.sin(angle)) + 4 * bend)
    return np.asarray(0.5 + 0.25 * (first + second), dtype=np.float32)


_TEXTURES = (_clouds, _spots, _blades, _waves)
