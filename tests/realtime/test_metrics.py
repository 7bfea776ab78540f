"""The runtime's figures, in virtual time; read back with Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from realtime.events import (
    STATES,
    Counts,
    DecoderUsed,
    Event,
    Frame,
    LatencyMs,
    Motion,
    Publishing,
    Quality,
    Status,
)
from realtime.viewer.prometheus import Metrics

TR_S = 4 / 3


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def status(volume: int | None, run: str = "run", **counts: int) -> Event:
    return Event(
        Status(
            state="trusted",
            run_id=run,
            subject=1,
            volume=volume,
            counts=Counts(planned=225, **counts),
            tr_s=TR_S,
            decode_delay_s=12.0,
            bundle_name="tiny",
            bundle_sha256="5a" * 32,
            bundle_is_demo=False,
            decoders=(DecoderUsed(name="general", window_delay_volumes=8),),
            run_folder=f"/runs/{run}",
            message="",
        )
    )


def with_quality(volume: int, quality: Quality) -> Event:
    return Event(msgspec.structs.replace(status(volume).message, quality=quality))


def frame(total_ms: float, decoder: str = "general", **changes: Any) -> Event:
    latency_ms = LatencyMs(journal=0, preprocess=0, wait=0, brain=0, denoise=total_ms, vae=0, total=total_ms)
    message = Frame(
        run_id="run",
        volume=7,
        decoder=decoder,
        window=(2, 8),
        state="trusted",
        sampler="ddim-4",
        latency_ms=latency_ms,
        shown_onset=None,
    )
    return Event(message, **changes)


def figures(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name, with its label where there is one."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            label = "".join(f"[{value}]" for value in sample.labels.values())
            found[sample.name + label] = sample.value
    return found


def volumes(metrics: Metrics) -> dict[str, float]:
    found = figures(metrics)
    return {state: found[f"realtime_volumes_total[{state}]"] for state in STATES}


def test_nothing_has_happened_yet() -> None:
    metrics = Metrics(lambda: None)
    assert volumes(metrics) == dict.fromkeys(STATES, 0)
    assert figures(metrics)["realtime_decode_latency_seconds_count"] == 0
    assert figures(metrics)["process_resident_memory_bytes"] > 1e6


@given(st.lists(st.tuples(*[st.integers(0, 50)] * len(STATES)), min_size=1, max_size=6))
def test_volumes_are_counted_over_all_runs(runs: list[tuple[int, ...]]) -> None:
    metrics = Metrics(lambda: None)
    for number, counts in enumerate(runs):
        metrics.take(status(None, str(number)))
        half = {state: count // 2 for state, count in zip(STATES, counts, strict=True)}
        metrics.take(status(20, str(number), **half))
        metrics.take(status(40, str(number), **dict(zip(STATES, counts, strict=True))))
    assert volumes(metrics) == {state: sum(run[i] for run in runs) for i, state in enumerate(STATES)}


def test_what_an_earlier_process_did_is_not_counted() -> None:
    metrics = Metrics(lambda: None)
    metrics.take(status(99, decoded=80, warming=20))
    metrics.take(frame(100.0, is_recorded=True))
    metrics.take(status(100, decoded=81, warming=20))
    assert volumes(metrics)["decoded"] == 1
    assert figures(metrics)["realtime_decode_latency_seconds_count"] == 0


def test_a_run_taken_up_anew_with_less_takes_nothing_away() -> None:
    metrics = Metrics(lambda: None)
    for decoded in (0, 5, 3, 4):
        metrics.take(status(9, decoded=decoded))
    assert volumes(metrics)["decoded"] == 6


def test_latencies_fall_into_buckets() -> None:
    metrics = Metrics(lambda: None)
    metrics.take(status(6))
    for total_ms in (40, 180, 900, 1300, 2500):
        metrics.take(frame(total_ms))
    metrics.take(frame(3000, decoder="early"))  # of a bank: made in the time that is left
    found = figures(metrics)
    assert found["realtime_decode_latency_seconds_bucket[0.05]"] == 1
    assert found["realtime_decode_latency_seconds_bucket[1.3333333333333333]"] == 4
    assert found["realtime_decode_latency_seconds_count"] == 5
    assert found["realtime_decode_latency_seconds_sum"] == pytest.approx(4.92)


def test_the_backlog_is_what_has_come_and_is_not_settled() -> None:
    metrics = Metrics(lambda: None)
    metrics.take(status(None))
    assert figures(metrics)["realtime_backlog_volumes"] == 0
    metrics.take(status(9, decoded=2, warming=3, missing=1, skipped=1, censored=1))
    assert figures(metrics)["realtime_backlog_volumes"] == 2
    metrics.take(status(9, decoded=3, warming=3, missing=1, skipped=2, censored=1))
    assert figures(metrics)["realtime_backlog_volumes"] == 0


def test_pace_drifts_when_volumes_come_late() -> None:
    clock = Clock()
    metrics = Metrics(lambda: None, clock)
    drifts = []
    for volume, late_s in [(0, 0.0), (1, 0.0), (2, 0.5), (3, 0.0), (5, 1.0)]:
        clock.now_s = 1000.0 + volume * TR_S + late_s
        metrics.take(status(volume))
        drifts.append(figures(metrics)["realtime_pace_drift_seconds"])
        clock.now_s += 0.7
        metrics.take(status(volume))  # of a frame: says nothing about the pace
    assert drifts == pytest.approx([0.0, 0.0, 0.5, 0.0, 1.0])
    metrics.take(status(0, "next"))
    assert figures(metrics)["realtime_pace_drift_seconds"] == 0


def test_the_publishers_figures_are_those_that_the_decoder_sends() -> None:
    found = figures(Metrics(lambda: Publishing(messages=7, overruns=2)))
    assert found["realtime_published_messages_total"] == 7
    assert found["realtime_publish_overruns_total"] == 2
    assert "realtime_published_messages_total" not in figures(Metrics(lambda: None))


def test_the_newest_volumes_quality_is_shown_where_it_is_known() -> None:
    metrics = Metrics(lambda: None)
    names = ("realtime_framewise_displacement_mm", "realtime_dvars", "realtime_tsnr")
    motion = Motion(
        trans_x=0, trans_y=0, trans_z=0.1, rot_x=0, rot_y=0, rot_z=0, framewise_displacement=0.25, rmsd=0.2
    )
    metrics.take(with_quality(7, Quality(volume=7, motion=motion, dvars=12.5, tsnr=48.0)))
    assert [figures(metrics)[name] for name in names] == [0.25, 12.5, 48.0]
    metrics.take(with_quality(8, Quality(volume=8, dvars=13.0)))
    assert np.isnan([figures(metrics)[names[0]], figures(metrics)[names[2]]]).all()
    assert figures(metrics)["realtime_dvars"] == 13.0
