"""Who may talk to the page's server, and what its answers allow a browser to do.

The server listens on 127.0.0.1, but a browser on this machine also runs pages of other sites. Two checks keep
them out: the ``Host`` must name this machine (a foreign name that leads to 127.0.0.1 is DNS rebinding), and a
request that opens a connection must come from a page of this very server (``Origin`` equal to ``Host``).
"""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler

_LOOPBACK_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE | re.ASCII)

_CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def is_loopback_host(host: str) -> bool:
    """Whether a ``Host`` header (``name`` or ``name:port``) names this machine."""
    return _LOOPBACK_HOST.fullmatch(host) is not None


def is_same_origin(origin: str | None, host: str) -> bool:
    """Whether a request came from a page of this server; programs other than browsers send no ``Origin``."""
    return origin is None or origin.lower() == f"http://{host.lower()}"


@web.middleware
async def only_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse every request whose ``Host`` is not a loopback name."""
    if not is_loopback_host(request.host):
        raise web.HTTPForbidden(text="expected Host 127.0.0.1, localhost or [::1]: open the printed URL\n")
    return await handler(request)


def require_same_origin(request: web.Request) -> None:
    """Refuse a connection asked for by another site's page."""
    if not is_same_origin(request.headers.get("Origin"), request.host):
        raise web.HTTPForbidden(text="expected a page of this server: open the printed URL\n")


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to every response (an ``on_response_prepare`` signal handler)."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-cache")
