"""The alarms of the page process for recorder and decoder that are silent, in a test's own time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from realtime.events import Event, Shown
from realtime.network.channel import SILENT_S
from realtime.service import page as page_module
from realtime.service.page import DECODER_STARTS_S, Options, PageService


class Clock:
    """``time`` as the page uses it."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(page_module, "time", one)
    return one


@pytest.fixture
def service(clock: Clock, tiny_bundle: Path, tmp_path: Path) -> PageService:
    return PageService(Options(bundle=tiny_bundle, bundle_is_demo=False, out=tmp_path, port=0))


def alarm(service: PageService) -> str:
    service._show_status()
    return service.broadcast.status.alarm


def test_a_decoder_that_was_never_heard_is_an_alarm_once_it_had_time_to_start(
    service: PageService, clock: Clock
) -> None:
    clock.now_s += SILENT_S + 0.1
    assert "the recorder does not answer" in alarm(service)
    clock.now_s += DECODER_STARTS_S
    service._heard_s["recorder"] = clock.now_s
    assert "the decoder does not answer" in alarm(service)
    service._heard_s["decoder"] = clock.now_s
    assert not alarm(service)


def test_a_page_that_reads_what_was_decoded_does_not_take_the_decoder_for_dead(
    service: PageService, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is started in the midst of a long run reads hundreds of frames."""
    goes_on = threading.Event()

    def slow(_: Path) -> Iterator[Event]:
        assert goes_on.wait(60)
        yield from ()

    monkeypatch.setattr(page_module, "past_events", slow)

    async def run() -> None:
        service._heard_s["decoder"] = clock.now_s
        reading = asyncio.create_task(service._show_past(tmp_path))
        await asyncio.sleep(0)
        clock.now_s += 10 * SILENT_S
        service._heard_s["recorder"] = clock.now_s
        assert not alarm(service)
        goes_on.set()
        await reading
        assert not alarm(service)
        clock.now_s += SILENT_S + 0.1
        service._heard_s["recorder"] = clock.now_s
        assert "the decoder does not answer" in alarm(service)

    asyncio.run(run())


def test_a_page_that_reads_a_long_run_stops_after_the_picture_that_it_reads(
    service: PageService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    began, goes_on = threading.Event(), threading.Event()

    def long(_: Path) -> Iterator[Event]:
        for onset_volume in range(1000):
            read.append(onset_volume)
            began.set()
            assert goes_on.wait(60)
            yield Event(Shown(run_id="run", onset_volume=onset_volume, name="a picture"), png=b"")

    monkeypatch.setattr(page_module, "past_events", long)

    async def run() -> None:
        reading = asyncio.create_task(service._show_past(tmp_path))
        await asyncio.to_thread(began.wait, 60)
        reading.cancel()
        await asyncio.wait([reading])
        goes_on.set()

    asyncio.run(run())  # its end waits for threads
    assert read == [0]
