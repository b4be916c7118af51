"""Serves a collection in this process until it is interrupted."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from regionhash.engines import LOCAL
from regionhash.files.text import reason_of
from regionhash.service.app import create_app
from regionhash.service.connections import connection_type
from regionhash.service.limits import LOOPBACK, Limits
from regionhash.service.state import ServiceState

if TYPE_CHECKING:
    from regionhash.models.runtime import RuntimeName

_SECONDS_TO_END = 1  # for answers that are being sent
_INTERRUPTED = 130  # the exit status that shells give SIGINT


def run_server(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    engine: str = LOCAL,
    note: Callable[[str], Any] = print,
) -> None:
    """Serves a collection until it is interrupted; see `create_app`.

    Raises:
        ValueError: as `create_app`; or the address cannot be listened on.
    """
    limits = limits or Limits()
    app = create_app(
        folder,
        token=token,
        limits=limits,
        loopback=host in LOOPBACK,
        device=device,
        runtime=runtime,
        engine=engine,
    )
    state: ServiceState = app.state.service
    # What is there now stays: to look through all of it again held up every request by a quarter
    # of a second, every few seconds.
    gc.collect()
    gc.freeze()
    try:
        with _listening(host, port) as listening:
            # Connections inherit it. asyncio sets it only if the socket names its protocol; without
            # it, the body of an answer waits 40 ms for the client to acknowledge the headers.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound = listening.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            note(f"{folder}: {len(state.collection)} pictures at http://{shown}:{bound}/")
            _Server(app, limits).run([listening])
    finally:
        gc.unfreeze()
        state.close()
        if state.running:  # computing threads cannot be stopped, and may take long
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError with what to do instead."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        advice = "pass another address with --host"
        if error.errno == errno.EADDRINUSE:
            advice = "pass another port with --port; 0 picks a free one"
        elif error.errno in (errno.EACCES, errno.EPERM):
            advice = "pass a port from 1024 on with --port"
        # Python adds the address to the reason of some errors.
        reason = reason_of(error).partition(" (while")[0]
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}; {advice}") from error


class _Server(uvicorn.Server):
    """Answers all waiting requests before it ends."""

    def __init__(self, app: Any, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_type(limits),
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_SECONDS_TO_END,
            )
        )
        self._state: ServiceState = app.state.service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        self._state.stop()
        await super().shutdown(sockets)
