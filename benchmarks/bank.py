"""Measures whether a general decoder and six specialised ones keep up with a scan.

    python benchmarks/bank.py --out docs/results/bank.json

The bank consists of the shipped demo's bundle and six variants of it for other windows. All brain modules and
diffusion models have different weights, so only the VAE is shared. `realtime serve` decodes the demo's run,
which `python -m sim replay` sends at the scan's pace. The results are, over the volumes of the run, the time
from a volume's last byte to its last frame as a share of the TR, and the reasons for windows without a frame.
The bank keeps up if 95 % of the volumes have their last frame within 0.7 TR.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from machine import machine
from onnx import numpy_helper

from export.bundle.bank import make_bank
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.locate import demo_data
from realtime.bundle.spec import Window
from realtime.record.reader import Recorded, read_recorded

OFFSETS = (-4, -2, 0, 2, 5, 7)
LIMIT_TR = 0.7


def main() -> None:
    """Make the bank, run the scan and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", type=float, default=1.0, help="1 is the scan's pace (default 1)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    general = demo_data("bundle")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        parts = [variant(general, root / f"from{offset}", offset) for offset in OFFSETS]
        bank = make_bank(general, parts, root / "bank").folder
        found = figures(scan(bank, root / "runs", options.engine, options.speed))
    keeps_up = found["last_frame_of_a_volume_tr"]["p95"] < LIMIT_TR
    text = json.dumps(
        found | {"limit_of_p95_tr": LIMIT_TR, "keeps_up": keeps_up, "machine": machine()}, indent=2
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def variant(source: Path, folder: Path, offset_volumes: int) -> Path:
    """Copy a bundle, with another window and other weights."""
    shutil.copytree(source, folder)
    for name in ("brain", "denoise"):
        model = onnx.load(folder / f"{name}.onnx")
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype.kind == "f" and values.ndim > 1:
                other = (values * (1 + 0.001 * (offset_volumes + 5))).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
        onnx.save(model, folder / f"{name}.onnx")
    spec = Bundle.open(source).spec
    window = Window(offset_volumes=offset_volumes, length_volumes=spec.decoders[0].window.length_volumes)
    decoder = msgspec.structs.replace(spec.decoders[0], window=window)
    files = {name: file_sha256(folder / name) for name in spec.files}
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, decoders=(decoder,), files=files))
    return folder


def scan(bank: Path, out: Path, engine: str, speed: float) -> Recorded:
    """Send the demo's run to a runtime; scanner and runtime are separate processes."""
    command = [sys.executable, "-m", "realtime", "serve", "--headless", "--bundle", str(bank)]
    command += ["--source", "tcp://127.0.0.1:0", "--out", str(out), "--engine", engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout
        address = next(
            match[1] for line in served.stdout if (match := re.search(r"volumes from (\S+), runs", line))
        )
        nsd = ["--nsd", str(demo_data("nsd")), "--run", "10"]
        replay = [sys.executable, "-m", "sim", "replay", *nsd, "--connect", address, "--speed", str(speed)]
        subprocess.run(replay, check=True)
        served.send_signal(signal.SIGINT)
    (folder,) = out.iterdir()
    return read_recorded(folder)


def figures(recorded: Recorded) -> dict[str, Any]:
    """Return times as shares of the TR, and counts."""
    tr_ms = 1e3 * recorded.info.start.tr_s
    first = recorded.info.first_decoder
    general_rows = recorded.rows_by(first)
    last: dict[int, float] = {}
    for row in recorded.rows:
        if row.total_ms is not None:
            last[row.volume] = max(row.total_ms, last.get(row.volume, 0.0))
    general = [row.total_ms for row in general_rows if row.total_ms is not None]
    return {
        "engine": recorded.info.engine.description,
        "volumes": len(general_rows),
        "decodes": dict(Counter(row.state for row in general_rows)),
        "specialised_decodes": dict(Counter(row.state for row in recorded.rows if row.decoder != first)),
        "without_a_frame": dict(Counter(row.reason for row in recorded.rows if row.frame is None)),
        "samplers": dict(Counter(row.sampler for row in recorded.rows if row.sampler)),
        "general_frame_tr": quantiles(np.array(general) / tr_ms),
        "last_frame_of_a_volume_tr": quantiles(np.array([*last.values()]) / tr_ms),
    }


def quantiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Return median, 95th percentile and maximum."""
    p50, p95, largest = np.quantile(values, [0.5, 0.95, 1.0])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "max": round(float(largest), 3)}


if __name__ == "__main__":
    main()
