"""A ``denoise`` graph on OpenVINO, with what does not change from step to step computed once.

    conditions ─► keys and values of cross-attention ───────────────┐ once for each window
    timestep ───► what every block adds for the timestep ───────────┤ once for each timestep
    latents, previous, coefficients ────────────────────────────────┴─► next, prediction

Two conditions are computed side by side, each by half of the threads, rather than by all in a batch of two:
threads wait for one another after every layer, which takes long where layers are small. The noises are mixed
by weights that sum to 1, and what is made of the mixture is affine in it: to mix what comes out for each
condition alone gives the same.
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
"""Compiles a model that is run so often at the same time."""
Arrays = list[NDArray[Any]]

_KEPT = {"conditions": 8, "timestep": 256}
"""Inputs of which parts are computed apart, and for how many of them the outcome is kept: the condition of a
window and, as they come back with every window, null conditions; the timesteps of all samplers."""
_BY_CONDITION = ("conditions", "weights")


class DenoiseModel:
    """A graph, compiled for inputs of given shapes.

    :param model: as it was read; it is taken apart
    :param shapes: of all inputs, by name
    :param is_paired: whether two conditions are computed side by side
    :raises RuntimeError: on inputs that are not the model's, or that do not fit each other
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
        steps, parts = take_apart(model, tuple(_KEPT))
        self._parts = {name: _Part(compiled(part, 1), _KEPT[name]) for name, part in parts.items()}
        whole = compiled(steps, len(rows))
        self._branches = [
            _Branch(whole.create_infer_request(), each, is_mixed_later=len(rows) > 1) for each in rows
        ]

    def run(self, inputs: Mapping[str, openvino.Tensor]) -> dict[str, openvino.Tensor]:
        """Outputs, by name, in new tensors."""
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
        """Run all branches; none is left running when one fails."""
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
    """One run of the steps' model, for some of the conditions.

    :param rows: of the conditions
    :param is_mixed_later: with what other branches give, so that its own weight is 1
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
        """Copy the inputs to where the request has its own. :raises TypeError: when one is of another type"""
        for name, tensor in inputs.items():
            given = tensor.data[self._rows] if name in _BY_CONDITION else tensor.data
            if name in parts:
                self._give_outcome(name, parts[name].outcome(given))
            elif name not in self._fixed:
                np.copyto(self._inputs[name], given, casting="no")

    def _give_outcome(self, name: str, outcome: Arrays) -> None:
        if self._given.get(name) is outcome:
            return
        for place, array in enumerate(outcome):
            self._inputs[_cut(name, place)][...] = array
        self._given[name] = outcome


class _Part:
    """What depends on one input alone; what came out lately is kept."""

    def __init__(self, compiled: openvino.CompiledModel, n_kept: int) -> None:
        self._request = compiled.create_infer_request()
        self._n_kept = n_kept
        self._known: dict[bytes, Arrays] = {}

    def outcome(self, given: NDArray[Any]) -> Arrays:
        """What the part gives for an input."""
        key = given.tobytes()
        outcome = self._known.pop(key, None) or self._compute(given)
        if len(self._known) == self._n_kept:
            del self._known[next(iter(self._known))]
        self._known[key] = outcome  # the latest is the last one to go
        return outcome

    def _compute(self, given: NDArray[Any]) -> Arrays:
        self._request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(given)))
        self._request.infer()
        return [np.array(output.data) for output in self._request.output_tensors]


def take_apart(
    model: openvino.Model, names: Sequence[str]
) -> tuple[openvino.Model, dict[str, openvino.Model]]:
    """A model without what depends on one of some inputs alone, and that for each of them.

    The n-th output of the part of an input ``x`` is the input ``x.n`` of the model that is left. Inputs of
    which nothing can be computed apart stay as they are, and so do those that an output depends on alone.
    """
    folding = Manager()
    folding.register_pass(ConstantFolding())  # what asks for a shape depends on nothing afterwards
    folding.run_passes(model)
    inputs = {name_of(port): port.get_node() for port in model.inputs}
    depends_on = _dependencies(model, inputs)
    edges = {name: edge for name in names if (edge := _edge(model, depends_on, name))}
    parts, added = {}, []
    for name, edge in edges.items():
        for place, output in enumerate(edge):
            given = operators.parameter(output.get_partial_shape(), output.get_element_type())
            given.output(0).set_names({_cut(name, place)})
            for use in output.get_target_inputs():
                if depends_on[_id(use.get_node())] != {name}:
                    use.replace_source_output(given.output(0))
            added.append(given)
        parts[name] = openvino.Model([operators.result(output) for output in edge], [inputs[name]], name)
    kept = [node for name, node in inputs.items() if name not in parts]
    return openvino.Model(model.get_results(), kept + added, model.get_friendly_name()), parts


def _dependencies(model: openvino.Model, inputs: Mapping[str, openvino.Node]) -> dict[int, set[str]]:
    """Names of the inputs that each node depends on, by the node's number."""
    depends_on: dict[int, set[str]] = {_id(node): {name} for name, node in inputs.items()}
    for node in model.get_ordered_ops():
        sources = [depends_on[_id(each.get_source_output().get_node())] for each in node.inputs()]
        depends_on.setdefault(_id(node), set().union(*sources))
    return depends_on


def _edge(model: openvino.Model, depends_on: Mapping[int, set[str]], name: str) -> list[openvino.Output]:
    """Outputs of nodes that depend on one input alone, where nodes use them that do not.

    The input itself may be among them, if it is not the only one.
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
    """Name of an input or output; of several, where nodes were folded into it, the one of the signature.

    A node is named by the path of its module, which has dots; a signature's names have none.
    """
    name: str = min(port.names, key=lambda each: each.count("."))
    return name


def _cut(name: str, place: int) -> str:
    return f"{name}.{place}"


def _id(node: openvino.Node) -> int:
    number: int = node.get_instance_id()
    return number
