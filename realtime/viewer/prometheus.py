"""Metrics of a running runtime for Prometheus, at ``/metrics`` on the page's server, behind its checks.

    realtime_volumes_total{state}        volumes by final state: each has exactly one
    realtime_decode_latency_seconds      compute latency: from a volume's last byte to its frame by
                                         the bundle's first decoder
    realtime_backlog_volumes             volumes whose turn has come and that have no final state yet
    realtime_pace_drift_seconds          delay of the newest volume against the run's first volume and the TR
    realtime_framewise_displacement_mm   of the newest volume, where volumes are registered
    realtime_dvars, realtime_tsnr        of the newest volume (see the confounds table)
    realtime_published_messages_total    messages handed to the publisher's socket
    realtime_publish_overruns_total      times that a subscriber's queue was found full
    process_resident_memory_bytes, ...   of this process (Linux only)

Counters are of this process, over all its runs; of a resumed run, what an earlier process did is not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from realtime.events import STATES, Counts, Event, Frame, Publishing, Quality, Status

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LATENCY_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 4 / 3, 1.6, 2.0, 3.0, 5.0, 10.0)
"""With the TRs of the dataset, 4/3 s and 1.6 s, among the bounds."""


class Metrics:
    """Counts events; pass :meth:`take` to :meth:`realtime.events.Broadcast.call`.

    :param publishing: gives what was sent to subscribers; None if results are published nowhere
    :param clock: a monotonic clock, in seconds
    """

    def __init__(
        self, publishing: Callable[[], Publishing | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._clock = clock
        self._first_decoder = ""
        self._folder: str | None = None
        self._counts = Counts()
        self._first: tuple[int, float] | None = None
        self._newest: int | None = None
        self._volumes = Counter("realtime_volumes", "Volumes by final state.", ["state"], registry=registry)
        for state in STATES:
            self._volumes.labels(state)
        self._latency = Histogram(
            "realtime_decode_latency_seconds",
            "From a volume's last byte to its frame.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._backlog = Gauge(
            "realtime_backlog_volumes",
            "Volumes whose turn has come, without a final state.",
            registry=registry,
        )
        self._drift = Gauge(
            "realtime_pace_drift_seconds",
            "Delay of the newest volume against the time expected from the run's first volume and the TR.",
            registry=registry,
        )
        self._quality = {
            name: Gauge(f"realtime_{metric}", f"{what} of the newest volume.", registry=registry)
            for name, metric, what in (
                ("framewise_displacement", "framewise_displacement_mm", "Framewise displacement"),
                ("dvars", "dvars", "DVARS"),
                ("tsnr", "tsnr", "Median tSNR of the region"),
            )
        }
        ProcessCollector(registry=registry)
        registry.register(_Published(publishing))

    def take(self, event: Event) -> None:
        """Count an event."""
        message = event.message
        if isinstance(message, Status):
            self._take_status(message)
        elif isinstance(message, Frame) and message.decoder == self._first_decoder and not event.is_recorded:
            self._latency.observe(message.latency_ms.total / 1e3)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _take_status(self, status: Status) -> None:
        self._first_decoder = status.decoders[0].name
        if status.run_folder != self._folder:
            self._folder, self._counts = status.run_folder, status.counts
            self._first = self._newest = None
            self._drift.set(0)
        for state in STATES:
            # Counts can fall when a run is resumed; a counter must not.
            new = max(0, getattr(status.counts, state) - getattr(self._counts, state))
            self._volumes.labels(state).inc(new)
        self._counts = status.counts
        self._take_quality(status.quality)
        if status.volume is None:
            return
        settled = sum(getattr(status.counts, state) for state in STATES)
        self._backlog.set(max(0, status.volume + 1 - settled))
        if self._newest is None or status.volume > self._newest:
            self._newest = status.volume
            self._note_pace(status.volume, status.tr_s)

    def _take_quality(self, quality: Quality | None) -> None:
        motion = quality.motion if quality else None
        for name, gauge in self._quality.items():
            value = getattr(quality, name, None) if name in ("dvars", "tsnr") else getattr(motion, name, None)
            gauge.set(math.nan if value is None else value)

    def _note_pace(self, volume: int, tr_s: float) -> None:
        if self._first is None:
            self._first = volume, self._clock()
        first, began_s = self._first
        self._drift.set(self._clock() - began_s - (volume - first) * tr_s)


class _Published(Collector):
    """The publisher's own counters, read on request; none where nothing is published."""

    def __init__(self, publishing: Callable[[], Publishing | None]) -> None:
        self._publishing = publishing

    def collect(self) -> Iterator[Metric]:
        """The publisher's two counters."""
        publishing = self._publishing()
        if publishing is None:
            return
        yield CounterMetricFamily(
            "realtime_published_messages",
            "Messages handed to the publisher's socket.",
            value=publishing.messages,
        )
        yield CounterMetricFamily(
            "realtime_publish_overruns",
            "Times that a subscriber's queue was found full.",
            value=publishing.overruns,
        )
