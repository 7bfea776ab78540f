"""Who may see the page: whoever has the token, which is drawn anew at every start.

Without a certificate the page is served on loopback only, over plain HTTP: other users of this machine can
reach it there, and get nothing without the token. With one it is served over HTTPS at any address, loopback
too, and answers only to the names in its certificate.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from realtime.errors import ServeError
from realtime.network.certificate import server_context

LOOPBACK = "127.0.0.1"

_LOOPBACK_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE | re.ASCII)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z.-]+))(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
_PORT = re.compile(r":(\d{1,5})", re.ASCII)
_TOKEN_BYTES = 32
_TOKEN_CHARACTERS = 32
"""At least; one that is drawn here has 43."""


def _new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where the page listens, and what it asks of a request."""

    address: str
    """IP address to listen at."""
    names: tuple[str, ...] = ()
    """DNS names and IP addresses of the page; empty: those of loopback."""
    tls: ssl.SSLContext | None = None
    token: str = field(default_factory=_new_token, repr=False)
    """Needed at every route."""

    def __post_init__(self) -> None:
        """:raises ServeError: when the token could be guessed"""
        if len(self.token) < _TOKEN_CHARACTERS:
            raise ServeError(
                f"expected a token of at least {_TOKEN_CHARACTERS} characters for the page, got one of "
                f"{len(self.token)}; leave it out to have one drawn"
            )

    @property
    def scheme(self) -> str:
        """Of the page's URL."""
        return "http" if self.tls is None else "https"

    def knows(self, host: str) -> bool:
        """Whether a ``Host`` header (``name`` or ``name:port``) is a name of this page.

        Any other name that resolves to this server is DNS rebinding.
        """
        if not self.names:
            return is_loopback_host(host)
        match = _HOST.fullmatch(host)
        name = (match[1] or match[2]).lower() if match else ""
        return any(_covers(known, name) for known in self.names)

    def cookie(self, host: str) -> str:
        """Name of the cookie that keeps the token, for the page at a ``Host``.

        Browsers send a host's cookies to all its ports; the port in the name keeps two pages apart. With the
        prefix a browser takes the cookie over HTTPS only, and from this host only.
        """
        port = _PORT.search(host, host.rfind("]") + 1)
        name = f"token-{port[1]}" if port else "token"
        return name if self.tls is None else f"__Host-{name}"

    def url(self, port: int) -> str:
        """The URL to open, with the token."""
        named = [name for name in self.names if not name.startswith("*")]
        name = self.address if self.address in named or not named else named[0]
        return f"{self.scheme}://{_in_url(name)}:{port}/?token={self.token}"


def open_access(address: str, certificate: Path | None, key: Path | None, token: str | None = None) -> Access:
    """Access to a page at an IP address of this machine.

    :param certificate: PEM, the server's own first, then its issuers'; the key is PEM without a password
    :param token: of a page that is started again, whose browsers still have it; by default a new one
    :raises ServeError: when an address other than loopback has no certificate, or an argument is not valid
    """
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError as error:
        raise ServeError(
            f"expected an IP address of this machine for the page, such as 0.0.0.0, got {address!r}"
        ) from error
    token = _new_token() if token is None else token
    if certificate is None and key is None:
        if not is_loopback:
            raise ServeError(
                f"expected --tls-cert and --tls-key for a page at {address}, got none: others can reach it, "
                "and a person's brain data would pass in the clear; give them, or leave the page at "
                "127.0.0.1 and reach it through an SSH tunnel"
            )
        names = () if is_loopback_host(_in_url(address)) else (address,)
        return Access(address=address, names=names, token=token)
    if certificate is None or key is None:
        raise ServeError("expected --tls-cert and --tls-key together, got one of them")
    return Access(
        address=address, names=_names(certificate), tls=server_context(certificate, key), token=token
    )


def is_loopback_host(host: str) -> bool:
    """Whether a ``Host`` header (``name`` or ``name:port``) names this machine."""
    return _LOOPBACK_HOST.fullmatch(host) is not None


def _in_url(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _covers(known: str, name: str) -> bool:
    """Whether a certificate's name is this one; ``*`` stands for one label (RFC 6125)."""
    if known.startswith("*."):
        label, _, rest = name.partition(".")
        return bool(label) and rest == known[2:]
    return name == known


def _names(certificate: Path) -> tuple[str, ...]:
    try:
        extensions = x509.load_pem_x509_certificates(certificate.read_bytes())[0].extensions
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise ServeError(f"cannot read the certificate {certificate}: {error.strerror or error}") from error
    except ValueError as error:
        raise ServeError(f"expected a PEM certificate in {certificate}: {error}") from error
    except x509.ExtensionNotFound as error:
        raise ServeError(
            f"expected a certificate that names this machine (subjectAltName), {certificate} names none"
        ) from error
    dns = [name.lower() for name in alternatives.get_values_for_type(x509.DNSName)]
    names = (*dns, *(str(address) for address in alternatives.get_values_for_type(x509.IPAddress)))
    if all(name.startswith("*") for name in names):
        raise ServeError(
            "expected a certificate with a name or an IP address at which the page can be opened, "
            f"{certificate} has only {', '.join(names) or 'names of other kinds'}; get one that names this "
            "machine, such as mri.example.org, beside any *.example.org"
        )
    return names
