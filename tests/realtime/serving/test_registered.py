"""Runs whose volumes do not lie where the decoder's do: another grid, another session, a head that moves."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import pytest

from realtime import cli, wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import write_spec
from realtime.commands.registration import add_registration_options, registration
from realtime.errors import RegistrationError, ServeError, WireError
from realtime.record.reader import read_recorded
from realtime.record.run_json import Registration, confounds_path, read_run_file
from realtime.record.tables import read_quality
from realtime.registration.rigid import RigidParameters
from realtime.runs.head_position import Head as RunHead
from realtime.runs.head_position import MovedSlices, positions_of
from realtime.runs.replay import Options, replay
from realtime.service.record import Options as RecordOptions
from realtime.service.record import record

from ..registration.heads import Head, grid_affine
from .conftest import Client, Scan, Served, wait_until

N_VOLUMES = 24
PERSON = Head(1)
REFERENCE_AFFINE = grid_affine()
GRID, AFFINE = (40, 46, 38), grid_affine(3.9, (40, 46, 38))
"""Of the scanner; the decoder's reference has another."""
OFFSET = RigidParameters(4, -6, 3, 0.03, -0.05, 0.06).matrix()
"""How the session's head lies to the decoder's."""


def motion(index: int) -> RigidParameters:
    """A slow drift, and a jerk at volume 15."""
    jerk = 1.5 if index == 15 else 0.0
    return RigidParameters(0.02 * index, jerk, -0.03 * index, 0.0005 * index, 0.0, 0.01 * jerk)


@dataclass
class MovingHead(Scan):
    """A person's head that lies elsewhere, and moves."""

    n_volumes: int = N_VOLUMES
    dtype: str = "float32"
    person: Head = PERSON
    changes: dict[str, Any] = field(default_factory=lambda: {"shape": GRID, "affine": AFFINE.tolist()})

    def voxels(self, index: int) -> np.ndarray:
        moved = motion(index).matrix() @ OFFSET
        return self.person.volume(AFFINE, moved, GRID, noise=1.0, seed=index)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reference") / "reference.nii.gz"
    nibabel.save(nibabel.Nifti1Image(PERSON.volume(REFERENCE_AFFINE), REFERENCE_AFFINE), file)
    return file


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("registered") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    shutil.copyfile(reference, folder / reference.name)
    spec = Bundle.open(tiny_bundle).spec
    files = {**spec.files, reference.name: file_sha256(reference)}
    write_spec(folder, msgspec.structs.replace(spec, reference=reference.name, files=files))
    return Bundle.open(folder)


def truth(bundle: Bundle) -> np.ndarray:
    """The region in the decoder's own session, [V]."""
    return PERSON.at(positions_of(bundle.spec.roi, bundle.roi_mask))


def test_the_region_is_found_wherever_the_head_lies(bundle: Bundle) -> None:
    scan, expected = MovingHead(), truth(bundle)
    head = RunHead(bundle, Registration(), GRID)
    for index in range(0, N_VOLUMES, 3):
        placed = head.place(index, scan.voxels(index), AFFINE)
        assert np.abs(placed.row - expected).max() < 0.02 * np.ptp(expected)
        assert placed.censored == ""
    unmoved = MovedSlices(bundle).place(0, scan.voxels(0), AFFINE).row
    assert np.abs(unmoved - expected).max() > 0.1 * np.ptp(expected)  # what no correction would have decoded


def test_what_motion_is_recorded_and_censored(bundle: Bundle) -> None:
    scan = MovingHead()
    head = RunHead(bundle, Registration(max_fd_mm=0.5), GRID)
    placed = {index: head.place(index, scan.voxels(index), AFFINE) for index in (12, 13, 14, 15, 17)}
    moved = placed[14].motion
    assert moved is not None
    # The six parameters are about the centre of the grid, relative to the first registered volume.
    relative = RigidParameters.of(motion(14).matrix() @ np.linalg.inv(motion(12).matrix()))
    found = (moved.trans_x, moved.trans_y, moved.trans_z, moved.rot_x, moved.rot_y, moved.rot_z)
    np.testing.assert_allclose(found, relative, atol=0.03)
    assert [bool(placed[index].censored) for index in placed] == [False, False, False, True, False]
    assert "the head moved by" in placed[15].censored
    jerk, after_a_gap = placed[15].motion, placed[17].motion
    assert jerk is not None
    assert jerk.framewise_displacement == pytest.approx(1.5 + 50 * 0.015 + 0.05 + 0.025, abs=0.1)
    assert after_a_gap is not None
    assert after_a_gap.framewise_displacement is None  # volume 16 is missing


def test_another_person_is_refused_and_the_run_goes_on(bundle: Bundle) -> None:
    scan = MovingHead(person=Head(2))
    head = RunHead(bundle, Registration(), GRID)
    first, second = (head.place(index, scan.voxels(index), AFFINE) for index in range(2))
    assert "not registered" in first.censored
    assert "--initial" in first.censored
    assert "--initial" in head.alarm
    assert np.isnan(first.row).all()
    assert second.censored
    head = RunHead(bundle, Registration(), GRID)
    assert head.place(0, np.zeros(GRID, np.float32), AFFINE).censored  # such as before the magnet is tuned
    assert head.alarm
    assert not head.place(1, MovingHead().voxels(1), AFFINE).censored
    assert head.alarm == ""
    assert head.place(2, np.zeros(GRID, np.float32), AFFINE).censored
    assert not head.place(3, MovingHead().voxels(3), AFFINE).censored


def test_a_state_goes_on_bit_for_bit(bundle: Bundle) -> None:
    scan = MovingHead()
    whole, before = (RunHead(bundle, Registration(), GRID) for _ in range(2))
    for index in range(6):
        for head in (whole, before):
            head.place(index, scan.voxels(index), AFFINE)
    after = RunHead(bundle, Registration(), GRID)
    after.restore(before.state())
    for index in range(6, 9):
        ours, theirs = (head.place(index, scan.voxels(index), AFFINE) for head in (whole, after))
        np.testing.assert_array_equal(ours.row, theirs.row)
        assert ours.motion == theirs.motion


def test_where_registration_begins_can_be_given(bundle: Bundle) -> None:
    far = RigidParameters(30, 20, -40, 0.6, 0.2, -0.9).matrix()
    volume = PERSON.volume(AFFINE, far @ OFFSET, GRID)
    rows = [tuple(map(float, row)) for row in far]
    settings = Registration(initial=(rows[0], rows[1], rows[2], rows[3]))  # type: ignore[arg-type]
    placed = RunHead(bundle, settings, GRID).place(0, volume, AFFINE)
    assert np.abs(placed.row - truth(bundle)).max() < 0.02 * np.ptp(truth(bundle))


def test_slices_that_the_scanner_moves_are_followed_without_a_reference(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    moved = grid_affine(1.8, (20, 20, 20))
    moved[:3, 3] += (0.4, -0.7, 0.2)
    placed = MovedSlices(bundle)
    first, second = (placed.place(index, PERSON.volume(moved, shape=(20, 20, 20)), moved) for index in (3, 4))
    assert np.abs(first.row - truth(bundle)).max() < 0.005 * np.ptp(truth(bundle))
    assert ("at volume 3" in first.said, second.said) == (True, "")


def test_a_bundle_without_a_reference_takes_its_own_grid_only(tiny_bundle: Path, bundle: Bundle) -> None:
    start = MovingHead().start
    with pytest.raises(WireError, match="python -m export reference"):
        Bundle.open(tiny_bundle).check_run(start)
    bundle.check_run(start)


def test_a_registered_run_is_decoded_recorded_killed_and_replayed(
    bundle: Bundle, tmp_path: Path, serve: Callable[..., Served], connect: Callable[[str], Client]
) -> None:
    scan = MovingHead()
    served = serve("--max-fd", "0.9", "--fit-motion", bundle=bundle.folder)
    client = connect(served.address)
    assert isinstance(client.ask(scan.start), wire.RunAccepted)
    table = confounds_path(served.run_folder(scan), scan.start)
    for index in range(N_VOLUMES):
        client.send_volume(scan, index)
        if index == 10:
            wait_until(lambda: len(read_quality(table).get("dvars", ())) > 5, "registered volumes")
            served.child("decode").kill()
    assert client.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
    folder = served.closed(scan)

    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == N_VOLUMES
    quality = read_quality(table)
    assert np.flatnonzero(quality["framewise_displacement"] > 0.9).tolist() == [15, 16]
    assert quality["trans_z"][20] == pytest.approx(-0.6, abs=0.1)
    # As in nipype.algorithms.confounds.FramewiseDisplacement.
    six = [quality[name] for name in ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")]
    moved_mm = np.abs(np.diff(np.column_stack(six), axis=0) * (1, 1, 1, 50, 50, 50)).sum(axis=1)
    assert quality["framewise_displacement"][1:] == pytest.approx(moved_mm, abs=1e-6)
    sidecar = json.loads(table.with_suffix(".json").read_text())
    assert sidecar["rot_x"]["Units"] == "rad"
    assert read_run_file(folder).registration == Registration(max_fd_mm=0.9, fits_motion=True)

    compared = replay(Options(run=folder, out=tmp_path / "replays", bundle=bundle.folder), lambda line: None)
    assert compared.is_same
    assert compared.frames
    again = confounds_path(Path(compared.run_folder), scan.start)
    assert again.read_text() == table.read_text()


def test_options_say_what_they_need(tiny_bundle: Path, tmp_path: Path) -> None:
    options = RecordOptions(bundle=tiny_bundle, source="tcp://127.0.0.1:0", out=tmp_path, registers_all=True)
    with pytest.raises(ServeError, match="a reference volume for --register-all"):
        record(options)


@pytest.mark.parametrize("text", ["1 0 0 0\n0 1 0 0\n", "a b c d\n", "2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"])
def test_a_start_that_is_no_rigid_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "start.txt").write_text(text)
    parser = argparse.ArgumentParser()
    add_registration_options(parser)
    with pytest.raises(RegistrationError, match="expected"):
        registration(parser.parse_args(["--initial", str(tmp_path / "start.txt")]))


def test_a_region_that_the_field_of_view_cuts_is_said_so(bundle: Bundle) -> None:
    beside = AFFINE.copy()
    beside[0, 3] += 0.5 * np.diag(AFFINE)[0] * GRID[0]  # its edge goes through the region
    placed = MovedSlices(bundle).place(0, PERSON.volume(beside, shape=GRID), beside)
    assert "of the region lie in the field of view" in placed.censored


def test_the_run_says_why_nothing_is_decoded(
    bundle: Bundle, serve: Callable[..., Served], connect: Callable[[str], Client]
) -> None:
    scan = MovingHead(person=Head(2), n_volumes=8)
    served = serve(bundle=bundle.folder)
    connect(served.address).send_run(scan)
    folder = served.closed(scan)
    rows = read_recorded(folder).rows
    assert [row.state for row in rows] == ["censored"] * 8
    assert "not registered: the session's reference volume does not fit" in (rows[0].reason or "")
    assert len(read_quality(confounds_path(folder, scan.start))["dvars"]) == 8


def test_another_bundles_replay_registers_as_that_needs_it(
    bundle: Bundle,
    tiny_bundle: Path,
    tmp_path: Path,
    serve: Callable[..., Served],
    connect: Callable[[str], Client],
) -> None:
    scan = Scan(n_volumes=16)  # on the decoder's own grid
    served = serve(bundle=tiny_bundle)
    connect(served.address).send_run(scan)
    folder = served.closed(scan)
    told: list[str] = []
    compared = replay(Options(run=folder, out=tmp_path / "replays", bundle=bundle.folder), told.append)
    assert compared.is_same  # the same graphs, and nothing to register
    assert read_run_file(Path(compared.run_folder)).registration is None


def with_reference(bundle: Bundle, folder: Path, voxels: np.ndarray) -> Path:
    """A copy of a bundle that has another reference volume."""
    shutil.copytree(bundle.folder, folder)
    nibabel.save(nibabel.Nifti1Image(voxels, REFERENCE_AFFINE), folder / "reference.nii.gz")
    files = {**bundle.spec.files, "reference.nii.gz": file_sha256(folder / "reference.nii.gz")}
    write_spec(folder, msgspec.structs.replace(bundle.spec, files=files))
    return folder


@dataclass
class HalfAHead(MovingHead):
    """The field of view ends in the middle of the head."""

    edge: np.ndarray = field(default_factory=lambda: grid_affine(3.9, (0, 46, 38)))

    @property
    def start(self) -> wire.RunStart:
        fields = msgspec.to_builtins(super().start) | {"affine": self.edge.tolist()}
        return msgspec.convert(fields, wire.RunStart)

    def voxels(self, index: int) -> np.ndarray:
        return self.person.volume(self.edge, motion(index).matrix() @ OFFSET, GRID, noise=1.0, seed=index)


@dataclass
class DarkVolumes(MovingHead):
    """The first volume and some later ones are all zero."""

    def voxels(self, index: int) -> np.ndarray:
        return np.zeros(GRID, np.float32) if index in (0, 9, 10) else super().voxels(index)


def test_half_a_head_and_empty_volumes_are_said_and_the_next_run_is_decoded(
    bundle: Bundle, serve: Callable[..., Served], connect: Callable[[str], Client]
) -> None:
    served = serve(bundle=bundle.folder)
    client = connect(served.address)
    half, dark = HalfAHead(run_id="half", n_volumes=6), DarkVolumes(run_id="dark", n_volumes=16)
    good = MovingHead(run_id="good", n_volumes=16)
    for scan in (half, dark, good):
        client.send_run(scan)
    rows = {scan.run_id: read_recorded(served.closed(scan)).rows for scan in (half, dark, good)}
    assert [row.state for row in rows["half"]] == ["censored"] * 6
    assert "of the decoder's head in the session's field of view" in (rows["half"][0].reason or "")
    reasons = {row.volume: row.reason for row in rows["dark"] if row.state == "censored"}
    assert sorted(reasons) == [0, 9, 10]
    assert all("one in which every voxel is 0" in (reason or "") for reason in reasons.values())
    assert rows["dark"][-1].state == rows["good"][-1].state == "decoded"
    assert served.interrupt() == 0
    assert "Traceback" not in served.log()


@pytest.mark.parametrize("value", [0, 7])
def test_a_bundle_whose_reference_shows_nothing_is_refused(
    bundle: Bundle, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = with_reference(bundle, tmp_path / "empty", np.full((38, 46, 36), value, np.float32))
    options = ["--headless", "--bundle", str(empty), "--out", str(tmp_path), "--source", "tcp://127.0.0.1:0"]
    assert cli.main(["serve", *options]) == 2
    said = capsys.readouterr().err
    assert "expected a reference volume with a head in it" in said
    assert said.count("\n") == 1
