"""What the service refuses before it costs anything: other hosts, other sites, large bodies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regionhash.data.images import MAX_PIXELS

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
_DAY = 86_400
_JSON_ROOM = 256 * 1024  # a search of all that may be asked for has less than a tenth
_MULTIPART_ROOM = 64 * 1024  # boundaries and headers around an upload


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        upload_bytes: of an uploaded file.
        pixels: of a picture; more are refused before it is decoded.
        seconds: that an answer may take.
        header_seconds: in which the headers of a request must arrive.
        body_seconds: in which its body must arrive.
        connections: at one time.
    """

    upload_bytes: int = 20_000_000
    pixels: int = 50_000_000
    seconds: float = 30.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    connections: int = 256

    def __post_init__(self) -> None:
        counts = self.upload_bytes, self.pixels, self.connections
        times = self.seconds, self.header_seconds, self.body_seconds
        if min(counts) < 1 or not all(0 < own <= _DAY for own in times):
            raise ValueError(f"limits must be positive, and times at most a day, got {self}")
        if self.pixels > MAX_PIXELS:
            raise ValueError(f"pixels must be at most {MAX_PIXELS:,}, got {self.pixels:,}")


def problem_body(status: int, detail: str) -> bytes:
    """The JSON of an error (RFC 9457)."""
    title = HTTPStatus(status).phrase
    record = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return json.dumps(record).encode()


class Gate:
    """Around the whole service: hosts, sites, sizes of bodies, headers of answers, and counting.

    Args:
        app: what is guarded.
        upload_bytes: see `Limits`.
        hosts: names by which the service may be addressed; None for all. A page of another site
            that gives itself the address of this machine (DNS rebinding) is none of them.
        lacks_token: whether a request needs the token and has it not; then its body is not read.
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
                own = [*message.get("headers", ()), *_HEADERS]
                if not any(name.lower() == b"cache-control" for name, _ in own):
                    own.append((b"cache-control", b"no-store"))
                message["headers"] = own
            await send(message)

        refused = self._refusal(scope, headers)
        try:
            if refused:
                await _answer(with_headers, *refused)
            else:
                await self._app(scope, counted, with_headers)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._count(method, path, status, perf_counter() - started)

    def _room(self, headers: dict[bytes, bytes]) -> int:
        """Bytes that a body may have: of a file, or of JSON, which takes many times its size."""
        if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
            return self._upload_bytes + _MULTIPART_ROOM
        return _JSON_ROOM

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if self._hosts is not None and name.strip("[]").lower() not in self._hosts:
            return 421, f"this service is not {host!r}"
        if scope["method"] not in _SAFE and _is_of_another_site(scope["scheme"], headers):
            return 403, "this request was made by a page of another site"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "Content-Length must be a number"
        if int(length) > self._room(headers):
            return 413, _too_large(self._room(headers))
        if self._lacks_token(scope):
            return 401, "the token is missing or wrong"
        return None


def _is_of_another_site(scheme: str, headers: dict[bytes, bytes]) -> bool:
    """What a browser tells of the page that made a request; other clients tell nothing.

    A page on another port of the same machine is of another site as well: its requests bring the
    cookies along.
    """
    if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
        return True
    own = scheme.encode() + b"://" + headers.get(b"host", b"")
    return headers.get(b"origin", own).lower() != own.lower()


def _too_large(room: int) -> str:
    return f"the request is larger than {room:,} bytes"


_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_METHODS = _SAFE | {"POST", "PUT", "PATCH", "DELETE"}  # of others anybody may invent any number

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


async def _answer(send: Send, status: int, detail: str) -> None:
    body = problem_body(status, detail)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        *([(b"www-authenticate", b"Bearer")] if status == 401 else ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
