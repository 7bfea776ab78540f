"""The bundle: one folder with all that the runtime needs to know about a subject and a model.

    bundle.json           what this module reads; names every other file with its SHA-256
    roi.nii.gz            the ROI on the scanner's grid
    prior.npz             mean, sd: float32 [V], per-voxel statistics of training runs
    null_condition.npy    float32 [tokens, width], the condition of the unguided branch
    brain.onnx denoise.onnx vae.onnx
    README.md             model card

Read without torch and without executing anything in it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

FORMAT_VERSION = 1

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Tensor(_Part):
    """One input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Part):
    """One ONNX graph: ``brain``, ``denoise`` or ``vae``."""

    file: FileName
    precision: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Roi(_Part):
    """The voxels the decoder sees: ``> 0`` in ``file``, on the scanner's grid, in C order."""

    file: FileName
    n_voxels: Positive
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]


class Window(_Part):
    """The volumes a decode uses: ``length_volumes`` from ``offset_volumes`` after the image's onset."""

    offset_volumes: Annotated[int, msgspec.Meta(ge=-100, le=100)]
    length_volumes: Positive

    @property
    def delay_volumes(self) -> int:
        """Volumes between the onset and the last volume of the window."""
        return self.offset_volumes + self.length_volumes - 1


class Preprocessing(_Part):
    """Streaming detrending and z-scoring: see :mod:`realtime.preprocess`."""

    high_pass_hz: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    warmup_volumes: Positive
    prior_volumes: Annotated[float, msgspec.Meta(ge=0)]
    """Weight of the prior mean and SD while a run is young, in volumes."""


class Sampler(_Part):
    """A sampler as a table: at step i, ``next = c0 * latents + c1 * prediction + c2 * previous prediction``.

    The prediction is of the clean latents (x0), already guided. A step whose guidance is 1 runs without the
    unconditional branch, at half the work.
    """

    name: str
    timesteps: tuple[int, ...]
    coefficients: tuple[tuple[float, float, float], ...]
    guidance: tuple[float, ...]


class Decoder(_Part):
    """A brain graph and the window it was trained for; the first decoder of a bundle is the general one."""

    name: FileName
    graph: str
    window: Window


class Stage(_Part):
    """One step of the way here: what it made, from what, and how close it stayed to the step before."""

    name: str
    sha256: Sha256
    made_from: tuple[Sha256, ...]
    parity: dict[str, float]
    notes: dict[str, str]


class Spec(_Part):
    """``bundle.json``."""

    format_version: int
    name: str
    subject: Positive
    roi: Roi
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    preprocessing: Preprocessing
    latent_shape: tuple[int, int, int]
    image_size_px: tuple[int, int]
    condition_shape: tuple[int, int]
    decoders: Annotated[tuple[Decoder, ...], msgspec.Meta(min_length=1)]
    samplers: Annotated[tuple[Sampler, ...], msgspec.Meta(min_length=1)]
    graphs: dict[str, Graph]
    files: dict[FileName, Sha256]
    """Every file of the bundle but ``bundle.json`` itself."""
    provenance: tuple[Stage, ...]
