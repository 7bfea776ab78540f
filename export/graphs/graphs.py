"""The three graphs of a bundle as torch modules, with the inputs and outputs that
:func:`realtime.decoding.engines.signature.signature` describes.

Inputs and outputs are fp32. :meth:`GraphModule.to_half` makes the network between them fp16, with casts at
its inputs and outputs; arithmetic outside the network (guidance, the sampler, scaling and rounding of
pictures) stays in fp32.

Keys and values of cross-attention are the same in all steps of a window, but every step computes them again.
As inputs of the graph they would make a step of the demo's UNet 4 % faster; in the paper's UNet they are 1.4
% of the multiplications. That is too little for a second kind of graph. An engine that can split a graph
computes them once (:mod:`realtime.decoding.engines.openvino_denoise`).

Legend: n conditions, N tokens, W token width, c, h, w latents, V voxels, T volumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from realtime.bundle.spec import Sampler
from train.model.brain import BrainModule
from train.model.linear_brain import LinearBrain

Inputs = dict[str, Tensor]

_DOCS = {
    "brain": "A window of z-scored fMRI volumes to the condition of the diffusion model.",
    "denoise": "One step of a sampler: the UNet's noise under each condition, guidance, the next latents.",
    "vae": "Latents to a picture.",
}


class GraphModule(nn.Module):
    """A network whose inputs and outputs are fp32."""

    network_name: str
    _inside: torch.dtype | None = None

    @property
    def network(self) -> nn.Module:
        """The module with the weights."""
        network: nn.Module = getattr(self, self.network_name)
        return network

    @property
    def precision(self) -> str:
        """Precision of the network's arithmetic, as named in ``bundle.json``."""
        return "float32" if self._inside is None else "float16"

    def to_half(self) -> None:
        """Change the network to fp16, in place."""
        self.network.half()
        self._inside = torch.float16

    def release(self) -> None:
        """Free the weights; the module keeps its shapes but cannot run."""
        self.network.to("meta")

    def enter(self, tensor: Tensor) -> Tensor:
        """Cast a tensor to the precision of the network."""
        return tensor if self._inside is None else tensor.to(self._inside)


class BrainGraph(GraphModule):
    """The brain module of one subject."""

    network_name = "brain"
    subject: Tensor

    def __init__(self, brain: BrainModule, subject_index: int = 0) -> None:
        super().__init__()
        self.brain = brain
        self.register_buffer("subject", torch.tensor([subject_index]))

    def forward(self, window: Tensor) -> Tensor:
        """A window ``[1, V, T]`` of z-scores to the condition ``[1, N, W]``."""
        condition: Tensor = self.brain(self.enter(window), self.subject)
        return condition.to(window.dtype)


class BaselineGraph(GraphModule):
    """The baseline's brain module, which also predicts the latents that the diffusion starts from."""

    network_name = "brain"

    def __init__(self, brain: LinearBrain) -> None:
        super().__init__()
        self.brain = brain

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """A window ``[1, V, T]`` of z-scores to the condition ``[1, N, W]`` and latents ``[1, c, h, w]``."""
        seen = self.enter(window)
        condition: Tensor = self.brain(seen)
        return condition.to(window.dtype), self.brain.start(seen).to(window.dtype)


class DenoiseGraph(GraphModule):
    """One step of any sampler that is a table of timesteps and coefficients.

    :param unet: predicts the noise of latents ``[n, c, h, w]`` at a timestep, given conditions ``[n, N, W]``
    :param alphas_cumprod: share of the signal in the variance of noisy latents, by timestep
    """

    network_name = "unet"
    signal: Tensor
    noise: Tensor

    def __init__(self, unet: nn.Module, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("signal", alphas_cumprod.double().sqrt().float())
        self.register_buffer("noise", (1 - alphas_cumprod.double()).sqrt().float())

    def forward(
        self,
        latents: Tensor,
        previous: Tensor,
        timestep: Tensor,
        conditions: Tensor,
        weights: Tensor,
        coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The next latents ``[1, c, h, w]`` and the prediction of the clean latents, ``[1, c, h, w]``.

        The noise is the sum of the predictions under the ``n`` conditions, weighted by ``weights`` ``[n]``:
        ``[1 - g, g]`` is classifier-free guidance g (Ho and Salimans 2022), ``[1]`` is no guidance.
        """
        repeated = self.enter(latents).expand(conditions.shape[0], -1, -1, -1)
        noises = self.unet(repeated, timestep, self.enter(conditions), return_dict=False)[0].to(latents.dtype)
        guided = (weights.view(-1, 1, 1, 1) * noises).sum(dim=0, keepdim=True)
        prediction = (latents - self.noise[timestep] * guided) / self.signal[timestep]
        next_latents = coefficients[0] * latents + coefficients[1] * prediction + coefficients[2] * previous
        return next_latents, prediction


class VaeGraph(GraphModule):
    """Latents to a picture, with the scaling and rounding of ``train.model.vae.decode_latents``."""

    network_name = "vae"

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents ``[1, c, h, w]`` from the sampler to the picture, uint8 ``[H, W, 3]``."""
        scaled = self.enter(latents / self.scale + self.shift)
        picture = self.vae.decode(scaled, return_dict=False)[0].to(latents.dtype)
        levels = ((picture / 2 + 0.5).clamp(0, 1) * 255).round()
        # The cast comes last, because TensorRT accepts uint8 only as inputs and outputs of a graph.
        image: Tensor = levels[0].permute(1, 2, 0).to(torch.uint8)
        return image


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A module to convert to ONNX, and the inputs at which it is compared."""

    name: str
    module: GraphModule
    outputs: tuple[str, ...]
    cases: list[Inputs]
    """Inputs at which parity is measured, by name in the order of ``forward``; tracing uses the first."""
    free: dict[str, str] = field(default_factory=dict)
    """Name of the first dimension of inputs in which it is free."""

    @property
    def doc(self) -> str:
        """What the graph does, in one sentence."""
        return _DOCS[self.name]


def brain_graph(brain: BrainModule | LinearBrain, seed: int, n_cases: int = 4) -> Graph:
    """The brain graph, with standard normal windows as cases."""
    draw = torch.Generator().manual_seed(seed)
    shape = (1, brain.config.n_voxels, brain.config.n_volumes)
    windows = [torch.randn(shape, generator=draw) for _ in range(n_cases)]
    module: GraphModule
    outputs: tuple[str, ...]
    if isinstance(brain, LinearBrain):
        module, outputs = BaselineGraph(brain), ("condition", "start")
    else:
        module, outputs = BrainGraph(brain), ("condition",)
    return Graph(
        name="brain",
        module=module.eval(),
        outputs=outputs,
        cases=[{"window": window} for window in windows],
    )


def denoise_graph(
    unet: nn.Module,
    alphas_cumprod: Tensor,
    sampler: Sampler,
    conditions: Tensor,
    latent_shape: tuple[int, ...],
    seed: int,
) -> Graph:
    """The denoise graph; its cases are the first, middle and last step of a sampler, with and without
    guidance.

    :param conditions: the null condition and another one, ``[2, N, W]``
    """
    draw = torch.Generator().manual_seed(seed)
    last = len(sampler.timesteps) - 1
    cases: list[Inputs] = []
    for step in (0, last // 2, last):
        guidance = sampler.guidance[step]
        for weights in ([1 - guidance, guidance], [1.0]):
            cases.append(
                {
                    "latents": torch.randn(1, *latent_shape, generator=draw),
                    "previous": torch.randn(1, *latent_shape, generator=draw),
                    "timestep": torch.tensor([sampler.timesteps[step]]),
                    "conditions": conditions[-len(weights) :],
                    "weights": torch.tensor(weights),
                    "coefficients": torch.tensor(sampler.coefficients[step]),
                }
            )
    return Graph(
        name="denoise",
        module=DenoiseGraph(unet, alphas_cumprod).eval(),
        outputs=("next", "prediction"),
        cases=cases,
        free={"conditions": "n", "weights": "n"},
    )


def vae_graph(vae: AutoencoderKL, latent_shape: tuple[int, ...], seed: int, n_cases: int = 3) -> Graph:
    """The VAE graph, with standard normal latents as cases, since its scaling factor normalises latents."""
    draw = torch.Generator().manual_seed(seed)
    latents = [torch.randn(1, *latent_shape, generator=draw) for _ in range(n_cases)]
    return Graph(
        name="vae",
        module=VaeGraph(vae).eval(),
        outputs=("image",),
        cases=[{"latents": each} for each in latents],
    )
