"""The table of metrics: nothing is left out of it, and what it holds is what the formulas give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import bootstrap, sem

from train.errors import TrainError
from train.evaluation import results_table
from train.evaluation.metrics import correlation_distance, pixcorr, ssim, two_way, two_way_by_picture
from train.evaluation.networks.backbones import AlexNet, ResNet50
from train.evaluation.networks.dreamsim import FILES
from train.evaluation.networks.registry import NETWORKS, Device, Extract, Network, features, resized
from train.evaluation.results_table import METRICS, NotComputed, Row, Score, Seen, as_markdown, see

from .compared import compare
from .test_networks import write_clip

pytestmark = pytest.mark.usefixtures("offline")

PAPER = (
    "SSIM",
    "PixCorr",
    "AlexNet(2)",
    "AlexNet(5)",
    "CLIP",
    "Inception",
    "EffNet",
    "SwAV",
    "mIoU",
    "DreamSim",
)
SWAV = "swav_800ep_pretrain.pth.tar"
EVERYWHERE = {
    "SSIM",
    "PixCorr",
    *(f"{name}{way}" for name in ("EffNet-Lite0", "HOG", "Pixels") for way in ("", " by picture")),
}


@pytest.fixture(scope="module")
def decoded(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures disturbed enough that some are taken for others."""
    noise = np.random.default_rng(1).normal(0, 120, size=pictures.shape)
    return np.clip(0.4 * pictures + 0.6 * np.roll(pictures, 1, axis=0) + noise, 0, 255).astype(np.uint8)


class Nowhere:
    """Weights that are in no folder and no cache."""

    def find(self, folder: Path | None) -> Path | None:
        return None

    def fetch(self, folder: Path) -> str:
        return "fetch it"


WITHOUT_WEIGHTS = tuple(replace(network, weights=Nowhere()) for network in NETWORKS)


def score(shown: NDArray[np.uint8], decoded: NDArray[np.uint8], networks: Path | None) -> Row:
    seen = see({"shown": shown, "decoded": decoded}, networks)
    return compare(seen["shown"], seen["decoded"])


def scores(row: Row) -> dict[str, Score]:
    """What was computed, which is all that needs no network."""
    computed = {name: cell for name, cell in row.items() if isinstance(cell, Score)}
    assert computed.keys() == EVERYWHERE
    return computed


@pytest.fixture(scope="module")
def unaided(pictures: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> dict[str, Seen]:
    """Seen without any network, wherever this machine may keep some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_table, "NETWORKS", WITHOUT_WEIGHTS)
        return see({"shown": pictures, "decoded": decoded}, None)


def test_the_papers_ten_come_first_in_its_order() -> None:
    named = [metric.name for metric in METRICS]
    by_decode = [name for name in named if not name.endswith(" by picture")]
    assert tuple(by_decode)[:10] == PAPER
    for metric in METRICS:
        if metric.chance is not None and metric.name in by_decode:
            assert metric.heading == f"{metric.name} by decode"
            assert named[named.index(metric.name) + 1] == f"{metric.name} by picture"
    lower = {metric.name for metric in METRICS if metric.better == "lower"}
    assert lower == {"EffNet", "SwAV", "DreamSim"}
    kinds = {kind for network in NETWORKS for kind in network.kinds}
    assert kinds <= {metric.kind for metric in METRICS}


def test_without_networks_all_metrics_stay_in_the_table_with_what_they_need(
    tmp_path: Path, pictures: NDArray[np.uint8], decoded: NDArray[np.uint8]
) -> None:
    folder = tmp_path / "networks"
    row = score(pictures, decoded, folder)
    assert list(row) == [metric.name for metric in METRICS]
    assert {name for name, cell in row.items() if isinstance(cell, Score)} == EVERYWHERE
    for metric in METRICS:
        cell = row[metric.name]
        if isinstance(cell, NotComputed):
            (network,) = [one for one in NETWORKS if metric.kind in one.kinds]
            assert cell.needs == network.weights.fetch(folder)
    nameless = score(pictures[:2], decoded[:2], None)["CLIP"]
    assert isinstance(nameless, NotComputed)
    assert nameless.needs == (
        "hf download openai/clip-vit-large-patch14 config.json model.safetensors "
        "--local-dir networks/clip-vit-large-patch14"
    )


def test_the_same_pictures_score_perfectly(unaided: dict[str, Seen]) -> None:
    for cell in scores(compare(unaided["shown"], unaided["shown"])).values():
        assert cell.value == pytest.approx(1.0)
        assert cell.standard_error == pytest.approx(0, abs=1e-9)


def test_values_errors_and_intervals_are_over_trials(
    unaided: dict[str, Seen], pictures: NDArray[np.uint8], decoded: NDArray[np.uint8]
) -> None:
    row = compare(unaided["shown"], unaided["decoded"], seed=3)
    large = [resized(those, 425, Image.Resampling.BICUBIC) for those in (pictures, decoded)]
    flat = [those.reshape(len(those), -1).astype(np.float64) for those in (pictures, decoded)]
    expected = {"SSIM": ssim(*large), "PixCorr": pixcorr(*large), "Pixels": two_way(*flat)}
    expected["Pixels by picture"] = two_way_by_picture(*flat)
    for name, values in expected.items():
        cell = scores(row)[name]
        assert cell.value == pytest.approx(values.mean(), rel=1e-9)
        assert cell.standard_error == pytest.approx(sem(values), rel=1e-9)
        theirs = bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
        ).confidence_interval
        assert (cell.low, cell.high) == pytest.approx(theirs, abs=0.1 * (theirs.high - theirs.low))
        assert cell.low < cell.value < cell.high
        assert cell.n_trials == len(pictures)
    assert row == compare(unaided["shown"], unaided["decoded"], seed=3)
    assert row != compare(unaided["shown"], unaided["decoded"], seed=4)


def test_trials_of_one_picture_are_drawn_together(unaided: dict[str, Seen]) -> None:
    shown, decoded = unaided["shown"], unaided["decoded"]
    alone = scores(compare(shown, decoded))["Pixels"]
    half = np.arange(len(shown.features["pictures"])) // 2
    paired = scores(compare(shown, decoded, half))["Pixels"]
    assert paired.value == alone.value
    assert (paired.low, paired.high) != (alone.low, alone.high)
    assert paired.standard_error != alone.standard_error


def test_a_reordered_set_is_the_set_of_reordered_pictures(
    unaided: dict[str, Seen], decoded: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_table, "NETWORKS", WITHOUT_WEIGHTS)
    order = np.random.default_rng(2).permutation(len(decoded))
    floor = scores(compare(unaided["shown"], unaided["decoded"].reordered(order)))
    again = see({"floor": decoded[order]}, None)["floor"]
    for name, cell in scores(compare(unaided["shown"], again)).items():
        assert floor[name].value == pytest.approx(cell.value, abs=1e-6)
    pixels = floor["Pixels"]
    assert pixels.low < 0.5 < pixels.high


def counting(network: Network, loads: list[str]) -> Network:
    def load(path: Path, device: Device) -> Extract:
        loads.append(network.name)
        return network.load(path, device)

    return replace(network, load=load)


def test_networks_that_are_there_are_loaded_once_and_score(
    tmp_path: Path, pictures: NDArray[np.uint8], decoded: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.save(AlexNet().state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    swav = {f"module.{name}": weight for name, weight in ResNet50().state_dict().items()}
    torch.save(swav, tmp_path / SWAV)
    loads: list[str] = []
    monkeypatch.setattr(results_table, "NETWORKS", tuple(counting(network, loads) for network in NETWORKS))
    shown, few = pictures[:6], decoded[:6]
    seen = see({"shown": shown, "decoded": few, "again": few}, tmp_path)
    assert loads == ["AlexNet", "SwAV ResNet-50"]
    row = compare(seen["shown"], seen["decoded"])
    computed = {name for name, cell in row.items() if isinstance(cell, Score)}
    alexnet = {f"AlexNet({layer}){way}" for layer in (2, 5) for way in ("", " by picture")}
    assert computed == EVERYWHERE | alexnet | {"SwAV"}
    assert row == compare(seen["shown"], seen["again"])
    formulas: dict[str, Callable[..., NDArray[np.float64]]] = {
        "alexnet_2": two_way,
        "alexnet_5": two_way,
        "swav": correlation_distance,
    }
    for network in NETWORKS:
        if network.name not in loads:
            continue
        path = network.weights.find(tmp_path)
        assert path
        sets = {"a": shown, "b": few}
        found = {(name, kind): rows for name, kind, rows in features(network, path, sets, "cpu")}
        for kind in network.kinds:
            metric = next(one for one in METRICS if one.kind == kind)
            cell = row[metric.name]
            assert isinstance(cell, Score)
            expected = formulas[kind](found["a", kind], found["b", kind]).mean()
            assert cell.value == pytest.approx(expected, rel=1e-6)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_of_a_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def a_page(path: Path) -> None:
    path.write_text("<html><title>404 Not Found</title></html>")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, half_of_a_header, a_page, nothing])
def test_damaged_weights_cost_their_own_metrics_alone(
    damage: Callable[[Path], None], tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    alexnet = tmp_path / "alexnet-owt-7be5be79.pth"
    clip = tmp_path / "clip-vit-large-patch14"
    torch.save(AlexNet().state_dict(), alexnet)
    write_clip(tmp_path)
    dreamsim = tmp_path / "dreamsim"
    for name in FILES:
        (dreamsim / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(alexnet, dreamsim / name)
        damage(dreamsim / name)
    torch.save({f"module.{name}": each for name, each in ResNet50().state_dict().items()}, tmp_path / SWAV)
    damage(alexnet)
    damage(clip / "model.safetensors")
    seen = see({"shown": pictures[:3]}, tmp_path)["shown"]
    row = compare(seen, seen)
    assert {name for name, cell in row.items() if isinstance(cell, Score)} == EVERYWHERE | {"SwAV"}
    lines = as_markdown({"offline": row}).splitlines()
    fetch = "`table.json` has the commands that fetch them"
    for names, path in [("AlexNet(2), AlexNet(5)", alexnet), ("CLIP", clip), ("DreamSim", dreamsim)]:
        assert f"- Not computed, since `{path}` is damaged: {names}; remove it, {fetch}" in lines
    absent = "Inception, EffNet, mIoU"
    assert f"- Not computed, since their networks are not on this machine: {absent}; {fetch}" in lines


def test_decoded_pictures_may_have_another_size(
    pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_table, "NETWORKS", WITHOUT_WEIGHTS)
    larger = resized(pictures, 128, Image.Resampling.BICUBIC)
    for name, cell in scores(score(pictures, larger, None)).items():
        assert cell.value > 0.9, name


def test_the_markdown_names_every_metric_and_what_is_missing(unaided: dict[str, Seen]) -> None:
    full = compare(unaided["shown"], unaided["decoded"])
    full = {name: cell for name, cell in full.items() if isinstance(cell, Score)}
    clip = NotComputed(needs="hf download clip")
    alexnet = NotComputed(needs="curl alexnet")
    row = full | {"AlexNet(5)": alexnet, "CLIP": clip, "CLIP by picture": clip}
    pixels = Score(value=0.9134, standard_error=0.01, low=0.8919, high=0.93, n_trials=24)
    row |= {"Pixels": pixels, "SwAV": replace_value(pixels, 0.355)}
    text = as_markdown({"offline": row, "floor": row | {"SwAV": alexnet}}, ["Found on disk: all."])
    lines = text.splitlines()
    assert lines[0] == "| metric | better | chance | offline | floor |"
    body = [line for line in lines[2:] if line.startswith("|")]
    headings = [m.heading for m in METRICS if isinstance(row.get(m.name), Score)]
    assert [line.split(" | ")[0].removeprefix("| ") for line in body] == headings
    assert "- Found on disk: all." in lines
    assert any("by decode: each decode against all pictures" in line for line in lines)
    assert "| Pixels by decode | higher | 50.0 % | 91.3 % [89.2, 93.0] | 91.3 % [89.2, 93.0] |" in lines
    assert "| SwAV | lower |  | 0.35 [0.89, 0.93] | not computed |" in lines
    assert [line for line in lines if "Not computed" in line] == [
        "- Not computed, since their networks are not on this machine: AlexNet(5), CLIP, SwAV; "
        "`table.json` has the commands that fetch them"
    ]
    assert "curl" not in text
    assert "mIoU:" not in text
    assert "- mIoU: classes of the true map" in as_markdown({"offline": row | {"mIoU": pixels}})


def test_a_row_of_an_earlier_version_has_one_direction(unaided: dict[str, Seen]) -> None:
    now = compare(unaided["shown"], unaided["decoded"])
    earlier = {name: cell for name, cell in now.items() if not name.endswith(" by picture")}
    assert "by picture |" not in as_markdown({"then": earlier})
    both = as_markdown({"then": earlier, "now": now})
    assert "| Pixels by picture | higher | 50.0 % | not measured | " in both


def replace_value(cell: Score, value: float) -> Score:
    return msgspec.structs.replace(cell, value=value)


def test_a_row_is_json(unaided: dict[str, Seen]) -> None:
    row = compare(unaided["shown"], unaided["decoded"]) | {"CLIP": NotComputed(needs="this")}
    back = msgspec.json.decode(msgspec.json.encode(row))
    assert back["CLIP"] == {"needs": "this"}
    assert set(back["SSIM"]) == {"value", "standard_error", "low", "high", "n_trials"}


@pytest.mark.parametrize(("n_shown", "n_decoded"), [(3, 2), (1, 1), (0, 0)])
def test_trials_that_do_not_pair_are_refused(n_shown: int, n_decoded: int, unaided: dict[str, Seen]) -> None:
    shown, decoded = (unaided["shown"].reordered(np.arange(n)) for n in (n_shown, n_decoded))
    with pytest.raises(TrainError, match=f"got {n_decoded} and {n_shown}"):
        compare(shown, decoded)


def test_a_network_that_saw_only_one_of_two_sets_scores_neither(unaided: dict[str, Seen]) -> None:
    other = unaided["decoded"]
    swav = replace(
        other,
        features=other.features | {"swav": np.ones((len(other.features["pixels"]), 4))},
        missing={kind: needs for kind, needs in other.missing.items() if kind != "swav"},
    )
    for pair in ((unaided["shown"], swav), (swav, unaided["shown"])):
        assert compare(*pair)["SwAV"] == NotComputed(needs="fetch it")
