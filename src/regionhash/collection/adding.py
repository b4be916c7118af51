"""Adding pictures to a collection: only new and changed ones are encoded."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from regionhash.collection.database import Database, FileState, NewImage
from regionhash.collection.removals import Key, Removals, forget, was_removed
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, FileVersion, file_version
from regionhash.files.names import condition_of
from regionhash.reporter import SILENT, Reporter
from regionhash.store import rows_of
from regionhash.structures import EncodedImage

if TYPE_CHECKING:
    from regionhash.data.detections import Boxes, Detector
    from regionhash.models import HashModel
    from regionhash.models.checkpoints import Checkpoint
    from regionhash.models.encoding import EncodingReport
    from regionhash.models.runtime import Runtime

_COMMIT_SECONDS = 5.0
_COMMIT_IMAGES = 64
"""Pictures per transaction: at most this many must be encoded again after a kill."""


@dataclass(frozen=True)
class AddReport:
    """Result of adding pictures.

    Attributes:
        encoding: new and changed pictures, and those that could not be read.
        moved: pictures whose file has moved; copied: further files of the same bytes. Neither was
            encoded again.
        removed: pictures whose file is gone.
        kept: pictures whose file cannot be accessed at the moment.
        renewed: unchanged pictures that were encoded again because boxes of them were given.
    """

    encoding: EncodingReport
    moved: int = 0
    copied: int = 0
    removed: int = 0
    kept: int = 0
    renewed: int = 0


def add_pictures(
    database: Database,
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    image_set: ImageSet,
    source: int | None,
    *,
    again: Container[Key] = (),
    renew: Iterable[str] = (),
    boxes: Boxes | Detector | None = None,
    batch_size: int = 8,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> AddReport:
    """Stores new and changed pictures.

    A file is recognized by its bytes: a moved file keeps its codes, a changed one is encoded again.
    The state stored for a file is that of the bytes that were encoded, even if it changes
    meanwhile. Pictures without files are recognized by their ids.

    Args:
        database: the collection's database.
        model: the model of its codes, on the device to use.
        checkpoint: the checkpoint of the model.
        image_set: the pictures.
        source: number of their source, see `Database.source`.
        again: files, as `Database.path_of` gives them, and names of pictures without files that are
            stored although they were removed before.
        renew: ids in the set of pictures that are encoded again even if they are unchanged; those
            that were removed stay out.
        boxes: see `encode_images`.
        batch_size: pictures that the model takes at a time.
        workers: processes that read pictures.
        reporter: is told the pictures done and their total, and those that cannot be read.

    Raises:
        ValueError: see `encode_images`.
        StoreError: writing fails, or another writer holds the database; what was stored before
            stays.
    """
    plan = _Plan(database, image_set, source, again)
    renewed = plan.done.intersection(renew)
    plan.done -= renewed
    if plan.left_out:
        image_set.notices.count("removed before, left out", len(plan.left_out))
    writer = _Writer(database, source, plan, renewed)
    from regionhash.models.encoding import encode_images

    encoding = encode_images(
        model,
        checkpoint,
        image_set,
        writer,
        batch_size=batch_size,
        workers=workers,
        precision=database.header["meta"]["precision"],
        reporter=reporter,
        on_file=plan.note,
        boxes=boxes,
    )
    writer.commit()
    stored_before = encoding.n_stored_before - len(plan.left_out)
    encoding = replace(encoding, n_stored_before=stored_before)
    n_renewed = len(renewed - encoding.skipped.keys())
    return AddReport(encoding, plan.moved, plan.copied, renewed=n_renewed)


def keys_of(database: Database, image_set: ImageSet) -> set[Key]:
    """What names the pictures of a set among the removed ones."""
    if isinstance(image_set.images, FileImages):
        return {database.path_of(path) for path in image_set.images.paths}
    return set(image_set.ids)


class _Plan:
    """Which pictures need encoding; the others are stored at once.

    Attributes:
        done: ids in the set of pictures that are stored in their current state.
        left_out: ids of pictures that were removed before.
        files: state of the files that were read, by id.
        moved: number of files that have moved; copied: of further files of the same
            bytes.
    """

    def __init__(
        self, database: Database, image_set: ImageSet, source: int | None, again: Container[Key]
    ) -> None:
        self._database = database
        self._source = source
        self._removals = Removals(database)
        self._again = again
        self.left_out: set[str] = set()
        self._paths: dict[str, Path] = {}
        self.files: dict[str, FileState] = {}
        self.moved = self.copied = 0
        if isinstance(image_set.images, FileImages):
            self._paths = dict(zip(image_set.ids, image_set.images.paths, strict=True))
            self.done = {name for name, path in self._paths.items() if self._is_done(name, path)}
        else:
            self.done = {name for name in image_set.ids if self._is_stored(name)}

    def note(self, image_id: str, version: FileVersion) -> None:
        """Records the state of a file whose bytes were read for encoding."""
        self.files[image_id] = self._state(self._paths[image_id], version)

    def _state(self, path: Path, version: FileVersion) -> FileState:
        return FileState(self._database.path_of(path), *version)

    def _is_stored(self, image_id: str) -> bool:
        """Whether a picture of a data set without files is stored."""
        where = "name = ? AND path IS NULL AND source NOT NULL"
        found = self._database.one(where, image_id)
        if found is None and self._removals.has_name(image_id):
            self._leave_out(image_id)
        return found is not None and found[1]

    def _is_done(self, image_id: str, path: Path) -> bool:
        """Whether the picture in a file is stored, or could be without encoding it."""
        found = self._database.one("path = ?", self._database.path_of(path))
        known = found[0] if found and found[1] else None
        try:
            state = path.stat()
            if known and (known["n_bytes"], known["mtime_ns"]) == (
                state.st_size,
                state.st_mtime_ns,
            ):
                return True
            file = self._state(path, file_version(path))
        except OSError:
            return False  # reading it will report the reason
        if known:
            return self._database.set_file(file, self._source)
        if found is None and self._removals.has_file(file) and self._leave_out(image_id, file):
            return False
        if self._has_codes_of(image_id, file):
            return True
        if found is None and self._removals.has_bytes(file):
            self._leave_out(image_id, file)
        return False

    def _leave_out(self, image_id: str, file: FileState | None = None) -> bool:
        """Leaves a removed picture out, unless it is asked for again."""
        key = image_id if file is None or file.path is None else file.path
        if key in self._again:
            forget(self._database, key, None if file is None else file.hash)
            return False
        self.left_out.add(image_id)
        return True

    def _has_codes_of(self, image_id: str, file: FileState) -> bool:
        """Reuses the codes of a file of the same bytes, if there is one."""
        twins = self._database.read("SELECT row, path FROM images WHERE hash = ?", file.hash)
        gone = [
            row
            for row, path in twins
            if isinstance(path, bytes) and condition_of(self._database.place_of(path)) == "gone"
        ]
        for row in gone + [row for row, _ in twins if row not in gone]:
            moved = row in gone
            if self._database.take_codes(row, image_id, file, self._source, moved=moved):
                self.moved += moved
                self.copied += not moved
                return True
        return False


class _Writer:
    """Where `encode_images` writes: collects pictures and stores them in batches."""

    def __init__(
        self, database: Database, source: int | None, plan: _Plan, renewed: set[str]
    ) -> None:
        self.done = plan.done | plan.left_out
        self._database = database
        self._source = source
        self._files = plan.files
        self._renewed = renewed
        self._pending: list[NewImage] = []
        self._committed = time.monotonic()

    def add(
        self, image_id: str, encoded: EncodedImage, labels: Sequence[int] | None = None
    ) -> None:
        """Takes one picture, which the next `commit` stores at the latest."""
        database = self._database
        rows = rows_of(
            image_id, encoded, labels, database.header, keep_features=database.keeps_floats
        )
        file = self._files.pop(image_id, FileState())
        renewed = image_id in self._renewed
        self._pending.append(NewImage(image_id, file, self._source, rows, renewed))
        waited = time.monotonic() - self._committed
        if len(self._pending) >= _COMMIT_IMAGES or waited > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Stores the pictures taken since the last commit, in one transaction."""
        if self._pending:
            self._database.store(self._pending, unless=self._is_outdated)
        self._pending.clear()
        self._committed = time.monotonic()

    def _is_outdated(self, image: NewImage) -> bool:
        """Whether the file was deleted or removed since it was read, or stored by another writer.

        A writer that has read a file before it changed must not replace what a quicker one has
        stored since. The file is read again only if somebody else has stored other bytes of it and
        its size or time do not say that it is still the one that was read here.
        """
        file = image.file
        if file.path is None:
            return False
        place = os.fsdecode(self._database.place_of(file.path))
        if condition_of(place) == "gone":
            return True
        stored = self._database.read("SELECT hash FROM images WHERE path = ?", file.path)
        if not stored:
            return was_removed(self._database, file.path, file.hash)
        if stored[0][0] in (None, file.hash):
            return False
        try:
            state = Path(place).stat()
            if (state.st_size, state.st_mtime_ns) == (file.n_bytes, file.mtime_ns):
                return False  # it is still what was read here
            return bool(file_version(place).hash == stored[0][0])
        except OSError:
            return False
