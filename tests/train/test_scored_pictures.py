"""What becomes of pictures before they are scored, on a photograph of a real face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut, coffee

from train.evaluation.scored_pictures import BlurredFaces, Scoring, as_scored

FACE = (slice(60, 160), slice(180, 265))
"""Rows and columns of the astronaut's face, 512 px."""


@pytest.fixture(scope="module")
def photographs() -> NDArray[np.uint8]:
    """A person and a cup of coffee, ``[2, 512, 512, 3]``."""
    cup = cv2.resize(coffee(), (512, 512), interpolation=cv2.INTER_AREA)
    return np.stack([astronaut(), cup]).astype(np.uint8)


@pytest.mark.parametrize(
    ("blur_faces", "blurred"),
    [("none", set()), ("decoded", {"offline", "ceiling"}), ("both", {"shown", "offline", "ceiling"})],
)
def test_faces_are_blurred_where_it_says(
    photographs: NDArray[np.uint8], blur_faces: BlurredFaces, blurred: set[str]
) -> None:
    decoded = {"offline": photographs, "ceiling": photographs}
    sets = as_scored(photographs, decoded, Scoring(blur_faces=blur_faces))
    assert list(sets) == ["shown", "offline", "ceiling"]
    for name, (person, cup) in sets.items():
        assert np.array_equal(cup, photographs[1]), "nothing else changes"
        assert np.array_equal(person[250:], photographs[0, 250:])
        detail = [
            float(np.abs(np.diff(one[FACE].astype(int), axis=0)).mean()) for one in (person, photographs[0])
        ]
        assert (detail[0] < detail[1] / 3) == (name in blurred)
        assert np.array_equal(person, photographs[0]) == (name not in blurred)


def test_the_truth_is_upsampled_bilinearly_as_pillow_does(photographs: NDArray[np.uint8]) -> None:
    shown = np.stack([np.asarray(Image.fromarray(one).resize((425, 425))) for one in photographs])
    as_it_is = as_scored(shown, {"offline": photographs}, Scoring())
    assert as_it_is["shown"] is shown
    larger = as_scored(shown, {"offline": photographs}, Scoring(upsample_truth=True))
    expected = [Image.fromarray(one).resize((512, 512), Image.Resampling.BILINEAR) for one in shown]
    assert np.array_equal(larger["shown"], np.stack([np.asarray(one) for one in expected]))
    assert larger["offline"] is photographs


def test_a_table_says_what_became_of_the_pictures() -> None:
    assert Scoring().in_words == []
    said = " ".join(Scoring(blur_faces="both", upsample_truth=True).in_words)
    assert "bilinear" in said
    assert "dlib's detector, not by RetinaFace" in said
