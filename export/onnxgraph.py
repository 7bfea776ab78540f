"""Modules to ONNX files: traced in fp32, stripped of notes on the source, weights stored as fp16."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import ir
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

from export.errors import ExportError
from export.graphs import Graph, Inputs
from export.provenance import folder_sha256
from realtime.bundle import Tensor
from realtime.bundlefiles import file_sha256

OPSET = 20
MIN_STORED_ELEMENTS = 2**14
"""Smaller weights stay in fp32: they are few, and biases, norms and schedules are among them."""
MAX_INLINE_BYTES = 2**30
"""Above this the weights lie in a file beside the graph: a protobuf message ends at 2 GiB."""

_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Inputs], Arrays]


def trace(graph: Graph) -> ir.Model:
    """The ONNX model of a graph, in fp32.

    :raises ExportError: when torch gives none
    """
    example = graph.cases[0]
    free = {name: {0: graph.free[name]} if name in graph.free else None for name in example}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own parts; what comes out is measured
        program = torch.onnx.export(
            graph.module,
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example),
            output_names=list(graph.outputs),
            dynamic_shapes=free,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{graph.name}: expected an ONNX graph of torch.onnx.export, got none")
    strip(program.model)
    return program.model


def strip(model: ir.Model) -> None:
    """Remove what torch notes down about the source: it names folders of the machine that exported."""
    ClearMetadataAndDocStringPass()(model)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def store_compactly(model: ir.Model) -> int:
    """Store big fp32 weights as fp16, each followed by a cast to fp32; returns how many.

    The arithmetic stays in fp32, and ONNX Runtime applies the casts once, while it loads.
    """
    first = next(iter(model.graph))
    weights = [value for value in model.graph.initializers.values() if _is_big_weight(value)]
    for value in weights:
        half = ir.tensor(_array(value).astype(np.float16), name=f"{value.name}_float16")
        stored = ir.Value(
            name=half.name, type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape, const_value=half
        )
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{value.name}_cast")
        restored = cast.outputs[0]
        restored.name, restored.type, restored.shape = f"{value.name}_float32", value.type, value.shape
        value.replace_all_uses_with(restored)
        model.graph.insert_before(first, cast)
        del model.graph.initializers[str(value.name)]
        model.graph.register_initializer(stored)
    return len(weights)


def _is_big_weight(value: ir.Value) -> bool:
    """A matrix or kernel of fp32 whose numbers fp16 can hold."""
    if value.dtype != ir.DataType.FLOAT or value.shape is None:
        return False
    if len(value.shape) < 2 or math.prod(value.shape.numpy()) < MIN_STORED_ELEMENTS:
        return False
    return bool(np.abs(_array(value)).max() <= _LARGEST_FLOAT16)


def _array(value: ir.Value) -> NDArray[Any]:
    if value.const_value is None:
        raise ExportError(f"expected initializer {value.name!r} to hold its numbers, found none")
    return value.const_value.numpy()


def save(model: ir.Model, path: Path) -> None:
    """Write a model; the weights of a very big one go into ``<path>.data``."""
    n_bytes = sum(_array(value).nbytes for value in model.graph.initializers.values())
    ir.save(model, path, external_data=f"{path.name}.data" if n_bytes > MAX_INLINE_BYTES else None)


def files_sha256(path: Path) -> str:
    """SHA-256 of a model's file or, where its weights lie beside it, of the list of both."""
    if path.with_name(f"{path.name}.data").exists():
        return folder_sha256(path.parent, [path.name, f"{path.name}.data"])
    return file_sha256(path)


def signature_of(model: ir.Model) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs as a bundle lists them."""
    inputs, outputs = (
        tuple(_tensor(value) for value in values) for values in (model.graph.inputs, model.graph.outputs)
    )
    return inputs, outputs


def _tensor(value: ir.Value) -> Tensor:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ExportError(f"expected a named tensor of known type and shape, got {value}")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return Tensor(name=value.name, dtype=value.dtype.numpy().name, shape=shape)


def torch_runner(graph: Graph) -> Runner:
    """Run a graph's module."""

    @torch.no_grad()
    def run(inputs: Inputs) -> Arrays:
        outputs = graph.module(**inputs)
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: tensor.numpy() for name, tensor in zip(graph.outputs, tensors, strict=True)}

    return run


def onnx_runner(path: Path) -> Runner:
    """Run an ONNX file with ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> Arrays:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, outputs, strict=True))

    return run
