"""Chooses and opens an engine.

Each engine is a module of this package, an :class:`~realtime.decoding.engines.contract.EngineModule`, and may
import a library that is not installed. ``auto`` tries engines in turn, by default in ``AUTO_ORDER``; what
decodes runs takes them as :mod:`realtime.decoding.rank` ranks them. If one is passed over, the log and the
description of the chosen engine say why.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from realtime.bundle.bundle import Bundle
from realtime.decoding.engines.contract import Candidate, Engine, EngineModule
from realtime.decoding.engines.signature import check_file
from realtime.errors import EngineError

T = TypeVar("T")
_MODULES = {
    "tensorrt": "realtime.decoding.engines.tensorrt",
    "onnxruntime-cuda": "realtime.decoding.engines.onnxruntime_cuda",
    "openvino": "realtime.decoding.engines.openvino",
    "openvino-bf16": "realtime.decoding.engines.openvino",
    "onnxruntime-cpu": "realtime.decoding.engines.onnxruntime",
}
_INSTALL = {
    "tensorrt": "pip install tensorrt cuda-bindings",
    "onnxruntime-cuda": "pip install onnxruntime-gpu",
    "openvino": "pip install 'realtime-dynadiff[openvino]'",
    "openvino-bf16": "pip install 'realtime-dynadiff[openvino]'",
    "onnxruntime-cpu": "pip install onnxruntime",
}
AUTO_GROUPS = (("tensorrt", "onnxruntime-cuda"), ("openvino", "onnxruntime-cpu"))
"""The engines that ``auto`` may take: those of a GPU, then those of the CPU."""
AUTO_ORDER = tuple(name for group in AUTO_GROUPS for name in group)
"""Order in which ``auto`` tries engines where nothing was measured."""
PASSED_OVER = " (passed over: "
"""What follows an engine's own description where ``auto`` passed others over."""
ENGINES = ("auto", *_MODULES)
"""The names that ``--engine`` takes."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What ``auto`` tries."""

    order: tuple[str, ...] = AUTO_ORDER
    passed_over: tuple[str, ...] = ()
    """Engines that are not tried, each with the reason."""


def probe(bundle: Bundle, name: str) -> Candidate:
    """Tell whether an engine can run a bundle here, and if not, why; loads no graph.

    :param name: one of ``ENGINES`` except ``auto``
    """
    try:
        return _module(name).probe(bundle, name)
    except EngineError as error:
        return Candidate(name=name, reason=str(error))


def open_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Engine:
    """Load a bundle's graphs into an engine.

    :param name: one of ``ENGINES``; ``auto`` chooses the first of ``AUTO_ORDER`` that opens
    :param threads: number of CPU threads; one per usable core by default
    :raises EngineError: when the engine is unknown or unavailable, or a graph does not load
    """
    return open_and_use(bundle, name, lambda engine: None, threads)[1]


def open_and_use(
    bundle: Bundle,
    name: str,
    use: Callable[[Engine], T],
    threads: int | None = None,
    ranking: Ranking = Ranking(),  # noqa: B008  # frozen
) -> tuple[str, Engine, T]:
    """Open an engine and call ``use`` with it.

    :param name: as for :func:`open_engine`; ``auto`` also passes over an engine that fails in ``use``
    :param ranking: what ``auto`` tries
    :returns: the engine's name, the engine and the result of ``use``
    :raises EngineError: as :func:`open_engine`, and when ``use`` raises it
    """
    if name not in ENGINES:
        raise EngineError(f"expected an engine of {', '.join(ENGINES)}, got {name!r}")
    if name != "auto":
        return name, *_open_then_use(bundle, name, use, threads)
    passed_over = list(ranking.passed_over)
    for name in ranking.order:
        try:
            engine, used = _open_then_use(bundle, name, use, threads)
        except EngineError as error:
            _log.info("engine %s is passed over: %s", name, error)
            passed_over.append(f"{name}: {error}")
            continue
        if passed_over:
            engine.description += f"{PASSED_OVER}{'; '.join(passed_over)})"
        return name, engine, used
    raise EngineError(f"expected an engine that runs this bundle here, found none: {'; '.join(passed_over)}")


def _open_then_use(
    bundle: Bundle, name: str, use: Callable[[Engine], T], threads: int | None
) -> tuple[Engine, T]:
    """Open and use an engine in a separate frame, which frees a failed engine before the next is loaded."""
    engine = _open(bundle, name, threads)
    return engine, use(engine)


def _open(bundle: Bundle, name: str, threads: int | None) -> Engine:
    candidate = probe(bundle, name)
    if not candidate.available:
        raise EngineError(candidate.reason)
    for graph in bundle.spec.graphs:
        check_file(bundle, graph)
    return _module(name).open_engine(bundle, name, threads)


def _module(name: str) -> EngineModule:
    """Import the module of an engine. :raises EngineError: when its library cannot be imported"""
    try:
        return cast(EngineModule, importlib.import_module(_MODULES[name]))
    except (ImportError, OSError) as error:  # OSError: a shared library that the package needs fails to load
        raise EngineError(f"its library cannot be imported: {error}; {_INSTALL[name]}") from error


def usable_cores() -> int:
    """Return the number of cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def counted(number: int, what: str) -> str:
    """Format a count with its noun: ``1 thread``, ``2 threads``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
