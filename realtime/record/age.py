"""Encryption as the program age does it (https://age-encryption.org), of streams of any length.

pyrage reads and writes files of Python's. It keeps silent on an error of the last bytes that it writes, and
passes on only the text of others. So the two ends of a stream keep what went wrong themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyrage

from realtime.errors import RecordError

_MAX_IDENTITY_BYTES = 2**16

Recipients = Sequence[pyrage.x25519.Recipient]
"""Public keys."""
Identities = Sequence[pyrage.x25519.Identity]
"""Secret keys."""


def recipients_of(texts: Sequence[str]) -> Recipients:
    """The recipients whose public keys these are. :raises RecordError: when one is no public key of age"""
    recipients = []
    for text in map(str.strip, texts):
        if text.upper().startswith("AGE-SECRET-KEY-"):  # not told on: it may land in a log
            raise RecordError(
                "expected a public key to seal for, age1..., got a secret key; keep it away from this machine"
            )
        try:
            recipients.append(pyrage.x25519.Recipient.from_str(text))
        except pyrage.RecipientError as error:
            raise RecordError(
                f"expected a public key to seal for, age1..., as age-keygen prints it, got {text!r}: {error}"
            ) from error
    if not recipients:
        raise RecordError("expected at least one public key to seal for")
    return recipients


def read_identities(path: Path) -> Identities:
    """The secret keys in a file of age-keygen's.

    :raises RecordError: when it cannot be read, or has none
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_IDENTITY_BYTES)
    except OSError as error:
        raise RecordError(f"cannot read the identity {path}: {error.strerror or error}") from error
    if content.startswith((b"age-encryption.org/", b"-----BEGIN AGE")):
        raise RecordError(f"{path} has a passphrase: decrypt it with `age -d {path}`, and give the result")
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    try:
        identities = [pyrage.x25519.Identity.from_str(key) for key in keys]
    except pyrage.IdentityError as error:  # without the line, which may be secret
        raise RecordError(f"expected secret keys of age in {path}, AGE-SECRET-KEY-1...: {error}") from error
    if not identities:
        raise RecordError(f"expected a secret key of age in {path}, AGE-SECRET-KEY-1..., found none")
    return identities


def encrypt(
    blocks: Iterator[bytes], write: Callable[[bytes], None], recipients: Recipients
) -> tuple[str, str]:
    """Encrypt a stream; returns the SHA-256 of what was read and of what was written.

    What ``blocks`` and ``write`` raise is raised.
    """
    reading, writing = _Reading(blocks), _Writing(write)
    failure: BaseException | None = None
    try:
        pyrage.encrypt_io(reading, writing, list(recipients))
    except (pyrage.EncryptError, OSError) as error:
        failure = error
    failure = reading.error or writing.error or failure
    if failure:
        raise failure
    return reading.digest.hexdigest(), writing.digest.hexdigest()


def decrypt(file: BinaryIO, write: Callable[[bytes], None], identities: Identities) -> None:
    """Decrypt a file; each block that is written is what was encrypted, the end only once this returns.

    What ``write`` raises is raised.

    :raises RecordError: when no identity fits, or the file is damaged or cut
    """
    writing = _Writing(write)
    failure: Exception | None = None
    try:
        pyrage.decrypt_io(file, writing, list(identities))
    except (pyrage.DecryptError, OSError) as error:
        failure = error
    if writing.error:
        raise writing.error
    if failure and "matching keys" in str(failure):
        raise RecordError("it was sealed for others: the key that was given does not open it")
    if failure:
        raise RecordError(f"it is damaged, or was cut, or is not of age: {failure}")


class _Reading:
    """A file to read, made of blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.digest = hashlib.sha256()
        self.error: BaseException | None = None

    def read(self, n_bytes: int) -> bytes:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._blocks))
                self.digest.update(self._rest)
        except StopIteration:
            return b""
        except BaseException as error:
            self.error = error
            raise
        part, self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return bytes(part)


class _Writing:
    """A file to write, whose bytes a function takes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self.digest = hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, block: bytes) -> int:
        try:
            self._write(block)
        except BaseException as error:
            self.error = self.error or error
            raise
        self.digest.update(block)
        return len(block)

    def flush(self) -> None:
        """Nothing waits here."""
