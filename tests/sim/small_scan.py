"""A run of a few small volumes on an oblique grid, and what it is sent through in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pydicom
from pynetdicom import AE, AllStoragePresentationContexts, evt

from realtime import wire
from sim.delivery import Delivery, open_export
from sim.head_motion import rigid
from sim.send_files import DICOM_FORMATS

N_VOLUMES = 6
SHAPE = (6, 7, 5)
OBLIQUE = rigid((4.0, -8.0, 20.0, 0.2, -0.1, 0.3)) @ np.diag([1.5, 2.0, 3.0, 1.0])
ROWS: wire.Affine = msgspec.convert(OBLIQUE.tolist(), wire.Affine)
DICOM = list(DICOM_FORMATS)


class SmallScan:
    """A run of a few small volumes on an oblique grid."""

    def __init__(
        self, dtype: str = "int16", affine: np.ndarray = OBLIQUE, run_id: str = "task-x_run-03"
    ) -> None:
        rng = np.random.default_rng(1)
        self.voxels = rng.integers(0, 4_000, (N_VOLUMES, *SHAPE)).astype(dtype)
        self.start = wire.RunStart(
            run_id=run_id,
            subject=1,
            tr_s=1.5,
            n_volumes=N_VOLUMES,
            shape=SHAPE,
            affine=msgspec.convert(affine.tolist(), wire.Affine),
            dtype=dtype,  # type: ignore[arg-type]
        )

    def volume(self, index: int) -> bytes:
        return bytes(self.voxels[index].tobytes())

    def picture_png(self, onset_volume: int) -> bytes:
        raise AssertionError


class VirtualTime:
    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def silent(line: str) -> None:
    """Nobody reads what the scanner says."""


def deliver(address: str, scan: SmallScan | None = None, speed: float = 1e6) -> Delivery:
    scan = scan or SmallScan()
    delivery = Delivery(scan, open_export(address, scan.start, silent), speed=speed)
    assert delivery.run()
    return delivery


@contextmanager
def dicom_node(status: int = 0x0000, title: str = "NODE") -> Iterator[tuple[int, list[pydicom.Dataset]]]:
    """A node that any DICOM sender could use: its port, and what was stored."""
    stored: list[pydicom.Dataset] = []

    def on_store(event: Any) -> pydicom.Dataset:
        stored.append(event.dataset)
        answer = pydicom.Dataset()
        answer.Status = status
        if status:
            answer.ErrorComment = "expected MR images"
        return answer

    entity = AE(title)
    entity.require_called_aet = True
    entity.supported_contexts = AllStoragePresentationContexts
    server: Any = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        yield server.server_address[1], stored
    finally:
        server.shutdown()
