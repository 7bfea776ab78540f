"""Inception-v3 (Szegedy et al. 2016) without its classifiers, with torchvision's names: see ``backbones``.

Every block is a table of branches, and every branch a sequence of convolutions. A branch may end with several
convolutions of the same input; their outputs are concatenated, as those of the branches are.

Legend: B batch, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

Kernel = tuple[int, int]
_ACROSS_7: Kernel = (1, 7)
_DOWN_7: Kernel = (7, 1)


@dataclass(frozen=True)
class Step:
    """One convolution with its norm and ReLU, padded to keep the size unless it has a stride."""

    name: str
    width: int
    kernel: int | Kernel = 1
    stride: int = 1


@dataclass(frozen=True)
class Branch:
    """Steps in sequence, followed by the steps of a fork in parallel."""

    steps: tuple[Step, ...] = ()
    pool: nn.Module | None = None
    fork: tuple[Step, ...] = ()


_MEAN_3 = nn.AvgPool2d(3, stride=1, padding=1)
_MAX_3 = nn.MaxPool2d(3, stride=2)
_POOL_DOWN = Branch(pool=_MAX_3)


def _block_a(pool_width: int) -> tuple[Branch, ...]:
    return (
        Branch((Step("branch1x1", 64),)),
        Branch((Step("branch5x5_1", 48), Step("branch5x5_2", 64, 5))),
        Branch((Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, 3), Step("branch3x3dbl_3", 96, 3))),
        Branch((Step("branch_pool", pool_width),), pool=_MEAN_3),
    )


_BLOCK_B = (
    Branch((Step("branch3x3", 384, 3, stride=2),)),
    Branch(
        (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, 3), Step("branch3x3dbl_3", 96, 3, stride=2))
    ),
    _POOL_DOWN,
)


def _block_c(width: int) -> tuple[Branch, ...]:
    kernels: tuple[int | Kernel, ...] = (1, _DOWN_7, _ACROSS_7, _DOWN_7)
    doubled = [Step(f"branch7x7dbl_{place}", width, kernel) for place, kernel in enumerate(kernels, start=1)]
    return (
        Branch((Step("branch1x1", 192),)),
        Branch(
            (
                Step("branch7x7_1", width),
                Step("branch7x7_2", width, _ACROSS_7),
                Step("branch7x7_3", 192, _DOWN_7),
            )
        ),
        Branch((*doubled, Step("branch7x7dbl_5", 192, _ACROSS_7))),
        Branch((Step("branch_pool", 192),), pool=_MEAN_3),
    )


_BLOCK_D = (
    Branch((Step("branch3x3_1", 192), Step("branch3x3_2", 320, 3, stride=2))),
    Branch(
        (
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, _ACROSS_7),
            Step("branch7x7x3_3", 192, _DOWN_7),
            Step("branch7x7x3_4", 192, 3, stride=2),
        )
    ),
    _POOL_DOWN,
)
_BLOCK_E = (
    Branch((Step("branch1x1", 320),)),
    Branch(
        (Step("branch3x3_1", 384),),
        fork=(Step("branch3x3_2a", 384, (1, 3)), Step("branch3x3_2b", 384, (3, 1))),
    ),
    Branch(
        (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, 3)),
        fork=(Step("branch3x3dbl_3a", 384, (1, 3)), Step("branch3x3dbl_3b", 384, (3, 1))),
    ),
    Branch((Step("branch_pool", 192),), pool=_MEAN_3),
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _BLOCK_B,
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _BLOCK_D,
    "Mixed_7b": _BLOCK_E,
    "Mixed_7c": _BLOCK_E,
}


class Convolution(nn.Module):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(self, previous: int, width: int, kernel: int | Kernel, stride: int, padding: Kernel) -> None:
        super().__init__()
        self.conv = nn.Conv2d(previous, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, width, H', W']``."""
        normed: Tensor = self.bn(self.conv(x))
        return normed.relu()


class Mixed(nn.Module):
    """A block: parallel branches, concatenated by channel."""

    def __init__(self, previous: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        self.out_channels = 0
        for branch in branches:
            width = previous
            for step in branch.steps:
                self.add_module(step.name, _make(width, step))
                width = step.width
            for step in branch.fork:
                self.add_module(step.name, _make(width, step))
            self.out_channels += sum(step.width for step in branch.fork) if branch.fork else width

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, out_channels, H', W']``."""
        return torch.cat([part for branch in self.branches for part in self._run(branch, x)], dim=1)

    def _run(self, branch: Branch, x: Tensor) -> list[Tensor]:
        if branch.pool is not None:
            x = branch.pool(x)
        for step in branch.steps:
            x = self.get_submodule(step.name)(x)
        return [self.get_submodule(step.name)(x) for step in branch.fork] if branch.fork else [x]


def _make(previous: int, step: Step) -> Convolution:
    height, width = step.kernel if isinstance(step.kernel, tuple) else (step.kernel, step.kernel)
    padding = (height // 2, width // 2) if step.stride == 1 else (0, 0)
    return Convolution(previous, step.width, step.kernel, step.stride, padding)


class InceptionV3(nn.Module):
    """The network up to its average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, (0, 0))
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 1, (0, 0))
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, (1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1, (0, 0))
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 1, (0, 0))
        channels = 192
        for name, branches in BLOCKS.items():
            block = Mixed(channels, branches)
            self.add_module(name, block)
            channels = block.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1], ``[B, 3, H, W]``, to average-pooled features ``[B, 2048]``."""
        x = _MAX_3(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _MAX_3(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))
