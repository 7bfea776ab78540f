"""Publishing over real sockets: messages, authentication and slow subscribers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from realtime import cli
from realtime.errors import ServeError
from realtime.events import Broadcast, Counts, DecoderUsed, Event, Frame, LatencyMs, Quality, Status
from realtime.network.key_files import load_client_keys, load_server_keys, make_keys, own_server_keys
from realtime.network.publish import HIGH_WATER_MARK, Publisher
from realtime.record.reader import read_image, read_recorded

from ...keyed import own_keys, own_server, without_keys
from .conftest import Client, Scan, Served

SUBSCRIBER = Path(__file__).parents[3] / "docs" / "examples" / "subscriber.py"
LATENCY_MS = LatencyMs(journal=1, preprocess=2, wait=3, brain=4, denoise=5, vae=6, total=21)
PATIENCE_MS = 60_000

Subscribe = Callable[..., zmq.Socket[bytes]]


@pytest.fixture
def subscribe() -> Iterator[Subscribe]:
    """``subscribe(address, prepare)``: a SUB socket to everything; ``prepare`` comes before it connects."""
    context = zmq.Context()

    def connect(
        address: str, prepare: Callable[[zmq.Socket[bytes]], None] | None = None
    ) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.SUB)
        socket.linger = 0
        socket.subscribe("")
        (prepare or own_keys("subscriber"))(socket)
        socket.connect(address)
        return socket

    yield connect
    context.destroy(linger=0)


def receive(socket: zmq.Socket[bytes]) -> tuple[str, dict[str, Any], bytes]:
    assert socket.poll(PATIENCE_MS), "nothing was published"
    topic, header, picture = socket.recv_multipart()
    return topic.decode(), msgspec.msgpack.decode(header), picture


def status(state: str, run_id: str | None = "run", folder: str = "/runs/run") -> Event:
    return Event(
        Status(
            state=state,  # type: ignore[arg-type]
            run_id=run_id,
            subject=1,
            volume=None,
            counts=Counts(planned=40, decoded=3),
            tr_s=4 / 3,
            decode_delay_s=12.0,
            bundle_name="tiny",
            bundle_sha256="5a" * 32,
            bundle_is_demo=False,
            decoders=(DecoderUsed(name="general", window_delay_volumes=8),),
            run_folder=folder if run_id else None,
            message="",
        )
    )


def frame(volume: int, edge_px: int = 8, decoder: str = "general", **changes: Any) -> Event:
    message = Frame(
        run_id="run",
        volume=volume,
        decoder=decoder,
        window=(volume - 5, volume + 1),
        state="trusted",
        sampler="ddim-4",
        latency_ms=LATENCY_MS,
        shown_onset=None,
    )
    return Event(message, image=np.full((edge_px, edge_px, 3), volume % 256, np.uint8), **changes)


class Published:
    """A publisher on a broadcast of its own."""

    def __init__(self, **options: Any) -> None:
        self.publisher = Publisher("tcp://127.0.0.1:0", **({"keys": own_server_keys()} | options))
        self.broadcast = Broadcast(status("waiting", None).message)  # type: ignore[arg-type]
        self.broadcast.call(self.publisher.take)
        self.address = self.publisher.start()
        self._begun = 0

    def send(self, *events: Event) -> None:
        for event in events:
            self.broadcast.send(event)

    async def until_heard(self, socket: zmq.Socket[bytes]) -> None:
        """Begin runs until the subscriber receives the newest, because a subscription takes a moment."""
        while not await asyncio.to_thread(socket.poll, 10):
            self._begun += 1
            self.send(status("warming", f"before-{self._begun}", f"/runs/before-{self._begun}"))
        while receive(socket)[1]["run_id"] != f"before-{self._begun}":
            pass


def with_publisher(check: Callable[[Published], Any], **options: Any) -> None:
    async def publishing() -> None:
        published = Published(**options)
        try:
            await check(published)
        finally:
            published.publisher.stop()

    asyncio.run(publishing())


# What subscribers get


def test_start_frames_and_end_of_a_run_are_published(subscribe: Subscribe) -> None:
    async def check(published: Published) -> None:
        socket = subscribe(published.address)
        await published.until_heard(socket)
        published.send(status("waiting"), status("warming"), frame(7), status("trusted"), status("ended"))
        published.send(status("ended"))
        published.send(status("waiting", "next", "/runs/next"))
        got = [receive(socket) for _ in range(4)]
        assert [topic for topic, _, _ in got] == ["run_start", "frame", "run_end", "run_start"]
        (_, start, nothing), (_, header, picture), (_, end, _), (_, second, _) = got
        assert (start["run_id"], start["planned"], start["decoder"], nothing) == ("run", 40, "general", b"")
        assert {name: header[name] for name in ("kind", "run_id", "volume", "decoder", "sampler")} == {
            "kind": "frame", "run_id": "run", "volume": 7, "decoder": "general", "sampler": "ddim-4",
        }  # fmt: skip
        assert (header["status"], header["window"]) == ("trusted", [2, 8])
        assert header["bundle_sha256"] == "5a" * 32
        assert header["latency_ms"] == msgspec.to_builtins(LATENCY_MS)
        assert header["published_unix_s"] - header["received_unix_s"] == pytest.approx(0.021, abs=1e-3)
        image = np.frombuffer(picture, header["dtype"]).reshape(header["shape"])
        np.testing.assert_array_equal(image, np.full((8, 8, 3), 7))
        assert (end["run_id"], end["counts"]["decoded"]) == ("run", 3)
        assert second["run_id"] == "next"
        begun = start["sequence"]
        assert [header["sequence"] for _, header, _ in got] == [begun, 0, 0, begun + 1]
        assert published.publisher.overruns == 0

    with_publisher(check)


def test_what_a_volume_is_like_is_published_once(subscribe: Subscribe) -> None:
    async def check(published: Published) -> None:
        socket = subscribe(published.address)
        await published.until_heard(socket)
        event = status("warming")
        told = msgspec.structs.replace(event.message, quality=Quality(volume=7, dvars=12.5, tsnr=40.0))
        for _ in range(3):  # a status is repeated as a sign of life
            published.send(Event(told))
        published.send(Event(msgspec.structs.replace(told, quality=Quality(volume=8))))
        got = [receive(socket) for _ in range(3)]
        assert [topic for topic, _, _ in got] == ["run_start", "quality", "quality"]
        first, second = got[1][1], got[2][1]
        assert (first["run_id"], first["quality"]["volume"], first["quality"]["dvars"]) == ("run", 7, 12.5)
        assert first["quality"]["motion"] is None
        assert second["quality"]["volume"] == 8
        assert second["sequence"] == first["sequence"] + 1

    with_publisher(check)


def test_a_frame_of_a_bank_names_its_decoder(subscribe: Subscribe) -> None:
    async def check(published: Published) -> None:
        socket = subscribe(published.address)
        await published.until_heard(socket)
        published.send(status("trusted"), frame(7), frame(7, decoder="early"))
        assert [receive(socket)[1]["decoder"] for _ in range(3)] == ["general", "general", "early"]

    with_publisher(check)


def test_topics_can_be_chosen(subscribe: Subscribe) -> None:
    async def check(published: Published) -> None:
        def only_ends(socket: zmq.Socket[bytes]) -> None:
            own_keys("subscriber")(socket)
            socket.unsubscribe("")
            socket.subscribe("run_end")

        everything, ends = subscribe(published.address), subscribe(published.address, only_ends)
        await published.until_heard(everything)
        while not await asyncio.to_thread(ends.poll, 10):
            published.send(status("warming"), frame(7), status("ended"))
        assert receive(ends)[0] == "run_end"

    with_publisher(check)


def test_sequence_numbers_count_per_topic(subscribe: Subscribe) -> None:
    async def check(published: Published) -> None:
        def only_frames(socket: zmq.Socket[bytes]) -> None:
            own_keys("subscriber")(socket)
            socket.unsubscribe("")
            socket.subscribe("frame")

        frames = subscribe(published.address, only_frames)
        while not await asyncio.to_thread(frames.poll, 10):
            published.send(frame(0))
        for number in range(3):
            published.send(status("warming", f"run-{number}", f"/runs/{number}"), frame(1), frame(2))
            published.send(status("ended", f"run-{number}", f"/runs/{number}"))
        sequences: list[int] = []
        while sequences[-1:] != [published.publisher.published["frame"] - 1]:
            sequences.append(receive(frames)[1]["sequence"])
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))

    with_publisher(check)


def test_what_an_earlier_process_decoded_is_not_sent_again(subscribe: Subscribe) -> None:
    async def check(published: Published) -> None:
        socket = subscribe(published.address)
        await published.until_heard(socket)
        published.send(status("waiting"), frame(7, is_recorded=True), frame(8, is_recorded=True), frame(9))
        assert [receive(socket)[0] for _ in range(2)] == ["run_start", "frame"]
        assert not socket.poll(0)

    with_publisher(check)


def test_a_slow_subscriber_knows_what_it_missed_and_others_miss_nothing(subscribe: Subscribe) -> None:
    def slow(socket: zmq.Socket[bytes]) -> None:
        own_keys("subscriber")(socket)
        socket.rcvhwm = 1
        socket.rcvbuf = 4096

    async def check(published: Published) -> None:
        quick = subscribe(published.address)
        stuck = subscribe(published.address, slow)
        await published.until_heard(quick)
        await published.until_heard(stuck)
        await published.until_heard(quick)
        sent = 0

        def send_one() -> None:
            nonlocal sent
            published.send(frame(sent, edge_px=512))
            assert receive(quick)[1]["volume"] == sent
            sent += 1

        while not published.publisher.overruns:  # a queue, two kernels' buffers and a receiver fill up first
            send_one()
        assert sent > HIGH_WATER_MARK
        for _ in range(5):
            send_one()
        headers: list[dict[str, Any]] = []
        while not headers or headers[-1].get("volume") != sent - 1:  # until it has caught up
            if stuck.poll(100):
                headers.append(receive(stuck)[1])
            else:
                send_one()
        got = [(header["sequence"], header["volume"]) for header in headers if header["kind"] == "frame"]
        assert 0 < len(got) < sent
        assert all(sequence == volume for sequence, volume in got)  # so every gap is what it missed

    with_publisher(check)


# Who gets nothing


def test_only_subscribers_keys_are_admitted(subscribe: Subscribe, tmp_path: Path) -> None:
    make_keys(tmp_path, ["screen"])
    screen = load_client_keys(tmp_path / "screen")

    def stranger(socket: zmq.Socket[bytes]) -> None:
        socket.curve_serverkey = screen.server
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()

    async def check(published: Published) -> None:
        intruders = [
            subscribe(published.address, without_keys),
            subscribe(published.address, stranger),
            subscribe(published.address, load_client_keys(tmp_path / "scanner").use),  # may send, not read
        ]
        right = subscribe(published.address, screen.use)
        await published.until_heard(right)
        for volume in range(20):
            published.send(frame(volume))
            assert receive(right)[1]["volume"] == volume
        assert not any(intruder.poll(0) for intruder in intruders)

    with_publisher(check, keys=load_server_keys(tmp_path / "runtime"))


def test_without_keys_it_listens_on_loopback_only(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ServeError, match="realtime keys"):
        Publisher("tcp://0.0.0.0:5556")
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path), "--headless"]
    options += ["--source", "tcp://127.0.0.1:0"]
    assert cli.main(["serve", *options, "--publish", "tcp://0.0.0.0:5556"]) == 2
    assert "expected a loopback address" in capsys.readouterr().err


def test_a_port_in_use_is_one_clear_line() -> None:
    async def check(published: Published) -> None:
        with pytest.raises(ServeError, match=f"{published.address} is in use"):
            Publisher(published.address, own_server_keys()).start()

    with_publisher(check)


# The whole runtime


def publish_address(served: Served) -> str:
    return served.said.split("results published at ")[1].split()[0]


def test_subscribers_get_what_is_recorded(
    serve: Callable[..., Served], connect: Callable[..., Client], subscribe: Subscribe, make_scan: type[Scan]
) -> None:
    served = serve("--publish", "tcp://127.0.0.1:0")
    socket, scanner = subscribe(publish_address(served)), connect(served.address)
    number = 0
    heard: list[tuple[str, dict[str, Any], bytes]] = []
    while not heard:
        number += 1
        scan = make_scan(run_id=f"sub-01_task-again_run-{number:02d}")
        scanner.send_run(scan)
        served.closed(scan)
        while socket.poll(0):
            heard.append(receive(socket))
        if heard and heard[0][0] != "run_start":  # the subscription came in the middle of a run
            heard = []
    while heard[-1][0] != "run_end":
        heard.append(receive(socket))
    recorded = read_recorded(served.run_folder(scan))
    frames = {header["volume"]: (header, picture) for topic, header, picture in heard if topic == "frame"}
    rows = {row.volume: row for row in recorded.rows if row.frame}
    assert frames.keys() == rows.keys()
    assert frames
    for volume, (header, picture) in frames.items():
        row = rows[volume]
        image = np.frombuffer(picture, header["dtype"]).reshape(header["shape"])
        np.testing.assert_array_equal(image, read_image(recorded.path / (row.frame or "")))
        assert header["sampler"] == row.sampler
        assert header["bundle_sha256"] == recorded.info.bundle_sha256
        assert header["latency_ms"]["total"] == pytest.approx(row.total_ms, abs=1e-3)
    assert heard[-1][1]["counts"]["received"] == scan.n_volumes


@pytest.mark.parametrize("with_keys", [False, True])
def test_the_example_in_the_documentation_works(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    tmp_path: Path,
    with_keys: bool,
) -> None:
    options, keys = ["--publish", "tcp://127.0.0.1:0"], []
    if with_keys:
        make_keys(tmp_path / "keys", ["screen"])
        options += ["--keys", str(tmp_path / "keys" / "runtime")]
        keys = [str(tmp_path / "keys" / "screen")]
    served = serve(*options)
    prepare = load_client_keys(tmp_path / "keys" / "scanner").use if with_keys else None
    scanner = connect(served.address, prepare)
    command = [sys.executable, str(SUBSCRIBER), publish_address(served), *keys]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
        number = 0
        while subscriber.poll() is None:  # it ends with the first run of which it saw a frame
            number += 1
            scan = make_scan(run_id=f"again-{number}")
            scanner.send_run(scan)
            served.closed(scan)
        assert subscriber.stdout
        said = subscriber.stdout.read()
    assert subscriber.returncode == 0
    assert "has ended" in said
    assert "32 x 32 px" in said


def test_the_example_says_what_it_missed() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        own_server(socket)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        command = [sys.executable, str(SUBSCRIBER), f"tcp://127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
            for _ in ("frame", "run_start", "run_end"):
                assert socket.poll(PATIENCE_MS), "it did not subscribe"
                socket.recv()
            for sequence in (5, 6, 9, 0):
                header: dict[str, Any] = {"sequence": sequence, "volume": 0, "decoder": "general"}
                header |= {"status": "trusted", "latency_ms": {"total": 1.0}}
                header |= {"dtype": "uint8", "shape": [1, 1, 3]}
                socket.send_multipart([b"frame", msgspec.msgpack.encode(header), bytes(3)])
            end = {"sequence": 2, "run_id": "run", "counts": {"decoded": 3}}
            socket.send_multipart([b"run_end", msgspec.msgpack.encode(end), b""])
            said, _ = subscriber.communicate(timeout=PATIENCE_MS / 1000)
    assert [line for line in said.splitlines() if "missed" in line] == [
        "missed 2 of frame: this program reads too slowly"
    ]
