"""WebRTC without a browser: aiortc at both ends, over real sockets on 127.0.0.1; and offers that are none."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import VideoFrame
from numpy.typing import NDArray

from realtime.events import KEPT, Broadcast
from realtime.viewer import peer, server
from realtime.viewer.access import open_access
from realtime.viewer.offer import (
    MAX_OFFER_BYTES,
    MAX_OFFER_LINES,
    candidate_addresses,
    gather_only,
    without_candidates,
)
from realtime.viewer.server import MAX_PAGES, MAX_TRIES, Viewer

PATIENCE_S = 60


class Page:
    """The page's half of the connection."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.messages: list[dict[str, Any]] = []
        self.told = asyncio.Event()
        channel = self.connection.createDataChannel("numbers")
        channel.on("message", self._hear)
        self.track = self.connection.addTransceiver("video", direction="recvonly").receiver.track
        self.connection.on("track", self._take)

    def _hear(self, text: str) -> None:
        self.messages.extend(json.loads(text))
        self.told.set()

    def _take(self, track: Any) -> None:
        self.track = track

    async def offer(self) -> str:
        gather_only(self.connection, self.address)
        await self.connection.setLocalDescription()
        return self.connection.localDescription.sdp

    async def connect(self, session: aiohttp.ClientSession) -> str:
        async with session.post("/offer", json={"type": "offer", "sdp": await self.offer()}) as response:
            answer = await response.json()
            assert response.status == 200, answer
        await self.connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        return str(answer["sdp"])

    async def hear(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not done():
                self.told.clear()
                await self.told.wait()

    async def see(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Receive video until it shows this picture's mean colour."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                received = await self.track.recv()
                assert isinstance(received, VideoFrame)
                frame = received.to_ndarray(format="rgb24")
                if np.abs(frame.mean((0, 1)) - image.mean((0, 1))).max() < 4:
                    return np.asarray(frame)

    def volumes(self) -> list[int]:
        return [message["volume"] for message in self.messages if message["kind"] == "frame"]


def test_video_and_numbers_over_loopback_alone(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        broadcast.send(run.frame(6, (200, 40, 40)))
        page = Page()
        answer = await page.connect(session)
        assert candidate_addresses(answer) == {"127.0.0.1"}
        frame = await page.see(broadcast.frames[6, "general"].image)  # type: ignore[arg-type]
        assert frame.shape == (512, 512, 3)
        for volume, rgb in [(7, (40, 200, 40)), (8, (40, 40, 200)), (9, (220, 220, 60))]:
            broadcast.send(run.status("warming", volume))
            broadcast.send(run.frame(volume, rgb))
            await page.see(broadcast.frames[volume, "general"].image)  # type: ignore[arg-type]
        await page.hear(lambda: page.volumes() == [6, 7, 8, 9])
        assert [m["volume"] for m in page.messages if m["kind"] == "status"][-1] == 9
        await page.connection.close()

    with_viewer(run.status("waiting"), check)


def test_elsewhere_it_comes_from_the_address_the_page_has_reached(
    make_certificate: Any, tmp_path: Path, run: Any
) -> None:
    address = "127.0.0.2"  # stands for the machine's address on a network: a page on 127.0.0.1 is not there
    cert, key = make_certificate(tmp_path, address)

    async def check() -> None:
        broadcast = Broadcast(run.status("warming").message)
        broadcast.send(run.frame(6, (200, 40, 40)))
        viewer = Viewer(broadcast, 0, open_access("0.0.0.0", cert, key))
        url = await viewer.start()
        page = Page(address)
        trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(cert)))
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(connector=trust, cookie_jar=jar) as session:
            await (await session.get(url)).read()
        # The cookie is there: from here on the page needs no token in its addresses.
        base = url.split("?")[0]
        trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(cert)))
        async with aiohttp.ClientSession(base, connector=trust, cookie_jar=jar) as session:
            answer = await page.connect(session)
        assert candidate_addresses(answer) == {address}
        await page.see(broadcast.frames[6, "general"].image)  # type: ignore[arg-type]
        await page.hear(lambda: page.volumes() == [6])
        await page.connection.close()
        await viewer.stop()

    asyncio.run(check())


def test_the_log_says_nothing_of_the_addresses_that_are_tried(
    with_viewer: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        broadcast.send(run.frame(6, (200, 40, 40)))
        page = Page()
        await page.connect(session)
        await page.hear(lambda: page.volumes() == [6])
        await page.connection.close()

    with_viewer(run.status("waiting"), check)
    assert not [each for each in caplog.records if each.name.startswith(("aioice", "aiortc"))]


def test_a_late_page_is_told_a_long_run(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        for volume in range(KEPT):
            broadcast.send(run.frame(volume))
        page = Page()
        await page.connect(session)
        await page.hear(lambda: len(page.volumes()) == KEPT)
        assert page.volumes() == list(range(KEPT))
        await page.connection.close()

    with_viewer(run.status("waiting"), check)


def test_stop_ends_the_connection(run: Any) -> None:
    async def check() -> None:
        viewer = Viewer(Broadcast(run.status("waiting").message), 0)
        url, token = (await viewer.start()).split("?token=")
        page = Page()
        closed = asyncio.Event()
        page.connection.on(
            "connectionstatechange",
            lambda: closed.set() if page.connection.connectionState == "closed" else None,
        )
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {token}"}) as session:
            await page.connect(session)
            await page.hear(lambda: len(page.messages) > 0)
        await viewer.stop()
        await closed.wait()

    asyncio.run(check())


def test_an_offers_own_candidates_are_not_looked_at() -> None:
    lines = [
        "v=0",
        "m=video 9 UDP/TLS/RTP/SAVPF 96",
        "a=candidate:1 1 udp 2113937151 secret.local 53756 typ host generation 0",
        "a=candidate:2 1 udp 2113937151 192.0.2.7 53756 typ host",
        "a=end-of-candidates",
        "a=mid:0",
    ]
    kept = without_candidates("\r\n".join(lines))
    assert kept.splitlines() == [lines[0], lines[1], lines[5]]
    assert candidate_addresses("\r\n".join(lines)) == {"secret.local", "192.0.2.7"}


async def good_offer() -> str:
    page = Page()
    sdp = await page.offer()
    await page.connection.close()
    return sdp


def spoil(sdp: str, how: str) -> str:
    lines = sdp.splitlines()
    match how:
        case "no credentials":
            lines = [line for line in lines if not line.startswith(("a=ice-ufrag", "a=ice-pwd"))]
        case "no fingerprint":
            lines = [line for line in lines if not line.startswith("a=fingerprint")]
        case "no codec of ours":
            lines = [line.replace("VP8", "VP7") for line in lines]
        case "two videos":
            lines += [line for line in lines if line.startswith("m=video")]
        case "no data channel":
            lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("m=application"))]
        case "a torn line":
            lines = [line[:9] if line.startswith("a=rtpmap") else line for line in lines]
        case "numbers that are words":
            lines = [re.sub(r"^m=video \d+", "m=video nine", line) for line in lines]
        case "cut in half":
            lines = lines[: len(lines) // 2]
        case "many sections":
            lines += ["m=audio 9 UDP/TLS/RTP/SAVPF 0"] * 500
    spoiled = "\r\n".join(lines) + "\r\n"
    assert spoiled != sdp, how
    return spoiled


SPOILED = [
    "no credentials", "no fingerprint", "no codec of ours", "two videos", "no data channel", "a torn line",
    "numbers that are words", "cut in half", "many sections",
]  # fmt: skip
GARBAGE = ["", "v=0", "hello", "v=0\r\nm=video\r\nm=application\r\n", "v=0\r\n" + "\x00" * 99, "m=" * 500]


def test_bad_offers_are_refused_and_leave_nothing_behind(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        offer = await good_offer()
        offers = GARBAGE + [spoil(offer, how) for how in SPOILED]
        assert len(offers) > MAX_PAGES  # so that a leak would show in the end
        for sdp in offers:
            async with session.post("/offer", json={"sdp": sdp}) as response:
                assert response.status == 400, sdp
                assert (await response.json())["error"]
        async with session.post("/offer", json={"sdp": offer}) as response:
            assert response.status == 200

    with_viewer(run.status("waiting"), check)


def test_offers_that_break_off_take_no_place(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        base = session._base_url
        assert base is not None
        head = f"POST /offer HTTP/1.1\r\nHost: {base.host}:{base.port}\r\n"
        head += f"Authorization: {session.headers['Authorization']}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        for _ in range(MAX_PAGES + 1):
            _, writer = await asyncio.open_connection(base.host, base.port)
            writer.write(head.encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        async with session.post("/offer", json={"sdp": await good_offer()}) as response:
            assert response.status == 200

    with_viewer(run.status("waiting"), check)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"sdp": "\xed\xa0\x80"}', "application/json", 400),
        (b'{"sdp": 7}', "application/json", 400),
        (b'{"type": "offer"}', "application/json", 400),
        (b'{"sdp": "v=0"}', "text/plain", 415),
        (b'{"sdp": "' + b"x" * MAX_OFFER_BYTES + b'"}', "application/json", 413),
    ],
)
def test_bad_bodies_are_refused(
    with_viewer: Any, run: Any, body: bytes, content_type: str, status: int
) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        headers = {"Content-Type": content_type}
        for _attempt in range(MAX_PAGES + 1):
            async with session.post("/offer", data=body, headers=headers) as response:
                assert response.status == status
        async with session.post("/offer", json={"sdp": await good_offer()}) as response:
            assert response.status == 200

    with_viewer(run.status("waiting"), check)


def test_an_offer_that_would_take_long_to_parse_is_refused(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        sdp = await good_offer() + "a=ssrc:1 c:x\r\n" * MAX_OFFER_LINES
        assert len(sdp) < MAX_OFFER_BYTES
        async with session.post("/offer", json={"sdp": sdp}) as response:
            assert response.status == 400
            assert f"at most {MAX_OFFER_LINES} lines" in (await response.json())["error"]

    with_viewer(run.status("waiting"), check)


def test_an_offer_that_does_not_come_in_whole_is_refused(
    with_viewer: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.2)

    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        async def slowly() -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await asyncio.sleep(0.02)

        headers = {"Content-Type": "application/json"}
        async with session.post("/offer", data=slowly(), headers=headers) as response:
            assert response.status == 408

    with_viewer(run.status("waiting"), check)


def test_pages_that_never_connect_make_room_again(
    with_viewer: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "CONNECT_TIMEOUT_S", 1.0)

    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        offer = {"sdp": await good_offer()}
        codes: list[int] = []
        async with asyncio.timeout(PATIENCE_S):
            while codes.count(200) <= MAX_PAGES:
                async with session.post("/offer", json=offer) as response:
                    codes.append(response.status)
                await asyncio.sleep(0.05)
        assert set(codes) <= {200, 503}

    with_viewer(run.status("waiting"), check)


def test_an_address_that_offers_too_often_waits(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        offer = {"sdp": spoil(await good_offer(), "no credentials")}
        codes: list[int] = []
        while len(codes) < 2 * MAX_TRIES:
            async with session.post("/offer", json=offer) as response:
                codes.append(response.status)
        assert codes[:MAX_TRIES] == [400] * MAX_TRIES
        assert 429 in codes

    with_viewer(run.status("waiting"), check)


def serve_a_page(run: Any, check: Callable[[Page, Viewer, Broadcast], Coroutine[Any, Any, None]]) -> None:
    """Connect a page, and let ``check`` do with it what a browser would not."""

    async def serving() -> None:
        broadcast = Broadcast(run.status("trusted", 1).message)
        viewer = Viewer(broadcast, 0)
        url, token = (await viewer.start()).split("?token=")
        page = Page()
        try:
            async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {token}"}) as session:
                await page.connect(session)
            await page.hear(lambda: len(page.messages) > 0)
            async with asyncio.timeout(PATIENCE_S):
                await check(page, viewer, broadcast)
                while viewer._peers:
                    await asyncio.sleep(0.01)
        finally:
            await asyncio.gather(page.connection.close(), viewer.stop())

    asyncio.run(serving())


def test_a_page_that_reads_nothing_is_let_go_and_fills_no_memory(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "STALL_S", 0.5)

    async def check(page: Page, viewer: Viewer, broadcast: Broadcast) -> None:
        async def ignore(_data: bytes) -> None:
            """Acknowledge nothing, as if the network were gone one way."""

        assert page.connection.sctp is not None
        monkeypatch.setattr(page.connection.sctp, "_handle_data", ignore)
        [connected] = viewer._peers
        assert connected._connection.sctp is not None
        [channel] = connected._connection.sctp._data_channels.values()
        most = 0
        for number in range(2_000):
            broadcast.send(run.status("trusted", 1, message=f"{number} " + "x" * 8_000))
            await asyncio.sleep(0)
            most = max(most, channel.bufferedAmount)
        assert peer.BUFFER_BYTES < most < 3 * peer.BUFFER_BYTES

    serve_a_page(run, check)


def test_a_page_that_sends_a_message_without_an_end_is_let_go(run: Any) -> None:
    async def check(page: Page, viewer: Viewer, broadcast: Broadcast) -> None:
        assert page.connection.sctp is not None
        [channel] = page.connection.sctp._data_channels.values()
        page.connection.sctp._remote_max_message_size = 0  # as if the server took any
        channel.send(b"x" * 4 * 1024 * 1024)

    serve_a_page(run, check)


def test_one_page_too_many_is_told_so(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        offer = {"sdp": await good_offer()}
        for _page in range(MAX_PAGES):
            async with session.post("/offer", json=offer) as response:
                assert response.status == 200
        async with session.post("/offer", json=offer) as response:
            assert response.status == 503
            assert "connected already" in (await response.json())["error"]

    with_viewer(run.status("waiting"), check)
