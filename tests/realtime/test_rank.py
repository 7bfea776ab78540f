"""``auto`` takes the engine that measures faster on this machine, and keeps to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.bundle.bundle import Bundle
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
