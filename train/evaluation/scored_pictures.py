"""What becomes of pictures before every metric: nothing, or what the authors' released code does.

That code upsamples the shown pictures to the decodes' 512 px, and blurs faces in the decodes, but not in the
shown pictures. Its detector is RetinaFace. Here it is the runtime's (:mod:`realtime.decoding.faces`): dlib's,
which finds fewer faces, above all none in profile. Both reduce a face to 4 x 4 patches; RetinaFace's stay
squares, the runtime's are smoothed.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from PIL import Image
from tqdm import tqdm

from realtime.decoding.faces import FaceBlur
from train.evaluation.networks.registry import resized
from train.model.sample import Pictures

BlurredFaces = Literal["none", "decoded", "both"]


class Scoring(msgspec.Struct, frozen=True, kw_only=True):
    """How pictures are prepared for the metrics; by default they are scored as they are."""

    blur_faces: BlurredFaces = "none"
    """In which pictures faces are blurred: none, the decodes (as in the authors' code), or the shown too."""
    upsample_truth: bool = False
    """Whether the shown pictures are brought to the decodes' size, bilinearly, as in the authors' code."""

    @property
    def in_words(self) -> list[str]:
        """Sentences for below a table."""
        said = []
        if self.upsample_truth:
            said.append(
                "Before every metric, the shown pictures were resized to the decodes' size (bilinear)."
            )
        if self.blur_faces != "none":
            where = "the decodes" if self.blur_faces == "decoded" else "the decodes and the shown pictures"
            said.append(
                f"Before every metric, faces in {where} were blurred. They were found by dlib's detector, "
                "not by RetinaFace as in the authors' code."
            )
        return said


def as_scored(shown: Pictures, decoded: dict[str, Pictures], scoring: Scoring) -> dict[str, Pictures]:
    """The sets of pictures ``[n, H, W, 3]`` that metrics see, by name; those shown are called ``shown``."""
    if scoring.upsample_truth:
        size_px = next(iter(decoded.values())).shape[1]
        shown = resized(shown, size_px, Image.Resampling.BILINEAR)
    sets = {"shown": shown, **decoded}
    if scoring.blur_faces == "none":
        return sets
    blur = FaceBlur()
    return {
        name: pictures
        if (name, scoring.blur_faces) == ("shown", "decoded")
        else _blurred(pictures, blur, name)
        for name, pictures in sets.items()
    }


def _blurred(pictures: Pictures, blur: FaceBlur, name: str) -> Pictures:
    return np.stack([blur(picture) for picture in tqdm(pictures, desc=f"faces, {name}", unit="picture")])
