"""One page's WebRTC connection: a video track and a data channel, at one address (see offer.py)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.rtcsctptransport import DataChunk

from realtime.viewer.feed import Feed
from realtime.viewer.live import LivePicture, PictureTrack
from realtime.viewer.offer import (
    OfferError,
    candidate_addresses,
    gather_only,
    without_candidates,
)

CONNECT_TIMEOUT_S = 30.0
"""A page gives up after 3 s unless it is told to be patient; one that takes this long will never connect."""
BUFFER_BYTES = 256 * 1024
"""With more unsent data than this in the data channel, sending waits."""
STALL_S = 30.0
"""A page whose data channel takes nothing for this long is let go."""

logging.getLogger("aioice").setLevel(logging.WARNING)  # it logs every pair of addresses that it tries
_log = logging.getLogger(__name__)


class Peer:
    """Answers one offer and serves the connection until either side closes it."""

    def __init__(
        self, feed: Feed, live: LivePicture, address: str, on_closed: Callable[[Peer], None]
    ) -> None:
        """``address`` is the one at which the page has reached this server."""
        self._feed = feed
        self._address = address
        self._on_closed = on_closed
        self._telling: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        # An empty list, because the default asks a STUN server on the internet.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._connection.on("connectionstatechange", self._state_changed)
        self._connection.on("datachannel", self._channel_opened)
        video = self._connection.addTransceiver(PictureTrack(live), direction="sendonly")
        codecs = RTCRtpSender.getCapabilities("video").codecs
        video.setCodecPreferences([codec for codec in codecs if codec.mimeType in ("video/VP8", "video/rtx")])

    async def answer(self, offer_sdp: str) -> str:
        """The answer to a page's offer, which :func:`realtime.viewer.offer.check_offer` has passed.

        :raises OfferError: when the offer is malformed or not one of our page
        """
        offer = RTCSessionDescription(sdp=without_candidates(offer_sdp), type="offer")
        try:
            await self._connection.setRemoteDescription(offer)
            gather_only(self._connection, self._address)
            self._hold_to_window()
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # aiortc's parser raises many kinds of errors on malformed lines
            raise OfferError(f"expected an offer aiortc can read, got {error!r}") from error
        answer_sdp = self._connection.localDescription.sdp
        addresses = candidate_addresses(answer_sdp)
        if addresses != {self._address}:
            raise OfferError(f"expected to offer {self._address} alone, but gathered {sorted(addresses)}")
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(CONNECT_TIMEOUT_S, self._give_up_unless_connected)
        return answer_sdp

    def _hold_to_window(self) -> None:
        """Close the connection when the page sends more than the receive window that it was told.

        aiortc tells a window, but keeps whatever comes, such as the fragments of a message without an end.
        """
        sctp = self._connection.sctp
        assert sctp is not None
        receive = sctp._receive_data_chunk

        async def receive_within(chunk: DataChunk) -> None:
            if len(chunk.user_data) > sctp._advertised_rwnd:
                _log.info("a page sent more than its data channel's window and is let go")
                self._begin_closing()
            else:
                await receive(chunk)

        sctp._receive_data_chunk = receive_within  # type: ignore[method-assign]

    async def _waited(self, drained: asyncio.Event) -> bool:
        try:
            async with asyncio.timeout(STALL_S):
                await drained.wait()
        except TimeoutError:
            _log.info("a page took nothing from its data channel for %.0f s and is let go", STALL_S)
            self._begin_closing()
            return False
        return True

    async def close(self) -> None:
        """End the connection; the page sees its channel close."""
        await asyncio.shield(self._begin_closing())

    def _begin_closing(self) -> asyncio.Task[None]:
        """Close in a task of its own: if a call of aiortc's close is cancelled, the next never returns."""
        self._stop_telling()
        if self._closing is None:
            self._closing = asyncio.create_task(self._connection.close())
        return self._closing

    def _stop_telling(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._telling is not None:
            self._telling.cancel()

    def _state_changed(self) -> None:
        if self._connection.connectionState == "failed":
            self._begin_closing()
        elif self._connection.connectionState == "closed":
            self._stop_telling()
            self._on_closed(self)

    def _give_up_unless_connected(self) -> None:
        if self._connection.connectionState != "connected":
            _log.info("a page did not connect through WebRTC within %.0f s", CONNECT_TIMEOUT_S)
            self._begin_closing()

    def _channel_opened(self, channel: RTCDataChannel) -> None:
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell(channel))

    async def _tell(self, channel: RTCDataChannel) -> None:
        """Send the feed, and wait whenever the channel is full, so that no backlog builds up."""
        drained = asyncio.Event()
        channel.bufferedAmountLowThreshold = BUFFER_BYTES // 2
        channel.on("bufferedamountlow", drained.set)
        async with contextlib.aclosing(self._feed.follow()) as texts:
            async for text in texts:
                drained.clear()
                if channel.bufferedAmount > BUFFER_BYTES and not await self._waited(drained):
                    return
                if channel.readyState != "open":
                    return
                channel.send(text)
