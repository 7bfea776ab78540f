"""Converts modules to ONNX files: tracing, readable names, and weights stored as fp16.

The opsets are accepted by ONNX Runtime and by TensorRT 10.12 and 11. Attention stays decomposed (MatMul,
Softmax, MatMul), which TensorRT fuses by itself. The operator ``Attention`` (opset 23) is unknown to TensorRT
10.12, does not build in version 11 with heads of 512 (the VAE) or in fp32, and is not faster on CPUs. From
opset 21, ``GroupNormalization`` computes its statistics in fp32 for any input. That is right for fp16, where
sums of squares would overflow, but 7 % slower on ONNX Runtime's CPU than torch's decomposition at opset 20 (a
step of the demo's UNet at 20, 21 and 23: 10.9, 11.7 and 11.6 ms; the VAE: 6.0, 6.9 and 6.8 ms; one core of an
EPYC, ONNX Runtime 1.31; OpenVINO 2026.4 takes 24.9, 26.1 and 25.8 ms).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import ir

from export.errors import ExportError
from export.graphs.graphs import Graph, Inputs
from export.graphs.node_names import FLOAT32_NODES, float32_nodes, name_by_module, replace_notes
from export.lineage.provenance import folder_sha256
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import Tensor

OPSETS = {"float32": 20, "float16": 21}
"""ONNX opset by precision of the network."""
MIN_STORED_ELEMENTS = 2**14
"""Smaller weights stay in fp32: they take little space, and include biases, norms and schedules."""
MAX_INLINE_BYTES = 2**26
"""Larger models have their weights in a second file: viewers stay fast, and protobuf ends at 2 GiB."""
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Inputs], Arrays]


def trace(graph: Graph, facts: Mapping[str, str] | None = None) -> ir.Model:
    """Trace a graph into an ONNX model, in the network's current precision.

    :param facts: entries for the file's metadata
    :raises ExportError: torch returns no graph
    """
    example = graph.cases[0]
    free = {name: {0: graph.free[name]} if name in graph.free else None for name in example}
    precision = graph.module.precision
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns about its own internals; the result is measured
        program = torch.onnx.export(
            graph.module,
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSETS[precision],
            input_names=list(example),
            output_names=list(graph.outputs),
            dynamic_shapes=free,
            verbose=False,
            optimize=False,
        )
        if program is None:
            raise ExportError(f"{graph.name}: expected an ONNX graph from torch.onnx.export, got none")
        model = program.model
        weights = list(model.graph.initializers.values())
        program.optimize()
    _forget(value for value in weights if value.graph is not model.graph)
    name_by_module(model, graph.name, graph.module.state_dict().keys())
    notes = {"precision": precision} | dict(facts or {})
    if precision == "float16":
        notes[FLOAT32_NODES] = " ".join(float32_nodes(model))
    replace_notes(model, graph.doc, notes)
    return model


def store_compactly(model: ir.Model) -> int:
    """Store big fp32 weights as fp16, each followed by a cast to fp32; returns their number.

    The arithmetic stays in fp32. ONNX Runtime applies the casts once, when it loads the model.
    """
    first = next(iter(model.graph))
    weights = [value for value in model.graph.initializers.values() if _is_big_weight(value)]
    for value in weights:
        half = _in_half(value)
        stored = ir.Value(
            name=half.name, type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape, const_value=half
        )
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{value.name}.Cast")
        restored = cast.outputs[0]
        restored.name, restored.type, restored.shape = f"{value.name}.float32", value.type, value.shape
        value.replace_all_uses_with(restored)
        model.graph.insert_before(first, cast)
        del model.graph.initializers[str(value.name)]
        model.graph.register_initializer(stored)
    return len(weights)


def _in_half(value: ir.Value) -> ir.LazyTensor:
    """A weight that is rounded to fp16 when it is written, so that no second copy of all is in memory."""
    name, exact = f"{value.name}.float16", _array(value)
    return ir.LazyTensor(
        lambda: ir.tensor(exact.astype(np.float16), name=name),
        dtype=ir.DataType.FLOAT16,
        shape=ir.Shape(exact.shape),
        name=name,
    )


def _is_big_weight(value: ir.Value) -> bool:
    """Whether a value is a large fp32 matrix or kernel whose numbers are in fp16's range."""
    if value.dtype != ir.DataType.FLOAT or value.shape is None:
        return False
    if len(value.shape) < 2 or math.prod(value.shape.numpy()) < MIN_STORED_ELEMENTS:
        return False
    return bool(np.abs(_array(value)).max() <= _LARGEST_FLOAT16)


def _array(value: ir.Value) -> NDArray[Any]:
    if value.const_value is None:
        raise ExportError(f"expected numbers in initializer {value.name!r}, found none")
    return value.const_value.numpy()


def save(model: ir.Model, path: Path) -> None:
    """Write a model; the weights of a large one are written to ``<path>.data``."""
    n_bytes = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    ir.save(model, path, external_data=f"{path.name}.data" if n_bytes > MAX_INLINE_BYTES else None)


def drop_weights(model: ir.Model) -> None:
    """Free the weights of a model that has been written."""
    _forget(model.graph.initializers.values())


def _forget(values: Iterable[ir.Value]) -> None:
    """Release torch's memory, because the optimizer's rules keep a reference to the last graph."""
    for value in values:
        value.const_value = None


def files_sha256(path: Path) -> str:
    """SHA-256 of a model's file or, if its weights are in a second file, of the list of both."""
    if path.with_name(f"{path.name}.data").exists():
        return folder_sha256(path.parent, [path.name, f"{path.name}.data"])
    return file_sha256(path)


def signature_of(model: ir.Model) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A model's inputs and outputs, as listed in ``bundle.json``."""
    inputs, outputs = (
        tuple(_tensor(value) for value in values) for values in (model.graph.inputs, model.graph.outputs)
    )
    return inputs, outputs


def _tensor(value: ir.Value) -> Tensor:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ExportError(f"expected a named tensor with known type and shape, got {value}")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return Tensor(name=value.name, dtype=value.dtype.numpy().name, shape=shape)


def outputs_of(graph: Graph, run: Runner) -> list[Arrays]:
    """The outputs of a runner for each of a graph's cases."""
    return [run(case) for case in graph.cases]


def torch_runner(graph: Graph) -> Runner:
    """A runner of a graph's module in torch."""

    @torch.no_grad()
    def run(inputs: Inputs) -> Arrays:
        outputs = graph.module(**inputs)
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: tensor.numpy() for name, tensor in zip(graph.outputs, tensors, strict=True)}

    return run


def onnx_runner(path: Path) -> Runner:
    """A runner of an ONNX file on ONNX Runtime's CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> Arrays:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, outputs, strict=True))

    return run
