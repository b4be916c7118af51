"""What the service holds: the collection, the shared model, recent uploads, thumbnails, figures."""

from __future__ import annotations

import hmac
import io
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar

import anyio
import numpy as np
from anyio import CapacityLimiter
from PIL import Image as PILImage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from regionhash.collection import Collection
from regionhash.data.image_set import Image
from regionhash.data.images import read_image_bytes
from regionhash.encoding import encode_picture
from regionhash.service.encoder import BatchedModel
from regionhash.service.limits import Limits
from regionhash.structures import EncodedImage

_KEPT_UPLOADS_BYTES = 256 << 20
_KEPT_THUMBNAILS_BYTES = 64 << 20
_SYNC_SECONDS = 0.2
"""After which what another process has changed is seen; what this one changes is seen at once."""

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """What was put in last, up to so many bytes."""

    def __init__(self, n_bytes: int) -> None:
        self._room = n_bytes
        self._held: OrderedDict[Any, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: Any, value: Value, n_bytes: int) -> None:
        """Keeps a value; the oldest make room for it."""
        with self._lock:
            self._held[key] = value, n_bytes
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._room:
                self._held.popitem(last=False)

    def get(self, key: Any) -> Value | None:
        """The value, which is then the newest; None where it is no longer kept."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]


class Figures:
    """What Prometheus is told."""

    def __init__(self, collection: Collection) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "regionhash_requests", "Requests answered", ["method", "route", "status"], **own
        )
        self.seconds = Histogram(
            "regionhash_request_seconds",
            "Time of an answer",
            ["route"],
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            **own,
        )
        self.batches = Histogram(
            "regionhash_batch_size", "Pictures encoded at a time", buckets=(1, 2, 4, 8), **own
        )
        pictures = Gauge("regionhash_pictures", "Pictures in the collection", **own)
        pictures.set_function(lambda: len(collection))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


class Service:
    """What all requests share.

    Args:
        folder: of the collection.
        limits: of one request.
        token: what a client must know to change the collection; None lets nobody.
        token_to_read: whether the token is needed to search as well.
        device: where the model runs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits,
        token: str | None,
        token_to_read: bool,
        device: str = "auto",
    ) -> None:
        self.limits, self.token, self.token_to_read = limits, token, token_to_read
        self.collection = Collection.open(folder, device=device, follow=False)
        model, self.checkpoint = self.collection.model
        self.figures = Figures(self.collection)
        precision = self.collection.header["meta"]["precision"]
        self.model = BatchedModel(model, precision, self.figures.batches.observe)
        self.collection.model = self.model, self.checkpoint
        self._precision = precision
        self.uploads: Recent[tuple[Image, EncodedImage]] = Recent(_KEPT_UPLOADS_BYTES)
        self._thumbnails: Recent[bytes] = Recent(_KEPT_THUMBNAILS_BYTES)
        cores = os.cpu_count() or 1
        self._scanning, self._reading = CapacityLimiter(cores), CapacityLimiter(max(4, cores))
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._follower.start()

    def close(self) -> None:
        """Lets go of the collection."""
        self._ended.set()
        self._follower.join()
        self.model.close()
        self.collection.close()

    def _follow(self) -> None:
        while not self._ended.wait(_SYNC_SECONDS):
            self.collection.sync()

    def knows(self, given: str | None) -> bool:
        """Whether this is the token."""
        if self.token is None or given is None:
            return False
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    async def scan(self, call: Callable[[], Value]) -> Value:
        """Runs a search: as many at a time as there are cores."""
        return await self._run(call, self._scanning)

    async def read(self, call: Callable[[], Value]) -> Value:
        """Runs what reads files or waits for the model."""
        return await self._run(call, self._reading)

    async def _run(self, call: Callable[[], Value], limiter: CapacityLimiter) -> Value:
        with anyio.fail_after(self.limits.seconds):
            return await anyio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)

    def take_upload(self, content: bytes) -> tuple[str, Image, EncodedImage]:
        """Encodes an uploaded picture and keeps it for the searches that follow.

        Raises:
            ImageError: no picture, a broken one, or one with too many pixels.
        """
        image = read_image_bytes(content, "upload", max_pixels=self.limits.pixels)
        encoded = encode_picture(self.model, self.checkpoint, image, precision=self._precision)
        name = secrets.token_urlsafe(16)
        self.uploads.put(name, (image, encoded), image.nbytes)
        return name, image, encoded

    def add(self, content: bytes, name: str) -> tuple[int, str]:
        """Stores an uploaded picture in the collection; returns its row and id.

        The file is named by its content, so no name that a client gives becomes a path.

        Raises:
            ImageError: as `take_upload`.
            StoreError: the disk refuses.
        """
        image = read_image_bytes(content, "upload", max_pixels=self.limits.pixels)
        encoded = encode_picture(self.model, self.checkpoint, image, precision=self._precision)
        with PILImage.open(io.BytesIO(content)) as opened:
            kind = opened.format or ""
        suffix = _SUFFIXES.get(kind, f".{kind.lower()}")
        return self.collection.add_upload(content, _plain(name), suffix, encoded)

    def remove(self, row: int) -> bool:
        """Removes a picture, at once; of an upload its file as well."""
        return bool(self.collection.remove_rows([row]))

    def thumbnail(self, row: int, size: int) -> bytes:
        """A picture as JPEG, its longer side at most `size` pixels.

        Raises:
            KeyError: there is no such row.
            ImageError: its file is gone or cannot be read.
        """
        found = self._thumbnails.get((row, size))
        if found is not None:
            return found
        picture = PILImage.fromarray(np.asarray(self.collection.pixels(row)))
        picture.thumbnail((size, size), PILImage.Resampling.LANCZOS)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        self._thumbnails.put((row, size), stream.getvalue(), stream.tell())
        return stream.getvalue()


def _plain(name: str) -> str:
    """The last part of a file's name, in letters that every shell and screen shows as they are."""
    last = PurePath(name.replace("\\", "/")).name
    kept = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in last)
    return kept.encode(errors="replace").decode()[-80:].lstrip(".") or "picture"
