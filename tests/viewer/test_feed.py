from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.events import KEPT, Broadcast, Event, Status
from realtime.viewer import feed as feed_module
from realtime.viewer.feed import Feed, run_key


class PageModel:
    """What the page's store makes of the messages."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.status: Any = None
        self.frames: dict[int, Any] = {}
        self.shown: dict[int, Any] = {}

    def apply(self, text: str) -> None:
        for message in json.loads(text):
            kind = message["kind"]
            if kind == "run" and message["key"] != self.key:
                self.key, self.frames, self.shown = message["key"], {}, {}
            elif kind == "status":
                self.status = message
            elif kind == "frame":
                self.frames[message["volume"]] = message
            elif kind == "shown":
                self.shown[message["onset_volume"]] = message

    async def read(self, feed: AsyncIterator[str], until_beat: bool) -> None:
        async for text in feed:
            self.apply(text)
            if not until_beat or '"beat"' in text:
                return


def as_json(message: Any) -> Any:
    return json.loads(msgspec.json.encode(message))


def status_of(event: Event) -> Status:
    assert isinstance(event.message, Status)
    return event.message


OPERATIONS = st.one_of(
    st.tuples(st.just("frame"), st.integers(0, 40)),
    st.tuples(st.just("shown"), st.integers(0, 40)),
    st.tuples(st.just("status"), st.integers(0, 40)),
    st.tuples(st.just("new run"), st.just(0)),
    st.tuples(st.just("read"), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=60), queue_length=st.integers(1, 6))
def test_a_page_however_slow_ends_with_all_of_the_open_run(
    make_run: Any, operations: list[tuple[str, int]], queue_length: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_module, "BEAT_S", 0.001)
        asyncio.run(check_page_catches_up(make_run, operations, queue_length))


async def check_page_catches_up(make_run: Any, operations: list[tuple[str, int]], queue_length: int) -> None:
    run = make_run()
    broadcast = Broadcast(status_of(run.status("waiting")), queue_length)
    page = PageModel()
    feed = Feed(broadcast, "session").follow()
    for at, (name, number) in enumerate(operations):
        if name == "read":
            await page.read(feed, until_beat=False)
        elif name == "new run":
            run = make_run(f"run-{at}")
            broadcast.send(run.status("warming"))
        elif name == "status":
            broadcast.send(run.status("trusted", number))
        elif name == "shown":
            broadcast.send(run.shown(number, f"name {number}", (1, 2, 3)))
        else:
            broadcast.send(run.frame(number))
    await page.read(feed, until_beat=True)
    assert page.key == run_key("session", broadcast.status.run_id)
    assert page.status == as_json(broadcast.status)
    assert page.frames == {volume: as_json(event.message) for (volume, _), event in broadcast.frames.items()}
    assert page.shown == {onset: as_json(event.message) for onset, event in broadcast.shown.items()}


def test_a_long_run_is_not_kept_whole_and_a_page_has_seen_all_of_it(make_run: Any) -> None:
    """Beyond what is kept there is the run folder: the memory of the server has a bound."""

    async def run() -> None:
        long = make_run()
        broadcast = Broadcast(status_of(long.status("trusted")))
        page, late, n_frames = PageModel(), PageModel(), KEPT + 30
        feed = Feed(broadcast, "session")
        following = feed.follow()
        for volume in range(n_frames):
            broadcast.send(long.frame(volume))
            if volume % 20 == 0:
                await page.read(following, until_beat=False)
        await page.read(following, until_beat=True)
        await late.read(Feed(broadcast, "session").follow(), until_beat=True)
        assert list(page.frames) == list(range(n_frames))
        assert list(late.frames) == [volume for volume, _ in broadcast.frames] == list(range(30, n_frames))
        assert sum(map(len, feed._told.values())) <= 2 * KEPT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_module, "BEAT_S", 0.001)
        asyncio.run(run())


def test_keys_differ_by_session_and_run() -> None:
    assert len({run_key("a", "1"), run_key("b", "1"), run_key("a", "2"), run_key("a", None)}) == 4


def test_messages_fit_any_data_channel(make_run: Any) -> None:
    """The smallest limit among browsers is 64 KiB a message."""

    async def longest() -> int:
        run = make_run("r" * 200)
        broadcast = Broadcast(status_of(run.status("trusted", 600, message="m" * 500)))
        for volume in range(KEPT):
            broadcast.send(run.frame(volume))
        page, sizes = PageModel(), []
        async for text in Feed(broadcast, "s").follow():
            page.apply(text)
            sizes.append(len(text.encode()))
            if len(page.frames) == KEPT:
                return max(sizes)
        raise AssertionError("the feed ended")

    assert asyncio.run(longest()) < 64 * 1024


def test_a_page_that_is_stuck_keeps_no_pictures_of_a_run_that_is_over(run: Any, make_run: Any) -> None:
    async def check() -> None:
        broadcast = Broadcast(status_of(run.status("trusted", 0)))
        feed = Feed(broadcast, "session").follow()
        await anext(feed)
        pictures = []
        for volume in range(100):
            broadcast.send(event := run.frame(volume))
            pictures.append(weakref.ref(event.image))
        del event
        await anext(feed)  # the page knows of these frames, and then takes no more
        second = make_run("the-second-run")
        for volume in range(100):
            broadcast.send(second.status("warming", volume))
        gc.collect()
        assert not any(picture() is not None for picture in pictures)
        await feed.aclose()

    asyncio.run(check())
