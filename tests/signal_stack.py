"""The alternate signal stack of the calling thread, as ``sigaltstack(2)`` on Linux tells it."""

from __future__ import annotations

import ctypes


class _Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t)]


def signal_stack() -> tuple[int | None, int, int]:
    """Address, flags and size in bytes; the address is None where the thread has none."""
    stack = _Stack()
    if ctypes.CDLL(None, use_errno=True).sigaltstack(None, ctypes.byref(stack)):
        raise OSError(ctypes.get_errno(), "sigaltstack failed")
    return stack.address, stack.flags, stack.size_bytes
