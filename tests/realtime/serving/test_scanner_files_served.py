"""Files as scanners, consoles and converters write them become runs of a served runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from realtime.record.reader import read_recorded

from .conftest import AFFINE, Scan, Served, wait_until

N_VOLUMES = 6
RUN_ID = "sub-01_task-realtime"


def has_come(served: Served, series: str, n_volumes: int) -> None:
    folder = served.out / f"{RUN_ID}_series-{series}"
    wait_until(
        lambda: (folder / "run.json").exists() and len(read_recorded(folder).received) == n_volumes,
        f"{n_volumes} volumes in {folder}",
    )


def assert_is(served: Served, series: str, scan: Scan) -> None:
    """The run has the volumes of a scan, in their order."""
    recorded = dict(read_recorded(served.out / f"{RUN_ID}_series-{series}").volumes())
    assert sorted(recorded) == list(range(N_VOLUMES))
    for index, voxels in recorded.items():
        assert np.array_equal(voxels, scan.voxels(index))


def test_runs_in_subfolders_in_pairs_in_one_file_and_with_echoes_are_recorded_as_they_came(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    served = serve("--volumes", str(N_VOLUMES), source=f"folder:{export}")

    pairs = Scan(seed=1)
    folder = export / "p001" / "e1234" / "s0007"
    folder.mkdir(parents=True)
    (folder.parent / "link").symlink_to(tmp_path)
    for index in range(N_VOLUMES):
        name = f"Dump-{index + 1:04d}"
        nibabel.save(nibabel.Nifti1Pair(pairs.voxels(index), np.array(AFFINE)), tmp_path / f"{name}.img")
        signal = (tmp_path / f"{name}.img").read_bytes()
        with (folder / f"{name}.img").open("wb", buffering=0) as file:
            file.truncate(len(signal))  # the size comes first, as when Windows copies to a share
            file.write(signal[: len(signal) // 2])
            (tmp_path / f"{name}.hdr").rename(folder / f"{name}.hdr")
            (tmp_path / f"{name}.img").unlink()
            file.write(signal[len(signal) // 2 :])
        has_come(served, "p001e1234s0007Dump", index + 1)
    assert_is(served, "p001e1234s0007Dump", pairs)

    grows = Scan(seed=2)
    series = np.stack([grows.voxels(index) for index in range(N_VOLUMES)], axis=-1)
    data = nibabel.Nifti1Image(series, np.array(AFFINE)).to_bytes()
    volume_bytes = grows.voxels(0).nbytes
    with (export / "bold.nii").open("wb", buffering=0) as file:
        file.write(data[:352])
        for index in range(N_VOLUMES):
            begin = 352 + index * volume_bytes
            file.write(data[begin : begin + volume_bytes // 2])
            file.write(data[begin + volume_bytes // 2 : begin + volume_bytes])
            has_come(served, "bold", index + 1)
    assert_is(served, "bold", grows)

    echoes = {1: Scan(seed=3), 2: Scan(seed=4)}
    for index in range(N_VOLUMES):
        for echo, scan in echoes.items():
            data = nibabel.Nifti1Image(scan.voxels(index), np.array(AFFINE)).to_bytes()
            (export / f"vol_{index:04d}_e{echo}.nii").write_bytes(data)
        has_come(served, "vol", index + 1)
    assert_is(served, "vol", echoes[1])
    assert served.interrupt() == 0
    log = served.log()
    assert "links are not followed" in log
    assert "echo 2 is passed over" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("form", "series"), [("vol_{:04d}_TR1333.nii", "volTR1333"), ("f{:04d}_3T.nii", "f3T")]
)
def test_a_run_whose_first_name_does_not_tell_and_whose_first_bytes_come_late_is_recorded_whole(
    serve: Callable[..., Served], tmp_path: Path, form: str, series: str
) -> None:
    export, scan = tmp_path / "export", Scan(seed=5)
    export.mkdir()
    served = serve("--volumes", str(N_VOLUMES), source=f"folder:{export}")
    data = [
        nibabel.Nifti1Image(scan.voxels(index), np.array(AFFINE)).to_bytes() for index in range(N_VOLUMES)
    ]
    with (export / form.format(0)).open("wb", buffering=0) as late:
        late.truncate(len(data[0]))
        late.write(data[0][: len(data[0]) // 2])
        for index in range(1, N_VOLUMES):
            (export / form.format(index)).write_bytes(data[index])
            time.sleep(0.3)  # the bytes of the first are as late as is tested: 1.5 s
        late.write(data[0][len(data[0]) // 2 :])
    has_come(served, series, N_VOLUMES)
    assert_is(served, series, scan)
    assert len(list(served.out.glob("*/run.json"))) == 1
