"""What the page's server asks of every request, and what its answers allow a browser to do.

A browser that can reach the server also runs pages of other sites. Two checks keep them out: the ``Host``
must be a name of this server (a foreign name that leads to it is DNS rebinding), and a request that says
where it comes from must come from a page of this very server (``Origin`` equal to its own). Where the server
asks for a token (see access.py), every route does: the page, its files, pictures, the WebRTC offer, the
WebSocket, the metrics, and what does not exist. The token comes once in the printed URL and stays as a cookie
that scripts cannot read and other sites cannot send; programs send it as ``Authorization: Bearer``.
"""

from __future__ import annotations

import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from realtime.viewer.access import Access

COOKIE = "__Host-token"
"""By this prefix a browser takes the cookie over HTTPS only, and from this very host only."""

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


def is_same_origin(origin: str | None, own: str) -> bool:
    """Whether a request came from a page of this server; programs other than browsers send no ``Origin``."""
    return origin is None or origin.lower() == own.lower()


def guard(access: Access) -> Middleware:
    """The middleware that every request passes before any route is looked at."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not access.knows(request.host):
            names = ", ".join(access.names) or "127.0.0.1, localhost or [::1]"
            raise web.HTTPForbidden(text=f"expected Host {names}: open the printed URL\n")
        if not is_same_origin(request.headers.get("Origin"), f"{access.scheme}://{request.host}"):
            raise web.HTTPForbidden(text="expected a page of this server: open the printed URL\n")
        if access.token is not None:
            if request.path == "/" and _equal(request.query.get("token", ""), access.token):
                return _keep_token(access.token)
            if not _brings(request, access.token):
                raise web.HTTPUnauthorized(
                    text="expected the token: open the URL that was printed at the start\n",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return await handler(request)

    return guarded


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to every response (an ``on_response_prepare`` signal handler)."""
    response.headers.pop("Server", None)  # which versions run here is nobody's business
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-cache")


def _keep_token(token: str) -> web.Response:
    """To the page again, without the token in its address, where it would be seen and remembered."""
    response = web.Response(status=303, headers={"Location": "/", "Cache-Control": "no-store"})
    response.set_cookie(COOKIE, token, path="/", secure=True, httponly=True, samesite="Strict")
    return response


def _brings(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer" and _equal(given, token)
    return is_bearer or _equal(request.cookies.get(COOKIE, ""), token)


def _equal(given: str, token: str) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return secrets.compare_digest(given.encode(errors="surrogateescape"), token.encode())
