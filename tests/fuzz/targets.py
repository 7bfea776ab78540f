"""Fuzz targets: one function of bytes for every parser of data from outside.

Data from a network: messages, replies, Pyneal's and AFNI's protocols, pictures, WebRTC offers. Files from
others: images in a watched folder, bundles, run folders, keys. A target calls the parser like the runtime
does and ignores only the errors that the parser documents. Any other exception is a finding, and so is memory
beyond ``MEMORY_BYTES`` or a call that does not return.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import aiortc.sdp
import msgspec
import numpy as np

from realtime import wire
from realtime.bundle import files as bundle_files
from realtime.bundle import spec as bundle_spec
from realtime.decoding.engines.external_weights import weight_files
from realtime.errors import BundleError, RecordError, ServeError, WireError
from realtime.events import DecoderUsed
from realtime.network import key_files
from realtime.record import (
    folder as record_folder,
)
from realtime.record import (
    format_1,
    journal,
    tables,
)
from realtime.record import (
    image as record_image,
)
from realtime.record import (
    png as record_png,
)
from realtime.record import (
    reader as record_reader,
)
from realtime.record import (
    run_json as record_run_json,
)
from realtime.record import (
    storage as record_storage,
)
from realtime.record import (
    tar as record_tar,
)
from realtime.runs import checkpoint
from realtime.sources import afni, afni_header, pyneal, zeromq
from realtime.sources.files import formats
from realtime.sources.files.series import Series
from realtime.sources.run_boundaries import Scan
from realtime.viewer import offer
from sim.errors import SimError
from sim.sender import Sender

MEMORY_BYTES = 128 * 2**20
"""More than any parser takes for the largest input that is tried, and less than one takes that believes a
header which promises a volume and brings none."""

AFFINE = ((2.0, 0.0, 0.0, -4.0), (0.0, 2.0, 0.0, -4.0), (0.0, 0.0, 2.0, -4.0), (0.0, 0.0, 0.0, 1.0))
START = wire.RunStart(
    run_id="sub-01_task-fuzz",
    subject=1,
    tr_s=1.5,
    n_volumes=100,
    shape=(4, 4, 4),
    affine=AFFINE,
    dtype="int16",
)
SHAPE = (2, 4)
"""Shape of arrays in .npy and .npz files."""
CHECKPOINT_ARRAYS = {"index": np.array(5), "rss": np.zeros(3)}
CHECKPOINT_WINDOW = np.zeros((3, 2), np.float32)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser and the exceptions that it documents."""

    run: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    max_bytes: int = 4_096
    """Longest input that is worth trying."""


class TooMuchMemoryError(Exception):
    """A parser took more than ``MEMORY_BYTES``."""


def forget_peak() -> None:
    """Reset the process's peak memory to its current memory (Linux)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


_CLEAR = Path("/proc/self/clear_refs")


def _peak_bytes() -> int:
    """Return the peak resident memory of this process, which includes C libraries."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_024)


def try_input(target: Target, data: bytes) -> None:
    """Run a target as the fuzzer and the tests do, with tracemalloc on.

    :raises TooMuchMemoryError: beside whatever the parser should not have raised
    """
    tracemalloc.clear_traces()
    traced, resident = tracemalloc.get_traced_memory()[0], _peak_bytes()
    try:
        target.run(data)
    except target.refuses as error:
        str(error).encode()  # it must be encodable for replies and logs
    taken = max(tracemalloc.get_traced_memory()[1] - traced, _peak_bytes() - resident)
    if taken > MEMORY_BYTES:
        raise TooMuchMemoryError(f"{taken / 2**20:.0f} MiB for an input of {len(data)} bytes")


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Folder for parsers that take a path; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def _file(name: str, data: bytes) -> Path:
    path = Path(_folder().name) / name
    path.write_bytes(data)
    return path


def message(data: bytes) -> None:
    """A scanner's message and what the run makes of its payload: u16 header length, header, payload."""
    n_header = 2 + int.from_bytes(data[:2], "big")
    said, payload = zeromq.parse([memoryview(data[2:n_header]), memoryview(data[n_header:])])
    assert wire.decode_to_runtime(wire.encode(said)) == said  # as it stands in the journal
    if isinstance(said, wire.Volume):
        wire.verify_checksum(said, payload)
        wire.volume_array(START, payload)
    elif isinstance(said, wire.Marker):
        record_png.check_png_structure(bytes(payload))


def reply(data: bytes) -> None:
    """A runtime's reply, to a scanner that waits for one at each stage of its run."""
    said = wire.decode_to_scanner(data)
    for replies in ((), (wire.RunAccepted(run_id=START.run_id, held=[]),)):
        sender = Sender(START, [wire.Marker(run_id=START.run_id, onset_volume=1, name="dog")], speed=1.0)
        for now_s, each in enumerate((*replies, said, said)):
            sender.poll(float(now_s))
            sender.on_reply(each, float(now_s))
            assert sender.n_held <= START.n_volumes + 2
        sender.poll(1e6)


def pyneal_message(data: bytes) -> None:
    """A greeting, or a volume's header as it begins a run."""
    if not data.startswith(b"{"):
        pyneal.greeting(memoryview(data)).encode()
        return
    said, affine, tr_s = pyneal.parse(memoryview(data))
    dtype, _ = pyneal.taken(said, memoryview(data))
    fields = msgspec.structs.asdict(START) | {
        "affine": affine,
        "tr_s": tr_s,
        "shape": said.shape,
        "dtype": dtype,
    }
    try:
        start = msgspec.convert(fields, wire.RunStart)
    except msgspec.ValidationError:
        return
    assert 0 < start.tr_s <= 60


def afni_control(data: bytes) -> None:
    """What a sender says on the control port."""
    assert 1_024 <= afni.data_port(data) <= 65_535


def afni_volumes(data: bytes) -> None:
    """What a sender says on the data port: commands, a zero byte, images, and so on for each run."""
    asyncio.set_event_loop(_loop())
    _loop().run_until_complete(_afni_volumes(data))


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _afni_volumes(data: bytes) -> None:
    reader = asyncio.StreamReader(limit=afni_header.MAX_BYTES)
    reader.feed_data(data)
    reader.feed_eof()
    with contextlib.suppress(EOFError):  # the sender has closed its connection
        async for news in afni.AfniScanner("tcp://127.0.0.1:7961", echo="combine")._runs(reader):
            if isinstance(news, Scan):
                assert len(news.payload) == np.prod(news.shape) * np.dtype(news.dtype).itemsize


def nifti(data: bytes) -> None:
    """A file in the watched folder."""
    is_packed = data.startswith(b"\x1f\x8b")
    formats.parse("run_0001.nii.gz" if is_packed else "run_0001.nii", data)


def dicom(data: bytes) -> None:
    """A file in the watched folder, and what it is part of."""
    for holds in formats.parse("0001.dcm", data):
        series = Series(tr_s=1.0, echo="combine")
        series.add(holds, "0001.dcm", 0.0, 0.0)
        series.settle(3.0)
        series.settle(6.0)


def png(data: bytes) -> None:
    """What was on screen."""
    image = record_image.decode_png(data)
    assert image.ndim == 3
    assert max(image.shape) <= record_png.MAX_EDGE_PX


def webrtc_offer(data: bytes) -> None:
    """The body of a page's offer. Peer makes an OfferError of whatever aiortc's parser raises."""
    sdp = offer.read_offer(data)
    offer.check_offer(sdp)
    try:
        aiortc.sdp.SessionDescription.parse(offer.without_candidates(sdp))
    except Exception as error:
        raise offer.OfferError from error


def a_journal(data: bytes) -> None:
    """A run's journal, as a restart and the tools that read runs take it."""
    with contextlib.suppress(RecordError):
        list(journal.read_heads(_file("volumes.journal", data)))
    list(journal.read_journal(_file("volumes.journal", data)))
    folder = _run_folder("journal")
    (folder / "volumes.journal").write_bytes(data)
    record_reader.read_recorded(folder)


def a_table(data: bytes) -> None:
    """A run's table of decodes, as it is now or as it was in format 1."""
    if data.startswith(tables.header_line()):
        rows, end = tables.read_table(_file("decoding.tsv", data))
        assert end <= len(data)
    else:
        folder = _run_folder("table")
        record_run_json.table_path(folder, START).write_bytes(data)
        _, rows = format_1.read_format_1(folder, record_run_json.read_run_file(folder))
    for row in rows:
        tables.row_frame(row, START.run_id)
        if row.frame is not None:
            assert (Path("/run") / row.frame).resolve().is_relative_to("/run/frames"), row.frame


def events(data: bytes) -> None:
    """A run's table of what was shown."""
    folder = _run_folder("events")
    record_run_json.events_path(folder, START).write_bytes(data)
    for shown in record_reader.read_recorded(folder).pictures:
        assert shown.path.resolve().is_relative_to(folder / "shown"), shown.path


def run_json(data: bytes) -> None:
    """A run's description."""
    folder = _file("run.json", data).parent
    info = record_run_json.read_run_file(folder)
    assert record_run_json.table_path(folder, info.start).parent == folder


@lru_cache
def _run_folder(name: str) -> Path:
    """With a journal and an events table that are empty."""
    folder = Path(_folder().name).resolve() / name
    folder.mkdir()
    info = record_run_json.new_run_file(
        START,
        bundle_name="tiny",
        bundle_sha256="0" * 64,
        decoders=(DecoderUsed(name="general", window_delay_volumes=8),),
        seed=0,
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(info))
    (folder / "volumes.journal").write_bytes(journal.MAGIC)
    record_run_json.events_path(folder, START).write_text("\t".join(record_folder.EVENT_COLUMNS) + "\n")
    return folder


def a_checkpoint(data: bytes) -> None:
    """The state of a run, as it is and with the checksum that it should have."""
    for content in (data, with_checksum(data)):
        with contextlib.suppress(RecordError):
            saved = checkpoint.parse(content, CHECKPOINT_ARRAYS, CHECKPOINT_WINDOW)
            assert (
                checkpoint.parse(saved.as_bytes(), CHECKPOINT_ARRAYS, CHECKPOINT_WINDOW).about == saved.about
            )


def with_checksum(data: bytes) -> bytes:
    """A checkpoint whose checksum is that of the rest."""
    at = data.find(b"\n") + 1
    rest = data[at + 4 :]
    return data[:at] + zlib.crc32(rest).to_bytes(4, "little") + rest


def sealed(data: bytes) -> None:
    """The tar in a sealed run, which anybody may have made."""
    around = Path(_folder().name) / "sealed"
    shutil.rmtree(around, ignore_errors=True)
    around.mkdir()
    with record_storage.Folder.create(around / "run") as folder:
        with contextlib.closing(record_tar.Unpacker(folder)) as unpacker:
            unpacker.take(data)
    assert [path.name for path in around.iterdir()] == ["run"]
    assert not any(path.is_symlink() for path in around.rglob("*"))


def bundle_json(data: bytes) -> None:
    """A bundle's specification."""
    spec = bundle_spec.decode_spec(data)
    assert bundle_spec.decode_spec(msgspec.json.encode(spec)) == spec


def npy(data: bytes) -> None:
    """A bundle's array; a specification may also promise one that is larger than the file."""
    path = _file("null_condition.npy", data)
    assert np.isfinite(bundle_files.read_npy(path, SHAPE)).all()


def npz(data: bytes) -> None:
    """A bundle's prior."""
    arrays = bundle_files.read_npz(_file("prior.npz", data), {"mean": SHAPE, "sd": SHAPE})
    assert {array.shape for array in arrays.values()} == {SHAPE}


def region(data: bytes) -> None:
    """A bundle's region."""
    is_packed = data.startswith(b"\x1f\x8b")
    mask, affine = bundle_files.read_mask(_file("roi.nii.gz" if is_packed else "roi.nii", data))
    assert mask.ndim == 3
    assert affine.shape == (4, 4)


def weights(data: bytes) -> None:
    """The external weight files of an ONNX graph; its engine reads the rest."""
    assert all(isinstance(name, str) for name in weight_files(_file("brain.onnx", data)))


def keys(data: bytes) -> None:
    """The secret and the public key of a folder."""
    folder = _file("server.key", data).parent
    secret = _file("client.key_secret", data)
    secret.chmod(0o600)
    repr(key_files.load_client_keys(folder))


TARGETS: dict[str, Target] = {
    "message": Target(run=message, refuses=(WireError,)),
    "reply": Target(run=reply, refuses=(WireError, SimError)),
    "pyneal": Target(run=pyneal_message, refuses=(WireError,)),
    "afni-control": Target(run=afni_control, refuses=(WireError,), max_bytes=512),
    "afni": Target(run=afni_volumes, refuses=(WireError,), max_bytes=2_048),
    "nifti": Target(run=nifti, refuses=(WireError,)),
    "dicom": Target(run=dicom, refuses=(WireError,), max_bytes=8_192),
    "png": Target(run=png, refuses=(WireError,)),
    "offer": Target(run=webrtc_offer, refuses=(offer.OfferError,), max_bytes=8_192),
    "journal": Target(run=a_journal, refuses=(RecordError,)),
    "table": Target(run=a_table, refuses=(RecordError,)),
    "events": Target(run=events, refuses=(RecordError,)),
    "run-json": Target(run=run_json, refuses=(RecordError,)),
    "checkpoint": Target(run=a_checkpoint, refuses=(RecordError,)),
    "sealed": Target(run=sealed, refuses=(RecordError,), max_bytes=8_192),
    "bundle-json": Target(run=bundle_json, refuses=(BundleError,), max_bytes=8_192),
    "npy": Target(run=npy, refuses=(BundleError,)),
    "npz": Target(run=npz, refuses=(BundleError,)),
    "roi": Target(run=region, refuses=(BundleError,)),
    "weights": Target(run=weights, refuses=(ValueError,)),
    "keys": Target(run=keys, refuses=(ServeError,), max_bytes=1_024),
}
"""Targets by the name used by ``run.py`` and the corpus."""
