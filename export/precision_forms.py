"""The forms of a bundle's graphs: precision of arithmetic and weights."""

from __future__ import annotations

from typing import Literal

Form = Literal["compact", "fp32", "fp16"]

PRECISIONS: dict[Form, str] = {"compact": "float32", "fp32": "float32", "fp16": "float16"}
"""Precision of the networks' arithmetic."""

FINAL_STEPS: dict[Form, str] = {"compact": "stored", "fp32": "onnx", "fp16": "fp16"}
"""Name of the last step of each graph, whose file is in the bundle."""

DESCRIPTIONS: dict[Form, str] = {
    "compact": (
        "The arithmetic is in float32. Weights are stored as float16 where they are big; an engine widens "
        "them once, while it loads them. Made for CPUs; for a GPU, export with `--precision fp16`."
    ),
    "fp32": (
        "Arithmetic and weights are in float32. For a GPU, export with `--precision fp16`: it is several "
        "times as fast there."
    ),
    "fp16": (
        "Networks compute in float16 and their weights are stored so; inputs, outputs, guidance and the "
        "sampler's arithmetic are in float32. Made for NVIDIA GPUs: `python -m export engines --bundle DIR` "
        "builds TensorRT engines from it on the machine that will run them. CPUs run it, but not fast."
    ),
}


def stored_bytes(form: Form) -> int:
    """Bytes of a weight in the bundle; the few weights that are stored wider are ignored."""
    return 4 if form == "fp32" else 2
