"""The checks that every request to the page's server must pass, and the headers of every response.

A browser that can reach the server also runs pages of other sites. Two checks keep them out: the ``Host``
must be a name of this server (any other is DNS rebinding), and the ``Origin``, if there is one, must be this
server's own. Other programs and users can reach it too, so every route needs the token (see access.py): the
page, its files, pictures, the WebRTC offer, the WebSocket, the metrics, and routes that do not exist. A
browser gets the token from the printed URL and keeps it in a cookie that scripts cannot read and other sites
cannot send; programs send it as ``Authorization: Bearer``.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from realtime.viewer.access import Access

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
_HTTPS_HEADERS = {"Strict-Transport-Security": "max-age=86400"}
"""For a day only: a browser holds the whole host to it, and other ports may speak HTTP."""


def is_same_origin(origin: str | None, own: str) -> bool:
    """Whether a request came from a page of this server; programs that are no browsers send no ``Origin``."""
    return origin is None or origin.lower() == own.lower()


def guard(access: Access) -> Middleware:
    """Make the middleware that checks every request before it is routed."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not access.knows(request.host):
            names = ", ".join(access.names) or "127.0.0.1, localhost or [::1]"
            raise _refused(web.HTTPForbidden(text=f"expected Host {names}: open the printed URL\n"))
        if not is_same_origin(request.headers.get("Origin"), f"{access.scheme}://{request.host}"):
            raise _refused(web.HTTPForbidden(text="expected a page of this server: open the printed URL\n"))
        if request.path == "/" and _equal(request.query.get("token", ""), access.token):
            return _keep_token(request, access)
        if not _brings(request, access):
            raise _refused(_unauthorized(request))
        return await handler(request)

    return guarded


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add the security headers to every response (an ``on_response_prepare`` signal handler)."""
    response.headers.pop("Server", None)  # do not reveal versions
    response.headers.update(security_headers(request))
    response.headers.setdefault("Cache-Control", "no-cache")


def security_headers(request: web.BaseRequest) -> dict[str, str]:
    """The headers of every response, those to requests that nobody can read included."""
    return _HEADERS | (_HTTPS_HEADERS if request.secure else {})


def _refused(answer: web.HTTPError) -> web.HTTPError:
    """With the connection's end: it takes one request from those who do not belong here."""
    answer.force_close()
    return answer


def _unauthorized(request: web.Request) -> web.HTTPUnauthorized:
    """Sends a browser to the page once more if a link elsewhere, or a file, led it here.

    In that case it has kept its ``SameSite=Strict`` cookie back. When this answer leads it on, it does not.
    """
    headers = {"WWW-Authenticate": "Bearer"}
    fetch = [request.headers.get(f"Sec-Fetch-{name}") for name in ("Site", "Mode", "Dest")]
    if request.path == "/" and fetch == ["cross-site", "navigate", "document"]:
        headers["Refresh"] = f"0; url={request.path_qs}"
    text = "expected the token: open the URL that was printed at the start\n"
    return web.HTTPUnauthorized(text=text, headers=headers)


def _keep_token(request: web.Request, access: Access) -> web.Response:
    """Redirect to the page without the token in its address, where a browser would show and store it."""
    rest = [(name, value) for name, value in request.query.items() if name != "token"]
    page = "/?" + urlencode(rest) if rest else "/"
    response = web.Response(status=303, headers={"Location": page, "Cache-Control": "no-store"})
    response.set_cookie(
        access.cookie(request.host),
        access.token,
        path="/",
        secure=access.tls is not None,
        httponly=True,
        samesite="Strict",
    )
    return response


def _brings(request: web.Request, access: Access) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer" and _equal(given, access.token)
    return is_bearer or _equal(request.cookies.get(access.cookie(request.host), ""), access.token)


def _equal(given: str, token: str) -> bool:
    """Compare in constant time."""
    return secrets.compare_digest(given.encode(errors="surrogateescape"), token.encode())
