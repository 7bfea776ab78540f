"""PNGs from outside are decoded to what OpenCV makes of them, or refused before they take memory or time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from realtime.errors import WireError
from realtime.record.image import decode_png
from realtime.record.png import check_png_structure
from realtime.wire import MAX_PICTURE_BYTES

Check = Callable[[bytes], object]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = (b"IEND", b"")
CHECKS: list[Check] = [check_png_structure, decode_png]
COLOUR_TYPES = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    return SIGNATURE + b"".join(chunk(*each) for each in chunks)


def header(width: int, height: int, depth: int = 8, colour_type: int = 2, *rest: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, *(rest or (0, 0, 0)))


def pixels(n_bytes: int) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(bytes(n_bytes), 9)


def by_opencv(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3, 4]))


@settings(deadline=None, max_examples=150)
@given(
    image=st.sampled_from([np.uint8, np.uint16]).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)),
    level=st.integers(0, 9),
    filters=st.sampled_from([cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_ALL_FILTERS]),
)
def test_what_opencv_writes_is_decoded_to_the_same_pixels(
    image: np.ndarray, level: int, filters: int
) -> None:
    options = (cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_FILTER, filters)
    done, encoded = cv2.imencode(".png", image, options)
    assert done
    data = encoded.tobytes()
    check_png_structure(data)
    decoded = decode_png(data)
    np.testing.assert_array_equal(decoded, by_opencv(data))
    if image.dtype == np.uint8 and image.shape[2] == 3:
        np.testing.assert_array_equal(decoded[..., ::-1], image)


def passes(width: int, height: int, *, interlaced: bool) -> Iterator[tuple[int, int]]:
    """Columns and rows of each pass, counted pixel by pixel by the table of PNG's specification."""
    pattern = ("16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777")
    numbers = np.array([[int(cell) for cell in row] for row in pattern])
    rows, columns = np.mgrid[:height, :width]
    of = numbers[rows % 8, columns % 8] if interlaced else np.ones((height, width), dtype=int)
    for number in range(1, 8):
        if n := np.count_nonzero((of == number).any(axis=1)):
            yield int(np.count_nonzero((of == number).any(axis=0))), int(n)


@settings(deadline=None, max_examples=300)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    form=st.sampled_from([(kind, depth) for kind, depths in COLOUR_TYPES.items() for depth in depths]),
    interlaced=st.booleans(),
    surplus=st.integers(-1, 1),
)
def test_pixels_fill_exactly_what_the_header_states(
    size: tuple[int, int], form: tuple[int, int], interlaced: bool, surplus: int
) -> None:
    kind, depth = form
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    n_bytes = sum(n * (1 + -(-columns * bits // 8)) for columns, n in passes(*size, interlaced=interlaced))
    palette = [(b"PLTE", bytes(range(3)) * 2**depth)] if kind == 3 else []
    first = header(*size, depth, kind, 0, 0, int(interlaced))
    data = png_of(first, *palette, pixels(n_bytes + surplus), END)
    check_png_structure(data)
    if surplus == 0:
        np.testing.assert_array_equal(decode_png(data), by_opencv(data))
    else:
        with pytest.raises(
            WireError, match="inflate to more" if surplus > 0 else f"end after {n_bytes - 1} of"
        ):
            decode_png(data)


def bomb(n_bytes: int) -> bytes:
    """Zeros, compressed. All blocks but the first are the same, so that it is made in no time."""
    deflate, n_block = zlib.compressobj(9), 2**24
    first, next_one = (deflate.compress(bytes(n_block)) + deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + next_one * (n_bytes // n_block - 1)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (2048, 2048)])
def test_pixels_that_inflate_to_4_gb_are_inflated_no_further_than_the_header_says(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png_of(header(*size), (b"IDAT", bomb(4_000_000_000)), END)
    assert len(data) <= MAX_PICTURE_BYTES
    check_png_structure(data)
    n_inflated = []
    decompressobj = zlib.decompressobj

    class Counted:
        def __init__(self) -> None:
            self._inflate = decompressobj()

        def decompress(self, content: bytes, max_length: int) -> bytes:
            inflated = self._inflate.decompress(content, max_length)
            n_inflated.append(len(inflated))
            return inflated

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV got it"))
    with pytest.raises(WireError, match="inflate to more"):
        decode_png(data)
    assert sum(n_inflated) == size[1] * (1 + 3 * size[0]) + 1


@pytest.mark.parametrize(
    "ancillary",
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20))),
        (b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**20))),
        (b"iTXt", b"comment\0\1\0\0\0" + zlib.compress(bytes(2**20))),
        (b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        (b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        (b"tRNS", bytes(6)),
        (b"abCD", bytes(1000)),
    ],
)
def test_what_is_not_needed_for_the_pixels_does_not_reach_opencv(
    ancillary: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = png_of(header(2, 3), pixels(3 * 7), END)
    got = []
    imdecode = cv2.imdecode

    def watched(data: np.ndarray, how: int) -> np.ndarray | None:
        got.append(data.tobytes())
        return imdecode(data, how)

    monkeypatch.setattr(cv2, "imdecode", watched)
    assert decode_png(png_of(header(2, 3), ancillary, pixels(3 * 7), ancillary, END)).shape == (3, 2, 3)
    assert got == [plain]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "something else or nothing"),
        (SIGNATURE, "something else or nothing"),
        (png_of(pixels(7), END), "something else or nothing"),
        (png_of(header(2049, 1), pixels(7), END), "at most 2048 px a side, got 2049 x 1"),
        (png_of(header(1, 0), pixels(7), END), "got 1 x 0"),
        (png_of(header(1, 1, 3), pixels(7), END), "colour type 2 with 3 bits"),
        (png_of(header(1, 1, 8, 5), pixels(7), END), "colour type 5"),
        (png_of(header(1, 1, 8, 2, 1, 0, 0), pixels(7), END), "compression 1"),
        (png_of(header(1, 1, 8, 2, 0, 0, 2), pixels(7), END), "interlacing 2"),
        (png_of(header(1, 1), END), "pixels in chunks that follow each other, got IHDR, IEND"),
        (png_of(header(1, 1), pixels(7)), "bytes by its chunks"),
        (png_of(header(1, 1), header(1, 1), pixels(7), END), "got IHDR, IHDR"),
        (png_of(header(1, 1), (b"ABCD", b""), pixels(7), END), "got IHDR, ABCD"),
        (png_of(header(1, 1), pixels(7), (b"tEXt", b""), pixels(7), END), "follow each other"),
        (png_of(header(1, 1, 8, 3), pixels(2), END), "one palette before the pixels"),
        (png_of(header(1, 1, 8, 3), pixels(2), (b"PLTE", bytes(3)), END), "one palette before the pixels"),
        (png_of(header(1, 1), pixels(4), END)[:-1], "bytes by its chunks"),
        (png_of(header(1, 1), pixels(4), END)[:-1] + b"x", "checksum of a chunk IEND"),
        (png_of(header(1, 1), *[(b"teXt", b"")] * 200_000, pixels(4), END), "at most 4096 chunks"),
        (SIGNATURE + chunk(*header(1, 1)) + b"\xff\xff\xff\xffIDAT", "by its chunks"),
    ],
)
def test_what_is_no_png_is_refused_with_the_reason(data: bytes, message: str, check: Check) -> None:
    with pytest.raises(WireError, match=message) as refusal:
        check(data)
    assert refusal.value.code == "picture"


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"tEXt", b"IEND"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_changed_byte_in_any_chunk_is_seen(kind: bytes, check: Check) -> None:
    data = bytearray(png_of(header(2, 3), (b"tEXt", b"a\0b"), pixels(3 * 7), END))
    check(bytes(data))
    data[data.index(kind) + 4] ^= 1
    with pytest.raises(WireError):
        check(bytes(data))


def test_a_picture_above_the_limit_of_the_wire_is_refused() -> None:
    data = png_of(header(1, 1), (b"teXt", bytes(MAX_PICTURE_BYTES)), pixels(4), END)
    with pytest.raises(WireError, match=f"at most {MAX_PICTURE_BYTES} bytes"):
        check_png_structure(data)


def test_the_structure_is_checked_without_inflating(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_of(header(64, 64), (b"IDAT", b"these are no pixels"), END)
    monkeypatch.setattr(zlib, "decompressobj", lambda: pytest.fail("inflated"))
    check_png_structure(data)
    monkeypatch.undo()
    with pytest.raises(WireError, match="cannot be inflated"):
        decode_png(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_what_another_encoder_writes_is_decoded_as_opencv_does(mode: str) -> None:
    images = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = images.fromarray(rng.integers(0, 2**16, (40, 30), dtype=np.uint16))
    else:
        image = images.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG", dpi=(300, 300), icc_profile=bytes(200), optimize=True)
    check_png_structure(file.getvalue())
    np.testing.assert_array_equal(decode_png(file.getvalue()), by_opencv(file.getvalue()))
