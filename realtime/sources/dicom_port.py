"""A port where scanners and PACS nodes store DICOM objects (C-STORE), by pynetdicom, within limits.

pynetdicom speaks the protocol, each association in a thread of its own. What it does not limit is limited
here: who may connect, how many do, how long a silent one stays, and how much one sends before it is heard.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import ssl
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynetdicom._config
from pydicom import Dataset
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from realtime.errors import ServeError
from realtime.network.hosts import Hosts

SUCCESS = 0x0000
NOT_SUPPORTED = 0x0122
"""The SOP class is refused."""
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000

MOST_OBJECT_BYTES = 64 * 2**20
"""A volume of 256 x 256 x 256 voxels of 4 bytes."""
MOST_BYTES = 4 * MOST_OBJECT_BYTES
"""Of the objects of all connections that are not complete yet."""
MOST_WAITING_BYTES = MOST_BYTES
"""Of the complete objects of all connections that wait for their answers."""
MOST_CONNECTIONS = 32
SILENT_TURN_S = 10.0
"""If there are too many, one gives way that was silent for so long, or that has stored nothing yet."""
FLOOD_TOLD_AGAIN_S = 60.0
PATIENCE_S = 5.0
"""Time for the TLS handshake and for the request of an association."""
STUCK_S = 30.0
"""A peer that begins a message and does not go on for so long is let go."""

_PDU_BYTES = 2**17
_MOST_PDU_BYTES = 2**20
"""Also of a request for an association, which may be longer than what is announced for objects."""
_MOST_WAITING = 2
"""Messages of an association that wait; without an agreement a sender waits for each answer."""

_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux only."""

_log = logging.getLogger(__name__)
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it logs what peers do wrong, with tracebacks
pynetdicom._config.LOG_HANDLER_LEVEL = "none"

Store = Callable[[str, bytes], tuple[int, str]]
"""Takes the UID of an object and its bytes as a file, and returns status and comment; called in threads."""


class StorePort:
    """Listens until it is closed.

    :param title: the application entity title that senders must call; None lets them call any
    :param senders: the titles that senders may have; none of them lets them have any
    :param classes: SOP classes that are stored, with the transfer syntaxes in which they are taken
    :raises ServeError: when it cannot listen
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        title: str | None,
        senders: Sequence[str],
        hosts: Hosts,
        tls: ssl.SSLContext | None,
        classes: dict[str, list[str]],
        store: Store,
    ) -> None:
        self._classes = classes
        self._store = store
        entity = AE(title or "REALTIME")
        entity.require_called_aet = title is not None
        entity.require_calling_aet = list(senders)
        entity.maximum_pdu_size = _PDU_BYTES
        entity.maximum_associations = sys.maxsize  # the server limits connections
        entity.acse_timeout = PATIENCE_S
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            # Classes that are not stored are negotiated too, so that their sender gets a status.
            syntaxes = classes.get(str(context.abstract_syntax), DEFAULT_TRANSFER_SYNTAXES)
            entity.add_supported_context(str(context.abstract_syntax), syntaxes)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_REJECTED, self._on_rejected),
        ]
        try:
            self._server: Any = entity.make_server(
                (host, port),
                contexts=_Contexts(entity.supported_contexts),
                evt_handlers=handlers,
                server_class=_Server,
                hosts=hosts,
                tls=tls,
            )
        except OSError as error:
            raise ServeError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="dicom-port")
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and end all associations."""
        socketserver.BaseServer.shutdown(self._server)
        self._server.server_close()
        self._server.end_all()

    def _on_store(self, event: Any) -> Dataset | int:
        with self._server.peers[event.assoc].answering():
            return self._answer(event)

    def _answer(self, event: Any) -> Dataset | int:
        sop_class = event.request.AffectedSOPClassUID
        if sop_class not in self._classes:
            name = sop_class.name if sop_class else "none"
            told = self._server.peers[event.assoc].told
            if name not in told:
                _log.warning(
                    "refused objects of class %s from %s: expected MR images, and send only these",
                    name,
                    _peer(event),
                )
            told.add(name)
            return _status(NOT_SUPPORTED, "expected MR images")
        if self._server.n_waiting_bytes > MOST_WAITING_BYTES:
            _log.warning(
                "refused an object from %s: objects of %d bytes wait for the runtime, and more would fill "
                "the memory; have it sent again",
                _peer(event),
                MOST_WAITING_BYTES,
            )
            return _status(OUT_OF_RESOURCES, "too many objects wait, send it again")
        status, comment = self._store(str(event.request.AffectedSOPInstanceUID), event.encoded_dataset())
        self._server.peers[event.assoc].has_stored |= status == SUCCESS
        return _status(status, comment)

    def _on_established(self, event: Any) -> None:
        self._server.peers[event.assoc].is_established = True
        for context in event.assoc.rejected_contexts:
            _log.warning(
                "refused %s in %s from %s: expected MR images, not compressed or without loss",
                context.abstract_syntax.name,
                " or ".join(each.name for each in context.transfer_syntax),
                _peer(event),
            )

    def _on_rejected(self, event: Any) -> None:
        called, entity = event.assoc.requestor.primitive.called_ae_title, event.assoc.ae
        senders = entity.require_calling_aet
        _log.warning(
            "refused an association of %s, which calls %r: expected %r%s",
            _peer(event),
            called,
            entity.ae_title,
            f", called by {' or '.join(senders)}" if senders else "",
        )


class _Contexts(list[PresentationContext]):
    """What is negotiated. pynetdicom would copy all of it for every connection, and changes none of it."""

    def __deepcopy__(self, _: dict[int, Any]) -> list[PresentationContext]:
        return list(self)


@dataclass(eq=False)
class _Peer:
    """What one connection does."""

    connection: socket.socket
    address: str
    heard_s: float = field(default_factory=time.monotonic)
    n_bytes: int = 0
    """Of the message that is not complete yet."""
    waiting: deque[int] = field(default_factory=deque)
    """Bytes of the complete objects, each until it is answered."""
    association: Callable[[], Any] = lambda: None
    """The thread that has them, as a weak reference."""
    is_established: bool = False
    has_stored: bool = False
    told: set[str] = field(default_factory=set)
    """SOP classes whose refusal was logged."""
    is_cut: bool = False

    def cut(self, expected: str) -> None:
        """Close the connection. :raises OSError: always, as for any connection that ends"""
        if not self.is_cut:
            _log.warning("closed the connection from %s: expected %s", self.address, expected)
        self.is_cut = True
        self.n_bytes = 0
        _end(self.connection)
        raise OSError(f"expected {expected}")

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Count the object that is being answered until it is."""
        try:
            yield
        finally:
            self.waiting.popleft()

    @property
    def n_waiting_bytes(self) -> int:
        """Of its complete objects that have no answer; its thread has them, also after the connection."""
        thread = self.association()
        return sum(self.waiting.copy()) if thread is not None and thread.is_alive() else 0

    def may_give_way(self) -> bool:
        """Whether it may be ended for another one."""
        return not self.has_stored or time.monotonic() - self.heard_s > SILENT_TURN_S


class _Handler(RequestHandler):
    """Limits what the peer of one connection can send."""

    server: _Server

    def _create_association(self) -> Any:
        made: Any = super()._create_association()
        made.dul.daemon = True
        gone = _Peer(self.request, "a connection that gave way already")
        peer = self.server.peers[made] = self.server.connected.get(self.request, gone)
        self.server.remember(peer, made)
        read = made.dul.socket.recv

        def receive(n_bytes: int) -> bytearray:
            if n_bytes > _MOST_PDU_BYTES or peer.n_bytes + n_bytes > MOST_OBJECT_BYTES:
                peer.cut(f"an object of at most {MOST_OBJECT_BYTES} bytes")
            peer.n_bytes += n_bytes  # not before: what is only announced would have other senders cut
            if self.server.n_bytes > MOST_BYTES:
                peer.cut(f"at most {MOST_BYTES} bytes of all senders")
            if made.dimse.msg_queue.qsize() > _MOST_WAITING:
                peer.cut("a sender that waits for answers")
            if peer.n_waiting_bytes and self.server.n_waiting_bytes > MOST_WAITING_BYTES:
                peer.cut(f"a sender that waits for answers, as objects of {MOST_WAITING_BYTES} bytes do")
            peer.heard_s = time.monotonic()
            if _QUICK_ACK:  # a sender that collects small packets would wait 40 ms for each object
                peer.connection.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
            received: bytearray = read(n_bytes)
            if not received:
                peer.n_bytes = 0
            if not received and not peer.is_established:
                made.dul.to_user_queue.put(None)  # so that its thread waits no longer for a request
            return received

        def is_complete(event: Any) -> None:
            if isinstance(event.message, C_STORE_RQ):
                peer.waiting.append(peer.n_bytes)
            peer.n_bytes = 0

        made.dul.socket.recv = receive
        made.bind(evt.EVT_DIMSE_RECV, is_complete)
        return made


class _Server(ThreadedAssociationServer):
    """Accepts connections, of some machines, and not too many."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, *arguments: Any, hosts: Hosts, tls: ssl.SSLContext | None, evt_handlers: list[Any]
    ) -> None:
        self._hosts = hosts
        self._tls = tls
        self._lock = threading.Lock()
        self._told_s = float("-inf")
        """When a flood was told."""
        self.connected: dict[socket.socket, _Peer] = {}
        """Connections in the order in which they came."""
        self.peers: weakref.WeakKeyDictionary[Any, _Peer] = weakref.WeakKeyDictionary()
        """The same by their associations."""
        self._all_peers: weakref.WeakSet[_Peer] = weakref.WeakSet()
        """Also those whose connection has ended."""
        super().__init__(*arguments, evt_handlers, _Handler)  # type: ignore[call-arg]

    def get_request(self) -> tuple[socket.socket, Any]:
        assert self.socket, "it listens"
        connection, address = self.socket.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(PATIENCE_S)
        if self._tls:  # the handshake is done by the connection's thread, so that nobody waits for it
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if client_address[0] not in self._hosts:
            _log.warning(
                "refused a connection from %s: expected this machine, or one that --allow names",
                client_address[0],
            )
            return False
        with self._lock:
            self.connected = {each: peer for each, peer in self.connected.items() if each.fileno() != -1}
            if len(self.connected) >= MOST_CONNECTIONS and not self._make_room():
                _log.warning(
                    "refused a connection from %s: %d others send", client_address[0], MOST_CONNECTIONS
                )
                return False
            self.connected[request] = _Peer(request, client_address[0])
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls:
            request.do_handshake()
        request.settimeout(STUCK_S)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.warning("closed a connection from %s: %s", client_address[0], sys.exception())

    @property
    def n_bytes(self) -> int:
        """Bytes of all objects that are not complete yet."""
        return sum(peer.n_bytes for peer in list(self.connected.values()))

    @property
    def n_waiting_bytes(self) -> int:
        """Bytes of all complete objects that have no answer yet, also of connections that have ended."""
        with self._lock:
            peers = list(self._all_peers)
        return sum(peer.n_waiting_bytes for peer in peers)

    def remember(self, peer: _Peer, association: Any) -> None:
        """Count what a peer sends, for as long as its thread lives."""
        peer.association = weakref.ref(association)
        with self._lock:
            self._all_peers.add(peer)

    def end_all(self) -> None:
        """End all connections."""
        for connection in self.connected:
            _end(connection)

    def _make_room(self) -> bool:
        """End the longest silent connection of those that stored nothing, or one that was silent for long."""
        silent = min(self.connected.values(), key=lambda peer: (peer.has_stored, peer.heard_s))
        if not silent.may_give_way():
            return False
        if silent.has_stored:
            _log.warning("closed the silent connection from %s for another one", silent.address)
        elif time.monotonic() - self._told_s > FLOOD_TOLD_AGAIN_S:
            self._told_s = time.monotonic()
            _log.warning(
                "more than %d connections at the same time: those that have stored nothing give way, "
                "the first of them from %s; look what connects to this port",
                MOST_CONNECTIONS,
                silent.address,
            )
        del self.connected[silent.connection]
        _end(silent.connection)
        return True


def _end(connection: socket.socket) -> None:
    """End a connection; the thread that reads it notices and closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _peer(event: Any) -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title!r} at {requestor.address}"


def _status(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status = code
    if comment:
        status.ErrorComment = comment[:64]
    return status
