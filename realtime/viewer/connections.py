"""The page's TCP connections: how many there are, how long they may take, and which one makes room.

Whoever can reach the port can open connections. Those that have not brought the token yet are few, and short.
When there is no room, the address with the most connections loses its oldest idle one, so that a new page
always finds a place, however many connections another machine holds open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Iterator

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler

from realtime.viewer.guard import security_headers

MAX_UNKNOWN = 128
"""Connections at a time that have not brought the token."""
MAX_UNKNOWN_AT_ADDRESS = 64
MAX_KNOWN = 128
"""Connections at a time that have; a browser opens six for a page, and one for a WebSocket."""
MAX_KNOWN_AT_ADDRESS = 96
"""Many, because all pages that come through a tunnel or a proxy have one address."""
UNKNOWN_S = 10.0
"""For the TLS handshake and a whole request with the token, together."""
IDLE_S = 30.0
"""Between an answer and the end of the next request's header."""
STALL_S = 30.0
"""For the reader of a long answer to take some of it."""
LINGER_S = 1.0
"""For the rest of a request's body that nobody reads."""

# At most 400 connections a second: one of 64 then stays for 0.16 s while others push it out, which is enough
# for a handshake and a request. Those that nobody has accepted yet wait in a queue of 128.
_AT_ONCE = 4
_PAUSE_S = 0.01
_QUEUE = 128
_RETRY_S = 0.1
_QUIET_S = 60.0
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One connection, from its acceptance to its end."""

    def __init__(self, connections: Connections, address: str) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            connections.server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # annotated without the None that it takes
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )
        self.network = _network(address)
        self.is_known = False
        """Whether a request on this connection has brought the token."""
        self.is_busy = False
        """Whether such a request is being answered."""
        self.opening: asyncio.Task[object] | None = None
        self._connections = connections
        self._transport: asyncio.WriteTransport | None = None
        self._limit = loop.call_later(UNKNOWN_S, self.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See :class:`asyncio.Protocol`."""
        super().connection_lost(exc)
        self._connections.forget(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """To what is no request, and where the peer has gone: no word about this server, no traceback."""
        is_gone = self.transport is None or isinstance(exc, ConnectionError)
        if not is_gone and not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        headers = security_headers(request) | {"Server": "realtime"}  # aiohttp adds its version otherwise
        answer = web.Response(status=status, headers=headers, text="this is no HTTP request\n")
        answer.force_close()
        return answer

    def pause_writing(self) -> None:
        """The peer reads more slowly than it is sent to: give it some time, not for ever."""
        super().pause_writing()
        if self.is_known:
            self.set_limit(STALL_S)

    def resume_writing(self) -> None:
        """The peer has read."""
        super().resume_writing()
        if self.is_known:
            self._limit.cancel()

    def set_limit(self, seconds: float) -> None:
        """Abort the connection after this time unless another limit is set."""
        self._limit.cancel()
        self._limit = asyncio.get_running_loop().call_later(seconds, self.abort)

    def abort(self) -> None:
        """Free its descriptor at once, in whatever state it is."""
        self.end_limit()
        if self._transport is not None:
            self._transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def end_limit(self) -> None:
        """Abort it no longer."""
        self._limit.cancel()

    async def turn(self) -> None:
        """Wait until it is this connection's turn to have a request answered."""
        async with self._connections.turn:
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While a request with the token is answered."""
        if not self.is_known and self.transport is not None:  # it may have ended since the request came
            self._connections.know(self)
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False


@web.middleware
async def keep_known(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a connection stay on which a request passed the guard, whose place is before this one.

    Requests begin one at a time, in the order in which they came: new connections, and the pages' video, wait
    for one request, not for all that a flood has brought.
    """
    connection = request.protocol
    assert isinstance(connection, Connection)
    with connection.in_use():
        await connection.turn()
        return await handler(request)


class Connections:
    """Accepts connections, and holds the limits above."""

    def __init__(self, server: web.Server, tls: ssl.SSLContext | None) -> None:
        self.server = server
        self.turn = asyncio.Lock()
        self._tls = tls
        self._unknown = _Pool(MAX_UNKNOWN, MAX_UNKNOWN_AT_ADDRESS)
        self._known = _Pool(MAX_KNOWN, MAX_KNOWN_AT_ADDRESS)
        self._told_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._unknown) + len(self._known)

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(_AT_ONCE):
                try:
                    accepted, peer = await loop.sock_accept(listener)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        self._tell(f"cannot accept a connection to the page: {error.strerror}")
                        await asyncio.sleep(_RETRY_S)
                    break  # any other: the peer has gone already
                self._open(accepted, peer[0])
            await asyncio.sleep(_PAUSE_S)

    def close(self) -> None:
        """End the connections whose handshake is not over; the server closes the others."""
        for connection in [*self._unknown, *self._known]:
            connection.end_limit()
            if connection.opening is not None:
                connection.opening.cancel()

    def know(self, connection: Connection) -> None:
        """It has brought the token."""
        self._unknown.discard(connection)
        connection.end_limit()
        connection.is_known = connection.is_busy = True
        self._add(self._known, connection)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        connection.end_limit()
        self._unknown.discard(connection)
        self._known.discard(connection)

    def _add(self, pool: _Pool, connection: Connection) -> None:
        spare = pool.add(connection)
        if spare is not None:
            kind = "pages" if spare.is_known else "connections without the token"
            self._tell(f"the oldest of too many {kind} were closed to make room for new ones")
            self.forget(spare)
            spare.abort()

    def _open(self, accepted: socket.socket, address: str) -> None:
        connection = Connection(self, address)
        self._add(self._unknown, connection)

        def opened(opening: asyncio.Task[object]) -> None:
            connection.opening = None
            if opening.cancelled() or opening.exception() is not None:  # no TLS, too late, made room
                accepted.close()
                self.forget(connection)

        connection.opening = asyncio.create_task(self._start(connection, accepted))
        connection.opening.add_done_callback(opened)

    async def _start(self, connection: Connection, accepted: socket.socket) -> object:
        limits = {"ssl_handshake_timeout": UNKNOWN_S, "ssl_shutdown_timeout": LINGER_S} if self._tls else {}
        return await asyncio.get_running_loop().connect_accepted_socket(
            lambda: connection, accepted, ssl=self._tls, **limits
        )

    def _tell(self, cause: str) -> None:
        """Log one line a minute, however often it happens."""
        now_s = time.monotonic()
        if now_s - self._told_s.get(cause, -_QUIET_S) >= _QUIET_S:
            self._told_s[cause] = now_s
            _log.warning("%s", cause)


class _Pool:
    """Connections of one kind by the network that they come from, each network's oldest first."""

    def __init__(self, most: int, most_at_address: int) -> None:
        self._most = most
        self._most_at_address = most_at_address
        self._by_network: dict[bytes, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_network.values()))

    def __iter__(self) -> Iterator[Connection]:
        for fellows in self._by_network.values():
            yield from fellows

    def add(self, connection: Connection) -> Connection | None:
        """Take one in; returns the one that must go, if they are too many now."""
        fellows = self._by_network.setdefault(connection.network, {})
        fellows[connection] = None
        if len(self) > self._most:
            fellows = max(self._by_network.values(), key=len)
        elif len(fellows) <= self._most_at_address:
            return None
        return next((each for each in fellows if not each.is_busy), next(iter(fellows)))

    def discard(self, connection: Connection) -> None:
        fellows = self._by_network.get(connection.network, {})
        fellows.pop(connection, None)
        if not fellows:
            self._by_network.pop(connection.network, None)


def _network(address: str) -> bytes:
    """An IPv4 address, or the first 64 bits of an IPv6 address: one machine can use all of the rest."""
    packed = ipaddress.ip_address(address).packed
    return packed if len(packed) == 4 else packed[:8]


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens at an IP address.

    :raises OSError: when it cannot be opened
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=_QUEUE)
    listener.setblocking(False)
    return listener
