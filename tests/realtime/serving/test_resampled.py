"""Runs of a scanner whose TR is not the decoder's: resampled in time, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.match import resampled_to_s
from realtime.cli import main
from realtime.errors import WireError
from realtime.preprocessing.spikes import SpikeRule
from realtime.preprocessing.stream import StreamingPreprocessor
from realtime.record.reader import read_recorded
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import decoders_of, new_run_file, read_run_file, resampling_in_words
from realtime.runs.replay import Options, replay
from realtime.runs.status import status_of

from .conftest import Client, Scan, Served, read_summary, wait_until
from .in_process import Lockstep
from .test_marked import LONG_TR_S, marked

TR_S = 1.6
DELAY_VOLUMES, ADDED_S = 7, 7 * 1.6 - 8 * 4 / 3
"""Of the tiny bundle: its windows end 8 volumes of 4/3 s after a picture's onset."""
N_MADE_OF = 8
"""Volumes of 1.6 s that 6 samples and the end of the window take, and two before."""
OPTIONS = ("--sampler", "ddim-4", "--engine", "onnxruntime-cpu")


def slow(tr_s: float = TR_S, n_volumes: int = 40, **changes: Any) -> Scan:
    """A run with another TR."""
    return Scan(n_volumes=n_volumes, dtype="float32", changes={"tr_s": tr_s}, **changes)


def begun(out: Path, bundle: Bundle, scan: Scan) -> Lockstep:
    """A run that the recorder has taken with --resample."""
    info = new_run_file(
        scan.start,
        bundle_name=bundle.spec.name,
        bundle_sha256=bundle.sha256,
        decoders=decoders_of(bundle.spec, scan.start),
        resampled_to_s=resampled_to_s(bundle.spec, scan.start),
        seed=0,
        spikes=SpikeRule(),
    )
    return Lockstep(RunJournal.create(out, info), bundle)


def windows(one: Lockstep, scan: Scan, volumes: range) -> dict[int, NDArray[np.float32]]:
    """What the bundle's first decoder takes at each volume that has a window."""
    found = {}
    first = one.run.region.windows[one.run.folder.info.first_decoder]
    for index in volumes:
        one.volume(scan.volume(index), scan.voxels(index).tobytes(), float(index))
        if ready := one.run.queue.take():
            found[ready.volume] = first.of(ready.window)
    return found


def test_no_later_volume_and_no_restart_changes_a_window(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, scan = Bundle.open(tiny_bundle), slow()
    whole = windows(begun(tmp_path / "whole", bundle, scan), scan, range(40))
    assert list(whole) == list(range(N_MADE_OF - 1, 40))
    other = begun(tmp_path / "other", bundle, scan)
    found = windows(other, scan, range(30))
    found |= windows(other, slow(seed=1), range(30, 40))
    assert all((found[volume] == whole[volume]).all() for volume in range(N_MADE_OF - 1, 30))
    assert all((found[volume] != whole[volume]).any() for volume in range(30, 40))

    before = begun(tmp_path / "killed", bundle, scan)
    found = windows(before, scan, range(25))
    saved = before.run.region.state()
    before.let_go()
    after = begun(tmp_path / "after", bundle, scan)
    after.run.region.restore(saved)
    first = after.run.region.windows["general"]
    for index in range(25, 40):
        after.run.region.push(index, scan.voxels(index), scan.start.affine)
        window = after.run.region.window()
        assert window is not None
        np.testing.assert_array_equal(first.of(window), whole[index])


def test_statistics_are_of_the_scanners_volumes(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, scan = Bundle.open(tiny_bundle), slow()
    one = begun(tmp_path, bundle, scan)
    windows(one, scan, range(40))
    stream = StreamingPreprocessor.for_bundle(bundle, 40, TR_S, SpikeRule())
    for index in range(40):
        stream.push(index, scan.voxels(index))
    ours, expected = one.run.region.statistics(), stream.statistics()
    assert ours is not None
    assert expected is not None
    np.testing.assert_array_equal(ours.mean, expected.mean)
    np.testing.assert_array_equal(ours.sd, expected.sd)


def test_a_resampled_run_is_served_killed_stated_and_replayed(
    make_picture: Callable[..., bytes],
    tiny_bundle: Path,
    tmp_path: Path,
    serve: Callable[..., Served],
    connect: Callable[[str], Client],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan, onsets = slow(n_volumes=32), (2, 12, 20)
    served = serve("--resample", *OPTIONS)
    client = connect(served.address)
    assert isinstance(client.ask(scan.start), wire.RunAccepted)
    for index in range(scan.n_volumes):
        if index in onsets:
            client.ask(scan.marker(index), make_picture(index))
        client.send_volume(scan, index)
        if index == 15:
            wait_until(lambda: list(served.run_folder(scan).glob("frames/*.png")), "a frame")
            served.child("decode").kill()
    assert client.ask(scan.end()) == wire.RunClosed(run_id=scan.run_id)
    folder = served.closed(scan)

    info = read_run_file(folder)
    words = (
        "resampled in time from the scanner's TR of 1.600 s to the decoder's 1.333 s, which adds a delay of "
        f"{ADDED_S:.2f} s"
    )
    assert resampling_in_words(info) == words
    assert (info.resampled_to_s, info.window_delay_volumes) == (4 / 3, DELAY_VOLUMES)
    assert info.decoders[0].added_delay_s == pytest.approx(ADDED_S)
    assert words in served.log()
    assert words in read_summary(folder)["notes"]
    assert words in (folder / "report.html").read_text().replace("&#39;", "'")
    for row in read_recorded(folder).rows:
        if row.frame:
            assert (row.window_start, row.window_stop) == (row.volume + 1 - N_MADE_OF, row.volume + 1)
            shown = [onset for onset in onsets if onset <= row.volume - DELAY_VOLUMES]
            assert row.shown_onset == (shown[-1] if shown else None)
    for trial in read_recorded(folder).trials():
        assert trial.row.volume == trial.picture.onset_volume + DELAY_VOLUMES

    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path / "again")]
    assert main(["replay", str(folder), *options]) == 0
    assert "frames are the recorded ones bit for bit" in capsys.readouterr().out
    again = tmp_path / "again" / scan.run_id
    assert json.loads((again / "replay.json").read_text())["changed"] == []
    for frame in folder.glob("frames/*.png"):
        assert (again / "frames" / frame.name).read_bytes() == frame.read_bytes()


def test_another_tr_is_refused_with_the_ways_out(
    serve: Callable[..., Served], connect: Callable[[str], Client]
) -> None:
    client = connect(serve(*OPTIONS).address)
    refused = client.ask(slow().start)
    assert isinstance(refused, wire.Refused)
    assert refused.code == "tr"
    for word in ("1.3333 s, got 1.6000 s", "--resample", "--tr", "trained for this TR"):
        assert word in refused.message
    assert isinstance(client.ask(Scan().start), wire.RunAccepted)


@pytest.mark.parametrize(
    ("tr_s", "is_taken"),
    [(0.66, False), (0.666, True), (2 / 3, True), (1.333, True), (8 / 3, True), (2.667, True), (2.7, False)],
)
def test_what_is_too_far_from_the_decoders_tr_is_refused(
    tiny_bundle: Path, tr_s: float, is_taken: bool
) -> None:
    bundle = Bundle.open(tiny_bundle)
    if is_taken:
        bundle.check_run(slow(tr_s).start, resamples=True)
        return
    with pytest.raises(WireError, match=r"one from 0\.6667 to 2\.6667 s") as caught:
        bundle.check_run(slow(tr_s).start, resamples=True)
    assert "--resample" not in str(caught.value)


def test_a_tr_that_the_scanner_rounds_is_not_resampled(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    rounded = slow(1.333).start
    assert resampled_to_s(bundle.spec, rounded) is None
    assert decoders_of(bundle.spec, rounded) == decoders_of(bundle.spec)


def test_each_decoder_of_a_bank_has_its_own_delay(
    tiny_bank: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    bundle, scan = Bundle.open(tiny_bank), slow()
    one = begun(tmp_path, bundle, scan)
    one.marker(scan.marker(20), make_picture(20))
    due: dict[str, int] = {}
    for index in range(scan.n_volumes):
        windows(one, scan, range(index, index + 1))
        due |= {each.name: index for each in one.run.due(index) if each.name != "general"}
    # Their windows end 3 and 6 volumes of 4/3 s after the onset: 2.5 and 5 of 1.6 s.
    assert due == {"before-2": 23, "after-1": 25}
    said = {each.name: each.added_delay_s for each in one.run.folder.info.decoders}
    assert said == pytest.approx({"general": ADDED_S, "before-2": 0.8, "after-1": 0.0})
    assert resampling_in_words(one.run.folder.info).endswith("adds a delay of 0.00 to 0.80 s")


def test_the_status_tells_the_scanners_time(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    one = begun(tmp_path, bundle, slow())
    status = status_of(one.run, "warming", "", "", bundle.spec, bundle.sha256, is_demo=False)
    assert [status.tr_s, status.decode_delay_s] == pytest.approx([TR_S, (DELAY_VOLUMES + 1) * TR_S])
    assert f"adds a delay of {ADDED_S:.2f} s" in status.resampling
    waiting = status_of(None, "waiting", "", "", bundle.spec, bundle.sha256, is_demo=False)
    assert [waiting.tr_s, waiting.decode_delay_s] == pytest.approx([4 / 3, 12.0])
    assert waiting.resampling == ""


def test_a_replay_resamples_as_its_bundle_needs_it(
    tiny_bundle: Path, make_tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle, scan = Bundle.open(tiny_bundle), slow(n_volumes=16)
    one = begun(tmp_path / "runs", bundle, scan)
    windows(one, scan, range(16))
    one.end()
    one.close()
    trained = make_tiny_bundle(tmp_path / "trained", tr_s=TR_S)  # for the scanner's TR
    told: list[str] = []
    options = Options(run=one.path, out=tmp_path / "replays", bundle=trained, engine="onnxruntime-cpu")
    compared = replay(options, told.append)
    assert "volumes not resampled in time, in the recording otherwise" in told
    assert read_run_file(Path(compared.run_folder)).resampled_to_s is None


def test_markers_wait_for_volumes_at_the_scanners_pace() -> None:
    scan = slow(LONG_TR_S)

    async def run() -> None:
        async with marked(0.01) as (volumes, markers, source):  # the decoder's TR
            before_s = time.perf_counter() - 1.0
            asking = [
                asyncio.ensure_future(volumes.ask(scan.start)),
                asyncio.ensure_future(volumes.ask(scan.volume(0), received_s=before_s)),
            ]
            await asyncio.sleep(0)
            assert [type((await source.receive()).message) for _ in range(2)] == [wire.RunStart, wire.Volume]
            marker = wire.Marker(run_id="presentation", onset_volume=0, name="a picture")
            asking.append(asyncio.ensure_future(markers.ask(marker)))
            await asyncio.sleep(0)
            got = (await asyncio.wait_for(source.receive(), 60)).message
            assert isinstance(got, wire.Marker)
            assert got.run_id == scan.run_id
            for asked in asking:
                asked.cancel()

    asyncio.run(run())
