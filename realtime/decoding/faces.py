"""Blurs faces in decoded pictures before they leave the decoder.

Stimuli show people, so a decoded picture can resemble a person; the paper's release promises blurred faces.
Blurring is therefore the default for the page, the subscribers and the recorded frames. The journal keeps the
volumes, from which ``realtime replay`` decodes the same frames again, or unblurred ones with
``--show-faces``.

The detector is dlib's frontal face detector (histograms of oriented gradients, five views; King 2009,
"Dlib-ml"). Its weights are part of the library. It is deterministic: one thread, no random numbers. A picture
of 512 px takes about 30 ms on one core and does not block other threads; reported times count it under
``vae``. Alternatives in Python were rejected: OpenCV 5 no longer ships cascades, and its neural detector's
weights must be downloaded, like MediaPipe's since 1.0; the cascade in scikit-image takes forty times as long
and has more false positives. dlib is published as source that compiles for many minutes; ``dlib-bin`` is the
same source compiled.

Limits: the detector finds upright faces seen from the front or slightly turned. It misses profiles, inverted
faces and half covered ones, and faces narrower than a sixth of the picture or than 20 px, which are too small
to identify a person. It has false positives: one picture in 150 of the demo's, a panda.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

SEARCH_PX = 512
"""Pictures are resized to this long side for the search; the detector finds faces from 80 px wide there."""
LARGEST_MAGNIFICATION = 4.0
"""Limit of the enlargement, so that faces narrower than 20 px are not searched for."""
MARGIN = 0.3
"""Share of a box's size added on each side: the detector's boxes end at brows, cheeks and chin."""
KEPT_PX = 4
"""A face is reduced to this many pixels per side and enlarged again: colours remain, features do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Half-open ranges of rows and columns within the picture."""

    top: int
    bottom: int
    left: int
    right: int


class FaceBlur:
    """Blurs faces in pictures, RGB uint8 ``[H, W, 3]``; deterministic."""

    def __init__(self) -> None:
        self._detector = dlib.get_frontal_face_detector()

    def __call__(self, image_hw3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the picture with its faces blurred, or the same array if it has none."""
        boxes = self.find(image_hw3)
        if not boxes:
            return image_hw3
        blurred = image_hw3.copy()
        for box in boxes:
            face = blurred[box.top : box.bottom, box.left : box.right]
            patches = cv2.resize(face, (KEPT_PX, KEPT_PX), interpolation=cv2.INTER_AREA)
            face[:] = cv2.resize(patches, (face.shape[1], face.shape[0]), interpolation=cv2.INTER_LINEAR)
        return blurred

    def find(self, image_hw3: NDArray[np.uint8]) -> list[Box]:
        """Return the boxes of all faces, each enlarged by the margin."""
        height, width = image_hw3.shape[:2]
        scale = min(LARGEST_MAGNIFICATION, SEARCH_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        searched = np.ascontiguousarray(cv2.resize(image_hw3, size, interpolation=interpolation), np.uint8)
        found = self._detector(searched, 0)
        boxes = [_box(face, height / size[1], width / size[0], height, width) for face in found]
        return sorted({box for box in boxes if box.top < box.bottom and box.left < box.right}, key=repr)


def _box(face: dlib.rectangle, rows: float, columns: float, height: int, width: int) -> Box:
    """Convert a rectangle of the searched picture to a box with margin in the original picture."""
    margin_y, margin_x = MARGIN * face.height(), MARGIN * face.width()
    return Box(
        top=max(0, int((face.top() - margin_y) * rows)),
        bottom=min(height, int((face.bottom() + margin_y) * rows) + 1),
        left=max(0, int((face.left() - margin_x) * columns)),
        right=min(width, int((face.right() + margin_x) * columns) + 1),
    )
