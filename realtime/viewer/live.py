"""The newest picture of the run, and a WebRTC video track that shows it.

The newest frame wins: a track has no queue, it takes the newest picture whenever it is ready to send.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
from aiortc.mediastreams import VIDEO_CLOCK_RATE, VIDEO_TIME_BASE, MediaStreamError, MediaStreamTrack
from av.packet import Packet
from numpy.typing import NDArray

from realtime.events import Broadcast
from realtime.viewer.feed import newest_frame
from realtime.viewer.pictures import VIDEO_PX, KeyframeEncoder

REPEAT_S = 0.5
"""An unchanged picture is sent again this often: it keeps the video alive and replaces a lost packet."""
MIN_GAP_S = 0.05
"""At most 20 pictures a second, however fast a run is replayed."""

_DARK = np.full((VIDEO_PX, VIDEO_PX, 3), 16, np.uint8)


class LivePicture:
    """The newest picture, encoded once for all pages, and only if one needs it."""

    def __init__(self) -> None:
        self.version = 0
        self._picture: NDArray[np.uint8] = _DARK
        self._encoder = KeyframeEncoder()
        self._encoding = asyncio.Lock()
        self._keyframe: tuple[int, bytes] = (-1, b"")
        self._changed = asyncio.Event()

    async def follow(self, broadcast: Broadcast) -> None:
        """Follow the broadcast's newest frame until cancelled; dark while a run has no frames."""
        shown = None
        async with broadcast.listen() as queue:
            while True:
                await queue.get()
                newest = newest_frame(broadcast)
                event = newest[1] if newest else None
                if event is not shown:
                    shown = event
                    self._show(_DARK if event is None or event.image is None else event.image)

    async def keyframe(self) -> tuple[int, bytes]:
        """Version and VP8 keyframe of the newest picture."""
        async with self._encoding:
            if self._keyframe[0] != self.version:
                version, picture = self.version, self._picture
                self._keyframe = version, await asyncio.to_thread(self._encoder.encode, picture)
            return self._keyframe

    async def wait_newer(self, version: int, timeout_s: float) -> None:
        """Return when there is a picture newer than ``version``, or after ``timeout_s``."""
        if self.version == version:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()

    def _show(self, picture: NDArray[np.uint8]) -> None:
        self._picture = picture
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()


class PictureTrack(MediaStreamTrack):
    """One page's video of the newest picture, as ready-made VP8 packets."""

    kind = "video"

    def __init__(self, live: LivePicture) -> None:
        super().__init__()
        self._live = live
        self._version = -1
        self._started_s: float | None = None

    async def recv(self) -> Packet[Any]:
        """The next packet: a newer picture as soon as there is one, else the same after ``REPEAT_S``."""
        if self.readyState != "live":
            raise MediaStreamError
        clock = asyncio.get_running_loop().time
        if self._started_s is None:
            self._started_s = clock()
        else:
            await asyncio.sleep(MIN_GAP_S)
            await self._live.wait_newer(self._version, REPEAT_S - MIN_GAP_S)
        self._version, data = await self._live.keyframe()
        packet = Packet(data)
        packet.pts = round((clock() - self._started_s) * VIDEO_CLOCK_RATE)
        packet.time_base = VIDEO_TIME_BASE
        return packet
