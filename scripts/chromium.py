"""The page in a real Chromium: what its test and its picture in the documentation share."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from typing import Any

import uvicorn

CHROMIUM = which("chromium")
"""Debian's; None where it is not installed."""

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Where a service answers, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def launched(playwright: Any) -> Any:
    """The browser, to be closed by the caller."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
