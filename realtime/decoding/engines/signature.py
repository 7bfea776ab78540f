"""The signatures of a bundle's graphs, against which every engine checks the graphs it loads."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Spec, Tensor
from realtime.decoding.engines.external_weights import weight_files
from realtime.errors import BundleError, EngineError


def signature(spec: Spec, graph: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs that a graph must have; a dimension given by name is free.

    - ``brain``: a window of V voxels and T volumes to a condition and, if samplers start from them, latents.
    - ``denoise``: one sampler step with ``n`` conditions. It mixes the noises under the conditions by weights
      that sum to 1, and both outputs are affine in the mixture. So an engine may run the graph once per
      condition and mix the outputs.
    - ``vae``: latents to an image.

    :raises EngineError: when the bundle has no such graph
    """
    latents = (1, *spec.latent_shape)
    if graph in {decoder.denoise for decoder in spec.decoders}:
        return (
            _floats("latents", latents),
            _floats("previous", latents),
            Tensor(name="timestep", dtype="int64", shape=(1,)),
            _floats("conditions", ("n", *spec.condition_shape)),
            _floats("weights", ("n",)),
            _floats("coefficients", (3,)),
        ), (_floats("next", latents), _floats("prediction", latents))
    if graph == "vae":
        image = Tensor(name="image", dtype="uint8", shape=(*spec.image_size_px, 3))
        return (_floats("latents", latents),), (image,)
    for decoder in spec.decoders:
        if decoder.graph == graph:
            window = (1, spec.roi.n_voxels, decoder.window.length_volumes)
            condition = _floats("condition", (1, *spec.condition_shape))
            start = (_floats("start", latents),) if spec.starts_from_brain else ()
            return (_floats("window", window),), (condition, *start)
    raise EngineError(f"expected vae or a decoder's graph, got {graph!r}; export the bundle again")


def input_shapes(spec: Spec, graph: str) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of a graph's inputs by name, for each number of conditions that the samplers use."""
    inputs, _ = signature(spec, graph)
    if all(isinstance(size, int) for tensor in inputs for size in tensor.shape):
        numbers = {1}
    else:
        numbers = {1 if guidance == 1 else 2 for sampler in spec.samplers for guidance in sampler.guidance}
    return [
        {t.name: tuple(size if isinstance(size, int) else n for size in t.shape) for t in inputs}
        for n in sorted(numbers)
    ]


def check_file(bundle: Bundle, name: str) -> None:
    """Check a graph's file before an engine loads it.

    It must have no control flow, and its external weights must be files that ``bundle.json`` lists.

    :raises EngineError: when it differs; the message names the file
    """
    path = bundle.graph_path(name)
    try:
        unlisted = sorted(weight_files(path) - set(bundle.spec.files))
    except (OSError, ValueError, BundleError) as error:
        raise EngineError(f"{path}: expected an ONNX graph: {error}; export the bundle again") from error
    if unlisted:
        raise EngineError(
            f"{path}: expected weights in files that bundle.json lists, found some in {', '.join(unlisted)}; "
            "export the bundle again"
        )


def check_graph(
    bundle: Bundle,
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    n: int | None = None,
) -> None:
    """Check the inputs and outputs of a loaded graph against :func:`signature`; free dimensions match any.

    :param n: number of conditions, if it was fixed while loading
    :raises EngineError: when the graph differs; the message names the file, what was expected and found
    """
    path = bundle.graph_path(name)
    for what, expected, found in zip(
        ("inputs", "outputs"), signature(bundle.spec, name), (inputs, outputs), strict=True
    ):
        wanted = {
            tensor.name: (tensor.dtype, tuple(n if n and size == "n" else size for size in tensor.shape))
            for tensor in expected
        }
        got = {tensor.name: (tensor.dtype, tensor.shape) for tensor in found}
        if not (wanted.keys() == got.keys() and all(_fits(wanted[key], got[key]) for key in wanted)):
            raise EngineError(f"{path}: {what}: expected {wanted}, found {got}; export the bundle again")


_TensorType = tuple[str, tuple[int | str, ...]]


def _fits(wanted: _TensorType, got: _TensorType) -> bool:
    (dtype, sizes), (got_dtype, got_sizes) = wanted, got
    if dtype != got_dtype or len(sizes) != len(got_sizes):
        return False
    return all(not isinstance(b, int) or a == b for a, b in zip(sizes, got_sizes, strict=True))


def _floats(name: str, shape: tuple[int | str, ...]) -> Tensor:
    return Tensor(name=name, dtype="float32", shape=shape)
