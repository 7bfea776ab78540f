"""Times how soon a volume is taken from a watched folder, and what watching costs.

    python benchmarks/watched_folder.py --out docs/results/watched_folder.json

Volumes of real size (81 x 104 x 83, int16) are written into a folder, one every half second, and the time is
taken from the end of writing until the source has the volume. The folder is empty at first, or holds 100 000
files of earlier sessions; it has file system events, or none, as a network share; the volumes have signal
everywhere, or a mask's zeros. Beside it: the time to start, and the share of a core that watching takes while
nothing comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from machine import machine

from realtime import wire
from realtime.sources.files.folder import FolderScanner
from realtime.sources.run_boundaries import Plan, Scan

SHAPE, N_VOLUMES, N_OLD, EVERY_S, IDLE_S = (81, 104, 83), 20, 100_000, 0.5, 5.0


def volume(index: int, *, is_masked: bool) -> bytes:
    """Return the file of a volume."""
    signal = np.random.default_rng(index).integers(1, 4_000, SHAPE).astype(np.int16)
    if is_masked:
        signal[:, :, :20] = signal[:20] = 0
    return nibabel.Nifti1Image(signal, np.diag([1.8, 1.8, 1.8, 1.0])).to_bytes()


class OnAShare(FolderScanner):
    """A network share has no file system events."""

    async def _watch(self) -> None:
        pass


async def measured(
    kind: type[FolderScanner], folder: Path, *, name: str, is_masked: bool
) -> dict[str, float]:
    """Milliseconds and other figures of one run."""
    begun = time.perf_counter()
    plan = Plan(subject=1, run_id="run", n_volumes=N_VOLUMES, tr_s=EVERY_S)
    scanner = kind(folder, plan, series="", first_number=None, echo=None, unfinished=None)
    start_s = time.perf_counter() - begun
    came: asyncio.Queue[Scan] = asyncio.Queue()

    async def take() -> None:
        async for news in scanner.scans():
            if isinstance(news, Scan):
                await news.answer(wire.Ack(run_id="r", index=news.index))
                came.put_nowait(news)

    taking = asyncio.create_task(take())
    await asyncio.sleep(2.5)  # right after the start everything is looked at once more
    begun, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(IDLE_S)
    idle = (time.process_time() - cpu_s) / (time.perf_counter() - begun)
    waits_ms = []
    for index in range(N_VOLUMES):
        data = volume(index, is_masked=is_masked)
        (folder / f"{name}_{index + 1:04d}.nii").write_bytes(data)
        written = time.perf_counter()
        await came.get()
        waits_ms.append(1_000 * (time.perf_counter() - written))
        await asyncio.sleep(EVERY_S)
    taking.cancel()
    await asyncio.wait([taking])
    return {
        "start_s": round(start_s, 3),
        "idle_share_of_a_core": round(idle, 4),
        "first_volume_ms": round(waits_ms[0]),
        "median_ms": round(statistics.median(waits_ms[1:])),
        "longest_ms": round(max(waits_ms[1:])),
    }


def main() -> None:
    """Run all, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, Any] = {}
    for n_old in (0, N_OLD):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent)
            for number in range(n_old):
                (folder / f"IM_{number:06d}.dcm").write_bytes(b"old")
            for is_masked in (False, True):
                for has_events in (True, False):
                    kind = FolderScanner if has_events else OnAShare
                    name = f"{n_old} old files, {'events' if has_events else 'no events'}, " + (
                        "masked" if is_masked else "signal everywhere"
                    )
                    run = f"run{len(runs)}"
                    runs[name] = asyncio.run(measured(kind, folder, name=run, is_masked=is_masked))
                    print(name, runs[name])
    result = {"machine": machine("watchfiles", "numpy"), "runs": runs}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
