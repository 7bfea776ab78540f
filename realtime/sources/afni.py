"""Receives volumes over AFNI's real-time protocol, as Dimon, rtfeedme and AFNI's Python client send them.

The sender connects to the control port, sends the number of its data port and closes. Then it connects to the
data port and sends commands (:mod:`realtime.sources.afni_header`), directly followed by the images. A run
ends when the sender closes the connection or sends an image that begins with :data:`END`. After such an image
the next run's commands may follow on the same connection, at any time: Dimon keeps one for a whole session.

The protocol does not number volumes, so they are counted from 0 in each run. It has no acknowledgements:
volumes in transit when either side dies are lost, and the run cannot continue. The data port is opened at the
address of the control port, whatever host the sender names; this module never connects. Peers on other
machines are heard only if the operator named them, as AFNI_TRUSTHOST does for AFNI.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import AsyncIterator

import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.address import check_address
from realtime.network.hosts import Hosts
from realtime.sources import afni_header
from realtime.sources.afni_header import Header, RefusedRunError
from realtime.sources.files.echoes import t2star_ms, weights
from realtime.sources.orient import to_ras
from realtime.sources.run_boundaries import RunOver, Scan

END = b"Et Earello Endorenna utulien!!"
MAX_CONTROL_BYTES = 512
PATIENCE_S = 30.0
"""Time limit for the control string, the data connection and the commands."""
SILENT_TURN_S = 20.0
"""A sender from which no volume came for this long is disconnected if another wants to send."""
MOST_CONTROL_CONNECTIONS = 16

_log = logging.getLogger(__name__)
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AfniScanner:
    """A control port, and a data port for one sender at a time.

    :param address: such as ``tcp://127.0.0.1:7961``; port 0 chooses a free one
    :param hosts: who may connect; an address that other machines reach needs some of them
    :param echo: the echo to take of several, from 1, or ``combine``; None takes the first
    """

    def __init__(self, address: str, hosts: Hosts | None = None, echo: int | str | None = None) -> None:
        self._hosts = hosts or Hosts()
        self._echo = echo
        self._host, self._port = check_address(address, is_guarded=self._hosts.has_others)
        self._control: asyncio.Server | None = None
        self._data: asyncio.Server | None = None
        self._connections: asyncio.Queue[_Connection] = asyncio.Queue(1)
        self._free = asyncio.Event()
        """Set while no sender has announced its data port or sends."""
        self._free.set()
        self._sender: asyncio.StreamWriter | None = None
        self._heard_s = 0.0
        """When the sender connected, or its last volume was complete."""
        self._n_controls = 0

    async def start(self) -> str:
        """Listen for senders and return the address. :raises ServeError: when the port is in use"""
        self._hosts.tell_of_those_out_of_reach(self._host)
        try:
            self._control = await asyncio.start_server(
                self._on_control, self._host, self._port, limit=MAX_CONTROL_BYTES
            )
        except OSError as error:
            raise ServeError(f"cannot listen on {self._host}:{self._port}: {error.strerror}") from error
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"afni+tcp://{host}:{self._control.sockets[0].getsockname()[1]}"

    async def scans(self) -> AsyncIterator[Scan | RunOver]:
        """Yield the volumes of one connection after the other, those of each run followed by its end."""
        while True:
            reader, writer = await self._connections.get()
            try:
                async for news in self._runs(reader):
                    yield news
            except EOFError:
                _log.info("the sender has closed its connection")
            except (WireError, ConnectionError, TimeoutError) as error:
                _log.warning("closed the sender's connection: %s", error or "it sent no commands in time")
            finally:
                writer.close()
                self._sender = None
                self._free.set()
            yield RunOver()

    async def stop(self) -> None:
        """Stop listening."""
        for server in (self._control, self._data):
            if server:
                server.close()

    async def _on_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_stranger(writer):
            writer.close()
            return
        if self._n_controls >= MOST_CONTROL_CONNECTIONS:
            _log.warning("refused a sender: %d others are connected to the control port", self._n_controls)
            writer.close()
            return
        self._n_controls += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                text = await _until_zero(reader)
            await self._expect_data(data_port(text, is_local=not self._hosts.has_others))
        except (WireError, EOFError, ConnectionError, TimeoutError) as error:
            _log.warning("refused a sender: %s", error or "it did not send its data port in time")
        finally:
            self._n_controls -= 1
            writer.close()

    async def _expect_data(self, port: int) -> None:
        await self._end_silent_turn()
        if not self._free.is_set():
            raise WireError("busy", "expected one sender at a time, got another; close the first")
        self._free.clear()
        try:
            self._data = await asyncio.start_server(
                self._on_data, self._host, port, limit=afni_header.MAX_BYTES
            )
        except OSError as error:
            self._free.set()
            raise WireError("port", f"cannot listen on data port {port}: {error.strerror}") from error
        asyncio.get_running_loop().call_later(PATIENCE_S, self._give_up, self._data)

    async def _end_silent_turn(self) -> None:
        """Disconnect the sender if it has been silent for long, such as one whose machine has died."""
        silent_s = time.monotonic() - self._heard_s
        if self._sender is None or silent_s < SILENT_TURN_S:
            return
        _log.warning("closed a sender's connection for the next one: no volume came for %.0f s", silent_s)
        self._sender.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await self._free.wait()

    def _on_data(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._data is None or self._is_stranger(writer):
            writer.close()
            return
        self._data.close()
        self._data = None
        self._sender, self._heard_s = writer, time.monotonic()
        self._connections.put_nowait((reader, writer))

    def _is_stranger(self, writer: asyncio.StreamWriter) -> bool:
        peer: str = (writer.get_extra_info("peername") or ("0.0.0.0",))[0]  # gone already
        if peer in self._hosts:
            return False
        _log.warning("refused a connection from %s: expected this machine, or one that --allow names", peer)
        return True

    def _give_up(self, server: asyncio.Server) -> None:
        if self._data is server:
            _log.warning("a sender named its data port but did not connect to it in %.0f s", PATIENCE_S)
            server.close()
            self._data = None
            self._free.set()

    async def _runs(self, reader: asyncio.StreamReader) -> AsyncIterator[Scan | RunOver]:
        """Yield the volumes of one run after the other, each run followed by its end.

        :raises EOFError: when the sender has closed the connection
        :raises WireError: when the commands are not valid, so that the size of the images is not known
        """
        async with asyncio.timeout(PATIENCE_S):
            commands = await _until_zero(reader)
        while True:
            verdict = _Verdict()
            try:
                header = afni_header.parse(commands, self._echo)
                self._tell(header)
            except RefusedRunError as error:
                header = error.header
                await verdict.take(wire.Refused(run_id="", code="header", message=str(error)))
            async for scan in self._volumes(reader, header, verdict):
                yield scan
            yield RunOver()
            commands = await _until_zero(reader)  # the operator may take long to start the next run

    def _tell(self, header: Header) -> None:
        """Tell what is taken of a run, where that is not plain."""
        if header.channel is None:
            _log.info("combining echoes at %s ms", header.echo_times_ms)
        elif header.n_channels > 1:
            _log.log(
                logging.WARNING if self._echo is None else logging.INFO,
                "taking echo %d of %d; --echo N chooses another, --echo combine takes all",
                header.channel + 1,
                header.n_channels,
            )
        if header.is_tr_in_ms:
            _log.warning(
                "the sender's TR is taken as %g ms: AFNI's is in seconds, and no run has one of so many. "
                "Have it send seconds, or give --tr",
                1_000 * (header.tr_s or 0.0),
            )

    async def _volumes(
        self, reader: asyncio.StreamReader, header: Header, verdict: _Verdict
    ) -> AsyncIterator[Scan]:
        """Yield the volumes of a run; pass over those of a refused run, so that the next one is heard."""
        combined = _Combined(header)
        index = 0
        while images := await _images(reader, header):
            if verdict.is_against_run:
                continue
            received_s = time.perf_counter()
            self._heard_s = time.monotonic()
            volume = header.volume(images) if header.channel is not None else combined.volume(images)
            voxels, affine = to_ras(volume, header.affine)
            x, y, z = voxels.shape
            yield Scan(
                index=index,
                shape=(x, y, z),
                affine=affine,
                dtype=header.taken,
                payload=memoryview(voxels.tobytes()),
                received_s=received_s,
                answer=verdict.take,
                tr_s=header.tr_s,
            )
            index += 1


class _Combined:
    """Combines the echoes of a run's volumes with the weights of its first one, which knows only the past."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._te_ms = np.array(header.echo_times_ms)
        self._weights: NDArray[np.float32] | None = None

    def volume(self, images: list[bytes]) -> NDArray[np.float32]:
        """Combine the images of a volume to its voxels [nx, ny, nz]."""
        signal = self._header.echoes(images)
        if self._weights is None:
            self._weights = weights(self._te_ms, t2star_ms(signal, self._te_ms))
        found: NDArray[np.float32] = np.einsum("exyz,exyz->xyz", self._weights, signal, dtype=np.float32)
        return found


class _Verdict:
    """Stores whether the run was refused, as the protocol has no answers."""

    def __init__(self) -> None:
        self.is_against_run = False

    async def take(self, message: wire.Ack | wire.Refused) -> None:
        if isinstance(message, wire.Refused) and message.index is None:
            self.is_against_run = True
            _log.warning("the run is passed over up to its end: %s", message.message)


async def _until_zero(reader: asyncio.StreamReader) -> bytes:
    """Read up to a zero byte.

    :raises EOFError: when the sender has closed the connection before it sent any
    :raises WireError: when there is no zero byte, or the text before it is too long
    """
    try:
        return (await reader.readuntil(b"\0"))[:-1]
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise EOFError("it closed its connection before it sent anything") from error
        raise WireError(
            "header", f"expected text terminated by a zero byte, got {error.partial[:80]!r}"
        ) from error
    except asyncio.LimitOverrunError as error:
        raise WireError("header", f"expected a short text terminated by a zero byte: {error}") from error


async def _images(reader: asyncio.StreamReader, header: Header) -> list[bytes]:
    """Read the images of the next volume, or none at the end of the run.

    :raises EOFError: when the sender has closed the connection
    """
    images: list[bytes] = []
    try:
        while len(images) < header.images:
            image = await reader.readexactly(header.image_bytes)
            if image.startswith(END):
                break
            images.append(image)
        else:
            return images
    except asyncio.IncompleteReadError as error:
        _tell_incomplete(header, len(images) * header.image_bytes + len(error.partial))
        raise
    _tell_incomplete(header, len(images) * header.image_bytes)
    return []


def _tell_incomplete(header: Header, n_bytes: int) -> None:
    if n_bytes:
        n_expected = header.images * header.image_bytes
        _log.warning("the run ended within a volume: %d of its %d bytes came", n_bytes, n_expected)


def data_port(control: bytes, *, is_local: bool = True) -> int:
    """Parse the data port from a control string.

    :param is_local: whether only this machine can connect; otherwise the sender may name this one as it likes
    :raises WireError: code ``control``, when it does not name a port on this machine
    """
    kind, _, rest = control.decode("ascii", "replace").partition("\n")[0].strip().partition(":")
    host, _, port = rest.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 1_024 <= int(port) <= 65_535
    if kind != "tcp" or not is_port or (is_local and not _is_this_machine(host)):
        raise WireError(
            "control",
            "expected tcp:localhost:PORT with a port from 1024 to 65535, "
            f"got {control[:80]!r}; if the sender runs elsewhere, name its machine with --allow, or forward "
            "both ports through an SSH tunnel",
        )
    return int(port)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
