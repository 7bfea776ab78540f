"""Compares the confounds tables of recorded runs with nipype's FramewiseDisplacement, ComputeDVARS and TSNR.

    pip install nipype nitime
    python benchmarks/confounds.py --out docs/results/confounds.json

The demo's run goes through `realtime serve` twice: as it is, on the decoder's grid, and as the scanner saw
it, registered. nipype gets the six parameters of the table, and a series of the region's voxels: of the first
run as they lie in the journal, of the second as registration finds them there. For tSNR, nilearn's
``signal.clean`` first takes the drifts away with its own cosines, and the mean is put back, as nipype itself
does with its polynomials. nipype computes DVARS in single precision.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from kills import Trial
from machine import machine
from nilearn.signal import clean, create_cosine_drift
from numpy.typing import NDArray

from export.bundle.reference import add_reference
from nsd import Layout
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.record.reader import Recorded, read_recorded
from realtime.record.run_json import Registration
from realtime.runs.head_position import Head

LIMIT = 1e-6
"""In mm for framewise displacement, as a share of the value for the others."""
PARAMETERS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def recorded_run(bundle: Bundle, work: Path, speed: float, *, is_raw: bool) -> Recorded:
    """Record the demo's run."""
    trial = Trial(bundle.folder, demo_data("nsd"), 10, work, speed, scan=["--raw"] if is_raw else [])
    try:
        trial.start_scanner()
        trial.finish()
    finally:
        trial.close()
    return read_recorded(trial.folder)


def region_rows(bundle: Bundle, recorded: Recorded, *, is_raw: bool) -> NDArray[np.float64]:
    """The region's voxels [T, V] of every volume of a complete run."""
    volumes = [volume for _, volume in recorded.volumes()]
    if not is_raw:
        return np.array([volume[bundle.roi_mask] for volume in volumes], dtype=np.float64)
    affine = np.array(recorded.info.start.affine)
    head = Head(bundle, Registration(), recorded.info.start.shape)
    return np.array([head.place(index, volume, affine).row for index, volume in enumerate(volumes)])


def by_nipype(rows: NDArray[np.float64], work: Path) -> tuple[Path, Path]:
    """Write rows [T, V] as an image [V, 1, 1, T] and a mask that holds all of it."""
    work.mkdir(exist_ok=True)
    image, mask = work / "rows.nii", work / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(rows.T[:, None, None].astype(np.float64), np.eye(4)), image)
    nibabel.save(nibabel.Nifti1Image(np.ones((rows.shape[1], 1, 1), np.uint8), np.eye(4)), mask)
    return image, mask


def displacement(recorded: Recorded, work: Path) -> NDArray[np.float64]:
    """Framewise displacement by nipype, from the second volume on."""
    from nipype.algorithms.confounds import FramewiseDisplacement

    parameters, out = work / "motion.txt", work / "fd.txt"
    np.savetxt(parameters, np.column_stack([recorded.quality[name] for name in PARAMETERS]), fmt="%.18g")
    FramewiseDisplacement(in_file=str(parameters), parameter_source="SPM", out_file=str(out)).run()
    return np.loadtxt(out, skiprows=1)


def dvars(rows: NDArray[np.float64], work: Path) -> NDArray[np.float64]:
    """DVARS by nipype, not standardised, from the second volume on."""
    from nipype.algorithms.confounds import compute_dvars

    image, mask = by_nipype(rows, work)
    return np.asarray(compute_dvars(str(image), str(mask), intensity_normalization=0)[1], dtype=np.float64)


def tsnr(rows: NDArray[np.float64], basis: NDArray[np.float64], work: Path) -> float:
    """Median tSNR by nipype of rows [n, V], after nilearn has taken the drifts in ``basis`` [n, K] away."""
    from nipype.algorithms.confounds import TSNR

    mean = rows.mean(axis=0)
    drifts = basis[:, np.ptp(basis, axis=0) > 0]
    flat = clean(rows - mean, confounds=drifts, detrend=False, standardize=None) + mean
    image, _ = by_nipype(flat, work)
    names = {name: str(work / f"{name}.nii") for name in ("tsnr_file", "mean_file", "stddev_file")}
    TSNR(in_file=[str(image)], **names).run()
    image_of_tsnr: Any = nibabel.load(names["tsnr_file"])
    return float(np.median(image_of_tsnr.get_fdata()))


def compared(bundle: Bundle, recorded: Recorded, work: Path, *, is_raw: bool) -> dict[str, Any]:
    """The largest difference from nipype of each column of one run."""
    rows = region_rows(bundle, recorded, is_raw=is_raw)
    start, quality = recorded.info.start, recorded.quality
    times_s = np.arange(start.n_volumes) * start.tr_s
    basis = create_cosine_drift(bundle.spec.preprocessing.high_pass_hz, times_s)
    used = np.array([row.state not in ("censored", "missing") for row in recorded.rows])
    theirs = dvars(rows, work)
    found = {
        "volumes": len(rows),
        "censored": int((~used).sum()),
        "dvars_relative": float(np.max(np.abs(quality["dvars"][1:] / theirs - 1))),
        "tsnr_relative": 0.0,
    }
    for last in np.flatnonzero(used)[[len(rows) // 3, len(rows) // 2, -1]]:
        so_far = np.flatnonzero(used[: last + 1])
        apart = abs(quality["tsnr"][last] / tsnr(rows[so_far], basis[so_far], work) - 1)
        found["tsnr_relative"] = max(found["tsnr_relative"], float(apart))
    if is_raw:
        apart_mm = np.abs(quality["framewise_displacement"][1:] - displacement(recorded, work))
        found |= {"displacement_mm": float(apart_mm.max())}
    return found


def main() -> None:
    """Record both runs, write the differences, and fail if one is too large."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", type=float, default=5.0, help="1 is the scan's pace (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())  # stays if something fails
    bundle = add_reference(demo_data("bundle"), Layout(demo_data("nsd")).mean(1), work / "bundle")
    figures: dict[str, Any] = {}
    for name, is_raw in (("on the decoder's grid", False), ("registered", True)):
        recorded = recorded_run(bundle, work / name, options.speed, is_raw=is_raw)
        figures[name] = compared(bundle, recorded, work / "nipype", is_raw=is_raw)
        print(name, figures[name], flush=True)
    if options.out:
        result = figures | {"machine": machine("nipype", "nilearn", "numpy")}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    columns = ("dvars_relative", "tsnr_relative", "displacement_mm")
    if too_far := [
        f"{name}: {each}" for name in figures for each in columns if figures[name].get(each, 0) > LIMIT
    ]:
        raise SystemExit(f"more than {LIMIT} from nipype: {', '.join(too_far)}; see {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
