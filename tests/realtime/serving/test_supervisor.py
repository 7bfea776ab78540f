"""The supervisor with processes of a test's own: what they do must not matter to it."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from realtime.errors import ServeError
from realtime.service.process import Ready
from realtime.service.supervisor import Child, _at_same_place

PATIENCE_S = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A package ``realtime`` of the test's, which is what the supervisor runs."""
    (tmp_path / "realtime").mkdir()
    (tmp_path / "realtime" / "__init__.py").touch()  # without it, an installed package comes first
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def program(environment: dict[str, str], text: str) -> None:
    file = Path(environment["PYTHONPATH"]) / "realtime" / "__main__.py"
    file.write_text("import sys, time, pathlib\n" + textwrap.dedent(text))


@asynccontextmanager
async def supervised(environment: dict[str, str]) -> AsyncIterator[Child]:
    child = Child("page", ["page"], environment, lambda arguments, ready: arguments)
    running = asyncio.create_task(child.run())
    try:
        yield child
    finally:
        running.cancel()
        await asyncio.wait([running])
        await child.stop()


def test_what_a_process_prints_neither_hides_that_it_serves_nor_stops_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """A library may greet; and a pipe that nobody reads takes 64 KiB."""
    done = tmp_path / "done"
    program(
        environment,
        f"""
        print("a library says hello")
        print("x" * 1_000_000)
        print('{{"type": "ready", "lines": ["serving"]}}', flush=True)
        for _ in range(100):
            print("x" * 10_000, flush=True)
        pathlib.Path({str(done)!r}).touch()
        time.sleep(600)
        """,
    )

    async def run() -> None:
        async with supervised(environment) as child:
            ready = await asyncio.wait_for(asyncio.shield(child.ready), PATIENCE_S)
            assert ready == Ready(lines=["serving"])
            async with asyncio.timeout(PATIENCE_S):
                while not done.exists():
                    await asyncio.sleep(0.02)

    asyncio.run(run())


def test_a_process_that_the_system_does_not_start_is_told(environment: dict[str, str]) -> None:
    async def run() -> None:
        async with supervised({**environment, "TOO_LONG": "x" * 10_000_000}) as child:
            with pytest.raises(ServeError, match="cannot start the page"):
                await asyncio.wait_for(asyncio.shield(child.ready), PATIENCE_S)

    asyncio.run(run())


def test_a_process_that_dies_as_soon_as_it_serves_is_started_ever_later(
    environment: dict[str, str], tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    program(
        environment,
        f"""
        with open({str(starts)!r}, "a") as file:
            file.write(f"{{time.monotonic()}}\\n")
        print('{{"type": "ready", "lines": []}}', flush=True)
        """,
    )

    async def run() -> list[float]:
        async with supervised(environment), asyncio.timeout(PATIENCE_S):
            while not starts.exists() or len(starts.read_text().split()) < 5:
                await asyncio.sleep(0.02)
        return [float(text) for text in starts.read_text().split()]

    first, *_, fourth, fifth = asyncio.run(run())
    assert fifth - fourth > 1.0  # after 0.2, 0.4, 0.8 and 1.6 s
    assert first < fourth


@pytest.mark.parametrize(
    ("arguments", "address", "again"),
    [
        ("--source tcp://127.0.0.1:0", "tcp://127.0.0.1:40001", "--source tcp://127.0.0.1:40001"),
        (
            "--source pyneal+tcp://[::1]:0 --markers tcp://127.0.0.1:0",
            "pyneal+tcp://[::1]:40001, markers from tcp://127.0.0.1:40002",
            "--source pyneal+tcp://[::1]:40001 --markers tcp://127.0.0.1:40002",
        ),
        ("--publish tcp://127.0.0.1:0", "tcp://127.0.0.1:40003", "--publish tcp://127.0.0.1:40003"),
        ("--publish tcp://127.0.0.1:5556", "tcp://127.0.0.1:5556", "--publish tcp://127.0.0.1:5556"),
        ("--port 0", "http://127.0.0.1:40004/?token=a", "--port 40004"),
    ],
)
def test_a_process_that_is_started_again_takes_its_ports_again(
    arguments: str, address: str, again: str
) -> None:
    """Who was connected to them finds them there."""
    assert _at_same_place(arguments.split(), Ready(lines=[], address=address)) == again.split()
