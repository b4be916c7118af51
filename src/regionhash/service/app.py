"""The application: routes, errors and the guard around them, for one collection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from regionhash.engines import LOCAL
from regionhash.service.access import lacks_token
from regionhash.service.guard import RequestGuard
from regionhash.service.limits import LOOPBACK, Limits
from regionhash.service.messages import problems
from regionhash.service.problems import answer_errors
from regionhash.service.routes import ROUTERS
from regionhash.service.state import ServiceState

if TYPE_CHECKING:
    from regionhash.models.runtime import RuntimeName


def create_app(
    folder: Path,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    loopback: bool = True,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    engine: str = LOCAL,
) -> FastAPI:
    """The service of the collection in `folder`.

    Args:
        folder: where the collection is.
        token: what clients must know to change the collection.
        limits: what one request may cost.
        loopback: only this machine can reach the service, under this machine's names; otherwise
            every request requires the token, except those for the page and /health.
        device: where the model runs.
        runtime: what runs it, see `regionhash.models.runtime.load_runtime`.
        engine: what searches the codes, see `regionhash.engines.open_backend`.

    Raises:
        ValueError: no collection, no model, or no token although one is required.
    """
    if not loopback and not token:
        raise ValueError(
            "a service that other machines can reach requires a token: "
            "pass --token or set REGIONHASH_TOKEN"
        )
    limits = limits or Limits()
    state = ServiceState(
        folder,
        limits=limits,
        token=token,
        token_to_read=not loopback,
        device=device,
        runtime=runtime,
        engine=engine,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.close()

    app = FastAPI(
        title="regionhash",
        summary="Find the pictures of a collection that contain an object.",
        version=version("regionhash"),
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from other sites; /openapi.json is the description
        redoc_url=None,
        responses=problems(400, 401, 403, 404, 413, 415, 421, 422, 503, 504),
    )
    app.state.service, app.state.folder = state, folder
    for router in ROUTERS:
        app.include_router(router)
    answer_errors(app)
    app.add_middleware(
        RequestGuard,
        upload_bytes=limits.upload_bytes,
        hosts=LOOPBACK if loopback else None,
        lacks_token=lambda scope: lacks_token(Request(scope), state),
        count=state.metrics.count,
    )
    return app
