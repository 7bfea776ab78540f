"""A bank: beside the general decoder's frame of every volume, a picture's by every specialised one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.cli import main
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.preprocessing.stream import StreamingPreprocessor
from realtime.record.reader import read_image, read_recorded
from realtime.record.run_json import EngineUsed
from realtime.record.tables import Row

from .conftest import Client, Scan, Served
from .in_process import Lockstep

OPTIONS = ("--engine", "onnxruntime-cpu", "--sampler", "ddim-4")
ONSETS = range(1, 28, 3)
PICTURE = cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
ENGINE = EngineUsed(name="onnxruntime-cpu")
LAST_OF_WINDOW = {"before-2": 3, "after-1": 6}
"""Volumes from a picture's onset to the last of its window."""


def send(client: Client, scan: Scan, make_picture: Callable[..., bytes]) -> None:
    """A run with a picture every three volumes, each volume once the one before is decoded."""
    client.ask(scan.start)
    for index in range(scan.n_volumes):
        if index in ONSETS:
            client.ask(scan.marker(index), make_picture(index))
        assert client.send_volume(scan, index) == wire.Ack(run_id=scan.run_id, index=index)
    assert client.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)


@pytest.fixture
def paced(make_scan: type[Scan]) -> Scan:
    """A run slow enough that nothing has to be skipped, whatever else this machine does."""
    return make_scan(n_volumes=30, dtype="float32")


def take(one: Lockstep, scan: Scan, index: int, now_s: float, voxels: NDArray[Any] | None = None) -> None:
    """A volume from the scanner; ``voxels`` in place of the scan's own."""
    payload = (scan.voxels(index) if voxels is None else voxels).tobytes()
    assert one.volume(scan.volume(index), payload, now_s)


def settled(
    one: Lockstep,
    decoders: list[Decoder],
    scan: Scan,
    onsets: range = ONSETS,
    volumes: Iterable[int] | None = None,
) -> None:
    """A run in this process: each volume decoded by all decoders that are due before the next one comes."""
    run, sampler = one.run, decoders[0]._bundle.sampler()
    for index in volumes or range(scan.n_volumes):
        if index in onsets:
            one.marker(scan.marker(index), PICTURE)
        take(one, scan, index, float(index))
        if (ready := run.queue.take()) is None:
            continue
        due = run.due(ready.volume)
        for decoder in decoders:
            if decoder.spec in due:
                decoded = decoder.decode(run.region.windows[decoder.spec.name].of(ready.window), sampler)
                frame = run.frame(ready, decoder.spec, sampler.name, decoded.stages_ms)
                run.record(frame, decoded.image, ready.repaired_voxels)


def specialised_rows(one: Lockstep, volume: int) -> list[Row]:
    return [row for row in one.run.folder.rows() if row.volume == volume and row.decoder != "general"]


def opened(bank: Path) -> tuple[Bundle, list[Decoder]]:
    bundle = Bundle.open(bank)
    engine = open_engine(bundle, "onnxruntime-cpu")
    return bundle, [Decoder(bundle, engine, 0, each.name) for each in bundle.spec.decoders]


def test_every_picture_is_decoded_at_every_offset(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    paced: Scan,
    make_picture: Callable[..., bytes],
    tiny_bank: Path,
) -> None:
    served = serve(*OPTIONS, bundle=tiny_bank)
    send(connect(served.address), paced, make_picture)
    served.closed(paced)
    assert served.interrupt() == 0
    recorded = read_recorded(served.run_folder(paced))
    rows = {(row.decoder, row.shown_onset): row for row in recorded.rows if row.decoder != "general"}
    due = {
        (name, onset)
        for name, last in LAST_OF_WINDOW.items()
        for onset in ONSETS
        if onset + last < paced.n_volumes
    }
    assert rows.keys() == due
    assert {key: row.volume for key, row in rows.items()} == {
        (name, onset): onset + LAST_OF_WINDOW[name] for name, onset in due
    }
    assert {row.state for row in rows.values()} <= {"decoded", "warming", "skipped"}
    for row in rows.values():
        assert (row.frame is None) == (row.state == "skipped")
        assert row.volume >= 5 or row.reason == "no full window yet"
    summary = json.loads((served.run_folder(paced) / "summary.json").read_text())
    for name in LAST_OF_WINDOW:
        counts = summary["specialised"][name]
        assert counts["decoded"] + counts["warming"] + counts["skipped"] == sum(key[0] == name for key in due)


def test_a_frame_is_what_its_decoder_alone_makes_of_the_window(
    paced: Scan, tiny_bank: Path, tmp_path: Path
) -> None:
    bundle, decoders = opened(tiny_bank)
    one = Lockstep.begin(tmp_path, bundle, paced.start, faces="shown", engine=ENGINE)
    settled(one, decoders, paced)
    one.end()
    one.close()
    stream = StreamingPreprocessor(bundle.roi_mask, 30, 4 / 3, bundle.spec.preprocessing, bundle.prior, 6)
    windows = {}
    for volume in range(30):
        stream.push(volume, paced.voxels(volume))
        windows[volume] = stream.window()
    recorded = read_recorded(one.path)
    made = {
        (row.volume, row.decoder): read_image(recorded.path / row.frame)
        for row in recorded.rows
        if row.frame and row.decoder != "general"
    }
    assert {name for _, name in made} == LAST_OF_WINDOW.keys()
    for decoder in decoders[1:]:
        for (volume, name), image in made.items():
            if name == decoder.spec.name:
                window = windows[volume]
                assert window is not None
                np.testing.assert_array_equal(image, decoder.decode(window).image)
    first, second = (made[10, "before-2"], read_image(recorded.path / "frames" / "000010.png"))
    assert (first != second).any()


def test_a_replay_makes_the_same_frames_by_every_decoder(
    paced: Scan, tiny_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, decoders = opened(tiny_bank)
    one = Lockstep.begin(tmp_path / "then", bundle, paced.start, faces="shown", engine=ENGINE)
    settled(one, decoders, paced)
    one.end()
    one.close()
    options = ["--bundle", str(tiny_bank), "--out", str(tmp_path / "now"), "--engine", "onnxruntime-cpu"]
    assert main(["replay", str(one.path), *options]) == 0
    assert "by before-2: the same, bit for bit" in capsys.readouterr().out
    then, now = read_recorded(one.path), read_recorded(tmp_path / "now" / paced.run_id)
    assert [(row.volume, row.decoder, row.state) for row in then.rows] == [
        (row.volume, row.decoder, row.state) for row in now.rows
    ]
    replayed = json.loads((now.path / "replay.json").read_text())
    assert {frame["decoder"] for frame in replayed["frames"]} == {"general", *LAST_OF_WINDOW}


def test_what_a_crash_or_a_newer_window_left_out_is_accounted(
    paced: Scan, tiny_bank: Path, tmp_path: Path
) -> None:
    bundle, decoders = opened(tiny_bank)
    one = Lockstep.begin(tmp_path, bundle, paced.start, faces="shown", engine=ENGINE)
    settled(one, decoders, paced, volumes=range(16))
    # Volume 16 is the last of the window of the picture at 13 for before-2 and of that at 10 for after-1.
    take(one, paced, 16, 16.0)
    run = one.run
    ready = run.queue.take()
    assert ready
    assert [decoder.name for decoder in run.due(16)] == ["general", "before-2", "after-1"]
    decoded = decoders[0].decode(run.region.windows[decoders[0].spec.name].of(ready.window))
    run.record(run.frame(ready, decoders[0].spec, "ddim-4", decoded.stages_ms), decoded.image, 0)
    one.let_go()  # the process is gone before the specialised decoders have had their turn

    one = Lockstep.reopen(one.path, bundle, faces="shown", engine=ENGINE)
    lost = specialised_rows(one, 16)
    assert [(row.decoder, row.state) for row in lost] == [("before-2", "skipped"), ("after-1", "skipped")]
    assert all("restarted" in (row.reason or "") for row in lost)
    for index in (17, 18, 19, 20):  # 19 is due; nothing is decoded in between, and the newest wins
        take(one, paced, index, 0.0)
    skipped = specialised_rows(one, 19)
    assert {row.state for row in skipped} == {"skipped"}
    assert all("newer window" in (row.reason or "") for row in skipped)
    one.let_go()


def test_a_picture_that_no_decoder_sees_has_its_row_all_the_same(
    paced: Scan, tiny_bank: Path, tmp_path: Path
) -> None:
    """Windows that end at a censored or a missing volume, and one whose marker comes too late."""
    bundle, decoders = opened(tiny_bank)
    one = Lockstep.begin(tmp_path / "then", bundle, paced.start, faces="shown", engine=ENGINE)
    settled(one, decoders, paced, onsets=range(6, 10, 3), volumes=range(12))  # 9 + 3: volume 12
    spoilt = np.full_like(paced.voxels(12), np.nan)
    take(one, paced, 12, 12.0, spoilt)
    settled(one, decoders, paced, volumes=[13, 14, 16], onsets=range(0))  # 15 never comes
    one.run.expire(1e9)
    settled(one, decoders, paced, volumes=range(17, 30), onsets=range(0))
    one.marker(paced.marker(20), PICTURE)  # when volumes 23 and 26 have been decoded
    one.end()
    one.close()
    reasons = {
        (row.shown_onset, row.decoder): row.reason
        for row in one.run.folder.rows()
        if row.decoder != "general"
    }
    assert reasons.keys() == {(onset, name) for onset in (6, 9, 20) for name in LAST_OF_WINDOW}
    assert "not finite" in (reasons[9, "before-2"] or "")
    assert reasons[9, "after-1"] == "it did not come"
    assert reasons[20, "before-2"] == reasons[20, "after-1"] == "the picture's marker came after its window"
    options = ["--bundle", str(tiny_bank), "--out", str(tmp_path / "now"), "--engine", "onnxruntime-cpu"]
    assert main(["replay", str(one.path), *options]) == 0
    now = read_recorded(tmp_path / "now" / paced.run_id)
    assert {(row.shown_onset, row.decoder) for row in now.rows if row.decoder != "general"} == reasons.keys()
