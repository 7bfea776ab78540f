"""Modules to ONNX files: traced, named so that a person can read them, weights stored as fp16 where asked.

Opsets are chosen so that ONNX Runtime and TensorRT 10.12 and 11 take every graph. Attention stays decomposed
(MatMul, Softmax, MatMul), which TensorRT fuses by itself: the operator ``Attention`` (opset 23) is unknown
to TensorRT 10.12, does not build in version 11 with heads of 512 (the VAE) or in fp32, and gains nothing on
CPUs. From opset 21 there is ``GroupNormalization``, which computes its statistics in fp32 whatever its input:
right for fp16, where sums of squares would overflow, but 7 % slower on ONNX Runtime's CPU than what torch
makes of it at opset 20 (a step of the demo's UNet at 20, 21 and 23: 10.9, 11.7 and 11.6 ms; the VAE: 6.0, 6.9
and 6.8 ms; one core of an EPYC, ONNX Runtime 1.31. OpenVINO 2026.4 does not mind: 24.9, 26.1 and 25.8 ms).
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
"""By what the network computes in."""
MIN_STORED_ELEMENTS = 2**14
"""Smaller weights stay in fp32: they are few, and biases, norms and schedules are among them."""
MAX_INLINE_BYTES = 2**26
"""Above this the weights lie in a file beside the graph: viewers stay quick, and a protobuf message ends at
2 GiB."""


_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Inputs], Arrays]


def trace(graph: Graph, facts: Mapping[str, str] | None = None) -> ir.Model:
    """The ONNX model of a graph, in the precision that its network is in.

    :param facts: to be found in the file's metadata
    :raises ExportError: when torch gives none
    """
    example = graph.cases[0]
    free = {name: {0: graph.free[name]} if name in graph.free else None for name in example}
    precision = graph.module.precision
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own parts; what comes out is measured
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
            raise ExportError(f"{graph.name}: expected an ONNX graph of torch.onnx.export, got none")
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
    """Store big fp32 weights as fp16, each followed by a cast to fp32; returns how many.

    The arithmetic stays in fp32, and ONNX Runtime applies the casts once, while it loads.
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
    """A weight rounded to fp16, when it is written: no second copy of all of them is held."""
    name, exact = f"{value.name}.float16", _array(value)
    return ir.LazyTensor(
        lambda: ir.tensor(exact.astype(np.float16), name=name),
        dtype=ir.DataType.FLOAT16,
        shape=ir.Shape(exact.shape),
        name=name,
    )


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
    n_bytes = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    ir.save(model, path, external_data=f"{path.name}.data" if n_bytes > MAX_INLINE_BYTES else None)


def drop_weights(model: ir.Model) -> None:
    """Give up the weights of a model that was written."""
    _forget(model.graph.initializers.values())


def _forget(values: Iterable[ir.Value]) -> None:
    """Let go of torch's memory: the optimizer's rules remember the last graph that they were tried on."""
    for value in values:
        value.const_value = None


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


def outputs_of(graph: Graph, run: Runner) -> list[Arrays]:
    """What a way to run a graph gives for each of its cases."""
    return [run(case) for case in graph.cases]


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
