"""Tries a bundle on an engine in a process that can be ended, before the bundle is served.

A graph may come from a stranger: it may compute for ever, take all memory, or crash its engine. An engine
cannot be interrupted in its own process. So every graph runs in another process, with a time limit. That
process also measures how long a decode takes. The user's cache remembers how the trial ended and what it
measured, so that a restart does not take twice as long, and finds the same.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import platform
import signal
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from realtime.atomic import write_whole
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import is_shipped
from realtime.bundle.user_cache import PACKAGE, cache_folder, make_cache_folder
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import counted, open_and_use, usable_cores
from realtime.errors import BundleError, EngineError, RealtimeError

_LIMIT_S = 60.0
_LIMIT_S_PER_GB = 120.0
"""A decode of the full-size model, 4 GB, takes minutes on a CPU."""
_ORPHAN_S = 10.0
"""How much longer than the limit the trial's process lives if this one was killed."""
_MAX_BYTES = 1_000_000
"""What the trial's process says is shorter."""
_TRIED_FILE = "tried.json"
_LIBRARIES = (PACKAGE, "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
_log = logging.getLogger(__name__)


def try_bundle(bundle: Bundle, engine: str, limit_s: float | None = None, *, again: bool = False) -> None:
    """Run every graph of a bundle, unless that has been done here with the same libraries.

    The demo's bundle is not tried: it was installed together with this code.

    :param engine: one of :data:`realtime.decoding.engines.choose.ENGINES` except ``auto``
    :param limit_s: time limit; by default it grows with the size of the graphs
    :param again: also where an earlier trial failed; without it, that one's error is raised again
    :raises EngineError: when the graphs do not end in time, crash the engine, or do not run on it
    :raises BundleError: when the bundle changes meanwhile
    """
    if not is_shipped(bundle.folder):
        decode_s(bundle, engine, limit_s, again=again)


def decode_s(bundle: Bundle, engine: str, limit_s: float | None = None, *, again: bool = False) -> float:
    """How long a decode with the bundle's first sampler takes here; measured once, by a trial.

    Parameters and errors are those of :func:`try_bundle`.
    """
    tried = _known(bundle, engine)
    if tried is None or (again and tried.problem):
        size_gb = sum((bundle.folder / file).stat().st_size for file in bundle.spec.files) / 1e9
        problem, measured_s = _run(bundle, engine, limit_s or _LIMIT_S + _LIMIT_S_PER_GB * size_gb)
        tried = remember(bundle, engine, measured_s, problem)
    if tried.problem:
        # The same words at the next start: the record of a run names what was passed over, and why.
        raise EngineError(f"{tried.problem} (tried once; `realtime doctor` tries again)")
    return tried.decode_s


def _run(bundle: Bundle, engine: str, limit_s: float) -> tuple[str, float]:
    """What is wrong with a bundle on an engine, and a decode's seconds.

    :raises EngineError: when the trial says nothing of the engine, because it was stopped
    :raises BundleError: when it says nothing of the engine, because the bundle changed
    """
    _log.info("trying the graphs of %s on %s, for at most %.0f s", bundle.folder, engine, limit_s)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(
        target=_try, args=(bundle.folder, bundle.sha256, engine, limit_s, sender), daemon=True
    )
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit_s):
            return (
                f"{bundle.folder}: expected graphs that run once within {limit_s:.0f} s, these did not end; "
                "do not use this bundle, or export it again"
            ), 0.0
        # Not as pickled objects: the sender has run a stranger's graphs.
        outcome = msgspec.json.decode(receiver.recv_bytes(_MAX_BYTES), type=_Outcome)
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGTERM:
            raise EngineError(f"{bundle.folder}: its trial on {engine} was stopped; start again") from None
        return (
            f"{bundle.folder}: expected graphs that run, but they ended the engine's process (exit code "
            f"{process.exitcode}); do not use this bundle, or export it again"
        ), 0.0
    except (OSError, msgspec.MsgspecError) as error:
        return (
            f"{bundle.folder}: expected its trial to say how it ended, got something else: {error}; do not "
            "use this bundle"
        ), 0.0
    finally:
        process.kill()
        process.join()
        receiver.close()
    if outcome.is_of_bundle:
        raise BundleError(outcome.problem)
    return outcome.problem, outcome.decode_s


def _try(folder: Path, sha256: str, engine: str, limit_s: float, result: Connection) -> None:
    """Send what is wrong with a bundle, or a decode's seconds; in a process of its own."""
    faulthandler.dump_traceback_later(limit_s + _ORPHAN_S, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that waits, and it ends this one
    try:
        bundle = Bundle.open(folder)
        if bundle.sha256 != sha256:
            raise BundleError(f"{folder}: the bundle changed while it was opened; start again")
        _, _, decoders = open_and_use(
            bundle,
            engine,
            lambda opened: [Decoder(bundle, opened, name=each.name) for each in bundle.spec.decoders],
        )
    except RealtimeError as error:
        outcome = _Outcome(problem=str(error), is_of_bundle=isinstance(error, BundleError))
    else:
        outcome = _Outcome(decode_s=decoders[0].pace.decode_s(bundle.sampler()))
    result.send_bytes(msgspec.json.encode(outcome))


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the trial's process found out."""

    problem: str = ""
    is_of_bundle: bool = False
    """Whether the problem is the bundle's, and says nothing of the engine."""
    decode_s: float = 0.0


class _Tried(msgspec.Struct, frozen=True):
    """How a trial of a bundle ended."""

    engine: str
    versions: dict[str, str]
    hardware: str
    decode_s: float
    """With the bundle's first sampler, on the idle machine; 0 where it failed."""
    problem: str = ""
    """Why it failed; empty where it passed."""

    def is_of(self, engine: str) -> bool:
        """Whether it was a trial of this engine as it is now, on this machine."""
        return (self.engine, self.versions, self.hardware) == (engine, _versions(), _hardware())


def is_known(bundle: Bundle, engine: str) -> bool:
    """Whether the next start finds how a trial of this engine ended."""
    return _known(bundle, engine) is not None


def can_remember(bundle: Bundle) -> bool:
    """Whether the user's cache takes what is found out; tried by writing what it has again."""
    return _write(bundle, _remembered(bundle))


def _known(bundle: Bundle, engine: str) -> _Tried | None:
    return next((tried for tried in _remembered(bundle) if tried.is_of(engine)), None)


def _remembered(bundle: Bundle) -> list[_Tried]:
    try:
        return msgspec.json.decode(
            (cache_folder(bundle.sha256) / _TRIED_FILE).read_bytes(), type=list[_Tried]
        )
    except FileNotFoundError:
        return []
    except (OSError, BundleError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("the bundle's graphs are tried again: %s", error)
        return []


def was_tried(bundle: Bundle) -> bool:
    """Whether this user has tried a bundle before, by whatever engine."""
    return bool(_remembered(bundle))


def remember(bundle: Bundle, engine: str, measured_s: float, problem: str = "") -> _Tried:
    """Note how long a decode took on an engine here, or why a bundle does not run on it."""
    tried = _Tried(
        engine=engine, versions=_versions(), hardware=_hardware(), decode_s=measured_s, problem=problem
    )
    _write(bundle, [*(each for each in _remembered(bundle) if each.engine != engine), tried])
    return tried


def _write(bundle: Bundle, tried: list[_Tried]) -> bool:
    try:
        write_whole(make_cache_folder(bundle.sha256) / _TRIED_FILE, msgspec.json.encode(tried))
    except (OSError, BundleError) as error:
        _log.warning("what a trial of the bundle's graphs finds out cannot be kept: %s", error)
        return False
    return True


def _hardware() -> str:
    """What a measured time depends on besides the libraries."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor())}, {counted(usable_cores(), 'core')}"


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
