"""The engine contract.

An engine keeps tensors where it computes. :meth:`Engine.put` and :meth:`Engine.get` are the only ways in and
out. Between them the decoder hands opaque handles from one run to the next, so latents stay on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle

Handle = object
"""A tensor where its engine keeps it; means nothing outside that engine."""


class Engine(Protocol):
    """Runs the graphs of the bundle it was opened with, on the thread that opened it: ONNX Runtime keeps what
    it records of CUDA's by thread.
    """

    description: str
    """What runs, on what, for people: ``ONNX Runtime 1.31.1, CPU, 2 threads``."""

    def put(self, array: NDArray[Any]) -> Handle:
        """Bring an array to the device; it must not be changed afterwards."""

    def get(self, tensor: Handle) -> NDArray[Any]:
        """Bring a tensor back, once all that it depends on has been computed."""

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        """Run a graph on all its inputs by name; returns its outputs by name.

        They may be inputs of any run, and may be overwritten once the same graph has run again.

        :raises EngineError: when it fails
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One row of a sampler's table, on the device."""

    timestep: Handle
    """int64 [1]"""
    coefficients: Handle
    """[3]"""
    weights: Handle
    """[2] of the null condition and the other one, or [1] of the latter alone."""
    is_guided: bool


Steps = tuple[Step, ...]
"""A sampler's table; as a key it is itself and no other."""


@runtime_checkable
class LoopEngine(Engine, Protocol):
    """An engine that runs all steps of a table in one go. Others are led through them one by one."""

    def sample(self, graph: str, steps: Steps, conditions: NDArray[Any], latents: Handle) -> Handle:
        """Run a ``denoise`` graph once a step, from latents ``[1, c, h, w]`` to the last ones; what it
        prepares for a table it keeps, so that only the first call is slow.

        :param conditions: the null condition and the other one, ``[2, tokens, width]``
        :raises EngineError: when it fails
        """


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine and whether it can run a bundle on this machine."""

    name: str
    reason: str = ""
    """Why it cannot, and what to do about it; empty where it can."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that were found, by name."""

    @property
    def available(self) -> bool:
        """Whether it can run here, as far as can be told without loading a graph."""
        return not self.reason


class EngineModule(Protocol):
    """What a module of this package offers; it is imported only when one of its engines is asked for."""

    def probe(self, bundle: Bundle, name: str) -> Candidate:
        """Say whether the engine ``name`` can run the bundle here. Quick, and loads no graph."""

    def open_engine(self, bundle: Bundle, name: str, threads: int | None) -> Engine:
        """Load the bundle's graphs; raises as :func:`open_engine` of this package."""
