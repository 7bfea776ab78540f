"""The page elsewhere than on loopback: a certificate, a token, nothing without them. Over real sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from playwright.sync_api import expect
from yarl import URL

from realtime.errors import ServeError
from realtime.events import Broadcast
from realtime.viewer.access import Access, open_access
from realtime.viewer.prometheus import Metrics
from realtime.viewer.server import Viewer

REACHED_AT = "127.0.0.2"
"""Stands for this machine's address on a network: the page on 127.0.0.1 does not listen there."""
ROUTES = [
    ("GET", "/"), ("GET", "/static/app.js"), ("GET", "/static/vendor/uplot/uPlot.esm.js"),
    ("GET", "/frames/7.png"), ("GET", "/frames/7.png?width=16"),
    ("GET", "/frames/7_early.png"), ("GET", "/shown/3.png"), ("GET", "/ws"),
    ("POST", "/offer"), ("GET", "/metrics"), ("GET", "/no-such-route"), ("HEAD", "/"), ("OPTIONS", "/offer"),
    ("PUT", "/frames/7.png"),
]  # fmt: skip

Make = Callable[..., tuple[Path, Path]]
Check = Callable[[aiohttp.ClientSession, str], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def certificate(make_certificate: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"), REACHED_AT, "mri.test", "*.lab.test")


@pytest.fixture
def elsewhere(run: Any, certificate: tuple[Path, Path]) -> Callable[[Check], None]:
    """``elsewhere(check)`` awaits ``check(session, token)``; the session has no cookies yet."""
    return lambda check: serve_to(check, run, open_access("0.0.0.0", *certificate), certificate[0])


@pytest.fixture
def here(run: Any) -> Callable[[Check], None]:
    """The same on loopback, without a certificate."""
    return lambda check: serve_to(check, run, open_access("127.0.0.1", None, None))


@pytest.fixture(params=["here", "elsewhere"])
def anywhere(request: pytest.FixtureRequest) -> Any:
    """Both, one after the other."""
    return request.getfixturevalue(request.param)


def serve_to(check: Check, run: Any, access: Access, certificate: Path | None = None) -> None:
    async def serving() -> None:
        broadcast = Broadcast(run.status("warming").message)
        broadcast.send(run.frame(7))
        broadcast.send(run.shown(3, "apple", (10, 200, 30)))
        viewer = Viewer(broadcast, 0, access, Metrics(lambda: None))
        url = urlsplit(await viewer.start())
        token = parse_qs(url.query)["token"][0]
        assert token == access.token
        trust = aiohttp.TCPConnector(
            ssl=ssl.create_default_context(cafile=str(certificate)) if certificate else True
        )
        jar = aiohttp.CookieJar(unsafe=True)  # takes cookies of IP addresses too, as browsers do
        base = f"{access.scheme}://{REACHED_AT if certificate else '127.0.0.1'}:{url.port}"
        try:
            async with aiohttp.ClientSession(base, connector=trust, cookie_jar=jar) as session:
                await check(session, token)
        finally:
            await viewer.stop()

    asyncio.run(serving())


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.7", "::"])
def test_without_a_certificate_the_start_is_refused(address: str) -> None:
    with pytest.raises(ServeError, match="expected --tls-cert and --tls-key .* SSH tunnel"):
        open_access(address, None, None)


@pytest.mark.parametrize("address", ["", "localhost", "example.org", "0.0.0.0:8765"])
def test_the_page_is_at_an_ip_address(address: str) -> None:
    with pytest.raises(ServeError, match="expected an IP address"):
        open_access(address, None, None)


def test_loopback_needs_no_certificate_but_a_token_too() -> None:
    access = open_access("127.0.0.1", None, None)
    assert access.scheme == "http"
    assert len(access.token) >= 43  # 256 bits
    assert access.token not in repr(access)
    assert access.url(8765) == f"http://127.0.0.1:8765/?token={access.token}"


def test_a_page_that_is_started_again_keeps_its_token(certificate: tuple[Path, Path]) -> None:
    token = "a-token-of-the-page-that-was-here-before"
    assert open_access("127.0.0.1", None, None, token).token == token
    assert open_access("0.0.0.0", *certificate, token).token == token


@pytest.mark.parametrize("token", ["", "short"])
def test_a_token_that_could_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(ServeError, match="expected a token of at least 32 characters"):
        open_access("127.0.0.1", None, None, token)


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1:8765", "token-8765"), ("[::1]:80", "token-80"), ("[::1]", "token"), ("localhost", "token")],
)
def test_the_cookies_of_two_ports_have_two_names(host: str, name: str) -> None:
    assert open_access("127.0.0.1", None, None).cookie(host) == name


def test_what_is_no_certificate_or_not_its_key_is_refused(
    tmp_path: Path, certificate: tuple[Path, Path], make_certificate: Make
) -> None:
    cert, key = certificate
    (tmp_path / "other").mkdir()
    _, other_key = make_certificate(tmp_path / "other", "other.test")
    nameless, nameless_key = make_certificate(tmp_path)
    (tmp_path / "wild").mkdir()
    wild, wild_key = make_certificate(tmp_path / "wild", "*.lab.test", "*.mri.test")
    for given, expected in {
        (cert, None): "together, got one",
        (None, key): "together, got one",
        (tmp_path / "none.pem", key): "cannot read the certificate",
        (key, key): "expected a PEM certificate",
        (cert, other_key): "expected a certificate in .* and its key",
        (cert, cert): "expected a certificate in .* and its key",
        (nameless, nameless_key): "subjectAltName",
        (wild, wild_key): r"has only \*\.lab\.test, \*\.mri\.test; get one that names this machine",
    }.items():
        with pytest.raises(ServeError, match=expected):
            open_access("0.0.0.0", *given)


def test_a_key_with_a_password_is_refused_without_asking_for_it(
    tmp_path: Path, make_certificate: Make
) -> None:
    cert, key = make_certificate(tmp_path, "mri.test")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ServeError, match="without a password"):
        open_access("0.0.0.0", cert, key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, make_certificate: Make, mode: int) -> None:
    cert, key = make_certificate(tmp_path, "mri.test")
    key.chmod(mode)
    with pytest.raises(ServeError, match=f"found mode {mode:o}; run chmod 600 .*key.pem"):
        open_access("0.0.0.0", cert, key)


def test_a_key_that_is_a_pipe_is_refused_without_waiting_for_it(
    tmp_path: Path, make_certificate: Make
) -> None:
    cert, key = make_certificate(tmp_path, "mri.test")
    key.unlink()
    os.mkfifo(key, 0o600)
    with pytest.raises(ServeError, match="expected a file with the certificate's key"):
        open_access("0.0.0.0", cert, key)


def test_every_start_has_a_token_of_its_own_and_does_not_print_it(certificate: tuple[Path, Path]) -> None:
    first, second = (open_access("0.0.0.0", *certificate) for _ in range(2))
    assert first.token
    assert len(first.token) >= 43  # 256 bits
    assert first.token != second.token
    assert first.token not in repr(first)
    assert first.url(8765).startswith("https://mri.test:8765/?token=")


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("mri.test", True), ("MRI.test:8765", True), (f"{REACHED_AT}:1", True), ("a.lab.test", True),
        ("lab.test", False), ("a.b.lab.test", False), (".lab.test", False), ("127.0.0.1", False),
        ("localhost", False), ("evil.test", False), ("mri.test@evil.test", False), ("", False),
        ("mri.test.evil.test", False), ("mri.test/x", False), ("[::1]", False),
    ],
)  # fmt: skip
def test_it_answers_to_the_names_in_its_certificate(
    certificate: tuple[Path, Path], host: str, is_known: bool
) -> None:
    assert open_access("0.0.0.0", *certificate).knows(host) is is_known


def test_every_route_of_the_server_is_among_those_tried_here(run: Any) -> None:
    viewer = Viewer(Broadcast(run.status("waiting").message), 0)
    served = {resource.canonical for resource in viewer._app().router.resources()}
    tried = {path.split("?")[0] for _, path in ROUTES}
    for canonical in served:
        prefix = canonical.split("{")[0]
        assert any(path == canonical or (prefix != "/" and path.startswith(prefix)) for path in tried), (
            canonical
        )


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"},
        {"Cookie": "wrong"}, {"Cookie": ""}, {"Cookie": "w\u00f6rong"},
    ],
)  # fmt: skip
def test_without_the_token_nothing_is_served_on_any_route(
    anywhere: Any, method: str, path: str, headers: dict[str, str]
) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        if "Cookie" in headers:
            headers["Cookie"] = f"{cookie_of(session)}={headers['Cookie']}"
        options = {"Connection": "Upgrade", "Upgrade": "websocket"} if path == "/ws" else {}
        body: dict[str, Any] = {"json": {"sdp": "v=0"}} if method == "POST" else {}
        for query in ("", f"token={token[:-1]}", "token=", "token=%00%ff"):
            target = path if path != "/" else f"/?{query}"
            async with session.request(method, target, headers=headers | options, **body) as response:
                assert response.status == 401, target
                assert not response.cookies
                assert method == "HEAD" or "expected the token" in await response.text()

    anywhere(check)


def test_the_token_is_no_key_in_the_query_of_other_routes(anywhere: Any) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        async with session.get(f"/frames/7.png?token={token}") as response:
            assert response.status == 401

    anywhere(check)


def cookie_of(session: aiohttp.ClientSession) -> str:
    server = session._base_url
    assert server is not None
    return f"{'__Host-' if server.scheme == 'https' else ''}token-{server.port}"


def test_the_printed_url_leaves_a_cookie_and_no_token_in_the_address(anywhere: Any) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        assert session._base_url is not None
        async with session.get(f"/?token={token}", allow_redirects=False) as response:
            assert response.status == 303
            assert response.headers["Location"] == "/"
            cookie = response.headers["Set-Cookie"]
            flags = {part.strip().lower() for part in cookie.split(";")[1:]}
            expected = {"httponly", "path=/", "samesite=strict"}
            assert flags == expected | ({"secure"} if session._base_url.scheme == "https" else set())
            assert cookie.startswith(f"{cookie_of(session)}={token};")
        for path in ("/", "/static/app.js", "/frames/7.png", "/shown/3.png", "/metrics"):
            async with session.get(path) as response:
                assert response.status == 200, path
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        async with session.ws_connect("/ws") as websocket:
            assert (await websocket.receive_json())[0]["kind"] == "run"

    anywhere(check)


def test_what_else_the_address_asks_for_stays_in_it(here: Any) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        asked = f"/?token={token}&transport=websocket&patience=%2F%2Fevil.test%0d%0a"
        async with session.get(URL(asked, encoded=True), allow_redirects=False) as response:
            assert response.headers["Location"] == "/?transport=websocket&patience=%2F%2Fevil.test%0D%0A"

    here(check)


@pytest.mark.parametrize(
    ("path", "site", "dest", "leads_on"),
    [
        ("/?patience=9", "cross-site", "document", "0; url=/?patience=9"),
        ("/", "cross-site", "iframe", None), ("/", "same-origin", "document", None),
        ("/metrics", "cross-site", "document", None), ("//evil.test/", "cross-site", "document", None),
    ],
)  # fmt: skip
def test_only_a_page_that_a_link_led_here_is_led_on_to_where_its_cookie_counts(
    here: Any, path: str, site: str, dest: str, leads_on: str | None
) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        fetch = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": dest}
        async with session.get(URL(f"{session._base_url}".rstrip("/") + path), headers=fetch) as response:
            assert response.status == 401
            assert response.headers.get("Refresh") == leads_on

    here(check)


def test_a_program_brings_the_token_in_a_header(anywhere: Any) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        async with session.get("/frames/7.png", headers={"Authorization": f"Bearer {token}"}) as response:
            assert response.status == 200

    anywhere(check)


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.test"}, {"Host": "127.0.0.1"}, {"Origin": "https://evil.test"}, {"Origin": "null"}],
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_with_the_token_too_other_sites_pages_are_kept_out(
    elsewhere: Any, method: str, path: str, headers: dict[str, str]
) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        brings = {"Authorization": f"Bearer {token}"}
        async with session.request(method, path, headers=headers | brings) as response:
            assert response.status == 403

    elsewhere(check)


NO_REQUESTS = [
    b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1_000 + b"\r\n", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"\x00" * 99,
    b"GET / HTTP/9.9\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("sent", NO_REQUESTS, ids=range(len(NO_REQUESTS)))
def test_what_is_no_request_is_told_nothing_about_the_server(
    anywhere: Any, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async def check(session: aiohttp.ClientSession, _token: str) -> None:
        server = session._base_url
        assert server is not None
        assert session.connector is not None
        trust = session.connector._ssl if server.scheme == "https" else None  # type: ignore[attr-defined]
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=trust)
        writer.write(sent)
        head, _blank, text = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 400") or head.startswith(b"HTTP/1.0 400")
        assert text == b"this is no HTTP request\n"
        assert b"Content-Security-Policy: default-src 'none'" in head
        assert b"X-Content-Type-Options: nosniff" in head
        assert (b"Strict-Transport-Security" in head) is (server.scheme == "https")
        assert b"aiohttp" not in head
        assert b"Python" not in head

    with caplog.at_level(logging.INFO):
        anywhere(check)
    assert caplog.text == ""


def test_over_tls_every_answer_asks_for_tls_from_now_on(elsewhere: Any) -> None:
    async def check(session: aiohttp.ClientSession, token: str) -> None:
        for path in ("/", f"/?token={token}", "/static/app.js", "/no-such-page"):
            async with session.get(path, allow_redirects=False) as response:
                assert response.headers["Strict-Transport-Security"] == "max-age=86400"

    elsewhere(check)


def test_plain_http_gets_nothing(run: Any, certificate: tuple[Path, Path]) -> None:
    async def check() -> None:
        viewer = Viewer(Broadcast(run.status("waiting").message), 0, open_access("0.0.0.0", *certificate))
        port = urlsplit(await viewer.start()).port
        reader, writer = await asyncio.open_connection(REACHED_AT, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: mri.test\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
        await viewer.stop()

    asyncio.run(check())


def test_a_second_loopback_address_is_known_by_itself() -> None:
    access = open_access("127.0.0.2", None, None)
    assert access.url(80) == f"http://127.0.0.2:80/?token={access.token}"
    assert access.knows("127.0.0.2:80")
    assert not access.knows("evil.test")


def test_ipv6_addresses_are_written_in_brackets() -> None:
    assert Access(address="::1").url(80).startswith("http://[::1]:80/?token=")


@pytest.mark.browser
@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_a_browser_shows_the_page_of_another_machine(
    run: Any, serve: Any, open_page: Any, video_mean_rgb: Any, until: Any, certificate: Any, transport: str
) -> None:
    served = serve(run.status("warming", 30), access=open_access("0.0.0.0", *certificate))
    token = served.url.split("token=")[1]
    served.send(run.frame(30, (200, 50, 50)))
    page = open_page(
        f"https://{REACHED_AT}:{served.port}/?token={token}",
        flags=("--ignore-certificate-errors",),  # nobody has signed it
        init_script="delete window.RTCPeerConnection;" if transport == "websocket" else "",
    )
    assert page.url == f"https://{REACHED_AT}:{served.port}/"
    expect(page.locator("html")).to_have_attribute("data-transport", transport)
    expect(page.get_by_test_id("frame-volume")).to_have_attribute("data-value", "30")
    if transport == "webrtc":
        until(page, lambda: abs(video_mean_rgb(page)[0] - 200) < 10, "the video")
    assert page.evaluate("document.cookie") == ""  # scripts cannot read it
