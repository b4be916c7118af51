"""A collection that is served: its model, recent uploads, thumbnails of its pictures."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from regionhash.collection import Collection
from regionhash.collection.thumbnails import Thumbnails
from regionhash.data.image_set import Image
from regionhash.data.images import ImageError, thumbnail
from regionhash.engines import LOCAL
from regionhash.service.decoding import Decoded, Decoders
from regionhash.service.encoder import BatchedModel
from regionhash.service.lru import LruBytes
from regionhash.structures import EncodedImage

if TYPE_CHECKING:
    from regionhash.models.runtime import RuntimeName

_KEPT_UPLOADS_BYTES = 256 << 20
_KEPT_THUMBNAILS_BYTES = 256 << 20
_SECONDS_TO_END = 1.0  # for the last batch

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "HEIF": ".heic"}


class Thumbnail(NamedTuple):
    """A JPEG, and a tag that changes whenever its picture does."""

    tag: str
    content: bytes | None


class Opened:
    """The collection in a folder. Whoever uses it holds it: `with opened:`, in a thread.

    Once retired, it is closed when nobody holds it. Closing takes up to a second and uses the
    database, so the event loop calls `hold` and `release`, and closes in a thread.

    Attributes:
        collection: whose model is `model`.
        header: the collection's when it was opened; the fields used here never change.

    Args:
        folder: where the collection is.
        device: where the model runs; runtime: what runs it.
        engine: what searches the codes.
        decoders: what decodes pictures.
        on_batch: see `BatchedModel`.

    Raises:
        ValueError: no collection, no model, or its detector is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        runtime: RuntimeName = "auto",
        engine: str = LOCAL,
        decoders: Decoders,
        on_batch: Callable[[int], None],
    ) -> None:
        self.collection = Collection.open(
            folder, device=device, runtime=runtime, follow=False, engine=engine
        )
        try:
            model, self.checkpoint = self.collection.model
            self._detector = self.collection.detector
        except ValueError:
            self.collection.close()
            raise
        self.header = self.collection.header
        self._precision = self.header["meta"]["precision"]
        self.model = BatchedModel(model, self._precision, on_batch)
        self.collection.model = self.model, self.checkpoint
        self.uploads: LruBytes[tuple[Image, EncodedImage]] = LruBytes(_KEPT_UPLOADS_BYTES)
        self._thumbnails = Thumbnails(self.collection.folder, _KEPT_THUMBNAILS_BYTES)
        self._forget_removed()
        self._decoders = decoders
        self._lock = threading.Lock()
        self._holders, self._retired = 0, False

    @property
    def knows_words(self) -> bool:
        """Whether words can be searched for."""
        return bool(getattr(self.model, "knows_words", False))

    # Holding

    def hold(self) -> Self:
        """Keeps it open until `release`."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> bool:
        """Ends a `hold`; whether this was the last one of a retired collection: then `close` it."""
        with self._lock:
            self._holders -= 1
            return self._retired and not self._holders

    def __enter__(self) -> Self:
        return self.hold()

    def __exit__(self, *_: object) -> None:
        if self.release():
            self.close()

    def retire(self) -> None:
        """Closes the collection, now or when nobody holds it."""
        with self._lock:
            self._retired = True
            unused = not self._holders
        if unused:
            self.close()

    def close(self) -> None:
        """Ends the encoder and closes the database connections."""
        self.model.close(_SECONDS_TO_END)
        self._thumbnails.close()
        self.collection.close()

    # Following

    def sync(self) -> None:
        """Takes over changes made by other processes.

        Raises:
            StoreError: see `Collection.sync`.
        """
        _, last_removal = self.collection.snapshot.version
        if self.collection.sync().version[1] != last_removal:
            self._forget_removed()

    def _forget_removed(self) -> None:
        """Drops the thumbnails of pictures that the collection no longer has."""
        snapshot = self.collection.snapshot
        there = snapshot.rows[snapshot.present]
        kept = np.array(self._thumbnails.rows(), np.int64)
        self._thumbnails.drop(kept[~np.isin(kept, there)].tolist())

    # Pictures

    def take_upload(self, content: bytes, until: float) -> tuple[str, Decoded, EncodedImage]:
        """Encodes an uploaded picture and keeps it for later searches, under the name returned.

        Raises:
            ImageError, BusyError, TimeoutError: see `Decoders.decode`.
        """
        decoded = self._decoders.decode(content, "upload", until)
        encoded = self._encoded(decoded.image)
        name = secrets.token_urlsafe(16)
        self.uploads.put(name, (decoded.image, encoded), decoded.image.nbytes)
        return name, decoded, encoded

    def upload_thumbnail(self, name: str, size: int) -> bytes:
        """An uploaded picture as JPEG, its longer side at most `size` pixels.

        Raises:
            KeyError: it is no longer kept.
        """
        kept = self.uploads.get(name)
        if kept is None:
            raise KeyError(name)
        return thumbnail(kept[0], size)

    def regions(self, row: int) -> tuple[str, EncodedImage]:
        """Id and codes of the picture of a row. Raises KeyError."""
        image_id = self.collection.get(row).id
        return image_id, self.collection.encoded(image_id)

    def pixels(self, row: int, until: float) -> Image:
        """The picture of a row, (H, W, 3) uint8 RGB.

        Raises:
            KeyError: there is no such row.
            ImageError, BusyError, TimeoutError: see `Decoders.decode`.
        """
        path = self.collection.get(row).path
        if path is None:  # a picture of a data set without files
            return self.collection.pixels(row)
        return self._decoders.read(path, f"picture {row}", until)

    def known_thumbnail(self, row: int, size: int) -> Thumbnail:
        """The tag of a thumbnail if it were made now, and its content if that is kept.

        Raises:
            KeyError: there is no such row.
            ImageError: its file is missing.
        """
        tag = self._tag(row, size, self.collection.get(row).path)
        return Thumbnail(tag, self._thumbnails.get(row, size, tag))

    def thumbnail(self, row: int, size: int, until: float) -> Thumbnail:
        """A picture as JPEG, its longer side at most `size` pixels.

        Raises:
            KeyError: there is no such row.
            ImageError, BusyError, TimeoutError: see `Decoders.decode`.
        """
        path = self.collection.get(row).path
        tag = self._tag(row, size, path)
        if path is None:
            content = thumbnail(self.collection.pixels(row), size)
        else:
            content = self._decoders.thumbnail(path, f"picture {row}", size, until)
        self.collection.get(row)  # raises KeyError if it was removed meanwhile
        self._thumbnails.put(row, size, tag, content)
        return Thumbnail(tag, content)

    def _tag(self, row: int, size: int, path: Path | None) -> str:
        """The tag of the picture of a row, whose file is as it is now."""
        state: tuple[int, ...] = ()
        if path is not None:
            try:
                found = path.stat()
            except OSError as error:
                raise ImageError(f"picture {row}: its file is missing") from error
            state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        content = repr((self.header["uuid"], row, size, state))
        return f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'

    def _encoded(self, image: Image) -> EncodedImage:
        from regionhash.models.encoding import encode_picture

        return encode_picture(
            self.model,
            self.checkpoint,
            image,
            precision=self._precision,
            detector=self._detector,
        )

    # Changing

    def add(self, content: bytes, name: str, until: float) -> tuple[int, str, str | None]:
        """Stores an uploaded picture in the collection; returns its row, id and note.

        Raises:
            ImageError, BusyError, TimeoutError: see `Decoders.decode`.
            StoreError: the disk refuses.
        """
        image, kind, note = self._decoders.decode(content, "upload", until)
        suffix = _SUFFIXES.get(kind, f".{kind.lower()}")
        row, image_id = self.collection.add_upload(
            content, _plain(name), suffix, self._encoded(image)
        )
        return row, image_id, note

    def remove(self, row: int) -> bool:
        """Removes a picture at once, and its file if it was uploaded."""
        removed = self.collection.remove_rows([row])
        self._thumbnails.drop([row])
        return bool(removed)


def _plain(name: str) -> str:
    """The last part of a file's name, reduced to characters that are safe in any shell."""
    last = PurePath(name.replace("\\", "/")).name
    kept = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in last)
    return kept.encode(errors="replace").decode()[-80:].lstrip(".") or "picture"
