"""A decoder that goes on from a checkpoint: bit for bit as if it had not been stopped, or as without one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import DriftPrior, Preprocessing
from realtime.bundle.statistics import VoxelStatistics
from realtime.preprocessing.spikes import SpikeRule
from realtime.preprocessing.stream import StreamingPreprocessor
from realtime.record.folder import RunFolder
from realtime.record.journal import JOURNAL, JournalReader
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import decoders_of, events_path, new_run_file
from realtime.runs import resume
from realtime.runs.checkpoint import CHECKPOINT, Checkpoint
from realtime.runs.queue import InTurn, NewestWins, Ready
from realtime.runs.run import Run
from realtime.runs.statistics import STATISTICS_FILE

from .conftest import SHAPE, Scan

N_VOLUMES = 48
TR_S = 50.0
"""By the test's clock, a volume comes one TR after another; so it is always ahead of the real one."""
RULE = SpikeRule(after_volumes=6, in_a_row=2)
IMAGE = np.zeros((32, 32, 3), dtype=np.uint8)
STAGES_MS = {"brain": 1.0, "denoise": 2.0, "vae": 1.0}
PLACES = st.integers(0, N_VOLUMES - 1)
SEEDS = st.integers(0, 1000)
STOPS = st.lists(st.sampled_from(["save", "land", "kill"]), min_size=1, max_size=3, unique=True)
"""What happens after a volume: the state is saved, the decode under way ends, the decoder is killed."""


@dataclass
class Noisy(Scan):
    """Some volumes are a jerk, some have a broken voxel, some are broken as a whole."""

    faults: dict[int, str] = field(default_factory=dict)

    def voxels(self, index: int) -> np.ndarray:
        voxels = super().voxels(index)
        fault = self.faults.get(index)
        if fault == "jerk":
            voxels += np.random.default_rng(1).normal(0, 100, voxels.shape).astype(voxels.dtype)
        elif fault == "broken":
            voxels[:] = np.nan
        elif fault == "repaired":
            voxels[2:4, 3, 3] = np.inf
        return voxels


class Rig:
    """A run with its journal; decoder and clock are the test's."""

    def __init__(self, out: Path, bundle: Bundle, scan: Scan) -> None:
        info = new_run_file(
            scan.start,
            bundle_name=bundle.spec.name,
            bundle_sha256=bundle.sha256,
            decoders=decoders_of(bundle.spec),
            seed=0,
            spikes=RULE,
        )
        self.bundle, self.scan = bundle, scan
        self.journal = RunJournal.create(out, info)
        self.path = self.journal.path
        self.windows: dict[int, Ready] = {}
        self.n_read = 0
        self.now_s = perf_counter()
        self.open()

    def open(self) -> None:
        self.run = Run(RunFolder.open(self.path, self.journal.info.decoders), self.bundle, InTurn())
        self.in_flight: Ready | None = None

    def record(self, index: int, png: bytes | None = None) -> None:
        if png:
            self.journal.add_marker(self.scan.marker(index), memoryview(png), 0.0)
        voxels = memoryview(self.scan.voxels(index).tobytes())
        self.journal.add_volume(self.scan.volume(index), voxels, 0.0)

    def follow(self, *, is_past: bool = False) -> None:
        """Read what the journal has; each record comes one TR after the one before."""
        with JournalReader(self.path / JOURNAL, at=self.run.journal_end) as reader:
            while entry := reader.read():
                self.now_s += self.scan.start.tr_s
                self.run.take(entry, self.now_s, is_past=is_past)
                if not is_past:
                    self.run.expire(self.now_s)
                self.decode()

    def decode(self) -> None:
        """Decode what waits; the newest decode stays under way."""
        while ready := self.run.queue.take():
            known = self.windows.setdefault(ready.volume, ready)
            assert numbers(known) == numbers(ready)
            self.land()
            self.in_flight = ready

    def land(self) -> None:
        ready, self.in_flight = self.in_flight, None
        if ready:
            frame = self.run.frame(ready, self.bundle.decoder(), "ddim-4", STAGES_MS)
            self.run.record(frame, IMAGE, ready.repaired_voxels)

    def save(self) -> bool:
        saved = self.run.checkpoint()
        if saved:
            self.run.folder.write_file(CHECKPOINT, saved.as_bytes())
        return saved is not None

    def restart(self) -> int:
        """Kill the decoder and start another; returns how many records it passed."""
        self.run.folder.let_go()
        self.open()
        n_passed = 0
        for entry in resume.passed(self.run):
            self.run.take(entry, self.now_s, is_past=True)
            n_passed += 1
        self.decode()
        self.follow(is_past=True)
        return n_passed

    def finish(self) -> dict[int, tuple[Any, ...]]:
        """Close the run; returns its rows."""
        self.run.finish()
        self.decode()
        self.land()
        self.run.close()
        self.journal.close()
        rows = self.run.folder.rows()
        return {
            row.volume: (row.state, row.reason, row.frame, row.shown_onset, row.repaired_voxels)
            for row in rows
        }


def numbers(ready: Ready) -> tuple[Any, ...]:
    return ready.volume, ready.state, ready.repaired_voxels, ready.window.tobytes()


@pytest.fixture(
    scope="module", params=[None, DriftPrior(frequencies_hz=(0.001, 0.01), noise_to_drift=(0.1, 1.0))]
)
def bundle(
    request: pytest.FixtureRequest,
    make_tiny_bundle: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """Without a prior of the drifts, and with one."""
    settings = Preprocessing(high_pass_hz=0.02 / TR_S, warmup_volumes=12, prior_volumes=10.0)
    folder = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", tr_s=TR_S, preprocessing=settings)
    tiny, n_voxels = Bundle.open(folder), int(np.prod(SHAPE))
    prior = VoxelStatistics(mean=np.full(n_voxels, 1000, np.float32), sd=np.full(n_voxels, 10, np.float32))
    # Large enough for a volume with a broken voxel to be repaired, not censored.
    roi = msgspec.structs.replace(tiny.spec.roi, n_voxels=n_voxels)
    spec = msgspec.structs.replace(tiny.spec, roi=roi, drift_prior=request.param)
    return replace(tiny, spec=spec, roi_mask=np.ones(SHAPE, dtype=bool), prior=prior)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Noisy, list[int]]:
    """A run, and the order in which its volumes come: some late, some not at all."""
    volumes = st.integers(0, N_VOLUMES - 1)
    faults = draw(st.dictionaries(volumes, st.sampled_from(["jerk", "broken", "repaired"]), max_size=15))
    lost = draw(st.sets(volumes, max_size=5))
    late = draw(st.dictionaries(volumes, st.sampled_from([1.5, 4.5]), max_size=4))
    order = sorted(set(range(N_VOLUMES)) - lost, key=lambda index: index + late.get(index, 0))
    changes = {"tr_s": TR_S}
    scan = Noisy(n_volumes=N_VOLUMES, dtype="float32", seed=draw(SEEDS), changes=changes, faults=faults)
    return scan, order


@given(recording=recordings(), stops=st.dictionaries(PLACES, STOPS, min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_a_restart_changes_no_window_no_row_and_no_event(
    bundle: Bundle,
    make_picture: Callable[..., bytes],
    recording: tuple[Noisy, list[int]],
    stops: dict[int, list[str]],
) -> None:
    scan, order = recording
    pictures = {index: make_picture(index) for index in order[3::9]}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "KEPT", 2)  # of the older pictures, only the heads are read
        whole, killed = (Rig(Path(folder) / name, bundle, scan) for name in ("whole", "killed"))
        killed.windows = whole.windows  # each window must be the one of the other
        has_saved = False
        for place, index in enumerate(order):
            for rig in (whole, killed):
                rig.record(index, pictures.get(index))
                rig.follow()
            if killed.run.checkpoint() is None:  # what waits for its turn would wait anew after a restart
                continue
            for stop in stops.get(place, []):
                if stop == "save":
                    has_saved |= killed.save()
                elif stop == "land":
                    killed.land()
                else:
                    assert (killed.restart() > 0) == has_saved
        assert killed.finish() == whole.finish()
        assert not (killed.path / CHECKPOINT).exists()
        events = [events_path(rig.path, scan.start).read_bytes() for rig in (whole, killed)]
        assert events[0] == events[1]
        assert events[0].count(b"\n") == 1 + len(pictures)
        for index, png in pictures.items():
            assert (killed.path / "shown" / f"{index:06d}.png").read_bytes() == png
        statistics = [rig.path / STATISTICS_FILE for rig in (whole, killed)]
        assert statistics[0].read_bytes() == statistics[1].read_bytes()


def test_only_what_came_after_the_checkpoint_is_preprocessed_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, bundle, Noisy(n_volumes=N_VOLUMES, dtype="float32", changes={"tr_s": TR_S}))
    for index in range(40):
        rig.record(index)
        rig.follow()
        if index == 29:
            rig.save()
    pushed = []
    push = StreamingPreprocessor.push

    def watched(self: StreamingPreprocessor, index: int, volume: NDArray[Any]) -> Any:
        pushed.append(index)
        return push(self, index, volume)

    monkeypatch.setattr(StreamingPreprocessor, "push", watched)
    assert rig.restart() == 31  # the start, and volumes 0 to 29
    assert pushed == list(range(30, 40))
    assert (rig.run.position, rig.run.trusted, rig.run.account.counts.received) == (39, True, 40)


def test_a_picture_that_the_folder_lost_is_written_again_from_the_journal(
    bundle: Bundle, make_picture: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "KEPT", 1)
    rig = Rig(tmp_path, bundle, Noisy(n_volumes=N_VOLUMES, dtype="float32", changes={"tr_s": TR_S}))
    for index in range(20):
        rig.record(index, make_picture(index) if index % 4 == 0 else None)
        rig.follow()
    assert rig.save()
    shown = rig.path / "shown"
    (shown / "000004.png").unlink()
    (shown / "000016.png").unlink()
    assert rig.restart() == 1 + 20 + 5
    assert {file.name: file.read_bytes() for file in shown.iterdir()} == {
        f"{index:06d}.png": make_picture(index) for index in range(0, 20, 4)
    }
    rows = events_path(rig.path, rig.scan.start).read_text().splitlines()[1:]
    assert [row.split("\t")[2] for row in rows] == ["0", "4", "8", "12", "16"]


def test_of_the_windows_that_were_open_only_the_newest_is_decoded(bundle: Bundle, tmp_path: Path) -> None:
    rig = Rig(tmp_path, bundle, Noisy(n_volumes=N_VOLUMES, dtype="float32", changes={"tr_s": TR_S}))
    rig.run.queue = NewestWins()
    for index in range(9):
        rig.record(index)
        with JournalReader(rig.path / JOURNAL, at=rig.run.journal_end) as reader:
            while entry := reader.read():
                rig.run.take(entry, rig.now_s)
        if index == 5:
            rig.run.queue.take()  # its decode takes long
    assert rig.save()
    waiting = rig.run.queue.take()
    assert waiting
    assert waiting.volume == 8
    rig.run.folder.let_go()
    rig.open()
    rig.run.queue = NewestWins()
    for record in resume.passed(rig.run):
        rig.run.take(record, rig.now_s, is_past=True)
    again = rig.run.queue.take()
    assert again
    assert numbers(again) == numbers(waiting)
    rows = {row.volume: row.reason for row in rig.run.folder.rows()}
    assert rows[5] == "the decoder was restarted before it was decoded"
    assert rows.keys() == set(range(8))
    rig.run.folder.let_go()


def write(rig: Rig, arrays: dict[str, NDArray[Any]] | None = None, **changes: Any) -> None:
    """A checkpoint that differs in some fields, or arrays, from the right one."""
    saved = rig.run.checkpoint()
    assert saved
    about = msgspec.structs.replace(saved.about, **changes)
    content = Checkpoint(about=about, arrays={**saved.arrays, **(arrays or {})}).as_bytes()
    (rig.path / CHECKPOINT).write_bytes(content)


def is_cut(rig: Rig) -> None:
    file = rig.path / CHECKPOINT
    file.write_bytes(file.read_bytes()[:-1])


def has_a_flipped_bit(rig: Rig) -> None:
    content = bytearray((rig.path / CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    (rig.path / CHECKPOINT).write_bytes(content)


def is_empty(rig: Rig) -> None:
    (rig.path / CHECKPOINT).write_bytes(b"")


def is_of_an_older_format(rig: Rig) -> None:
    file = rig.path / CHECKPOINT
    magic, _, rest = file.read_bytes().partition(b"\n")
    assert magic == b"realtime checkpoint 1"
    file.write_bytes(b"realtime checkpoint 0\n" + rest)


def is_a_link(rig: Rig) -> None:
    file = rig.path / CHECKPOINT
    file.symlink_to(file.rename(file.with_name("elsewhere")))


def is_of_another_run(rig: Rig) -> None:
    write(rig, run=bytes(32))


def is_ahead_of_its_numbers(rig: Rig) -> None:
    write(rig, arrays={"index": np.array(45)})


def is_beyond_the_run(rig: Rig) -> None:
    write(rig, next_index=10**12)


def is_behind_the_journal(rig: Rig) -> None:
    write(rig, next_index=39, arrays={"index": np.array(38)})


def has_numbers_that_are_not_finite(rig: Rig) -> None:
    write(rig, arrays={"rss": np.full_like(rig.run.region.state()["rss"], np.nan)})


def is_of_another_region(rig: Rig) -> None:
    write(rig, arrays={"rss": np.zeros(7)})


def is_of_another_journal(rig: Rig) -> None:
    write(rig, headers_sha256=bytes(32))


def ends_beyond_the_journal(rig: Rig) -> None:
    write(rig, journal_end=10**9)


def has_rows_that_the_table_lost(rig: Rig) -> None:
    [table] = rig.path.glob("*_decoding.tsv")
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:-3]))


@pytest.mark.parametrize(
    "damage",
    [
        is_cut,
        has_a_flipped_bit,
        is_empty,
        is_of_an_older_format,
        is_a_link,
        is_of_another_run,
        is_ahead_of_its_numbers,
        is_beyond_the_run,
        is_behind_the_journal,
        has_numbers_that_are_not_finite,
        is_of_another_region,
        is_of_another_journal,
        ends_beyond_the_journal,
        has_rows_that_the_table_lost,
    ],
)
def test_a_checkpoint_that_does_not_fit_is_ignored_and_said_so(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Rig], None]
) -> None:
    rig = Rig(tmp_path, bundle, Noisy(n_volumes=N_VOLUMES, dtype="float32", changes={"tr_s": TR_S}))
    for index in range(40):
        rig.record(index)
        rig.follow()
    assert rig.save()
    damage(rig)
    before = rig.run.region.state()
    with caplog.at_level(logging.WARNING):
        assert rig.restart() == 0
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"the checkpoint of {rig.run.name} is ignored, its journal is read instead: ")
    after = rig.run.region.state()
    assert {name: array.tobytes() for name, array in after.items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert rig.run.position == 39


def test_no_checkpoint_is_made_while_a_volume_waits_or_a_row_is_not_on_the_disk(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, bundle, Noisy(n_volumes=N_VOLUMES, dtype="float32", changes={"tr_s": TR_S}))
    for index in (0, 2):
        rig.record(index)
        rig.follow()
    assert not rig.save()
    rig.record(1)
    rig.follow()
    assert rig.save()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("realtime.record.folder.os.write", full)
        rig.run.skip(40, "for a reason")
    assert not rig.save()
    rig.run.skip(41, "for a reason")
    assert rig.save()
