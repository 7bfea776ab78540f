"""Events from one process of the runtime to another."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from realtime.errors import ServeError
from realtime.events import Event, Frame, LatencyMs, Recording, Shown
from realtime.network.channel import (
    HIGH_WATER_MARK,
    ChannelSender,
    Heard,
    Message,
    channel_address,
    listening,
)

PATIENCE_S = 60.0
LATENCY = LatencyMs(journal=0.25, preprocess=1.5, wait=0.125, brain=2.0, denoise=80.0, vae=4.0, total=87.875)
FRAME = Frame(
    run_id="sub-01_task-rest",
    volume=7,
    decoder="general",
    window=(2, 8),
    state="trusted",
    sampler="ddim-20",
    latency_ms=LATENCY,
    shown_onset=None,
)


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's folder for sockets, an empty one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def receive(heard: Heard) -> Message | Event:
    return await asyncio.wait_for(heard.receive(), PATIENCE_S)


async def connected(sender: ChannelSender, heard: Heard) -> None:
    """Send until the listener hears it: a subscription takes a moment."""
    while True:
        sender.send(Recording(message="are you there"))
        try:
            await asyncio.wait_for(heard.receive(), 0.05)
        except TimeoutError:
            continue
        return


async def until_recording(heard: Heard, received: int) -> list[Message | Event]:
    """What comes up to the recorder's message with so many volumes."""
    came = []
    while True:
        message = await receive(heard)
        if isinstance(message, Recording) and message.received == 0:
            continue  # of 'connected'
        came.append(message)
        if isinstance(message, Recording) and message.received == received:
            return came


def test_frames_and_pictures_arrive_with_every_pixel(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    shown = Shown(run_id=FRAME.run_id, onset_volume=3, name="a cat")

    async def check() -> list[Message | Event]:
        async with listening(tmp_path, "decoder") as heard:  # before there is anybody to listen to
            with ChannelSender(tmp_path, "decoder") as sender:
                await connected(sender, heard)
                sender.send_event(Event(FRAME, image=image[:, ::-1]))  # not contiguous
                sender.send_event(Event(shown, png=b"\x89PNG"))
                sender.send(Recording(received=1))
                came = await until_recording(heard, 1)
                assert heard.missed == 0
                return came

    frame, picture, recording = asyncio.run(check())
    assert isinstance(frame, Event)
    assert isinstance(picture, Event)
    assert frame.message == FRAME
    assert frame.image is not None
    assert np.array_equal(frame.image, image[:, ::-1])
    assert (picture.message, picture.png) == (shown, b"\x89PNG")
    assert recording == Recording(received=1)


def test_a_listener_that_reads_too_slowly_knows_that_it_missed_something(tmp_path: Path) -> None:
    n_sent = 40 * HIGH_WATER_MARK
    image = np.zeros((64, 64, 3), np.uint8)

    async def check() -> None:
        with ChannelSender(tmp_path, "decoder") as sender:
            async with listening(tmp_path, "decoder") as heard:
                await connected(sender, heard)
                for _ in range(n_sent):  # while nobody reads; this does not wait
                    sender.send_event(Event(FRAME, image=image))
                while heard.missed == 0:
                    sender.send(Recording(received=1))
                    assert await receive(heard)

    asyncio.run(check())


def test_another_sender_takes_the_place_of_one_that_has_died(tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(tmp_path, "recorder") as heard:
            for received in (1, 2):
                with ChannelSender(tmp_path, "recorder") as sender:
                    await connected(sender, heard)
                    sender.send(Recording(received=received))
                    await until_recording(heard, received)

    asyncio.run(check())


def test_every_runtime_and_process_has_an_address_of_its_own(tmp_path: Path) -> None:
    addresses = {channel_address(tmp_path / out, role) for out in "ab" for role in ("recorder", "decoder")}
    assert len(addresses) == 4
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    assert channel_address(link, "decoder") in addresses


def test_only_this_user_can_enter_the_folder_of_the_sockets(runtime_folder: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with ChannelSender(tmp_path, "decoder"):
            (folder,) = runtime_folder.iterdir()
            assert mode(folder) == 0o700
            assert next(folder.iterdir()).is_socket()
    finally:
        os.umask(before)


def test_a_folder_for_sockets_that_others_can_enter_is_refused(runtime_folder: Path, tmp_path: Path) -> None:
    folder = runtime_folder / "realtime-dynadiff"
    folder.mkdir()
    for shared in (0o755, 0o777, 0o710):
        folder.chmod(shared)
        with pytest.raises(ServeError, match="nobody else can enter it"):
            channel_address(tmp_path, "decoder")
    folder.rmdir()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    folder.symlink_to(private)
    with pytest.raises(ServeError, match="nobody else can enter it"):
        ChannelSender(tmp_path, "decoder")
