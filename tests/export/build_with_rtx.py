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

from polygraphy.backend.tensorrt_rtx import CreateConfigRTX  # noqa: E402
from polygraphy.backend.trt import engine_bytes_from_network  # noqa: E402

from export import plan  # noqa: E402


def built(path: Path) -> dict[str, Any]:
    builder, network, parser = plan.parse(path)
    profiles = plan.profiles(network)
    config = CreateConfigRTX(use_gpu=False, profiles=profiles)
    engine = memoryview(engine_bytes_from_network((builder, network, parser), config=config))
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    return {
        "bytes": len(engine),
        "is_strongly_typed": network.get_flag(plan.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "tensors": {
            tensor.name: [plan.trt.nptype(tensor.dtype).__name__, list(tensor.shape)] for tensor in tensors
        },
        "profiles": [
            {name: [list(shape) for shape in shapes] for name, shapes in p.items()} for p in profiles
        ],
        "types": {
            name: sum(output.dtype == getattr(plan.trt.DataType, name) for output in outputs)
            for name in ("FLOAT", "HALF")
        },
    }


if __name__ == "__main__":
    json.dump({Path(path).stem: built(Path(path)) for path in sys.argv[2:]}, Path(sys.argv[1]).open("w"))
