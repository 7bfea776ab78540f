"""Bytes of ZMTP 1.0, the protocol of ZeroMQ 2: without a greeting, so they can be the body of HTTP."""

from __future__ import annotations

import contextlib
import http.client


def old_message(*frames: bytes) -> bytes:
    """A message as a peer of ZeroMQ 2 sends it first: an empty identity, then the frames."""
    return _frame(b"", more=False) + _message(*frames)


def post(host: str, port: int, *frames: bytes) -> http.client.HTTPConnection:
    """POST a message as a web page could, with a real client of HTTP; the caller closes the connection.

    A peer that reads ZMTP 1.0 takes the first byte of the request for the length of a frame, and so on. The
    body begins with what the last such frame lacks.
    """
    body_bytes = 4_096
    headers = {"Host": f"{host}:{port}", "Content-Length": str(body_bytes)}
    head = "POST / HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    read = 0
    while read < len(head):
        read += 1 + ord(head[read])
    body = bytes(read - len(head)) + _frame(b"", more=False) + _message(*frames)
    assert len(body) < body_bytes
    connection = http.client.HTTPConnection(host, port)
    connection.putrequest("POST", "/", skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    with contextlib.suppress(ConnectionError):  # a port that refuses it may close it at once
        connection.endheaders(body + b"\xfe" * (body_bytes - len(body)))
    return connection


def _message(*frames: bytes) -> bytes:
    return b"".join(_frame(frame, more=number < len(frames)) for number, frame in enumerate(frames, 1))


def _frame(body: bytes, *, more: bool) -> bytes:
    n_bytes = len(body) + 1
    length = bytes([n_bytes]) if n_bytes < 255 else b"\xff" + n_bytes.to_bytes(8, "big")
    return length + bytes([more]) + body
