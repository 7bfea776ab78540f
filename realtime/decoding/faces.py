"""Faces in decoded pictures are made unrecognisable before a picture leaves the decoder.

Pictures people look at show people, and what is decoded can look like somebody; the paper's release promises
blurred faces. So they are blurred by default, and that is what all the rest gets: page, subscribers and the
recorded frames. The journal keeps the volumes, from which ``realtime replay`` makes the same frames
again, or with ``--show-faces`` those without the blur.

The detector is dlib's frontal one (histograms of oriented gradients, five views; King 2009, "Dlib-ml"). Its
weights are part of the library, which is maintained; it is one thread without a random number, so that the
same picture gives the same boxes every time. A picture of 512 px takes it some 30 ms of one core, and other
threads run meanwhile; that counts as part of making the picture (``vae``) wherever times are told. What else
there is for Python, and why not: OpenCV 5 ships no cascades any more, and its neural detector's weights must
be fetched; so must MediaPipe's since 1.0; scikit-image ships a cascade whose search takes forty times as long
and finds more that is no face. dlib itself is published as source, which compiles for many minutes;
``dlib-bin`` is the same source compiled.

What it does not do: it finds upright faces seen from the front or turned a little. Profiles, faces upside
down and half covered ones stay as they are, and so do faces narrower than a sixth of the picture or than
20 px, which hold too little to know somebody by. Now and then it blurs a patch that is no face: in the demo's
world one picture in 150, a panda.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

SEARCH_PX = 512
"""Long side at which pictures are searched; the detector's smallest face is 80 px wide there."""
LARGEST_MAGNIFICATION = 4.0
"""Beyond, a face of less than 20 px of the picture would be looked for."""
MARGIN = 0.3
"""Of a box's size, added on every side: the detector's boxes end at brows, cheeks and chin."""
KEPT_PX = 4
"""A face becomes this many patches in each direction, smoothly joined: colour remains, features do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Half-open ranges of rows and columns, within the picture."""

    top: int
    bottom: int
    left: int
    right: int


class FaceBlur:
    """Blurs faces in pictures, RGB uint8 ``[H, W, 3]``; the same picture always becomes the same."""

    def __init__(self) -> None:
        self._detector = dlib.get_frontal_face_detector()

    def __call__(self, image_hw3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture with its faces blurred; the same array where there is none."""
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
        """Where faces are, each with a margin."""
        height, width = image_hw3.shape[:2]
        scale = min(LARGEST_MAGNIFICATION, SEARCH_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        searched = np.ascontiguousarray(cv2.resize(image_hw3, size, interpolation=interpolation), np.uint8)
        found = self._detector(searched, 0)
        boxes = [_box(face, height / size[1], width / size[0], height, width) for face in found]
        return sorted({box for box in boxes if box.top < box.bottom and box.left < box.right}, key=repr)


def _box(face: dlib.rectangle, rows: float, columns: float, height: int, width: int) -> Box:
    """A found rectangle with its margin, in the picture's own pixels."""
    margin_y, margin_x = MARGIN * face.height(), MARGIN * face.width()
    return Box(
        top=max(0, int((face.top() - margin_y) * rows)),
        bottom=min(height, int((face.bottom() + margin_y) * rows) + 1),
        left=max(0, int((face.left() - margin_x) * columns)),
        right=min(width, int((face.right() + margin_x) * columns) + 1),
    )
