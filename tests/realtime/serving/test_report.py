from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from realtime.bundle.decoding_quality import near_chance
from realtime.events import DecoderUsed, Frame, LatencyMs, Motion, Quality
from realtime.record import tables
from realtime.record.folder import RunFolder
from realtime.record.reader import read_recorded
from realtime.record.run_journal import RunJournal
from realtime.record.run_json import RunFile, new_run_file
from realtime.report import summary as report_summary
from realtime.report import write
from realtime.report.identification import hog, identification, pixels
from realtime.report.page import _reasons

from .conftest import Scan
from .in_process import opened

KEYS = {
    "run_id",
    "state",
    "planned",
    "received",
    "decoded",
    "warming",
    "censored",
    "skipped",
    "missing",
    "tr_s",
    "latency_ms",
    "identification",
    "quality",
    "decoders",
    "specialised",
    "bundle_sha256",
    "notes",
}


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed + 100).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (32, 32), interpolation=cv2.INTER_CUBIC)


def latency(total_ms: float) -> LatencyMs:
    return LatencyMs(
        journal=0.0, preprocess=0.0, wait=0.0, brain=0.0, denoise=total_ms, vae=0.0, total=total_ms
    )


def run_file(scan: Scan) -> RunFile:
    return new_run_file(
        scan.start,
        bundle_name="tiny",
        bundle_sha256="ab" * 32,
        decoders=(DecoderUsed(name="general", window_delay_volumes=8),),
        seed=0,
    )


def make_run(root: Path, scan: Scan, noise: float = 0.0) -> RunFolder:
    """40 volumes: pictures at 9, 12, .. 30, frames of them eight volumes later; 17 and 20 still warming."""
    journal = RunJournal.create(root, run_file(scan))
    for volume in range(38):
        journal.add_volume(scan.volume(volume), memoryview(scan.voxels(volume).tobytes()), 0.0)
    journal.close()
    folder = RunFolder.open(journal.path, journal.info.decoders)
    rng = np.random.default_rng(0)
    for onset in range(9, 31, 3):
        folder.write_shown(
            scan.marker(onset),
            cv2.imencode(".png", cv2.cvtColor(picture(onset), cv2.COLOR_RGB2BGR))[1].tobytes(),
        )
    for volume in range(40):
        if volume < 6:
            folder.write_row(
                tables.Row(volume=volume, state="warming", reason="no full window yet", decoder="general")
            )
        elif volume >= 38:
            folder.write_row(
                tables.Row(volume=volume, state="missing", reason="it did not come", decoder="general")
            )
        elif volume == 10:
            folder.write_row(
                tables.Row(volume=volume, state="censored", reason="too many <NaN>", decoder="general")
            )
        else:
            shown = picture(volume - 8).astype(float) + noise * rng.standard_normal((32, 32, 3))
            frame = Frame(
                run_id=scan.run_id,
                volume=volume,
                decoder="general",
                window=(volume - 5, volume + 1),
                state="trusted" if volume > 20 else "warming",
                sampler="ddim-4",
                latency_ms=latency(float(volume)),
                shown_onset=volume - 8,
            )
            file = folder.write_frame(volume, "general", np.clip(shown, 0, 255).astype(np.uint8))
            folder.write_row(tables.frame_row(frame, file, 0))
    return folder


@pytest.fixture
def run(make_scan: type[Scan], tmp_path: Path) -> Path:
    folder = make_run(tmp_path, make_scan(), noise=30.0)
    folder.close()
    return folder.path


def test_a_report_is_private_and_is_not_written_through_a_link(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("stays")
    for name in ("summary.json", ".partial-report.html"):
        (run / name).symlink_to(outside)
    write.write_report(run)
    for name in ("summary.json", "report.html"):
        assert stat.S_IMODE((run / name).lstat().st_mode) == 0o600
    assert outside.read_text() == "stays"


def test_summary_json_has_the_promised_keys_and_adds_up(
    run: Path, account_of: Callable[[Path], dict[str, Any]]
) -> None:
    write.write_report(run)
    summary = account_of(run)
    assert summary.keys() == KEYS
    assert summary["latency_ms"].keys() == {"p50", "p95", "max"}
    assert summary["identification"].keys() == {"Pixels", "HOG"}
    for score in summary["identification"].values():
        assert score.keys() == {"value", "low", "high", "chance", "n_trials", "by_picture"}
        assert score["by_picture"].keys() == {"value", "low", "high"}
    assert (summary["planned"], summary["received"]) == (40, 38)
    assert (summary["decoded"], summary["warming"]) == (17, 20)
    assert (summary["censored"], summary["skipped"], summary["missing"]) == (1, 0, 2)
    assert summary["bundle_sha256"] == "ab" * 32


@pytest.mark.parametrize("rows", [0, 10, 40])
def test_the_reasons_of_each_state_add_up_to_its_volumes(
    make_scan: type[Scan], tmp_path: Path, rows: int
) -> None:
    """Whether the run is whole, or open and not yet accounted for."""
    folder = make_run(tmp_path, make_scan())
    folder.let_go()
    recorded = read_recorded(folder.path)
    recorded = dataclasses.replace(recorded, rows=recorded.rows[:rows])
    summary = report_summary.summarize(recorded)
    found = _reasons(recorded.rows, summary)
    for state in ("warming", "censored", "skipped", "missing"):
        assert sum(n for _, n in found[state]) == getattr(summary, state)
    assert "decoded" not in found, "a frame needs no excuse"
    if rows == 40:
        assert dict(found["warming"]) == {
            "no full window yet": 6,
            "decoded from statistics that had not settled yet": 14,
        }


def test_what_is_near_chance_stands_out(make_scan: type[Scan], tmp_path: Path) -> None:
    for noise, is_near in ((0.0, False), (1e6, True)):
        folder = make_run(tmp_path / str(noise), make_scan(), noise=noise)
        folder.close()
        summary = write.write_report(folder.path)
        marked = 'class="n near"' in (folder.path / "report.html").read_text()
        value = summary.identification["Pixels"].value
        assert value is not None
        assert (near_chance(value, 0.5), marked) == (is_near, is_near)


def test_latency_is_over_all_frames(run: Path) -> None:
    frames = [volume for volume in range(6, 38) if volume != 10]
    found = report_summary.summarize(read_recorded(run)).latency_ms
    in_order = sorted(frames)  # the nearest rank, as the page has it: a latency that occurred
    assert found.p50 == in_order[math.ceil(0.5 * len(frames)) - 1]
    assert found.p95 == in_order[math.ceil(0.95 * len(frames)) - 1]
    assert found.max == 37


def test_identification_is_over_trusted_trials_of_onset_plus_delay(run: Path) -> None:
    recorded = read_recorded(run)
    trials = report_summary.trusted(recorded)
    assert [(trial.picture.onset_volume, trial.row.volume) for trial in trials] == [
        (onset, onset + 8) for onset in range(15, 30, 3)
    ]
    found = report_summary.summarize(recorded).identification
    for name, features in (("Pixels", pixels), ("HOG", hog)):
        true = np.stack([features(picture(onset)) for onset in range(15, 30, 3)])
        decoded = np.stack([features(trial.decoded_image()) for trial in trials])
        assert found[name] == identification(true, decoded)
    assert found["Pixels"].value == 1.0


def test_pictures_of_another_size_are_brought_to_that_of_the_frame(run: Path) -> None:
    trial = report_summary.trusted(read_recorded(run))[0]
    large = picture(trial.picture.onset_volume).repeat(2, axis=0).repeat(2, axis=1)
    cv2.imwrite(str(trial.picture.path), cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    assert np.array_equal(trial.shown_image(), picture(trial.picture.onset_volume))


def test_the_page_names_both_directions(run: Path) -> None:
    write.write_report(run)
    page = (run / "report.html").read_text()
    row = re.search(r"<tr><td>Pixels <small>[^<]*</small></td>(.*?)</tr>", page, re.DOTALL)
    assert row
    assert row[1].count("100.0 %</td>") == 4
    assert page.count(">by decode</th>") == page.count(">by picture</th>") == 1


def test_an_open_run_counts_what_has_not_come_as_missing_and_says_so(
    make_scan: type[Scan], tmp_path: Path
) -> None:
    folder = opened(tmp_path, run_file(make_scan()))
    summary = write.write_report(folder.path)
    folder.let_go()
    assert (summary.state, summary.planned, summary.missing, summary.received) == ("open", 40, 40, 0)
    assert summary.latency_ms.p50 is None
    assert summary.identification["Pixels"].value is None
    assert any("still open" in note for note in summary.notes)
    assert any("takes two trials" in note for note in summary.notes)
    assert "no frame" in "\n".join(report_summary.lines(summary))


def test_the_page_holds_everything_itself(run: Path) -> None:
    write.write_report(run)
    page = (run / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["']?(?!["']?data:)""", page)
    assert (
        page.count("data:image/png;base64,") == 2 * 7
    )  # the eighth picture has no frame: its volume is missing
    assert page.count("<circle") == 31
    assert page.count("<rect") == 40
    assert "too many &lt;NaN&gt; (1)" in page
    assert "<NaN>" not in page
    assert page.count("· warming") == 2


def test_names_from_outside_are_escaped(
    make_scan: type[Scan], tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    scan = make_scan()
    folder = make_run(tmp_path, scan)
    marker = scan.marker(31)
    folder.write_shown(
        type(marker)(run_id=scan.run_id, onset_volume=29, name="<script>alert(1)</script>"), make_picture(1)
    )
    folder.close()
    write.write_report(folder.path)
    page = (folder.path / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_lines_for_the_terminal_name_every_figure(run: Path) -> None:
    text = "\n".join(report_summary.lines(write.write_report(run)))
    assert "40 planned, 38 received: 17 decoded, 20 warming, 1 censored, 0 skipped, 2 missing" in text
    assert "TR 1333 ms" in text
    assert re.search(
        r"Pixels +100\.0 % \[100\.0, 100\.0\] by decode, 100\.0 % \[100\.0, 100\.0\] by picture "
        r"\(two-way identification with 95 % intervals, chance 50, 5 trials\)",
        text,
    )


class Network:
    """Stands for the process that scores with the network."""

    def __init__(self, stdout: bytes = b"", stderr: bytes = b"", returncode: int = 0) -> None:
        self.done = subprocess.CompletedProcess([], returncode, stdout, stderr)
        self.command: list[str] = []

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        self.command = command
        if self.done.returncode:
            raise subprocess.CalledProcessError(1, command, self.done.stdout, self.done.stderr)
        return self.done


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Network], Network]:
    def install(network: Network) -> Network:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(subprocess, "run", network.run)
        return network

    return install


def test_the_networks_score_is_added_where_it_is_installed(
    run: Path, installed: Callable[[Network], Network]
) -> None:
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "chance": 0.5, "n_trials": 5}
    network = installed(Network(json.dumps(score).encode()))
    summary = write.write_report(run)
    write.add_network(summary, run)
    assert network.command[1:] == ["-P", "-m", "train", "score", "--run", str(run), "--json"]
    added = summary.identification["EffNet-Lite0"]
    assert (added.value, added.low, added.high, added.n_trials) == (0.8, 0.7, 0.9, 5)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Network(stderr=b"train: no weights\n", returncode=1), "train: no weights"),
        (Network(stdout=b"not json"), "malformed"),
    ],
)
def test_where_the_network_fails_a_note_says_so(
    run: Path, installed: Callable[[Network], Network], network: Network, reason: str
) -> None:
    installed(network)
    summary = write.write_report(run)
    write.add_network(summary, run)
    assert "EffNet-Lite0" not in summary.identification
    assert "EffNet-Lite0 was not scored" in summary.notes[-1]
    assert reason in summary.notes[-1]


def test_where_the_network_is_not_installed_a_note_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    summary = write.write_report(run)
    write.add_network(summary, run)
    assert summary.notes[-1].endswith("efficientnet_lite_pytorch is not installed")


def test_motion_and_quality_are_in_the_report(make_scan: type[Scan], tmp_path: Path) -> None:
    folder = make_run(tmp_path, make_scan())
    for volume in (*range(10), *range(12, 20)):
        fd_mm = None if volume in (0, 12) else 0.1 * volume
        motion = Motion(
            trans_x=0.1 * volume, trans_y=0, trans_z=0, rot_x=0, rot_y=0.01, rot_z=0,
            framewise_displacement=fd_mm, rmsd=fd_mm,
        )  # fmt: skip
        folder.write_quality(volume, Quality(volume=volume, motion=motion, dvars=5.0 + volume, tsnr=50.0))
    folder.close()
    write.write_report(folder.path)
    quality = json.loads((folder.path / "summary.json").read_text())["quality"]
    moved_mm = [0.1 * volume for volume in (*range(1, 10), *range(13, 20))]
    assert quality["framewise_displacement_mean_mm"] == pytest.approx(np.mean(moved_mm))
    assert quality["framewise_displacement_max_mm"] == pytest.approx(1.9)
    assert (quality["dvars_median"], quality["tsnr"]) == (pytest.approx(13.5), 50.0)
    html = (folder.path / "report.html").read_text()
    assert html.count("<polyline") == 2 * (3 + 3 + 1 + 1 + 1)  # each line has a gap
    for title in ("Head position, mm", "Head rotation, °", "Framewise displacement, mm"):
        assert title in html
