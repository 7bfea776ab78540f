"""Measures preparing a real-size run and reading windows from the cache, each beside an alternative.

    python benchmarks/preparation.py --out docs/results/preparation.json

It writes a run of 81 x 104 x 83 x 226 int16 volumes with 15 724 voxels in the ROI in NSD's layout. Then it
measures, each in a separate process to get its peak memory:

- *read and z-score*: the work of ``python -m train prepare`` on a run (read, mask, detrend, z-score),
- *NiftiMasker*: nilearn with the same settings on the same file,
- *feed*: windows per second from the cache in batches of 40, and from raw files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from machine import machine

GRID, N_VOXELS, N_VOLUMES = (81, 104, 83), 15_724, 226
HIGH_PASS_HZ, TR_S = 0.0078125, 4 / 3
SECONDS_OF_FEEDING = 10


def make_run(root: Path) -> None:
    """Write a run and its ROI of NSD's size; noise around a baseline compresses as badly as a scan."""
    from nsd import Layout

    layout = Layout(root)
    rng = np.random.default_rng(0)
    mask = np.zeros(GRID, dtype=np.int16)
    mask.reshape(-1)[rng.choice(mask.size, N_VOXELS, replace=False)] = 1
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    for path in (layout.roi(1), layout.timeseries(1, 1, 1), layout.design(1, 1, 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask, affine), layout.roi(1))
    baseline = rng.uniform(600, 2000, GRID).astype(np.float32)
    series = np.empty((*GRID, N_VOLUMES), dtype=np.int16)
    for volume in range(N_VOLUMES):
        series[..., volume] = baseline + 20 * rng.standard_normal(GRID, dtype=np.float32)
    nib.save(nib.Nifti1Image(series, affine), layout.timeseries(1, 1, 1))
    design = np.zeros(225, dtype=int)
    design[9:210:3] = rng.integers(1, 73_000, 67)
    layout.design(1, 1, 1).write_text("\n".join(map(str, design)) + "\n")


def ours(root: Path) -> dict[str, float]:
    """Read, mask, detrend and z-score the run."""
    from nsd import Layout, Run, read_roi
    from realtime.preprocessing.drift import cosine_basis
    from realtime.preprocessing.stream import z_scored

    layout = Layout(root)
    begun = time.perf_counter()
    rows = Run(layout, 1, 1, 1).roi_series(read_roi(layout, 1))
    read_s = time.perf_counter() - begun
    z = z_scored(rows, cosine_basis(len(rows), TR_S, HIGH_PASS_HZ))
    np.save(root / "ours.npy", z.astype(np.float16))
    return {"seconds": time.perf_counter() - begun, "read_s": read_s}


def niftimasker(root: Path) -> dict[str, float]:
    """Do the same with nilearn on the 225 volumes that have a design row."""
    from nilearn.image import index_img
    from nilearn.maskers import NiftiMasker

    from nsd import Layout

    layout = Layout(root)
    begun = time.perf_counter()
    masker = NiftiMasker(
        mask_img=str(layout.roi(1)),
        t_r=TR_S,
        standardize="zscore_sample",
        high_pass=HIGH_PASS_HZ,
        clean_args={"filter": "cosine"},
    )
    z = masker.fit_transform(index_img(str(layout.timeseries(1, 1, 1)), slice(0, 225)))
    seconds = time.perf_counter() - begun
    expected = np.load(root / "ours.npy").astype(np.float32)
    return {"seconds": seconds, "largest_difference": float(np.abs(z - expected).max())}


def feed(root: Path) -> dict[str, float]:
    """Read windows from a cache of 64 runs (900 MB) and from raw files."""
    from nsd import Layout, Run, read_roi
    from train.data.dataset import Examples, WindowData

    rows = np.lib.format.open_memmap(
        root / "rows.npy", mode="w+", dtype=np.float16, shape=(64 * 225, N_VOXELS)
    )
    for run in range(64):
        rows[run * 225 : (run + 1) * 225] = np.load(root / "ours.npy")
    rows.flush()
    starts = (np.arange(64)[:, None] * 225 + np.arange(12, 200, 3)).ravel()
    part = Examples(rows=np.asarray(rows), starts=starts, images=starts, subject=0)
    data = WindowData([part], 6)
    rng = np.random.default_rng(1)
    begun, n = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS_OF_FEEDING:
        data.batch(rng.integers(len(data), size=40))
        n += 40
    from_cache = n / (time.perf_counter() - begun)
    layout = Layout(root)
    mask = read_roi(layout, 1).mask
    begun, n = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS_OF_FEEDING:
        scan, start = Run(layout, 1, 1, 1), int(rng.choice(np.arange(12, 200, 3)))
        np.stack([scan.volume(index)[mask] for index in range(start, start + 6)], axis=1)
        n += 1
    return {"windows_per_s": from_cache, "raw_windows_per_s": n / (time.perf_counter() - begun)}


STEPS = {"ours": ours, "niftimasker": niftimasker, "feed": feed}


def main() -> None:
    """Run every step in its own process and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        figures = STEPS[options.step](options.root)
        figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder))
        results = {step: _in_process(step, folder) for step in STEPS}
    results["machine"] = machine("nilearn")
    text = json.dumps(results, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _in_process(step: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, "--root", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
