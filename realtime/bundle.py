"""The bundle: one folder with all that the runtime needs to know about a subject and a model.

    bundle.json           what this module reads; names every other file with its SHA-256
    roi.nii.gz            the ROI on the scanner's grid
    prior.npz             mean, sd: float32 [V], per-voxel statistics of training runs
    null_condition.npy    float32 [tokens, width], the condition of the unguided branch
    brain.onnx denoise.onnx vae.onnx
    <graph>.onnx.data     the weights of a large graph
    brain-<decoder>.onnx denoise-<decoder>.onnx null_condition-<decoder>.npy
                          in a bank, of its specialised decoders
    parity.json .html     how close each step from the checkpoint to here stayed
    README.md             model card
    engines/              graphs compiled for one machine, where some were: not part of the bundle's identity

Read without torch and without executing anything in it. ``bundle.json`` holds the SHA-256 of every other
file, so that its own SHA-256 is the identity of the whole. Graphs and numbers it does not name are refused;
other files, such as notes, are left alone, since nothing reads them. Engines are made from the bundle after
it: what lies under ``engines/`` is not looked at here, and brings digests of its own.

Legend: V voxels of the region, T volumes of a window, c, h, w latent channels, height and width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime import bundlefiles
from realtime.errors import BundleError, WireError
from realtime.grid import same_grid
from realtime.wire import RunStart

FORMAT_VERSION = 1
SPEC_FILE = "bundle.json"
PRIOR_FILE = "prior.npz"
NULL_CONDITION_FILE = "null_condition.npy"
MAX_SPEC_BYTES = 2**20
TR_TOLERANCE = 0.005
"""Share by which a scanner's TR may differ from the bundle's: 1.33 s is what some say for 4/3 s."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Edge = Annotated[int, msgspec.Meta(ge=1, le=16_384)]
Timestep = Annotated[int, msgspec.Meta(ge=0, le=999)]
"""Of the 1 000 of the noise schedule."""
Row4 = tuple[float, float, float, float]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is common to all parts of the spec: nothing unknown is passed over.

    Nothing is optional but what came after the format's first bundles; its default is what they meant.
    """


class Tensor(_Part, frozen=True, kw_only=True):
    """One input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Part, frozen=True, kw_only=True):
    """One ONNX graph: ``brain``, ``denoise`` or ``vae``."""

    file: FileName
    precision: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Roi(_Part, frozen=True, kw_only=True):
    """The voxels the decoder sees: ``> 0`` in ``file``, on the scanner's grid, in C order."""

    file: FileName
    n_voxels: Positive
    shape: tuple[Edge, Edge, Edge]
    affine: tuple[Row4, Row4, Row4, Row4]
    """Voxel to millimetres, as the scanner's run start must say it too."""


class Window(_Part, frozen=True, kw_only=True):
    """The volumes a decode uses: ``length_volumes`` from ``offset_volumes`` after the image's onset."""

    offset_volumes: Annotated[int, msgspec.Meta(ge=-100, le=100)]
    length_volumes: Positive

    @property
    def delay_volumes(self) -> int:
        """Volumes between the onset and the last volume of the window."""
        return self.offset_volumes + self.length_volumes - 1


class Preprocessing(_Part, frozen=True, kw_only=True):
    """Streaming detrending and z-scoring: see :mod:`realtime.preprocess`."""

    high_pass_hz: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    warmup_volumes: Positive
    prior_volumes: Annotated[float, msgspec.Meta(ge=0)]
    """Weight of the prior mean and SD while a run is young, in volumes."""


class Sampler(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A sampler as a table: at step i, ``next = c0 * latents + c1 * prediction + c2 * previous prediction``.

    The prediction is of the clean latents (x0), already guided. A step whose guidance is 1 runs without the
    unconditional branch, at half the work.

    The latents before the first step are ``start[0] * brain's start + start[1] * seeded noise``: noise alone,
    or latents that the brain graph predicts, noised up to where the table sets in. Timesteps fall from step
    to step, and numbers are finite in float32, as engines take them.
    """

    name: str
    timesteps: Annotated[tuple[Timestep, ...], msgspec.Meta(min_length=1, max_length=1_000)]
    coefficients: tuple[tuple[float, float, float], ...]
    guidance: tuple[float, ...]
    start: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not len(self.timesteps) == len(self.coefficients) == len(self.guidance):
            raise ValueError(f"sampler {self.name!r}: timesteps, coefficients and guidance differ in length")
        for before, after in pairwise(self.timesteps):
            if after >= before:
                raise ValueError(f"sampler {self.name!r}: expected falling timesteps, got {before}, {after}")
        for number in (*self.start, *self.guidance, *chain.from_iterable(self.coefficients)):
            if not abs(number) <= _MAX_FLOAT32:  # so that NaN is refused too
                raise ValueError(f"sampler {self.name!r}: expected finite float32 numbers, got {number}")

    @property
    def starts_from_brain(self) -> bool:
        """Whether the latents that the brain graph predicts have a part in the first ones."""
        return self.start[0] != 0


class Decoder(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A brain graph and the window it was trained for; the first decoder of a bundle is the general one.

    Where a bundle has others, it is a bank: each of them is specialised on windows that begin at its offset
    from a picture's onset. Those whose diffusion model was tuned too have a ``denoise`` graph of their own.
    """

    name: FileName
    graph: str
    window: Window
    denoise: str = "denoise"
    null_condition: FileName = NULL_CONDITION_FILE
    """float32 [tokens, width], the condition of its unguided branch."""


class Stage(_Part, frozen=True, kw_only=True):
    """One step of the way here: what it made, from what, and how close it stayed to the step before."""

    name: str
    sha256: Sha256
    made_from: tuple[Sha256, ...]
    parity: dict[str, float]
    notes: dict[str, str]


class Spec(_Part, frozen=True, kw_only=True):
    """``bundle.json``."""

    format_version: int
    name: str
    subject: Positive
    roi: Roi
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    preprocessing: Preprocessing
    latent_shape: tuple[Edge, Edge, Edge]
    """c, h, w."""
    image_size_px: tuple[Edge, Edge]
    """Height, width."""
    condition_shape: tuple[Edge, Edge]
    """Tokens, width."""
    decoders: Annotated[tuple[Decoder, ...], msgspec.Meta(min_length=1)]
    samplers: Annotated[tuple[Sampler, ...], msgspec.Meta(min_length=1)]
    graphs: dict[str, Graph]
    files: dict[FileName, Sha256]
    """Every file of the bundle but ``bundle.json`` itself."""
    provenance: tuple[Stage, ...]

    def __post_init__(self) -> None:
        decoders = self.decoders
        brains, denoisers = {each.graph for each in decoders}, {each.denoise for each in decoders}
        for name in sorted(({"vae"} | brains | denoisers) - self.graphs.keys()):
            raise ValueError(f"no graph {name!r}")
        if len(brains | denoisers | {"vae"}) != len(brains) + len(denoisers) + 1:
            raise ValueError("one graph cannot be brain, denoise and vae at once")
        if len({each.name for each in decoders}) != len(decoders):
            raise ValueError("two decoders have one name")
        conditions = {each.null_condition for each in decoders}
        named = {self.roi.file, PRIOR_FILE} | conditions | {graph.file for graph in self.graphs.values()}
        for file in sorted(named - self.files.keys()):
            raise ValueError(f"no SHA-256 for {file!r}")
        for name in brains:
            predicts = any(output.name == "start" for output in self.graphs[name].outputs)
            if predicts != self.starts_from_brain:
                raise ValueError(f"graph {name!r} and the samplers disagree on who makes the first latents")

    @property
    def starts_from_brain(self) -> bool:
        """Whether brain graphs predict latents to start from, beside the condition."""
        return any(sampler.starts_from_brain for sampler in self.samplers)


N = TypeVar("N", Sampler, Decoder)


class _Version(msgspec.Struct):
    format_version: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """An opened bundle: everything in it has been checked against ``bundle.json``."""

    folder: Path
    spec: Spec
    sha256: str
    """Of ``bundle.json``, and through it of everything."""
    roi_mask: NDArray[np.bool_]
    """[x, y, z]"""
    prior_mean: NDArray[np.float32]
    """[V]"""
    prior_sd: NDArray[np.float32]
    """[V]"""
    null_conditions: Mapping[str, NDArray[np.float32]]
    """[tokens, width], by decoder."""

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check a bundle.

        :raises BundleError: what is missing, changed, too new or contradictory, and what to do
        """
        if not folder.is_dir():
            raise BundleError(f"expected a bundle's folder, found none at {folder}")
        encoded = bundlefiles.read_bytes(folder / SPEC_FILE, MAX_SPEC_BYTES)
        spec = decode_spec(encoded, folder / SPEC_FILE)
        for file, expected in spec.files.items():
            bundlefiles.check_sha256(folder / file, expected)
        bundlefiles.check_nothing_besides(folder, spec.files.keys())
        mask = _read_roi(folder, spec.roi)
        voxels = (spec.roi.n_voxels,)
        prior = bundlefiles.read_npz(folder / PRIOR_FILE, {"mean": voxels, "sd": voxels})
        return cls(
            folder=folder,
            spec=spec,
            sha256=hashlib.sha256(encoded).hexdigest(),
            roi_mask=mask,
            prior_mean=prior["mean"],
            prior_sd=prior["sd"],
            null_conditions={
                decoder.name: bundlefiles.read_npy(folder / decoder.null_condition, spec.condition_shape)
                for decoder in spec.decoders
            },
        )

    def graph_path(self, name: str) -> Path:
        """The ONNX file of a graph that the spec names."""
        return self.folder / self.spec.graphs[name].file

    def sampler(self, name: str | None = None) -> Sampler:
        """A sampler by name; the bundle's first without one.

        :raises BundleError: when there is none of that name
        """
        return _named(self.spec.samplers, name, "samplers")

    def decoder(self, name: str | None = None) -> Decoder:
        """A decoder by name; the bundle's first, the general one, without one; raises as :meth:`sampler`."""
        return _named(self.spec.decoders, name, "decoders")

    @property
    def window_volumes(self) -> int:
        """Volumes of the longest window that a decoder sees."""
        return max(decoder.window.length_volumes for decoder in self.spec.decoders)

    def check_run(self, start: RunStart) -> None:
        """See that a run is one this bundle can decode.

        :raises WireError: codes ``subject``, ``grid`` and ``tr``
        """
        spec = self.spec
        if start.subject != spec.subject:
            raise WireError(
                "subject",
                f"expected subject {spec.subject}, for whom bundle {spec.name!r} was made, got subject "
                f"{start.subject}; start the runtime with that subject's bundle",
            )
        if start.shape != spec.roi.shape or not same_grid(start.affine, spec.roi.affine, spec.roi.shape):
            raise WireError(
                "grid",
                f"expected volumes on the grid {spec.roi.shape} with affine {spec.roi.affine}, got "
                f"{start.shape} with {start.affine}; send volumes on the grid of the subject's region",
            )
        if abs(start.tr_s - spec.tr_s) > TR_TOLERANCE * spec.tr_s:
            raise WireError(
                "tr",
                f"expected the TR the decoder was trained for, {spec.tr_s:.4f} s, got {start.tr_s:.4f} s",
            )


def _named(items: tuple[N, ...], name: str | None, what: str) -> N:
    for item in items:
        if name in (None, item.name):
            return item
    known = ", ".join(item.name for item in items)
    raise BundleError(f"expected one of the bundle's {what} ({known}), got {name!r}")


def _read_roi(folder: Path, roi: Roi) -> NDArray[np.bool_]:
    mask, affine = bundlefiles.read_mask(folder / roi.file)
    n_voxels = int(np.count_nonzero(mask))
    if mask.shape != roi.shape or n_voxels != roi.n_voxels or not same_grid(affine, roi.affine, roi.shape):
        raise BundleError(
            f"{folder / roi.file}: expected {roi.n_voxels} voxels on {roi.shape} with affine {roi.affine}, "
            f"found {n_voxels} on {mask.shape} with {affine.tolist()}; export the bundle again"
        )
    return mask


def decode_spec(encoded: bytes, path: Path = Path(SPEC_FILE)) -> Spec:
    """Read the bytes of a ``bundle.json``; ``path`` is for messages.

    :raises BundleError: when it is of another format version, or not a spec
    """
    try:
        version = msgspec.json.decode(encoded, type=_Version).format_version
        if version != FORMAT_VERSION:
            todo = "update realtime" if version > FORMAT_VERSION else "export the bundle again"
            raise BundleError(f"{path}: expected format version {FORMAT_VERSION}, got {version}; {todo}")
        return msgspec.json.decode(encoded, type=Spec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: expected a bundle's specification: {error}; export it again") from error


def write_spec(folder: Path, spec: Spec) -> str:
    """Write ``bundle.json``, atomically, after all other files; returns its SHA-256.

    :raises BundleError: when it could not be read back
    """
    encoded = msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"
    if len(encoded) > MAX_SPEC_BYTES or decode_spec(encoded) != spec:
        raise BundleError(f"{SPEC_FILE}: expected a specification that reads back, at most 1 MiB")
    partial = folder / f".{SPEC_FILE}.partial"
    partial.write_bytes(encoded)
    os.replace(partial, folder / SPEC_FILE)
    return hashlib.sha256(encoded).hexdigest()
