"""Run folders of format 1 can be read, replayed and resumed.

Those in ``format_1`` were recorded with the bank beside them by code that still wrote that format: a run that
was closed, and one that was left open, with the last row of both tables torn.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from realtime.bundle.bundle import Bundle
from realtime.errors import RecordError
from realtime.record import format_1
from realtime.record.folder import RunFolder
from realtime.record.reader import read_recorded
from realtime.record.run_json import RunFile, decoders_of, read_run_file
from realtime.report.summary import summarize
from realtime.runs import replay

from .in_process import Lockstep

GOLDEN = Path(__file__).parent / "format_1"
BANK, CLOSED, OPEN = (
    GOLDEN / "bank",
    GOLDEN / "runs" / "sub-01_task-closed",
    GOLDEN / "runs" / "sub-01_task-open",
)
DELAYS = {"general": 8, "before-2": 3, "after-1": 6}


@pytest.fixture
def left_open(tmp_path: Path) -> Path:
    """A copy of the run that was left open."""
    return Path(shutil.copytree(OPEN, tmp_path / "runs" / OPEN.name))


def lines(folder: Path, name: str) -> list[list[str]]:
    """The cells of a table, without its header and a torn last line."""
    (table,) = folder.glob(f"*_desc-{name}_decoding.tsv")
    return [line.split("\t") for line in table.read_text().split("\n")[1:-1]]


@pytest.mark.parametrize("folder", [CLOSED, OPEN], ids=["closed", "open"])
def test_both_tables_are_read_as_one(folder: Path) -> None:
    recorded = read_recorded(folder)
    assert {each.name: each.window_delay_volumes for each in recorded.info.decoders} == DELAYS
    assert recorded.info.first_decoder == "general"
    general = [(str(row.volume), row.state, row.frame or "n/a") for row in recorded.rows_by("general")]
    assert general == sorted(((c[0], c[1], c[3]) for c in lines(folder, "dynadiff")), key=lambda c: int(c[0]))
    others = {(str(row.volume), row.decoder, row.state) for row in recorded.rows if row.decoder != "general"}
    assert others == {(cells[0], cells[-1], cells[1]) for cells in lines(folder, "specialised")}
    assert all((folder / row.frame).is_file() for row in recorded.rows if row.frame)


def test_the_figures_are_those_of_then() -> None:
    then = json.loads((CLOSED / "summary.json").read_text())
    now = json.loads(msgspec.json.encode(summarize(read_recorded(CLOSED))))
    del then["notes"]
    for scores in (then, *then["specialised"].values(), *then.get("decoders", {}).values()):
        names = {"pixels": "Pixels", "features": "HOG"}  # what they were called then
        scores["identification"] = {names[name]: each for name, each in scores["identification"].items()}
    assert known_to(then, now) == then


def known_to(then: Any, now: Any) -> Any:
    """What of the figures of now had names then."""
    return {key: known_to(then[key], now[key]) for key in then} if isinstance(then, dict) else now


def test_a_replay_makes_the_same_frames_and_account(tmp_path: Path) -> None:
    options = replay.Options(run=CLOSED, out=tmp_path, bundle=BANK, engine="onnxruntime-cpu")
    compared = replay.replay(options, lambda line: None)
    assert compared.states_differ == ()
    assert {frame.decoder for frame in compared.frames} == DELAYS.keys()
    n_then = len(list((CLOSED / "frames").iterdir()))
    assert len(compared.frames) == n_then
    # Another CPU's arithmetic may round a value otherwise.
    assert (
        max(-1 if frame.largest_difference is None else frame.largest_difference for frame in compared.frames)
        <= 1
    )
    assert (
        min(-1 if frame.largest_difference is None else frame.largest_difference for frame in compared.frames)
        >= 0
    )
    then, now = read_recorded(CLOSED), read_recorded(Path(compared.run_folder))
    assert [(row.volume, row.decoder, row.state) for row in then.rows] == [
        (row.volume, row.decoder, row.state) for row in now.rows
    ]


def test_a_run_that_was_left_open_goes_on_in_one_table(left_open: Path) -> None:
    bundle = Bundle.open(BANK)
    before = read_recorded(left_open)
    one = Lockstep.reopen(left_open, bundle)
    run = one.run
    assert read_run_file(left_open).format_version == 2
    assert not list(left_open.glob("*specialised*"))
    assert run.where() == "volume 13"
    assert [decoder.name for decoder in run.due(13)] == [*DELAYS]  # pictures were shown at 10 and 7
    ready = run.queue.take()
    assert ready is not None
    assert ready.volume == 13
    run.skip(13, "to end the test")
    one.let_go()
    after = read_recorded(left_open)
    assert [row for row in after.rows if row.volume < 13] == list(before.rows)
    assert [(row.decoder, row.state) for row in after.rows if row.volume == 13] == [
        ("general", "skipped"),
        ("before-2", "skipped"),
        ("after-1", "skipped"),
    ]


def test_an_upgrade_that_was_cut_short_is_done_again(
    left_open: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, decoders = read_recorded(left_open), decoders_of(Bundle.open(BANK).spec)
    with monkeypatch.context() as killed:
        killed.setattr(RunFolder, "_save", lambda *_: (_ for _ in ()).throw(RecordError("killed")))
        with pytest.raises(RecordError, match="killed"):
            RunFolder.open(left_open, decoders)
    assert read_run_file(left_open).format_version == 1
    assert read_recorded(left_open).rows == before.rows
    folder = RunFolder.open(left_open, decoders)
    folder.let_go()
    assert read_recorded(left_open).rows == before.rows
    assert {row.decoder for row in folder.rows()} == DELAYS.keys()


def test_an_upgrade_that_was_cut_short_keeps_the_names_of_the_bundle(left_open: Path) -> None:
    named = {"general": "whole", "before-2": "before-2", "after-1": "after-1"}
    decoders = [
        msgspec.structs.replace(each, name=named[each.name]) for each in decoders_of(Bundle.open(BANK).spec)
    ]
    before = read_recorded(left_open)
    format_1.upgrade(left_open, read_run_file(left_open), decoders)
    recorded = read_recorded(left_open)
    assert recorded.info.first_decoder == "whole"
    assert [each.name for each in recorded.info.decoders] == [
        named[each.name] for each in before.info.decoders
    ]
    assert len(recorded.rows_by("whole")) == len(before.rows_by("general")) > 0
    assert [trial.frame for trial in recorded.trials()] == [trial.frame for trial in before.trials()]


def test_the_table_is_described_before_the_folder_counts_as_upgraded(
    left_open: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []

    def save(self: RunFolder, info: RunFile) -> None:
        (sidecar,) = self.path.glob("*dynadiff_decoding.json")
        described.append("decoder" in json.loads(sidecar.read_bytes()))
        original(self, info)

    original = RunFolder._save
    monkeypatch.setattr(RunFolder, "_save", save)
    RunFolder.open(left_open, decoders_of(Bundle.open(BANK).spec)).let_go()
    assert described == [True]


def test_a_table_that_is_lost_or_damaged_is_an_error(left_open: Path) -> None:
    (second,) = left_open.glob("*specialised_decoding.tsv")
    second.write_text("volume\tdecoder\n9\tbefore-2\n")
    with pytest.raises(RecordError, match=f"expected the columns .* in {second}"):
        read_recorded(left_open)
    (first,) = left_open.glob("*dynadiff_decoding.tsv")
    first.unlink()
    with pytest.raises(RecordError, match="expected a table of decodes in"):
        format_1.read_format_1(left_open, read_run_file(left_open))
