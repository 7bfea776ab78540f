"""Receives volumes as DICOM objects that a scanner or a PACS node stores here (C-STORE).

An object is parsed as a file would be, and series are followed as in a folder. Each is answered once its
volume is in the journal; a slice, or an object of a series that waits, once it is kept. Objects that wait lie
in a temporary file without a name. What was kept and is in no volume yet is lost if the process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import ssl
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.address import check_address
from realtime.network.hosts import Hosts
from realtime.sources.dicom_port import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS, StorePort
from realtime.sources.files import dicom
from realtime.sources.files.dicom_pixels import SYNTAXES
from realtime.sources.files.folder import SeriesScanner
from realtime.sources.files.formats import parse
from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import VolumeFile
from realtime.sources.files.watch import Found
from realtime.sources.run_boundaries import Plan, Scan

MOST_KEPT_BYTES = 4 * 2**30
"""Of objects on the disk: several runs of a series that waits."""
FIRST_NUMBER = 1
"""Of the first volume of a series, unless the operator or the series says otherwise."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NodeAddress:
    """Where the node listens, such as ``dicom://127.0.0.1:11112?aet=REALTIME&from=MR1``."""

    host: str
    port: int
    title: str | None
    """The application entity title that senders must call; None lets them call any."""
    senders: tuple[str, ...] = ()
    """The titles that senders may have; none of them lets them have any."""

    @classmethod
    def parse(cls, address: str, *, is_guarded: bool) -> NodeAddress:
        """Parse an address.

        :param is_guarded: whether peers on other machines are named, and what they send is encrypted
        :raises ServeError: when it is malformed, or when others could reach it and it is not guarded
        """
        parts = urlsplit(address)
        options = parse_qs(parts.query, keep_blank_values=True)
        titles, senders = options.pop("aet", []), options.pop("from", [])
        are_titles = all(map(_is_title, titles + senders))
        if parts.scheme != "dicom" or options or len(titles) > 1 or not are_titles:
            raise ServeError(
                "expected an address like dicom://127.0.0.1:11112?aet=NAME&from=SCANNER, with application "
                f"entity titles of at most 16 characters, one for aet, any number for from, got {address!r}"
            )
        host, port = check_address(f"tcp://{parts.netloc}{parts.path}", is_guarded=True)
        if host not in Hosts() and not is_guarded:
            raise ServeError(
                f"expected --allow, --source-tls-cert and --source-tls-key with {address}, which other "
                "machines can reach; give them, or forward a port of 127.0.0.1 through an SSH tunnel"
            )
        return cls(host=host, port=port, title=titles[0] if titles else None, senders=tuple(senders))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        titles = [("aet", self.title)] if self.title else []
        query = urlencode(titles + [("from", each) for each in self.senders], quote_via=quote)
        return f"dicom://{host}:{self.port}" + (f"?{query}" if query else "")


def _is_title(text: str) -> bool:
    return 1 <= len(text.strip()) <= 16 and text.isascii() and text.isprintable() and "\\" not in text


class Outcome:
    """What becomes of an object: one answer for all images that it holds."""

    def __init__(self, n_images: int) -> None:
        self.n_open = n_images
        """How many of its images are neither kept nor recorded nor refused."""
        self._failure: tuple[int, str] | None = None
        self.said: Future[tuple[int, str]] = Future()
        """Status and comment."""

    def settle(self, status: int = SUCCESS, comment: str = "") -> None:
        """One image was kept or recorded, or refused with a status that says so."""
        self.n_open -= 1
        if status != SUCCESS:
            self._failure = self._failure or (status, comment)
        if self.n_open == 0 and not self.said.done():
            self.said.set_result(self._failure or (SUCCESS, ""))

    def give_up(self) -> None:
        """Nobody will settle it any more."""
        if not self.said.done():
            self.said.set_result((OUT_OF_RESOURCES, "the runtime stops"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived(Found):
    """An image that has come just now."""

    data: bytes
    """The object that holds it."""
    outcome: Outcome


class Arrivals:
    """Objects that have come, and those that are kept until their series is followed.

    :param wake: called, in any thread, when one has come
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._new: deque[Found] = deque()
        self._kept: dict[str, tuple[int, int]] = {}
        """Where they are in the file: offset and number of bytes."""
        self._to_tell: dict[str, None] = {}
        """Names of those that are reported again once the others are forgotten."""
        self._again: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Those to be reported again, and where they are in the file of before."""
        self._rest: deque[Found] = deque()
        """What the last of these holds besides what was reported."""
        self._file = tempfile.TemporaryFile(buffering=0)
        self._file_before = tempfile.TemporaryFile(buffering=0)

    @property
    def is_settling(self) -> bool:
        """Objects are complete when they come."""
        return False

    @property
    def is_held_up(self) -> bool:
        """They are reported in the order in which they come."""
        return False

    def add(self, name: str, data: bytes, holds: Sequence[VolumeFile | SliceFile], outcome: Outcome) -> None:
        """Add an object that has come; called in the thread of its association."""
        now_s = time.perf_counter()
        for each in holds:
            self._new.append(
                Arrived(
                    name=name, holds=each, whole_s=now_s, was_there_before=False, outcome=outcome, data=data
                )
            )
        self._wake()

    def look(self, now_s: float) -> Iterator[Found]:
        """Yield what is to be reported again, so that its series is followed, and then what has come."""
        while self._again or self._rest:
            if not self._rest:
                self._rest.extend(self._next_kept(now_s))
            while self._rest:  # the caller may stop between two images of an object
                yield self._rest.popleft()
        while self._new:
            yield self._new.popleft()

    def _next_kept(self, now_s: float) -> list[Found]:
        """Read what the next kept object holds."""
        name, (offset, n_bytes) = self._again.popitem(last=False)
        try:
            self._file_before.seek(offset)
            held = parse("kept.dcm", self._file_before.read(n_bytes))
            if not self._again:
                self._file_before.truncate(0)
        except (OSError, WireError) as error:
            _log.error("%r was kept and cannot be read again; its volume is missing: %s", name, error)
            return []
        return [Found(name=name, holds=each, whole_s=now_s, was_there_before=False) for each in held]

    def again(self, name: str) -> None:
        """Report a kept object again, once the others are forgotten."""
        if name in self._kept:
            self._to_tell.setdefault(name)

    def keep(self, name: str, data: bytes) -> None:
        """Keep an object until it is forgotten; one that is sent again is kept once.

        :raises OSError: when there is no room
        """
        if name in self._kept:
            return
        if self.n_kept_bytes + len(data) > MOST_KEPT_BYTES:
            raise OSError(errno.ENOSPC, f"expected at most {MOST_KEPT_BYTES} bytes of objects that wait")
        offset = self._file.seek(0, os.SEEK_END)
        n_written = self._file.write(data)
        if n_written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._kept[name] = offset, len(data)

    def forget_kept(self) -> None:
        """Forget the objects that are kept, except those that are to be reported again."""
        if self._again:
            _log.warning("%d kept objects of a series whose run is over are not read again", len(self._again))
        self._again = OrderedDict((name, self._kept[name]) for name in self._to_tell)
        self._to_tell.clear()
        self._kept.clear()
        self._rest.clear()
        self._file, self._file_before = self._file_before, self._file
        self._file.truncate(0)
        if not self._again:
            self._file_before.truncate(0)

    @property
    def n_kept_bytes(self) -> int:
        """How much of the disk is used."""
        return sum(os.fstat(each.fileno()).st_size for each in (self._file, self._file_before))

    def close(self) -> None:
        """Forget everything."""
        self._file.close()
        self._file_before.close()


class DicomNode(SeriesScanner):
    """A node that scanners send to.

    :param hosts: who may connect; an address that other machines reach needs some of them, and ``tls``
    :param options: those of :class:`SeriesScanner`
    :raises ServeError: when the address is malformed or not allowed
    """

    def __init__(
        self, address: str, plan: Plan, *, hosts: Hosts, tls: ssl.SSLContext | None, **options: Any
    ) -> None:
        self._address = NodeAddress.parse(address, is_guarded=hosts.has_others and tls is not None)
        self._hosts = hosts
        self._tls = tls
        self._arrivals = Arrivals(self._wake_up)
        self._port: StorePort | None = None
        self._lock = threading.Lock()
        self._open: set[Outcome] = set()
        """Of objects that wait for their answer."""
        self._is_stopped = False
        self._first_number: int | None = options["first_number"]
        super().__init__(self._arrivals, plan, **options)

    async def start(self) -> str:
        """Listen for scanners and return the address. :raises ServeError: when the port is in use"""
        self._hosts.tell_of_those_out_of_reach(self._address.host)
        self._loop = asyncio.get_running_loop()
        self._port = StorePort(
            self._address.host,
            self._address.port,
            title=self._address.title,
            senders=self._address.senders,
            hosts=self._hosts,
            tls=self._tls,
            classes=dict.fromkeys(dicom.IMAGES, [str(each) for each in SYNTAXES if each]),
            store=self._store,
        )
        self._address = replace(self._address, port=self._port.port)
        return str(self._address)

    async def stop(self) -> None:
        """Stop listening; objects without an answer are refused."""
        with self._lock:
            self._is_stopped = True
            for outcome in self._open:
                outcome.give_up()
        if self._port:
            await asyncio.to_thread(self._port.close)
        self._arrivals.close()

    def _wake_up(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            self._loop.call_soon_threadsafe(self._wake.set)

    def _store(self, name: str, data: bytes) -> tuple[int, str]:
        """Take an object and return its status, once it is recorded or kept.

        Called in the thread of its association, which waits.
        """
        try:
            images = parse("object.dcm", data)
        except WireError as error:
            _log.warning("refused object %s: %s", name, error)
            return CANNOT_UNDERSTAND, str(error)
        if not images:
            return CANNOT_UNDERSTAND, "expected an image"
        outcome = Outcome(len(images))
        with self._lock:
            if self._is_stopped:
                return OUT_OF_RESOURCES, "the runtime stops"
            self._open.add(outcome)
        self._arrivals.add(name, data, images, outcome)
        status, comment = outcome.said.result()
        with self._lock:
            self._open.discard(outcome)
        return status, comment

    def _follow(self, series: str, **known: Any) -> Any:
        if series == self._unfinished and self._first_number is None:
            known["first_number"] = FIRST_NUMBER
            _log.warning(
                "series %s goes on after a restart, and what came before is not here: volumes are counted "
                "from number %d. If the run began with another number, start again with --first-number",
                series,
                FIRST_NUMBER,
            )
        return super()._follow(series, **known)

    def _scans(self, found: Found) -> list[Scan]:
        scans = super()._scans(found)
        if not isinstance(found, Arrived):
            return scans
        if not scans:  # it is a slice, or its series waits or is passed over
            found.outcome.settle(*self._keep(found))
        found.outcome.n_open += max(len(scans) - 1, 0)
        return [replace(scan, answer=partial(_answer, scan.answer, found.outcome)) for scan in scans]

    def _keep(self, found: Arrived) -> tuple[int, str]:
        """Keep an object whose series waits, and return its status."""
        waiting = self._others.get(found.holds.series)
        if waiting is None or found.name not in waiting.names:
            return SUCCESS, ""
        try:
            self._arrivals.keep(found.name, found.data)
        except OSError as error:
            _log.error(
                "refused object %s: it cannot be kept until its series is followed: %s", found.name, error
            )
            return OUT_OF_RESOURCES, "no room to keep it"
        return SUCCESS, ""

    def _let_go(self) -> None:
        super()._let_go()
        self._arrivals.forget_kept()


async def _answer(
    answer: Callable[[wire.Ack | wire.Refused], Awaitable[None]],
    outcome: Outcome,
    message: wire.Ack | wire.Refused,
) -> None:
    await answer(message)
    if isinstance(message, wire.Refused):
        outcome.settle(CANNOT_UNDERSTAND, message.message)
    else:
        outcome.settle()
