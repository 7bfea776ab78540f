"""The contract of an engine.

An engine keeps tensors on its device. :meth:`Engine.put` and :meth:`Engine.get` copy arrays to and from it.
Between them the decoder passes opaque handles from one run to the next, so latents stay on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle

Handle = object
"""A tensor on the device of its engine; opaque outside that engine."""


class Engine(Protocol):
    """Runs the graphs of the bundle it was opened with.

    Use it only on the thread that opened it: ONNX Runtime keeps recorded CUDA graphs per thread.
    """

    description: str
    """Library, device and threads, such as ``ONNX Runtime 1.31.1, CPU, 2 threads``."""

    def put(self, array: NDArray[Any]) -> Handle:
        """Copy an array to the device, or share its memory; do not change the array afterwards."""

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Wait until a tensor is computed and return it as an array on the host."""

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph on its named inputs and return its named outputs.

        The outputs may be inputs of any run. The next run of the same graph may overwrite them.

        :raises EngineError: when the run fails
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One row of a sampler's table, on the device."""

    timestep: Handle
    """int64 [1]"""
    coefficients: Handle
    """[3]"""
    weights: Handle
    """Guidance weights: [2] of the null condition and the decoded one, or [1] of the decoded one."""
    is_guided: bool


Steps = tuple[Step, ...]
"""A sampler's table; steps are compared by identity, so a table can be a key of a cache."""


@runtime_checkable
class LoopEngine(Engine, Protocol):
    """An engine that runs all steps of a table in one call. Other engines run one step per call."""

    def sample(self, graph: str, steps: Steps, conditions: NDArray[Any], latents: Handle) -> Handle:
        """Run a ``denoise`` graph once per step and return the final latents ``[1, c, h, w]``.

        The engine keeps what it prepares for a table, so only the first call with a table is slow.

        :param conditions: the null condition and the decoded one, ``[2, tokens, width]``
        :param latents: the initial latents, ``[1, c, h, w]``
        :raises EngineError: when a step fails
        """


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine and whether it can run a bundle on this machine."""

    name: str
    reason: str = ""
    """Why the engine cannot run, and what to do; empty if it can."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that were found, by name."""

    @property
    def available(self) -> bool:
        """Whether the engine can run here, as far as known without loading a graph."""
        return not self.reason


class EngineModule(Protocol):
    """The functions of an engine's module, which is imported only when the engine is needed."""

    def probe(self, bundle: Bundle, name: str) -> Candidate:
        """Tell whether the engine ``name`` can run the bundle here; quick, loads no graph."""

    def open_engine(self, bundle: Bundle, name: str, threads: int | None) -> Engine:
        """Load the bundle's graphs; raises like :func:`realtime.decoding.engines.choose.open_engine`."""
