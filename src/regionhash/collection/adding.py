"""Adding pictures to a collection: only new and changed ones are encoded."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regionhash.collection.database import OF_HASH, WITHOUT_FILE, Database, FileState, NewImage
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

_WINDOW = 1000
"""Pictures that are looked up, and if need be hashed, before the first of them is encoded."""

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

    Pictures are looked up in windows, so that the first is stored long before the last is found,
    and new ones are encoded before changed ones.

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
        reporter: is told the pictures done and their total, which falls as stored ones are found,
            and those that cannot be read.

    Raises:
        ValueError: see `encode_images`.
        StoreError: writing fails, or another writer holds the database; what was stored before
            stays.
    """
    reporter = _Rising(reporter)
    plan = _Plan(database, image_set, source, again, set(renew), reporter)
    writer = _Writer(database, source, plan)
    from regionhash.models.encoding import encode_images

    encoding = encode_images(
        model,
        checkpoint,
        image_set,
        writer,
        plan,
        batch_size=batch_size,
        workers=workers,
        precision=database.header["meta"]["precision"],
        reporter=reporter,
        on_file=plan.note,
        boxes=boxes,
    )
    writer.commit()
    stored_before = encoding.n_stored_before - plan.n_left_out
    encoding = replace(encoding, n_stored_before=stored_before)
    n_renewed = len(plan.renewed - encoding.skipped.keys())
    return AddReport(encoding, plan.moved, plan.copied, renewed=n_renewed)


def keys_of(database: Database, image_set: ImageSet) -> set[Key]:
    """What names the pictures of a set among the removed ones."""
    if isinstance(image_set.images, FileImages):
        return {database.path_of(path) for path in image_set.images.paths}
    return set(image_set.ids)


_State = Literal["stored", "left out", "new", "replacing"]
"""What is known of a picture; "replacing" codes of its file or name, once it is encoded."""


class _Plan:
    """The rows of pictures that need encoding, found window by window; others are stored at once.

    Those that replace codes come last, when every window was looked up: until then the database has
    the old codes, for a file of the old bytes that comes later. So a file that has moved is found
    however the windows divide the set.

    Attributes:
        n_left_out: number of pictures that were removed before.
        renewed: ids of pictures that are encoded again although they are unchanged.
        files: state of the files that were read, by id.
        moved: number of files that have moved; copied: of further files of the same
            bytes.
    """

    def __init__(
        self,
        database: Database,
        image_set: ImageSet,
        source: int | None,
        again: Container[Key],
        renew: Container[str],
        reporter: Reporter,
    ) -> None:
        self._database = database
        self._image_set = image_set
        self._source = source
        self._again, self._renew = again, renew
        self._reporter = reporter
        self._paths: dict[str, Path] = {}
        if isinstance(image_set.images, FileImages):
            self._paths = dict(zip(image_set.ids, image_set.images.paths, strict=True))
        self._n_rows = len(image_set)
        self.n_left_out = 0
        self.renewed: set[str] = set()
        self.files: dict[str, FileState] = {}
        self.moved = self.copied = 0

    def __len__(self) -> int:
        """How many pictures need encoding, if all do that were not looked up yet."""
        return self._n_rows

    def __iter__(self) -> Iterator[int]:
        """The rows, new pictures first."""
        ids = self._image_set.ids
        replacing: list[int] = []
        for first in range(0, len(ids), _WINDOW):
            self._removals = Removals(self._database)
            new: list[int] = []
            for row in range(len(ids))[first : first + _WINDOW]:
                state = self._look_up(ids[row])
                if state == "stored" and ids[row] in self._renew:
                    self.renewed.add(ids[row])
                    state = "replacing"
                if state in ("stored", "left out"):
                    self._n_rows -= 1
                    self.n_left_out += state == "left out"
                else:
                    (new if state == "new" else replacing).append(row)
            self._reporter.progress(0, len(self))
            yield from new
        if self.n_left_out:
            self._image_set.notices.count("removed before, left out", self.n_left_out)
        yield from replacing

    def note(self, image_id: str, version: FileVersion) -> None:
        """Records the state of a file whose bytes were read for encoding."""
        self.files[image_id] = self._state(self._paths[image_id], version)

    def _state(self, path: Path, version: FileVersion) -> FileState:
        return FileState(self._database.path_of(path), *version)

    def _look_up(self, image_id: str) -> _State:
        """The state of a picture, which is stored if it could be without encoding it."""
        path = self._paths.get(image_id)
        return self._of_name(image_id) if path is None else self._of_file(image_id, path)

    def _of_name(self, image_id: str) -> _State:
        """The state of a picture of a data set without files."""
        found = self._database.one(f"{WITHOUT_FILE} AND source NOT NULL", image_id)
        if found is not None:
            return "stored" if found[1] else "replacing"
        left_out = self._removals.has_name(image_id) and self._stays_out(image_id)
        return "left out" if left_out else "new"

    def _of_file(self, image_id: str, path: Path) -> _State:
        """The state of the picture in a file."""
        found = self._database.of_path(self._database.path_of(path))
        known = found[0] if found and found[1] else None
        otherwise: _State = "new" if found is None else "replacing"
        try:
            state = path.stat()
            if known and (known["n_bytes"], known["mtime_ns"]) == (
                state.st_size,
                state.st_mtime_ns,
            ):
                return "stored"
            file = self._state(path, file_version(path))
        except OSError:
            return otherwise  # reading it will report the reason
        if known:
            return "stored" if self._database.set_file(file, self._source) else otherwise
        if found is None and self._removals.has_file(file) and self._stays_out(image_id, file):
            return "left out"
        if self._has_codes_of(image_id, file):
            return "stored"
        if found is None and self._removals.has_bytes(file) and self._stays_out(image_id, file):
            return "left out"
        return otherwise

    def _stays_out(self, image_id: str, file: FileState | None = None) -> bool:
        """Whether a removed picture stays out; its removal is taken back if it is asked for."""
        key = image_id if file is None or file.path is None else file.path
        if key in self._again:
            forget(self._database, key, None if file is None else file.hash)
            return False
        return True

    def _has_codes_of(self, image_id: str, file: FileState) -> bool:
        """Reuses the codes of a file of the same bytes, if there is one."""
        twins = self._database.read(f"SELECT row, path FROM pictures WHERE {OF_HASH}", file.hash)
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


class _Rising(Reporter):
    """Passes on what it is told; the number of pictures that are done never falls."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._done = reporter, 0

    def stage(self, name: str) -> AbstractContextManager[object]:
        return self._reporter.stage(name)

    def progress(self, done: int, total: int) -> None:
        self._done = max(self._done, done)
        self._reporter.progress(self._done, total)

    def note(self, line: str) -> None:
        self._reporter.note(line)

    def skipped(self, image_id: str, reason: str) -> None:
        self._reporter.skipped(image_id, reason)


class _Writer:
    """Where `encode_images` writes: collects pictures and stores them in batches."""

    def __init__(self, database: Database, source: int | None, plan: _Plan) -> None:
        self._database = database
        self._source = source
        self._plan = plan
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
        file = self._plan.files.pop(image_id, FileState())
        renewed = image_id in self._plan.renewed
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
        found = self._database.of_path(file.path)
        if found is None:
            return was_removed(self._database, file.path, file.hash)
        stored_hash = found[0]["hash"]
        if stored_hash in (None, file.hash):
            return False
        try:
            state = Path(place).stat()
            if (state.st_size, state.st_mtime_ns) == (file.n_bytes, file.mtime_ns):
                return False  # it is still what was read here
            return bool(file_version(place).hash == stored_hash)
        except OSError:
            return False
