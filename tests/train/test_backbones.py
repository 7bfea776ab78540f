"""The networks written out compute what torchvision's do: its names, its shapes, its features.

``torchvision_features.json`` holds what torchvision's own classes made of the same weights and picture.
Where torchvision can be imported, running this file writes it anew.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.evaluation.networks.backbones import AlexNet, EfficientNetB1, ResNet50
from train.evaluation.networks.inception import InceptionV3

GOLDEN = Path(__file__).parent / "torchvision_features.json"
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": AlexNet,
    "resnet50": ResNet50,
    "efficientnet_b1": EfficientNetB1,
    "inception_v3": InceptionV3,
}
HOOKED = {"alexnet": ("features.4", "features.11")}
OF_A_CLASSIFIER = ("fc.", "classifier.", "AuxLogits.")
N_KEPT = 24


def fill(network: nn.Module) -> None:
    """Weights that depend on their names and shapes alone, scaled to keep activations of order 1."""
    for name, weight in network.state_dict().items():
        if name.startswith(OF_A_CLASSIFIER) or not weight.is_floating_point():
            continue
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(weight.shape)
        if weight.ndim > 1:
            values *= np.sqrt(2 / weight[0].numel())
        elif name.endswith("running_var"):
            values = 1 + 0.2 * np.abs(values)
        else:
            values = 0.1 * values + (name.endswith("weight"))
        weight.copy_(torch.from_numpy(values))
    network.eval()


def picture() -> Tensor:
    across, down = np.meshgrid(np.linspace(0, 1, 128), np.linspace(0, 1, 128))
    channels = [np.sin(9 * across * (down + 1)), np.cos(15 * down), across * down]
    return torch.tensor(np.stack(channels)[None], dtype=torch.float32)


def spread(features: Tensor) -> dict[str, Any]:
    """The size and some values, from one end to the other."""
    values = features.flatten().numpy()
    places = np.linspace(0, len(values) - 1, N_KEPT).astype(int)
    return {"size": len(values), "mean": float(values.mean()), "values": values[places].tolist()}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_features_are_torchvisions(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    network = NETWORKS[name]()
    assert {key: list(weight.shape) for key, weight in network.state_dict().items()} == golden["weights"]
    fill(network)
    found = network(picture())
    found = found if isinstance(found, tuple) else (found,)
    for features, expected in zip(found, golden["features"], strict=True):
        kept = spread(features)
        assert kept["size"] == expected["size"]
        assert np.ptp(expected["values"]) > 0.01
        np.testing.assert_allclose(kept["values"], expected["values"], rtol=2e-3, atol=2e-4)
        assert kept["mean"] == pytest.approx(expected["mean"], rel=1e-3)


def hooked(network: nn.Module, places: tuple[str, ...]) -> list[Tensor]:
    seen: list[Tensor] = []
    for place in places:
        network.get_submodule(place).register_forward_hook(
            lambda module, given, out: seen.append(out.clone())
        )
    network(picture())
    return seen


@torch.no_grad()
def write_golden() -> None:
    """What torchvision computes."""
    from torchvision import models

    golden = {}
    for name in NETWORKS:
        network = getattr(models, name)(
            weights=None, **({"init_weights": False} if "inception" in name else {})
        )
        fill(network)
        seen = hooked(network, HOOKED.get(name, ("avgpool",)))
        weights = {
            key: list(weight.shape)
            for key, weight in network.state_dict().items()
            if not key.startswith(OF_A_CLASSIFIER)
        }
        golden[name] = {"weights": weights, "features": [spread(features) for features in seen]}
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    write_golden()
