"""Pictures into a collection: only what is new or changed is encoded."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regionhash.checkpoints import Checkpoint
from regionhash.collection.database import Database, FileState, NewImage
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, ImageError, read_taken
from regionhash.encoding import EncodingReport, encode_images
from regionhash.sources import Source
from regionhash.store import rows_of
from regionhash.structures import EncodedImage

_COMMIT_SECONDS = 5.0
_COMMIT_IMAGES = 64
"""Encoded pictures that a kill can take; they are encoded again."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AddReport:
    """What came of the pictures that were given.

    Attributes:
        encoding: new and changed pictures, and those that could not be read.
        moved: pictures whose file was found in another place; copied: second files of the same
            bytes. Neither was encoded again.
        removed: pictures whose file is gone.
    """

    encoding: EncodingReport
    moved: int = 0
    copied: int = 0
    removed: int = 0


def add_pictures(
    database: Database,
    model: Any,
    checkpoint: Checkpoint,
    image_set: ImageSet,
    inputs: Sequence[str],
    place: Source,
    *,
    batch_size: int = 8,
    workers: int = 1,
    on_skip: Callable[[str, str], None] | None = None,
    on_progress: Progress | None = None,
) -> AddReport:
    """Stores the pictures that are not stored, or not as they are now.

    A file is known again by its bytes: moved, it keeps its codes; changed, it is encoded again.
    Pictures without files are known by their ids.

    Args:
        database: of the collection.
        model: that made its codes, on the device that it shall run on.
        checkpoint: as well.
        image_set: the pictures.
        inputs: what they were named by, absolute, for `refresh`.
        place: where they lie.
        batch_size: pictures that the model takes at a time.
        workers: processes that read pictures.
        on_skip: called with id and reason of each picture that cannot be read.
        on_progress: called with the pictures done and those to be done in all.

    Raises:
        ValueError: see `encode_images`.
        StoreError: the disk refuses, or another writer holds the database; what was stored before
            stays.
    """
    source = database.source(inputs, place)
    plan = _Plan(database, source)
    ids = tuple(plan.take(image_set, n) for n in range(len(image_set)))
    writer = _Writer(database, checkpoint, source, plan)
    encoding = encode_images(
        model,
        checkpoint,
        replace(image_set, ids=ids),
        writer,
        batch_size=batch_size,
        workers=workers,
        precision=database.header["meta"]["precision"],
        on_skip=on_skip,
        on_progress=on_progress,
    )
    writer.commit()
    return AddReport(encoding, plan.moved, plan.copied)


class _Plan:
    """What is to be done with each picture; what needs no encoding is done at once.

    Attributes:
        done: ids of the pictures that are stored as they are.
        files: of the others, the state of the file, by id.
        moved: number of files found in another place; copied: of second files of the same bytes.
    """

    def __init__(self, database: Database, source: int) -> None:
        self._database = database
        self._source = source
        self.done: set[str] = set()
        self.files: dict[str, FileState] = {}
        self.moved = self.copied = 0

    def take(self, image_set: ImageSet, n: int) -> str:
        """The id of picture `n` in the collection."""
        image_id = image_set.ids[n]
        if not isinstance(image_set.images, FileImages):
            if self._database.read("SELECT 1 FROM images WHERE id = ?", image_id):
                self.done.add(image_id)
            return image_id
        path = image_set.images.paths[n]
        where = os.fsencode(path.absolute())
        known = self._database.read(
            "SELECT row, id, hash, n_bytes, mtime_ns FROM images "
            "WHERE path = ? OR (id = ? AND path IS NULL)",
            where,
            image_id,
        )
        try:
            state = path.stat()
            if known and known[0][2:] == (known[0][2], state.st_size, state.st_mtime_ns):
                self.done.add(known[0][1])
                return str(known[0][1])
            file = file_state(path)
        except OSError:
            return image_id  # reading it tells the reason
        if known:
            row, image_id, hash_before = known[0][:3]
            if hash_before in (None, file.hash):
                self._database.set_file(row, image_id, file, self._source)
                self.done.add(image_id)
                return str(image_id)
        else:
            image_id = self._free(image_id, path)
            if self._known_by_content(image_id, file):
                return image_id
        self.files[image_id] = file
        return image_id

    def _known_by_content(self, image_id: str, file: FileState) -> bool:
        """Takes over the codes of a file of the same bytes, if there is one."""
        twins = self._database.read("SELECT row, path FROM images WHERE hash = ?", file.hash)
        if not twins:
            return False
        gone = [row for row, path in twins if path is None or not Path(os.fsdecode(path)).exists()]
        if gone:
            self._database.set_file(gone[0], image_id, file, self._source)
            self.moved += 1
        else:
            self._database.copy(twins[0][0], image_id, file, self._source)
            self.copied += 1
        self.done.add(image_id)
        return True

    def _free(self, image_id: str, path: Path) -> str:
        """The id, or the whole path where another file has that id."""
        taken = self._database.read("SELECT 1 FROM images WHERE id = ?", image_id)
        if taken or image_id in self.files:
            return os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")
        return image_id


class _Writer:
    """What `encode_images` writes to: gathers some pictures and stores them in one transaction."""

    def __init__(
        self, database: Database, checkpoint: Checkpoint, source: int, plan: _Plan
    ) -> None:
        self.done = plan.done
        self._database = database
        self._source = source
        self._files = plan.files
        self._pending: list[NewImage] = []
        self._committed = time.monotonic()

    def add(
        self, image_id: str, encoded: EncodedImage, labels: Sequence[int] | None = None
    ) -> None:
        """Takes one picture, stored by now or by the next `commit`."""
        rows = rows_of(image_id, encoded, labels, self._database.header)
        file = self._files.get(image_id, FileState())
        self._pending.append(NewImage(image_id, file, self._source, rows))
        waited = time.monotonic() - self._committed
        if len(self._pending) >= _COMMIT_IMAGES or waited > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Stores what was taken."""
        if self._pending:
            self._database.store(self._pending)
        self._pending.clear()
        self._committed = time.monotonic()


def file_state(path: Path) -> FileState:
    """What is kept of a file. Raises OSError where it cannot be read."""
    before = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    try:
        taken = read_taken(path)
    except ImageError:
        taken = None
    if taken is None:
        taken = datetime.fromtimestamp(before.st_mtime, UTC)
    return FileState(
        os.fsencode(path.absolute()),
        digest,
        before.st_size,
        before.st_mtime_ns,
        taken.timestamp(),
    )
