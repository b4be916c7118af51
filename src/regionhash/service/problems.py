"""Errors as problem details (RFC 9457), none of which names a path of this machine."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from regionhash.data.images import ImageError
from regionhash.service.encoder import EncoderError
from regionhash.service.jobs import BusyError
from regionhash.store import StoreError

_RETRY_SECONDS = "5"  # after which a client that found the service busy should try again
_SHOWN_ERRORS = 5  # per invalid request

_PATH = re.compile(r"(?<![^\s'\"`(\[=:])[/\\]\w")  # what begins at the root of the disk

_DETAILS = {
    404: "no such picture",
    503: "the collection is not available at the moment",
    504: "the answer took too long",
}

_STATUSES: dict[type[Exception], int] = {
    ImageError: 415,
    StoreError: 503,
    sqlite3.Error: 503,
    EncoderError: 503,
    KeyError: 404,
    ValueError: 422,
    OSError: 503,
    TimeoutError: 504,
}

_log = logging.getLogger("regionhash.service")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that states an error."""
    title = HTTPStatus(status).phrase
    record = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    body = json.dumps(record).encode()
    return Response(body, status, headers, media_type="application/problem+json")


def answer_errors(app: FastAPI) -> None:
    """Makes a problem of every error that a route raises."""
    app.add_exception_handler(HTTPException, _http_problem)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    for error, status in _STATUSES.items():
        app.add_exception_handler(error, _problem_of(status))
    app.add_exception_handler(BusyError, _busy)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _failed)


async def _http_problem(_: Request, error: HTTPException) -> Response:
    return problem(error.status_code, str(error.detail), error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    reasons = [
        f"{'.'.join(map(str, invalid['loc']))}: {invalid['msg']}"
        for invalid in error.errors()[:_SHOWN_ERRORS]
    ]
    return problem(422, "; ".join(reasons))


def _problem_of(status: int) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        detail = _DETAILS.get(status) or str(error)
        if _may_hold_path(detail, request):
            _log.warning("%s %s: %s", request.method, request.url.path, error)
            detail = "the request failed; the log of the service states why"
        return problem(status, detail)

    return answer


def _may_hold_path(detail: str, request: Request) -> bool:
    """Whether a message might name a folder or file of this machine."""
    folder: Path = request.app.state.folder
    return str(folder) in detail or _PATH.search(detail) is not None


async def _busy(_: Request, error: BusyError) -> Response:
    return problem(503, str(error), {"Retry-After": _RETRY_SECONDS})


async def _failed(_: Request, error: Exception) -> Response:
    return problem(500, "internal error; details are in the log of the service")
