"""The routes of the HTTP interface, and those of the page."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files
from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Depends, File, Query, Request, UploadFile
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from regionhash.collection import Query as CollectionQuery
from regionhash.data.images import ImageError
from regionhash.service.access import (
    PAGE_FILES,
    State,
    delete_cookie,
    given_token,
    may_change,
    may_read,
    set_cookie,
    wrong_token,
)
from regionhash.service.messages import (
    MAX_ROW,
    AddedOut,
    HealthOut,
    ImageLine,
    ImageOut,
    InfoOut,
    ListOut,
    QueryIn,
    RegionOut,
    SearchIn,
    SearchOut,
    UploadOut,
    json_id,
    search_out,
)
from regionhash.service.opened import Opened
from regionhash.service.state import ServiceState

_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: its own files, and pictures that were chosen or pasted."""

_THUMBNAIL_SIZES = (160, 320, 640, 1024, 2048)  # few, so that kept ones are found again

public = APIRouter()
reading = APIRouter(dependencies=[Depends(may_read)])
changing = APIRouter(dependencies=[Depends(may_change)])

ROUTERS = public, reading, changing


async def _opened(state: State) -> AsyncIterator[Opened]:
    async with state.use() as opened:
        yield opened


Used = Annotated[Opened, Depends(_opened)]
RowIn = Annotated[int, Query(ge=0, le=MAX_ROW)]
Size = Annotated[int, Query(ge=16, le=2048)]


# -- the page -------------------------------------------------------------------------------------


@public.get("/", include_in_schema=False)
@public.get("/page.css", include_in_schema=False)
@public.get("/page.js", include_in_schema=False)
def page(request: Request) -> Response:
    """A file of the page. Browsers revalidate each, so that all are of one version."""
    content, tag, media_type = _page_file(PAGE_FILES[request.url.path])
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


@cache
def _page_file(name: str) -> tuple[bytes, str, str]:
    """Content, tag and media type of a file of the page."""
    content = (files("regionhash.service") / "page" / name).read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return content, tag, kind[name.rpartition(".")[2]]


@public.get("/favicon.ico", include_in_schema=False)
def icon() -> Response:
    """Nothing: the icon is in the page."""
    return Response(status_code=204)


# -- monitoring -----------------------------------------------------------------------------------


@public.get(
    "/health",
    response_model=HealthOut,
    response_model_exclude_none=True,
    responses={503: {"model": HealthOut, "description": "It does not work; `reason` states why."}},
)
async def health(state: State) -> Response:
    """Reports whether the service works."""
    reason = state.failure()
    report = HealthOut(
        status="failing" if reason else "ok", pictures=len(state.collection), reason=reason
    )
    return JSONResponse(report.model_dump(exclude_none=True), 503 if reason else 200)


@reading.get("/metrics", include_in_schema=False)
def metrics(state: State) -> Response:
    """Metrics for Prometheus."""
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


# -- the token ------------------------------------------------------------------------------------


@public.post("/api/session", status_code=204)
async def session(request: Request, state: State) -> Response:
    """Stores the token of the Authorization header in a cookie, for the pictures of the page."""
    token = given_token(request)
    if token is None or not state.knows(token):
        raise wrong_token()
    response = Response(status_code=204)
    set_cookie(response, request, token)
    return response


@public.delete("/api/session", status_code=204)
async def end_session(request: Request) -> Response:
    """Deletes the cookie that holds the token."""
    response = Response(status_code=204)
    delete_cookie(response, request)
    return response


# -- reading --------------------------------------------------------------------------------------


@reading.get("/api/collection")
async def info(request: Request, state: State, opened: Used) -> InfoOut:
    """Describes the collection that is served, and the limits of the service."""
    header, table = opened.header, opened.collection.snapshot.table
    return InfoOut(
        pictures=len(opened.collection),
        model=header["model"],
        model_hash=header["model_hash"],
        bits=header["n_bits"],
        region_bits=header["n_region_bits"],
        classes=header["classes"],
        by_category=table.category_codes is not None,
        words=opened.knows_words,
        has_floats=table.region_features is not None,
        has_scores=table.has_scores,
        can_change=state.knows(given_token(request)),
        max_upload_bytes=state.limits.upload_bytes,
        max_pixels=state.limits.pixels,
    )


@reading.get("/api/images")
async def images(
    state: State, opened: Used, after: RowIn = 0, limit: Annotated[int, Query(ge=1, le=200)] = 24
) -> ListOut:
    """Lists the pictures of the collection in the order of their rows."""
    found = await state.read(
        opened, lambda: opened.collection.images(after=after, limit=limit + 1), state.due()
    )
    lines = [
        ImageLine(row=image.row, id=json_id(image.id), height=image.size[0], width=image.size[1])
        for image in found[:limit]
    ]
    return ListOut(images=lines, next=lines[-1].row if len(found) > limit else None)


@reading.get("/api/images/{row}")
async def image(row: int, state: State, opened: Used) -> ImageOut:
    """Returns a picture of the collection with its regions."""
    checked = _checked(row)
    image_id, encoded = await state.read(opened, lambda: opened.regions(checked), state.due())
    return ImageOut(
        row=row,
        id=json_id(image_id),
        height=encoded.size[0],
        width=encoded.size[1],
        regions=RegionOut.list_of(encoded, opened.collection.classes),
    )


@reading.get("/api/images/{row}/picture", responses={200: {"content": {"image/jpeg": {}}}})
async def picture(
    row: int,
    request: Request,
    state: State,
    opened: Used,
    size: Size = 320,
) -> Response:
    """Returns the picture as JPEG, never enlarged.

    Its longer side is at most 160, 320, 640, 1024 or 2048 pixels: the smallest of these that is
    not below `size`.
    """
    taken = next(offered for offered in _THUMBNAIL_SIZES if offered >= size)
    checked, until = _checked(row), state.due()
    try:
        found = await state.read(opened, lambda: opened.known_thumbnail(checked, taken), until)
        if found.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=_revalidated(found.tag))
        if found.content is None:
            found = await state.decode(
                opened, lambda: opened.thumbnail(checked, taken, until), until
            )
    except ImageError as error:
        raise HTTPException(404, "the file of this picture is missing or cannot be read") from error
    return Response(found.content, media_type="image/jpeg", headers=_revalidated(found.tag))


def _revalidated(tag: str) -> dict[str, str]:
    """A browser may keep the picture, but asks each time whether it is still valid."""
    return {"ETag": tag, "Cache-Control": "private, no-cache"}


# -- searching ------------------------------------------------------------------------------------


@reading.post("/api/uploads", status_code=201)
async def upload(file: Annotated[UploadFile, File()], state: State, opened: Used) -> UploadOut:
    """Keeps a picture to search by for a while, and returns the regions detected in it."""
    content = await _content(file, state)
    until = state.due()
    name, decoded, encoded = await state.decode(
        opened, lambda: opened.take_upload(content, until), until
    )
    height, width = decoded.image.shape[:2]
    regions = RegionOut.list_of(encoded, opened.collection.classes)
    return UploadOut(upload=name, height=height, width=width, regions=regions, note=decoded.note)


@reading.get("/api/uploads/{upload}/picture", responses={200: {"content": {"image/jpeg": {}}}})
async def uploaded_picture(upload: str, state: State, opened: Used, size: Size = 320) -> Response:
    """Returns an uploaded picture as JPEG, as it was decoded: what boxes and regions refer to.

    Its size is as that of a picture of the collection.
    """
    taken = next(offered for offered in _THUMBNAIL_SIZES if offered >= size)
    try:
        content = await state.read(
            opened, lambda: opened.upload_thumbnail(upload, taken), state.due()
        )
    except KeyError:
        raise _expired() from None
    return Response(content, media_type="image/jpeg")


def _expired() -> HTTPException:
    return HTTPException(404, "this upload has expired; upload the picture again")


@reading.post("/api/search", response_model=SearchOut)
async def search(wanted: SearchIn, state: State, opened: Used) -> Response:
    """Finds the pictures that look like a picture, or that contain one or several objects."""
    started, until = perf_counter(), state.due()
    whole = bool(wanted.context or wanted.other_class)
    queries = [await _query(query, state, opened, until, whole) for query in wanted.queries]
    without = [await _query(query, state, opened, until) for query in wanted.without]
    request = wanted.to_search(queries, without)
    found = await state.search(opened, request, until)
    message = search_out(found, opened.collection.classes, perf_counter() - started)
    return Response(to_json(message, inf_nan_mode="null"), media_type="application/json")


async def _query(
    query: QueryIn, state: ServiceState, opened: Opened, until: float, whole: bool = False
) -> CollectionQuery:
    """The query as the collection takes it; its picture is decoded only if it must be encoded.

    With `whole`, a picture of the collection brings its own codes beside its boxes.
    """
    if [query.upload is None, query.image is None, query.text is None].count(False) != 1:
        raise HTTPException(422, "a query needs one of an upload, an image and a text")
    if query.text is not None:
        if query.boxes or query.regions:
            raise HTTPException(422, "a text takes no boxes and no regions")
        return CollectionQuery(text=query.text)
    if query.boxes and query.regions:
        raise HTTPException(422, "a query takes either boxes or regions, not both")
    if query.image is not None:
        row = query.image
        if not query.boxes:
            return CollectionQuery(image_id=row, regions=query.regions)
        pixels = await state.decode(opened, lambda: opened.pixels(row, until), until)
        encoded = None
        if whole:
            encoded = (await state.read(opened, lambda: opened.regions(row), until))[1]
        return CollectionQuery(pixels, boxes=query.boxes, name=f"picture {row}", encoded=encoded)
    kept = opened.uploads.get(query.upload)
    if kept is None:
        raise _expired()
    pixels, encoded = kept
    return CollectionQuery(pixels, boxes=query.boxes, regions=query.regions, encoded=encoded)


# -- changing -------------------------------------------------------------------------------------


@changing.post("/api/images", status_code=201)
async def add(file: Annotated[UploadFile, File()], state: State, opened: Used) -> AddedOut:
    """Adds a picture to the collection, unless one with the same content is in it."""
    content = await _content(file, state)
    name, until = file.filename or "", state.due()
    row, image_id, note = await state.decode(
        opened, lambda: opened.add(content, name, until), until
    )
    return AddedOut(row=row, id=json_id(image_id), note=note)


@changing.delete("/api/images/{row}", status_code=204)
async def remove(row: int, state: State, opened: Used) -> Response:
    """Removes a picture from the collection and from all search results, at once."""
    checked = _checked(row)
    if not await state.read(opened, lambda: opened.remove(checked), state.due()):
        raise HTTPException(404, "no such picture")
    return Response(status_code=204)


async def _content(file: UploadFile, state: ServiceState) -> bytes:
    content = await file.read(state.limits.upload_bytes + 1)
    if len(content) > state.limits.upload_bytes:
        raise HTTPException(413, f"the file is larger than {state.limits.upload_bytes:,} bytes")
    return content


def _checked(row: int) -> int:
    if not 1 <= row <= MAX_ROW:
        raise HTTPException(404, "no such picture")
    return row
