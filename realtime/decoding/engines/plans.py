"""TensorRT engines (plans) in the user's cache: their files, and whether they match machine and graphs.

    <user cache>/realtime-dynadiff/<SHA-256 of bundle.json>/tensorrt-<version>-sm<NN>/
        engines.json          the record that this module reads
        brain.plan denoise.plan vae.plan

A plan is executable code. So plans are loaded only from the cache, in folders and files that no other user
can write, and never from a bundle, which may come from a stranger.

A plan runs only on the version of TensorRT and the architecture it was built for, hence the folder's name,
and only on the GPU model it was built on, since TensorRT guarantees nothing for others. ``engines.json``
holds the SHA-256 of every plan and of the ONNX files it was built from. These must equal those of
``bundle.json``, which links a plan to the checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import FileName, Sha256, Spec
from realtime.bundle.user_cache import cache_folder, check_private
from realtime.errors import BundleError, EngineError

ENGINES_FOLDER = "engines"
"""Where earlier releases kept plans, in the bundle; those are not loaded any more."""
RECORD_FILE = "engines.json"
FORMAT_VERSION = 1
_log = logging.getLogger(__name__)

Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9][A-Za-z0-9.+]{0,31}\Z")]
Architecture = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{2,3}[a-z]?\Z")]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of the record; rejects unknown fields."""


class Plan(_Part, frozen=True, kw_only=True):
    """The plan of one graph."""

    file: FileName
    sha256: Sha256
    made_from: dict[FileName, Sha256]
    """SHA-256 of the ONNX graph and of its external weights, if any."""
    layers: dict[str, int]
    """Number of layers by precision."""
    float32_layers: tuple[str, ...]
    """Layers of a float16 graph that read or write float32, as the graph specifies."""
    parity: dict[str, float]
    """Largest absolute difference from ONNX Runtime on the CPU, by output."""


class Record(_Part, frozen=True, kw_only=True):
    """``engines.json``."""

    format_version: int
    tensorrt: Version
    sm: Architecture
    gpu: str
    """GPU model that the plans were built on."""
    notes: dict[str, str]
    """Versions and settings of the build."""
    plans: dict[str, Plan]
    """Plans by graph."""
    psnr_db: float
    """PSNR of a whole decode against ONNX Runtime on the CPU."""


def plans_folder(bundle: Bundle, tensorrt: str, sm: str) -> Path:
    """Return the folder of a bundle's plans for a version of TensorRT and an architecture.

    :raises EngineError: when another user can write the cache that it is in
    """
    try:
        return cache_folder(bundle.sha256) / f"tensorrt-{tensorrt}-sm{sm}"
    except BundleError as error:
        raise EngineError(str(error)) from error


def graph_files(spec: Spec, graph: str) -> dict[str, str]:
    """Return the SHA-256 of a graph's files: the ONNX file and, if present, its external weights."""
    file = spec.graphs[graph].file
    return {name: spec.files[name] for name in (file, f"{file}.data") if name in spec.files}


def find_plans(bundle: Bundle, tensorrt: str, sm: str, gpu: str) -> Record:
    """Return the record of the plans for a TensorRT version, an architecture and a GPU model.

    :raises EngineError: when there are no plans or they do not match; the message says how to build them
    """
    folder = plans_folder(bundle, tensorrt, sm)
    todo = rebuild(bundle)
    if (bundle.folder / ENGINES_FOLDER).exists():
        _tell_ignored(bundle.folder / ENGINES_FOLDER, todo)
    if not folder.is_dir():
        others = sorted(path.name for path in folder.parent.glob("tensorrt-*") if path.is_dir())
        found = f"only {', '.join(others)}" if others else "none"
        raise EngineError(f"expected engines in {folder.name}, found {found}; {todo}")
    _check_private(folder, folder / RECORD_FILE)
    try:
        record = msgspec.json.decode((folder / RECORD_FILE).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{folder / RECORD_FILE}: expected a record of engines: {error}; {todo}") from error
    _check_fit(bundle, folder, record, tensorrt, sm)
    if record.gpu != gpu:
        raise EngineError(
            f"{folder}: expected engines built on {gpu}, found ones built on {record.gpu}: TensorRT does not "
            f"guarantee that they run on another model of the same architecture; {todo}"
        )
    return record


def check_plans(bundle: Bundle, record: Record) -> dict[str, Path]:
    """Return the plan files by graph after checking their SHA-256.

    :raises EngineError: when a file cannot be read or differs from the record
    """
    folder, paths = plans_folder(bundle, record.tensorrt, record.sm), {}
    for graph, plan in record.plans.items():
        paths[graph] = folder / plan.file
        _check_private(paths[graph])
        try:
            found = file_sha256(paths[graph])
        except OSError as error:
            raise EngineError(
                f"{paths[graph]}: cannot be read: {error.strerror}; {rebuild(bundle)}"
            ) from error
        if found != plan.sha256:
            raise EngineError(
                f"{paths[graph]}: changed or truncated since it was built: expected SHA-256 {plan.sha256}, "
                f"found {found}; {rebuild(bundle)}"
            )
    return paths


def digest(record: Record) -> str:
    """Return a short name for just these plans: another build of the same graphs may give other frames."""
    plans = "".join(plan.sha256 for _, plan in sorted(record.plans.items()))
    return hashlib.sha256(plans.encode()).hexdigest()[:12]


@cache  # one line, although an engine is probed before it is opened
def _tell_ignored(folder: Path, todo: str) -> None:
    _log.warning(
        "%s: engines in a bundle are executable code of whoever made them, and are not used; %s", folder, todo
    )


def _check_private(*paths: Path) -> None:
    try:
        for path in paths:
            check_private(path)
    except BundleError as error:
        raise EngineError(str(error)) from error


def rebuild(bundle: Bundle) -> str:
    """Return the advice for messages about missing or mismatched engines."""
    return f"build them on this machine: python -m export engines --bundle {bundle.folder}"


def _check_fit(bundle: Bundle, folder: Path, record: Record, tensorrt: str, sm: str) -> None:
    spec, todo = bundle.spec, rebuild(bundle)
    if (record.format_version, record.tensorrt, record.sm) != (FORMAT_VERSION, tensorrt, sm):
        raise EngineError(
            f"{folder / RECORD_FILE}: expected format {FORMAT_VERSION}, TensorRT {tensorrt} and sm{sm}, "
            f"found format {record.format_version}, TensorRT {record.tensorrt} and sm{record.sm}; {todo}"
        )
    if record.plans.keys() != spec.graphs.keys():
        raise EngineError(
            f"{folder.name}: expected engines of {', '.join(spec.graphs)}, found {', '.join(record.plans)}; "
            f"{todo}"
        )
    for graph, plan in record.plans.items():
        if plan.made_from != graph_files(spec, graph):
            raise EngineError(
                f"{folder / plan.file}: built from another {spec.graphs[graph].file} than the bundle's; "
                f"{todo}"
            )
