"""Shows how presentation software tells the runtime what is on screen, where the scanner does not.

    realtime serve --source pyneal+tcp://127.0.0.1:5555 --volumes 225 --markers tcp://127.0.0.1:5557 &
    python docs/examples/presentation.py tcp://127.0.0.1:5557 < pictures.txt

Each line of the input is the volume at which a picture appears, counted from 0 by the scanner's trigger
pulses, and its PNG file. Needs pyzmq, msgspec and platformdirs, and nothing of this project. It uses the keys
that the runtime made for this user; on another machine, give the folder `presentation` from
`realtime keys keys` after the address. An ipc:// address needs no keys.

The message is described in realtime/wire.py (Marker); the runtime puts it into the run that is open.
"""

import sys
from pathlib import Path

import msgspec
import zmq
from platformdirs import user_config_path
from zmq.auth import load_certificate

PATIENCE_MS = 30_000

address, *folder = sys.argv[1:]
socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0
if address.startswith("tcp:"):
    keys = Path(folder[0]) if folder else user_config_path("realtime-dynadiff") / "keys" / "presentation"
    socket.curve_publickey, socket.curve_secretkey = load_certificate(keys / "client.key_secret")
    socket.curve_serverkey, _ = load_certificate(keys / "server.key")
socket.connect(address)

for line in sys.stdin:
    volume, picture = line.split(maxsplit=1)
    file = Path(picture.strip())
    # Here the picture would go on screen; the marker can follow it at leisure, while the window is recorded.
    marker = {
        "kind": "marker",
        "version": 1,
        "run_id": "presentation",
        "onset_volume": int(volume),
        "name": file.stem,
    }
    socket.send_multipart([msgspec.msgpack.encode(marker), file.read_bytes()])
    if not socket.poll(PATIENCE_MS):
        sys.exit(f"no answer from {address}: does the runtime run, and are these the keys it knows?")
    answer = msgspec.msgpack.decode(socket.recv_multipart()[0])
    if answer["kind"] == "refused":
        sys.exit(f"{file} at volume {volume} was refused: {answer['message']}")
    print(f"volume {volume}: {file.name}, in {answer['run_id']}", flush=True)
