"""Decodes a recorded run again, volume by volume, as a notebook would; writes each frame as a PNG.

    python docs/examples/decode_a_run.py runs/sub-01_task-demo bundles/sub-01 frames

The frames are the recorded ones bit for bit if the run was decoded on the same engine with the bundle's first
sampler, if it began with the bundle's prior, if volumes were neither registered nor resampled in time, and if
faces were shown: the runtime blurs them by default.
`realtime replay` follows a recording in all of this, and compares.
"""

import sys
from pathlib import Path

import cv2

from realtime import Bundle, Decoder, StreamingPreprocessor, open_engine, read_recorded

folder, bundle_folder, out = map(Path, sys.argv[1:])
out.mkdir(parents=True, exist_ok=True)

recorded = read_recorded(folder)
bundle, info = Bundle.open(bundle_folder), recorded.info
bundle.check_run(info.start)
decoder = Decoder(bundle, open_engine(bundle), info.seed)
stream = StreamingPreprocessor.for_bundle(bundle, info.start.n_volumes, info.start.tr_s, info.spikes)
for index, voxels in recorded.volumes():
    state, window = stream.push(index, voxels).status, stream.window()
    if state != "censored" and window is not None:
        image = decoder.decode(window[:, -decoder.spec.window.length_volumes :]).image
        cv2.imwrite(str(out / f"{index:06d}.png"), image[..., ::-1])  # OpenCV writes BGR
