"""The server over real sockets: routes, refusals, the WebSocket."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import realtime.viewer
from realtime.errors import ServeError
from realtime.events import Broadcast
from realtime.viewer.server import MAX_TRIES, Viewer

STATIC = Path(realtime.viewer.__file__).parent / "static"


def decode_png(png: bytes) -> NDArray[np.uint8]:
    bgr = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.asarray(bgr[:, :, ::-1], np.uint8)


async def status_and_text(request: Any) -> tuple[int, str]:
    async with request as response:
        return response.status, await response.text()


def test_page_and_everything_it_asks_for(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        code, page = await status_and_text(session.get("/"))
        assert code == 200
        assets = set(re.findall(r'(?:src|href)="([^"]+)"', page))
        assert {"/static/app.js", "/static/style.css"} <= assets
        seen: set[str] = set()
        while assets:
            path = assets.pop()
            seen.add(path)
            async with session.get(path) as response:
                assert response.status == 200, path
                if path.endswith(".js"):
                    assert response.content_type in {"text/javascript", "application/javascript"}
                    imports = re.findall(r'from "\./([^"]+)"', await response.text())
                    assets |= {f"/static/{name}" for name in imports} - seen
        assert "/static/vendor/uplot/uPlot.esm.js" in seen
        assert (STATIC / "vendor/uplot/LICENSE").is_file()

    with_viewer(run.status("waiting"), check)


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/frames/1.png", "/no-such-page", "/offer"])
def test_every_answer_is_locked_down(with_viewer: Any, run: Any, path: str) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        async with session.get(path) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in response.headers
            assert "Server" not in response.headers

    with_viewer(run.status("waiting"), check)


def test_page_needs_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page)
    own = [path for path in STATIC.rglob("*.*") if "vendor" not in path.parts]
    assert len(own) > 5
    for path in own:
        urls = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text()))
        assert urls <= {"http://www.w3.org/2000/svg"}, path


@pytest.mark.parametrize(
    "path",
    [
        "/frames/8.png", "/frames/-1.png", "/frames/x.png", "/frames/7", "/frames/7.png/", "/frames/0x7.png",
        "/frames/99999999999999999999.png", "/frames/..%2f..%2fserver.py", "/shown/7.png",
        "/shown/%2e%2e.png",
        "/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd",
        "/static/", "/static", "/frames/7.png?run=of-another-time",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(with_viewer: Any, run: Any, path: str) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        broadcast.send(run.frame(7))
        # As it stands, without the client tidying it up.
        reader, writer = await asyncio.open_connection("127.0.0.1", session._base_url.port)  # type: ignore[union-attr]
        brings = f"Authorization: {session.headers['Authorization']}"
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{brings}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()
        assert answer.split()[1] in {b"403", b"404"}, answer
        assert b"import" not in answer

    with_viewer(run.status("warming"), check)


def test_pictures_of_the_open_run(with_viewer: Any, run: Any, make_run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        frame = run.frame(7, (200, 60, 30))
        shown = run.shown(3, "apple", (10, 200, 30))
        broadcast.send(frame)
        broadcast.send(shown)
        async with session.get("/frames/7.png") as response:
            assert response.content_type == "image/png"
            assert response.headers["Cache-Control"] == "no-store"
            np.testing.assert_array_equal(decode_png(await response.read()), frame.image)
        async with session.get("/frames/7.png?width=16") as response:
            assert decode_png(await response.read()).shape == (16, 16, 3)
        async with session.get("/shown/3.png") as response:
            assert await response.read() == shown.png
        broadcast.send(make_run("the next run").status("warming"))
        assert (await status_and_text(session.get("/frames/7.png")))[0] == 404

    with_viewer(run.status("warming"), check)


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "192.0.2.1:80", "rebound.test:8765"]
)
@pytest.mark.parametrize("path", ["/", "/ws", "/frames/7.png", "/static/app.js"])
def test_a_foreign_name_for_this_machine_is_refused(with_viewer: Any, run: Any, host: str, path: str) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        broadcast.send(run.frame(7))
        code, text = await status_and_text(session.get(path, headers={"Host": host}))
        assert code == 403
        assert "open the printed URL" in text

    with_viewer(run.status("warming"), check)


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", "http://127.0.0.1:1", "https://127.0.0.1", "http://localhost"]
)
def test_pages_of_other_sites_are_refused(with_viewer: Any, run: Any, origin: str) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        headers = {"Origin": origin}
        assert (await status_and_text(session.post("/offer", json={"sdp": "v=0"}, headers=headers)))[0] == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("/ws", headers=headers)
        assert refused.value.status == 403

    with_viewer(run.status("waiting"), check)


def test_own_page_may_connect_by_any_loopback_name(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        port = session._base_url.port  # type: ignore[union-attr]
        for name in ("127.0.0.1", "localhost", "[::1]"):
            headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
            async with session.ws_connect("/ws", headers=headers) as websocket:
                assert (await websocket.receive_json())[0]["kind"] == "run"

    with_viewer(run.status("waiting"), check)


def test_only_127_0_0_1_is_listened_on(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", session._base_url.port)  # type: ignore[union-attr]

    with_viewer(run.status("waiting"), check)


def test_port_in_use_is_one_clear_line(run: Any) -> None:
    async def start() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            viewer = Viewer(Broadcast(run.status("waiting").message), port)
            with pytest.raises(ServeError, match=f"^port {port} on 127.0.0.1 is in use: [^\n]*--port[^\n]*$"):
                await viewer.start()
            await viewer.stop()
        assert (await viewer.start()).startswith(f"http://127.0.0.1:{port}/?token=")  # free again
        await viewer.stop()
        await viewer.stop()

    asyncio.run(start())


class Page:
    """Reads a WebSocket as the page does."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[tuple[int, NDArray[np.uint8]]] = []

    async def read_until(self, done: Callable[[], bool]) -> None:
        while not done():
            message = await self._websocket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                volume = int.from_bytes(message.data[:4], "big")
                self.pictures.append((volume, decode_png(message.data[4:])))
            else:
                self.messages.extend(message.json())

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["kind"] == kind]


def test_a_late_page_is_told_the_whole_run(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        broadcast.send(run.shown(0, "apple", (200, 0, 0)))
        frames = [run.frame(volume, (volume, 100, 50), shown_onset=0) for volume in range(8, 208)]
        for frame in frames:
            broadcast.send(frame)
        broadcast.send(run.status("trusted", 207, message="run resumed at volume 90"))
        async with session.ws_connect("/ws") as websocket:
            page = Page(websocket)
            await page.read_until(lambda: len(page.of_kind("frame")) == 200 and len(page.pictures) > 0)
        assert [message["kind"] for message in page.messages[:3]] == ["run", "status", "shown"]
        assert page.of_kind("status")[-1]["message"] == "run resumed at volume 90"
        assert [message["volume"] for message in page.of_kind("frame")] == list(range(8, 208))
        assert page.of_kind("shown")[0] == {
            "kind": "shown",
            "run_id": run.run_id,
            "onset_volume": 0,
            "name": "apple",
        }
        volume, image = page.pictures[-1]
        assert volume == 207
        np.testing.assert_array_equal(image, frames[-1].image)

    with_viewer(run.status("waiting"), check)


def test_a_slow_page_misses_no_frame_and_is_shown_the_newest(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        async with session.ws_connect("/ws") as websocket:
            page = Page(websocket)
            await page.read_until(lambda: len(page.of_kind("status")) == 1)
            for volume in range(150):  # more than its queue holds, in one go
                broadcast.send(run.frame(volume, (volume, 0, 0)))
            broadcast.send(run.status("trusted", 149))
            await page.read_until(lambda: len(page.of_kind("frame")) == 150 and page.pictures[-1][0] == 149)
        assert [message["volume"] for message in page.of_kind("frame")] == list(range(150))
        assert len(page.pictures) < 150
        assert page.of_kind("status")[-1]["volume"] == 149

    with_viewer(run.status("warming"), check)


def test_a_new_run_begins_anew(with_viewer: Any, run: Any, make_run: Any) -> None:
    async def check(session: aiohttp.ClientSession, broadcast: Broadcast) -> None:
        second = make_run("second")
        async with session.ws_connect("/ws") as websocket:
            page = Page(websocket)
            broadcast.send(run.frame(7))
            await page.read_until(lambda: len(page.of_kind("frame")) == 1)
            broadcast.send(second.status("warming", 0))
            broadcast.send(second.frame(6))
            await page.read_until(lambda: len(page.of_kind("frame")) == 2)
        first_key, second_key = (message["key"] for message in page.of_kind("run"))
        after = page.messages[page.messages.index({"kind": "run", "key": second_key}) :]
        assert {message["run_id"] for message in after if "run_id" in message} == {"second"}
        assert (await status_and_text(session.get(f"/frames/6.png?run={first_key}")))[0] == 404
        async with session.get(f"/frames/6.png?run={second_key}") as response:
            assert response.status == 200
            assert "immutable" in response.headers["Cache-Control"]

    with_viewer(run.status("warming"), check)


@pytest.mark.parametrize("what", ["words", "a flood of pings"])
def test_a_page_that_talks_is_hung_up_on(with_viewer: Any, run: Any, what: str) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        async with session.ws_connect("/ws") as websocket:
            if what == "words":
                await websocket.send_str("hello")
            else:
                for _ping in range(3 * MAX_TRIES):
                    await websocket.ping()
            while not websocket.closed:
                await websocket.receive()
            assert websocket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION

    with_viewer(run.status("waiting"), check)


def test_a_program_may_ask_whether_the_server_is_there(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        async with session.ws_connect("/ws", autoping=False) as websocket:
            await websocket.ping(b"there?")
            while (message := await websocket.receive()).type is not aiohttp.WSMsgType.PONG:
                assert message.type is aiohttp.WSMsgType.TEXT
            assert message.data == b"there?"

    with_viewer(run.status("waiting"), check)


def test_an_address_that_opens_websockets_too_often_waits(with_viewer: Any, run: Any) -> None:
    async def check(session: aiohttp.ClientSession, _: Broadcast) -> None:
        refused = []
        for _attempt in range(3 * MAX_TRIES):
            try:
                async with session.ws_connect("/ws") as websocket:
                    await websocket.receive_json()
            except aiohttp.WSServerHandshakeError as error:
                refused.append(error.status)
        assert set(refused) == {429}
        assert len(refused) <= 2 * MAX_TRIES

    with_viewer(run.status("waiting"), check)


def test_stop_says_goodbye(run: Any) -> None:
    async def check() -> aiohttp.WSCloseCode | int | None:
        viewer = Viewer(Broadcast(run.status("waiting").message), 0)
        url, token = (await viewer.start()).split("?token=")
        brings = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(url, headers=brings) as session,
            session.ws_connect("/ws") as websocket,
        ):
            await websocket.receive_json()
            stopping = asyncio.create_task(viewer.stop())
            while not websocket.closed:
                await websocket.receive()
            await stopping
            return websocket.close_code

    assert asyncio.run(check()) == aiohttp.WSCloseCode.GOING_AWAY
