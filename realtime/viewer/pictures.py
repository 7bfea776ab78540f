"""Pictures for the page: PNG for single frames, VP8 keyframes for the live video. H, W: height, width, px."""

from __future__ import annotations

import fractions

import av
import av.video.frame
import cv2
import numpy as np
from numpy.typing import NDArray

VIDEO_PX = 512
"""Long side of the video. VP8 halves the colour resolution; at 512 px a decode of 64 px loses none."""

_TIME_BASE = fractions.Fraction(1, 1000)
_BIT_RATE = 8_000_000  # far above what a keyframe needs: the quantizer bounds below decide the quality


def encode_png(image_hw3: NDArray[np.uint8], width: int | None = None) -> bytes:
    """RGB uint8 ``[H, W, 3]`` as PNG, shrunk to ``width`` px where that is smaller."""
    if width is not None and width < image_hw3.shape[1]:
        height = max(1, round(image_hw3.shape[0] * width / image_hw3.shape[1]))
        image_hw3 = np.asarray(cv2.resize(image_hw3, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    _, png = cv2.imencode(".png", cv2.cvtColor(image_hw3, cv2.COLOR_RGB2BGR))
    return png.tobytes()


def video_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture's video: same shape, long side ``VIDEO_PX``, both even as VP8 needs."""
    scale = VIDEO_PX / max(height, width)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


class KeyframeEncoder:
    """Encodes each picture as one VP8 keyframe, which any decoder can start from.

    A decode changes once a TR, so a video of keyframes takes one encoding per picture for all pages together.
    To repeat a frame, for a late page or after a lost packet, needs no encoder. Not thread-safe.
    """

    def __init__(self) -> None:
        self._codec: av.VideoCodecContext | None = None
        self._pts = 0

    def encode(self, image_hw3: NDArray[np.uint8]) -> bytes:
        """RGB uint8 ``[H, W, 3]`` of any size to one VP8 keyframe of :func:`video_size`."""
        height, width = video_size(*image_hw3.shape[:2])
        enlarging = height > image_hw3.shape[0]
        interpolation = cv2.INTER_CUBIC if enlarging else cv2.INTER_AREA
        scaled = cv2.resize(image_hw3, (width, height), interpolation=interpolation)
        i420 = np.asarray(cv2.cvtColor(scaled, cv2.COLOR_RGB2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
        frame.pict_type = av.video.frame.PictureType.I
        frame.pts, frame.time_base = self._pts, _TIME_BASE
        self._pts += 1000
        codec = self._codec_for(height, width)
        return b"".join(bytes(packet) for packet in codec.encode(frame))

    def _codec_for(self, height: int, width: int) -> av.VideoCodecContext:
        codec = self._codec
        if codec is None or (codec.height, codec.width) != (height, width):
            codec = self._codec = av.VideoCodecContext.create("libvpx", "w")
            codec.height, codec.width = height, width
            codec.pix_fmt = "yuv420p"
            codec.time_base = _TIME_BASE
            codec.bit_rate = _BIT_RATE
            codec.gop_size = 1
            codec.qmin, codec.qmax = 2, 20
            codec.thread_count = 1
            # The decoder needs the cores too: encode fast, and return each frame at once.
            codec.options = {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0"}
        return codec
