"""Faces in a whole runtime: on the page, in publications and in the record, and in a replay."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
import skimage.data
import zmq
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import write_spec
from realtime.decoding.engines.signature import signature
from realtime.decoding.faces import FaceBlur
from realtime.record.image import decode_png
from realtime.record.reader import Recorded, read_image, read_recorded

from ...keyed import own_keys
from .conftest import Client, Scan, Served, wait_until

EDGE_PX = 128


@pytest.fixture(scope="module")
def face() -> NDArray[np.uint8]:
    size = (EDGE_PX, EDGE_PX)
    return np.asarray(cv2.resize(skimage.data.astronaut(), size, interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture(scope="module")
def face_bundle(
    make_tiny_bundle: Callable[..., Path], face: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle that decodes the same face from everything."""
    folder = make_tiny_bundle(
        tmp_path_factory.mktemp("bundle") / "face", image_size_px=(EDGE_PX, EDGE_PX), name="face"
    )
    spec = Bundle.open(folder).spec
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in tensors]
        for types in [{"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}]
        for tensors in signature(spec, "vae")
    )
    constants = [
        numpy_helper.from_array(face.astype(np.float32), "face"),
        numpy_helper.from_array(np.array(0, dtype=np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["latents"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["face", "nothing"], ["painted"]),
        helper.make_node("Cast", ["painted"], ["image"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(nodes, "vae", inputs, outputs, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        folder / "vae.onnx",
    )
    files = spec.files | {"vae.onnx": file_sha256(folder / "vae.onnx")}
    write_spec(folder, msgspec.structs.replace(spec, files=files))
    return folder


@pytest.fixture
def subscriber() -> Iterator[Callable[[str], zmq.Socket[bytes]]]:
    context = zmq.Context()

    def connect(address: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.SUB)
        socket.subscribe("frame")
        own_keys("subscriber")(socket)
        socket.connect(address)
        return socket

    yield connect
    context.destroy(linger=0)


def frames_of(recorded: Recorded) -> list[NDArray[np.uint8]]:
    return [read_image(recorded.path / row.frame) for row in recorded.rows if row.frame]


def on_page(served: Served, volume: int) -> bytes:
    """The PNG of a frame of the last run; the page, which is behind all others, may hear of it last."""
    page, token = served.found(r"page: (\S+)").split("?token=")
    asked = urllib.request.Request(f"{page}frames/{volume}.png", headers={"Authorization": f"Bearer {token}"})
    found: list[bytes] = []

    def has_frame() -> bool:
        try:
            with urllib.request.urlopen(asked) as response:
                found.append(response.read())
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        return bool(found)

    wait_until(has_frame, f"the frame of volume {volume} on the page")
    return found[0]


@pytest.mark.parametrize("shows", [False, True])
def test_what_leaves_the_decoder_is_the_same_everywhere(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    subscriber: Any,
    face_bundle: Path,
    face: NDArray[np.uint8],
    shows: bool,
) -> None:
    expected = face if shows else FaceBlur()(face)
    assert np.array_equal(expected, face) is shows
    served = serve(
        "--bundle", str(face_bundle), "--publish", "tcp://127.0.0.1:0", "--port", "0",
        *(["--show-faces"] if shows else []),
    )  # fmt: skip
    socket = subscriber(served.said.split("results published at ")[1].split()[0])
    scanner, number = connect(served.address), 0
    while not socket.poll(0):  # until the subscription has arrived
        number += 1
        scanner.send_run(scan := make_scan(run_id=f"again-{number}"))
    _, header, picture = socket.recv_multipart()
    shape = msgspec.msgpack.decode(header)["shape"]
    np.testing.assert_array_equal(np.frombuffer(picture, np.uint8).reshape(shape), expected)
    recorded = read_recorded(served.closed(scan))
    assert recorded.info.faces == ("shown" if shows else "blurred")
    assert frames_of(recorded)
    for frame in frames_of(recorded):
        np.testing.assert_array_equal(frame, expected)
    volume = next(row.volume for row in recorded.rows if row.frame)
    np.testing.assert_array_equal(decode_png(on_page(served, volume)), expected)


def test_a_run_that_goes_on_with_faces_shown_says_so(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    face_bundle: Path,
    face: NDArray[np.uint8],
) -> None:
    scan = make_scan()
    first = serve("--bundle", str(face_bundle))
    client = connect(first.address)
    client.ask(scan.start)
    for index in range(12):
        client.send_volume(scan, index)
    frames = first.run_folder(scan) / "frames"
    wait_until(lambda: frames.exists() and list(frames.iterdir()), "a frame")
    first.kill()
    second = serve("--bundle", str(face_bundle), "--show-faces")
    client = connect(second.address)
    client.ask(scan.start)
    for index in range(12, scan.n_volumes):
        client.send_volume(scan, index)
    client.ask(scan.end())
    recorded = read_recorded(second.closed(scan))
    assert "from here on faces are shown" in recorded.info.notes
    np.testing.assert_array_equal(frames_of(recorded)[-1], face)


def test_a_replay_makes_the_same_frames_again_or_with_faces_where_asked_to(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    face_bundle: Path,
    face: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    served = serve("--bundle", str(face_bundle))
    scan = make_scan()
    connect(served.address).send_run(scan)
    folder = served.closed(scan)
    assert served.interrupt() == 0
    command = [sys.executable, "-m", "realtime", "replay", str(folder)]
    command += ["--bundle", str(face_bundle), "--out", str(tmp_path / "again")]
    same = subprocess.run(command, capture_output=True, text=True)
    assert same.returncode == 0, same.stdout + same.stderr
    shown = subprocess.run([*command, "--show-faces"], capture_output=True, text=True)
    assert shown.returncode == 1, shown.stderr
    assert "faces shown, recorded blurred" in shown.stdout
    first, second = (read_recorded(path) for path in sorted((tmp_path / "again").iterdir()))
    assert (first.info.faces, second.info.faces) == ("blurred", "shown")
    np.testing.assert_array_equal(frames_of(second)[0], face)
    np.testing.assert_array_equal(frames_of(first)[0], FaceBlur()(face))
