"""Messages survive encoding and decoding; any other bytes raise WireError."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.errors import WireError

START = wire.RunStart(
    run_id="sub-01_run-01",
    subject=1,
    tr_s=4 / 3,
    n_volumes=225,
    shape=(3, 4, 5),
    affine=((1.8, 0.0, 0.0, -9.0), (0.0, 1.8, 0.0, -9.0), (0.0, 0.0, 1.8, -9.0), (0.0, 0.0, 0.0, 1.0)),
    dtype="int16",
)

run_ids = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,95}\Z")
finite = st.floats(allow_nan=False, allow_infinity=False)
sides, places = st.floats(0.1, 100), st.floats(-1e4, 1e4)
affines = st.builds(
    lambda x, y, z, a, b, c: ((x, 0.1, 0.0, a), (-0.1, y, 0.0, b), (0.0, 0.0, -z, c), (0.0, 0.0, 0.0, 1.0)),
    sides, sides, sides, places, places, places,
)  # fmt: skip
counts = st.integers(0, 100_000)
rising_ranges = st.lists(counts, max_size=40).map(
    lambda numbers: list(zip(sorted(numbers)[::2], sorted(numbers)[1::2], strict=False))
)
edges = st.integers(1, 322)  # 322 x 322 x 322 float64 are just within the limit

to_runtime = st.one_of(
    st.builds(
        wire.RunStart,
        run_id=run_ids,
        subject=st.integers(1, 99_999),
        tr_s=st.floats(0.01, 60),
        n_volumes=st.integers(1, 10_000),
        shape=st.tuples(edges, edges, edges),
        affine=affines,
        dtype=st.sampled_from(wire.DTYPES),
    ),
    st.builds(wire.Volume, run_id=run_ids, index=counts, acquired_s=finite),
    st.builds(wire.Marker, run_id=run_ids, onset_volume=counts, name=st.text(max_size=200)),
    st.builds(wire.RunEnd, run_id=run_ids, reason=st.sampled_from(["complete", "aborted"])),
)
to_scanner = st.one_of(
    st.builds(wire.RunAccepted, run_id=run_ids, held=rising_ranges),
    st.builds(wire.Ack, run_id=run_ids, index=counts),
    st.builds(wire.MarkerAck, run_id=run_ids, onset_volume=counts),
    st.builds(wire.RunClosed, run_id=run_ids),
    st.builds(
        wire.Refused,
        run_id=st.text(max_size=200),
        code=st.text(max_size=20),
        message=st.text(max_size=500),
        index=st.none() | counts,
    ),
)


def refusal(decode: Callable[[bytes], object], header: bytes) -> str | None:
    """Return the code with which a header is refused, None if it is accepted; other exceptions pass."""
    try:
        decode(header)
    except WireError as error:
        return error.code
    return None


@given(to_runtime)
def test_scanner_messages_survive_encoding(message: wire.ToRuntime) -> None:
    assert wire.decode_to_runtime(wire.encode(message)) == message


@given(to_scanner)
def test_runtime_replies_survive_encoding(message: wire.ToScanner) -> None:
    assert wire.decode_to_scanner(wire.encode(message)) == message


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_wire_error(header: bytes) -> None:
    for decode in (wire.decode_to_runtime, wire.decode_to_scanner):
        assert refusal(decode, header) in ("header", "version")


def _any_value(depth: int = 3) -> st.SearchStrategy[Any]:
    plain = (
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
    )
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner), max_leaves=depth
    )


@settings(max_examples=300)
@given(to_runtime, st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(message: wire.ToRuntime, data: st.DataObject) -> None:
    fields = msgspec.to_builtins(message)
    assert isinstance(fields, dict)
    field = data.draw(st.sampled_from([*fields, "surplus"]))
    fields[field] = data.draw(_any_value())
    header = bytearray(msgspec.msgpack.encode(fields))
    if data.draw(st.booleans()):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    code = refusal(wire.decode_to_runtime, bytes(header))
    assert code in ("header", "version", None)
    if code is None:
        decoded = wire.decode_to_runtime(bytes(header))
        assert wire.decode_to_runtime(wire.encode(decoded)) == decoded


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x91" * 16_000,  # nested arrays
        b"\x82\xa7version\x01\xa1x" + b"\x91" * 16_000 + b"\x01",  # deeper than a reader may recurse
        b"\x82\xa7version\x01\xa4kind\xa2\xff\xfe",  # not UTF-8
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xdf\xff\xff\xff\xff",
        wire.encode(START) + b"\x00",
        wire.encode(START)[:-1],
        b"\x00" * (wire.MAX_HEADER_BYTES + 1),
    ],
)
def test_hostile_headers_are_refused(header: bytes) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_to_runtime(header)
    assert caught.value.code == "header"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("run_id", "../../etc", "run_id"),
        ("run_id", "a\n", "run_id"),
        ("dtype", "complex64", "dtype"),
        ("dtype", "object", "dtype"),
        ("shape", [3, 4], "shape"),
        ("shape", [0, 4, 5], "shape"),
        ("shape", [1024, 1024, 1024], "at most"),
        ("tr_s", float("nan"), "tr_s"),
        ("tr_s", 0.0, "tr_s"),
        ("n_volumes", True, "n_volumes"),
        ("affine", [[float("nan")] * 4] * 4, "finite affine"),
        ("affine", [[0.0] * 4] * 4, "can be inverted"),
        ("affine", [[1e9, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]], "affine in mm"),
        ("subject", "1", "subject"),
    ],
)
def test_an_invalid_run_start_is_refused_and_its_field_named(field: str, value: object, named: str) -> None:
    header = msgspec.msgpack.encode({**msgspec.to_builtins(START), field: value})
    with pytest.raises(WireError, match=named) as caught:
        wire.decode_to_runtime(header)
    assert caught.value.code == "header"


@pytest.mark.parametrize("version", [0, 2, 2**40])
def test_another_version_is_reported_before_other_errors(version: int) -> None:
    header = msgspec.msgpack.encode({"version": version, "kind": "from_the_future", "what": [1, 2]})
    with pytest.raises(WireError, match=f"expected wire version 1, got {version}") as caught:
        wire.decode_to_runtime(header)
    assert caught.value.code == "version"


def test_the_two_directions_do_not_mix() -> None:
    with pytest.raises(WireError):
        wire.decode_to_scanner(wire.encode(START))
    with pytest.raises(WireError):
        wire.decode_to_runtime(wire.encode(wire.RunClosed(run_id="a")))


def test_the_longest_list_of_held_volumes_fits_a_reply() -> None:
    held = [(index, index + 1) for index in range(0, 100_000, 2)]
    reply = wire.RunAccepted(run_id="a" * 96, held=held)
    assert wire.decode_to_scanner(wire.encode(reply)) == reply


@pytest.mark.parametrize("dtype", wire.DTYPES)
def test_a_volume_survives_encoding(dtype: str) -> None:
    start = msgspec.structs.replace(START, dtype=dtype)
    voxels = np.arange(60).reshape(3, 4, 5).astype(np.dtype(dtype).newbyteorder("<"))
    for buffer in (voxels.tobytes(), voxels.data):
        received = wire.volume_array(start, buffer)
        np.testing.assert_array_equal(received, voxels)
    for x, y, z in itertools.product(range(3), range(4), range(5)):
        assert received[x, y, z] == (x * 4 + y) * 5 + z


@pytest.mark.parametrize("n_bytes", [0, 119, 121, 240])
def test_a_buffer_of_another_size_is_refused(n_bytes: int) -> None:
    with pytest.raises(WireError, match=f"expected 120 bytes .* got {n_bytes}") as caught:
        wire.volume_array(START, bytes(n_bytes))
    assert caught.value.code == "size"


@pytest.mark.parametrize("secret", ["", "too-short", "x" * 65, "with space padding", "a" * 20 + "\n", 7])
def test_an_invalid_secret_is_refused(secret: object) -> None:
    fields = msgspec.to_builtins(START) | {"secret": secret}
    with pytest.raises(WireError) as raised:
        wire.decode_to_runtime(msgspec.msgpack.encode(fields))
    assert raised.value.code == "header"


def test_a_start_without_a_secret_is_valid() -> None:
    fields = msgspec.to_builtins(START)
    del fields["secret"]
    assert wire.decode_to_runtime(msgspec.msgpack.encode(fields)) == START
    known = msgspec.structs.replace(START, secret=secrets.token_urlsafe())
    assert wire.decode_to_runtime(wire.encode(known)) == known


def test_a_volume_that_lies_elsewhere_says_where() -> None:
    plain = wire.Volume(run_id="run", index=3, acquired_s=1.0)
    assert b"affine" not in wire.encode(plain)  # as earlier releases wrote it, whose checksums hold
    moved = msgspec.structs.replace(plain, affine=START.affine)
    assert wire.decode_to_runtime(wire.encode(moved)) == moved
    header = msgspec.msgpack.encode({**msgspec.to_builtins(moved), "affine": [[0.0] * 4] * 4})
    with pytest.raises(WireError, match="can be inverted"):
        wire.decode_to_runtime(header)
