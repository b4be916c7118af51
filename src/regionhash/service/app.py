"""The HTTP interface of one collection, and the page to search it with."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from regionhash.collection import Filter, Result
from regionhash.collection import Query as Asked
from regionhash.data.images import ImageError
from regionhash.service.encoder import EncoderError
from regionhash.service.jobs import BusyError
from regionhash.service.limits import LOOPBACK, Gate, Limits, problem_body
from regionhash.service.messages import (
    MAX_ROW,
    AddedOut,
    GroupOut,
    HealthOut,
    HitOut,
    ImageLine,
    ImageOut,
    InfoOut,
    ListOut,
    MatchOut,
    QueryIn,
    RegionOut,
    SearchIn,
    SearchOut,
    UploadOut,
    problems,
)
from regionhash.service.opened import Opened
from regionhash.service.state import Service
from regionhash.store import StoreError
from regionhash.structures import EncodedImage

_COOKIE_SECONDS = 12 * 3600
_RETRY_SECONDS = "5"  # after which a client is told to try again what was refused for being busy

_log = logging.getLogger("regionhash.service")

_TOLD = 5  # of the errors of one request

_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(
    folder: Path,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    loopback: bool = True,
    device: str = "auto",
) -> FastAPI:
    """The service of the collection in `folder`.

    Args:
        folder: of the collection.
        token: what clients must know to change the collection.
        limits: of one request.
        loopback: only this machine can reach it, under the names of this machine; else the token
            is needed for everything but the page and /health.
        device: where the model runs.

    Raises:
        ValueError: no collection, no model, or no token where one is needed.
    """
    if not loopback and not token:
        raise ValueError("a service for other machines needs a token: --token, REGIONHASH_TOKEN")
    limits = limits or Limits()
    service = Service(folder, limits=limits, token=token, token_to_read=not loopback, device=device)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="regionhash",
        summary="Finds the pictures of a collection that contain an object.",
        version=version("regionhash"),
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere; /openapi.json is the description
        redoc_url=None,
        responses=problems(400, 401, 403, 404, 413, 415, 421, 422, 503, 504),
    )
    app.state.service, app.state.folder = service, folder
    app.include_router(_open)
    app.include_router(_reading)
    app.include_router(_changing)
    app.add_exception_handler(HTTPException, _http_problem)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    for error, status in _STATUSES.items():
        app.add_exception_handler(error, _problem_of(status))
    app.add_exception_handler(BusyError, _busy)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(
        Gate,
        upload_bytes=limits.upload_bytes,
        hosts=LOOPBACK if loopback else None,
        lacks_token=lambda scope: _lacks_token(Request(scope), service),
        count=service.figures.count,
    )
    return app


# -- errors ---------------------------------------------------------------------------------------


def _problem(status: int, detail: str, headers: Any = None) -> Response:
    return Response(
        problem_body(status, detail), status, headers, media_type="application/problem+json"
    )


async def _http_problem(_: Request, error: HTTPException) -> Response:
    return _problem(error.status_code, str(error.detail), error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    told = [f"{'.'.join(map(str, own['loc']))}: {own['msg']}" for own in error.errors()[:_TOLD]]
    return _problem(422, "; ".join(told))


def _problem_of(status: int) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        detail = _DETAILS.get(status) or str(error)
        if _may_hold_path(detail, request):
            _log.warning("%s %s: %s", request.method, request.url.path, error)
            detail = "this cannot be answered; the log of the service tells why"
        return _problem(status, detail)

    return answer


def _may_hold_path(detail: str, request: Request) -> bool:
    """Whether a message might name a folder or file of this machine, which is nobody's business."""
    folder: Path = request.app.state.folder
    return str(folder) in detail or _PATH.search(detail) is not None


async def _busy(_: Request, error: BusyError) -> Response:
    return _problem(503, str(error), {"Retry-After": _RETRY_SECONDS})


async def _failed(_: Request, error: Exception) -> Response:
    return _problem(500, "this is an error of the service; its log tells more")


_PATH = re.compile(r"(?<![^\s'\"`(\[=:])[/\\]\w")  # what begins at the root of the disk

_DETAILS = {
    404: "no such picture",
    503: "the collection cannot be used at the moment",
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


# -- who may --------------------------------------------------------------------------------------


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Shared = Annotated[Service, Depends(_service)]


async def _opened(service: Shared) -> AsyncIterator[Opened]:
    async with service.use() as opened:
        yield opened


Used = Annotated[Opened, Depends(_opened)]


def _given_token(request: Request) -> str | None:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value if kind.lower() == "bearer" else request.cookies.get(_cookie(request))


def _lacks_token(request: Request, service: Service) -> bool:
    """Whether the routes will refuse a request for want of the token, whatever its body says."""
    path = request.url.path
    changes = request.method not in ("GET", "HEAD", "OPTIONS") and path.startswith("/api/images")
    if service.token is None or not (changes or (service.token_to_read and path not in _OPEN)):
        return False
    return not service.knows(_given_token(request))


_OPEN = frozenset(
    ("/", "/page.css", "/page.js", "/favicon.ico", "/health", "/api/session", "/openapi.json")
)
"""Paths that need no token where others do."""


def _cookie(request: Request) -> str:
    """The name of the cookie: browsers do not keep those of several ports apart."""
    port = request.url.port or {"https": 443}.get(request.url.scheme, 80)
    return f"regionhash_token_{port}"


def _may_read(request: Request, service: Shared) -> None:
    if service.token_to_read and not service.knows(_given_token(request)):
        raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})


def _may_change(request: Request, service: Shared) -> None:
    if service.token is None:
        raise HTTPException(401, "started without a token, so nothing can be changed")
    if not service.knows(_given_token(request)):
        raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})


_open = APIRouter()
_reading = APIRouter(dependencies=[Depends(_may_read)])
_changing = APIRouter(dependencies=[Depends(_may_change)])

RowIn = Annotated[int, Query(ge=0, le=MAX_ROW)]


# -- routes ---------------------------------------------------------------------------------------


@_open.get("/", include_in_schema=False)
def page(request: Request) -> Response:
    """The page."""
    return _page_file("index.html", "text/html", request, {"Content-Security-Policy": _POLICY})


@_open.get("/page.css", include_in_schema=False)
def page_style(request: Request) -> Response:
    """Its style."""
    return _page_file("page.css", "text/css", request)


@_open.get("/page.js", include_in_schema=False)
def page_script(request: Request) -> Response:
    """Its script."""
    return _page_file("page.js", "text/javascript", request)


def _page_file(
    name: str, media_type: str, request: Request, headers: Mapping[str, str] | None = None
) -> Response:
    """A file of the page. Browsers revalidate it, so that no part is of another version."""
    content, tag = _page_content(name)
    sent = {"ETag": tag, "Cache-Control": "no-cache", **(headers or {})}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    return Response(content, media_type=media_type, headers=sent)


@cache
def _page_content(name: str) -> tuple[bytes, str]:
    """The bytes of a file of the page, and their tag."""
    content = (files("regionhash.service") / "page" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


@_open.get("/favicon.ico", include_in_schema=False)
def icon() -> Response:
    """None: the page brings its own."""
    return Response(status_code=204)


@_open.get(
    "/health",
    response_model=HealthOut,
    response_model_exclude_none=True,
    responses={503: {"model": HealthOut, "description": "It does not; `reason` tells why."}},
)
async def health(service: Shared) -> Response:
    """Whether the service works."""
    reason = service.failure()
    told = HealthOut(
        status="failing" if reason else "ok", pictures=len(service.collection), reason=reason
    )
    return JSONResponse(told.model_dump(exclude_none=True), 503 if reason else 200)


@_open.post("/api/session", status_code=204)
async def session(request: Request, service: Shared) -> Response:
    """Keeps the token of the Authorization header in a cookie, for the page's pictures."""
    given = _given_token(request)
    if given is None or not service.knows(given):
        raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})
    response = Response(status_code=204)
    response.set_cookie(
        _cookie(request),
        given,
        max_age=_COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@_open.delete("/api/session", status_code=204)
async def end_session(request: Request) -> Response:
    """Forgets that cookie."""
    response = Response(status_code=204)
    response.delete_cookie(_cookie(request), httponly=True, samesite="strict")
    return response


@_reading.get("/metrics", include_in_schema=False)
def metrics(service: Shared) -> Response:
    """Figures for Prometheus."""
    return Response(generate_latest(service.figures.registry), media_type=CONTENT_TYPE_LATEST)


@_reading.get("/api/collection")
async def info(request: Request, service: Shared, opened: Used) -> InfoOut:
    """What is served."""
    header = opened.header
    return InfoOut(
        pictures=len(opened.collection),
        model=header["model"],
        model_hash=header["model_hash"],
        bits=header["n_bits"],
        region_bits=header["n_region_bits"],
        classes=header["classes"],
        by_category=opened.collection.snapshot.table.category_codes is not None,
        can_change=service.knows(_given_token(request)),
        max_upload_bytes=service.limits.upload_bytes,
        max_pixels=service.limits.pixels,
    )


@_reading.get("/api/images")
async def images(
    service: Shared,
    opened: Used,
    after: RowIn = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 24,
) -> ListOut:
    """Pictures of the collection, in the order of their rows."""
    rows = await service.read(
        opened, lambda: opened.collection.images(after=after, limit=limit + 1), service.due()
    )
    lines = [
        ImageLine(row=row, id=_shown(image_id), height=height, width=width)
        for row, image_id, height, width in rows[:limit]
    ]
    return ListOut(images=lines, next=lines[-1].row if len(rows) > limit else None)


@_reading.get("/api/images/{row}")
async def image(row: int, service: Shared, opened: Used) -> ImageOut:
    """A picture of the collection and its regions."""
    checked = _checked(row)
    image_id, encoded = await service.read(opened, lambda: opened.regions(checked), service.due())
    return ImageOut(
        row=row,
        id=_shown(image_id),
        height=encoded.size[0],
        width=encoded.size[1],
        regions=_regions(encoded, opened),
    )


@_reading.get("/api/images/{row}/picture", responses={200: {"content": {"image/jpeg": {}}}})
async def picture(
    row: int,
    request: Request,
    service: Shared,
    opened: Used,
    size: Annotated[int, Query(ge=16, le=2048)] = 320,
) -> Response:
    """The picture as JPEG, its longer side at most `size` pixels."""
    sizes = (160, 320, 640, 1024, 2048)
    taken = next(own for own in sizes if own >= size)  # few sizes, so that they are found again
    checked, until = _checked(row), service.due()
    try:
        found = await service.read(opened, lambda: opened.known_thumbnail(checked, taken), until)
        if found.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=_revalidated(found.tag))
        if found.content is None:
            found = await service.decode(
                opened, lambda: opened.thumbnail(checked, taken, until), until
            )
    except ImageError as error:
        raise HTTPException(404, "the file of this picture is gone or cannot be read") from error
    return Response(found.content, media_type="image/jpeg", headers=_revalidated(found.tag))


def _revalidated(tag: str) -> dict[str, str]:
    """A browser may keep the picture, but asks each time whether it is still there."""
    return {"ETag": tag, "Cache-Control": "private, no-cache"}


@_reading.post("/api/uploads", status_code=201)
async def upload(file: Annotated[UploadFile, File()], service: Shared, opened: Used) -> UploadOut:
    """Takes a picture to search by, for some time, and tells what is detected in it."""
    content = await _content(file, service)
    until = service.due()
    name, pixels, encoded = await service.decode(
        opened, lambda: opened.take_upload(content, until), until
    )
    height, width = pixels.shape[:2]
    return UploadOut(upload=name, height=height, width=width, regions=_regions(encoded, opened))


@_reading.post("/api/search")
async def search(wanted: SearchIn, service: Shared, opened: Used) -> SearchOut:
    """The pictures that look like a picture, or that contain an object or several."""
    started, until = perf_counter(), service.due()
    queries = [await _asked(own, service, opened, until) for own in wanted.queries]
    without = [await _asked(own, service, opened, until) for own in wanted.without]
    chosen = Filter(
        tuple(wanted.filter.labels),
        wanted.filter.min_score,
        wanted.filter.folder,
        wanted.filter.after,
        wanted.filter.before,
    )
    found = await service.scan(
        opened,
        lambda: opened.collection.search(
            queries=queries,
            without=without,
            mode=wanted.mode,
            filter=chosen,
            limit=wanted.limit,
            offset=wanted.offset,
            near=wanted.near,
            min_prob=wanted.min_prob,
            within=wanted.within,
        ),
        until,
    )
    return SearchOut(
        mode=found.mode,
        boxes=[list(boxes) for boxes in found.boxes],
        without=[list(boxes) for boxes in found.without],
        hits=[_hit(own, opened) for own in found.hits],
        groups=[
            GroupOut(
                category=group.category,
                prob=group.prob,
                hits=[_hit(own, opened) for own in group.hits],
            )
            for group in found.groups
        ],
        offset=found.offset,
        more=found.more,
        searched=found.searched,
        seconds=perf_counter() - started,
    )


@_changing.post("/api/images", status_code=201)
async def add(file: Annotated[UploadFile, File()], service: Shared, opened: Used) -> AddedOut:
    """Adds a picture to the collection; one of the same content is not added twice."""
    content = await _content(file, service)
    name, until = file.filename or "", service.due()
    row, image_id = await service.decode(opened, lambda: opened.add(content, name, until), until)
    return AddedOut(row=row, id=_shown(image_id))


@_changing.delete("/api/images/{row}", status_code=204)
async def remove(row: int, service: Shared, opened: Used) -> Response:
    """Removes a picture from the collection, at once."""
    checked = _checked(row)
    if not await service.read(opened, lambda: opened.remove(checked), service.due()):
        raise HTTPException(404, "no such picture")
    return Response(status_code=204)


async def _asked(own: QueryIn, service: Service, opened: Opened, until: float) -> Asked:
    if (own.upload is None) == (own.image is None):
        raise HTTPException(422, "a query needs either an upload or an image")
    if own.boxes and own.regions:
        raise HTTPException(422, "a query needs either boxes or regions")
    if own.image is not None:
        row = own.image
        if not own.boxes:
            like = await service.read(opened, lambda: opened.collection.id_of(row), until)
            return Asked(like=like, regions=own.regions)
        pixels = await service.decode(opened, lambda: opened.pixels(row, until), until)
        return Asked(pixels, boxes=own.boxes, name=f"picture {row}")
    kept = opened.uploads.get(own.upload)
    if kept is None:
        raise HTTPException(404, "this upload is no longer there; upload the picture again")
    pixels, encoded = kept
    return Asked(pixels, boxes=own.boxes, regions=own.regions, encoded=encoded)


async def _content(file: UploadFile, service: Service) -> bytes:
    content = await file.read(service.limits.upload_bytes + 1)
    if len(content) > service.limits.upload_bytes:
        raise HTTPException(413, f"the file is larger than {service.limits.upload_bytes:,} bytes")
    return content


def _checked(row: int) -> int:
    if not 1 <= row <= MAX_ROW:
        raise HTTPException(404, "no such picture")
    return row


def _shown(image_id: str) -> str:
    """An id that JSON can hold."""
    return image_id.encode("utf-8", "backslashreplace").decode()


def _label(label: int, opened: Opened) -> str | None:
    return opened.collection.classes[label] if label >= 0 else None


def _regions(encoded: EncodedImage, opened: Opened) -> list[RegionOut]:
    own = encoded.regions
    if own is None:
        return []
    return [
        RegionOut(box=tuple(box), label=_label(label, opened), score=score)
        for box, label, score in zip(
            own.boxes.tolist(), own.labels.tolist(), own.scores.tolist(), strict=True
        )
    ]


def _hit(own: Result, opened: Opened) -> HitOut:
    return HitOut(
        row=own.row,
        id=_shown(own.id),
        height=own.size[0],
        width=own.size[1],
        distance=own.distance,
        matches=[
            MatchOut(
                box=match.box,
                distance=match.distance,
                label=_label(match.label, opened),
                score=match.score,
            )
            for match in own.matches
        ],
        classes=list(own.classes),
        taken=own.taken,
        duplicates=[_hit(other, opened) for other in own.duplicates],
    )
