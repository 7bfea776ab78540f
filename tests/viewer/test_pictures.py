from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.viewer.pictures import VIDEO_PX, KeyframeEncoder, encode_png, video_size


def smooth_picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def decode_png(png: bytes) -> NDArray[np.uint8]:
    bgr = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.asarray(bgr[:, :, ::-1], np.uint8)


def decode_vp8(keyframe: bytes) -> NDArray[np.uint8]:
    (frame,) = av.VideoCodecContext.create("libvpx", "r").decode(av.Packet(keyframe))
    return np.asarray(frame.to_ndarray(format="rgb24"))


def test_png_holds_every_pixel() -> None:
    image = smooth_picture(0, 64, 48)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)


@pytest.mark.parametrize(("width", "expected"), [(32, (64, 32, 3)), (64, (128, 64, 3)), (400, (128, 64, 3))])
def test_png_is_shrunk_but_never_enlarged(width: int, expected: tuple[int, int, int]) -> None:
    assert decode_png(encode_png(smooth_picture(0, 128, 64), width)).shape == expected


@given(height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_video_keeps_the_pictures_shape(height: int, width: int) -> None:
    got_height, got_width = video_size(height, width)
    assert got_height % 2 == got_width % 2 == 0
    assert max(got_height, got_width) == VIDEO_PX
    scale = VIDEO_PX / max(height, width)
    assert abs(got_height - height * scale) <= 2
    assert abs(got_width - width * scale) <= 2


@pytest.mark.parametrize(("height", "width"), [(64, 64), (512, 512), (48, 64), (600, 425)])
def test_any_keyframe_alone_gives_the_picture_back(height: int, width: int) -> None:
    encoder = KeyframeEncoder()
    for seed in range(3):  # from the second on, an encoder could lean on the one before
        image = smooth_picture(seed, height, width)
        decoded = decode_vp8(encoder.encode(image))
        assert decoded.shape[:2] == video_size(height, width)
        scaled = cv2.resize(image, decoded.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        assert np.abs(decoded.astype(float) - scaled).mean() < 3.0
        np.testing.assert_allclose(decoded.mean((0, 1)), image.mean((0, 1)), atol=3.0)


def test_encoder_follows_a_change_of_size() -> None:
    encoder = KeyframeEncoder()
    shapes = [
        decode_vp8(encoder.encode(smooth_picture(0, h, w))).shape for h, w in [(64, 64), (32, 64), (64, 64)]
    ]
    assert shapes == [(512, 512, 3), (256, 512, 3), (512, 512, 3)]
