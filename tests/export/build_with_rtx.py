"""Parse and build ONNX graphs with TensorRT-RTX, which does so without a GPU; says what came out, as JSON.

A process of its own: polygraphy reads once, when it is imported, which TensorRT it is to use.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"

from export.tensorrt_plans import plan  # noqa: E402


def built(path: Path, timing_cache: Path) -> dict[str, Any]:
    return network_of(path) | {
        "bytes": len(plan.build(path, optimization_level=1, timing_cache=timing_cache)),
        "is_timed": timing_cache.exists(),
    }


def network_of(path: Path) -> dict[str, Any]:
    _builder, network, _parser = plan.parse(path)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    return {
        "is_strongly_typed": network.get_flag(plan.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "tensors": {
            tensor.name: [plan.trt.nptype(tensor.dtype).__name__, list(tensor.shape)] for tensor in tensors
        },
        "profiles": [
            {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
            for profile in plan.profiles(network)
        ],
        "types": {
            name: sum(output.dtype == getattr(plan.trt.DataType, name) for output in outputs)
            for name in ("FLOAT", "HALF")
        },
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    paths = [Path(path) for path in sys.argv[2:]]
    out.write_text(json.dumps({path.stem: built(path, out.with_suffix(".cache")) for path in paths}))
