"""Requests that are refused before they cost anything: other hosts, other sites, large bodies."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regionhash.service.problems import problem

_JSON_ROOM = 256 * 1024  # the largest valid search has less than a tenth of it
_MULTIPART_ROOM = 64 * 1024  # boundaries and headers around an upload


class RequestGuard:
    """Surrounds the service: checks host, site and size, adds headers to answers, and counts.

    Args:
        app: what is guarded.
        upload_bytes: see `Limits`.
        hosts: names by which the service may be addressed; None allows any. They keep out a page
            of another site whose name resolves to this machine (DNS rebinding).
        lacks_token: whether a request needs the token and lacks it; then its body is not read.
        count: called with method, path of the route, status and seconds of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        upload_bytes: int,
        hosts: frozenset[str] | None,
        lacks_token: Callable[[Scope], bool],
        count: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._upload_bytes = upload_bytes
        self._lacks_token = lacks_token
        self._hosts = hosts
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, received = perf_counter(), 500, 0
        headers = dict(scope["headers"])
        room = self._room(headers)

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > room:
                raise HTTPException(413, _too_large(room))
            return message

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = [*message.get("headers", ()), *_HEADERS]
                if not any(name.lower() == b"cache-control" for name, _ in sent):
                    sent.append((b"cache-control", b"no-store"))
                message["headers"] = sent
            await send(message)

        refused = self._refusal(scope, headers)
        try:
            await (refused or self._app)(scope, counted, with_headers)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._count(method, path, status, perf_counter() - started)

    def _room(self, headers: dict[bytes, bytes]) -> int:
        """The largest body, in bytes: less for JSON, which takes many times its size in memory."""
        if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
            return self._upload_bytes + _MULTIPART_ROOM
        return _JSON_ROOM

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if self._hosts is not None and name.strip("[]").lower() not in self._hosts:
            return problem(421, f"unknown host {host!r}")
        if scope["method"] not in _SAFE and _is_of_another_site(scope["scheme"], headers):
            return problem(403, "the request comes from a page of another site")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return problem(400, "Content-Length must be a number")
        if int(length) > self._room(headers):
            return problem(413, _too_large(self._room(headers)))
        if self._lacks_token(scope):
            return problem(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        return None


def _is_of_another_site(scheme: str, headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says so of the page that made a request; other clients say nothing.

    A page on another port of this machine counts as another site: the browser sends the cookies
    with its requests.
    """
    if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
        return True
    address = scheme.encode() + b"://" + headers.get(b"host", b"")
    return headers.get(b"origin", address).lower() != address.lower()


def _too_large(room: int) -> str:
    return f"the request is larger than {room:,} bytes"


_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_METHODS = _SAFE | {"POST", "PUT", "PATCH", "DELETE"}  # anybody may invent any number of others

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
