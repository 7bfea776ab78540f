"""Floods of a ZeroMQ source by peers that have a key: memory, connections and time stay limited."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from realtime import wire
from realtime.network import connections
from realtime.network.key_files import own_server_keys
from realtime.sources.zeromq import STARTS_PER_MINUTE, ZeroMqSource

from ...keyed import own_keys
from .conftest import Client, Scan

MAX_VOLUME_BYTES = 4 * 2**20
PATIENCE_S = 120.0


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[ZeroMqSource, str]]:
    source = ZeroMqSource("tcp://127.0.0.1:0", own_server_keys(), max_volume_bytes=MAX_VOLUME_BYTES)
    address = await source.start()
    try:
        yield source, address
    finally:
        await source.stop()


@pytest.fixture
def dealer() -> Iterator[Callable[[str], zmq.Socket[bytes]]]:
    context = zmq.Context()

    def connect(address: str) -> zmq.Socket[bytes]:
        made = context.socket(zmq.DEALER)
        made.sndhwm = 1_000_000  # nothing on this side stops it
        made.linger = 0  # it may be collected, and closed, before the context is
        made.reconnect_ivl = -1
        own_keys("scanner")(made)
        made.connect(address)
        return made

    yield connect
    context.destroy(linger=0)


def is_cut(monitor: zmq.Socket[bytes]) -> bool:
    return monitor.poll(0) != 0


async def reply_of(client: Client) -> wire.ToScanner:
    return await asyncio.to_thread(client.reply)


def test_a_message_of_too_many_parts_is_cut_off_and_others_are_heard(
    dealer: Callable[[str], zmq.Socket[bytes]], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan = make_scan()

    async def check() -> None:
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            receiving = asyncio.create_task(source.receive())
            flood = dealer(address)
            monitor = flood.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            part = zmq.Frame(bytes(MAX_VOLUME_BYTES))
            for _ in range(60):
                flood.send(part, zmq.SNDMORE, copy=False)
            flood.send(b"")  # ZeroMQ's own client sends a message once it is whole
            while not is_cut(monitor):
                await asyncio.sleep(0.01)
            assert not receiving.done()
            known = connect(address)
            known.send_frames(wire.encode(scan.start), b"")
            assert (await receiving).message == scan.start

    asyncio.run(check())


def test_a_scanner_that_sends_as_fast_as_it_can_is_not_cut_off(
    dealer: Callable[[str], zmq.Socket[bytes]], make_scan: type[Scan]
) -> None:
    """It sends many times the budget, also while nobody receives for a while."""
    scan, n_volumes = make_scan(), 40
    voxels = bytes(MAX_VOLUME_BYTES)

    async def check() -> None:
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            sender = dealer(address)
            monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            for index in range(n_volumes):
                volume = wire.with_checksum(scan.volume(index), voxels)
                sender.send_multipart([wire.encode(volume), voxels], copy=False)
            for index in range(n_volumes):
                if index in (0, 20):
                    await asyncio.sleep(4 * connections._LOOK_EVERY_MS / 1e3)
                received = await source.receive()
                assert isinstance(received.message, wire.Volume)
                assert received.message.index == index
            assert not is_cut(monitor)

    asyncio.run(check())


def test_silent_connections_make_room_for_those_that_speak(
    connect: Callable[..., Client], make_scan: type[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = make_scan()

    async def check() -> None:
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            host, port = address.removeprefix("tcp://").split(":")
            first, second = connect(address), connect(address)
            first.send_frames(wire.encode(scan.start), b"")
            await source.receive()
            silent = [socket.create_connection((host, int(port))) for _ in range(200)]
            watched = source._connections
            assert watched
            while len(watched._open) != connections.MOST_CONNECTIONS:
                await asyncio.sleep(0.01)
            for each in (first, second):
                each.send_frames(wire.encode(scan.end()), b"")
                assert (await source.receive()).message == scan.end()
            for stranger in silent:
                stranger.close()
            while len(watched._open) != 2:
                await asyncio.sleep(0.01)

    asyncio.run(check())


def test_between_two_messages_everything_else_has_its_turn(
    connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan, n_messages = make_scan(), 200

    async def check() -> None:
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            client = connect(address)
            for number in range(n_messages):
                client.send_frames(b"\xc1" if number % 2 else wire.encode(scan.end()), b"")
            await source.receive()
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            task = asyncio.create_task(others())
            for _ in range(n_messages // 2 - 1):
                await source.receive()
            task.cancel()
            assert turns > 0.9 * n_messages  # the first and the last few may come together

    asyncio.run(check())


def test_a_peer_that_reads_no_replies_does_not_hold_up_others(
    dealer: Callable[[str], zmq.Socket[bytes]], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan = make_scan()

    async def check() -> None:
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            deaf = dealer(address)
            deaf.send_multipart([wire.encode(scan.end()), b""])
            received = await source.receive()
            long = wire.RunAccepted(run_id=scan.run_id, held=[(2 * n, 2 * n + 1) for n in range(5_000)])
            for _ in range(2_000):
                await received.reply(long)
            client = connect(address)
            client.send_frames(wire.encode(scan.start), b"")
            start = await source.receive()
            await start.reply(wire.RunAccepted(run_id=scan.run_id, held=[]))
            assert isinstance(await reply_of(client), wire.RunAccepted)

    asyncio.run(check())


def test_run_starts_are_limited_for_each_key(
    connect: Callable[..., Client], make_scan: type[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr("realtime.sources.zeromq.time.monotonic", lambda: now_s)
    scan = make_scan()

    async def check() -> None:
        nonlocal now_s
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            client = connect(address)
            for number in range(STARTS_PER_MINUTE + 1):
                client.send_frames(wire.encode(make_scan(run_id=f"run-{number}").start), b"")
            client.send_frames(wire.encode(scan.end()), b"")
            for number in range(STARTS_PER_MINUTE):
                assert (await source.receive()).message.run_id == f"run-{number}"
            assert (await source.receive()).message == scan.end()
            refused = await reply_of(client)
            assert isinstance(refused, wire.Refused)
            assert (refused.code, refused.run_id) == ("busy", f"run-{STARTS_PER_MINUTE}")
            now_s += 60
            client.send_frames(wire.encode(scan.start), b"")
            assert (await source.receive()).message == scan.start

    asyncio.run(check())


def test_a_run_with_larger_volumes_than_are_taken_is_refused(
    connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    scan, large = make_scan(), make_scan(changes={"shape": (200, 200, 200)})

    async def check() -> None:
        async with listening() as (source, address), asyncio.timeout(PATIENCE_S):
            client = connect(address)
            client.send_frames(wire.encode(large.start), b"")
            client.send_frames(wire.encode(scan.start), b"")
            assert (await source.receive()).message == scan.start
            refused = await reply_of(client)
            assert isinstance(refused, wire.Refused)
            assert refused.code == "size"

    asyncio.run(check())


def test_a_recorder_that_is_flooded_stops_when_it_is_told_to(
    dealer: Callable[[str], zmq.Socket[bytes]], tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    """And not only once the flood is over: it goes on until the process has ended."""
    scan = make_scan()
    command = [sys.executable, "-m", "realtime", "record", "--bundle", str(tiny_bundle)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path), "--source", "tcp://127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].rstrip(",")
        flood = dealer(address)
        voxels = scan.voxels(0).tobytes()
        volume = [wire.encode(wire.with_checksum(scan.volume(0), voxels)), voxels]
        flood.send_multipart([wire.encode(scan.start), b""])
        for _ in range(2_000):
            flood.send_multipart(volume)
        assert flood.poll(int(1000 * PATIENCE_S)), "the recorder did not take the flood"
        process.send_signal(signal.SIGTERM)
        end_s = time.monotonic() + PATIENCE_S
        while process.poll() is None:
            assert time.monotonic() < end_s, "the recorder went on as long as the flood"
            with contextlib.suppress(zmq.Again):  # it is gone
                for _ in range(200):
                    flood.send_multipart(volume, zmq.NOBLOCK)
        assert process.returncode == 0
