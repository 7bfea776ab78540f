"""Statistics begin anew with every run, or are carried over where that is asked for; which, is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Preprocessing
from realtime.cli import main
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.errors import RecordError
from realtime.preprocessing.drift import cosine_basis
from realtime.record.journal import JOURNAL, read_journal
from realtime.record.reader import read_recorded
from realtime.record.run_json import EngineUsed, read_run_file
from realtime.runs.open import open_run
from realtime.runs.run import Run
from realtime.runs.statistics import read_statistics

from .conftest import Client, Scan, Served
from .in_process import Lockstep

N_VOLUMES = 24


@pytest.fixture(scope="module")
def bundle(make_tiny_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Six cosines are fitted, so that the prior counts until there are ten volumes."""
    settings = Preprocessing(high_pass_hz=0.1, warmup_volumes=12, prior_volumes=10.0)
    return Bundle.open(make_tiny_bundle(tmp_path_factory.mktemp("cosines") / "tiny", preprocessing=settings))


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> tuple[Decoder, EngineUsed]:
    engine = open_engine(bundle, "onnxruntime-cpu", threads=1)
    return Decoder(bundle, engine), EngineUsed(name="onnxruntime-cpu", description=engine.description)


@pytest.fixture
def record(
    bundle: Bundle, decoder: tuple[Decoder, EngineUsed], make_scan: type[Scan], tmp_path: Path
) -> Callable[..., Run]:
    """Records runs one after the other in one folder."""

    def one(run_id: str, *, carry: bool, level: float = 1.0, n: int = N_VOLUMES, closes: bool = True) -> Run:
        scan = make_scan(run_id=run_id, n_volumes=N_VOLUMES, seed=len(run_id))
        each = Lockstep.begin(
            tmp_path / "runs", bundle, scan.start, engine=decoder[1], faces="shown", carry=carry
        )
        for index in range(n):
            voxels = (level * scan.voxels(index)).astype(scan.dtype)
            each.volume(scan.volume(index), voxels.tobytes(), 0.0)
            if ready := each.run.queue.take():
                decoded = decoder[0].decode(ready.window)
                frame = each.run.frame(ready, bundle.decoder(), "ddim-4", decoded.stages_ms)
                each.run.record(frame, decoded.image, 0)
        if closes:
            each.end()
            each.close()
        else:
            each.let_go()
        return each.run

    return one


def test_a_run_begins_with_the_bundles_prior_whatever_came_before(record: Callable[..., Run]) -> None:
    record("first", carry=False)
    second = record("second", carry=False)
    assert second.folder.info.prior_from is None
    assert not (second.folder.path / "prior.npz").exists()


def test_asked_for_a_run_begins_with_what_the_last_came_to_and_says_so(
    record: Callable[..., Run], bundle: Bundle, tmp_path: Path
) -> None:
    first = record("first", carry=True)
    assert first.folder.info.notes == (
        "its statistics begin with the bundle's prior, because there is no earlier run with this bundle",
    )
    left = read_statistics(first.folder.path / "statistics.npz", bundle.spec.roi.n_voxels)
    rows = rows_of(first, bundle)
    np.testing.assert_allclose(left.mean, rows.mean(axis=0), rtol=1e-6)
    basis = cosine_basis(N_VOLUMES, first.start.tr_s, 0.1)
    residuals = rows - basis @ np.linalg.lstsq(basis, rows, rcond=None)[0]
    np.testing.assert_allclose(left.sd, residuals.std(axis=0, ddof=1), rtol=1e-5)
    second = record("second", carry=True, level=3.0)
    assert read_run_file(second.folder.path).prior_from == "first"
    assert second.folder.info.notes == ("its statistics begin with those at the end of first",)
    third = record("third", carry=True)
    assert third.folder.info.prior_from == "second"
    prior = read_statistics(third.folder.path / "prior.npz", bundle.spec.roi.n_voxels)
    assert prior.mean.mean() == pytest.approx(3_000, rel=0.01)


def rows_of(run: Run, bundle: Bundle) -> np.ndarray:
    volumes = [entry.payload for entry in read_journal(run.folder.path / JOURNAL) if entry.payload]
    return np.stack([wire.volume_array(run.start, volume)[bundle.roi_mask] for volume in volumes]).astype(
        float
    )


def test_a_carried_prior_changes_the_first_frames_and_none_once_there_is_a_fit(
    record: Callable[..., Run], tmp_path: Path
) -> None:
    record("first", carry=False)
    plain = record("same", carry=False)
    carried = record("same", carry=True)  # its second take: the same volumes
    assert carried.folder.info.prior_from == "same"
    differ = {
        row.volume
        for row in read_recorded(plain.folder.path).rows
        if row.frame
        and (plain.folder.path / row.frame).read_bytes() != (carried.folder.path / row.frame).read_bytes()
    }
    assert differ == {5, 6, 7, 8}  # of six to nine volumes; from ten on the fit alone counts


def test_runs_that_are_open_too_short_or_of_another_bundle_leave_nothing(
    record: Callable[..., Run],
    bundle: Bundle,
    make_tiny_bundle: Callable[..., Path],
    make_scan: type[Scan],
    tmp_path: Path,
) -> None:
    record("short", carry=True, n=2)
    record("open", carry=True, closes=False)
    assert record("first", carry=True).folder.info.prior_from is None
    other = Bundle.open(make_tiny_bundle(tmp_path / "other", seed=1))
    one = Lockstep.begin(tmp_path / "runs", other, make_scan(run_id="another").start, carry=True)
    assert one.run.folder.info.prior_from is None
    one.let_go()


def test_damaged_statistics_are_passed_over_and_a_lost_prior_is_an_error(
    record: Callable[..., Run], bundle: Bundle, decoder: tuple[Decoder, EngineUsed]
) -> None:
    first, second = record("first", carry=False), record("second", carry=False)
    (second.folder.path / "statistics.npz").write_bytes(b"nothing")
    run = record("third", carry=True, n=10, closes=False)
    assert run.folder.info.prior_from == first.name
    (run.folder.path / "prior.npz").unlink()
    with pytest.raises(RecordError, match="cannot read the statistics of a run"):
        open_run(run.folder.path, bundle, decoder[1], "shown")


def test_a_run_with_a_carried_prior_is_resumed_and_replayed_with_it(
    record: Callable[..., Run], bundle: Bundle, tmp_path: Path
) -> None:
    record("first", carry=False, level=2.0)
    run = record("second", carry=True)
    shutil.rmtree(tmp_path / "runs" / "first")  # the copy is enough
    options = ["--bundle", str(bundle.folder), "--out", str(tmp_path / "replays")]
    assert main(["replay", str(run.folder.path), *options]) == 0
    assert read_run_file(tmp_path / "replays" / "second").prior_from == "first"
    assert (tmp_path / "replays" / "second" / "prior.npz").exists()


def test_the_command_carries_over_when_told_to(
    serve: Callable[..., Served], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    served = serve("--statistics", "carry")
    client = connect(served.address)
    scans = [make_scan(run_id=run_id, n_volumes=N_VOLUMES) for run_id in ("first", "second")]
    for scan in scans:
        client.send_run(scan)
    for scan in scans:
        served.closed(scan)
    assert read_run_file(served.out / "first").prior_from is None
    assert read_run_file(served.out / "second").prior_from == "first"
    assert "second begins; its statistics begin with those at the end of first;" in served.log()
