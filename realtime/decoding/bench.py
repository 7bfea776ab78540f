"""``realtime bench``: times whole decodes for each engine and sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import msgspec
import numpy as np

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import ENGINES, open_engine, probe
from realtime.decoding.engines.contract import Engine
from realtime.decoding.faces import FaceBlur
from realtime.decoding.trial import try_bundle
from realtime.errors import EngineError

SEED = 0


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long decodes with one sampler take on one engine."""

    engine: str
    sampler: str
    n: int
    median_ms: float
    p95_ms: float
    stages_ms: dict[str, float]
    """Medians of ``brain``, ``denoise``, ``vae``."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a benchmark; ``--json`` prints it."""

    bundle_sha256: str
    tr_s: float
    descriptions: dict[str, str]
    """By name of an engine that ran."""
    passed_over: dict[str, str]
    """Why an engine did not run, by its name."""
    timings: tuple[Timing, ...]


def bench(
    bundle: Bundle,
    engines: Sequence[str],
    samplers: Sequence[Sampler],
    n: int,
    tell: Callable[[str], None],
) -> Bench:
    """Decode ``n`` seeded random windows with each sampler on each engine.

    The samplers alternate, so that a slowdown of the machine affects all of them equally.

    :param engines: names; if empty, every engine that can run here
    :param tell: receives one line of text per engine
    :raises EngineError: when a named engine, or every engine, fails to run here
    """
    descriptions, passed_over, timings = {}, {}, []
    for name in engines or [name for name in ENGINES if name != "auto"]:
        if not engines and not (candidate := probe(bundle, name)).available:
            passed_over[name] = candidate.reason
            continue
        try:
            try_bundle(bundle, name)
            engine = open_engine(bundle, name)
            tell(f"{name}: {engine.description}")
            timings += _time(bundle, name, engine, samplers, n)
        except EngineError as error:
            if engines:
                raise
            passed_over[name] = str(error)
            continue
        descriptions[name] = engine.description
    if not timings:
        raise EngineError("expected an engine that runs this bundle here, found none: see `realtime doctor`")
    return Bench(
        bundle_sha256=bundle.sha256,
        tr_s=bundle.spec.tr_s,
        descriptions=descriptions,
        passed_over=passed_over,
        timings=tuple(timings),
    )


def _time(bundle: Bundle, name: str, engine: Engine, samplers: Sequence[Sampler], n: int) -> list[Timing]:
    decoder = Decoder(bundle, engine, SEED, blur=FaceBlur())  # `serve` blurs faces by default
    shape = (n, bundle.spec.roi.n_voxels, bundle.decoder().window.length_volumes)
    windows = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
    taken_ms: dict[str, list[float]] = {sampler.name: [] for sampler in samplers}
    stages_ms: dict[str, list[dict[str, float]]] = {sampler.name: [] for sampler in samplers}
    for window in windows:
        for sampler in samplers:
            began_s = perf_counter()
            decoded = decoder.decode(window, sampler)
            taken_ms[sampler.name].append(1e3 * (perf_counter() - began_s))
            stages_ms[sampler.name].append(decoded.stages_ms)
    return [
        Timing(
            engine=name,
            sampler=sampler.name,
            n=n,
            median_ms=float(np.median(taken_ms[sampler.name])),
            p95_ms=float(np.percentile(taken_ms[sampler.name], 95)),
            stages_ms={
                stage: float(np.median([each[stage] for each in stages_ms[sampler.name]]))
                for stage in stages_ms[sampler.name][0]
            },
        )
        for sampler in samplers
    ]


def lines(found: Bench) -> list[str]:
    """Format the result as a table; ``*`` marks samplers whose 95th percentile exceeds the TR."""
    text_lines = [f"{'engine':17} {'sampler':14} {'median ms':>10} {'p95 ms':>9}   brain / denoise / vae"]
    for timing in found.timings:
        stages = " / ".join(f"{ms:.1f}" for ms in timing.stages_ms.values())
        late = "*" if timing.p95_ms > 1e3 * found.tr_s else " "
        measured = f"{timing.median_ms:10.1f} {timing.p95_ms:9.1f}{late}"
        text_lines.append(f"{timing.engine:17} {timing.sampler:14} {measured}  {stages}")
    if any("*" in line for line in text_lines):
        text_lines.append(f"* longer than a TR of {found.tr_s:.3f} s")
    text_lines += [f"{name:17} not run: {reason}" for name, reason in found.passed_over.items()]
    return text_lines
