"""``bundle.json``: what a bundle says about itself, as types that validate it."""

from __future__ import annotations

import hashlib
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from realtime.atomic import write_whole
from realtime.errors import BundleError

FORMAT_VERSION = 1
SPEC_FILE = "bundle.json"
PRIOR_FILE = "prior.npz"
NULL_CONDITION_FILE = "null_condition.npy"
MAX_SPEC_BYTES = 2**20
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
    """Streaming detrending and z-scoring: see :mod:`realtime.preprocessing.stream`."""

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


class _Version(msgspec.Struct):
    format_version: int


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
    write_whole(folder / SPEC_FILE, encoded)
    return hashlib.sha256(encoded).hexdigest()
