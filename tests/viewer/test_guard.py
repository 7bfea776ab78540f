from __future__ import annotations

import pytest

from realtime.viewer.access import is_loopback_host
from realtime.viewer.guard import is_same_origin


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8765", "localhost", "LocalHost:1", "[::1]", "[::1]:8765"]
)
def test_loopback_names(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "", ":8765", "example.org", "127.0.0.1.example.org", "localhost.example.org:80", "192.0.2.1",
        "0.0.0.0", "[::2]", "[::1", "::1", "user@example.org", "example.org@127.0.0.1.evil",
        "127.0.0.1/../x@evil",
    ],
)  # fmt: skip
def test_other_names(host: str) -> None:
    assert not is_loopback_host(host)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (None, "127.0.0.1:80", True),
        ("http://127.0.0.1:8765", "127.0.0.1:8765", True),
        ("http://LOCALHOST:8765", "localhost:8765", True),
        ("http://localhost:8765", "127.0.0.1:8765", False),
        ("http://127.0.0.1:9999", "127.0.0.1:8765", False),
        ("https://127.0.0.1:8765", "127.0.0.1:8765", False),
        ("http://example.org", "127.0.0.1:8765", False),
        ("null", "127.0.0.1:8765", False),
        ("", "127.0.0.1:8765", False),
    ],
)
def test_origins(origin: str | None, host: str, same: bool) -> None:
    assert is_same_origin(origin, f"http://{host}") is same
