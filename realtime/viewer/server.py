"""The page's server: static files, pictures of the run, WebRTC signalling, the WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import struct
from pathlib import Path
from typing import TypeVar

from aiohttp import WSCloseCode, WSMsgType, web

from realtime.errors import ServeError
from realtime.events import Broadcast, Event
from realtime.viewer.access import LOOPBACK, Access
from realtime.viewer.connections import Connections, keep_known, listen
from realtime.viewer.feed import Feed, newest_frame, run_key
from realtime.viewer.guard import add_headers, guard
from realtime.viewer.live import LivePicture
from realtime.viewer.offer import MAX_OFFER_BYTES, OfferError, check_offer, read_offer
from realtime.viewer.pace import Pace
from realtime.viewer.peer import Peer
from realtime.viewer.pictures import encode_png
from realtime.viewer.prometheus import CONTENT_TYPE, Metrics

MAX_PAGES = 8
"""Pages at a time, for each of WebRTC and WebSocket."""
BODY_S = 10.0
"""For an offer to come in whole."""
MAX_TRIES = 16
"""Offers, and WebSockets, that an address may ask for in one go; then one a second."""
ENCODED_AT_ONCE = 2
"""Pictures that are encoded at a time for requests: the live ones, and files, need threads too."""

K = TypeVar("K", int, tuple[int, str])

_STATIC = Path(__file__).parent / "static"
_PICTURE_HEADER = struct.Struct(">I")


class Viewer:
    """Shows a broadcast in the browser; runs in the event loop of the broadcast."""

    def __init__(
        self,
        broadcast: Broadcast,
        port: int,
        access: Access | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Port 0 takes any free one; by default the page is on loopback."""
        self._broadcast = broadcast
        self._metrics = metrics
        self._port = port
        self._access = access or Access(address=LOOPBACK)
        self._session = secrets.token_hex(8)
        self._live = LivePicture()
        self._stack = contextlib.AsyncExitStack()
        self._peers: set[Peer] = set()
        self._sockets: set[web.WebSocketResponse] = set()
        self._offers, self._openings = Pace(MAX_TRIES), Pace(MAX_TRIES)
        self._encoding = asyncio.Semaphore(ENCODED_AT_ONCE)

    async def start(self) -> str:
        """Serve, and return the page's URL with the token.

        :raises ServeError: when the port cannot be opened
        """
        access = self._access
        try:
            listener = listen(access.address, self._port)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            reason = "is in use" if in_use else f"cannot be opened ({error.strerror})"
            raise ServeError(
                f"port {self._port} on {access.address} {reason}: choose another with --port, or 0 for any "
                "free one"
            ) from error
        self._stack.callback(listener.close)
        runner = web.AppRunner(self._app(), handle_signals=False, shutdown_timeout=1.0)
        self._stack.push_async_callback(runner.cleanup)
        await runner.setup()
        assert runner.server is not None
        connections = Connections(runner.server, access.tls)
        self._stack.callback(connections.close)
        for work in (connections.accept(listener), self._live.follow(self._broadcast)):
            self._stack.callback(asyncio.create_task(work).cancel)
        return access.url(listener.getsockname()[1])

    async def stop(self) -> None:
        """Close every connection and free the port; may be called at any time, and more than once."""
        sockets = [socket.close(code=WSCloseCode.GOING_AWAY) for socket in self._sockets]
        await asyncio.gather(*sockets, *(peer.close() for peer in self._peers), return_exceptions=True)
        await self._stack.aclose()

    def _app(self) -> web.Application:
        checks = [guard(self._access), keep_known]
        app = web.Application(middlewares=checks, client_max_size=MAX_OFFER_BYTES)
        app.on_response_prepare.append(add_headers)
        app.add_routes(
            [
                web.get("/", _index),
                web.get(r"/frames/{volume:\d{1,6}}.png", self._frame),
                web.get(r"/frames/{volume:\d{1,6}}_{decoder:[A-Za-z0-9._-]{1,128}}.png", self._frame),
                web.get(r"/shown/{onset:\d{1,6}}.png", self._shown),
                web.get("/ws", self._websocket),
                web.post("/offer", self._offer),
                web.get("/metrics", self._figures),
                web.static("/static", _STATIC),
            ]
        )
        return app

    async def _figures(self, _request: web.Request) -> web.Response:
        """The runtime's metrics for Prometheus."""
        if self._metrics is None:
            raise web.HTTPNotFound(text="this server keeps no metrics\n")
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _frame(self, request: web.Request) -> web.Response:
        """A decoded frame of the open run as PNG, by its first decoder unless another is named; ``width``
        shrinks it.
        """
        decoder = request.match_info.get("decoder", self._broadcast.status.decoders[0].name)
        number = int(request.match_info["volume"])
        event = self._recorded(
            request, self._broadcast.frames, (number, decoder), f"frame at volume {number}"
        )
        if event.image is None:
            raise web.HTTPNotFound(text="this frame has no picture\n")
        width = request.query.get("width", "")
        shrink_to = max(1, int(width)) if width.isdecimal() and len(width) < 6 else None
        async with self._encoding:
            png = await asyncio.to_thread(encode_png, event.image, shrink_to)
        return _png_response(request, png)

    async def _shown(self, request: web.Request) -> web.Response:
        """The picture put on screen at an onset, with the bytes of its marker."""
        number = int(request.match_info["onset"])
        event = self._recorded(request, self._broadcast.shown, number, f"picture shown at volume {number}")
        if event.png is None:
            raise web.HTTPNotFound(text="this marker has no picture\n")
        return _png_response(request, event.png)

    def _recorded(self, request: web.Request, memory: dict[K, Event], wanted: K, name: str) -> Event:
        key = request.query.get("run")
        if key is not None and key != run_key(self._session, self._broadcast.status.run_id):
            raise web.HTTPNotFound(text="this run is no longer the open one\n")
        if wanted not in memory:
            raise web.HTTPNotFound(text=f"the open run has no {name}\n")
        return memory[wanted]

    async def _offer(self, request: web.Request) -> web.Response:
        """Answer a page's WebRTC offer; an error is one line of JSON."""
        if request.content_type != "application/json":
            return _refusal(415, "expected application/json")
        try:
            async with asyncio.timeout(BODY_S):
                sdp = read_offer(await request.read())
            check_offer(sdp)
        except TimeoutError:
            return _refusal(408, f"the offer took more than {BODY_S:.0f} s")
        except (web.RequestPayloadError, ConnectionError):
            return _refusal(400, "the offer broke off")
        except OfferError as error:
            return _refusal(400, str(error))
        if len(self._peers) >= MAX_PAGES:
            return _refusal(503, f"{MAX_PAGES} pages are connected already")
        if not self._offers.take(request.remote):
            return _refusal(429, "too many offers from this address, try again in a second")
        address = request.get_extra_info("sockname")[0]
        peer = Peer(Feed(self._broadcast, self._session), self._live, address, self._peers.discard)
        self._peers.add(peer)
        try:
            answer = await peer.answer(sdp)
        except OfferError as error:
            await peer.close()
            return _refusal(400, str(error))
        except BaseException:
            await peer.close()
            raise
        return web.json_response({"type": "answer", "sdp": answer})

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        """Messages as text and the newest frame as binary: its volume (uint32, big-endian), then PNG."""
        if len(self._sockets) >= MAX_PAGES:
            return _refusal(503, f"{MAX_PAGES} pages are connected already")
        if not self._openings.take(request.remote):
            return _refusal(429, "too many WebSockets from this address, try again in a second")
        socket = web.WebSocketResponse(heartbeat=20.0, max_msg_size=4096, compress=False, autoping=False)
        await socket.prepare(request)
        self._sockets.add(socket)
        telling = asyncio.create_task(self._tell(socket))
        try:
            await _listen(socket)
        finally:
            self._sockets.discard(socket)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        return socket

    async def _tell(self, socket: web.WebSocketResponse) -> None:
        sent: Event | None = None
        async with contextlib.aclosing(Feed(self._broadcast, self._session).follow()) as texts:
            async for text in texts:
                await socket.send_str(text)
                newest = newest_frame(self._broadcast)
                if newest is not None and newest[1] is not sent:
                    volume, sent = newest
                    await self._send_picture(socket, volume, sent)

    async def _send_picture(self, socket: web.WebSocketResponse, volume: int, event: Event) -> None:
        if event.image is not None:
            png = await asyncio.to_thread(encode_png, event.image)
            await socket.send_bytes(_PICTURE_HEADER.pack(volume) + png)


async def _index(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(_STATIC / "index.html")


async def _listen(socket: web.WebSocketResponse) -> None:
    """Return when the page disconnects; a page says nothing but, now and then, that it is there."""
    pace = Pace(MAX_TRIES)
    async for message in socket:
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        if message.type not in (WSMsgType.PING, WSMsgType.PONG) or not pace.take(None):
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"a page sends nothing")


def _png_response(request: web.Request, png: bytes) -> web.Response:
    """With a run key in its URL, a picture never changes; without one, the next run may replace it."""
    caching = "private, max-age=3600, immutable" if "run" in request.query else "no-store"
    return web.Response(body=png, content_type="image/png", headers={"Cache-Control": caching})


def _refusal(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)
