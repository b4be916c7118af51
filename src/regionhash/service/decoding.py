"""Decodes pictures from outside in separate processes, which are killed when they are late."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regionhash.data.image_set import Image
from regionhash.data.images import MAX_PIXELS, ImageError
from regionhash.service.jobs import BusyError

_PROCESS_BYTES = 512 << 20
"""Address space for Python, Pillow and NumPy, which take a third of it."""

_BYTES_A_PIXEL = 18
"""Address space for a picture. The most that was measured is 16.5, by WebP; JPEG and PNG take 8 to
10."""

_COMMAND = (sys.executable, "-P", "-m", "regionhash.data.decoding_process")
_LONGEST_LINE = 1 << 16


class Decoded(NamedTuple):
    """The pixels of a picture, the name Pillow gives its format, and the note of a `ReadImage`."""

    image: Image
    kind: str
    note: str | None


class Decoders:
    """A number of processes that each decode one picture at a time.

    Args:
        places: number of processes. The first is started at once, the others when needed.
        max_pixels: largest picture that is decoded from bytes.
    """

    def __init__(self, places: int, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        memory = _PROCESS_BYTES + _BYTES_A_PIXEL * max_pixels
        self._all = [_Process(memory) for _ in range(places)]
        self._free: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in reversed(self._all):
            self._free.put(process)
        self._all[0].start()

    def decode(self, content: bytes, name: str, until: float) -> Decoded:
        """The picture in the content of a file.

        Args:
            content: the bytes.
            name: for messages.
            until: when the answer is due, as `time.monotonic` counts.

        Raises:
            ImageError: as `read_image_bytes`, or the process gave up or died.
            BusyError: no process became free until then, or `close` was called.
            TimeoutError: it took longer, and the process was killed.
        """
        return self._pixels({"name": name, "bytes": len(content), "size": None}, content, until)

    def read(self, path: Path, name: str, until: float) -> Image:
        """The picture in a file of the collection; otherwise as `decode`."""
        return self._pixels({"name": name, "path": str(path), "size": None}, b"", until).image

    def thumbnail(self, path: Path, name: str, size: int, until: float) -> bytes:
        """The picture in a file as JPEG, its longer side at most `size`; otherwise as `read`."""
        with self._taken(until) as process:
            _, body = process.ask({"name": name, "path": str(path), "size": size}, b"", until)
        return body.tobytes()

    def close(self) -> None:
        """Kills the processes; callers that wait for one get BusyError."""
        for process in self._all:
            process.close()

    def _pixels(self, request: dict[str, Any], content: bytes, until: float) -> Decoded:
        with self._taken(until) as process:
            head, body = process.ask(request | {"max_pixels": self._max_pixels}, content, until)
        height, width = head["shape"]
        return Decoded(body.reshape(height, width, 3), head["kind"], head["note"])

    @contextmanager
    def _taken(self, until: float) -> Iterator[_Process]:
        try:
            process = self._free.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise BusyError("all decoders are busy; try again later") from None
        try:
            yield process
        finally:
            self._free.put(process)


class _Process:
    """A process of `regionhash.data.decoding_process`, replaced when it has died."""

    def __init__(self, memory: int) -> None:
        self._command = (*_COMMAND, str(memory))
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> subprocess.Popen[bytes]:
        """The running process, started if there is none."""
        with self._lock:
            if self._closed:
                raise BusyError("the service is shutting down")
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # so that Ctrl-C does not reach it
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            return self._process

    def close(self) -> None:
        """Kills it for good."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                _end(self._process)

    def ask(
        self, request: dict[str, Any], content: bytes, until: float
    ) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]]:
        """Head and body of the answer; errors as `Decoders.decode`."""
        process = self.start()
        seconds = max(0.0, until - time.monotonic())
        late = threading.Timer(seconds, process.kill)
        late.daemon = True
        late.start()
        whole = False
        try:
            head, body = _exchange(
                process, {"bytes": None, "path": None, "seconds": seconds} | request, content
            )
            whole = True
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self._closed:
                raise BusyError("the service is shutting down") from error
            if time.monotonic() >= until:
                raise TimeoutError(f"{request['name']}: decoding took too long") from error
            raise ImageError(f"{request['name']}: the decoder died on it") from error
        finally:
            late.cancel()
            late.join()
            if not whole or time.monotonic() >= until:
                _end(process)
                with suppress(BusyError):
                    self.start()  # so that the next picture need not wait for it
        if "error" in head:
            raise ImageError(head["error"])
        return head, body


def _exchange(
    process: subprocess.Popen[bytes], request: dict[str, Any], content: bytes
) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.write(content)
    process.stdin.flush()
    head = json.loads(process.stdout.readline(_LONGEST_LINE))
    length = int(head["bytes"])
    if not 0 <= length <= 3 * MAX_PIXELS:
        raise ValueError(f"an answer of {length} bytes")
    body = np.empty(length, np.uint8)
    rest = body.data
    while rest:
        count = process.stdout.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise ValueError("an answer that is cut off")
        rest = rest[count:]
    if "error" not in head and "shape" in head:
        height, width = head["shape"]
        if height * width * 3 != length:
            raise ValueError(f"an answer of {length} bytes for {height} x {width} pixels")
    return head, body


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # unwritten bytes are lost
                stream.close()
