"""``bundle.json``, the spec of a bundle, as validating types."""

from __future__ import annotations

import hashlib
import math
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
MIN_RATIO, MAX_RATIO = 1e-6, 1e6
"""Of noise to drift: the fit of the drift is as good as free, or none."""
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Edge = Annotated[int, msgspec.Meta(ge=1, le=16_384)]
Timestep = Annotated[int, msgspec.Meta(ge=0, le=999)]
"""Timestep of the noise schedule, which has 1 000."""
Row4 = tuple[float, float, float, float]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of the spec; rejects unknown fields.

    Only fields that were added after the first bundles are optional; their defaults fit those bundles.
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
    """The voxels that the decoder uses: those ``> 0`` in ``file``, on the scanner's grid, in C order."""

    file: FileName
    n_voxels: Positive
    shape: tuple[Edge, Edge, Edge]
    affine: tuple[Row4, Row4, Row4, Row4]
    """Voxel indices to mm; a scanner's run start must contain the same."""


class Window(_Part, frozen=True, kw_only=True):
    """The window of a decoder: ``length_volumes`` volumes from ``offset_volumes`` after a picture's onset."""

    offset_volumes: Annotated[int, msgspec.Meta(ge=-100, le=100)]
    length_volumes: Positive

    @property
    def delay_volumes(self) -> int:
        """Number of volumes from the onset to the last volume of the window."""
        return self.offset_volumes + self.length_volumes - 1


class Preprocessing(_Part, frozen=True, kw_only=True):
    """Streaming detrending and z-scoring: see :mod:`realtime.preprocessing.stream`."""

    high_pass_hz: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    warmup_volumes: Positive
    prior_volumes: Annotated[float, msgspec.Meta(ge=0)]
    """Weight, in volumes, of the prior mean and SD against the run's own."""


class DriftPrior(_Part, frozen=True, kw_only=True):
    """How large slow drifts are in training runs: see :mod:`realtime.preprocessing.drift`."""

    frequencies_hz: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0)], ...], msgspec.Meta(min_length=1)]
    """They rise."""
    noise_to_drift: tuple[Annotated[float, msgspec.Meta(ge=MIN_RATIO, le=MAX_RATIO)], ...]
    """At each frequency, the variance of all that is not drift over that of the drift."""

    def __post_init__(self) -> None:
        if len(self.frequencies_hz) != len(self.noise_to_drift):
            raise ValueError("prior of the drifts: expected a ratio for each frequency")
        if any(not before < after < math.inf for before, after in pairwise((0.0, *self.frequencies_hz))):
            raise ValueError("prior of the drifts: expected rising finite frequencies")


class Sampler(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A sampler as a table: at each step ``next = c0 * latents + c1 * prediction + c2 * previous
    prediction``.

    The prediction is of the clean latents (x0), with guidance applied. A step with guidance 1 omits the null
    condition and takes half the work.

    The initial latents are ``start[0] * brain's start + start[1] * seeded noise``: noise alone, or latents
    that the brain graph predicts with noise for the first timestep. Timesteps decrease. All numbers are
    finite in float32, the dtype of the engines.
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
        """Whether the initial latents include latents that the brain graph predicts."""
        return self.start[0] != 0


class Decoder(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A brain graph and the window it was trained for; the first decoder of a bundle is the general one.

    A bundle with more decoders is a bank. Each further decoder is specialised on windows that begin at its
    offset from a picture's onset. If its diffusion model was fine-tuned too, it has its own ``denoise``
    graph.
    """

    name: FileName
    graph: str
    window: Window
    denoise: str = "denoise"
    null_condition: FileName = NULL_CONDITION_FILE
    """File of the null condition for guidance, float32 [tokens, width]."""


class Stage(_Part, frozen=True, kw_only=True):
    """One step from the checkpoint to the bundle: result, inputs, and differences from the step before."""

    name: str
    sha256: Sha256
    made_from: tuple[Sha256, ...]
    parity: dict[str, float]
    notes: dict[str, str]


class Spec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """``bundle.json``."""

    format_version: int
    name: str
    subject: Positive
    roi: Roi
    tr_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    preprocessing: Preprocessing
    drift_prior: DriftPrior | None = None
    """None: the causal fit of the drifts is free, as in bundles before there was a prior."""
    latent_shape: tuple[Edge, Edge, Edge]
    """c, h, w."""
    image_size_px: tuple[Edge, Edge]
    """Height, width."""
    condition_shape: tuple[Edge, Edge]
    """Tokens, width."""
    decoders: Annotated[tuple[Decoder, ...], msgspec.Meta(min_length=1)]
    samplers: Annotated[tuple[Sampler, ...], msgspec.Meta(min_length=1)]
    graphs: dict[str, Graph]
    reference: FileName | None = None
    """The decoder's reference volume, to which other sessions and grids are registered; None: the bundle
    takes only volumes on the region's own grid."""
    trained_sessions: tuple[Positive, ...] = ()
    """Sessions with runs that the decoder was trained on; none in bundles that do not tell."""
    held_out_runs: tuple[tuple[Positive, Positive], ...] = ()
    """Session and run of each run in these sessions, and others, that it was not trained on."""
    files: dict[FileName, Sha256]
    """SHA-256 of every file of the bundle except ``bundle.json``."""
    provenance: tuple[Stage, ...]

    def __post_init__(self) -> None:
        decoders = self.decoders
        brains, denoisers = {each.graph for each in decoders}, {each.denoise for each in decoders}
        for name in sorted(({"vae"} | brains | denoisers) - self.graphs.keys()):
            raise ValueError(f"no graph {name!r}")
        if len(brains | denoisers | {"vae"}) != len(brains) + len(denoisers) + 1:
            raise ValueError("expected separate graphs for brain, denoise and vae, found one used for two")
        if len({each.name for each in decoders}) != len(decoders):
            raise ValueError("expected decoders with distinct names, found a name twice")
        conditions = {each.null_condition for each in decoders}
        named = {self.roi.file, PRIOR_FILE} | conditions | {graph.file for graph in self.graphs.values()}
        named |= {self.reference} if self.reference else set()
        for file in sorted(named - self.files.keys()):
            raise ValueError(f"no SHA-256 for {file!r}")
        for name in brains:
            predicts = any(output.name == "start" for output in self.graphs[name].outputs)
            if predicts != self.starts_from_brain:
                raise ValueError(f"graph {name!r} and the samplers disagree on the source of initial latents")

    def was_trained_on(self, session: int, run: int) -> bool:
        """Whether a run of the subject is one that the decoder was trained on, as far as the bundle tells."""
        return session in self.trained_sessions and (session, run) not in self.held_out_runs

    @property
    def starts_from_brain(self) -> bool:
        """Whether the brain graphs also predict initial latents."""
        return any(sampler.starts_from_brain for sampler in self.samplers)


class _Version(msgspec.Struct):
    format_version: int


def decode_spec(encoded: bytes, path: Path = Path(SPEC_FILE)) -> Spec:
    """Parse the bytes of a ``bundle.json``.

    :param path: file name for messages
    :raises BundleError: when the format version differs, or the spec is invalid
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
    """Write ``bundle.json`` atomically and return its SHA-256; call it after all other files are written.

    :raises BundleError: when the written spec could not be read back
    """
    encoded = msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"
    if len(encoded) > MAX_SPEC_BYTES or decode_spec(encoded) != spec:
        raise BundleError(f"{SPEC_FILE}: expected a specification that reads back, at most 1 MiB")
    write_whole(folder / SPEC_FILE, encoded)
    return hashlib.sha256(encoded).hexdigest()
