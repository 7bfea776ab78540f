"""``auto`` takes the engine that measures faster on this machine, and keeps to it."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.decoding import doctor, trial
from realtime.decoding.engines.choose import AUTO_ORDER, probe
from realtime.decoding.open import open_decoders
from realtime.decoding.rank import CLOSE, by_speed, rank
from realtime.errors import EngineError

ON_CPU = ("openvino", "onnxruntime-cpu")


@pytest.fixture
def bundle(make_tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """One that nothing is known of yet, on a machine whose only engines are the CPU's two."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = Bundle.open(make_tiny_bundle(tmp_path / "bundle"))
    if any(probe(opened, name).available for name in set(AUTO_ORDER) - set(ON_CPU)):
        pytest.skip("a GPU's engine goes first")
    return opened


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not known already cannot be measured."""
    monkeypatch.setattr(trial, "_LIMIT_S", 1e-6)
    monkeypatch.setattr(trial, "_LIMIT_S_PER_GB", 0.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, the first of the table is the slower one."""
    monkeypatch.setattr(trial, "_run", lambda bundle, engine, limit_s: ("", 2.0 - ON_CPU.index(engine)))


@pytest.fixture(params=["no folder", "full disk"])
def forgetful(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's cache that takes nothing."""
    if request.param == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        return

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(trial, "write_whole", full)


@given(st.dictionaries(st.sampled_from(AUTO_ORDER), st.floats(1e-3, 1e3), min_size=1))
def test_the_first_is_as_good_as_the_fastest_and_the_rest_follow_by_time(decode_s: dict[str, float]) -> None:
    first, *others = by_speed(decode_s)
    assert {first, *others} == decode_s.keys()
    assert decode_s[first] <= CLOSE * min(decode_s.values())
    assert [decode_s[name] for name in others] == sorted(decode_s[name] for name in others)
    for earlier in AUTO_ORDER[: AUTO_ORDER.index(first)]:
        assert decode_s.get(earlier, math.inf) > CLOSE * min(decode_s.values())


@pytest.mark.usefixtures("no_trial")
@pytest.mark.parametrize("faster", ON_CPU)
def test_auto_takes_the_faster_engine_and_names_both_figures(bundle: Bundle, faster: str) -> None:
    for name in ON_CPU:
        trial.remember(bundle, name, 0.086 if name == faster else 0.112)
    opened = open_decoders(bundle, "auto", 0, blurs_faces=False)
    opened.worker.shutdown()
    assert opened.engine_name == faster
    slower = ON_CPU[1 - ON_CPU.index(faster)]
    assert f"86 ms on {faster}, {slower} 112 ms" in opened.reason
    assert open_decoders(bundle, slower, 0, blurs_faces=False).reason == "", "it was asked for"


def test_what_was_measured_once_is_kept(bundle: Bundle, request: pytest.FixtureRequest) -> None:
    """So a decoder that is started again during a run measures nothing, and takes the same engine."""
    measured = rank(bundle)
    request.getfixturevalue("no_trial")
    assert rank(bundle) == measured


@pytest.mark.usefixtures("no_trial")
def test_an_engine_that_does_not_pass_its_trial_is_never_opened_here(bundle: Bundle) -> None:
    trial.remember(bundle, "onnxruntime-cpu", 1.0)
    ranked = rank(bundle)
    assert ranked.ranking.order == ("onnxruntime-cpu",)
    assert any(each.startswith("openvino: ") and "did not end" in each for each in ranked.ranking.passed_over)
    opened = open_decoders(bundle, "auto", 0, blurs_faces=False)
    opened.worker.shutdown()
    assert "did not end" in opened.engine_description


@pytest.mark.usefixtures("no_trial")
def test_without_an_engine_every_reason_is_given(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="found none: tensorrt: ") as failed:
        rank(bundle)
    assert str(failed.value).count("did not end") == len(ON_CPU)


def test_the_runtime_takes_what_the_doctor_says(
    bundle: Bundle, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = doctor.diagnose(bundle, tmp_path)
    request.getfixturevalue("no_trial")
    ranked = rank(bundle)
    assert ranked.ranking.order[0] == found.engine
    assert ranked.reason == found.engine_reason
    assert doctor.lines(found)[-1] == f"the runtime uses {found.engine}: {found.engine_reason}"


def test_what_failed_once_is_passed_over_until_the_doctor_tries_it_again(
    bundle: Bundle, tmp_path: Path
) -> None:
    """So no start waits again for an engine that hangs, and none takes it in the middle of a run."""
    trial.remember(bundle, "onnxruntime-cpu", 1e3)
    with pytest.raises(EngineError, match="did not end"):
        trial.try_bundle(bundle, "openvino", limit_s=1e-6)
    failed = rank(bundle)
    assert failed.ranking.order == ("onnxruntime-cpu",)
    assert rank(bundle) == failed
    doctor.diagnose(bundle, tmp_path)
    assert set(rank(bundle).ranking.order) == set(ON_CPU)


@pytest.mark.usefixtures("measured", "forgetful")
def test_where_nothing_is_kept_the_tables_first_is_taken(bundle: Bundle) -> None:
    """A measurement that the next start does not find could differ there, and change the engine of a run."""
    ranked = rank(bundle)
    assert ranked.ranking.order == ON_CPU
    assert "the user's cache does not keep what is measured" in ranked.reason


@pytest.mark.usefixtures("forgetful")
def test_where_nothing_is_kept_too_an_engine_must_pass_its_trial(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {"openvino": ("it crashed", 0.0), "onnxruntime-cpu": ("", 1.0)}
    monkeypatch.setattr(trial, "_run", lambda bundle, engine, limit_s: results[engine])
    ranked = rank(bundle)
    assert (ranked.ranking.order, ranked.reason) == (("onnxruntime-cpu",), "")


@pytest.mark.usefixtures("measured", "bundle")
def test_the_shipped_bundle_is_measured_where_that_is_kept() -> None:
    assert rank(Bundle.open(demo_data("bundle"))).ranking.order == ON_CPU[::-1]


@pytest.mark.usefixtures("forgetful")
def test_the_shipped_bundle_is_not_tried_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(trial, "_run", lambda bundle, engine, limit_s: tried.append(engine))
    ranked = rank(Bundle.open(demo_data("bundle")))
    assert ranked.ranking.order == ON_CPU
    assert "the user's cache does not keep what is measured" in ranked.reason
    assert not tried


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("begun_on", ON_CPU)
def test_a_run_keeps_the_engine_that_it_was_begun_on(bundle: Bundle, begun_on: str) -> None:
    ranked = rank(bundle, begun_on)
    assert ranked.ranking.order[0] == begun_on
    assert begun_on in ranked.reason
    assert [trial.is_known(bundle, name) for name in ON_CPU] == [name == begun_on for name in ON_CPU]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("begun_on", ["", "tensorrt", "openvino-bf16", "abacus"])
def test_an_engine_that_auto_cannot_take_is_not_kept(bundle: Bundle, begun_on: str) -> None:
    assert rank(bundle, begun_on).ranking.order == ON_CPU[::-1]
