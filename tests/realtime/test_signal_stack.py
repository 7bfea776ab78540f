"""OpenVINO's CPU plugin leaves the alternate signal stacks of the threads that use it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the plugin replaces the stack on Linux only")

TESTS = Path(__file__).parents[1]
OPEN_TWO_ENGINES = """
import faulthandler, signal, subprocess, sys, threading
from pathlib import Path
import numpy as np
from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine, probe

bundle = Bundle.open(Path(sys.argv[1]))

def use_two_engines():
    probe(bundle, "openvino-bf16")
    engines = [open_engine(bundle, "openvino", threads) for threads in (1, 2)]
    for engine in engines:
        Decoder(bundle, engine).decode(np.zeros((30, 6), np.float32))
    del engine
    engines.pop(0)
    yield
    engines.pop()

faulthandler.enable()
"""

STACKS = """
sys.path.insert(0, sys.argv[2])
from signal_stack import signal_stack

def check():
    before = signal_stack()
    for _ in use_two_engines():
        assert signal_stack() == before, f"{before} became {signal_stack()} while an engine is open"
    assert signal_stack() == before, f"{before} became {signal_stack()} once the engines are gone"

assert signal_stack()[0] is not None, "expected the stack of faulthandler"
check()
failures = []
threading.excepthook = failures.append
thread = threading.Thread(target=check)
thread.start()
thread.join()
assert not failures, failures
"""

CHILD_ENDS = """
list(use_two_engines())
caught = []
signal.signal(signal.SIGCHLD, lambda number, frame: caught.append(number))
subprocess.run([sys.executable, "-c", ""], check=True)
assert caught == [signal.SIGCHLD], caught
"""


@pytest.mark.parametrize("script", [STACKS, CHILD_ENDS], ids=["stacks", "child_ends"])
def test_a_thread_that_opens_engines_keeps_its_signal_stack(script: str, tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", OPEN_TWO_ENGINES + script, str(tiny_bundle), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
