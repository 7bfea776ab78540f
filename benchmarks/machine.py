"""What a benchmark was measured on, for its results: figures mean little without it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from realtime.decoding.engines.choose import usable_cores


def machine(*packages: str) -> dict[str, Any]:
    """Date, processor, cores that may be used, load of the last minute, versions of packages."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": usable_cores(),
        "load_at_end": round(os.getloadavg()[0], 1),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def processor() -> str:
    """The processor's name and what of its instructions matters here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if kind in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(kinds)})"
