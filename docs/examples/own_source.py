"""Shows how a scanner, or the program that reconstructs its volumes, sends them to the runtime.

    realtime serve --subject 1 &
    python docs/examples/own_source.py run.nii.gz tcp://127.0.0.1:5555

Here the volumes are those of a 4D NIfTI file, one every TR; replace `volumes`, and `start`, which says what
they look like, by what your scanner gives. Stopped and started again, it goes on with the first volume that
the runtime lacks. It uses the scanner's keys that the runtime made for this user. On another machine, give
the scanner's folder from `realtime keys keys` after the address. An ipc:// address needs no keys.

The messages are described in realtime/wire.py.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import zmq
from numpy.typing import NDArray

from realtime import wire
from realtime.network.key_files import load_client_keys, own_client_keys

PATIENCE_MS = 30_000

file, address, *folder = sys.argv[1:]
image = nibabel.Nifti1Image.from_filename(file)
x, y, z, n_volumes = image.shape
affine: Any = tuple(map(tuple, image.affine.tolist()))  # voxel indices to mm: to the right, to the front, up
start = wire.RunStart(
    run_id="sub-01_task-own",
    subject=1,
    tr_s=float(image.header.get_zooms()[3]),
    n_volumes=n_volumes,
    shape=(x, y, z),
    affine=affine,
    dtype="float32",
)


def volumes() -> Iterator[NDArray[Any]]:
    """Every volume [x, y, z], when the scanner has it."""
    for index in range(start.n_volumes):
        time.sleep(start.tr_s)
        yield np.asarray(image.dataobj[..., index])


def ask(message: wire.ToRuntime, buffer: bytes = b"") -> wire.ToScanner:
    """Send a message and its buffer, and wait for the runtime's answer."""
    socket.send_multipart([wire.encode(message), buffer])
    if not socket.poll(PATIENCE_MS):
        sys.exit(f"no answer from {address}: does the runtime run, and are these the keys it knows?")
    answer = wire.decode_to_scanner(socket.recv_multipart()[0])
    if isinstance(answer, wire.Refused):
        sys.exit(f"the runtime refused: {answer.message}")
    return answer


socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0
keys = load_client_keys(Path(folder[0])) if folder else own_client_keys("scanner")
if keys and address.startswith("tcp:"):
    keys.use(socket)
socket.connect(address)

accepted = ask(start)
assert isinstance(accepted, wire.RunAccepted)
held = {index for first, end in accepted.held for index in range(first, end)}
print(f"{start.run_id}: the runtime has {len(held)} of {start.n_volumes} volumes", flush=True)
for index, voxels in enumerate(volumes()):
    # Here a picture that came on screen at this volume is sent: a wire.Marker, with its PNG as the buffer.
    if index not in held:
        buffer = voxels.astype("<f4").tobytes()  # in C order
        volume = wire.Volume(run_id=start.run_id, index=index, acquired_s=(index + 1) * start.tr_s)
        ask(wire.with_checksum(volume, buffer), buffer)  # answered once the volume is in the journal
        print(f"volume {index} is recorded", flush=True)
ask(wire.RunEnd(run_id=start.run_id, reason="complete"))
print(f"{start.run_id} is closed", flush=True)
