"""Bytes of ZMTP 1.0, the protocol of ZeroMQ 2: without a greeting, so they can be the body of HTTP."""

from __future__ import annotations


def old_message(*frames: bytes) -> bytes:
    """A message as a peer of ZeroMQ 2 sends it: an empty identity, then the frames."""
    sent = _frame(b"", more=False)
    for number, frame in enumerate(frames, 1):
        sent += _frame(frame, more=number < len(frames))
    return sent


def _frame(body: bytes, *, more: bool) -> bytes:
    n_bytes = len(body) + 1
    length = bytes([n_bytes]) if n_bytes < 255 else b"\xff" + n_bytes.to_bytes(8, "big")
    return length + bytes([more]) + body
