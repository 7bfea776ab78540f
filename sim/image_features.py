"""Feature maps that drive retinotopic voxels: colour, contrast and oriented energy of pictures.

Shapes: N pictures, 64 x 64 px, C channels, maps of 32 x 32 cells (2 x 2 px each).
Oriented energy uses quadrature pairs of Gabor filters (Adelson and Bergen 1985). Colour uses the opponent
axes black-white, red-green and blue-yellow, each split into its positive and negative half.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import scipy.fft

from sim.scenes import SIZE_PX

CELL_PX = 2
MAP_SIZE = SIZE_PX // CELL_PX
_ORIENTATIONS = 4
_LUMINANCE_WAVELENGTHS_PX = (5.0, 10.0)
_COLOUR_WAVELENGTH_PX = 8.0

F32 = npt.NDArray[np.float32]

N_CHANNELS = 6 + 1 + _ORIENTATIONS * (len(_LUMINANCE_WAVELENGTHS_PX) + 2)


def feature_maps(pictures: npt.NDArray[np.uint8]) -> F32:
    """Compute channel maps, float32 ``[C, N, 32, 32]`` >= 0, of pictures, uint8 ``[N, 64, 64, 3]``."""
    red, green, blue = np.moveaxis(pictures.astype(np.float32) / np.float32(255), -1, 0)
    luminance = (red + green + blue) / 3 - 0.5
    red_green, blue_yellow = red - green, blue - (red + green) / 2
    channels = [_pool(half) for axis in (luminance, red_green, blue_yellow) for half in _halves(axis)]
    channels.append(_contrast(luminance))
    for wavelength_px in _LUMINANCE_WAVELENGTHS_PX:
        channels.extend(_oriented_energy(luminance, wavelength_px))
    for axis in (red_green, blue_yellow):
        channels.extend(_oriented_energy(axis, _COLOUR_WAVELENGTH_PX))
    return np.stack(channels)


def _halves(axis: F32) -> tuple[F32, F32]:
    return np.maximum(axis, 0), np.maximum(-axis, 0)


def _pool(field: F32) -> F32:
    """Average each cell: ``[N, 64, 64]`` to ``[N, 32, 32]``."""
    cells = field.reshape(len(field), MAP_SIZE, CELL_PX, MAP_SIZE, CELL_PX)
    return np.asarray(cells.mean(axis=(2, 4)), dtype=np.float32)


def _contrast(luminance: F32) -> F32:
    """Compute the RMS contrast within each cell."""
    variance = _pool(luminance**2) - _pool(luminance) ** 2
    return np.asarray(np.sqrt(np.maximum(variance, 0)), dtype=np.float32)


def _oriented_energy(field: F32, wavelength_px: float) -> list[F32]:
    """Compute the magnitude of the quadrature pair's response: one map per orientation, sampled per cell."""
    spectrum = scipy.fft.fft2(_mirrored(field))
    maps = []
    for gabor in _gabor_spectra(wavelength_px):
        # Folding the spectrum before the inverse transform is equivalent to subsampling by 2 after it.
        folded = (spectrum * gabor).reshape(len(field), CELL_PX, SIZE_PX, CELL_PX, SIZE_PX).sum(axis=(1, 3))
        response = scipy.fft.ifft2(folded)[:, :MAP_SIZE, :MAP_SIZE] / CELL_PX**2
        maps.append(np.abs(response).astype(np.float32))
    return maps


def _mirrored(field: F32) -> F32:
    """Extend by mirror images to ``[N, 128, 128]``, so that a picture's border causes no edge."""
    return np.pad(field, ((0, 0), (0, SIZE_PX), (0, SIZE_PX)), mode="symmetric")


@functools.cache
def _gabor_spectra(wavelength_px: float) -> tuple[npt.NDArray[np.complex64], ...]:
    """Return transfer functions of one-sided Gabor filters of one octave; a response is a quadrature pair."""
    frequency = np.fft.fftfreq(2 * SIZE_PX)
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    centre, width = 1 / wavelength_px, 0.4 / wavelength_px
    spectra = []
    for orientation in range(_ORIENTATIONS):
        angle = np.pi * orientation / _ORIENTATIONS
        distance2 = (fx - centre * np.cos(angle)) ** 2 + (fy - centre * np.sin(angle)) ** 2
        transfer = np.exp(-distance2 / (2 * width**2))
        transfer[0, 0] = 0  # no response to uniform luminance
        spectra.append(transfer.astype(np.complex64))
    return tuple(spectra)
