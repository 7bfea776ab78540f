"""What is said of a run that a bundle's decoder may have been trained on, and how well it decodes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from realtime.bundle.bundle import Bundle
from realtime.bundle.decoding_quality import is_near_chance, quality_in_words
from realtime.bundle.locate import demo_data
from realtime.bundle.match import read_spec
from realtime.bundle.spec import Evaluated, Spec, Stage
from realtime.bundle.trained_on import held_out_runs, trained_on
from realtime.record.run_json import EngineUsed
from realtime.runs.open import open_run

from .serving.conftest import Scan
from .serving.in_process import Lockstep

SAID = "this run may have been trained on"


@pytest.fixture
def spec(tiny_bundle: Path) -> Spec:
    return read_spec(tiny_bundle)[0]


def name_of(session: int, run: int, subject: int = 1) -> str:
    return f"sub-{subject:02d}_ses-nsd{session:02d}_task-nsdcore_run-{run:02d}"


def noted(spec: Spec, **notes: str) -> Spec:
    """As an earlier export wrote it: in the provenance only."""
    stage = Stage(name="checkpoint", sha256="0" * 64, made_from=(), parity={}, notes=notes)
    return msgspec.structs.replace(spec, provenance=(stage,))


def test_a_run_that_was_not_held_out_is_told_and_the_others_are_not(spec: Spec) -> None:
    held_out = ((1, 10), (2, 1))
    for known in (
        msgspec.structs.replace(spec, trained_sessions=(1, 2, 10), held_out_runs=held_out),
        noted(spec, held_out_runs="1/10 2/1"),
    ):
        assert held_out_runs(known) == held_out
        assert trained_on(known, name_of(1, 10)) == trained_on(known, name_of(2, 1)) == ""
        said = trained_on(known, name_of(1, 1))
        assert said.startswith(SAID)
        assert "session 1, run 10" in said, "one to use instead"
        assert trained_on(known, name_of(10, 1)).startswith(SAID), "no prefix of another's number"


def test_nothing_is_said_where_nothing_is_known(spec: Spec) -> None:
    assert trained_on(spec, name_of(1, 1)) == "", "the bundle does not say"
    told = msgspec.structs.replace(spec, trained_sessions=(1, 2, 3), held_out_runs=((1, 10),))
    for known in (told, noted(spec, held_out_runs="1/10", sessions="3")):
        assert trained_on(known, name_of(3, 1)).startswith(SAID)
        assert trained_on(known, name_of(4, 1)) == "", "later than all that was trained on"
    assert trained_on(known, name_of(1, 1, subject=2)) == "", "another subject"
    for other in ("", "run-1", "sub-01_ses-01_task-rest_run-01", "sub-01_ses-nsdx_task-nsdcore_run-1"):
        assert trained_on(known, other) == ""


def test_a_decoder_without_held_out_runs_was_trained_on_all(spec: Spec) -> None:
    """As with a split by pictures: each run has some that were trained on."""
    assert trained_on(noted(spec, held_out_runs=""), name_of(1, 1)).startswith(SAID)


def test_the_demos_run_was_held_out() -> None:
    shipped = read_spec(demo_data("bundle"))[0]
    assert trained_on(shipped, name_of(1, 10)) == ""
    assert trained_on(shipped, name_of(1, 1)).startswith(SAID)


def test_the_operator_is_warned_once_and_the_record_keeps_it(
    make_tiny_bundle: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = {"trained_sessions": (1,), "held_out_runs": ((1, 10),)}
    bundle = Bundle.open(make_tiny_bundle(tmp_path / "bundle", **trained))
    one = Lockstep.begin(tmp_path, bundle, Scan(run_id=name_of(1, 1)).start)
    assert one.run.message.startswith(SAID)
    assert [note for note in one.run.folder.info.notes if note.startswith(SAID)]
    one.run.folder.let_go()
    again = open_run(one.path, bundle, EngineUsed(), "blurred")
    assert sum(note.startswith(SAID) for note in again.folder.info.notes) == 1
    again.folder.let_go()
    told = [each for each in caplog.records if each.getMessage().startswith(SAID)]
    assert [each.levelno for each in told] == [logging.WARNING]


def scores(**values: float) -> tuple[Evaluated, ...]:
    """By metric and what was decoded from, such as ``HOG_streaming``."""
    found = []
    for name, value in values.items():
        metric, _, way = name.partition("_")
        facts = {"low": 0.0, "high": 1.0, "chance": 0.5}
        found.append(Evaluated(metric=metric, decoded_from=way, value=value, n_trials=320, **facts))
    return tuple(found)


def test_the_lowest_and_the_highest_live_score_stand_for_all(spec: Spec) -> None:
    told = scores(Pixels_streaming=0.99, HOG_streaming=0.857, HOG_offline=0.6)
    known = msgspec.structs.replace(spec, evaluation=told)
    assert quality_in_words(known) == (
        "identifies 86 % (HOG) to 99 % (Pixels) of pictures, chance 50 % (streaming, 320 trials)"
    )
    assert not is_near_chance(known)
    offline = msgspec.structs.replace(spec, evaluation=told[2:])
    assert "60 % (HOG) of pictures, chance 50 % (offline" in quality_in_words(offline)


def test_a_decoder_of_colours_is_not_near_chance_though_objects_hardly_come_through(spec: Spec) -> None:
    """What the first decoder's tutorial gets."""
    told = {"Pixels_streaming": 0.987, "HOG_streaming": 0.904, "EffNet-Lite0_streaming": 0.655}
    known = msgspec.structs.replace(spec, evaluation=scores(**told))
    assert not is_near_chance(known)
    assert quality_in_words(known).startswith("identifies 66 % (EffNet-Lite0) to 99 % (Pixels) of pictures")


@pytest.mark.parametrize(
    ("value", "is_near"), [(0.45, True), (0.6, True), (0.66, True), (0.67, False), (1.0, False)]
)
def test_what_is_near_chance_is_called_so(spec: Spec, value: float, is_near: bool) -> None:
    known = msgspec.structs.replace(spec, evaluation=scores(HOG_streaming=value))
    assert is_near_chance(known) is is_near
    assert quality_in_words(known).startswith("near chance: ") is is_near


def test_a_bundle_without_an_evaluation_says_so(spec: Spec) -> None:
    assert "not known" in quality_in_words(spec)
    assert not is_near_chance(spec)
