"""Shows how a program, such as presentation software, reads the decoded frames as they are made.

    realtime serve --publish tcp://127.0.0.1:5556 &
    python docs/examples/subscriber.py tcp://127.0.0.1:5556

It ends with the first run of which it saw a frame. A bank sends a frame for each of its decoders: `decoder`
names it, `shown_onset` the picture. Needs pyzmq, msgspec, numpy and platformdirs, nothing of this project. It
uses the keys that the runtime made for this user; an ipc:// address needs none. On another machine, with keys
from `realtime keys keys --subscriber screen`:

    python docs/examples/subscriber.py tcp://192.0.2.7:5556 keys/screen

The messages are described in realtime/network/publish.py.
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
import zmq
from platformdirs import user_config_path
from zmq.auth import load_certificate

address, *folder = sys.argv[1:]
socket = zmq.Context().socket(zmq.SUB)
if address.startswith("tcp:"):
    keys = Path(folder[0]) if folder else user_config_path("realtime-dynadiff") / "keys" / "subscriber"
    socket.curve_publickey, socket.curve_secretkey = load_certificate(keys / "client.key_secret")
    socket.curve_serverkey, _ = load_certificate(keys / "server.key")
for wanted in ("frame", "run_start", "run_end"):
    socket.subscribe(wanted)
socket.connect(address)
print(f"listening to {address}", flush=True)
next_of: dict[bytes, int] = {}  # every topic counts its own messages

while True:
    topic, encoded, picture = socket.recv_multipart()
    header = msgspec.msgpack.decode(encoded)
    n_missed = header["sequence"] - next_of.get(topic, header["sequence"])
    next_of[topic] = header["sequence"] + 1
    if n_missed > 0:  # below 0: the runtime was started again
        print(f"missed {n_missed} of {topic.decode()}: this program reads too slowly", flush=True)
    if topic == b"run_start":
        print(f"{header['run_id']} begins: {header['planned']} volumes, one every {header['tr_s']:.2f} s")
    elif topic == b"frame":
        image = np.frombuffer(picture, dtype=header["dtype"]).reshape(header["shape"])
        # Here `image` would go on screen, or into a network that scores it.
        height_px, width_px, _ = image.shape
        print(
            f"volume {header['volume']} by {header['decoder']} ({header['status']}): "
            f"{width_px} x {height_px} px, mean {image.mean():.1f}, "
            f"{header['latency_ms']['total']:.0f} ms after its last byte",
            flush=True,
        )
    else:
        print(f"{header['run_id']} has ended: {header['counts']['decoded']} trusted frames", flush=True)
        if b"frame" in next_of:
            break
