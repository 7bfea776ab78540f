"""Signatures in minisign's format, made and checked by Ed25519 of the package ``cryptography``.

    public key    "Ed", id [8], key [32]
    secret key    "Ed", kdf [2], "B2", salt [32], limits [16], id [8], seed [32], key [32], checksum [32]
    signature     an untrusted comment
                  "ED", id [8], signature [64] of the file's BLAKE2b-512
                  trusted comment: …
                  signature [64] of the signature above and the trusted comment

Each is a line of base64; keys follow a line with a comment. ``kdf`` is zero in a secret key without a
password; those with one are for minisign itself. The format is small, documented and stable, and the
arithmetic is left to ``cryptography``. https://jedisct1.github.io/minisign/
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_FILE_BYTES = 4096
"""Limit of a file with a key or a signature."""
_ED25519, _PREHASHED = b"Ed", b"ED"
_UNENCRYPTED, _BLAKE2B = b"\0\0", b"B2"
_TRUSTED = "trusted comment: "
_PUBLIC_BYTES, _SECRET_BYTES, _SIGNATURE_BYTES, _GLOBAL_BYTES = 42, 158, 74, 64


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """Who may have signed."""

    name: str
    id: bytes
    key: bytes

    @property
    def text(self) -> str:
        """The line of base64 that names this key."""
        return base64.b64encode(_ED25519 + self.id + self.key).decode()


@dataclass(frozen=True, kw_only=True)
class SecretKey:
    """What signs."""

    id: bytes
    seed: bytes = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The key that checks what this one signs."""
        key = _private(self).public_key().public_bytes_raw()
        return PublicKey(name=id_text(self.id), id=self.id, key=key)


class Signature(NamedTuple):
    """The content of a ``.minisig`` file."""

    id: bytes
    """Of the key that signed."""
    of_file: bytes
    trusted_comment: str
    of_comment: bytes


def id_text(key_id: bytes) -> str:
    """The id of a key as minisign prints it."""
    return key_id[::-1].hex().upper()


def new_secret_key() -> SecretKey:
    """A new random key."""
    return SecretKey(id=secrets.token_bytes(8), seed=secrets.token_bytes(32))


def read_public_key(text: str, name: str) -> PublicKey:
    """Read a public key: its file, or its line of base64 alone.

    :raises ValueError: when it is none
    """
    content = _decoded(_lines(text)[-1], _PUBLIC_BYTES, _ED25519)
    return PublicKey(name=name, id=content[2:10], key=content[10:])


def public_key_file(key: PublicKey) -> str:
    """The content of a public key's file."""
    return f"untrusted comment: minisign public key {id_text(key.id)}\n{key.text}\n"


def read_secret_key(text: str) -> SecretKey:
    """Read the file of a secret key without a password.

    :raises ValueError: when it is none, or has a password
    """
    content = _decoded(_lines(text)[-1], _SECRET_BYTES, _ED25519)
    if content[2:4] != _UNENCRYPTED:
        raise ValueError("expected a secret key without a password")
    key = SecretKey(id=content[54:62], seed=content[62:94])
    if key.public.key != content[94:126]:
        raise ValueError("expected a secret key whose two halves match")
    return key


def secret_key_file(key: SecretKey) -> str:
    """The content of a secret key's file, without a password."""
    head = _ED25519 + _UNENCRYPTED + _BLAKE2B + bytes(48)
    content = head + key.id + key.seed + key.public.key + bytes(32)
    return f"untrusted comment: minisign secret key {id_text(key.id)}\n{base64.b64encode(content).decode()}\n"


def sign(content: bytes, key: SecretKey, trusted_comment: str) -> str:
    """Sign a file's content and a comment; returns the content of its ``.minisig`` file."""
    private = _private(key)
    of_file = private.sign(hashlib.blake2b(content).digest())
    of_comment = private.sign(of_file + trusted_comment.encode())
    return (
        f"untrusted comment: signature by minisign key {id_text(key.id)}\n"
        f"{base64.b64encode(_PREHASHED + key.id + of_file).decode()}\n"
        f"{_TRUSTED}{trusted_comment}\n"
        f"{base64.b64encode(of_comment).decode()}\n"
    )


def read_signature(text: str) -> Signature:
    """Read a ``.minisig`` file; nothing is checked yet.

    :raises ValueError: when it is none
    """
    lines = _lines(text)
    if len(lines) != 4 or not lines[2].startswith(_TRUSTED):
        raise ValueError("expected four lines with a signature and a trusted comment")
    content = _decoded(lines[1], _SIGNATURE_BYTES, _PREHASHED)
    comment = lines[2].removeprefix(_TRUSTED)
    return Signature(content[2:10], content[10:], comment, _decoded(lines[3], _GLOBAL_BYTES))


def is_signed(content: bytes, signature: Signature, key: PublicKey) -> bool:
    """Whether a key signed both a file's content and the trusted comment."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(key.key)
    try:
        public.verify(signature.of_file, hashlib.blake2b(content).digest())
        public.verify(signature.of_comment, signature.of_file + signature.trusted_comment.encode())
    except InvalidSignature:
        return False
    return True


def _private(key: SecretKey) -> Ed25519PrivateKey:
    # Imported here, so that to open an unsigned bundle loads no cryptography.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(key.seed)


def _lines(text: str) -> list[str]:
    # Not splitlines(), which also splits at characters that minisign takes for part of a comment.
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def _decoded(line: str, n_bytes: int, begins: bytes = b"") -> bytes:
    try:
        content = base64.b64decode(line, validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected a line of base64: {error}") from error
    if len(content) != n_bytes or not content.startswith(begins):
        raise ValueError(f"expected {n_bytes} bytes in base64 that begin with {begins.decode()!r}")
    return content
