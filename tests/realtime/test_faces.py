"""Faces are blurred, tested on photographs of real faces that scikit-image ships."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.decoding.faces import Box, FaceBlur

CENTRE = (0.23, 0.43)
"""Box of the astronaut's face, as shares of the picture's height and width."""


@pytest.fixture(scope="module")
def blur() -> FaceBlur:
    return FaceBlur()


def astronaut(edge_px: int) -> NDArray[np.uint8]:
    size = (edge_px, edge_px)
    return np.asarray(cv2.resize(skimage.data.astronaut(), size, interpolation=cv2.INTER_AREA), np.uint8)


def has(box: Box, row: float, column: float) -> bool:
    return box.top <= row < box.bottom and box.left <= column < box.right


def detail(image: NDArray[np.uint8]) -> float:
    """Energy of edges, which facial features consist of."""
    return float(np.square(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F)).mean())


@pytest.mark.parametrize("edge_px", [128, 256, 512, 1024])
def test_a_face_becomes_a_smooth_patch_and_nothing_else_changes(blur: FaceBlur, edge_px: int) -> None:
    image = astronaut(edge_px)
    before = image.copy()
    blurred = blur(image)
    [face] = [box for box in blur.find(image) if has(box, CENTRE[0] * edge_px, CENTRE[1] * edge_px)]
    np.testing.assert_array_equal(image, before)
    outside = np.ones(image.shape[:2], bool)
    for box in blur.find(image):
        outside[box.top : box.bottom, box.left : box.right] = False
    assert outside.mean() > 0.7
    np.testing.assert_array_equal(blurred[outside], image[outside])
    inner = slice(face.top + 4, face.bottom - 4), slice(face.left + 4, face.right - 4)
    assert detail(blurred[inner]) < 0.05 * detail(image[inner])
    assert not [box for box in blur.find(blurred) if has(box, CENTRE[0] * edge_px, CENTRE[1] * edge_px)]


def test_most_faces_of_a_hundred_photographs_are_found_and_no_face_where_there_is_none(
    blur: FaceBlur,
) -> None:
    """Labeled Faces in the Wild, 25 px: the first hundred are faces, the others patches of backgrounds."""
    patches = (255 * skimage.data.lfw_subset()).astype(np.uint8)
    found = []
    for patch in patches:
        framed = cv2.copyMakeBorder(patch, 20, 20, 20, 20, cv2.BORDER_REPLICATE)
        found.append(bool(blur.find(np.repeat(framed[:, :, np.newaxis], 3, axis=2))))
    assert sum(found[:100]) >= 90
    assert sum(found[100:]) == 0


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket"])
def test_a_picture_without_a_face_is_left_as_it_is(blur: FaceBlur, name: str) -> None:
    image = np.ascontiguousarray(getattr(skimage.data, name)())
    assert blur(image) is image


def test_faces_too_small_to_identify_are_not_searched(blur: FaceBlur) -> None:
    image = astronaut(48)  # the face is 10 px wide
    assert blur(image) is image


def test_blurring_is_the_same_in_every_process(blur: FaceBlur) -> None:
    code = (
        "import hashlib, skimage.data; from realtime.decoding.faces import FaceBlur\n"
        "print(hashlib.sha256(FaceBlur()(skimage.data.astronaut()).tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(blur(skimage.data.astronaut()).tobytes()).hexdigest()


@settings(max_examples=20)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 99))
def test_any_picture_keeps_its_shape(blur: FaceBlur, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    blurred = blur(image)
    assert (blurred.shape, blurred.dtype) == (image.shape, image.dtype)
