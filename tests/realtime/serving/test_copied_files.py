"""However a file is copied into the folder, what it holds is reported once and whole. In virtual time."""

from __future__ import annotations

import gzip
import io
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from realtime.sources.files import tree, watch
from realtime.sources.files.volume_file import VolumeFile
from realtime.sources.files.waiting import SETTLE_S
from realtime.sources.files.watch import Files, Found
from realtime.sources.files.whole import HOLLOW_S

from .test_dicom import enhanced, mosaic, written

PATIENCE_S = 10.0
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (16, 16, 12)
N_VOLUMES = 5


def voxels(number: int = 1) -> np.ndarray:
    return np.random.default_rng(number).integers(1, 4_000, SHAPE).astype(np.uint16)


def image(number: int = 1) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(voxels(number), AFFINE)


def pair(number: int = 1) -> dict[str, bytes]:
    """Header and voxels, as suffix and bytes."""
    header, signal = io.BytesIO(), io.BytesIO()
    stored = nibabel.Nifti1Pair(voxels(number), AFFINE)
    stored.to_file_map(
        {"header": nibabel.FileHolder(fileobj=header), "image": nibabel.FileHolder(fileobj=signal)}
    )
    return {".hdr": header.getvalue(), ".img": signal.getvalue()}


class Watched:
    """A folder, and the time at which it is looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = Files(folder, PATIENCE_S)
        self.files.pass_over_those_before()
        self.now_s = 0.0

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.stamp(name)

    def stamp(self, name: str) -> None:
        """Give a file the present time of modification."""
        os.utime(self.folder / name, (self.now_s, self.now_s))

    def after(self, seconds: float) -> list[Found]:
        """What is reported within this time, by looks every 50 ms."""
        end_s = self.now_s + seconds
        found: list[Found] = []
        while self.now_s < end_s:
            self.now_s += SETTLE_S
            found += self.files.look(self.now_s)
        return found


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def numbers(found: list[Found]) -> list[int]:
    return [each.holds.number for each in found]


def allocated(data: bytes, part: float) -> bytes:
    """A file that has its full size, and only this part of its bytes."""
    n_bytes = int(len(data) * part)
    return data[:n_bytes] + bytes(len(data) - n_bytes)


KINDS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "nifti": lambda: ("run_0001.nii", image().to_bytes()),
    "enhanced": lambda: ("0001.dcm", written(enhanced(voxels()))),
    "no-suffix": lambda: ("IM_0001", written(enhanced(voxels()))),
    "mosaic": lambda: ("0001.ima", written(mosaic(voxels()))),
    "voxels-of-a-pair": lambda: ("run_0001.img", pair()[".img"]),
}


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_full_size_is_taken_when_its_bytes_have_come(
    watched: Watched, kind: str, part: float
) -> None:
    """Windows sets the size first when it copies to a share."""
    name, data = KINDS[kind]()
    watched.write("run_0001.hdr", pair()[".hdr"])
    if (cut := allocated(data, part)) != data:  # the empty tiles of a mosaic are zero in any case
        watched.write(name, cut)
        assert watched.after(HOLLOW_S - 0.2) == []
    watched.write(name, data)
    (found,) = watched.after(0.4)
    assert isinstance(found.holds, VolumeFile)
    assert np.array_equal(found.holds.voxels, voxels())


def test_bytes_that_come_without_a_word_of_the_file_system_are_waited_for(watched: Watched) -> None:
    """Shares may tell size and time of modification of a file only when it is closed."""
    path, data = watched.folder / "run_0001.nii", image().to_bytes()
    for part in (0.2, 0.6, 0.9, 1.0):
        path.write_bytes(allocated(data, part))
        os.utime(path, (0, 0))
        found = watched.after(HOLLOW_S - 0.3)
        assert len(found) == (part == 1.0)
    assert np.array_equal(found[0].holds.voxels, voxels())


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_whole_version_replaces_one_that_was_given_up(
    watched: Watched, part: float, caplog: pytest.LogCaptureFixture
) -> None:
    data = image().to_bytes()
    watched.write("run_0001.nii", data[: int(len(data) * part)])
    assert watched.after(PATIENCE_S + 1) == []
    assert "its volume is missing" in caplog.text
    watched.write("run_0001.nii", data)
    assert numbers(watched.after(0.3)) == [1]


def test_what_looks_whole_is_taken_at_once(watched: Watched) -> None:
    watched.write("run_0001.nii", image().to_bytes())
    assert numbers(watched.after(2.5 * SETTLE_S)) == [1]


def test_zeros_where_all_volumes_have_them_delay_the_first_volume_only(watched: Watched) -> None:
    """Masks and corners without signal; of a file that is not whole, others are zero."""

    def masked(number: int) -> bytes:
        signal = voxels(number)
        signal[:, :, :3] = signal[:, :, -2:] = 0
        return nibabel.Nifti1Image(signal, AFFINE).to_bytes()

    watched.write("run_0001.nii", masked(1))
    assert watched.after(HOLLOW_S) == []
    assert numbers(watched.after(1.0)) == [1]
    for number in (2, 3):
        watched.write(f"run_{number:04d}.nii", masked(number))
        assert numbers(watched.after(2.5 * SETTLE_S)) == [number]
    watched.write("run_0004.nii", allocated(masked(4), 0.5))
    assert watched.after(HOLLOW_S - 0.3) == []
    watched.write("run_0004.nii", masked(4))
    (found,) = watched.after(2.5 * SETTLE_S)
    assert np.array_equal(found.holds.voxels[:, :, 3:-2], voxels(4)[:, :, 3:-2])


STOPS_S = (1.5, 1.5, 1.5, 0.0)
"""For how long the first files stop in the middle."""


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", ["nifti", "mosaic", "gzip"])
@pytest.mark.parametrize("stops_s", [(1.5, 0.0, 0.0, 0.0), STOPS_S, (0.0, 1.5, 1.5, 0.0)])
@pytest.mark.parametrize("n_chunks", [2, 5])
@pytest.mark.parametrize("is_told", [False, True])
def test_files_that_stop_in_the_middle_are_taken_whole_and_in_order(
    watched: Watched, kind: str, stops_s: tuple[float, ...], n_chunks: int, is_told: bool, first: int
) -> None:
    """The first among them, of which nothing is known, and several at the same time."""
    made = {
        "nifti": lambda number: (f"run_{number:04d}.nii", image(number + 1).to_bytes()),
        "gzip": lambda number: (f"run_{number:04d}.nii.gz", gzip.compress(image(number + 1).to_bytes())),
        "mosaic": lambda number: (
            f"{number:04d}.ima",
            written(mosaic(voxels(number + 1), number)),
        ),
    }
    events: list[tuple[float, str, bytes]] = []
    for nth, stop_s in enumerate(stops_s):
        name, data = made[kind](first + nth)
        for chunk in range(1, n_chunks) if stop_s else ():
            events.append((nth + stop_s * (chunk - 1), name, allocated(data, chunk / n_chunks)))
        events.append((nth + stop_s * (n_chunks - 1), name, data))
    came: list[Found] = []
    for at_s, name, data in sorted(events):
        came += watched.after(max(0.0, at_s - watched.now_s))
        watched.write(name, data)
        if not is_told:  # shares may tell the time of modification when a file is closed
            os.utime(watched.folder / name, (0, 0))
    came += watched.after(HOLLOW_S)
    # Bytes that come where a mosaic has no slices change nothing.
    assert sorted(dict.fromkeys(numbers(came))) == list(range(first, first + len(stops_s)))
    assert numbers(came)[0] == first  # which says where the series begins
    if kind != "gzip":  # of which it is known that it is cut, not for how long
        assert list(dict.fromkeys(numbers(came))) == list(range(first, first + len(stops_s)))
    for each in came:
        assert np.array_equal(each.holds.voxels, voxels(each.holds.number + 1))


@pytest.mark.parametrize("n_slices", [10, 12, 15])
def test_a_mosaic_with_empty_tiles_is_taken_at_once(watched: Watched, n_slices: int) -> None:
    watched.write("0001.ima", written(mosaic(voxels()[:, :, :n_slices])))
    assert numbers(watched.after(2.5 * SETTLE_S)) == [1]


def test_zeros_of_a_file_that_was_cut_are_not_expected_of_those_after_it(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    data = {number: image(number).to_bytes() for number in range(1, 5)}
    watched.write("run_0001.nii", allocated(data[1], 0.5))
    assert numbers(watched.after(HOLLOW_S + 0.5)) == [1]
    watched.write("run_0002.nii", data[2])
    assert numbers(watched.after(0.3)) == [2]
    assert "'run_0002.nii' has data where volumes before it have zeros" in caplog.text
    watched.write("run_0003.nii", allocated(data[3], 0.5))
    assert watched.after(HOLLOW_S - 0.2) == []
    watched.write("run_0003.nii", data[3])
    assert numbers(watched.after(0.3)) == [3]
    watched.write("run_0004.nii", allocated(data[4], 0.5))  # and no more comes
    assert numbers(watched.after(HOLLOW_S + 0.5)) == [4]
    assert "'run_0004.nii' has zeros where volumes before it have data" in caplog.text


@pytest.mark.parametrize("done", ["run_0001.nii.done", "run_0001.done"])
def test_a_done_file_says_that_a_file_is_whole(
    watched: Watched, done: str, caplog: pytest.LogCaptureFixture
) -> None:
    signal = voxels()
    signal[:, :, 6:] = 0
    watched.write("run_0001.nii", nibabel.Nifti1Image(signal, AFFINE).to_bytes())
    assert watched.after(0.5) == []
    watched.write(done, b"")
    with caplog.at_level(logging.INFO):
        assert numbers(watched.after(0.4)) == [1]
    assert caplog.messages == []


def test_bytes_that_come_after_the_file_was_taken_are_told(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    data = image().to_bytes()
    watched.write("run_0001.nii", allocated(data, 0.5))
    assert numbers(watched.after(HOLLOW_S + 0.5)) == [1]
    watched.write("run_0001.nii", data)
    assert numbers(watched.after(0.5)) == [1]
    (said,) = caplog.messages
    assert "'run_0001.nii' was changed" in said
    watched.now_s += 60
    watched.write("run_0001.nii", image(2).to_bytes())  # the next run uses the name again
    assert numbers(watched.after(0.5)) == [1]
    assert caplog.messages == [said]


@pytest.mark.parametrize("suffix", [".part", ".tmp", ".filepart", ".crdownload"])
def test_a_file_is_read_when_it_has_its_final_name(
    watched: Watched, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        watched.write(f"{number:04d}.dcm{suffix}", written(enhanced(voxels(number), number)))
    with caplog.at_level(logging.INFO):
        assert watched.after(1.0) == []
    assert len(caplog.messages) == 1
    (watched.folder / f"0001.dcm{suffix}").rename(watched.folder / "0001.dcm")
    assert numbers(watched.after(0.3)) == [1]


@pytest.mark.parametrize("folder", ["s7", "p001/e1234/s0007", "20240131/0000", "a/b/c/d/e/f"])
def test_series_in_new_subfolders_are_found(watched: Watched, folder: str) -> None:
    watched.write(f"{folder}/run_0001.nii", image().to_bytes())
    (found,) = watched.after(0.5)
    assert found.name == f"{folder}/run_0001.nii"
    watched.write(f"{folder}/run_0002.nii", image(2).to_bytes())
    watched.write("run_0001.nii", image(3).to_bytes())
    series = {each.name: each.holds.series for each in watched.after(0.5)}
    assert series[f"{folder}/run_0002.nii"] == found.holds.series != series["run_0001.nii"]


def test_links_to_folders_and_hidden_folders_are_not_looked_into(
    watched: Watched, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "run_0001.nii").write_bytes(image().to_bytes())
    (watched.folder / "link").symlink_to(outside)
    (watched.folder / "circle").symlink_to(watched.folder)
    watched.write(".hidden/run_0001.nii", image().to_bytes())
    assert watched.after(1.0) == []
    (said,) = caplog.messages
    assert "links are not followed" in said


def test_a_folder_that_became_a_link_after_it_was_listed_is_not_entered(
    watched: Watched, tmp_path_factory: pytest.TempPathFactory
) -> None:
    watched.write("s1/run_0001.nii", image().to_bytes())
    list(watched.files.look(0.0))
    (watched.folder / "s1").rename(tmp_path_factory.mktemp("outside") / "s1")
    (watched.folder / "s1").symlink_to(tmp_path_factory.getbasetemp() / "outside0" / "s1")
    assert watched.after(0.5) == []


def test_folders_beyond_the_limits_are_told_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tree, "DEEPEST", 2)
    watched.write("a/b/run_0001.nii", image().to_bytes())
    watched.write("a/b/c/run_0002.nii", image().to_bytes())
    watched.write("a/b/d/run_0003.nii", image().to_bytes())
    assert numbers(watched.after(1.0)) == [1]
    (said,) = caplog.messages
    assert "further folders are not looked into" in said


def test_a_poll_does_not_grow_with_the_files_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in range(300):
        (tmp_path / f"s{folder:03d}").mkdir()
        for number in range(5):
            (tmp_path / f"s{folder:03d}" / f"IM_{number}").touch()
        os.utime(tmp_path / f"s{folder:03d}", (folder, folder))
    os.utime(tmp_path, (0, 0))
    watched = Watched(tmp_path)
    watched.after(1.0)
    n_asked = n_listed = 0
    ask, list_ = os.stat, os.scandir

    def counted_ask(*arguments: object, **options: object) -> os.stat_result:
        nonlocal n_asked
        n_asked += 1
        return ask(*arguments, **options)  # type: ignore[arg-type]

    def counted_list(path: str) -> object:
        nonlocal n_listed
        n_listed += 1
        return list_(path)

    monkeypatch.setattr(os, "stat", counted_ask)
    monkeypatch.setattr(os, "scandir", counted_list)
    watched.now_s += 1_000
    list(watched.files.look(watched.now_s))
    assert n_asked <= tree.ASKED_AT_ONCE + watch.LOOKED_AT_AGAIN + 2 * n_listed
    assert n_listed <= 4
    watched.write("s007/run_0001.nii", image().to_bytes())
    watched.files.touch([str(tmp_path / "s007" / "run_0001.nii")])
    assert numbers(watched.after(0.2)) == [1]


def test_the_files_of_a_run_that_is_resumed_come_before_new_ones_and_older_ones_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest number of a series says where it begins."""
    monkeypatch.setattr(watch, "BACKLOG_AT_ONCE", 2)
    for number in range(1, 9):
        path = tmp_path / f"run_{number:04d}.nii"
        path.write_bytes(image(number).to_bytes())
        os.utime(path, (number, number))
    (tmp_path / "of_another_day_0001.nii").write_bytes(image().to_bytes())
    os.utime(tmp_path / "of_another_day_0001.nii", (-1_000, -1_000))
    files = Files(tmp_path, PATIENCE_S, longest_s=600)
    (tmp_path / "run_0009.nii").write_bytes(image().to_bytes())
    files.touch([str(tmp_path / "run_0009.nii")])
    came = [found.holds.number for look in range(40) for found in files.look(look / 10)]
    assert came == list(range(1, 10))


def test_a_foreign_archive_is_not_unpacked(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(watched.folder / "notes.tar.gz", "w:gz") as archive:
        archive.add(__file__)
    with caplog.at_level(logging.INFO):
        assert watched.after(1.0) == []
    assert "none of the formats that are read" in caplog.text
