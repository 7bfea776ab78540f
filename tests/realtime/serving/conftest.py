"""A scanner's side for tests: runs to send, a client that sends them, a runtime as a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import h5py
import nibabel
import numpy as np
import psutil
import pytest
import zmq

from nsd import Layout
from realtime import wire
from realtime.bundle.locate import demo_data
from realtime.record.run_json import read_run_file
from realtime.service.process import Role
from realtime.service.serve import READY

from ...keyed import Prepare, own_keys, without_keys

SHAPE = (6, 6, 6)
AFFINE = ((1.8, 0.0, 0.0, -5.4), (0.0, 1.8, 0.0, -5.4), (0.0, 0.0, 1.8, -5.4), (0.0, 0.0, 0.0, 1.0))
DEMO_VOLUMES = 10
DEMO_WINDOW = 6
DEMO_OPTIONS = ("--engine", "onnxruntime-cpu", "--sampler", "dpm++-6-g4")
PATIENCE_S = 300.0
"""Against a hang only; nothing is measured by it."""


@dataclass
class Scan:
    """A run of noise that anyone can make again from its seed."""

    run_id: str = "sub-01_ses-nsd01_task-nsdcore_run-01"
    n_volumes: int = 40
    dtype: str = "int16"
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> wire.RunStart:
        fields: dict[str, Any] = {
            "run_id": self.run_id,
            "subject": 1,
            "tr_s": 4 / 3,
            "n_volumes": self.n_volumes,
            "shape": SHAPE,
            "affine": AFFINE,
            "dtype": self.dtype,
        }
        return wire.RunStart(**(fields | self.changes))

    def voxels(self, index: int) -> np.ndarray:
        noise = np.random.default_rng((self.seed, index)).standard_normal(SHAPE)
        return (1000 + 10 * noise).astype(self.dtype)

    def volume(self, index: int) -> wire.Volume:
        return wire.Volume(run_id=self.run_id, index=index, acquired_s=(index + 1) * 4 / 3)

    def marker(self, onset_volume: int) -> wire.Marker:
        return wire.Marker(run_id=self.run_id, onset_volume=onset_volume, name=f"picture {onset_volume}")

    def end(self, reason: Any = "complete") -> wire.RunEnd:
        return wire.RunEnd(run_id=self.run_id, reason=reason)


@dataclass
class DemoScan(Scan):
    """The beginning of the shipped demo's run."""

    series: np.ndarray = field(default_factory=lambda: np.zeros((0,)))

    def voxels(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.series[..., index])


def picture_png(seed: int, edge_px: int = 32) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (edge_px, edge_px, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


class Client:
    """A scanner that does what a test says, message by message."""

    def __init__(self, address: str, prepare: Prepare | None = None) -> None:
        """Connect.

        :param prepare: called before; by default it sets this user's keys where the address needs some
        """
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        if prepare is None:
            prepare = own_keys("scanner") if address.startswith("tcp:") else without_keys
        prepare(self._socket)
        self._socket.connect(address)

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def send_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def reply(self) -> wire.ToScanner:
        assert self._socket.poll(int(1000 * PATIENCE_S)), "the runtime did not answer"
        return wire.decode_to_scanner(self._socket.recv_multipart()[0])

    def has_reply(self) -> bool:
        return self._socket.poll(0) != 0

    def ask(self, message: wire.ToRuntime, buffer: bytes = b"") -> wire.ToScanner:
        """Send a message, a volume with its checksum, and return the reply."""
        if isinstance(message, wire.Volume) and message.crc32 is None:
            message = wire.with_checksum(message, buffer)
        self.send_frames(wire.encode(message), buffer)
        return self.reply()

    def send_volume(self, scan: Scan, index: int) -> wire.ToScanner:
        return self.ask(scan.volume(index), scan.voxels(index).tobytes())

    def send_run(self, scan: Scan) -> None:
        """A whole run without a fault, each reply checked."""
        assert self.ask(scan.start) == wire.RunAccepted(run_id=scan.run_id, held=[])
        for index in range(scan.n_volumes):
            assert self.send_volume(scan, index) == wire.Ack(run_id=scan.run_id, index=index)
        assert self.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)


class Served:
    """``realtime serve`` as a process of its own, with the processes that it starts."""

    def __init__(self, bundle: Path, out: Path, *options: str, source: str = "tcp://127.0.0.1:0") -> None:
        self.out = out
        self._log = out.parent / f"{out.name}.log"
        command = [sys.executable, "-m", "realtime", "serve", "--bundle", str(bundle)]
        command += [] if "--port" in options else ["--headless"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--source", source, "--out", str(out), *options],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.said = self._read_start()
        self.address = self.found(r"volumes from ([^\s,]+),")

    def _read_start(self) -> str:
        """What it prints until it serves."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line.decode()
            if READY in line.decode():
                return said
        raise AssertionError(f"the runtime did not start: {self.log()}")

    def found(self, pattern: str) -> str:
        """The group of a pattern in what it printed before it served."""
        match = re.search(pattern, self.said)
        assert match, f"expected {pattern} in {self.said}"
        return match[1]

    def log(self) -> str:
        return self._log.read_text()

    def children(self) -> dict[Role, psutil.Process]:
        """Its processes that run, by the subcommands that they are."""
        found: dict[Role, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                for module, role in pairwise(child.cmdline()):
                    if module == "realtime" and role in ("record", "decode", "page"):
                        found[role] = child
        return found

    def child(self, role: Role) -> psutil.Process:
        """One of them; it may be on its way, after the one before it has died."""
        wait_until(lambda: role in self.children(), f"a process `realtime {role}`")
        return self.children()[role]

    def kill(self) -> None:
        """End all of it at once, without a chance to do anything more."""
        victims = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self.process.wait(PATIENCE_S)
        wait_until(lambda: not any(map(is_alive, victims)), "the end of its processes")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def run_folder(self, scan: Scan, take: int = 1) -> Path:
        return self.out / (scan.run_id if take == 1 else f"{scan.run_id}_take-{take}")

    def closed(self, scan: Scan, take: int = 1) -> Path:
        """The folder of a run that has ended, once the decoder has closed it and its report is written."""
        return closed(self.run_folder(scan, take))

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


def wait_until(condition: Callable[[], object], expected: str) -> None:
    """Wait for what another process does."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"expected {expected} in time"
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Whether any of its threads runs; a process that its new parent has yet to bury has its first, a zombie.

    The first may be one before another has come out of a write to disk, and until then its files stay locked.
    """
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False


def closed(folder: Path) -> Path:
    """The folder of a run that another process is about to close, once its report is written."""

    def is_reported() -> bool:
        return (
            (folder / "report.html").is_file()
            and read_run_file(folder).state == "closed"
            and read_summary(folder)["state"] == "closed"
        )

    wait_until(is_reported, f"that {folder} is closed")
    return folder


@pytest.fixture(scope="session")
def make_scan() -> type[Scan]:
    return Scan


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return picture_png


@pytest.fixture
def connect() -> Iterator[Callable[[str], Client]]:
    clients: list[Client] = []

    def make(address: str, prepare: Prepare | None = None) -> Client:
        clients.append(Client(address, prepare))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def serve(tiny_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def start(
        *arguments: str, bundle: Path = tiny_bundle, out: Path = tmp_path / "runs", **options: Any
    ) -> Served:
        served.append(Served(bundle, out, *arguments, **options))
        return served[-1]

    yield start
    for one in served:
        one.close()


@pytest.fixture(scope="session")
def tiny_nsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in NSD's layout with one run on the tiny bundle's grid."""
    root = tmp_path_factory.mktemp("nsd")
    layout = Layout(root)
    rng = np.random.default_rng(7)
    series = (1000 + 10 * rng.standard_normal((*SHAPE, 226))).astype(np.int16)
    design = np.zeros(225, dtype=int)
    design[9 : 9 + 3 * 62 : 3] = 1 + np.arange(62) % 50
    for path in (layout.timeseries(1, 1, 1), layout.design(1, 1, 1), layout.stimuli()):
        path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(series, np.array(AFFINE))
    image.header.set_zooms((1.8, 1.8, 1.8, 4 / 3))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, layout.timeseries(1, 1, 1))
    np.savetxt(layout.design(1, 1, 1), design, fmt="%d")
    with h5py.File(layout.stimuli(), "w") as file:
        file["imgBrick"] = rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    return root


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.fixture
def account_of() -> Callable[[Path], dict[str, Any]]:
    """``summary.json`` of a folder, once its states are known to add up."""

    def read(folder: Path) -> dict[str, Any]:
        summary = read_summary(folder)
        states = ("decoded", "warming", "censored", "skipped", "missing")
        assert sum(summary[state] for state in states) == summary["planned"]
        return summary

    return read


@pytest.fixture
def closed_account(account_of: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """The same of a run that another process is about to close."""
    return lambda folder: account_of(closed(folder))


@pytest.fixture(scope="session")
def demo_scan() -> DemoScan:
    image = nibabel.Nifti1Image.from_filename(Layout(demo_data("nsd")).timeseries(1, 1, 10))
    series = np.asarray(image.dataobj[..., :DEMO_VOLUMES])
    affine = tuple(tuple(float(number) for number in row) for row in image.affine)
    return DemoScan(
        run_id="sub-01_task-demo",
        n_volumes=DEMO_VOLUMES,
        dtype=str(series.dtype),
        changes={"shape": series.shape[:3], "affine": affine},
        series=series,
    )


def wait_for_frame(out: Path, index: int, run: str) -> None:
    """So that the next volume finds the decoder idle, and no window is skipped."""
    if index >= DEMO_WINDOW - 1:
        frame = f"{run}/frames/{index:06d}.png"
        wait_until(lambda: list(out.glob(frame)), f"{frame} in {out}")


def frames_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "frames").iterdir())}


@pytest.fixture(scope="session")
def demo_frames(demo_scan: DemoScan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the demo's bundle decodes of its run when that comes in our own messages."""
    served = Served(demo_data("bundle"), tmp_path_factory.mktemp("demo") / "runs", *DEMO_OPTIONS)
    client = Client(served.address)
    try:
        client.ask(demo_scan.start)
        for index in range(DEMO_VOLUMES):
            client.send_volume(demo_scan, index)
            wait_for_frame(served.out, index, demo_scan.run_id)
        client.ask(demo_scan.end())
        frames = frames_of(served.closed(demo_scan))
        assert "decoding with the shipped demo bundle (a simulated subject)" in served.said
    finally:
        client.close()
        served.close()
    assert len(frames) == DEMO_VOLUMES + 1 - DEMO_WINDOW
    return frames


@pytest.fixture
def frames_over(
    serve: Callable[..., Served], closed_account: Callable[[Path], dict[str, Any]]
) -> Callable[..., dict[str, bytes]]:
    """Feeds the demo's run to a runtime through another source, and returns its frames by name."""

    def decoded(
        source: str, run_id: str, connect: Callable[[str], Callable[[int], None]]
    ) -> dict[str, bytes]:
        """``connect`` takes the address and gives what sends one volume."""
        options = ["--volumes", str(DEMO_VOLUMES), *DEMO_OPTIONS]
        served = serve(*options, bundle=demo_data("bundle"), source=source)
        send = connect(served.address)
        for index in range(DEMO_VOLUMES):
            send(index)
            wait_for_frame(served.out, index, run_id)
        (folder,) = served.out.glob(run_id)
        summary = closed_account(folder)
        assert (summary["planned"], summary["received"]) == (DEMO_VOLUMES, DEMO_VOLUMES)
        assert summary["missing"] == summary["skipped"] == 0
        return frames_of(folder)

    return decoded
