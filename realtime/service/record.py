"""The recorder as a process: a source of volumes, and the journals that they go to."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from realtime.bundle.match import read_spec
from realtime.errors import RecordError, ServeError
from realtime.network.channel import BEAT_S, ChannelSender
from realtime.record.run_journal import has_ended, open_folders
from realtime.record.run_json import Registration, read_run_file
from realtime.record.storage import lock_role
from realtime.recorder.recorder import Recorder, Settings
from realtime.service.keys import keys_for
from realtime.service.process import Ready, every, say_ready, set_budget, until_stopped
from realtime.sources.open import SourceOptions, open_source
from realtime.wire import RunStart

SEED = 0
"""Of the initial noise: the same for every run, so that what changes on screen is the brain."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to record."""

    bundle: Path
    """Which runs are accepted: those that it can decode."""
    source: str
    """Where volumes come from, such as ``tcp://127.0.0.1:5555``; port 0 takes a free one."""
    source_options: SourceOptions = SourceOptions()
    """What the operator says about runs, for sources that do not."""
    out: Path
    fallback_out: Path | None = None
    registration: Registration = Registration()
    registers_all: bool = False
    """Whether volumes on the decoder's own grid are registered too."""
    resamples: bool = False
    """Whether runs with another TR than the decoder's are taken, and resampled in time."""
    keys: Path | None = None
    """The runtime's folder of :func:`realtime.network.key_files.make_keys`; by default the user's own."""
    is_supervised: bool = False


def record(options: Options) -> None:
    """Record until Ctrl-C; a run that is open then stays open, and the next recorder goes on with it.

    :raises RealtimeError: when it cannot start
    """
    set_budget("record")
    asyncio.run(_record(options))


async def _record(options: Options) -> None:
    spec, sha256 = read_spec(options.bundle)
    if spec.reference is None and (options.registers_all or options.registration != Registration()):
        raise ServeError(
            "expected a bundle with a reference volume for --register-all, --initial, --max-fd and "
            f"--fit-motion, {spec.name} has none; add one: python -m export reference"
        )
    out = options.out.absolute()
    with lock_role(out, "recorder"):
        source = open_source(
            options.source,
            options.source_options,
            spec,
            keys=keys_for(options.keys, (options.source, options.source_options.markers)),
            unfinished=unfinished_run(out, sha256),
        )
        settings = Settings(
            spec=spec,
            bundle_sha256=sha256,
            seed=SEED,
            out=out,
            fallback_out=options.fallback_out.absolute() if options.fallback_out else None,
            registration=options.registration,
            registers_all=options.registers_all,
            resamples=options.resamples,
        )
        with ChannelSender(out, "recorder") as channel:
            recorder = Recorder(settings, source, channel.send)
            address = await source.start()
            try:
                recorder.adopt_last()
                lines = [f"volumes from {address}, runs recorded in {out}"]
                say_ready(Ready(lines=lines, address=address), is_supervised=options.is_supervised)
                await until_stopped(_serve(recorder, channel), is_supervised=options.is_supervised)
            finally:
                recorder.stop()
                await source.stop()


def unfinished_run(out: Path, bundle_sha256: str) -> RunStart | None:
    """The start of the newest run under ``out``, unless it has ended and the decoder has yet to close it."""
    for path in open_folders(out, bundle_sha256)[:1]:
        try:
            return None if has_ended(path) else read_run_file(path).start
        except RecordError as error:
            _log.warning("cannot go on with %s: %s", path, error)
    return None


async def _serve(recorder: Recorder, channel: ChannelSender) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(recorder.run())
        tasks.create_task(every(BEAT_S, lambda: channel.send(recorder.recording)))
