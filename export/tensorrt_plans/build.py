"""Builds a bundle's TensorRT engines for this machine's GPU, checks them, and compares them with the CPU."""

from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter

import msgspec
import onnxruntime

from export.atomic_folder import check_engines_replaceable, staging
from export.errors import ExportError
from export.tensorrt_plans import plan
from export.tensorrt_plans.operators import typed_nodes, unsupported
from export.tensorrt_plans.plan_parity import picture_psnr_db, worst_differences
from export.tensorrt_plans.precision import Precisions, check_graph, check_precisions
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.user_cache import make_cache_folder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.engines.cuda import first_device
from realtime.decoding.engines.plans import (
    FORMAT_VERSION,
    RECORD_FILE,
    Plan,
    Record,
    graph_files,
    plans_folder,
)
from realtime.decoding.engines.tensorrt import TensorRtEngine

_log = logging.getLogger(__name__)


def build_engines(
    folder: Path, *, optimization_level: int | None = None, timing_cache: Path | None = None
) -> Path:
    """Build a bundle's engines in the user's cache; all of them are written, or existing ones stay.

    :param folder: folder of the bundle
    :param optimization_level: TensorRT's optimization level, 0 to 5; by default TensorRT's own
    :param timing_cache: file with kernel timings; read if it exists, and written, so that a second build is
        faster
    :returns: the folder of the engines
    :raises ExportError: TensorRT does not accept a graph, an engine has another precision or differs too
        much, or the timing cache cannot be written
    :raises RealtimeError: the bundle cannot be opened, or there is no CUDA device
    """
    bundle, device = Bundle.open(folder), first_device()
    version = str(plan.trt.__version__)
    for graph in bundle.spec.graphs:
        _check_graph(bundle, graph)
    if timing_cache:
        _make_writable(timing_cache)
    try:
        make_cache_folder(bundle.sha256)
    except OSError as error:
        raise ExportError(f"cannot make the user's cache {error.filename}: {error.strerror}") from error
    out = plans_folder(bundle, version, device.sm)
    with staging(out, check_engines_replaceable) as staged:
        staged.chmod(0o700)  # the runtime loads no engine that others could have written
        found = {
            graph: _build(bundle, graph, staged, optimization_level, timing_cache)
            for graph in bundle.spec.graphs
        }
        paths = {graph: staged / f"{graph}.plan" for graph in found}
        engine, reference = TensorRtEngine(bundle, paths), open_engine(bundle, "onnxruntime-cpu")
        parity = worst_differences(bundle, engine, reference)
        record = Record(
            format_version=FORMAT_VERSION,
            tensorrt=version,
            sm=device.sm,
            gpu=device.name,
            notes=_notes(optimization_level),
            plans={
                graph: Plan(
                    file=paths[graph].name,
                    sha256=file_sha256(paths[graph]),
                    made_from=graph_files(bundle.spec, graph),
                    layers=precisions.layers,
                    float32_layers=precisions.float32,
                    parity=parity[graph],
                )
                for graph, precisions in found.items()
            },
            psnr_db=picture_psnr_db(bundle, engine, reference),
        )
        _write(staged / RECORD_FILE, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return out


def _make_writable(timing_cache: Path) -> None:
    """Check that the timing cache can be written, before a build that takes minutes."""
    try:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        timing_cache.open("ab").close()
    except OSError as error:
        raise ExportError(
            f"expected a writable file for --timing-cache, got {timing_cache}: {error.strerror}"
        ) from error


def _check_graph(bundle: Bundle, graph: str) -> None:
    """Check a graph's operators, their types and the precision, before anything is built."""
    path = bundle.graph_path(graph)
    nodes = typed_nodes(path)
    if lines := unsupported(nodes):
        found = "\n  ".join(lines)
        raise ExportError(
            f"{path}: expected operators that TensorRT supports, found\n  {found}\nExport the bundle again "
            "with this release"
        )
    check_graph(path, nodes, bundle.spec.graphs[graph].precision)


def _build(
    bundle: Bundle, graph: str, staged: Path, optimization_level: int | None, timing_cache: Path | None
) -> Precisions:
    """Build one graph's engine, check the precision of its layers, and write it to the staged folder."""
    _log.info("%-10s building …", graph)
    path, started = bundle.graph_path(graph), perf_counter()
    built = plan.build(path, optimization_level=optimization_level, timing_cache=timing_cache)
    target = staged / f"{graph}.plan"
    precisions = check_precisions(
        target, plan.inspect(path, built), typed_nodes(path), bundle.spec.graphs[graph].precision
    )
    _write(target, built)
    layers = ", ".join(f"{count} {name}" for name, count in precisions.layers.items())
    _log.info("%-10s %.0f s, %.1f MB, layers: %s", graph, perf_counter() - started, len(built) / 1e6, layers)
    return precisions


def _write(path: Path, content: bytes | memoryview) -> None:
    try:
        path.write_bytes(content)
        path.chmod(0o600)
    except OSError as error:
        raise ExportError(
            f"cannot write {len(content) / 1e6:.0f} MB to {path.parent.parent}: {error.strerror}; no engine "
            "was written. Free disk space and build again"
        ) from error


def _notes(optimization_level: int | None) -> dict[str, str]:
    level = "TensorRT's default" if optimization_level is None else str(optimization_level)
    return {"optimization_level": level, "onnxruntime": onnxruntime.__version__}
