"""Writes the seeds of the corpus: valid messages and files, the same in every run.

python tests/fuzz/seeds.py
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import nibabel
import numpy as np

from realtime import wire
from realtime.bundle import spec as bundle_spec
from realtime.events import DecoderUsed
from realtime.preprocessing.spikes import SpikeRule
from realtime.record import run_json
from realtime.record import tables as record_tables
from realtime.record.journal import MAGIC
from realtime.runs.checkpoint import About, Checkpoint, WaitingWindow

TESTS = Path(__file__).parent.parent
ID = "sub-01_task-fuzz"
AFFINE = ((2.0, 0.0, 0.0, -4.0), (0.0, 2.0, 0.0, -4.0), (0.0, 0.0, 2.0, -4.0), (0.0, 0.0, 0.0, 1.0))
START = wire.RunStart(
    run_id=ID, subject=1, tr_s=1.5, n_volumes=100, shape=(4, 4, 4), affine=AFFINE, dtype="int16"
)
VOXELS = np.arange(64, dtype="<i2").reshape(4, 4, 4)
PUBLIC = r"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
SECRET = r"D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
"""The pair of the example in ZeroMQ's manual."""


def png(picture: np.ndarray) -> bytes:
    """A picture [H, W] or [H, W, channels]."""
    return cv2.imencode(".png", picture)[1].tobytes()


def pictures() -> Iterator[bytes]:
    """Of every form that PNG has for pixels, a few pixels each."""
    gradient = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    yield png(gradient)
    yield png(gradient[..., 0])
    yield png(gradient.astype(np.uint16) * 1_000)
    yield png(np.dstack([gradient, gradient[..., 0]]))


def messages() -> Iterator[bytes]:
    """With a u16 that says how long the header is."""
    picture, voxels = next(pictures()), VOXELS.tobytes()
    volume = wire.Volume(run_id=ID, index=3, acquired_s=6.0)
    for message, payload in (
        (START, b""),
        (wire.with_checksum(volume, voxels), voxels),
        (volume, voxels),
        (wire.Marker(run_id=ID, onset_volume=3, name="dog"), picture),
        (wire.RunEnd(run_id=ID, reason="complete"), b""),
    ):
        header = wire.encode(message)
        yield len(header).to_bytes(2, "big") + header + payload


def replies() -> Iterator[bytes]:
    """One of each kind."""
    for message in (
        wire.RunAccepted(run_id=ID, held=[(0, 3), (5, 9)]),
        wire.Ack(run_id=ID, index=0),
        wire.MarkerAck(run_id=ID, onset_volume=1),
        wire.RunClosed(run_id=ID),
        wire.Refused(run_id=ID, code="checksum", message="send it again", index=0),
        wire.Refused(run_id="", code="no-run", message="no run is open"),
    ):
        yield wire.encode(message)


def pyneal() -> Iterator[bytes]:
    """Greeting and header."""
    yield b"hello from pynealScanner_sim"
    affine = msgspec.json.encode(AFFINE).decode()
    header = {"volIdx": 0, "dtype": "int16", "shape": [4, 4, 4], "affine": affine}
    yield msgspec.json.encode(header | {"TR": "1500"})
    yield msgspec.json.encode(header | {"TR": 1.5})


def afni_control() -> Iterator[bytes]:
    """As Dimon says it."""
    yield b"tcp:localhost:53214\ninfo"
    yield b"tcp:[::1]:53214"


def afni() -> Iterator[bytes]:
    """Commands and the images of one volume."""
    said = b"ACQUISITION_TYPE 2D+zt\nTR 1.5\nXYFOV 8 8 8\nXYMATRIX 4 4 4\nXYZAXES R-L A-P I-S\nDATUM short\n"
    images = VOXELS.tobytes()
    yield said + b"ZORDER alt\nXYZFIRST 3R 3A 3I\nBYTEORDER LSB_FIRST\0" + images
    yield said + b"ACQUISITION_TYPE 3D+t\nBYTEORDER MSB_FIRST\nNUM_CHAN 1\0" + images
    oblique = " ".join(map(str, np.ravel(AFFINE))).encode()
    yield (
        b"XYMATRIX 4 4\nZNUM 4\nXYFOV 8 0\nZDELTA 2\nZFIRST 3I\nXYZAXES RL AP IS\nDATUM byte\nZORDER seq\0"
        + images
    )
    yield said + b"DATUM float\nOBLIQUE_XFORM " + oblique + b"\0" + VOXELS.astype("<f4").tobytes()


def volumes() -> Iterator[bytes]:
    """NIfTI 1 and 2, scaled and not, packed and not."""
    plain = nibabel.Nifti1Image(VOXELS, np.array(AFFINE))
    yield plain.to_bytes()
    yield gzip.compress(plain.to_bytes(), mtime=0)
    yield nibabel.Nifti2Image(VOXELS.astype(">f4"), np.array(AFFINE)).to_bytes()
    scaled = nibabel.Nifti1Image(VOXELS[..., None], np.array(AFFINE))
    scaled.header.set_slope_inter(0.5, 10)
    scaled.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a note"))
    yield scaled.to_bytes()


def dicoms() -> Iterator[bytes]:
    """Mosaic, enhanced image, slice, without preamble, compressed: as the tests of DICOM make them."""
    where = importlib.util.spec_from_file_location("makers", TESTS / "realtime" / "serving" / "test_dicom.py")
    assert where
    assert where.loader
    makers: Any = importlib.util.module_from_spec(where)
    where.loader.exec_module(makers)
    voxels = makers.VOXELS[:4, :4, :3]
    yield makers.written(makers.mosaic(voxels))
    yield makers.written(makers.mosaic(voxels, syntax="1.2.840.10008.1.2"))
    yield makers.written(makers.enhanced(voxels))
    yield makers.written(makers.single(voxels, 1, number=2, moment=1))
    yield makers.written(makers.mosaic(voxels))[makers.dicom.MIN_BYTES :]
    for syntax in ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"):  # RLE, JPEG-LS
        packed = makers.mosaic(voxels)
        packed.compress(syntax, generate_instance_uid=False)
        yield makers.written(packed)


def regions() -> Iterator[bytes]:
    """A mask."""
    image = nibabel.Nifti1Image((VOXELS > 40).astype(np.uint8), np.array(AFFINE))
    yield gzip.compress(image.to_bytes(), mtime=0)
    yield image.to_bytes()


def journals() -> Iterator[bytes]:
    """A whole run, and one that a crash tore."""
    data = MAGIC
    for framed in messages():
        n_header = int.from_bytes(framed[:2], "big")
        head = struct.pack("<4sIQd", b"RTJ1", n_header, len(framed) - 2 - n_header, 1.7e9)
        data += head + struct.pack("<I", zlib.crc32(framed[2:], zlib.crc32(head))) + framed[2:]
    yield data
    yield data[:-5]


def tables() -> Iterator[bytes]:
    """As it is now, and the two of format 1."""
    row: dict[str, Any] = {
        "volume": 8,
        "state": "decoded",
        "frame": "frames/000008.png",
        "window_start": 3,
        "window_stop": 9,
    }
    row |= {"sampler": "ddim-4", "shown_onset": 0, "brain_ms": 1.5, "total_ms": 20.25, "decoder": "general"}
    general = record_tables.row_line(record_tables.Row(**row))
    skipped = record_tables.row_line(
        record_tables.Row(volume=9, state="skipped", reason="a newer window was ready", decoder="general")
    )
    header = record_tables.header_line()
    yield b"".join(line.rpartition(b"\t")[0] + b"\n" for line in (header, general, skipped)) + b"10\tdec"
    special = record_tables.row_line(
        record_tables.Row(**row | {"frame": "frames/000008_early.png", "decoder": "early"})
    )
    yield header + special
    yield header + general + special + skipped + b"10\tdec"


def events() -> Iterator[bytes]:
    """What was shown."""
    yield (
        b"onset\tduration\tonset_volume\tname\tstim_file\n4.5\tn/a\t3\tdog\tshown/000003.png\n"
        b'9.0\tn/a\t6\ta "cat"\tshown/000006.png\n13.5\tn/'
    )


def runs() -> Iterator[bytes]:
    """As it begins, and with all fields."""
    info = run_json.RunFile(
        start=START,
        bundle_name="tiny",
        bundle_sha256="0" * 64,
        window_delay_volumes=8,
        decoders=(DecoderUsed(name="general", window_delay_volumes=8),),
        seed=1,
        versions={"python": "3.11"},
        opened_utc="2025-01-01T00:00:00.000Z",
    )
    yield msgspec.json.encode(info)
    closed = {
        "state": "closed",
        "closed_utc": "2025-01-01T00:05:00.000Z",
        "faces": "blurred",
        "prior_from": "r",
    }
    yield msgspec.json.encode(msgspec.structs.replace(info, spikes=SpikeRule(), notes=("resumed",), **closed))


def checkpoints() -> Iterator[bytes]:
    """With and without a window that waits."""
    arrays = {"index": np.array(5), "rss": np.zeros(3)}
    about = About(
        run=bytes(32),
        journal_end=1_000,
        headers_sha256=bytes(32),
        next_index=6,
        is_trusted=True,
        open_volumes=(3, 5),
        waiting=None,
    )
    yield Checkpoint(about=about, arrays=arrays).as_bytes()
    window = WaitingWindow(volume=5, state="warming", repaired_voxels=1, preprocess_ms=0.5)
    waits = msgspec.structs.replace(about, waiting=window)
    yield Checkpoint(about=waits, arrays=arrays | {"window": np.zeros((3, 2), np.float32)}).as_bytes()


def tars() -> Iterator[bytes]:
    """Of a run folder, with a long name: GNU's, and an older one."""
    deep = f"run/{'n' * 90}"
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        tar = b""
        for name, content in (
            ("run", None),
            ("run/run.json", b"{}"),
            (deep, None),
            (f"{deep}/{'b' * 60}", b""),
        ):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            tar += member.tobuf(form) + (content or b"").ljust(512 if content else 0, b"\0")
        yield tar + bytes(1024)


def bundles() -> Iterator[bytes]:
    """A bank of two decoders."""
    tensor = bundle_spec.Tensor(name="window", dtype="float32", shape=(1, 8, "T"))
    graphs = {
        name: bundle_spec.Graph(file=f"{name}.onnx", precision="float32", inputs=(tensor,), outputs=())
        for name in ("brain", "brain-early", "denoise", "vae")
    }
    window = bundle_spec.Window(offset_volumes=3, length_volumes=6)
    files = ("roi.nii.gz", "prior.npz", "null_condition.npy", *(graph.file for graph in graphs.values()))
    spec = bundle_spec.Spec(
        format_version=1,
        name="tiny",
        subject=1,
        roi=bundle_spec.Roi(file="roi.nii.gz", n_voxels=8, shape=(4, 4, 4), affine=AFFINE),
        tr_s=1.5,
        preprocessing=bundle_spec.Preprocessing(high_pass_hz=0.008, warmup_volumes=12, prior_volumes=10.0),
        drift_prior=bundle_spec.DriftPrior(frequencies_hz=(0.002, 0.004), noise_to_drift=(0.2, 0.5)),
        latent_shape=(4, 8, 8),
        image_size_px=(32, 32),
        condition_shape=(2, 4),
        decoders=(
            bundle_spec.Decoder(name="general", graph="brain", window=window),
            bundle_spec.Decoder(name="early", graph="brain-early", window=window),
        ),
        samplers=(
            bundle_spec.Sampler(
                name="ddim-2", timesteps=(501, 1), coefficients=((0.8, 0.3, 0),) * 2, guidance=(3, 1)
            ),
        ),
        graphs=graphs,
        files=dict.fromkeys(files, "0" * 64),
        provenance=(
            bundle_spec.Stage(
                name="merged", sha256="1" * 64, made_from=("2" * 64,), parity={"max": 1e-5}, notes={}
            ),
        ),
    )
    yield msgspec.json.encode(spec)


def array() -> bytes:
    """A float32 array in .npy format."""
    file = io.BytesIO()
    np.save(file, np.arange(8, dtype="<f4").reshape(2, 4))
    return file.getvalue()


def archives() -> Iterator[bytes]:
    """Stored, and packed."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("mean.npy", "sd.npy"):
                entry = zipfile.ZipInfo(name)
                archive.writestr(entry, array(), compress_type=method)
        yield file.getvalue()


def offers() -> Iterator[bytes]:
    """What a page says, in short."""
    lines = (
        "v=0",
        "o=- 1 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0 1",
        "a=msid-semantic:WMS *",
        "m=video 9 UDP/TLS/RTP/SAVPF 96 97",
        "c=IN IP4 0.0.0.0",
        "a=recvonly",
        "a=mid:0",
        "a=rtcp:9 IN IP4 0.0.0.0",
        "a=rtcp-mux",
        "a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid",
        "a=ssrc:1 cname:page",
        "a=ssrc-group:FID 1 2",
        "a=rtpmap:96 VP8/90000",
        "a=rtcp-fb:96 nack pli",
        "a=rtpmap:97 rtx/90000",
        "a=fmtp:97 apt=96",
        "a=candidate:1 1 udp 2122 127.0.0.1 50000 typ host",
        "a=ice-ufrag:abcd",
        "a=ice-pwd:abcdefghijklmnopqrstuvwx",
        "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
        "a=setup:actpass",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        "a=mid:1",
        "a=sctp-port:5000",
        "a=max-message-size:65536",
        "a=ice-ufrag:abcd",
        "a=ice-pwd:abcdefghijklmnopqrstuvwx",
        "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
        "a=setup:actpass",
        "",
    )
    yield msgspec.json.encode({"type": "offer", "sdp": "\r\n".join(lines)})


def graphs() -> Iterator[bytes]:
    """ONNX graphs: weights within the file, beside it, and beside it for a node."""

    def field(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2, len(content))) + content

    def entry(key: bytes, value: bytes) -> bytes:
        return field(13, field(1, key) + field(2, value))

    within = field(8, b"weights") + field(9, bytes(8))
    beside = (
        field(8, b"weights") + entry(b"location", b"brain.onnx.data") + entry(b"offset", b"0") + b"\x70\1"
    )
    attribute = field(1, b"value") + field(5, beside)
    node = field(2, b"condition") + field(4, b"Constant") + field(5, attribute)
    for graph in (field(5, within), field(5, beside), field(1, node)):
        yield b"\x08\x0a" + field(7, graph)


def keys() -> Iterator[bytes]:
    """A certificate as czmq writes it."""
    text = f'# a certificate\nmetadata\ncurve\n    public-key = "{PUBLIC}"\n'
    yield (text + f'    secret-key = "{SECRET}"\n').encode()


SEEDS = {
    "message": messages,
    "reply": replies,
    "pyneal": pyneal,
    "afni-control": afni_control,
    "afni": afni,
    "nifti": volumes,
    "dicom": dicoms,
    "png": pictures,
    "offer": offers,
    "journal": journals,
    "table": tables,
    "events": events,
    "run-json": runs,
    "checkpoint": checkpoints,
    "sealed": tars,
    "bundle-json": bundles,
    "npy": lambda: iter([array()]),
    "npz": archives,
    "roi": regions,
    "weights": graphs,
    "keys": keys,
}


def main() -> None:
    """Write them into the corpus."""
    for target, seeds in SEEDS.items():
        folder = Path(__file__).parent / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (folder / f"seed-{number}").write_bytes(seed)
            sys.stdout.write(f"{target}/seed-{number}: {len(seed)} bytes\n")


if __name__ == "__main__":
    main()
