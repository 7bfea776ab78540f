"""The scripts of docs/examples, run as their users would: processes of their own, beside a real runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest

from realtime import RealtimeError, StreamingPreprocessor
from realtime.bundle.bundle import Bundle
from realtime.network.key_files import make_keys
from realtime.record.reader import read_image, read_recorded

from .conftest import closed
from .in_process import Lockstep

TESTS = Path(__file__).parents[2]
EXAMPLES = TESTS.parent / "docs" / "examples"
OWN_TR_S = 0.05


def example(name: str, *arguments: Path | str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name)
def test_every_example_is_run_by_a_test(script: Path) -> None:
    assert any(f'"{script.name}"' in file.read_text() for file in TESTS.rglob("test_*.py"))


# decode_a_run.py


def test_a_recorded_run_is_decoded_again_bit_for_bit(
    serve: Callable[..., Any],
    connect: Callable[..., Any],
    make_scan: Callable[..., Any],
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    served = serve("--show-faces", "--sampler", "ddim-4")
    scan, scanner = make_scan(n_volumes=24, dtype="float32"), connect(served.address)
    scanner.ask(scan.start)
    for index in [*range(12), 13, 12, *range(14, 20), 21, 22]:  # one out of order; two never come
        voxels = scan.voxels(index)
        if index == 16:
            voxels[:] = np.nan
        scanner.ask(scan.volume(index), voxels.tobytes())
    scanner.ask(scan.end())
    folder = served.closed(scan)
    assert served.interrupt() == 0
    subprocess.run(example("decode_a_run.py", folder, tiny_bundle, tmp_path / "frames"), check=True)
    recorded = read_recorded(folder)
    assert {row.volume: row.state for row in recorded.rows}.items() >= {16: "censored", 20: "missing"}.items()
    frames = {row.volume: row.frame for row in recorded.rows if row.frame}
    assert frames
    for volume, frame in frames.items():
        again = read_image(tmp_path / "frames" / f"{volume:06d}.png")
        np.testing.assert_array_equal(again, read_image(folder / frame))
    decoded = {int(file.stem) for file in (tmp_path / "frames").iterdir()}
    assert decoded == set(range(5, 24)) - {16, 20, 23}  # each with a window, also where the runtime skipped


def test_a_bank_is_decoded_with_its_general_decoder(
    serve: Callable[..., Any],
    connect: Callable[..., Any],
    make_scan: Callable[..., Any],
    tiny_bank: Path,
    tmp_path: Path,
) -> None:
    served = serve("--show-faces", "--sampler", "ddim-4", bundle=tiny_bank)
    scan = make_scan(n_volumes=8)
    connect(served.address).send_run(scan)
    folder = served.closed(scan)
    assert served.interrupt() == 0
    subprocess.run(example("decode_a_run.py", folder, tiny_bank, tmp_path / "frames"), check=True)
    assert {file.name for file in (tmp_path / "frames").iterdir()} == {f"{n:06d}.png" for n in (5, 6, 7)}
    for file in (folder / "frames").glob("??????.png"):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "frames" / file.name)), cv2.imread(str(file)))


def test_a_bundle_of_another_subject_decodes_nothing(
    make_tiny_bundle: Callable[..., Path], make_scan: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    one = Lockstep.begin(tmp_path, Bundle.open(tiny_bundle), make_scan().start)
    one.end()
    one.close()
    other = make_tiny_bundle(tmp_path / "other", subject=2)
    done = subprocess.run(
        example("decode_a_run.py", one.path, other, tmp_path / "frames"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "expected subject 2" in done.stderr


def test_volumes_of_a_recording_are_those_of_the_run_in_order(
    make_scan: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    """Volume 2 comes once it has been given up; the run did not use it, and neither does who reads it."""
    scan = make_scan(n_volumes=10, dtype="float32")
    one = Lockstep.begin(tmp_path, Bundle.open(tiny_bundle), scan.start)
    for at_tr, index in enumerate([1, 0, 3, 5, 4, 6, 2, 7]):
        now_s = at_tr * scan.start.tr_s
        one.run.expire(now_s)
        assert one.volume(scan.volume(index), scan.voxels(index).tobytes(), now_s)
    one.end()
    one.close()
    recorded = read_recorded(one.path)
    assert 2 in recorded.received
    volumes = dict(recorded.volumes())
    assert list(volumes) == [0, 1, 3, 4, 5, 6, 7]
    for index, voxels in volumes.items():
        np.testing.assert_array_equal(voxels, scan.voxels(index))


def test_a_preprocessor_for_a_bundle_is_that_of_a_run(
    make_scan: Callable[..., Any], tiny_bundle: Path
) -> None:
    bundle, scan = Bundle.open(tiny_bundle), make_scan(n_volumes=8)
    spec = bundle.spec
    by_hand = StreamingPreprocessor(bundle.roi_mask, 8, spec.tr_s, spec.preprocessing, bundle.prior, 6)
    stream = StreamingPreprocessor.for_bundle(bundle, 8, spec.tr_s)
    for index in range(8):
        assert stream.push(index, scan.voxels(index)) == by_hand.push(index, scan.voxels(index))
    window = stream.window()
    assert window is not None
    np.testing.assert_array_equal(window, by_hand.window())
    with pytest.raises(RealtimeError, match="expected a volume index"):
        stream.push(8, scan.voxels(8))


# own_source.py


@pytest.fixture
def own_series(make_scan: Callable[..., Any], tmp_path: Path) -> Path:
    """A 4D file on the tiny bundle's grid, at a TR that a test can wait for."""
    scan = make_scan(n_volumes=12, dtype="float32")
    series = np.stack([scan.voxels(index) for index in range(12)], axis=-1)
    image = nibabel.Nifti1Image(series, np.array(scan.start.affine))
    image.header.set_zooms((1.8, 1.8, 1.8, OWN_TR_S))
    nibabel.save(image, tmp_path / "run.nii.gz")
    return tmp_path / "run.nii.gz"


def check_recorded(folder: Path, make_scan: Callable[..., Any]) -> None:
    recorded, scan = read_recorded(closed(folder)), make_scan(n_volumes=12, dtype="float32")
    assert recorded.info.state == "closed"
    assert recorded.info.start.tr_s == pytest.approx(OWN_TR_S)
    volumes = dict(recorded.volumes())
    assert list(volumes) == list(range(12))
    for index, voxels in volumes.items():
        np.testing.assert_array_equal(voxels, scan.voxels(index))


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_source_of_ones_own_sends_a_run(
    serve: Callable[..., Any],
    make_tiny_bundle: Callable[..., Path],
    make_scan: Callable[..., Any],
    own_series: Path,
    tmp_path: Path,
    with_keys: bool,
) -> None:
    options, keys = [], []
    if with_keys:
        make_keys(tmp_path / "keys", [])
        options, keys = ["--keys", str(tmp_path / "keys" / "runtime")], [tmp_path / "keys" / "scanner"]
    served = serve(*options, bundle=make_tiny_bundle(tmp_path / "own", tr_s=OWN_TR_S))
    done = subprocess.run(
        example("own_source.py", own_series, served.address, *keys), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[0] == "sub-01_task-own: the runtime has 0 of 12 volumes"
    assert said[1:-1] == [f"volume {index} is recorded" for index in range(12)]
    assert said[-1] == "sub-01_task-own is closed"
    check_recorded(served.out / "sub-01_task-own", make_scan)


def test_a_source_of_ones_own_goes_on_where_it_was_killed(
    serve: Callable[..., Any],
    make_tiny_bundle: Callable[..., Path],
    make_scan: Callable[..., Any],
    own_series: Path,
    tmp_path: Path,
) -> None:
    served = serve(bundle=make_tiny_bundle(tmp_path / "own", tr_s=OWN_TR_S))
    command = example("own_source.py", own_series, served.address)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as source:
        assert source.stdout
        for line in source.stdout:
            if line == "volume 4 is recorded\n":
                break
        source.kill()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    held = int(said[0].removeprefix("sub-01_task-own: the runtime has ").split()[0])
    assert 5 <= held < 12
    assert said[1:-1] == [f"volume {index} is recorded" for index in range(held, 12)]
    check_recorded(served.out / "sub-01_task-own", make_scan)


def test_a_source_of_ones_own_says_why_a_run_is_refused(serve: Callable[..., Any], own_series: Path) -> None:
    served = serve()
    done = subprocess.run(
        example("own_source.py", own_series, served.address), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "the runtime refused: expected the TR the decoder was trained for, 1.3333 s"
    )
