"""The operator sees how far a run is, also where the log goes to a file."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from realtime import progress
from realtime.events import Event
from realtime.network.channel import ChannelSender, listening
from realtime.service.process import cancel
from realtime.service.serve import say_progress

from ..test_metrics import status

PATIENCE_S = 60.0


def test_each_run_is_told_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.0)
    caplog.set_level(logging.INFO, "realtime")

    async def serve() -> None:
        async with listening(tmp_path, "decoder") as heard:
            telling = asyncio.create_task(say_progress(heard))
            with ChannelSender(tmp_path, "decoder") as sender:
                async with asyncio.timeout(PATIENCE_S):
                    for run in ("first", "second"):
                        received = 0
                        while f"{run}: " not in caplog.text:
                            received = received % 190 + 10
                            sender.send_event(status(received - 1, run, received=received))
                            await asyncio.sleep(0.01)
                    over = msgspec.structs.replace(status(199, "over", received=200).message, state="ended")
                    sender.send_event(Event(over))
            await cancel(telling)

    asyncio.run(serve())
    said = [record.getMessage() for record in caplog.records if "volumes, " in record.getMessage()]
    assert said[0].startswith("first: ")
    assert all(" of 225 volumes, " in line and line.endswith(" decoded") for line in said)
    assert not any(line.startswith("over: ") for line in said)
