"""The signature of a bundle's graphs: inputs and outputs that every engine checks when it loads one."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Spec, Tensor
from realtime.decoding.engines.external_weights import locations
from realtime.errors import EngineError


def signature(spec: Spec, graph: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs that a graph of a bundle must have; a named dimension is free.

    V voxels and T volumes into ``brain`` graphs, out of which come a condition and, where samplers start from
    them, latents; one sampler step in ``denoise`` graphs; latents to an image in ``vae``.

    The noises under each of the ``n`` conditions of a step are mixed by weights that sum to 1, and both
    outputs are affine in the mixture: an engine may run the graph for each condition alone and mix what comes
    out.
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


def forms(spec: Spec, graph: str) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of a graph's inputs, by name, for each number n of conditions that the samplers use."""
    inputs, _ = signature(spec, graph)
    if all(isinstance(size, int) for tensor in inputs for size in tensor.shape):
        numbers = {1}
    else:
        numbers = {1 if guidance == 1 else 2 for sampler in spec.samplers for guidance in sampler.guidance}
    return [
        {t.name: tuple(size if isinstance(size, int) else n for size in t.shape) for t in inputs}
        for n in sorted(numbers)
    ]


def check_graph(
    bundle: Bundle,
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    n: int | None = None,
) -> None:
    """See that a loaded graph takes and gives what :func:`signature` says; its free dimensions fit any.

    Its weights must lie in files whose digests the bundle knows.

    :param n: to which the number of conditions was fixed while loading, if it was
    :raises EngineError: naming the file, what was expected and what was found
    """
    path = bundle.graph_path(name)
    try:
        unlisted = sorted(locations(path) - set(bundle.spec.files))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: expected an ONNX graph: {error}; export the bundle again") from error
    if unlisted:
        raise EngineError(
            f"{path}: expected weights in files that bundle.json lists, found some in {', '.join(unlisted)}; "
            "export the bundle again"
        )
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


_Form = tuple[str, tuple[int | str, ...]]


def _fits(wanted: _Form, got: _Form) -> bool:
    (dtype, sizes), (got_dtype, got_sizes) = wanted, got
    if dtype != got_dtype or len(sizes) != len(got_sizes):
        return False
    return all(not isinstance(b, int) or a == b for a, b in zip(sizes, got_sizes, strict=True))


def _floats(name: str, shape: tuple[int | str, ...]) -> Tensor:
    return Tensor(name=name, dtype="float32", shape=shape)
