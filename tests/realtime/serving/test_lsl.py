"""Markers that presentation software sends as an LSL stream, from a process of its own."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from realtime import cli, wire
from realtime.bundle.bundle import Bundle
from realtime.errors import ServeError
from realtime.record.reader import read_recorded
from realtime.record.run_json import Registration, events_path
from realtime.service.preflight import Options, check
from realtime.sources import Received
from realtime.sources.lsl import LslMarkers
from realtime.sources.open import SourceOptions

from .conftest import PATIENCE_S, Scan, Served, wait_until
from .in_process import Lockstep
from .test_pyneal import RUN_ID, Pyneal

NAME = f"of-a-test-{os.getpid()}"
"""Of a stream; all processes of a machine hear each other's."""
EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "psychopy_lsl.py"
pytest.importorskip("pylsl", reason="pip install '.[lsl]'")

# The example's own stream; each line of standard input is what is shown, or a sample as it stands.
SENDER = f"""
import runpy, sys
Markers = runpy.run_path({str(EXAMPLE)!r})["Markers"]
markers = Markers(sys.argv[1])
for line in sys.stdin:
    if line.startswith("wait"):
        markers.wait()
        print("followed", flush=True)
    elif line.startswith("there"):
        print("there", flush=True)
    elif line.startswith("raw "):
        markers._outlet.push_sample([line[4:-1].encode("utf-8", "surrogateescape")])
    else:
        triggers, name = line.split(maxsplit=1)
        markers.shown(name.strip(), int(triggers))
"""


class Presentation:
    def __init__(self, stream: str, config: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SENDER, stream],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="surrogateescape",
            env={
                "LSLAPICFG": str(config),
                "PATH": "",
                "PYTHONUTF8": "1",
                "PYTHONIOENCODING": "utf-8:surrogateescape",
            },
        )

    def say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def is_there(self) -> None:
        self.say("there")
        assert self._process.stdout
        assert self._process.stdout.readline() == "there\n"

    def is_followed(self) -> None:
        self.say("wait")
        assert self._process.stdout
        assert self._process.stdout.readline() == "followed\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def present(tmp_path: Path) -> Iterator[Callable[[str], Presentation]]:
    config = tmp_path / "lsl.cfg"
    config.write_text("[multicast]\nResolveScope = machine\n")  # nobody else's network hears of it
    started: list[Presentation] = []

    def start(stream: str) -> Presentation:
        started.append(Presentation(stream, config))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def pictures(make_picture: Callable[..., bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "stimuli"
    folder.mkdir()
    for seed, name in enumerate(("face", "house")):
        (folder / f"{name}.png").write_bytes(make_picture(seed))
    return folder


def test_what_the_psychopy_example_shows_is_recorded_beside_a_scanner(
    serve: Callable[..., Served],
    present: Callable[[str], Presentation],
    pictures: Path,
) -> None:
    options = ("--volumes", "12", "--markers", "lsl:of-the-example", "--pictures", str(pictures))
    served = serve(*options, source="pyneal+tcp://127.0.0.1:0")
    assert "markers from lsl:of-the-example" in served.said
    presentation = present("of-the-example")
    presentation.is_followed()
    scan, scanner = Scan(n_volumes=12, dtype="uint16"), Pyneal(served.address)
    try:
        scanner.say(b"hello")
        for index in range(3):
            scanner.send(index, scan.voxels(index), scan.start.affine)
        presentation.say("4 face.png")
        wait_until(lambda: read_recorded(served.out / RUN_ID).pictures, "a picture")
    finally:
        scanner.close()
    (shown,) = read_recorded(served.out / RUN_ID).pictures
    assert (shown.onset_volume, shown.name) == (3, "face.png")
    assert shown.path.read_bytes() == (pictures / "face.png").read_bytes()


def test_samples_become_markers_and_others_are_passed_over_and_said(
    present: Callable[[str], Presentation], pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def take() -> list[Received]:
        source = LslMarkers(NAME, pictures)
        assert await source.start() == f"lsl:{NAME}"
        try:
            return await asyncio.wait_for(both_streams(source), PATIENCE_S)
        finally:
            await source.stop()

    async def both_streams(source: LslMarkers) -> list[Received]:
        first = present(NAME)
        await asyncio.to_thread(first.is_followed)
        first.say("raw fixation")
        first.say('raw {"onset_volume": -1, "name": "face"}')
        first.say("raw " + "x" * 3000)
        first.say('raw {"onset_volume": 1, "name": "a\\u0000b"}')
        first.say('raw {"onset_volume": 1, "name": "\udcff"}')
        first.say("5 house")
        first.say('raw {"onset_volume": 6, "name": "face.png", "duration": 2}')
        first.say("8 nobody.png")
        first.say("9 ../lsl.cfg")
        came = [await source.receive() for _ in range(4)]
        first.close()
        second = present(NAME)  # as when presentation software is started again
        await asyncio.to_thread(second.is_followed)
        second.say("11 face")
        return [*came, await source.receive()]

    came = asyncio.run(take())
    face, house = ((pictures / f"{name}.png").read_bytes() for name in ("face", "house"))
    markers = [received.message for received in came]
    assert markers == [
        wire.Marker(run_id="presentation", onset_volume=4, name="house", triggers=5),
        wire.Marker(run_id="presentation", onset_volume=6, name="face.png"),
        wire.Marker(run_id="presentation", onset_volume=7, name="nobody.png", triggers=8),
        wire.Marker(run_id="presentation", onset_volume=8, name="../lsl.cfg", triggers=9),
        wire.Marker(run_id="presentation", onset_volume=10, name="face", triggers=11),
    ]
    assert [bytes(received.payload) for received in came] == [house, face, b"", b"", face]
    for said in (
        "got 'fixation'",
        "expected at most 2000 characters, got 3000",
        "`int` >= 0",
        "expected a name without NUL characters",
        "can't decode byte 0xff",
        "there is no picture 'nobody.png'",
        "expected a picture's name without a folder, got '../lsl.cfg'",
        "lost; it is followed again once it is back",
    ):
        assert said in caplog.text


def test_of_several_streams_of_a_name_none_is_followed_until_there_is_one(
    present: Callable[[str], Presentation], caplog: pytest.LogCaptureFixture
) -> None:
    async def take() -> Received:
        first, second = (present("twice") for _ in range(2))
        for each in (first, second):
            await asyncio.to_thread(each.is_there)
        source = LslMarkers("twice")
        await source.start()
        try:
            while "there are several of this name" not in caplog.text:
                await asyncio.sleep(0.05)
            second.close()
            await asyncio.to_thread(first.is_followed)
            first.say("5 a face")
            return await asyncio.wait_for(source.receive(), PATIENCE_S)
        finally:
            await source.stop()

    received = asyncio.run(take())
    assert received.message == wire.Marker(run_id="presentation", onset_volume=4, name="a face", triggers=5)
    assert bytes(received.payload) == b""


def test_the_preflight_hears_a_stream(
    tiny_bundle: Path, tmp_path: Path, present: Callable[[str], Presentation]
) -> None:
    presentation = present("before-a-scan")
    options = Options(
        source="pyneal+tcp://127.0.0.1:0",
        source_options=SourceOptions(n_volumes=9, markers="lsl:before-a-scan"),
        keys=None,
        registration=Registration(),
        registers_all=False,
        resamples=False,
        out=tmp_path,
        wait_s=4.0,
    )

    def show(line: str) -> None:
        presentation.is_followed()
        presentation.say("3 a house")

    found = check(Bundle.open(tiny_bundle), options, show)
    assert (found.markers_at, found.markers) == ("lsl:before-a-scan", ((2, "a house"),))
    (problem,) = found.problems
    assert "nothing came to pyneal+tcp://" in problem


def test_a_marker_with_a_name_only_is_recorded(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, scan = Bundle.open(tiny_bundle), Scan(n_volumes=4)
    run = Lockstep.begin(tmp_path, bundle, scan.start)
    run.marker(scan.marker(1), b"")
    run.let_go()
    run = Lockstep.reopen(run.path, bundle)
    assert run.run._shown.onsets == [1]
    run.marker(scan.marker(1), b"")  # sent again
    run.end()
    run.close()
    assert read_recorded(run.path).pictures == ()
    (row,) = events_path(run.path, scan.start).read_text().splitlines()[1:]
    assert row.split("\t")[2:] == ["1", "picture 1", "n/a"]
    assert list((run.path / "shown").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stream": ""}, "the name of a stream"),
        ({"stream": "a", "pictures": Path("no such folder")}, "expected --pictures with a folder"),
        ({"stream": "a", "peers": ["10.0.0.0/24"]}, "expected --allow with IP addresses"),
    ],
)
def test_arguments_are_checked(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ServeError, match=expected):
        LslMarkers(**given)


def test_where_the_library_is_missing_the_extra_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pylsl", None)
    command = ["record", "--bundle", str(tiny_bundle), "--out", str(tmp_path), "--volumes", "9"]
    command += ["--source", "pyneal+tcp://127.0.0.1:0", "--markers", "lsl:a"]
    assert cli.main(command) == 2
    assert "pip install '.[lsl]'" in capsys.readouterr().err


def test_pictures_come_over_zeromq_with_their_markers(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["record", "--bundle", str(tiny_bundle), "--out", str(tmp_path), "--volumes", "9"]
    command += ["--source", "pyneal+tcp://127.0.0.1:0", "--pictures", str(tmp_path)]
    assert cli.main(command) == 2
    assert "--pictures is for --markers lsl:NAME" in capsys.readouterr().err


def test_the_example_imports_psychopy_only_when_it_shows() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("psychopy" in ast.unparse(node) for node in at_once)
    assert "from psychopy import" in EXAMPLE.read_text()
