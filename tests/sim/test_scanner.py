from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsd import TR_S, Layout, NsdError, Run, Stimuli
from realtime import wire
from sim.__main__ import main
from sim.errors import SimError
from sim.recording import Recording
from sim.scanner import Scanner, ZmqLink
from sim.scenes import SceneSet
from sim.sender import RefusedError, Sender

from ..keyed import own_server
from .conftest import SEED, Tiny
from .runtime import ContractRuntime

RUN_ID = "sub-01_ses-nsd01_task-nsdcore_run-01"


class VirtualLink:
    """Time passes only here: while the scanner waits and while it sends (``send_s`` per message)."""

    def __init__(self, runtime: ContractRuntime, send_s: Iterator[float]) -> None:
        self.now_s = 0.0
        self.sent_s: dict[int, float] = {}
        self._runtime = runtime
        self._send_s = send_s
        self._replies: deque[bytes] = deque()

    def clock(self) -> float:
        return self.now_s

    def send(self, header: bytes, buffer: bytes) -> None:
        message = wire.decode_to_runtime(header)
        if isinstance(message, wire.Volume):
            self.sent_s[message.index] = self.now_s
        self._replies.append(wire.encode(self._runtime.handle(message, buffer)))
        self.now_s += next(self._send_s)

    def receive(self, timeout_s: float) -> bytes | None:
        if self._replies:
            return self._replies.popleft()
        self.now_s += timeout_s
        return None

    def reconnect(self) -> None:
        self._replies.clear()


@pytest.fixture
def recording(tiny: Tiny) -> Iterator[Recording]:
    with Recording(Layout(tiny.root), subject=1, session=1, run=1) as found:
        yield found


@given(delays=st.lists(st.floats(0, 0.3), min_size=1, max_size=20), speed=st.sampled_from([1.0, 2.0]))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pacing_does_not_drift_with_the_time_of_sending(
    recording: Recording, delays: list[float], speed: float
) -> None:
    def forever() -> Iterator[float]:
        while True:
            yield from delays

    link = VirtualLink(ContractRuntime(), forever())
    sender = Sender(recording.start, [], speed=speed)
    begun_s = delays[0]  # the run's start is sent first, and answered after that long
    assert Scanner(recording, link, sender, tell=lambda _: None, clock=link.clock).replay()
    late_s = [link.sent_s[i] - (begun_s + (i + 1) * TR_S / speed) for i in range(225)]
    assert min(late_s) > -1e-6
    assert max(late_s) <= max(delays) + 1e-6  # at most the message under way; it never adds up


def test_a_volume_of_which_the_runtime_has_other_content_is_told_and_the_run_goes_on(
    recording: Recording,
) -> None:
    class Planted(ContractRuntime):
        """Already has a volume 7 that this scanner never sent."""

        def handle(self, message: wire.ToRuntime, buffer: bytes) -> wire.ToScanner:
            if isinstance(message, wire.Volume) and message.index == 7:
                said = "expected the volume that it has"
                return wire.Refused(run_id=message.run_id, code="duplicate", message=said, index=7)
            return super().handle(message, buffer)

    runtime, told = Planted(), list[str]()
    link = VirtualLink(runtime, iter(lambda: 0.0, None))
    sender = Sender(recording.start, [], speed=100.0)
    assert Scanner(recording, link, sender, tell=told.append, clock=link.clock).replay()
    assert runtime.journal.keys() == set(range(225)) - {7}
    assert sender.n_held == 225
    said = "the runtime keeps another volume 7 than the one sent: expected the volume that it has"
    assert told.count(said) == 1


def test_the_recorded_volumes_are_sent(recording: Recording, tiny: Tiny) -> None:
    runtime = ContractRuntime()
    link = VirtualLink(runtime, iter(lambda: 0.0, None))
    sender = Sender(recording.start, recording.markers, speed=100.0)
    assert Scanner(recording, link, sender, tell=lambda _: None, clock=link.clock).replay()
    (start,) = runtime.starts
    run = Run(Layout(tiny.root), 1, 1, 1)
    assert (start.run_id, start.subject, start.n_volumes, start.dtype) == (RUN_ID, 1, 225, "int16")
    assert np.array_equal(start.affine, run.affine)
    for index in range(225):
        assert np.array_equal(wire.volume_array(start, runtime.journal[index]), run.volume(index))
    scenes = SceneSet(SEED)
    assert sorted(runtime.markers) == [trial.onset_volume for trial in run.trials]
    for trial in run.trials:
        name, png = runtime.markers[trial.onset_volume]
        assert name == scenes.scene(trial.image).name
        shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert shown is not None
        assert np.array_equal(cv2.cvtColor(shown, cv2.COLOR_BGR2RGB), scenes.render(trial.image))
    assert runtime.ends == ["complete"]


def real_looking_copy(tiny: Tiny, root: Path, *, dtype: type, with_pictures: bool) -> Layout:
    """The run like in a copy of NSD: without ``synthetic.json``, as floats or big endian."""
    import h5py
    import nibabel as nib

    source, layout = Layout(tiny.root), Layout(root)
    for path, target in (
        (source.design(1, 1, 1), layout.design(1, 1, 1)),
        (source.roi(1), layout.roi(1)),
    ):
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
    image = nib.Nifti1Image.from_filename(source.timeseries(1, 1, 1))
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(dtype)
    layout.timeseries(1, 1, 1).parent.mkdir(parents=True)
    nib.save(
        nib.Nifti1Image(image.get_fdata().astype(dtype), image.affine, header), layout.timeseries(1, 1, 1)
    )
    if with_pictures:
        layout.stimuli().parent.mkdir(parents=True)
        with h5py.File(layout.stimuli(), "w") as file:
            brick = file.create_dataset("imgBrick", (73_000, 4, 5, 3), np.uint8, chunks=(1, 4, 5, 3))
            for trial in Run(layout, 1, 1, 1).trials:
                brick[trial.image] = trial.image % 251
    return layout


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.int16, "int16"), (np.float32, "float32"), (np.uint8, "float64")]
)
def test_a_copy_of_nsd_is_replayed_just_the_same(tiny: Tiny, tmp_path: Path, dtype: type, name: str) -> None:
    layout = real_looking_copy(tiny, tmp_path, dtype=dtype, with_pictures=True)
    with Recording(layout, subject=1, session=1, run=1) as recording, Stimuli(layout) as stimuli:
        assert recording.start.dtype == name
        run = Run(layout, 1, 1, 1)
        for index in (224, 0, 100):
            sent = wire.volume_array(recording.start, recording.volume(index))
            assert np.array_equal(sent, run.volume(index))
        trial = run.trials[5]
        assert recording.markers[5].name == f"nsd {trial.image + 1}"
        png = recording.picture_png(trial.onset_volume)
        shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert shown is not None
        assert np.array_equal(shown[..., ::-1], stimuli.image(trial.image))


def test_without_pictures_there_are_no_markers(tiny: Tiny, tmp_path: Path) -> None:
    layout = real_looking_copy(tiny, tmp_path, dtype=np.int16, with_pictures=False)
    with Recording(layout, subject=1, session=1, run=1) as recording:
        assert recording.markers == []
        with pytest.raises(SimError, match="expected pictures, found neither"):
            recording.picture_png(9)


def test_repaired_volumes_are_sent_as_they_are_and_named(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = Layout(tiny.root), Layout(tmp_path / "nsd")  # without synthetic.json
    for run in (1, 2):
        for file in (Layout.timeseries, Layout.design):
            file(ours, 1, 2, run).parent.mkdir(parents=True, exist_ok=True)
            file(ours, 1, 2, run).symlink_to(file(theirs, 1, 1, run))
    address = f"folder:{tmp_path / 'watched'}?format=nifti-4d"
    command = ["replay", "--nsd", str(ours.root), "--session", "2", "--connect", address, "--speed", "1000"]
    assert main([*command, "--run", "1"]) == 0
    assert "repaired" not in capsys.readouterr().err
    assert main([*command, "--run", "2"]) == 0
    assert "volumes 152 to 184 of this run are not what the scanner recorded" in capsys.readouterr().err
    with Recording(ours, subject=1, session=2, run=2) as recording:
        sent = np.frombuffer(recording.volume(160), dtype=recording.start.dtype)
    assert np.array_equal(sent, Run(theirs, 1, 1, 2).volume(160).ravel())


def test_runs_that_cannot_be_replayed_are_refused(tiny: Tiny) -> None:
    layout = Layout(tiny.root)
    with pytest.raises(SimError, match="run 13: expected a task run, 1 to 12 in session 1"):
        Recording(layout, subject=1, session=1, run=13)
    with pytest.raises(NsdError, match="expected the volumes of subject 1, session 2, run 1"):
        Recording(layout, subject=1, session=2, run=1)
    with pytest.raises(SimError, match="the start of run 'no good id' does not fit the wire format"):
        Recording(layout, subject=1, session=1, run=1, run_id="no good id")


def test_invalid_addresses_are_refused() -> None:
    with pytest.raises(SimError, match=r"foo: expected an address like tcp://127\.0\.0\.1:5555"):
        ZmqLink("foo")


class RouterRuntime:
    """The test runtime behind a real socket in a thread; ``step`` sees every message first."""

    def __init__(self, runtime: ContractRuntime) -> None:
        self.runtime = runtime
        self.port = 0
        self.held_at: dict[int, threading.Event] = {k: threading.Event() for k in (30, 60, 225)}
        self.started = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Bind (to the same port every time) and serve until the block ends."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        try:
            assert self.started.wait(10)
            yield
        finally:
            self._stop.set()
            self._thread.join(10)
            self.started.clear()

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        own_server(socket)
        socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
        self.port = int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self.started.set()
        while not self._stop.is_set():
            if socket.poll(20):
                peer, header, buffer = socket.recv_multipart()
                reply = self.runtime.handle(wire.decode_to_runtime(header), buffer)
                socket.send_multipart([peer, wire.encode(reply), b""])
                if (event := self.held_at.get(len(self.runtime.journal))) is not None:
                    event.set()
        socket.close(linger=500)
        context.term()


@contextmanager
def replay_process(tiny: Tiny, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "sim",
        "replay",
        "--nsd",
        str(tiny.root),
        "--connect",
        f"tcp://127.0.0.1:{port}",
    ]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def assert_complete(runtime: ContractRuntime, tiny: Tiny) -> None:
    run = Run(Layout(tiny.root), 1, 1, 1)
    assert sorted(runtime.journal) == list(range(225))
    assert all(runtime.journal[i] == run.volume(i).tobytes() for i in range(225))
    assert sorted(runtime.markers) == [trial.onset_volume for trial in run.trials]
    assert (runtime.takes, runtime.ends) == (1, ["complete"])


def test_a_runtime_restarted_in_mid_run_misses_nothing(tiny: Tiny) -> None:
    runtime = ContractRuntime()
    router = RouterRuntime(runtime)
    with router.serving():
        pass  # takes a port
    with replay_process(tiny, router.port, "--speed", "40") as scanner:
        with router.serving():
            assert router.held_at[30].wait(60)
        runtime.restart()
        with router.serving():
            assert scanner.wait(60) == 0
        assert scanner.stderr is not None
        assert "run complete: 225 volumes acknowledged" in scanner.stderr.read()
    assert_complete(runtime, tiny)
    assert len(runtime.starts) > 1
    (secret,) = {start.secret for start in runtime.starts}
    assert secret


def test_a_scanner_killed_in_mid_run_continues_after_a_restart(tiny: Tiny) -> None:
    runtime = ContractRuntime()
    router = RouterRuntime(runtime)
    with router.serving():
        with replay_process(tiny, router.port, "--speed", "20") as scanner:
            assert router.held_at[30].wait(60)
            scanner.send_signal(signal.SIGKILL)
            scanner.wait(10)
        n_held = len(runtime.journal)
        assert 30 <= n_held < 225
        with replay_process(tiny, router.port, "--speed", "100") as scanner:
            assert scanner.wait(60) == 0
            assert scanner.stderr is not None
            assert f"it has {n_held} of 225 volumes" in scanner.stderr.read()
    assert_complete(runtime, tiny)
    assert len({start.secret for start in runtime.starts}) == 2  # of two processes


def test_an_interrupted_scanner_ends_the_run_as_aborted(tiny: Tiny) -> None:
    runtime = ContractRuntime()
    router = RouterRuntime(runtime)
    with router.serving(), replay_process(tiny, router.port, "--speed", "20") as scanner:
        assert router.held_at[30].wait(60)
        scanner.send_signal(signal.SIGINT)
        assert scanner.wait(20) == 130
        assert scanner.stderr is not None
        assert "interrupted; the runtime has" in scanner.stderr.read()
    assert runtime.ends == ["aborted"]


def test_a_scanner_waits_for_a_runtime_and_says_so(tiny: Tiny) -> None:
    runtime = ContractRuntime()
    router = RouterRuntime(runtime)
    with router.serving():
        pass
    with replay_process(tiny, router.port, "--speed", "200") as scanner:
        assert scanner.stderr is not None
        assert "no answer from the runtime; trying again" in scanner.stderr.readline()
        with router.serving():
            assert scanner.wait(60) == 0
    assert_complete(runtime, tiny)


def test_a_refusal_is_one_line_and_exit_code_2(tiny: Tiny) -> None:
    class Refusing(ContractRuntime):
        def handle(self, message: wire.ToRuntime, buffer: bytes) -> wire.ToScanner:
            text = "expected subject 2, got subject 1; start its runtime"
            return wire.Refused(run_id=message.run_id, code="subject", message=text)

    router = RouterRuntime(Refusing())
    with router.serving(), replay_process(tiny, router.port) as scanner:
        assert scanner.wait(60) == 2
        assert scanner.stderr is not None
        assert scanner.stderr.read() == (
            "sim: the runtime refused: expected subject 2, got subject 1; start its runtime\n"
        )


def test_refusals_reach_the_caller(recording: Recording) -> None:
    class Refusing(ContractRuntime):
        def handle(self, message: wire.ToRuntime, buffer: bytes) -> wire.ToScanner:
            return wire.Refused(run_id=message.run_id, code="subject", message="no")

    link = VirtualLink(Refusing(), iter(lambda: 0.0, None))
    sender = Sender(recording.start, [], speed=1.0)
    with pytest.raises(RefusedError, match="the runtime refused: no"):
        Scanner(recording, link, sender, tell=lambda _: None, clock=link.clock).replay()
    assert math.isfinite(link.now_s)
