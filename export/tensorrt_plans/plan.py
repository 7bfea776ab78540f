"""Builds a TensorRT engine from an ONNX graph with polygraphy.

Networks are strongly typed: the types of the graph determine the precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polygraphy.backend.trt import (
    CreateConfig,
    EngineFromBytes,
    Profile,
    engine_bytes_from_network,
    network_from_onnx_path,
)
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER
from polygraphy.mod.trt_importer import lazy_import_trt

from export.errors import ExportError

FREE = (1, 2, 2)
"""Smallest, usual and largest number of conditions of ``denoise``: 1 without guidance, 2 with it."""

trt = lazy_import_trt()  # TensorRT, or TensorRT-RTX if polygraphy is set to use it


def parse(path: Path) -> tuple[Any, Any, Any]:
    """Builder, network and parser of a graph.

    :raises ExportError: TensorRT cannot parse the graph
    """
    # Releases without this flag have only strongly typed networks.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or None
    with _explained(path, "parses"):
        builder, network, parser = network_from_onnx_path(str(path), strongly_typed=typed)
    return builder, network, parser


def profiles(network: Any) -> list[Profile]:
    """The profile of a network's free dimensions, if it has any."""
    profile = Profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            least, usual, most = (tuple(n if size == -1 else size for size in shape) for n in FREE)
            profile.add(tensor.name, min=least, opt=usual, max=most)
    return [profile] if profile else []


def build(
    path: Path, *, optimization_level: int | None = None, timing_cache: Path | None = None
) -> memoryview:
    """Build the engine of a graph for this machine's GPU, and return it serialized.

    :param optimization_level: TensorRT's optimization level, 0 to 5; by default TensorRT's own
    :param timing_cache: file with kernel timings; read unless it is empty, and written
    :raises ExportError: TensorRT cannot parse the graph or build an engine
    """
    builder, network, parser = parse(path)
    cache = str(timing_cache) if timing_cache else None
    with _explained(path, "builds"):
        config = CreateConfig(
            profiles=profiles(network),
            load_timing_cache=cache if timing_cache and _holds_something(timing_cache) else None,
            builder_optimization_level=optimization_level,
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        )
        plan = engine_bytes_from_network((builder, network, parser), config=config, save_timing_cache=cache)
    return memoryview(plan)


def inspect(path: Path, plan: memoryview) -> str:
    """The report of TensorRT's inspector on an engine's layers, as JSON.

    For layers whose shape depends on an input, it knows the types only in a context with that input's shape.
    """
    with _explained(path, "loads"):
        engine = EngineFromBytes(plan)()
        context = engine.create_execution_context()
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            shape = tuple(engine.get_tensor_shape(name))
            if -1 in shape and engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, tuple(FREE[1] if size == -1 else size for size in shape))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        found: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return found


def _holds_something(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        try:
            yield
        except (
            PolygraphyException,
            TypeError,
        ) as error:  # TypeError: CUDA does not start, TensorRT's binding
            raise ExportError(
                f"{path}: expected a graph that TensorRT {trt.__version__} {what}: {error} (TensorRT's "
                "messages are above); no engine was written. Export the bundle again, or use another release "
                "of TensorRT"
            ) from error
