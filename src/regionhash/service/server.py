"""Serves a collection in this process until it is interrupted."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from regionhash.service.app import create_app
from regionhash.service.connections import connection_type
from regionhash.service.limits import LOOPBACK, Limits
from regionhash.service.state import ServiceState

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
    note: Callable[[str], Any] = print,
) -> None:
    """Serves a collection until it is interrupted; see `create_app`.

    Raises:
        ValueError: as `create_app`.
        OSError: the address cannot be listened on.
    """
    limits = limits or Limits()
    app = create_app(folder, token=token, limits=limits, loopback=host in LOOPBACK, device=device)
    state: ServiceState = app.state.service
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listening:
            # Connections inherit it. asyncio sets it only if the socket names its protocol; without
            # it, the body of an answer waits 40 ms for the client to acknowledge the headers.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound = listening.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            note(f"{folder}: {len(state.collection)} pictures at http://{shown}:{bound}/")
            _Server(app, limits).run([listening])
    finally:
        state.close()
        if state.running:  # computing threads cannot be stopped, and may take long
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)


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
