"""Who may see the page: users of this machine, or with a certificate anyone who has the token.

Without a certificate the page is served on loopback only, over plain HTTP, to anyone on this machine. With
one it is served over HTTPS at any address, loopback too. It then answers only to the names in its certificate
and to requests with the token, which is drawn anew at every start.
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

LOOPBACK = "127.0.0.1"

_LOOPBACK_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE | re.ASCII)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z.-]+))(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
_TOKEN_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where the page listens, and what it asks of a request."""

    address: str
    """IP address to listen at."""
    names: tuple[str, ...] = ()
    """DNS names and IP addresses of the page; empty: those of loopback."""
    tls: ssl.SSLContext | None = None
    token: str | None = field(default=None, repr=False)
    """Needed at every route; None: no token is needed."""

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

    def url(self, port: int) -> str:
        """The URL to open, with the token if there is one."""
        named = [name for name in self.names if not name.startswith("*")]
        name = self.address if self.address in named or not named else named[0]
        query = f"?token={self.token}" if self.token else ""
        return f"{self.scheme}://{_in_url(name)}:{port}/{query}"


THIS_MACHINE = Access(address=LOOPBACK)


def open_access(address: str, certificate: Path | None, key: Path | None) -> Access:
    """Access to a page at an IP address of this machine.

    :param certificate: PEM, the server's own first, then its issuers'; the key is PEM without a password
    :raises ServeError: when an address other than loopback has no certificate, or an argument is not valid
    """
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError as error:
        raise ServeError(
            f"expected an IP address of this machine for the page, such as 0.0.0.0, got {address!r}"
        ) from error
    if certificate is None and key is None:
        if not is_loopback:
            raise ServeError(
                f"expected --tls-cert and --tls-key for a page at {address}, got none: others can reach it, "
                "and a person's brain data would pass in the clear; give them, or leave the page at "
                "127.0.0.1 and reach it through an SSH tunnel"
            )
        return Access(address=address, names=() if is_loopback_host(_in_url(address)) else (address,))
    if certificate is None or key is None:
        raise ServeError("expected --tls-cert and --tls-key together, got one of them")
    return Access(
        address=address,
        names=_names(certificate),
        tls=_context(certificate, key),
        token=secrets.token_urlsafe(_TOKEN_BYTES),
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


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # do not ask for one on the terminal
    except OSError as error:  # SSLError is one
        raise ServeError(
            f"expected a certificate in {certificate} and its key, without a password, in {key}: "
            f"{error.strerror or error}"
        ) from error
    return context
