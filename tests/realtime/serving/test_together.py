"""All that has a part in how windows are made, at once: another grid and TR, motion and drifts fitted."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.match import resampled_to_s
from realtime.bundle.spec import DriftPrior, Preprocessing, write_spec
from realtime.preprocessing.stream import StreamingPreprocessor
from realtime.record.folder import RunFolder
from realtime.record.journal import JOURNAL, JournalReader
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import Registration, decoders_of, new_run_file
from realtime.runs import resume
from realtime.runs.checkpoint import CHECKPOINT
from realtime.runs.head_position import Head
from realtime.runs.queue import NewestWins
from realtime.runs.run import Run

from .conftest import Scan
from .test_registered import AFFINE, GRID, N_VOLUMES, PERSON, REFERENCE_AFFINE, MovingHead

TR_S, DECODERS_TR_S = 1.6, 4 / 3
LOST = 19
Windows = dict[tuple[int, str], NDArray[np.float32]]


@pytest.fixture(scope="module")
def bank(tiny_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("together") / "bank"
    shutil.copytree(tiny_bank, folder)
    image = nibabel.Nifti1Image(PERSON.volume(REFERENCE_AFFINE), REFERENCE_AFFINE)
    nibabel.save(image, folder / "reference.nii.gz")
    spec = Bundle.open(tiny_bank).spec
    changed = msgspec.structs.replace(
        spec,
        reference="reference.nii.gz",
        files={**spec.files, "reference.nii.gz": file_sha256(folder / "reference.nii.gz")},
        preprocessing=Preprocessing(high_pass_hz=0.03, warmup_volumes=12, prior_volumes=10.0),
        drift_prior=DriftPrior(frequencies_hz=(0.01, 0.02), noise_to_drift=(0.2, 0.9)),
    )
    write_spec(folder, changed)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return MovingHead(changes={"shape": GRID, "affine": AFFINE.tolist(), "tr_s": TR_S})


@pytest.fixture(scope="module")
def journal(bank: Bundle, scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run, of which no decoder has read anything."""
    info = new_run_file(
        scan.start,
        bundle_name=bank.spec.name,
        bundle_sha256=bank.sha256,
        decoders=decoders_of(bank.spec, scan.start),
        seed=0,
        registration=Registration(fits_motion=True),
        resampled_to_s=resampled_to_s(bank.spec, scan.start),
    )
    made = RunJournal.create(tmp_path_factory.mktemp("recorded"), info)
    for index in range(N_VOLUMES):
        if index != LOST:
            made.add_volume(scan.volume(index), memoryview(scan.voxels(index).tobytes()), 0.0)
    made.close()
    return made.path


def opened(path: Path, bank: Bundle) -> Run:
    return Run(RunFolder.open(path, decoders_of(bank.spec)), bank, NewestWins())


def follow(run: Run, until: int = N_VOLUMES) -> Windows:
    """What each decoder takes at each volume below ``until``; the newest window waits."""
    found: Windows = {}
    with JournalReader(run.folder.path / JOURNAL, at=run.journal_end) as records:
        while run.account.newest is None or run.account.newest < until - 1:
            entry = records.read()
            assert entry is not None
            run.take(entry, 100.0 * len(found))
            run.expire(100.0 * len(found) + 99.0)
            found |= windows(run)
    return found


def windows(run: Run) -> Windows:
    ready = run.queue.take()
    if ready is None:
        return {}
    run.queue.offer(ready)
    return {(ready.volume, name): each.of(ready.window) for name, each in run.region.windows.items()}


def test_windows_are_those_of_the_parts_one_after_the_other(
    bank: Bundle, scan: Scan, journal: Path, tmp_path: Path
) -> None:
    shutil.copytree(journal, tmp_path / "run")
    run = opened(tmp_path / "run", bank)
    found = follow(run)
    run.folder.let_go()
    longest = max(each.length_volumes for each in run.region.windows.values())
    head = Head(bank, Registration(fits_motion=True), GRID)
    stream = StreamingPreprocessor.for_bundle(bank, N_VOLUMES, TR_S, n_confounds=6, window_volumes=longest)
    checked = set()
    for index in range(N_VOLUMES):
        if index == LOST:
            continue
        placed = head.place(index, scan.voxels(index), AFFINE)
        assert placed.motion is not None
        stream.push_row(index, placed.row, placed.censored, placed.motion.in_mm())
        z_scores = stream.window()
        for decoder in bank.spec.decoders:
            if z_scores is None:
                continue
            window, made_of = decoder.window, run.region.windows[decoder.name]
            onset = index - made_of.delay_volumes
            times_s = (window.offset_volumes + np.arange(window.length_volumes)) * DECODERS_TR_S
            volumes_s = (np.arange(index - made_of.length_volumes + 1, index + 1) - onset) * TR_S
            spline = CubicSpline(volumes_s, z_scores[:, -made_of.length_volumes :], axis=1)
            np.testing.assert_allclose(found[index, decoder.name], spline(times_s), atol=1e-4)
            checked.add((index, decoder.name))
    assert checked == found.keys()
    assert len(checked) == 3 * (N_VOLUMES - longest)  # one was lost


def test_a_decoder_that_is_killed_goes_on_bit_for_bit(bank: Bundle, journal: Path, tmp_path: Path) -> None:
    killed_at = LOST - 2
    for name in ("whole", "killed"):
        shutil.copytree(journal, tmp_path / name)
    whole = opened(tmp_path / "whole", bank)
    expected = follow(whole)
    whole.folder.let_go()
    before = opened(tmp_path / "killed", bank)
    follow(before, killed_at)
    saved = before.checkpoint()
    assert saved is not None
    before.folder.write_file(CHECKPOINT, saved.as_bytes())
    before.folder.let_go()
    after = opened(tmp_path / "killed", bank)
    passed = list(resume.passed(after))
    assert passed
    for entry in passed:
        after.take(entry, 0.0, is_past=True)
    found = windows(after) | follow(after)
    after.folder.let_go()
    assert found.keys() == {place for place in expected if place[0] >= killed_at - 1}
    for place, window in found.items():
        np.testing.assert_array_equal(window, expected[place])
