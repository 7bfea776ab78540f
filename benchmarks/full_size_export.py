"""Measures the export of the paper's model at full size: minutes, peak memory, sizes and parity.

    python benchmarks/full_size_export.py --out docs/results/full_size_export.json

It writes a checkpoint of the recipe ``paper`` with random weights (brain module for 15 724 voxels, UNet of
Versatile Diffusion with an adapter, its VAE), and exports a bundle in each form in a separate process, whose
peak memory it reads. Time and memory do not depend on the weights; parity does. It needs 30 GB of disk.
``--recipe demo`` uses the demo's size. ``--work DIR --keep`` keeps checkpoint and bundles for
``cpu_engines.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import torch
from machine import machine

from export.bundle.build import export_bundle
from export.precision_forms import Form
from train.checkpoints.checkpoint import CheckpointInfo, TrainedSubject, save_checkpoint, subject_folder
from train.model.base_model import make_unet, make_vae
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable
from train.recipe import read_recipe

N_VOXELS = {"paper": 15_724, "demo": 2_000}
GRID, TR_S = (81, 104, 83), 4 / 3
LIMITS = {"peak_gb": 16, "minutes": 20}
ADAPTER_SD = 0.02


def main() -> None:
    """Export every form and write the figures; keep the figures of other forms in the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", nargs="+", default=["fp32", "fp16"], choices=("compact", "fp32", "fp16"))
    parser.add_argument("--recipe", default="paper", choices=tuple(N_VOXELS), help="default: %(default)s")
    parser.add_argument("--voxels", type=int, help="voxels of the brain module (default: the recipe's)")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint and the bundles in --work")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        folder = options.work if options.keep else Path(temporary)
        checkpoint = folder / "checkpoint"
        if not (checkpoint / "checkpoint.json").exists():
            in_own_process(write_checkpoint, folder, options.recipe, options.voxels)
        for form in options.forms:
            out = folder / form
            found[form] = in_own_process(export, checkpoint, form, out)
            found[form]["machine"] = machine("torch", "diffusers", "onnxscript", "onnx")
            if not options.keep:
                shutil.rmtree(out)
    text = json.dumps({"limits": LIMITS} | found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a new process, so that its peak memory can be measured."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise SystemExit(
            f"{work.__name__}{arguments} ended without a result; see the output above"
        ) from error
    finally:
        process.join()


def _send(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(work(*arguments))


def export(checkpoint: Path, form: Form, out: Path) -> dict[str, Any]:
    """Export a checkpoint and return time, memory, sizes and parity."""
    journal = Journal()
    logging.getLogger("export").setLevel(logging.INFO)
    logging.getLogger("export").addHandler(journal)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    bundle = export_bundle(checkpoint, out, form=form)
    minutes = (time.perf_counter() - journal.begun_s) / 60
    parity = json.loads((out / "parity.json").read_text())
    return {
        "minutes": round(minutes, 2),
        "cpu_minutes": round(time.process_time() / 60, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "stages": journal.stages,
        "files_mb": {name: round((out / name).stat().st_size / 1e6, 1) for name in bundle.spec.files},
        "samplers": parity["samplers"],
        "graphs": parity["graphs"],
        "decodes": parity["decodes"],
    }


class Journal(logging.Handler):
    """Records time, memory and peak memory at each line of the export's log."""

    def __init__(self) -> None:
        super().__init__()
        self.begun_s = time.perf_counter()
        self.stages: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record a line."""
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        now_gb = psutil.Process().memory_info().rss / 1e9
        at = (time.perf_counter() - self.begun_s) / 60
        line = " ".join(record.getMessage().split())
        memory = {"now_gb": round(now_gb, 2), "peak_gb": round(peak_gb, 2)}
        self.stages.append({"at_minutes": round(at, 2)} | memory | {"line": line})
        print(f"{at:6.2f} min {now_gb:5.1f} GB, peak {peak_gb:5.1f}  {line}", flush=True)


def write_checkpoint(folder: Path, name: str, n_voxels: int | None = None) -> None:
    """Write a base model and a checkpoint of a recipe with random weights, in the format of training."""
    torch.manual_seed(1)
    recipe, n_voxels = read_recipe(Path(name)), n_voxels or N_VOXELS[name]
    unet = make_unet(recipe.base)
    unet.save_pretrained(folder / "base" / "image_unet")
    make_vae(recipe.base).save_pretrained(folder / "base" / "vae")
    set_trainable(unet, recipe.finetune)
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=ADAPTER_SD)
    null_NW = torch.randn(recipe.base.n_tokens, recipe.base.token_width)
    model = Dynadiff(BrainModule(brain_config(recipe, n_voxels)), unet, null_NW, recipe)
    subject = TrainedSubject(number=1, n_voxels=n_voxels, held_out_runs=[], n_train_trials=0)
    info = CheckpointInfo(
        subjects=[subject], seed=1, tr_s=TR_S, recipe=recipe, base="../base", last_loss=None
    )
    save_checkpoint(folder / "checkpoint", model, info)
    of_subject = subject_folder(folder / "checkpoint", 1)
    of_subject.mkdir()
    mask = np.zeros(GRID, dtype=np.int16)
    mask.flat[:n_voxels] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([1.8, 1.8, 1.8, 1.0])), of_subject / "roi.nii.gz")
    ones = np.ones(n_voxels, dtype=np.float32)
    np.savez(of_subject / "prior.npz", mean=900 * ones, sd=20 * ones)


if __name__ == "__main__":
    main()
