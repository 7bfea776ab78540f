"""Connections to the page: those without the token neither use it up nor keep a page out. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import resource
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np
import pytest

from realtime.events import Broadcast, Event
from realtime.viewer import connections
from realtime.viewer.access import open_access
from realtime.viewer.server import Viewer

PATIENCE_S = 120
N_IDLE = 1_500
SERVER_DESCRIPTORS = 400
"""Far fewer than the idle connections, and not many more than the page allows itself."""
OFFER = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n"
    "a=rtpmap:96 VP8/90000\r\na=fingerprint:sha-256 00\r\nm=application 9 UDP/DTLS/SCTP webrtc-"
    "datachannel\r\n" + "a=rtcp-fb:* nack\r\n" * 400
)

# The page in a process of its own, with few descriptors, until its input ends. It says its URL, then how many
# descriptors it has open whenever it is asked.
SERVER = """
import asyncio, logging, msgspec, os, pathlib, resource, sys
from realtime.events import Broadcast, Status
from realtime.viewer.access import open_access
from realtime.viewer.server import Viewer
from realtime.viewer.prometheus import Metrics

async def serve():
    folder = pathlib.Path(sys.argv[1])
    status = msgspec.json.decode(sys.argv[3], type=Status)
    access = open_access("0.0.0.0", folder / "cert.pem", folder / "key.pem")
    viewer = Viewer(Broadcast(status), 0, access, Metrics(lambda: None))
    print(await viewer.start(), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(len(os.listdir("/proc/self/fd")), flush=True)
    await viewer.stop()

logging.basicConfig(level=logging.INFO)
n = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))
asyncio.run(serve())
"""


class Page:
    """The page's process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdout
        self._process = process
        url = process.stdout.readline().strip()
        self.port = urlsplit(url).port or 0
        self.token = url.split("token=")[1]
        self.trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))

    def n_descriptors(self) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> str:
        """Returns what it has logged."""
        return self._process.communicate(timeout=PATIENCE_S)[1]

    def client(self, host: str, token: str | None = None) -> aiohttp.ClientSession:
        """Requests from an address of this machine."""
        return aiohttp.ClientSession(
            f"https://127.0.0.1:{self.port}",
            connector=aiohttp.TCPConnector(ssl=self.trust, local_addr=(host, 0), limit=0),
            headers={"Authorization": f"Bearer {token or self.token}"},
        )

    def get_metrics(self, host: str) -> int:
        """On a connection of its own, from an address of this machine."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=PATIENCE_S, context=self.trust, source_address=(host, 0)
        )
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            assert answer.status != 200 or b"realtime_volumes_total" in answer.read()
            return answer.status

    async def get(self, host: str = "127.0.0.1") -> int:
        async with (
            asyncio.timeout(PATIENCE_S),
            self.client(host) as session,
            session.get("/static/app.js") as response,
        ):
            assert await response.read()
            return response.status


@pytest.fixture
def page(make_certificate: Any, run: Any, tmp_path: Path) -> Iterator[Page]:
    make_certificate(tmp_path, "127.0.0.1")
    status = msgspec.json.encode(run.status("waiting").message).decode()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), str(SERVER_DESCRIPTORS), status],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield Page(process, tmp_path)
        process.kill()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = N_IDLE + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, this machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc, binds to 127.0.0.2")
def test_1500_idle_tls_connections_neither_use_up_descriptors_nor_keep_a_page_out(
    page: Page, many_descriptors: None
) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        trust = page.trust
        held: list[asyncio.Transport] = []

        async def idle() -> None:
            with contextlib.suppress(OSError):  # the server may close it as soon as it is open
                transport, _ = await loop.create_connection(
                    asyncio.Protocol, "127.0.0.1", page.port, ssl=trust, ssl_handshake_timeout=PATIENCE_S
                )
                held.append(transport)

        before = page.n_descriptors()
        for _ in range(N_IDLE // 50):
            await asyncio.gather(*(idle() for _ in range(50)))
            assert page.n_descriptors() - before <= connections.MAX_UNKNOWN + 10
        assert len(held) > N_IDLE // 2
        assert await page.get() == 200  # from the same address
        assert await page.get("127.0.0.2") == 200  # and from another
        assert page.n_descriptors() - before <= connections.MAX_UNKNOWN + 10
        for transport in held:
            transport.abort()

    asyncio.run(check())
    log = page.stop()
    assert "Traceback" not in log
    assert len(log.splitlines()) < 20
    assert log.count("closed to make room") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="binds to 127.0.0.2")
@pytest.mark.parametrize("has_token", [True, False])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/metrics"), ("POST", "/offer"), ("GET", "/ws"), ("GET", "/frames/7.png")]
)
def test_a_flood_from_one_address_does_not_keep_another_out(
    page: Page, method: str, path: str, has_token: bool
) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers = upgrade | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} if path == "/ws" else {}
    body: dict[str, Any] = {"json": {"sdp": OFFER}} if method == "POST" else {}
    answered: list[int] = []
    n_tried = 0

    async def flood(session: aiohttp.ClientSession) -> None:
        nonlocal n_tried
        while True:
            n_tried += 1
            with contextlib.suppress(aiohttp.ClientError):
                async with session.request(method, path, headers=headers, **body) as response:
                    answered.append(response.status)
            await asyncio.sleep(0)

    async def check() -> None:
        async with page.client("127.0.0.2", None if has_token else "wrong") as session:
            floods = [asyncio.create_task(flood(session)) for _ in range(30)]
            async with asyncio.timeout(PATIENCE_S):
                while not answered:
                    await asyncio.sleep(0.01)
                for host in ["127.0.0.1"] * 10 + ["127.0.0.2"] * 10:
                    before = n_tried
                    assert await asyncio.to_thread(page.get_metrics, host) == 200
                    while n_tried == before:  # the flood goes on
                        await asyncio.sleep(0.01)
            for each in floods:
                each.cancel()
            await asyncio.gather(*floods, return_exceptions=True)

    asyncio.run(check())
    assert "Traceback" not in page.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="binds to 127.0.0.2")
def test_one_address_takes_no_place_from_another(page: Page) -> None:
    async def check() -> None:
        early = await _open(page, b"", "127.0.0.2")  # slow, but not one of many
        many = [await _open(page, b"") for _ in range(connections.MAX_UNKNOWN + 10)]
        closed = await asyncio.gather(*(_is_closed(reader) for reader, _ in many))
        assert closed.count(False) == connections.MAX_UNKNOWN_AT_ADDRESS
        assert not any(closed[-connections.MAX_UNKNOWN_AT_ADDRESS :])  # the oldest were closed
        assert not await _is_closed(early[0])
        for _, writer in [early, *many]:
            writer.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        b"POST /offer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half a header", "half a body"],
)
def test_slow_requests_without_the_token_end(
    run: Any, with_viewer: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "UNKNOWN_S", 0.2)

    async def check(session: aiohttp.ClientSession, _: Any) -> None:
        server = session._base_url
        assert server is not None
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(sent)
        trickle = asyncio.create_task(_trickle(writer))
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in await reader.read()
        trickle.cancel()
        writer.close()

    with_viewer(run.status("waiting"), check)


def test_a_tls_handshake_that_stops_half_way_ends(
    run: Any,
    make_certificate: Any,
    tmp_path: Path,
    serve: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "UNKNOWN_S", 0.2)
    access = open_access("127.0.0.1", *make_certificate(tmp_path, "127.0.0.1"))
    served = serve(run.status("waiting"), access=access)

    async def check() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()

    asyncio.run(check())


async def _open(
    page: Page, sent: bytes, host: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", page.port, ssl=page.trust, local_addr=(host, 0)
    )
    writer.write(sent)
    return reader, writer


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 0.5) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(0.02)
        writer.write(b"x")


def test_a_page_that_does_not_read_its_websocket_is_let_go(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)

    async def check() -> None:
        broadcast = Broadcast(run.status("warming").message)
        viewer = Viewer(broadcast, 0)
        url, token = (await viewer.start()).split("?token=")
        headers = {"Authorization": f"Bearer {token}"}
        patience = aiohttp.ClientWSTimeout(ws_close=0.1)  # with a server that has hung up
        async with (
            aiohttp.ClientSession(url, headers=headers) as session,
            session.ws_connect("/ws", timeout=patience) as page,
        ):
            await page.receive()
            client = page.get_extra_info("socket").fileno()
            asyncio.get_running_loop()._remove_reader(client)  # type: ignore[attr-defined]
            [socket] = viewer._sockets
            assert socket._req is not None
            most, n_sent = 0, 0
            async with asyncio.timeout(PATIENCE_S):
                while viewer._sockets:
                    broadcast.send(Event(run.frame(n_sent).message, image=noise))
                    n_sent += 1
                    await asyncio.sleep(0.02)
                    transport = socket._req.transport
                    most = max(most, transport.get_write_buffer_size() if transport else 0)
            assert 0 < most < 2 * noise.nbytes
        await viewer.stop()

    asyncio.run(check())


def test_peers_that_go_before_they_are_answered_leave_no_traceback(
    run: Any, with_viewer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        base = session._base_url
        assert base is not None
        head = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {session.headers['Authorization']}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        for _attempt in range(12):
            writers = [(await asyncio.open_connection(base.host, base.port))[1] for _ in range(20)]
            for writer in writers:
                writer.write(head.encode())
            await asyncio.sleep(0)
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    with_viewer(run.status("waiting"), check)
    assert "Traceback" not in caplog.text
