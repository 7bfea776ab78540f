"""``realtime doctor``: measures which engines decode a bundle on this machine, and how fast."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import (
    AUTO_GROUPS,
    ENGINES,
    counted,
    open_engine,
    probe,
    usable_cores,
)
from realtime.decoding.faces import FaceBlur
from realtime.decoding.pace import MARGIN_TR
from realtime.decoding.rank import by_speed, in_words
from realtime.decoding.trial import remember, try_bundle
from realtime.errors import EngineError

_HOUR_S = 3600.0
_VOXEL_BYTES = 4
"""Bytes per voxel of a float32 volume, the largest dtype that a scanner may send."""


class EngineFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one engine, or the reason why it cannot run here."""

    name: str
    available: bool
    reason: str
    """Why the engine cannot run and what to do; empty if it can."""
    versions: dict[str, str]
    description: str = ""
    step_ms: dict[str, float] = {}  # noqa: RUF012 (msgspec copies it)
    """Times of ``brain``, one ``guided`` step, one ``unguided`` step and ``vae``."""
    decode_ms: dict[str, float] = {}  # noqa: RUF012
    """Expected time of a whole decode, by sampler."""
    sampler: str = ""
    """Sampler that the deadline policy would choose for the TR."""
    fits: bool = False
    """Whether a decode with that sampler ends before the next volume."""
    memory_bytes: int | None = None
    """Memory of this process while the engine is open; None if the system does not report it."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the examination; ``--json`` prints it."""

    bundle: str
    bundle_sha256: str
    signature: str
    """Who signed the bundle, in words."""
    signed_by: str | None
    """The trusted signer; None: nobody whom the user trusts."""
    tr_s: float
    machine: str
    cores: int
    engines: tuple[EngineFinding, ...]
    engine: str
    """Engine that ``auto`` takes; empty if none can run."""
    engine_reason: str = ""
    """Why it takes this one; empty if there was no choice."""
    graphs_bytes: int
    """Size of the graphs on disk; an engine needs at least this much memory, usually several times more."""
    memory_free_bytes: int | None
    disk_folder: str
    disk_free_bytes: int
    disk_per_hour_bytes: int
    """Upper limit of what an hour of scanning writes: volumes as float32, frames uncompressed."""


def diagnose(bundle: Bundle, out: Path, scanner_tr_s: float | None = None) -> Diagnosis:
    """Open each engine that can run the bundle here, one after the other, and measure it.

    :param out: folder where runs would be recorded
    :param scanner_tr_s: by default the decoder's TR
    """
    tr_s = scanner_tr_s or bundle.spec.tr_s
    findings = tuple(_examine(bundle, name, tr_s) for name in ENGINES if name != "auto")
    engine, reason = _choice(bundle, findings)
    folder = next(each for each in (out.absolute(), *out.absolute().parents) if each.is_dir())
    spec = bundle.spec
    volume_bytes = math.prod(spec.roi.shape) * _VOXEL_BYTES + math.prod(spec.image_size_px) * 3
    return Diagnosis(
        bundle=str(bundle.folder),
        bundle_sha256=bundle.sha256,
        signature=bundle.signed.description,
        signed_by=bundle.signed.by,
        tr_s=tr_s,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        cores=usable_cores(),
        engines=findings,
        engine=engine,
        engine_reason=reason,
        graphs_bytes=sum(path.stat().st_size for path in bundle.folder.glob("*.onnx*")),
        memory_free_bytes=_memory_free_bytes(),
        disk_folder=str(folder),
        disk_free_bytes=shutil.disk_usage(folder).free,
        disk_per_hour_bytes=round(_HOUR_S / tr_s * volume_bytes),
    )


def _choice(bundle: Bundle, findings: Sequence[EngineFinding]) -> tuple[str, str]:
    """What ``auto`` takes by these measurements, and why. The runtime keeps to them: they are remembered."""
    sampler = bundle.sampler().name
    decode_s = {each.name: each.decode_ms[sampler] / 1e3 for each in findings if each.available}
    for name, measured_s in decode_s.items():
        remember(bundle, name, measured_s)
    for group in AUTO_GROUPS:
        measured = {name: decode_s[name] for name in group if name in decode_s}
        if measured:
            order = by_speed(measured)
            return order[0], in_words(order, measured, sampler)
    return "", ""


def _examine(bundle: Bundle, name: str, tr_s: float) -> EngineFinding:
    candidate = probe(bundle, name)
    versions = candidate.versions
    if not candidate.available:
        return EngineFinding(name=name, available=False, reason=candidate.reason, versions=versions)
    try:
        try_bundle(bundle, name, again=True)
        engine = open_engine(bundle, name)
        decoder = Decoder(bundle, engine, blur=FaceBlur())  # `serve` blurs faces by default
    except EngineError as error:
        return EngineFinding(name=name, available=False, reason=str(error), versions=versions)
    times, samplers = decoder.pace.times, bundle.spec.samplers
    time_s = (1 - MARGIN_TR) * tr_s
    chosen = decoder.pace.choose(samplers, time_s)
    return EngineFinding(
        name=name,
        available=True,
        reason="",
        versions=versions,
        description=engine.description,
        step_ms={
            "brain": 1e3 * times.brain_s,
            "guided": 1e3 * times.guided_s,
            "unguided": 1e3 * times.unguided_s,
            "vae": 1e3 * times.vae_s,
        },
        decode_ms={sampler.name: 1e3 * decoder.pace.decode_s(sampler) for sampler in samplers},
        sampler=chosen.name,
        fits=decoder.pace.decode_s(chosen) <= time_s,
        memory_bytes=_memory_held_bytes(),
    )


def lines(found: Diagnosis) -> list[str]:
    """Format the diagnosis as text."""
    said = [
        f"bundle    {found.bundle} ({found.bundle_sha256[:12]}), {found.signature}",
        f"machine   {found.machine}, {counted(found.cores, 'core')} usable",
        f"memory    {_size(found.memory_free_bytes)} free; the graphs alone are {_size(found.graphs_bytes)}",
        f"disk      {_size(found.disk_free_bytes)} free in {found.disk_folder}; an hour of scanning writes "
        f"at most {_size(found.disk_per_hour_bytes)}",
        "",
    ]
    for finding in found.engines:
        said += _engine_lines(finding, found.tr_s)
    taken = f"the runtime uses {found.engine}" if found.engine else "no engine can run this bundle here"
    if found.engine_reason:
        taken += f": {found.engine_reason}"
    return [*said, "", taken]


def _engine_lines(finding: EngineFinding, tr_s: float) -> list[str]:
    if not finding.available:
        return [f"{finding.name:17} no: {finding.reason}"]
    step = ", ".join(f"{what} {ms:.1f}" for what, ms in finding.step_ms.items())
    decode_ms = finding.decode_ms[finding.sampler]
    verdict = "" if finding.fits else ", too slow for the TR: volumes will be skipped"
    indent = " " * 18
    return [
        f"{finding.name:17} yes: {finding.description}",
        f"{indent}ms: {step}; {_size(finding.memory_bytes)} of memory",
        f"{indent}{finding.sampler} for a TR of {tr_s:.3f} s: {decode_ms:.0f} ms per decode{verdict}",
    ]


def _size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "an unknown amount"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _memory_free_bytes() -> int | None:
    """Return the memory available without swapping; None if the system is not Linux."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _memory_held_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
