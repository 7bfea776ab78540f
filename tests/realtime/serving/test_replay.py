"""A recorded run is decoded again: the same frames bit for bit, or what another bundle makes of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.cli import main
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import PASSED_OVER, open_engine
from realtime.decoding.trial import remember
from realtime.record.journal import read_journal
from realtime.record.reader import read_recorded
from realtime.record.run_journal import open_folders
from realtime.record.run_json import EngineUsed, read_run_file

from .conftest import Scan, Served, closed
from .in_process import Lockstep, bench

RUN_ID = "sub-01_ses-nsd01_task-nsdcore_run-01"
SAMPLERS = ("ddim-4", "multistep-3")


@pytest.fixture(scope="module")
def recording(
    tiny_bundle: Path,
    make_scan: type[Scan],
    make_picture: Callable[..., bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run with all that can happen to one: two samplers, skips, a gap, a late volume, NaN, a marker."""
    out = tmp_path_factory.mktemp("recording")
    bundle = Bundle.open(tiny_bundle)
    engine = open_engine(bundle, "onnxruntime-cpu")
    decoder = Decoder(bundle, engine, seed=5)
    scan = make_scan(n_volumes=32, dtype="float32")
    used = EngineUsed(name="onnxruntime-cpu", description=engine.description)
    one = Lockstep.begin(out, bundle, scan.start, seed=5, engine=used, faces="shown")
    one.marker(scan.marker(9), make_picture(9))
    for at_s, index in enumerate([*range(18), 20, 19, 22, 23, 24, 25, 21, *range(26, 31)]):
        voxels = scan.voxels(index)
        if index == 13:
            voxels[:] = np.nan
        receive(one, scan.volume(index), voxels.tobytes(), float(at_s), decoder)
    one.end()
    one.close()
    return one.path


def receive(one: Lockstep, message: wire.Volume, payload: bytes, now_s: float, decoder: Decoder) -> None:
    """One volume at this time, and the decode of what is then ready; every seventh is skipped."""
    run = one.run
    run.expire(now_s)
    assert one.volume(message, payload, now_s)
    ready = run.queue.take()
    if ready is None:
        return
    if ready.volume % 7 == 0:
        run.skip(ready.volume, "the decoder was busy")
    else:
        sampler = decoder._bundle.sampler(SAMPLERS[ready.volume % 2])
        decoded = decoder.decode(ready.window, sampler)
        frame = run.frame(ready, decoder.spec, sampler.name, decoded.stages_ms)
        run.record(frame, decoded.image, ready.repaired_voxels)


def states(folder: Path) -> dict[int, tuple[object, ...]]:
    return {
        row.volume: (row.state, row.sampler, row.repaired_voxels, row.shown_onset)
        for row in read_recorded(folder).rows
    }


def test_the_same_bundle_on_the_same_engine_makes_the_same_frames(
    recording: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path)]
    assert main(["replay", str(recording), *options]) == 0
    said = capsys.readouterr().out
    then, now = read_recorded(recording), read_recorded(tmp_path / RUN_ID)
    assert {row.state for row in then.rows} == {"decoded", "warming", "censored", "skipped", "missing"}
    assert {row.sampler for row in then.rows} == {None, *SAMPLERS}
    assert states(now.path) == states(then.path)
    frames = {row.volume: row.frame for row in then.rows if row.frame}
    for volume, frame in frames.items():
        assert (now.path / frame).read_bytes() == (then.path / frame).read_bytes()
        assert f"volume {volume}: the same, bit for bit\n" in said
    assert f"{len(frames)} of {len(frames)} frames are the recorded ones bit for bit" in said
    assert now.received == then.received
    for a, b in zip(
        *(list(read_journal(each.path / "volumes.journal")) for each in (then, now)), strict=True
    ):
        assert (a.header, a.payload) == (b.header, b.payload)
    assert (now.info.state, now.info.seed, now.info.engine) == ("closed", 5, then.info.engine)
    assert now.info.replay_of == str(recording)
    assert now.info.versions == then.info.versions
    assert [picture.name for picture in now.pictures] == ["picture 9"]
    written = json.loads((now.path / "replay.json").read_text())
    assert written["changed"] == written["states_differ"] == []
    assert (now.path / "report.html").exists()


def test_a_run_that_was_resumed_and_one_that_is_still_open_are_replayed(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    engine = open_engine(bundle, "onnxruntime-cpu")
    decoder, used = (
        Decoder(bundle, engine),
        EngineUsed(name="onnxruntime-cpu", description=engine.description),
    )
    scan = make_scan(n_volumes=32)
    one = Lockstep.begin(tmp_path / "runs", bundle, scan.start, engine=used, faces="shown")
    for index in [*range(12), 14, 13]:  # a gap that is not filled when the runtime dies
        receive(one, scan.volume(index), scan.voxels(index).tobytes(), 0.0, decoder)
    one.let_go()
    replays = tmp_path / "replays"
    command = ["replay", str(one.path), "--bundle", str(tiny_bundle), "--out", str(replays)]
    assert main(command) == 0
    one = Lockstep.reopen(one.path, bundle, engine=used, faces="shown")
    for index in [12, *range(15, 30)]:
        receive(one, scan.volume(index), scan.voxels(index).tobytes(), 1.0, decoder)
    one.end()
    one.close()
    assert main(command) == 0
    assert states(replays / f"{RUN_ID}_take-2") == states(one.path)


def test_the_recording_is_not_touched_and_a_second_replay_is_another_take(
    recording: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in recording.rglob("*")}
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path)]
    assert [main(["replay", str(recording), *options]) for _ in range(2)] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in recording.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_ID, f"{RUN_ID}_take-2"]


def test_one_changed_pixel_is_noticed(
    recording: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(recording, tmp_path / "changed")
    frame = changed / "frames" / "000017.png"
    image = cv2.imread(str(frame))
    assert image is not None
    image[3, 4, 1] ^= np.uint8(2)
    cv2.imwrite(str(frame), image)
    assert main(["replay", str(changed), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "volume 17: differs in 0.03 % of its values, by 2 of 255 levels at most" in said
    assert "volume 16: the same" in said


def test_another_sampler_makes_other_frames_of_the_same_volumes(
    recording: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path), "--sampler", "ddim-4"]
    assert main(["replay", str(recording), *options]) == 1
    then, now = read_recorded(recording), read_recorded(tmp_path / RUN_ID)
    assert [(row.volume, row.state) for row in now.rows] == [(row.volume, row.state) for row in then.rows]
    assert {row.sampler for row in now.rows} == {None, "ddim-4"}
    said = capsys.readouterr().out
    assert "all frames with the sampler ddim-4" in said
    assert "volume 16: the same" in said
    assert "volume 17: differs" in said


def test_another_bundle_decodes_the_same_recording(
    recording: Path, make_tiny_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny_bundle(tmp_path / "other", seed=1)
    assert main(["replay", str(recording), "--bundle", str(other), "--out", str(tmp_path / "out")]) == 1
    now = read_recorded(tmp_path / "out" / RUN_ID)
    assert now.info.bundle_sha256 == Bundle.open(other).sha256
    assert "recorded with" in capsys.readouterr().out
    assert {row.volume: row.state for row in now.rows} == {
        row.volume: row.state for row in read_recorded(recording).rows
    }


def test_another_engine_is_said_and_its_frames_are_compared(
    recording: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path), "--engine", "openvino"]
    assert main(["replay", str(recording), *options]) in (0, 1)
    said = capsys.readouterr().out
    assert "\nengine OpenVINO" in said
    assert ", recorded with ONNX Runtime" in said
    assert read_recorded(tmp_path / RUN_ID).info.engine.name == "openvino"


def test_another_bundle_than_the_recordings_must_be_asked_for(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / RUN_ID, tmp_path / "out"
    shutil.copytree(recording, run)
    for folder in ("", str(tmp_path / "gone"), str(demo_data("bundle"))):  # the demo's is of this subject too
        info = msgspec.structs.replace(read_run_file(run), bundle_folder=folder)
        (run / "run.json").write_bytes(msgspec.json.encode(info))
        assert main(["replay", str(run), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert "expected the bundle of the recorded run, tiny" in said
        assert folder in said
        assert "give its folder as --bundle" in said
    assert main(["replay", str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert not out.exists()


@pytest.mark.parametrize("moved", ["not moved", "bundles/mine", "runs/bundles/sub-01", "here/bundles/other"])
def test_the_bundle_of_the_recording_is_found_by_itself(
    recording: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moved: str,
) -> None:
    """Where it was, beside the run, beside the folder of runs, or here; its hash tells it from others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "runs" / RUN_ID
    shutil.copytree(recording, run)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if moved != "not moved":
        info = read_run_file(run)
        assert info.bundle_folder == str(tiny_bundle)
        gone = msgspec.structs.replace(info, bundle_folder=str(tmp_path / "gone"))
        (run / "run.json").write_bytes(msgspec.json.encode(gone))
        (tmp_path / moved).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(demo_data("bundle"), (tmp_path / moved).with_name("another"))
        shutil.copytree(tiny_bundle, tmp_path / moved)
    if moved != "here/bundles/other":
        assert main(["replay", str(run)]) == 2, "the recording alone does not make its bundle one to trust"
        assert "you have never decoded with it" in capsys.readouterr().err
        remember(Bundle.open(tiny_bundle), "onnxruntime-cpu", 1.0)
    assert main(["replay", str(run)]) == 0
    replayed = read_run_file(Path("replays") / RUN_ID)
    assert replayed.bundle_folder == str(tiny_bundle if moved == "not moved" else tmp_path / moved)


def test_a_run_that_the_command_recorded_is_replayed_by_the_command(
    serve: Callable[..., Served], tiny_nsd: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    served = serve()
    faults = [word for fault in ("drop=0.02", "nan=0.02", "reorder=0.05") for word in ("--fault", fault)]
    command = [sys.executable, "-m", "sim", "replay", "--nsd", str(tiny_nsd), "--connect", served.address]
    subprocess.run([*command, "--speed", "80", *faults], check=True, capture_output=True, timeout=300)
    folder = closed(served.out / RUN_ID)
    assert served.interrupt() == 0
    assert {row.state for row in read_recorded(folder).rows} >= {"decoded", "warming", "censored", "missing"}
    replays = tmp_path / "replays"
    assert main(["replay", str(folder), "--bundle", str(tiny_bundle), "--out", str(replays)]) == 0
    assert states(replays / RUN_ID) == states(folder)
    written = json.loads((replays / RUN_ID / "replay.json").read_text())
    assert written["changed"] == [], "the engine that `auto` took then is the one that is asked for now"


def test_a_late_volume_before_a_gap_skips_nothing_in_the_replay(
    tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    """13 came, then 11, and 12 never: live, 11 was decoded before the gap was given up."""
    bundle = Bundle.open(tiny_bundle)
    engine = open_engine(bundle, "onnxruntime-cpu")
    decoder, scan = Decoder(bundle, engine, seed=5), make_scan(n_volumes=20, dtype="float32")
    used = EngineUsed(name="onnxruntime-cpu", description=engine.description)
    one = Lockstep.begin(tmp_path / "then", bundle, scan.start, seed=5, engine=used, faces="shown")
    for at_s, index in enumerate([*range(11), 13, 11, *range(15, 20)]):
        receive(one, scan.volume(index), scan.voxels(index).tobytes(), float(at_s), decoder)
    one.end("aborted")
    one.close("the end")
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path / "now")]
    assert main(["replay", str(one.path), *options]) == 0


def test_a_replay_that_was_broken_off_is_no_scanners_run(
    recording: Path, tiny_bundle: Path, make_scan: type[Scan], tmp_path: Path
) -> None:
    bundle, scan = Bundle.open(tiny_bundle), make_scan(n_volumes=32, dtype="float32")
    shutil.copytree(recording, tmp_path / RUN_ID)
    info = read_run_file(tmp_path / RUN_ID)
    left = msgspec.structs.replace(info, state="open", replay_of="/data/runs/another")
    (tmp_path / RUN_ID / "run.json").write_bytes(msgspec.json.encode(left))
    assert open_folders(tmp_path, bundle.sha256) == []

    async def begin() -> None:
        async with bench(bundle, tmp_path) as one:
            assert one.recording.run_folder is None
            assert await one.start(scan) == wire.RunAccepted(run_id=RUN_ID, held=[])
            assert one.recording.run_folder == str(tmp_path / f"{RUN_ID}_take-2")

    asyncio.run(begin())


def test_a_recording_that_changed_midway_says_so(
    recording: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "then" / RUN_ID
    shutil.copytree(recording, folder)
    info = read_run_file(folder)
    (folder / "run.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(info, state="open", faces="blurred"))
    )
    bundle = Bundle.open(tiny_bundle)
    other = EngineUsed(name="other", description="another")
    Lockstep.reopen(folder, bundle, engine=other, faces="shown").let_go()
    resumed = read_run_file(folder)
    assert resumed.changed_midway == ("engine", "faces")
    assert resumed.faces == "shown"  # a folder with frames that are not blurred does not say that they are
    main(["replay", str(folder), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "now")])
    assert "the same engine throughout, recorded with another after a restart" in capsys.readouterr().out


def test_an_engine_for_which_more_is_passed_over_is_no_other_engine(
    recording: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "then" / RUN_ID
    shutil.copytree(recording, folder)
    info = read_run_file(folder)
    (folder / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(info, state="open")))
    again = EngineUsed(
        name=info.engine.name, description=f"{info.engine.description}{PASSED_OVER}openvino: too slow)"
    )
    Lockstep.reopen(folder, Bundle.open(tiny_bundle), engine=again, faces=info.faces).let_go()
    assert read_run_file(folder).changed_midway == ()
