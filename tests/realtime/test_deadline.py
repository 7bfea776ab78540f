"""The choice of the sampler for the time left, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.bundle.spec import Sampler
from realtime.decoding.pace import MARGIN_TR, SPECIALISED_MARGIN_TR, Pace, StepTimes, left_s

TR_S = 4 / 3


def sampler(n_guided: int, n_unguided: int = 0) -> Sampler:
    n_steps = n_guided + n_unguided
    return Sampler(
        name=f"test-{n_steps}-g{n_guided}",
        timesteps=tuple(range(n_steps, 0, -1)),
        coefficients=((0.0, 1.0, 0.0),) * n_steps,
        guidance=(3.0,) * n_guided + (1.0,) * n_unguided,
    )


BEST_FIRST = tuple(
    sampler(*counts)
    for counts in ((20, 0), (12, 8), (12, 0), (7, 5), (10, 0), (6, 4), (8, 0), (5, 3), (6, 0), (4, 2))
)
seconds = st.floats(1e-5, 20.0)
step_times = st.builds(StepTimes, brain_s=seconds, guided_s=seconds, unguided_s=seconds, vae_s=seconds)
tables = st.lists(
    st.builds(sampler, st.integers(1, 30), st.integers(0, 30)),
    min_size=1,
    max_size=8,
    unique_by=lambda s: s.name,
)


def test_the_time_of_a_decode_is_the_sum_of_its_parts() -> None:
    times = StepTimes(brain_s=0.5, guided_s=0.2, unguided_s=0.1, vae_s=1.0)
    assert times.decode_s(sampler(6, 4)) == pytest.approx(0.5 + 6 * 0.2 + 4 * 0.1 + 1.0)


@given(times=step_times, samplers=tables, time_s=st.floats(-5, 100))
def test_the_first_that_fits_is_chosen_else_the_quickest(
    times: StepTimes, samplers: list[Sampler], time_s: float
) -> None:
    pace = Pace(times)
    chosen = pace.choose(samplers, time_s)
    fits = [each for each in samplers if times.decode_s(each) <= time_s]
    if fits:
        assert chosen == fits[0]
    else:
        assert all(times.decode_s(chosen) <= times.decode_s(each) for each in samplers)


@given(times=step_times, samplers=tables, first_s=st.floats(0, 50), more_s=st.floats(0, 50))
def test_more_time_never_makes_the_choice_worse(
    times: StepTimes, samplers: list[Sampler], first_s: float, more_s: float
) -> None:
    """Best by the bundle's order, if any sampler fits."""
    pace = Pace(times)
    short, long = pace.choose(samplers, first_s), pace.choose(samplers, first_s + more_s)
    if times.decode_s(short) <= first_s:
        assert samplers.index(long) <= samplers.index(short)


@given(
    times=step_times,
    slowness=st.lists(st.floats(0.1, 20), min_size=5, max_size=5),
    noted=st.lists(st.sampled_from(BEST_FIRST), min_size=5, max_size=5),
)
def test_the_slowdown_is_the_median_of_recent_decodes(
    times: StepTimes, slowness: list[float], noted: list[Sampler]
) -> None:
    """For any samplers used and any earlier decodes."""
    pace = Pace(times)
    pace.note(BEST_FIRST[0], 1e6)
    for factor, each in zip(slowness, noted, strict=True):
        pace.note(each, factor * times.decode_s(each))
    assert pace.factor == pytest.approx(sorted(slowness)[2])
    assert pace.decode_s(BEST_FIRST[0]) == pytest.approx(pace.factor * times.decode_s(BEST_FIRST[0]))


def test_a_single_slow_decode_has_no_effect() -> None:
    times = StepTimes(brain_s=0.01, guided_s=0.05, unguided_s=0.025, vae_s=0.05)
    pace = Pace(times)
    for _ in range(3):
        pace.note(BEST_FIRST[0], times.decode_s(BEST_FIRST[0]))
    pace.note(BEST_FIRST[0], 10.0)
    assert pace.choose(BEST_FIRST, TR_S * (1 - MARGIN_TR)) == BEST_FIRST[0]


def test_the_time_left_ends_a_margin_before_the_next_volume() -> None:
    assert left_s(received_s=100.0, now_s=100.0, tr_s=2.0) == pytest.approx(2.0 - 0.2)
    assert left_s(received_s=100.0, now_s=101.0, tr_s=2.0) == pytest.approx(0.8)
    assert left_s(received_s=100.0, now_s=103.0, tr_s=2.0) < 0


@given(guided_s=st.floats(1e-3, 0.1), n_specialised=st.integers(1, 6))
def test_a_bank_leaves_the_next_volume_its_time(guided_s: float, n_specialised: int) -> None:
    """The specialised decodes end well before the next volume, or the last of them is the quickest."""
    pace = Pace(StepTimes(brain_s=guided_s / 5, guided_s=guided_s, unguided_s=guided_s / 2, vae_s=guided_s))
    now_s = pace.decode_s(pace.choose(BEST_FIRST, left_s(0.0, 0.0, TR_S) / (1 + n_specialised)))
    for n_left in range(n_specialised, 0, -1):
        chosen = pace.choose(BEST_FIRST, left_s(0.0, now_s, TR_S, SPECIALISED_MARGIN_TR) / n_left)
        now_s += pace.decode_s(chosen)
    is_quickest = chosen == min(BEST_FIRST, key=pace.decode_s)
    assert is_quickest or now_s <= (1 - SPECIALISED_MARGIN_TR) * TR_S * (1 + 1e-9)


@given(
    guided_s=st.floats(1e-3, 0.5),
    slowness=st.lists(st.floats(0.5, 3.0), min_size=1, max_size=4),
)
def test_a_scan_on_a_machine_whose_speed_changes(guided_s: float, slowness: list[float]) -> None:
    """Virtual time: volumes come every TR; the machine is slower or faster for a stretch of 30 volumes.

    Once the policy has seen a stretch, every decode ends before the next volume or is the quickest there is,
    and no better sampler than the chosen one would have fitted.
    """
    times = StepTimes(brain_s=guided_s / 5, guided_s=guided_s, unguided_s=guided_s / 2, vae_s=guided_s)
    pace, free_s = Pace(times), 0.0
    for volume in range(30 * len(slowness)):
        factor = slowness[volume // 30]
        received_s = volume * TR_S
        if free_s > received_s + TR_S:
            continue  # still busy when a newer window is there: this one is skipped
        began_s = max(received_s, free_s)
        time_s = left_s(received_s, began_s, TR_S)
        chosen = pace.choose(BEST_FIRST, time_s)
        took_s = factor * times.decode_s(chosen)
        free_s = began_s + took_s
        pace.note(chosen, took_s)
        if volume % 30 < 25:
            continue
        assert pace.factor == pytest.approx(factor)
        better = BEST_FIRST[: BEST_FIRST.index(chosen)]
        if all(factor * times.decode_s(each) > time_s for each in BEST_FIRST):
            assert chosen == min(BEST_FIRST, key=times.decode_s)
        else:
            assert free_s <= received_s + TR_S
            assert all(factor * times.decode_s(each) > time_s * (1 - 1e-9) for each in better)
