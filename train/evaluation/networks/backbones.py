"""Convolutional networks, without their classifiers, whose features the paper's evaluation compares.

AlexNet (Krizhevsky 2014), ResNet-50 (He et al. 2016) and EfficientNet-B1 (Tan & Le 2019); Inception-v3 has a
file of its own. The parameters have torchvision's names and shapes, and torchvision's published weights are
loaded into them. The networks are written out here because torchvision is bound to one build of torch: beside
another build, such as a CPU build, it fails to import, and then diffusers, peft and transformers fail too.
Tests compare the networks with recorded outputs of torchvision's.

Legend: B batch, C channels, D features. Input ``[B, 3, H, W]``, normalised as in each network's training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and SD, by channel, of the pictures that the networks were trained on."""


class AlexNet(nn.Module):
    """The convolutional layers of AlexNet."""

    LAYER_2 = 4
    """Index of the ReLU that ends layer 2 in the literature on NSD; layer 5 there ends with the last ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *[nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)],
            *[nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)],
            *[nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            *[nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            *[nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Layers 2 and 5, flattened: ``[B, 192 * 27 * 27]``, ``[B, 256 * 13 * 13]`` at 224 px."""
        layer_2 = self.features[: self.LAYER_2 + 1](x)
        layer_5 = self.features[self.LAYER_2 + 1 :](layer_2)
        return layer_2.flatten(1), layer_5.flatten(1)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions, and a shortcut around them."""

    def __init__(self, previous: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(previous, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if previous != 4 * width:
            shortcut = nn.Conv2d(previous, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, 4 width, H / stride, W / stride]``."""
        inner = self.bn1(self.conv1(x)).relu()
        inner = self.bn2(self.conv2(inner)).relu()
        total: Tensor = self.bn3(self.conv3(inner)) + self.downsample(x)
        return total.relu()


class ResNet50(nn.Module):
    """ResNet-50, which SwAV (Caron et al. 2020) trained without labels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, n_blocks=3, stride=1)
        self.layer2 = _stage(256, 128, n_blocks=4, stride=2)
        self.layer3 = _stage(512, 256, n_blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, n_blocks=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Average-pooled last features ``[B, 2048]``."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))


def _stage(previous: int, width: int, *, n_blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * width, width, 1) for _ in range(n_blocks - 1)]
    return nn.Sequential(Bottleneck(previous, width, stride), *rest)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a factor that depends on the spatial means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        scale = self.fc2(nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class InvertedBottleneck(nn.Module):
    """Widen, depthwise convolution, squeeze and excitation, narrow; a shortcut where shapes are equal."""

    def __init__(self, previous: int, width: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = previous * expand
        widen = [_convolution(previous, inner, 1)] if expand > 1 else []
        self.block = nn.Sequential(
            *widen,
            _convolution(inner, inner, kernel, stride, groups=inner),
            SqueezeExcitation(inner, previous // 4),
            _convolution(inner, width, 1, activate=False),
        )
        self.has_shortcut = stride == 1 and previous == width

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, width, H / stride, W / stride]``."""
        inner: Tensor = self.block(x)
        return inner + x if self.has_shortcut else inner


class EfficientNetB1(nn.Module):
    """EfficientNet-B0 at 1.1 times its depth."""

    STAGES = (
        # expand, kernel, stride, width, blocks
        (1, 3, 1, 16, 2),
        (6, 3, 2, 24, 3),
        (6, 5, 2, 40, 3),
        (6, 3, 2, 80, 4),
        (6, 5, 1, 112, 4),
        (6, 5, 2, 192, 5),
        (6, 3, 1, 320, 2),
    )

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 32, 3, 2), *self._stages(32), _convolution(self.STAGES[-1][3], 1280, 1)
        )

    def _stages(self, previous: int) -> Iterator[nn.Sequential]:
        for expand, kernel, stride, width, n_blocks in self.STAGES:
            blocks = []
            for place in range(n_blocks):
                blocks.append(
                    InvertedBottleneck(
                        previous, width, expand=expand, kernel=kernel, stride=1 if place else stride
                    )
                )
                previous = width
            yield nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Average-pooled last features ``[B, 1280]``."""
        features: Tensor = self.features(x)
        return features.mean((2, 3))


def _convolution(
    previous: int, width: int, kernel: int, stride: int = 1, *, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    convolution = nn.Conv2d(previous, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), *([nn.SiLU()] if activate else []))
