"""Access control: which requests need the token, and how they carry it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from regionhash.service.state import ServiceState

_COOKIE_SECONDS = 12 * 3600

PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
"""The page: paths and the files in `page/`."""

_PUBLIC = frozenset((*PAGE_FILES, "/favicon.ico", "/health", "/api/session", "/openapi.json"))
"""Paths that never need the token."""


# Dependencies are coroutines, because FastAPI calls others in threads, for each request.


async def _state(request: Request) -> ServiceState:
    state: ServiceState = request.app.state.service
    return state


State = Annotated[ServiceState, Depends(_state)]


def given_token(request: Request) -> str | None:
    """The token in a request's Authorization header, or else in its cookie."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value if kind.lower() == "bearer" else request.cookies.get(_cookie_name(request))


def lacks_token(request: Request, state: ServiceState) -> bool:
    """Whether the routes will refuse a request for lack of the token, whatever its body says."""
    path = request.url.path
    changes = request.method not in ("GET", "HEAD", "OPTIONS") and path.startswith("/api/images")
    if state.token is None or not (changes or (state.token_to_read and path not in _PUBLIC)):
        return False
    return not state.knows(given_token(request))


async def may_read(request: Request, state: State) -> None:
    """Refuses a request to read without the token, if reading requires it."""
    if state.token_to_read and not state.knows(given_token(request)):
        raise wrong_token()


async def may_change(request: Request, state: State) -> None:
    """Refuses a request to change the collection without the token."""
    if state.token is None:
        raise HTTPException(401, "read-only: the service was started without a token")
    if not state.knows(given_token(request)):
        raise wrong_token()


def wrong_token() -> HTTPException:
    """The refusal of a request whose token is missing or wrong."""
    return HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})


def set_cookie(response: Response, request: Request, token: str) -> None:
    """Keeps the token in a cookie that scripts cannot read."""
    response.set_cookie(
        _cookie_name(request),
        token,
        max_age=_COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def delete_cookie(response: Response, request: Request) -> None:
    """Deletes that cookie."""
    response.delete_cookie(_cookie_name(request), httponly=True, samesite="strict")


def _cookie_name(request: Request) -> str:
    """A name for each port, since browsers do not keep the cookies of several ports apart."""
    port = request.url.port or {"https": 443}.get(request.url.scheme, 80)
    return f"regionhash_token_{port}"
