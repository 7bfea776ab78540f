"""Networks of the real classes, untrained, saved as the trained ones are published and read back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from train.errors import TrainError
from train.evaluation.networks.backbones import IMAGENET, OPENAI, AlexNet, EfficientNetB1, ResNet50
from train.evaluation.networks.efficientnet_lite import efficientnet_lite0
from train.evaluation.networks.inception import InceptionV3
from train.evaluation.networks.registry import NETWORKS, Network, features, resized
from train.evaluation.networks.weight_files import File

pytestmark = pytest.mark.usefixtures("offline")

BY_NAME = {network.name: network for network in NETWORKS}
CONVOLUTIONAL = [
    # network, class, file, prefix of its names, last weight, what lies in the file besides, hooked places
    (
        "AlexNet",
        AlexNet,
        "alexnet-owt-7be5be79.pth",
        "",
        "classifier.6.weight",
        ["features.4", "features.11"],
    ),
    (
        "Inception-v3",
        InceptionV3,
        "inception_v3_google-0cc3c7bd.pth",
        "",
        "AuxLogits.fc.weight",
        ["Mixed_7c"],
    ),
    (
        "EfficientNet-B1",
        EfficientNetB1,
        "efficientnet_b1_rwightman-bac287d4.pth",
        "",
        "classifier.1.weight",
        ["features.8"],
    ),
    ("SwAV ResNet-50", ResNet50, "swav_800ep_pretrain.pth.tar", "module.", "prototypes.weight", ["layer4"]),
]
SIZES = {
    "alexnet_2": 192 * 27 * 27,
    "alexnet_5": 256 * 13 * 13,
    "inception": 2048,
    "efficientnet_b1": 1280,
    "swav": 2048,
}


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size=(3, 100, 100, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def inputs(pictures: NDArray[np.uint8]) -> Tensor:
    return as_networks_see(pictures, 224)


def as_networks_see(pictures: NDArray[np.uint8], px: int) -> Tensor:
    """As the authors' code makes them: Pillow's bilinear, in [0, 1]."""
    large = [np.asarray(Image.fromarray(one).resize((px, px), Image.Resampling.BILINEAR)) for one in pictures]
    return torch.tensor(np.stack(large)).permute(0, 3, 1, 2) / 255


def normalised(inputs: Tensor, statistics: tuple[tuple[float, ...], ...]) -> Tensor:
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return (inputs - mean) / sd


def seen(network: Network, folder: Path, pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    path = network.weights.find(folder)
    assert path
    return {kind: rows for _, kind, rows in features(network, path, {"shown": pictures}, "cpu")}


@pytest.mark.parametrize(
    ("name", "kind", "file", "prefix", "besides", "places"),
    CONVOLUTIONAL,
    ids=[row[0] for row in CONVOLUTIONAL],
)
@torch.no_grad()
def test_a_published_file_gives_the_features_that_a_hook_sees(
    name: str,
    kind: type[nn.Module],
    file: str,
    prefix: str,
    besides: str,
    places: list[str],
    tmp_path: Path,
    pictures: NDArray[np.uint8],
    inputs: Tensor,
) -> None:
    torch.manual_seed(3)
    network = kind().eval()
    state = {f"{prefix}{key}": weight for key, weight in network.state_dict().items()}
    torch.save(state | {f"{prefix}{besides}": torch.zeros(2, 2)}, tmp_path / file)
    hooked: list[Tensor] = []
    for place in places:
        network.get_submodule(place).register_forward_hook(
            lambda module, given, out: hooked.append(out.clone())
        )
    # torchvision's pretrained Inception brings pictures to [-1, 1]; the others have ImageNet's statistics.
    network(2 * inputs - 1 if kind is InceptionV3 else normalised(inputs, IMAGENET))
    pooled = [out if kind is AlexNet else out.mean((2, 3)) for out in hooked]

    found = seen(BY_NAME[name], tmp_path, pictures)
    for (feature, rows), expected in zip(found.items(), pooled, strict=True):
        assert rows.shape == (3, SIZES[feature])
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, expected.flatten(1), rtol=1e-4, atol=1e-5)


def write_clip(folder: Path) -> CLIPModel:
    """As on the hub: the whole CLIP, of which the half that sees is read."""
    small = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"hidden_size": 64, "image_size": 224, "patch_size": 56, "projection_dim": 24}
    torch.manual_seed(5)
    model = CLIPModel(
        CLIPConfig(text_config=small | {"hidden_size": 32}, vision_config=vision, projection_dim=24)
    ).eval()
    model.save_pretrained(folder / "clip-vit-large-patch14")
    return model


@torch.no_grad()
def test_clips_image_embedding_is_read_from_the_whole_model(
    tmp_path: Path, pictures: NDArray[np.uint8], inputs: Tensor
) -> None:
    model = write_clip(tmp_path)
    vision = model.vision_model(pixel_values=normalised(inputs, OPENAI))
    expected = model.visual_projection(vision.pooler_output)
    found = seen(BY_NAME["CLIP ViT-L/14"], tmp_path, pictures)["clip"]
    assert found.shape == (3, 24)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def write_segmentation(folder: Path) -> Mask2FormerForUniversalSegmentation:
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        mask_feature_size=32,
        feature_size=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=10,
        num_labels=133,
    )
    torch.manual_seed(8)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    for weight in model.parameters():  # so that several classes win somewhere
        weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder / "mask2former-swin-large-coco-panoptic")
    return model


@torch.no_grad()
def test_semantic_maps_weight_the_queries_masks_by_their_classes(
    tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    inputs = as_networks_see(pictures, 512)
    out = write_segmentation(tmp_path)(pixel_values=normalised(inputs, IMAGENET))
    masks = nn.functional.interpolate(out.masks_queries_logits, (512, 512), mode="bilinear").sigmoid().numpy()
    classes = out.class_queries_logits.softmax(-1).numpy()
    found = seen(BY_NAME["Mask2Former Swin-L"], tmp_path, pictures)["semantic_map"]
    assert found.shape == (3, 512 * 512)
    assert found.dtype == np.uint8
    for picture in range(3):
        scores = sum(classes[picture, query, :133, None, None] * masks[picture, query] for query in range(10))
        best = np.sort(scores, axis=0)
        clear = best[-1] - best[-2] > 1e-5 * best[-1]
        assert clear.mean() > 0.99
        labels = scores.argmax(axis=0)
        assert len(np.unique(labels)) > 1
        np.testing.assert_array_equal(found[picture].reshape(512, 512)[clear], labels[clear])


def test_the_folder_comes_before_torchs_cache(tmp_path: Path) -> None:
    weights = BY_NAME["AlexNet"].weights
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    assert weights.find(tmp_path) is None
    cached.touch()
    assert weights.find(tmp_path) == weights.find(None) == cached
    (tmp_path / cached.name).touch()
    assert weights.find(tmp_path) == tmp_path / cached.name


def test_the_hubs_cache_is_found_where_the_folder_has_none(tmp_path: Path) -> None:
    weights = BY_NAME["CLIP ViT-L/14"].weights
    assert weights.find(tmp_path) is None
    repository = tmp_path / "hub" / "models--openai--clip-vit-large-patch14"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (snapshot / "config.json").touch()
    assert weights.find(tmp_path) is None  # a download that was broken off
    (snapshot / "model.safetensors").touch()
    assert weights.find(tmp_path) == weights.find(None) == snapshot


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_command_that_fetches_puts_files_where_they_are_looked_for(
    network: Network, tmp_path: Path
) -> None:
    folder = tmp_path / "of two words"
    command = network.weights.fetch(folder)
    assert f"'{folder}/" in command
    assert network.weights.find(folder) is None


def fetch(source: Path, folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = File(url=source.as_uri()).fetch(folder)
    return subprocess.run(["sh", "-c", command], capture_output=True, check=False)


@pytest.mark.usefixtures("curl")
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    source, folder = tmp_path / "weights.pth", tmp_path / "of two words"
    source.write_bytes(b"weights")
    weights = File(url=source.as_uri())
    folder.mkdir()
    (folder / "weights.pth.part").write_bytes(b"wei")  # of a download that was broken off
    assert weights.find(folder) is None
    assert fetch(source, folder).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"weights.pth": b"weights"}
    assert fetch(tmp_path / "nowhere.pth", folder).returncode != 0
    assert not (folder / "nowhere.pth").exists()


@pytest.mark.parametrize("name", ["AlexNet", "CLIP ViT-L/14", "Mask2Former Swin-L"])
def test_networks_run_on_the_device_they_are_given(
    name: str, tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    """The device without numbers computes shapes, and refuses operands of another one and the way back."""
    torch.save(AlexNet().state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    write_clip(tmp_path)
    write_segmentation(tmp_path)
    path = BY_NAME[name].weights.find(tmp_path)
    assert path
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        list(features(BY_NAME[name], path, {"shown": pictures}, "meta"))


def test_efficientnet_lite0_runs_on_the_device_it_is_given(pictures: NDArray[np.uint8]) -> None:
    before = efficientnet_lite0(pictures)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        efficientnet_lite0(pictures, "meta")
    np.testing.assert_array_equal(efficientnet_lite0(pictures), before)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    network, path = BY_NAME["AlexNet"], tmp_path / "alexnet-owt-7be5be79.pth"
    state = AlexNet().state_dict()
    for broken, match in [
        ({name: weight for name, weight in state.items() if name != "features.3.bias"}, r"features\.3\.bias"),
        (state | {"features.3.bias": torch.zeros(7)}, "size mismatch"),
    ]:
        torch.save(broken, path)
        with pytest.raises(TrainError, match=match):
            list(features(network, path, {"shown": pictures}, "cpu"))
    for content in (b"not weights", b""):
        path.write_bytes(content)
        with pytest.raises(TrainError, match="cannot read weights of AlexNet"):
            list(features(network, path, {"shown": pictures}, "cpu"))


def test_a_transformers_model_that_lacks_weights_is_refused(
    tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    from safetensors.torch import load_file, save_file

    write_clip(tmp_path)
    network = BY_NAME["CLIP ViT-L/14"]
    path = tmp_path / "clip-vit-large-patch14"
    state = load_file(path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainError, match=r"visual_projection\.weight"):
        list(features(network, path, {"shown": pictures}, "cpu"))


def test_resizing_smooths_what_it_shrinks() -> None:
    chequers = np.indices((128, 128)).sum(axis=0) % 2 * 255
    picture = np.repeat(chequers[None, :, :, None], 3, axis=3).astype(np.uint8)
    assert resized(picture, 128, Image.Resampling.BILINEAR) is picture
    small = resized(picture, 64, Image.Resampling.BILINEAR)
    assert small.shape == (1, 64, 64, 3)
    assert np.abs(small[:, 2:-2, 2:-2].astype(int) - 127).max() <= 1
