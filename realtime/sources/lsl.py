"""Receives presentation software's markers from an LSL stream (lab streaming layer).

The stream has one channel of strings. Each sample that is a JSON object is a marker ::

    {"onset_volume": 12, "name": "face-03.png", "triggers": 13}

``onset_volume`` and ``triggers`` are those of :class:`realtime.wire.Marker`; the last may be left out.
``name`` is the file of the picture in a folder on this machine, or only a name where no folder is given.
Other samples, such as "fixation", are passed over.

LSL has no keys. Only this machine, and those that are named, are asked for streams.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from realtime import wire
from realtime.bundle.regular_file import open_regular
from realtime.errors import BundleError, ServeError, WireError
from realtime.sources import Received

MAX_SAMPLE_CHARACTERS = 2_000
_LOOK_S = 1.0
"""How long one look for streams lasts."""
_OPEN_S, _PULL_S, _AGAIN_S = 5.0, 0.25, 0.1
_QUEUED = 1_000

_log = logging.getLogger(__name__)


class Sample(msgspec.Struct, frozen=True):
    """A marker as JSON; other fields are ignored."""

    onset_volume: wire.Count
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    triggers: wire.Count | msgspec.UnsetType = msgspec.UNSET


_sample = msgspec.json.Decoder(Sample)


class LslMarkers:
    """A :class:`realtime.sources.Source` of markers. It follows a stream that is lost and comes back.

    :param stream: its name
    :param pictures: the folder with the pictures; None: markers have names only
    :param peers: IP addresses of other machines that are asked for the stream
    :raises ServeError: when an argument is wrong
    """

    def __init__(self, stream: str, pictures: Path | None = None, peers: Sequence[str] = ()) -> None:
        if not stream:
            raise ServeError("expected the name of a stream after lsl:, such as lsl:PsychoPy, got none")
        if pictures is not None and not pictures.is_dir():
            raise ServeError(f"expected --pictures with a folder, found none at {pictures}")
        self._stream = stream
        self._pictures = pictures
        self._peers = [_address(each) for each in peers]
        self._queue: asyncio.Queue[Received] = asyncio.Queue(_QUEUED)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._said = ""

    async def start(self) -> str:
        """Begin to look for the stream. :raises ServeError: when the library is not installed"""
        self._loop = asyncio.get_running_loop()
        library = await asyncio.to_thread(_library, self._peers)
        self._thread = threading.Thread(target=self._run, args=(library,), name="lsl", daemon=True)
        self._thread.start()
        return f"lsl:{self._stream}"

    async def receive(self) -> Received:
        """Wait for the next marker."""
        return await self._queue.get()

    async def stop(self) -> None:
        """Let go of the stream."""
        self._stopped.set()
        if self._thread:
            await asyncio.to_thread(self._thread.join)

    # In the thread

    def _run(self, library: Any) -> None:
        while not self._stopped.is_set():
            try:
                if stream := self._find(library):
                    self._follow(library, stream)
            except RuntimeError as error:  # what the library raises
                self._say(f"{str(error).rstrip('.')}; it is followed again once it is back")
                self._stopped.wait(_AGAIN_S)
            except Exception as error:  # without this thread, no marker would come, and nobody would know
                self._say(f"following it failed, and is tried again: {error!r}", logging.ERROR)
                self._stopped.wait(_AGAIN_S)

    def _find(self, library: Any) -> Any:
        """The one stream of this name; None while there is none."""
        found = library.resolve_byprop("name", self._stream, 2, timeout=_LOOK_S)
        if len(found) > 1:
            self._say("there are several of this name, and none is followed; close what sends the others")
            return None
        for stream in found:
            if (stream.channel_format(), stream.channel_count()) == (library.cf_string, 1):
                return stream
            self._say("expected one channel of strings, found others; it is not followed")
        return None

    def _follow(self, library: Any, stream: Any) -> None:
        """Take samples until the stream is lost."""
        inlet = library.StreamInlet(stream, max_buflen=_QUEUED // 100, recover=False)
        inlet.open_stream(timeout=_OPEN_S)
        self._say("it is followed", logging.INFO)
        while not self._stopped.is_set():
            try:
                sample, _ = inlet.pull_sample(timeout=_PULL_S)
                if sample:
                    self._take(sample[0], time.perf_counter())
            except (WireError, ValueError) as error:  # the latter also when it is not UTF-8
                _log.warning("passed over a sample of the LSL stream %s: %s", self._stream, error)

    def _take(self, text: str, received_s: float) -> None:
        """:raises WireError, ValueError: when the sample is no marker"""
        message, picture = self._marker(text)
        received = Received(
            message=message, payload=memoryview(picture), received_s=received_s, reply=self._reply
        )
        self._loop.call_soon_threadsafe(self._put, received)

    def _marker(self, text: str) -> tuple[wire.Marker, bytes]:
        """:raises WireError: code ``header``, when the sample is no marker"""
        if len(text) > MAX_SAMPLE_CHARACTERS:
            raise WireError("header", f"expected at most {MAX_SAMPLE_CHARACTERS} characters, got {len(text)}")
        try:
            sample = _sample.decode(text)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
            raise WireError(
                "header",
                f'expected JSON like {{"onset_volume": 12, "name": "a.png"}}, got {text[:60]!r}: {error}',
            ) from error
        if "\0" in sample.name:
            raise WireError("header", f"expected a name without NUL characters, got {sample.name[:60]!r}")
        marker = wire.Marker(
            run_id="presentation",
            onset_volume=sample.onset_volume,
            name=sample.name,
            triggers=sample.triggers,
        )
        return marker, self._picture(sample.name)

    def _picture(self, name: str) -> bytes:
        """The picture of this name; empty where there is none."""
        if self._pictures is None:
            return b""
        if Path(name).name != name:
            _log.warning(
                "expected a picture's name without a folder, got %r; only its name is recorded", name
            )
            return b""
        for file in (self._pictures / name, self._pictures / f"{name}.png"):
            try:
                with open_regular(file, wire.MAX_PICTURE_BYTES) as opened:
                    return opened.read()
            except FileNotFoundError:
                continue
            except (OSError, BundleError) as error:
                _log.warning("cannot read the picture %s, only its name is recorded: %s", file, error)
                return b""
        _log.warning("there is no picture %r in %s; only its name is recorded", name, self._pictures)
        return b""

    def _say(self, text: str, level: int = logging.WARNING) -> None:
        if text != self._said:
            _log.log(level, "the LSL stream %s: %s", self._stream, text)
        self._said = text

    # In the loop

    def _put(self, received: Received) -> None:
        if self._queue.full():
            _log.warning("too many markers at once from the LSL stream %s; one is lost", self._stream)
        else:
            self._queue.put_nowait(received)

    async def _reply(self, message: wire.ToScanner) -> None:
        """Nobody can be answered over LSL, so a refusal is for the operator."""
        if isinstance(message, wire.Refused):
            _log.warning("a marker of the LSL stream %s was refused: %s", self._stream, message.message)


def _library(peers: Sequence[str]) -> Any:
    """Load the library, which looks for streams on this machine and on ``peers`` only."""
    try:
        import pylsl
    except (ImportError, RuntimeError, OSError) as error:  # the package, or the C library that it brings
        raise ServeError(f"markers from lsl: need liblsl: {error}; pip install '.[lsl]'") from error
    known = f"[lab]\nKnownPeers = {{{', '.join(peers)}}}\n" if peers else ""
    pylsl.set_config_content(f"[multicast]\nResolveScope = machine\n{known}[log]\nlevel = -3\n")
    return pylsl


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise ServeError(
            f"expected --allow with IP addresses for markers from lsl:, got {text!r}: LSL asks one machine "
            "after the other"
        ) from error
