"""Describes the machine that a benchmark ran on, for its results."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from realtime.decoding.engines.choose import usable_cores


def machine(*packages: str) -> dict[str, Any]:
    """Return date, processor, usable cores, load of the last minute and versions of packages."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": usable_cores(),
        "load_at_end": round(os.getloadavg()[0], 1),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def processor() -> str:
    """Return the processor's name and its vector instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if kind in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(kinds)})"
