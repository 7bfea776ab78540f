"""The line of engines, and the choice of one.

Each engine is a module of this package, an :class:`~realtime.decoding.engines.contract.EngineModule`. It may
import a library that is not installed. ``auto`` tries the engines of ``LINE`` in order. It logs why it passes
one over, and the description of the engine that it takes says so too.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from typing import TypeVar, cast

from realtime.bundle.bundle import Bundle
from realtime.decoding.engines.contract import Candidate, Engine, EngineModule
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
LINE = ("tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime-cpu")
"""What ``auto`` tries, in this order; of the CPU's two the faster first (``benchmarks/cpu_engines.py``)."""
ENGINES = ("auto", *_MODULES)
_log = logging.getLogger(__name__)


def probe(bundle: Bundle, name: str) -> Candidate:
    """Whether one of the engines of ``LINE`` can run a bundle here, and if not, why."""
    try:
        return _module(name).probe(bundle, name)
    except EngineError as error:
        return Candidate(name=name, reason=str(error))


def open_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Engine:
    """Load a bundle's graphs into an engine.

    :param name: one of ``ENGINES``; ``auto`` takes the first of ``LINE`` that opens
    :param threads: of the CPU; by default one per core this process may use
    :raises EngineError: when the engine is unknown or not to be had here, or a graph does not load
    """
    return take_engine(bundle, name, threads)[1]


def take_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> tuple[str, Engine]:
    """As :func:`open_engine`; also says which of ``ENGINES`` it is."""
    return put_to_use(bundle, name, lambda engine: None, threads)[:2]


def put_to_use(
    bundle: Bundle, name: str, use: Callable[[Engine], T], threads: int | None = None
) -> tuple[str, Engine, T]:
    """Load a bundle's graphs and do with them what they are wanted for; also returns what came of it.

    :param name: as for :func:`open_engine`; with ``auto``, an engine that loads and then fails in use is
        passed over like one that does not load
    :raises EngineError: as :func:`open_engine`, and when the use fails
    """
    if name not in ENGINES:
        raise EngineError(f"expected an engine of {', '.join(ENGINES)}, got {name!r}")
    if name != "auto":
        return name, *_open_and_use(bundle, name, use, threads)
    passed_over: list[str] = []
    for name in LINE:
        try:
            engine, used = _open_and_use(bundle, name, use, threads)
        except EngineError as error:
            _log.info("engine %s is passed over: %s", name, error)
            passed_over.append(f"{name}: {error}")
            continue
        if passed_over:
            engine.description += f" (passed over: {'; '.join(passed_over)})"
        return name, engine, used
    raise EngineError(f"expected an engine that runs this bundle here, found none: {'; '.join(passed_over)}")


def _open_and_use(
    bundle: Bundle, name: str, use: Callable[[Engine], T], threads: int | None
) -> tuple[Engine, T]:
    """In a frame of its own, so that nothing holds an engine that failed when the next one is loaded."""
    engine = _open(bundle, name, threads)
    return engine, use(engine)


def _open(bundle: Bundle, name: str, threads: int | None) -> Engine:
    candidate = probe(bundle, name)
    if not candidate.available:
        raise EngineError(candidate.reason)
    return _module(name).open_engine(bundle, name, threads)


def _module(name: str) -> EngineModule:
    """The module of an engine, which may need a library that is not there."""
    try:
        return cast(EngineModule, importlib.import_module(_MODULES[name]))
    except (ImportError, OSError) as error:  # OSError: a library of its own that does not load
        raise EngineError(f"its library is not to be had: {error}; {_INSTALL[name]}") from error


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def counted(number: int, what: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
