"""The pretrained networks whose features the paper's evaluation compares.

| network | features |
|---|---|
| AlexNet | layers 2 and 5 (``features.4``, ``features.11``) |
| CLIP ViT-L/14 | its final image embedding |
| Inception-v3, EfficientNet-B1, SwAV's ResNet-50 | averages over the last layer (``avgpool``) |
| DreamSim | the ensemble's embedding |
| Mask2Former (Swin-L, COCO panoptic) | the semantic map: a class for each pixel |

The paper's tables call CLIP's column "CLIP-12", its text also says "CLIP", and neither explains the 12:
ViT-L/14 has 24 layers, ViT-B/32 has 12. The authors' released evaluation takes the final image embedding of
ViT-L/14, projected into the space shared with text, and so does this module. If the tables' values came from
a layer 12, ours would not be comparable with them in this row.

The paper's semantic maps come from ViT-Adapter (BEiTv2-L) at 512 px, which no maintained package provides,
and have COCO-Stuff's 171 classes. Mask2Former is the head that ViT-Adapter's authors use. On COCO's panoptic
classes it has the same 80 kinds of things, and 53 kinds of stuff that merge COCO-Stuff's 91. Its mIoU is near
the paper's, and not comparable with it.

Legend: n pictures, B batch, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from train.errors import UNREADABLE_WEIGHTS, TrainError
from train.evaluation.networks import dreamsim
from train.evaluation.networks.backbones import IMAGENET, OPENAI, AlexNet, EfficientNetB1, ResNet50
from train.evaluation.networks.inception import InceptionV3
from train.evaluation.networks.weight_files import DreamSimFolder, File, HubModel, Weights

INPUT_PX = 224
_BATCH = 32
"""Pictures of 224 px at once, or fewer of a larger size."""
Pictures = NDArray[np.uint8]
Features = NDArray[Any]
"""[n, d]: float32, or uint8 for semantic maps"""
Extract = Callable[[Tensor], tuple[Tensor, ...]]
"""Pictures [B, 3, px, px] in [0, 1] to features [B, d], one array for each kind of the network.

Both are on the device that the network was loaded to.
"""
Device = torch.device | str
Load = Callable[[Path, Device], Extract]
"""Loads a network from its weights; raises :class:`TrainError` when they cannot be read or do not fit."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network and the kinds of features that it computes."""

    name: str
    kinds: tuple[str, ...]
    weights: Weights
    load: Load
    px: int = INPUT_PX
    """Side of the pictures that it sees."""
    resampling: Image.Resampling = Image.Resampling.BILINEAR


def features(
    network: Network, path: Path, sets: dict[str, Pictures], device: Device
) -> Iterator[tuple[str, str, Features]]:
    """Yield the name of each set of pictures, each kind of features, and the features.

    The network is loaded once, and sees a batch of pictures at a time.

    :param path: the network's weights
    :raises TrainError: the weights cannot be read or do not fit; nothing has been yielded then
    """
    extract = network.load(path, device)
    for name, pictures in sets.items():
        parts = [
            tuple(column.cpu() for column in extract(batch.to(device)))
            for batch in _batches(pictures, network, name)
        ]
        for kind, column in zip(network.kinds, zip(*parts, strict=True), strict=True):
            yield name, kind, torch.cat(column).numpy()


def resized(pictures: Pictures, px: int, resampling: Image.Resampling) -> Pictures:
    """Pictures ``[n, H, W, 3]`` resized to ``[n, px, px, 3]`` with Pillow, as in the authors' code."""
    if pictures.shape[1:3] == (px, px):
        return pictures
    return np.stack([np.asarray(Image.fromarray(one).resize((px, px), resampling)) for one in pictures])


def _batches(pictures: Pictures, network: Network, name: str) -> Iterator[Tensor]:
    at_once = max(1, _BATCH * INPUT_PX**2 // network.px**2)
    for start in tqdm(range(0, len(pictures), at_once), desc=f"{network.name}, {name}", unit="batch"):
        part = resized(pictures[start : start + at_once], network.px, network.resampling)
        yield torch.tensor(part).permute(0, 3, 1, 2).float() / 255.0


def _convolutional(
    make: Callable[[], nn.Module], statistics: tuple[tuple[float, ...], ...], *, prefix: str = ""
) -> Load:
    """A loader for a network of ``backbones``, from a file with torchvision's names."""

    def load(path: Path, device: Device) -> Extract:
        network = make().eval()
        _load_file(network, path, prefix)
        return _normalising(network.to(device), statistics, device)

    return load


def _load_file(network: nn.Module, path: Path, prefix: str) -> None:
    """Load the weights of ``network``; the file's classifier, which the network lacks, is ignored."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept = {name.removeprefix(prefix): weight for name, weight in state.items()}
        missing = network.load_state_dict(kept, strict=False).missing_keys
    except UNREADABLE_WEIGHTS as error:
        raise TrainError(
            f"cannot read weights of {type(network).__name__} from {path}: {error}; download it again"
        ) from error
    if missing:
        raise TrainError(
            f"{path} lacks {missing[0]} ({len(missing)} weights missing in all); download it again"
        )


def _normalising(
    network: Callable[[Tensor], Any], statistics: tuple[tuple[float, ...], ...], device: Device
) -> Extract:
    mean, sd = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)

    @torch.no_grad()
    def extract(pictures: Tensor) -> tuple[Tensor, ...]:
        found = network((pictures - mean) / sd)
        return found if isinstance(found, tuple) else (found,)

    return extract


def _load_clip(path: Path, device: Device) -> Extract:
    from transformers import CLIPVisionModelWithProjection

    network = _load_transformers(CLIPVisionModelWithProjection, path).to(device)
    return _normalising(lambda pictures: network(pictures).image_embeds, OPENAI, device)


def _load_segmentation(path: Path, device: Device) -> Extract:
    from transformers import Mask2FormerForUniversalSegmentation

    network = _load_transformers(Mask2FormerForUniversalSegmentation, path).to(device)

    def semantic_map(pictures: Tensor) -> Tensor:
        """The class of each pixel, ``[B, px * px]``: the queries' masks weighted by their class scores."""
        found, size_px = network(pictures), (pictures.shape[2], pictures.shape[3])
        masks = nn.functional.interpolate(found.masks_queries_logits, size_px, mode="bilinear")
        classes = found.class_queries_logits.softmax(dim=-1)[..., :-1]  # the last is "no object"
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())
        return scores.argmax(dim=1).flatten(1).to(torch.uint8)

    return _normalising(semantic_map, IMAGENET, device)


def _load_transformers(kind: Any, path: Path) -> Any:
    try:
        network, told = kind.from_pretrained(path, local_files_only=True, output_loading_info=True)
    except UNREADABLE_WEIGHTS as error:
        raise TrainError(f"cannot read a {kind.__name__} from {path}: {error}; download it again") from error
    if missing := sorted(told["missing_keys"]):
        raise TrainError(
            f"{path} lacks {missing[0]} ({len(missing)} weights missing in all); download it again"
        )
    return network.eval()


def _load_dreamsim(path: Path, device: Device) -> Extract:
    return _normalising(dreamsim.load_dreamsim(path).to(device), ((0.0,) * 3, (1.0,) * 3), device)


_TORCHVISION = "https://download.pytorch.org/models"
NETWORKS = (
    Network(
        name="AlexNet",
        kinds=("alexnet_2", "alexnet_5"),
        weights=File(url=f"{_TORCHVISION}/alexnet-owt-7be5be79.pth"),
        load=_convolutional(AlexNet, IMAGENET),
    ),
    Network(
        name="CLIP ViT-L/14",
        kinds=("clip",),
        weights=HubModel(repository="openai/clip-vit-large-patch14"),
        load=_load_clip,
    ),
    Network(
        name="Inception-v3",
        kinds=("inception",),
        weights=File(url=f"{_TORCHVISION}/inception_v3_google-0cc3c7bd.pth"),
        load=_convolutional(InceptionV3, ((0.5,) * 3, (0.5,) * 3)),
    ),
    Network(
        name="EfficientNet-B1",
        kinds=("efficientnet_b1",),
        weights=File(url=f"{_TORCHVISION}/efficientnet_b1_rwightman-bac287d4.pth"),
        load=_convolutional(EfficientNetB1, IMAGENET),
    ),
    Network(
        name="SwAV ResNet-50",
        kinds=("swav",),
        weights=File(url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"),
        load=_convolutional(ResNet50, IMAGENET, prefix="module."),
    ),
    Network(
        name="Mask2Former Swin-L",
        kinds=("semantic_map",),
        weights=HubModel(repository="facebook/mask2former-swin-large-coco-panoptic"),
        load=_load_segmentation,
        px=512,
    ),
    Network(
        name="DreamSim",
        kinds=("dreamsim",),
        weights=DreamSimFolder(),
        load=_load_dreamsim,
        resampling=Image.Resampling.BICUBIC,
    ),
)
