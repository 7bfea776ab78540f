"""``realtime doctor --source``: what is said before a person lies in the scanner."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import nibabel
import numpy as np
import pytest

from realtime import cli, wire
from realtime.bundle.bundle import Bundle
from realtime.decoding import doctor
from realtime.record.run_json import Registration
from realtime.record.storage import lock_role
from realtime.registration.rigid import RigidParameters
from realtime.service.keys import keys_for
from realtime.service.preflight import Options, Preflight, check, lines
from realtime.sources.open import SourceOptions

from ...keyed import own_keys
from .conftest import AFFINE, PATIENCE_S, SHAPE, Client, Scan
from .test_pyneal import Pyneal
from .test_registered import (  # noqa: F401  # fixtures
    OFFSET,
    MovingHead,
    bundle,
    reference,
)

LONG_S, SHORT_S = 120.0, 0.2


@dataclass
class Listening:
    """A pre-flight that listens in a thread of its own."""

    done: Future[Preflight]
    told: Queue[str]
    address: str = ""
    markers: str = ""

    def found(self) -> Preflight:
        return self.done.result(PATIENCE_S)


@dataclass
class Listen:
    """Begins to listen; returns once it does."""

    out: Path
    pool: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    def __call__(
        self,
        opened: Bundle,
        source: str,
        *,
        wait_s: float = LONG_S,
        resamples: bool = False,
        **given: Any,
    ) -> Listening:
        options = Options(
            source=source,
            source_options=SourceOptions(**given),
            keys=keys_for(None, ("tcp://127.0.0.1:0",)),
            registration=Registration(),
            registers_all=False,
            resamples=resamples,
            out=self.out,
            wait_s=wait_s,
        )
        told: Queue[str] = Queue()
        listening = Listening(self.pool.submit(check, opened, options, told.put), told)
        words = told.get(timeout=PATIENCE_S).replace(",", "").split()
        listening.address = words[2]
        listening.markers = words[6] if "markers" in words else ""
        return listening


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    one = Listen(tmp_path / "runs")
    yield one
    one.pool.shutdown()


@pytest.fixture
def tiny(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def send(client: Client, scan: Scan, n_volumes: int = 3) -> None:
    """The beginning of a run; no volume of it is acknowledged."""
    assert client.ask(scan.start) == wire.RunAccepted(run_id=scan.run_id, held=[])
    for index in range(n_volumes):
        payload = scan.voxels(index).tobytes()
        client.send_frames(wire.encode(wire.with_checksum(scan.volume(index), payload)), payload)


def test_a_scan_that_would_be_taken_is_described_and_none_of_it_acknowledged_or_recorded(
    tiny: Bundle, listen: Listen, connect: Callable[[str], Client], make_scan: type[Scan], tmp_path: Path
) -> None:
    scan = make_scan()
    listening = listen(tiny, "tcp://127.0.0.1:0")
    client = connect(listening.address)
    send(client, scan)
    found = listening.found()
    assert not client.has_reply()
    assert list(tmp_path.glob("runs/*")) == []
    assert found.problems == ()
    assert found.volumes is not None
    assert (found.volumes.shape, found.volumes.dtype, found.volumes.is_on_grid) == (SHAPE, "int16", True)
    assert (found.volumes.heard, found.volumes.n_volumes) == ((0, 1, 2), 40)
    assert found.position is None  # the bundle has no reference volume
    assert found.disk_hours is not None
    assert found.disk_hours > 0
    text = "\n".join(lines(found))
    assert "6 x 6 x 6 of int16, on the decoder's own grid; 3 came" in text
    assert text.endswith("a run like this would be recorded and decoded")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tr_s": 2.0}, "expected the TR the decoder was trained for"),
        ({"subject": 2}, "expected subject 1"),
        ({"affine": (AFFINE[1], AFFINE[0], *AFFINE[2:])}, "python -m export reference"),
        ({"shape": (5, 6, 6)}, "expected 360 bytes for a volume"),
    ],
)
def test_a_run_that_would_be_refused_is_told_by_the_recorders_own_words(
    tiny: Bundle,
    listen: Listen,
    connect: Callable[[str], Client],
    make_scan: type[Scan],
    changes: dict[str, Any],
    expected: str,
) -> None:
    listening = listen(tiny, "tcp://127.0.0.1:0")
    send(connect(listening.address), make_scan(changes=changes))
    found = listening.found()
    assert expected in " ".join(found.problems)
    assert lines(found)[-1] == "not ready"


def test_volumes_that_show_nothing_or_change_on_the_way_are_problems(
    tiny: Bundle, listen: Listen, connect: Callable[[str], Client], make_scan: type[Scan]
) -> None:
    scan = make_scan()
    listening = listen(tiny, "tcp://127.0.0.1:0")
    client = connect(listening.address)
    client.ask(scan.start)
    zeros = bytes(scan.start.volume_bytes)
    changed = wire.with_checksum(scan.volume(5), b"something else")
    client.send_frames(wire.encode(changed), zeros)
    for index in range(3):
        client.send_frames(wire.encode(wire.with_checksum(scan.volume(index), zeros)), zeros)
    problems = " ".join(listening.found().problems)
    assert "volume 5: expected a volume with CRC-32" in problems
    assert "volume 0 shows nothing: all its voxels are the same" in problems


@pytest.mark.parametrize(
    ("source", "options", "check_this"),
    [
        ("tcp://127.0.0.1:0", {}, "python -m sim replay"),
        ("pyneal+tcp://127.0.0.1:0", {"n_volumes": 9}, "Pyneal's scanner side"),
        ("afni+tcp://127.0.0.1:0", {"n_volumes": 9}, "Dimon"),
        ("folder:{folder}", {"n_volumes": 9}, "does the scanner export into this folder"),
    ],
)
def test_a_silent_source_is_said_to_be_with_what_to_check(
    tiny: Bundle, listen: Listen, tmp_path: Path, source: str, options: dict[str, Any], check_this: str
) -> None:
    found = listen(tiny, source.format(folder=tmp_path), wait_s=SHORT_S, **options).found()
    (problem,) = found.problems
    assert "nothing came to" in problem
    assert check_this in problem


def test_a_pyneal_scanner_is_heard_and_told_that_nothing_is_recorded(tiny: Bundle, listen: Listen) -> None:
    listening = listen(tiny, "pyneal+tcp://127.0.0.1:0", n_volumes=9, tr_s=4 / 3)
    scanner = Pyneal(listening.address)
    try:
        scanner.say(b"hello")
        answer = scanner.send(0, Scan(dtype="uint16").voxels(0), AFFINE)
    finally:
        scanner.close()
    found = listening.found()
    assert "STOP" in answer
    assert found.problems == ()
    assert found.volumes is not None
    assert (found.volumes.heard, found.volumes.dtype) == ((0,), "uint16")


def test_a_folder_is_watched_and_what_it_says_is_told(tiny: Bundle, listen: Listen, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    listening = listen(tiny, f"folder:{folder}", n_volumes=9, tr_s=4 / 3)
    for index in range(3):
        image = nibabel.Nifti1Image(Scan().voxels(index), np.array(AFFINE))
        nibabel.save(image, folder / f"bold_{index + 1:04d}.nii")
    found = listening.found()
    assert found.problems == ()
    assert found.volumes is not None
    assert found.volumes.heard == (0, 1, 2)
    assert "following series bold" in " ".join(found.said)
    assert "is this a copy of an older scan" in " ".join(found.hints)  # they came at once


def test_markers_are_heard_or_missed(
    tiny: Bundle, listen: Listen, connect: Callable[..., Client], make_picture: Callable[..., bytes]
) -> None:
    """Whether a scan runs or not: presentation software is often tried alone."""
    options: dict[str, Any] = {"n_volumes": 9, "markers": "tcp://127.0.0.1:0"}
    listening = listen(tiny, "pyneal+tcp://127.0.0.1:0", wait_s=1.0, **options)
    client = connect(listening.markers, own_keys("presentation"))
    answer = client.ask(Scan().marker(4), make_picture(1))
    assert isinstance(answer, wire.Refused)
    assert "records nothing" in answer.message
    found = listening.found()
    assert found.markers == ((4, "picture 4"),)
    assert "'picture 4' at volume 4" in "\n".join(lines(found))
    missed = listen(tiny, "pyneal+tcp://127.0.0.1:0", wait_s=SHORT_S, **options).found()
    assert "no marker came to tcp://127.0.0.1:" in " ".join(missed.problems)


@pytest.mark.parametrize("resamples", [False, True])
def test_what_resampling_would_cost_is_told(
    tiny: Bundle, listen: Listen, connect: Callable[[str], Client], resamples: bool
) -> None:
    scan = Scan(changes={"tr_s": 1.6})
    listening = listen(tiny, "tcp://127.0.0.1:0", resamples=resamples)
    send(connect(listening.address), scan)
    found = listening.found()
    assert ["--resample" in problem for problem in found.problems] == ([] if resamples else [True])
    assert any("which adds a delay of 0.53 s" in hint for hint in found.hints)


def test_a_runtime_that_runs_already_is_said_to(tiny: Bundle, tmp_path: Path) -> None:
    with lock_role(tmp_path, "recorder"), socket.create_server(("127.0.0.1", 0)) as taken:
        options = Options(
            source=f"pyneal+tcp://127.0.0.1:{taken.getsockname()[1]}",
            source_options=SourceOptions(n_volumes=9),
            keys=None,
            registration=Registration(),
            registers_all=False,
            resamples=False,
            out=tmp_path,
            wait_s=SHORT_S,
        )
        problems = " ".join(check(tiny, options, lambda line: None).problems)
    assert "is in use, perhaps by another runtime" in problems
    assert "another recorder works in" in problems
    assert "nothing came" not in problems


# How the head lies


def test_the_registration_is_previewed(
    bundle: Bundle,  # noqa: F811
    listen: Listen,
    connect: Callable[[str], Client],
) -> None:
    listening = listen(bundle, "tcp://127.0.0.1:0")
    send(connect(listening.address), MovingHead())
    found = listening.found()
    moved = RigidParameters.of(OFFSET)
    assert found.problems == ()
    assert found.position is not None
    assert found.position.shift_mm == pytest.approx(np.hypot.reduce(moved[:3]), abs=0.2)
    assert found.position.turn_degrees == pytest.approx(np.degrees(np.hypot.reduce(moved[3:])), abs=0.2)
    assert found.position.similarity > 0.8
    assert found.position.inside == 1.0


def test_a_region_outside_the_image_and_another_persons_head_are_problems(
    bundle: Bundle,  # noqa: F811
    listen: Listen,
    connect: Callable[[str], Client],
) -> None:
    class Cut(MovingHead):
        def voxels(self, index: int) -> np.ndarray:
            voxels = super().voxels(index)
            voxels[20:24, 20:26, 16:22] = np.nan
            return voxels

    listening = listen(bundle, "tcp://127.0.0.1:0")
    send(connect(listening.address), Cut())
    assert "of the decoder's region is in the field of view" in " ".join(listening.found().problems)

    other = MovingHead(person=type(MovingHead().person)(2))
    listening = listen(bundle, "tcp://127.0.0.1:0")
    send(connect(listening.address), other)
    found = listening.found()
    assert "the head was not found" in " ".join(found.problems)
    assert found.position is None


# The command


def test_programs_and_people_are_told_and_the_exit_code_is_1_where_a_run_would_fail(
    tiny_bundle: Path,
    connect: Callable[..., Client],
    make_scan: type[Scan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "ENGINES", ("auto", "onnxruntime-cpu"))  # to measure them all takes longer
    source = f"ipc://{tmp_path}/scanner"
    command = ["doctor", "--bundle", str(tiny_bundle), "--source", source, "--out", str(tmp_path / "runs")]
    with ThreadPoolExecutor() as pool:
        told_programs = pool.submit(cli.main, [*command, "--json", "--resample"])
        send(connect(source), make_scan(changes={"tr_s": 1.6}))
        assert told_programs.result(PATIENCE_S) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engine"]
    assert told["tr_s"] == 1.6, "engines are judged by the scanner's"
    assert told["preflight"]["problems"] == []
    assert told["preflight"]["volumes"]["dtype"] == "int16"

    assert cli.main([*command, "--wait", "0.1"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"listening to {source}")
    assert "PROBLEM   nothing came to ipc://" in said.out
    assert said.out.rstrip().endswith("not ready")
