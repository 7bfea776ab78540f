"""A ``denoise`` graph on OpenVINO, split so that parts which depend on one input alone are computed once.

    conditions ─► keys and values of cross-attention ───────────────┐ once for each window
    timestep ───► timestep embeddings of every block ───────────────┤ once for each timestep
    latents, previous, coefficients ────────────────────────────────┴─► next, prediction

Two conditions run concurrently, each on half of the threads. A batch of two on all threads is slower, because
threads synchronise after every layer, which costs much time when layers are small. The graph mixes the noises
of the conditions by weights that sum to 1, and its outputs are affine in the mixture; so mixing the outputs
for each condition gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as operators
from openvino.passes import ConstantFolding, Manager

Compile = Callable[[openvino.Model, int], openvino.CompiledModel]
"""Compiles a model for a number of concurrent runs."""
Arrays = list[NDArray[Any]]

_CACHE_SIZES = {"conditions": 8, "timestep": 256}
"""Inputs whose parts are computed separately, and for how many values their outputs are cached: conditions
(the current window's, and null conditions, which recur with every window) and the timesteps of all
samplers."""
_BY_CONDITION = ("conditions", "weights")


class DenoiseModel:
    """A ``denoise`` graph compiled for inputs of given shapes.

    :param model: the graph; it is modified
    :param shapes: shapes of all inputs, by name
    :param is_paired: whether two conditions run concurrently
    :raises RuntimeError: when the inputs are not the model's, or their shapes are inconsistent
    """

    def __init__(
        self,
        model: openvino.Model,
        shapes: Mapping[str, tuple[int, ...]],
        compiled: Compile,
        *,
        is_paired: bool,
    ) -> None:
        if shapes.keys() != {name_of(port) for port in model.inputs}:
            raise RuntimeError(f"expected inputs {sorted(map(name_of, model.inputs))}, got {sorted(shapes)}")
        n_conditions = shapes["conditions"][0]
        if shapes["weights"] != (n_conditions,) or not n_conditions:
            raise RuntimeError(f"expected a weight for each of {n_conditions} conditions")
        n_each = 1 if is_paired else n_conditions
        rows = [slice(at, at + n_each) for at in range(0, n_conditions, n_each)]
        model.reshape(
            {name: (n_each, *shape[1:]) if name in _BY_CONDITION else shape for name, shape in shapes.items()}
        )
        steps, parts = split_by_input(model, tuple(_CACHE_SIZES))
        self._parts = {name: _Part(compiled(part, 1), _CACHE_SIZES[name]) for name, part in parts.items()}
        whole = compiled(steps, len(rows))
        self._branches = [
            _Branch(whole.create_infer_request(), each, is_mixed_later=len(rows) > 1) for each in rows
        ]

    def run(self, inputs: Mapping[str, openvino.Tensor]) -> dict[str, openvino.Tensor]:
        """Run the graph and return its named outputs in new tensors."""
        for branch in self._branches:
            branch.give(inputs, self._parts)
        self._compute()
        if len(self._branches) == 1:
            return {name: openvino.Tensor(array) for name, array in self._branches[0].outputs.items()}
        weights = inputs["weights"].data
        return {
            name: openvino.Tensor(
                sum(w * branch.outputs[name] for w, branch in zip(weights, self._branches, strict=True))
            )
            for name in self._branches[0].outputs
        }

    def _compute(self) -> None:
        """Run all branches and wait for all of them, even if one fails."""
        failures = []
        for branch in self._branches:
            branch.request.start_async()
        for branch in self._branches:
            try:
                branch.request.wait()
            except RuntimeError as error:
                failures.append(error)
        if failures:
            raise failures[0]


class _Branch:
    """One concurrent run of the model for some of the conditions.

    :param rows: rows of ``conditions`` that this branch computes
    :param is_mixed_later: whether the caller mixes the outputs of several branches; the weight here is then 1
    """

    def __init__(self, request: openvino.InferRequest, rows: slice, *, is_mixed_later: bool) -> None:
        self.request = request
        self.outputs = {name_of(port): request.get_tensor(port).data for port in request.model_outputs}
        self._rows = rows
        self._inputs = {name_of(port): request.get_tensor(port).data for port in request.model_inputs}
        self._given: dict[str, Arrays] = {}
        self._fixed = {"weights"} if is_mixed_later else set()
        for name in self._fixed:
            self._inputs[name][...] = 1

    def give(self, inputs: Mapping[str, openvino.Tensor], parts: Mapping[str, _Part]) -> None:
        """Copy the inputs to the request's tensors. :raises TypeError: when a dtype is wrong"""
        for name, tensor in inputs.items():
            given = tensor.data[self._rows] if name in _BY_CONDITION else tensor.data
            if name in parts:
                self._give_part(name, parts[name].outputs(given))
            elif name not in self._fixed:
                np.copyto(self._inputs[name], given, casting="no")

    def _give_part(self, name: str, outputs: Arrays) -> None:
        if self._given.get(name) is outputs:
            return
        for place, array in enumerate(outputs):
            self._inputs[_part_output_name(name, place)][...] = array
        self._given[name] = outputs


class _Part:
    """The part of a graph that depends on one input alone, with a cache of its recent outputs."""

    def __init__(self, compiled: openvino.CompiledModel, n_kept: int) -> None:
        self._request = compiled.create_infer_request()
        self._n_kept = n_kept
        self._known: dict[bytes, Arrays] = {}

    def outputs(self, given: NDArray[Any]) -> Arrays:
        """Return the part's outputs for an input."""
        key = given.tobytes()
        outputs = self._known.pop(key, None) or self._compute(given)
        if len(self._known) == self._n_kept:
            del self._known[next(iter(self._known))]
        self._known[key] = outputs  # inserted last, so evicted last: least recently used goes first
        return outputs

    def _compute(self, given: NDArray[Any]) -> Arrays:
        self._request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(given)))
        self._request.infer()
        return [np.array(output.data) for output in self._request.output_tensors]


def split_by_input(
    model: openvino.Model, names: Sequence[str]
) -> tuple[openvino.Model, dict[str, openvino.Model]]:
    """Split a model into parts that depend on one of the named inputs alone, and the rest.

    :returns: the rest and the parts by input. The n-th output of the part for input ``x`` is the input
        ``x.n`` of the rest. An input has no part if nothing, or an output of the model, depends on it alone.
    """
    folding = Manager()
    folding.register_pass(ConstantFolding())  # afterwards nodes that only read a shape depend on no input
    folding.run_passes(model)
    inputs = {name_of(port): port.get_node() for port in model.inputs}
    depends_on = _dependencies(model, inputs)
    edges = {name: edge for name in names if (edge := _boundary(model, depends_on, name))}
    parts, added = {}, []
    for name, edge in edges.items():
        for place, output in enumerate(edge):
            given = operators.parameter(output.get_partial_shape(), output.get_element_type())
            given.output(0).set_names({_part_output_name(name, place)})
            for use in output.get_target_inputs():
                if depends_on[_id(use.get_node())] != {name}:
                    use.replace_source_output(given.output(0))
            added.append(given)
        parts[name] = openvino.Model([operators.result(output) for output in edge], [inputs[name]], name)
    kept = [node for name, node in inputs.items() if name not in parts]
    return openvino.Model(model.get_results(), kept + added, model.get_friendly_name()), parts


def _dependencies(model: openvino.Model, inputs: Mapping[str, openvino.Node]) -> dict[int, set[str]]:
    """Return the names of the inputs that each node depends on, by the node's id."""
    depends_on: dict[int, set[str]] = {_id(node): {name} for name, node in inputs.items()}
    for node in model.get_ordered_ops():
        sources = [depends_on[_id(each.get_source_output().get_node())] for each in node.inputs()]
        depends_on.setdefault(_id(node), set().union(*sources))
    return depends_on


def _boundary(model: openvino.Model, depends_on: Mapping[int, set[str]], name: str) -> list[openvino.Output]:
    """Return the outputs of nodes that depend on one input alone and feed nodes that depend on others too.

    The input itself may be one of several such outputs; if it is the only one, there is nothing to split.
    """
    if any(depends_on[_id(result)] == {name} for result in model.get_results()):
        return []
    edge = [
        output
        for node in model.get_ordered_ops()
        if depends_on[_id(node)] == {name}
        for output in node.outputs()
        if any(depends_on[_id(use.get_node())] != {name} for use in output.get_target_inputs())
    ]
    return [] if all(output.get_node().get_type_name() == "Parameter" for output in edge) else edge


def name_of(port: Any) -> str:
    """Return the name of an input or output; if nodes were folded into it, the signature's among its names.

    Nodes are named by the path of their module, which has dots; names in the signature have none.
    """
    name: str = min(port.names, key=lambda each: each.count("."))
    return name


def _part_output_name(name: str, place: int) -> str:
    return f"{name}.{place}"


def _id(node: openvino.Node) -> int:
    number: int = node.get_instance_id()
    return number
