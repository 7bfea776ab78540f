"""Attacks a runtime while it records, and measures what the journal of its run notices.

    python benchmarks/attacks.py --out docs/results/attacks.json
    python benchmarks/attacks.py --attack connections --seconds 10

Two runtimes record the same run side by side on this machine; one is attacked. In the journal of each, the
gap between two volumes beyond the scanner's pace is measured by the time that the volume was received and by
the growth of the file. The runtime beside shows what the load of this machine does to a scanner and a runtime
that nobody attacks. Afterwards both runs must be complete. ``nothing`` attacks neither: how much two runs
differ. The attacker's process has the lowest priority: it stands for another machine, and should take the
runtime's attention, not its cores.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import zmq
from kills import RUN_ID, Trial, check
from latency import quantiles
from machine import machine
from runtime import PATIENCE_S, start

from nsd import TR_S, Layout, Run
from realtime import wire
from realtime.bundle.locate import demo_data
from realtime.network.key_files import load_client_keys
from realtime.record.journal import read_journal

RUN = 10
CONNECTIONS, OPENING, THREADS = 1500, 32, 8
OPEN_FILES = 1024
"""A runtime may have so many files open: what systems allow by default."""
BEFORE_S, AFTER_S = 5.0, 10.0
"""The run goes on for so long before and after an attack."""
LOWEST = 19
"""Of priorities (nice)."""
LIMIT_MS = 50.0
"""By how much the largest gap may exceed that of the runtime beside."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an attacker knows of a runtime."""

    address: str
    url: str
    run_id: str
    keys: Path
    """A scanner's folder: the attacker has a valid key. Where there is none, the runtime needs none."""
    until_s: float
    """When the attack ends, by this machine's clock."""

    @property
    def is_on(self) -> bool:
        """Whether the attack goes on."""
        return time.time() < self.until_s


def allow_open_files(number: int) -> None:
    """Set how many files this process, and those that it starts, may have open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def nothing(target: Target) -> dict[str, int]:
    """Wait."""
    time.sleep(max(0.0, target.until_s - time.time()))
    return {}


def connections(target: Target) -> dict[str, int]:
    """Open idle TLS connections to the page and keep them open."""
    allow_open_files(CONNECTIONS + 1000)
    with ThreadPoolExecutor(OPENING) as pool:
        opened = pool.map(lambda _: _connect(target), range(CONNECTIONS))
        held = [connection for connection in opened if connection]
    nothing(target)
    n_open = sum(_is_open(each) for each in held)
    for each in held:
        each.close()
    return {"connections": len(held), "open_at_the_end": n_open}


def duplicates(target: Target) -> dict[str, int]:
    """Send the run's first volume again and again."""
    voxels = Run(Layout(demo_data("nsd")), 1, 1, RUN).volume(0).tobytes()
    volume = wire.with_checksum(wire.Volume(run_id=target.run_id, index=0, acquired_s=TR_S), voxels)
    return {"messages": sum(_flood(target, lambda: [wire.encode(volume), voxels]))}


def garbage(target: Target) -> dict[str, int]:
    """Send messages of random bytes, with a valid key and on TCP connections without any protocol."""
    rng = random.Random(0)
    n_messages = n_connections = 0
    for sent in _flood(target, lambda: [rng.randbytes(rng.randrange(2000)), rng.randbytes(5000)]):
        n_messages += sent
        if n_messages % 100 == 0:
            with contextlib.suppress(OSError), socket.create_connection(_peer(target.address), 1) as raw:
                raw.sendall(rng.randbytes(65_536))
                n_connections += 1
    return {"messages": n_messages, "connections": n_connections}


def http_requests(target: Target) -> dict[str, int]:
    """Send HTTP requests to the page and to the scanner's port, from several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        ports = [_peer(target.url), _peer(target.address)] * (THREADS // 2)
        return {"requests": sum(pool.map(lambda peer: _request(target, peer), ports))}


@contextlib.contextmanager
def stopped_decoder(trial: Trial) -> Iterator[None]:
    """The decoder gets no CPU time (SIGSTOP)."""
    decoder = trial.runtime.processes["decoder"]
    decoder.suspend()
    yield
    with contextlib.suppress(psutil.NoSuchProcess):
        decoder.resume()


@contextlib.contextmanager
def page_without_memory(trial: Trial) -> Iterator[None]:
    """The page gets no more memory than it has."""
    page = trial.runtime.processes["page"]
    limit = page.memory_info().vms + 2**20
    page.rlimit(psutil.RLIMIT_AS, (limit, limit))
    yield


FROM_OUTSIDE: dict[str, Callable[[Target], dict[str, int]]] = {
    "nothing": nothing,
    "connections": connections,
    "duplicates": duplicates,
    "garbage": garbage,
    "http": http_requests,
    "stopped_decoder": nothing,
    "page_without_memory": http_requests,
}
"""What an attacker does, in a process of its own."""
OF_A_PROCESS: dict[str, Callable[[Trial], contextlib.AbstractContextManager[None]]] = {
    "stopped_decoder": stopped_decoder,
    "page_without_memory": page_without_memory,
}
"""What a process of the runtime suffers meanwhile; needs a runtime of several processes."""


def _peer(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def _connect(target: Target) -> ssl.SSLSocket | None:
    while target.is_on:
        with contextlib.suppress(OSError):
            return _trusting().wrap_socket(socket.create_connection(_peer(target.url), 5))
    return None


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _is_open(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1) != b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


def _flood(target: Target, message: Callable[[], list[bytes]]) -> Iterator[int]:
    """Send messages as fast as they are taken, and read no answer; yields 1 for each that was sent."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        if target.keys.exists():
            load_client_keys(target.keys).use(peer)
        peer.linger = 0
        peer.connect(target.address)
        while target.is_on:
            if peer.poll(100, zmq.POLLOUT):
                peer.send_multipart(message())
                yield 1


def _request(target: Target, peer: tuple[str, int]) -> int:
    has_tls = peer == _peer(target.url) and target.url.startswith("https:")
    n_sent = 0
    while target.is_on:
        connection = http.client.HTTPConnection(*peer, timeout=0.2)
        if has_tls:
            connection = http.client.HTTPSConnection(*peer, timeout=5, context=_trusting())
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST" if n_sent % 2 else "GET", "/", body=b"\0" * 10_000)
            n_sent += 1
            connection.getresponse().read()
        connection.close()
    return n_sent


def prepared(work: Path, speed: float) -> Trial:
    """Start a runtime with keys and a certificate."""
    work.mkdir()
    start("realtime", ["keys", str(work / "keys")], work=work).wait(PATIENCE_S)
    pem = {name: str(work / f"{name}.pem") for name in ("cert", "key")}
    command = "openssl req -x509 -nodes -days 1 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=bench"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {pem['key']} -out {pem['cert']}"
    subprocess.run(command.split(), check=True, capture_output=True)
    serve = ["--keys", str(work / "keys" / "runtime"), "--tls-cert", pem["cert"], "--tls-key", pem["key"]]
    scan = ["--keys", str(work / "keys" / "scanner")]
    return Trial(demo_data("bundle"), demo_data("nsd"), RUN, work, speed, serve=serve, scan=scan)


class Watch:
    """Notes when journals grow, until it is stopped. A context manager."""

    def __init__(self, *journals: Path) -> None:
        self.growth: dict[Path, list[tuple[float, int]]] = {journal: [(0.0, 0)] for journal in journals}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            for journal, growth in self.growth.items():
                with contextlib.suppress(OSError):
                    size = os.stat(journal).st_size
                    if size > growth[-1][1]:
                        growth.append((time.time(), size))


def gaps(
    trial: Trial, growth: list[tuple[float, int]], pace_s: float, during: tuple[float, float]
) -> dict[str, Any]:
    """Gaps between a run's volumes during an attack, beyond the scanner's pace, in ms."""
    sizes, seen_s = np.array([size for _, size in growth]), np.array([time_s for time_s, _ in growth])
    received_s, stored_s = [], []
    for entry in read_journal(trial.journal):
        if isinstance(wire.decode_to_runtime(entry.header), wire.Volume):
            received_s.append(entry.received_utc_s)
            stored_s.append(seen_s[np.searchsorted(sizes, entry.end)])
    begun_s, ended_s = during
    found: dict[str, Any] = {}
    for name, times_s in (("received", received_s), ("stored", stored_s)):
        of_attack = np.array([time_s for time_s in times_s if begun_s <= time_s <= ended_s])
        # Nothing at all after the last volume is a gap too.
        between_s = (
            np.diff(np.concatenate([[begun_s], of_attack, [ended_s]]))
            if of_attack.size
            else [ended_s - begun_s]
        )
        found[f"{name}_gap_ms"] = quantiles(1e3 * np.maximum(0.0, np.array(between_s) - pace_s))
        found["volumes"] = len(of_attack)
    return found


def attacked_run(attack: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Attack one of two runtimes that record; return what their journals noticed."""
    speed = demo_length_s() / (BEFORE_S + seconds + AFTER_S)
    trials = {name: prepared(folder / name, speed) for name in ("attacked", "beside")}
    attacked = trials["attacked"]
    try:
        if attack in OF_A_PROCESS and not attacked.runtime.is_split:
            return {"not_done": "this runtime is one process"}
        with (
            Watch(*(trial.journal for trial in trials.values())) as watch,
            # Another process, so that this one can watch the journals.
            ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=os.nice, initargs=(LOWEST,)
            ) as attacker,
        ):
            for trial in trials.values():
                trial.start_scanner()
            for trial in trials.values():
                trial.wait_for_volume(BEFORE_S * speed / TR_S)
            attacker.submit(os.getpid).result()  # it is there when the attack begins
            before = {role: process.pid for role, process in attacked.runtime.processes.items()}
            begun_s = time.time()
            target = Target(
                address=attacked.runtime.address,
                url=attacked.runtime.url,
                run_id=RUN_ID,
                keys=attacked.work / "keys" / "scanner",
                until_s=begun_s + seconds,
            )
            with OF_A_PROCESS.get(attack, contextlib.nullcontext)(attacked):
                did = attacker.submit(FROM_OUTSIDE[attack], target).result()
            during = (begun_s, time.time())
            after = {role: process.pid for role, process in attacked.runtime.processes.items()}
            for trial in trials.values():
                trial.finish()
        for trial in trials.values():
            check(trial)
    finally:
        for trial in trials.values():
            trial.close()
    found = {
        name: gaps(trial, watch.growth[trial.journal], TR_S / speed, during) for name, trial in trials.items()
    }
    most = {name: each["stored_gap_ms"]["max"] for name, each in found.items()}
    return {
        "attack": did,
        "seconds": round(during[1] - during[0], 1),
        **found,
        "ratio": round(most["attacked"] / max(most["beside"], 1.0), 2),
        "holds": most["attacked"] - most["beside"] <= LIMIT_MS,
        "started_again": sorted(role for role, pid in before.items() if after.get(role) != pid),
    }


def demo_length_s() -> float:
    """Length of the demo's run at the scan's pace."""
    return Run(Layout(demo_data("nsd")), 1, 1, RUN).n_volumes * TR_S


def main() -> None:
    """Attack, write the figures, and fail if a gap was too long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--attack", action="append", choices=FROM_OUTSIDE, help="can be repeated (default all)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="length of an attack (default 60)")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    allow_open_files(OPEN_FILES)
    found: dict[str, Any] = {}
    for attack in options.attack or FROM_OUTSIDE:
        work = Path(tempfile.mkdtemp())
        try:
            found[attack] = attacked_run(attack, options.seconds, work)
            shutil.rmtree(work)
        except SystemExit as failure:  # the folder stays
            found[attack] = {"failed": str(failure), "holds": False}
        print(attack, json.dumps(found[attack]), flush=True)
    if options.out:
        figures = {"limit_ms": LIMIT_MS, "attacks": found, "machine": machine()}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    if failed := [attack for attack, each in found.items() if not each.get("holds", True)]:
        raise SystemExit(f"the journal had gaps, or the run failed, in: {', '.join(failed)}")


if __name__ == "__main__":
    main()
