"""A collection: a folder with a model, a database of pictures, and arrays to search them.

photos.collection/
  model.json, model.safetensors   an ordinary checkpoint
  collection.db                   the source of truth
  arrays/                         derived, rebuilt when missing or stale
  uploads/                        files that the service was given
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.arrays import Arrays, Snapshot, without_removed
from regionhash.collection.checking import CheckReport, check, header_of_model
from regionhash.collection.database import (
    DATABASE_FILE,
    UPLOADS_FOLDER,
    Columns,
    Database,
    FileState,
    HeaderError,
    NewImage,
    Place,
)
from regionhash.collection.filters import Masks
from regionhash.collection.results import Results, results_of, rows_of_hits
from regionhash.collection.transfer import import_code_file, write_code_file
from regionhash.files.atomic import as_shown, condition_of, replacing
from regionhash.search.request import Filter, Query, Search
from regionhash.search.run import Answer, QueryPicture, marked, read_query, run
from regionhash.store import CodeSet, StoreError, rows_of
from regionhash.structures import Box, EncodedImage, Mask, renamed

if TYPE_CHECKING:
    from regionhash.collection.adding import AddReport
    from regionhash.data.image_set import ImageSet
    from regionhash.data.inputs import Source
    from regionhash.models import HashModel
    from regionhash.models.checkpoints import Checkpoint

Progress = Callable[[int, int], None]


class Collection:
    """A collection, opened. Several threads may use one object; several processes one folder.

    Example:
        with Collection.open("photos.collection") as photos:
            for hit in photos.search("cat.jpg", boxes=[(40, 30, 220, 200)]).hits:
                print(hit.id, hit.distance, hit.matches[0].box)

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path, *, device: str = "auto", follow: bool = True) -> None:
        self.folder = folder
        self._device = device
        self._follow = follow
        self._local = threading.local()
        self._identity: tuple[Place, str] | None = None
        self._databases: WeakSet[Database] = WeakSet()  # one per thread that lives
        self._loading, self._following = threading.Lock(), threading.Lock()
        self._model: tuple[HashModel, Checkpoint] | None = None
        self._arrays = Arrays(folder)
        self._masks = Masks()
        self._snapshot = self._arrays.follow(self._database)

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", follow: bool = True) -> Self:
        """Opens the collection in a folder; the model is loaded when it is needed.

        Args:
            path: the folder.
            device: where the model runs: "cpu", "cuda" or "auto".
            follow: look at each search whether the database has changed; else `sync` does.

        Raises:
            StoreError: no collection, a damaged one, or one of another version.
        """
        folder = Path(path)
        if not is_collection(folder):
            raise StoreError(
                f"{folder}: no collection; `regionhash index PICTURES -o {folder}` makes one"
            )
        return cls(folder, device=device, follow=follow)

    @classmethod
    def create(cls, folder: Path, *, device: str = "auto") -> Self:
        """The collection of the model in `folder`, empty where there was none.

        Raises:
            ValueError: no model is there.
            StoreError: a collection of another model is there, or the disk refuses.
        """
        Database.create(folder / DATABASE_FILE, header_of_model(folder)).close()
        return cls(folder, device=device)

    @classmethod
    def of_code_file(cls, folder: Path, path: Path, *, device: str = "auto") -> Self:
        """The collection in `folder` with the pictures of a code file added to it.

        Where `folder` has no model, that of the code file is copied there.

        Raises:
            StoreError: the file cannot be used, or is of another model than the collection.
            ValueError: the model of the file is not where it was.
        """
        file = CodeSet.open(path)
        _copy_model(file, folder)
        header = {
            "model": file.model,
            "model_hash": file.model_hash,
            "classes": list(file.classes),
            "n_bits": file.n_bits,
            "n_region_bits": file.n_region_bits,
            "meta": {
                "precision": file.meta.get("precision", "32-true"),
                "provenance": file.meta.get("provenance", {}),
            },
        }
        target = folder / DATABASE_FILE
        if not target.exists():  # all of it or nothing, so that no kill hides the rest
            with (
                suppress(FileExistsError),  # another process was quicker
                replacing(target, exclusive=True) as new,
                Database.create(new, header) as database,
            ):
                import_code_file(database, file)
        with Database.create(target, header) as database:
            import_code_file(database, file)
        return cls(folder, device=device)

    def close(self) -> None:
        """Closes the connections to the database."""
        for database in list(self._databases):
            database.close()
        self._databases.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.snapshot)

    @property
    def _database(self) -> Database:
        """The connection of this thread."""
        if not hasattr(self._local, "database"):
            opened = Database(self.folder / DATABASE_FILE)
            self._identity = self._identity or opened.identity
            if opened.identity != self._identity:  # replaced before this thread first looked
                raise opened.replaced()
            self._local.database = opened
            self._databases.add(opened)
        database: Database = self._local.database
        return database

    @property
    def snapshot(self) -> Snapshot:
        """The pictures as they are now; without `follow`, as they were at the last `sync`."""
        return self.sync() if self._follow else self._snapshot

    def sync(self) -> Snapshot:
        """Takes over what has changed in the database; waits where another thread does that.

        Raises:
            CollectionMissingError: the collection is gone from its place.
            CollectionReplacedError: another one is there.
            StoreError: it cannot be read.
        """
        with self._following:
            self._snapshot = self._arrays.follow(self._database, self._snapshot)
            return self._snapshot

    def _show_removals(self) -> None:
        """`sync` after pictures were removed; if the disk refuses, they are hidden all the same."""
        try:
            self.sync()
        except StoreError:
            with self._following:
                self._snapshot = without_removed(self._database, self._snapshot)

    @property
    def header(self) -> dict[str, Any]:
        """Model, model_hash, classes, n_bits, n_region_bits and meta."""
        return self._database.header

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the model."""
        return self._snapshot.table.classes

    @property
    def model(self) -> tuple[HashModel, Checkpoint]:
        """The model and what is known of it.

        Raises:
            ValueError: it is not in the folder, damaged, or not the one that made the codes.
        """
        with self._loading:
            if self._model is None:
                from regionhash.models.checkpoints import load_checkpoint
                from regionhash.models.encoding import pick_device

                model, checkpoint = load_checkpoint(self.folder)
                if checkpoint.model_hash != self.header["model_hash"]:
                    raise ValueError(
                        f"{self.folder}: the codes are of the model {self.header['model_hash']}, "
                        f"which {checkpoint.model_hash} beside them is not"
                    )
                self._model = model.to(pick_device(self._device)), checkpoint
            return self._model

    @model.setter
    def model(self, given: tuple[HashModel, Checkpoint]) -> None:
        self._model = given

    # Searching

    @renamed(like="image_id", without="exclude", near="group_within", within="max_distance")
    def search(
        self,
        image: str | Path | NDArray[np.uint8] | None = None,
        *,
        image_id: str | None = None,
        boxes: Sequence[Box] = (),
        regions: Sequence[int] = (),
        queries: Sequence[Query] = (),
        filter: Filter | None = None,
        **options: Any,
    ) -> Results:
        """The pictures that look like a picture, or that contain an object or several.

        Args:
            image: a picture to search by; with `image_id`, `boxes` and `regions` as in `Query`.
            image_id: instead of `image`, the id of a picture of the collection.
            boxes: objects in it.
            regions: numbers of its regions that are the objects.
            queries: more pictures to search by.
            filter: which pictures are searched.
            options: other fields of `Search`: exclude, mode, steps, limit, offset, ...

        Raises:
            ValueError: nothing to search by, or what `find`, `Filter` and `Query` refuse.
            KeyError: `image_id` is no picture of the collection.
        """
        asked = list(queries)
        if image is not None or image_id is not None:
            asked.insert(0, Query(image, image_id, boxes, regions))
        return self.results(Search(asked, filter=filter or Filter(), **options))

    def results(self, search: Search) -> Results:
        """The answer to a search, with what the collection knows of the pictures; see `find`."""
        answer, snapshot = self._run(search)
        return results_of(answer, snapshot, self._paths(rows_of_hits(answer, snapshot)))

    def find(self, search: Search) -> Answer:
        """The answer to a search, with the codes that were searched.

        Raises:
            ValueError: see `regionhash.search.run.run` and `mask_of`.
            KeyError: a query names no picture of the collection.
        """
        return self._run(search)[0]

    def _run(self, search: Search) -> tuple[Answer, Snapshot]:
        snapshot, mask = self._searched(search.filter)
        answer = run(
            *self.model,
            self._codes(snapshot),
            search,
            picture_of=lambda query: self._query_picture(query, snapshot),
            mask=mask,
        )
        return answer, snapshot

    def codes(self) -> CodeSet:
        """The collection as it is now, for everything that reads codes."""
        return self._codes(self.sync())

    def code_file(self) -> CodeSet:
        """`codes` without removed pictures."""
        return self.codes().compact()

    def _codes(self, snapshot: Snapshot) -> CodeSet:
        header = self.header
        places = self._places()
        everywhere: Source = {"folder": "/", "suffix": ""}  # ids may be whole paths
        return CodeSet(
            path=self.folder / DATABASE_FILE,
            table=snapshot.table,
            model=header["model"],
            model_hash=header["model_hash"],
            n_bits=header["n_bits"],
            n_region_bits=header["n_region_bits"],
            meta=header["meta"]
            | {
                "checkpoint": str(self.folder.absolute()),
                "sources": [*({json.dumps(place): place for place in places}.values()), everywhere],
            },
            labels=snapshot.labels if header.get("labelled") else None,
            alive=snapshot.alive,
        )

    def _searched(self, wanted: Filter) -> tuple[Snapshot, Mask | None]:
        """The pictures, and which of them a filter lets through, both of one moment."""
        if wanted.folder is None:
            snapshot = self.snapshot
            return snapshot, self._masks.of(wanted, snapshot, self._database)
        # Where files lie is in the database alone.
        with self._arrays.at_moment(self._database, self._snapshot) as snapshot:
            return snapshot, self._masks.of(wanted, snapshot, self._database)

    def _query_picture(self, query: Query, snapshot: Snapshot) -> QueryPicture:
        if query.image_id is None:
            return read_query(query)
        stored, encoded = self._stored(query.image_id, snapshot)
        pixels = self._pixels(stored) if query.boxes else None
        return marked(query.image_id, pixels, query, encoded)

    # Pictures

    def image(self, image_id: str) -> tuple[int, EncodedImage]:
        """Row number and codes of a picture. Raises KeyError for an id that is not there."""
        stored, encoded = self._stored(image_id, self.snapshot)
        return int(stored["row"]), encoded

    def images(self, *, after: int = 0, limit: int = 100) -> list[tuple[int, str, int, int]]:
        """Row, id, height and width of the pictures of the rows above `after`, in their order."""
        with self._database.moment():
            rows = self._database.rows(after, at_a_time=limit)
            found = (columns for _, columns in rows if columns is not None)
            return [
                (columns["row"], columns["id"], columns["height"], columns["width"])
                for columns in islice(found, limit)
            ]

    def ids(self) -> list[tuple[int, str]]:
        """Row number and id of each picture, in the order of the rows."""
        with self._database.moment():
            return [
                (row, columns["id"])
                for row, columns in self._database.rows()
                if columns is not None
            ]

    def id_of(self, row: int) -> str:
        """The id of the picture of a row. Raises KeyError."""
        return str(self._columns(row)["id"])

    def path(self, row: int) -> Path | None:
        """The file of the picture of a row; None of one without. Raises KeyError."""
        return self._path(self._columns(row)["path"])

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row, (H, W, 3) uint8 RGB.

        Raises:
            KeyError: there is no such row.
            ImageError: the file is gone or cannot be read.
        """
        return self._pixels(self._columns(row))

    def picture(self, image_id: str) -> NDArray[np.uint8]:
        """The picture with an id, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it is no longer in the collection, or its file is gone or cannot be read.
        """
        from regionhash.data.images import ImageError

        found = self._database.intact("id = ?", as_shown(image_id))
        if found is None:
            raise ImageError(f"{image_id}: is no longer in {self.folder}")
        return self._pixels(found)

    def _columns(self, row: int) -> Columns:
        columns = self._database.intact("row = ?", row)
        if columns is None:
            raise KeyError(row)
        return columns

    def _stored(self, image_id: str, snapshot: Snapshot) -> tuple[Columns, EncodedImage]:
        """Columns and codes of a picture, which may be newer than the snapshot."""

        def columns() -> Columns:
            found = self._database.intact("id = ?", as_shown(image_id))
            if found is None:
                raise KeyError(image_id)
            return found

        stored = columns()
        if not snapshot.holds(stored["row"]):
            with self._arrays.at_moment(self._database, self._snapshot) as snapshot:
                stored = columns()
        indices = snapshot.indices_of(np.array([stored["row"]], np.int64))
        if not len(indices):
            raise KeyError(image_id)
        return stored, snapshot.table.picture(int(indices[0]))

    def _pixels(self, columns: Columns) -> NDArray[np.uint8]:
        from regionhash.data.images import read_image
        from regionhash.data.inputs import Pictures

        path = self._path(columns["path"])
        if path is not None:
            return read_image(path)
        return Pictures(self._places("WHERE source = ?", columns["source"]))[columns["name"]]

    def _path(self, path: bytes | None) -> Path | None:
        return None if path is None else Path(os.fsdecode(self._database.place_of(path)))

    def _paths(self, rows: Sequence[int]) -> dict[int, Path]:
        """The files of some rows; of those that are in no file, or removed by now, none."""
        found = self._database.read(
            "SELECT row, path FROM images WHERE typeof(path) = 'blob' "
            "AND row IN (SELECT value FROM json_each(?))",
            json.dumps(rows),
        )
        place_of = self._database.place_of
        return {row: Path(os.fsdecode(place_of(path))) for row, path in found}

    def _places(self, where: str = "", *values: Any) -> list[Source]:
        """Where pictures are, of all sources or of some; damaged ones are left out."""
        places = []
        for (text,) in self._database.read(f"SELECT place FROM sources {where}", *values):
            with suppress(TypeError, ValueError):
                place = json.loads(text)
                if isinstance(place, dict) and all(map(isinstance, place.values(), repeat(str))):
                    places.append(place)
        return places

    # Changing

    def add(
        self,
        inputs: Sequence[str],
        *,
        batch_size: int = 8,
        workers: int = 1,
        on_skip: Callable[[str, str], None] | None = None,
        on_progress: Progress | None = None,
    ) -> AddReport:
        """Stores the pictures that are not stored, or not as they are now; see `add_pictures`.

        Raises:
            ValueError: no picture is there, or it has classes that the model does not know.
            StoreError: the disk refuses; what was stored before stays.
        """
        from regionhash.data.inputs import absolute_inputs, open_inputs

        image_set, place = open_inputs(inputs)
        return self.add_set(
            image_set,
            absolute_inputs(inputs),
            place,
            batch_size=batch_size,
            workers=workers,
            on_skip=on_skip,
            on_progress=on_progress,
        )

    def add_set(
        self, image_set: ImageSet, inputs: Sequence[str], place: Source, **options: Any
    ) -> AddReport:
        """`add` for a set that is open already."""
        from regionhash.collection.adding import add_pictures

        source = self._database.source(inputs, place)
        report = add_pictures(self._database, *self.model, image_set, source, **options)
        self.sync()
        return report

    def refresh(
        self,
        *,
        batch_size: int = 8,
        workers: int = 1,
        on_skip: Callable[[str, str], None] | None = None,
        on_progress: Progress | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> list[AddReport]:
        """Makes the collection what its folders are now; one report per `add` there has been.

        New pictures are added, changed ones encoded again, moved ones found, and those whose file
        is gone removed. Where nothing is left of what was added, as of a disk that is not mounted,
        its pictures are kept and `on_lost` is told.
        """
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "workers": workers,
            "on_skip": on_skip,
            "on_progress": on_progress,
        }
        reports, told = {}, on_lost or (lambda _: None)
        for source, text in self._database.read("SELECT source, inputs FROM sources ORDER BY 1"):
            try:
                reports[source] = self.add(_inputs(text), **options)
            except StoreError:
                raise
            except (ValueError, OSError) as error:
                told(f"{error}; its pictures are kept")
        # Only now: what has moved from one source to another was found there.
        for source, (removed, kept) in self._remove_gone(reports, told).items():
            reports[source] = replace(reports[source], removed=removed, kept=kept)
        reports |= self._encode_damaged_again(reports, options)
        self.sync()
        return list(reports.values())

    def _remove_gone(
        self, sources: Iterable[int], told: Callable[[str], None]
    ) -> dict[int, tuple[int, int]]:
        """Removes the pictures of some sources whose file is gone.

        Returns:
            Of each source how many they were, and how many are kept since their file cannot be
            looked at.
        """
        files: dict[int, list[tuple[int, bytes, str]]] = {source: [] for source in sources}
        with self._database.moment():
            for row, own in self._database.rows():
                if own is not None and own["path"] is not None and own["source"] in files:
                    files[own["source"]].append((row, own["path"], own["id"]))
        counts = {}
        for source, known in files.items():
            gone, kept = [], 0
            for row, path, image_id in known:
                condition = condition_of(self._database.place_of(path))
                if condition == "gone":
                    gone.append((row, path))
                elif condition == "unreadable":
                    kept += 1
                    told(f"{image_id}: its file cannot be looked at; the picture is kept")
            counts[source] = self._database.remove_gone(gone), kept
        return counts

    def _encode_damaged_again(
        self, refreshed: Mapping[int, AddReport], options: dict[str, Any]
    ) -> dict[int, AddReport]:
        """Encodes pictures again whose row is damaged and that no refreshed source holds."""
        with self._database.moment():
            damaged = self._database.damaged()
        # What a refreshed source holds has been encoded again by now, as a row of its own.
        self._database.remove(own["row"] for own in damaged if own["source"] in refreshed)
        again = [
            own
            for own in damaged
            if own["source"] not in refreshed
            and isinstance(own["id"], str)
            and isinstance(own["path"], bytes)
            and condition_of(self._database.place_of(own["path"])) == "there"
        ]
        if not again:
            return {}
        from regionhash.collection.adding import add_pictures
        from regionhash.data.inputs import open_inputs

        files = [os.fsdecode(self._database.place_of(own["path"])) for own in again]
        image_set, _ = open_inputs(files)
        image_set = replace(image_set, ids=tuple(own["id"] for own in again))
        return {-1: add_pictures(self._database, *self.model, image_set, None, **options)}

    def remove(self, names: Sequence[str]) -> int:
        """Removes pictures, at once; their files stay. Returns how many.

        Args:
            names: ids, files, or folders, of which all pictures below are removed.

        Raises:
            ValueError: a name that is nothing in the collection; then nothing is removed.
        """
        with self._database.transaction():
            rows = {row for name in names for row in self._rows_of(name)}
            files = self._own_files(rows)
            removed = self._database.delete(rows)
        self._remove_files(files)
        self._show_removals()
        return removed

    def remove_rows(self, rows: Sequence[int]) -> int:
        """Removes pictures by row number, at once; returns how many were there."""
        with self._database.transaction():
            files = self._own_files(rows)
            removed = self._database.delete(rows)
        self._remove_files(files)
        self._show_removals()
        return removed

    def _rows_of(self, name: str) -> list[int]:
        if not name:
            raise ValueError("the name of a picture, a file or a folder must not be empty")
        found = self._database.read("SELECT row FROM images WHERE id = ?", as_shown(name))
        rows = [row for (row,) in found] + self._database.rows_at(name)
        if not rows:
            raise ValueError(f"{name}: no picture of {self.folder}, and no folder with one")
        return rows

    def _own_files(self, rows: Iterable[int]) -> list[bytes]:
        """Of some pictures, the files that only the collection knows: those of uploads."""
        found = self._database.read(
            "SELECT path FROM images WHERE typeof(path) = 'blob' AND substr(path, 1, 1) != x'2f' "
            "AND row IN (SELECT value FROM json_each(?))",
            json.dumps(list(rows)),
        )
        return [path for (path,) in found]

    def _remove_files(self, files: Iterable[bytes]) -> None:
        """Removes files that belong to no picture; one may have been uploaded again by now."""
        for file in files:
            path = self.folder / UPLOADS_FOLDER / Path(os.fsdecode(file)).name
            with self._database.transaction():
                if not self._database.read("SELECT 1 FROM images WHERE path = ?", file):
                    path.unlink(missing_ok=True)

    def add_upload(
        self, content: bytes, name: str, kind: str, encoded: EncodedImage
    ) -> tuple[int, str]:
        """Stores a picture that came as bytes, and its file among the collection's own.

        One of the same content as a picture that is there is not stored a second time.

        Args:
            content: of the file, which is named by it.
            name: what people call the picture; part of its id.
            kind: suffix of the file, as ".jpg".
            encoded: by the collection's model.

        Returns:
            Row and id of the picture.

        Raises:
            StoreError: the disk refuses; then nothing is stored.
        """
        digest = hashlib.sha256(content)
        path = self.folder / UPLOADS_FOLDER / (digest.hexdigest()[:32] + kind)
        image_id = f"{UPLOADS_FOLDER}/{digest.hexdigest()[:8]}-{name}"
        database = self._database
        with database.transaction():  # in which `check` removes what belongs to no picture
            known = database.intact("hash = ?", digest.digest())
            if known is None:
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
                state = path.stat()
                file = FileState(
                    database.path_of(path),
                    digest.digest(),
                    len(content),
                    state.st_mtime_ns,
                    state.st_mtime,
                )
                rows = rows_of(image_id, encoded, None, self.header)
                row = database.put(NewImage(image_id, file, None, rows))
                known = database.intact("row = ?", row)
        assert known is not None  # what was stored in a transaction can be read in it
        self.sync()
        return int(known["row"]), str(known["id"])

    # Keeping

    def info(self) -> dict[str, Any]:
        """What the collection is, for people and machines."""
        snapshot = self.snapshot
        header = self.header
        codes = snapshot.table.region_codes
        sources = self._database.read(
            "SELECT inputs, count(row) FROM sources LEFT JOIN images USING (source) GROUP BY source"
        )
        return {
            "pictures": len(snapshot),
            "regions": 0 if codes is None else len(codes),
            "removed_rows": len(snapshot.rows) - len(snapshot),
            "bits": header["n_bits"],
            "region_bits": header["n_region_bits"],
            "labels": bool(header.get("labelled")),
            "classes": header["classes"],
            "model": header["model"],
            "model_hash": header["model_hash"],
            "added": [{"inputs": _shown_inputs(text), "pictures": n} for text, n in sources],
            "bytes": _n_bytes(self.folder),
            **header["meta"],
        }

    def check(self, *, repair: bool = False) -> CheckReport:
        """Compares database, arrays and files; see `regionhash.collection.checking.check`.

        Args:
            repair: set right what can be.
        """
        report = check(self._database, self._arrays, repair=repair)
        self.sync()
        return report

    def export(self, path: Path) -> int:
        """Writes a code file of all pictures; returns how many.

        Raises:
            ValueError: something is there already.
            StoreError: the disk refuses.
        """
        with self._arrays.at_moment(self._database, self._snapshot) as snapshot:
            codes = self._codes(snapshot)
            files = {
                image_id: self._database.place_of(path)
                for image_id, path in self._database.read(
                    "SELECT id, path FROM images WHERE typeof(path) = 'blob'"
                )
            }
        return write_code_file(path, codes, files)

    def import_codes(self, path: Path) -> int:
        """Adds the pictures of a code file of the same model; returns how many were new.

        Raises:
            StoreError: the file cannot be used, or is of another model.
        """
        file = CodeSet.open(path)
        if file.model_hash != self.header["model_hash"]:
            raise StoreError(
                f"{path}: of the model {file.model_hash}, {self.folder} is of "
                f"{self.header['model_hash']}"
            )
        stored = import_code_file(self._database, file)
        self.sync()
        return stored


def check_folder(folder: Path, *, repair: bool = False) -> CheckReport:
    """`Collection.check` of a folder, also where the header is damaged and nothing can be opened.

    Raises:
        ValueError: no collection, or no model to build the header from.
    """
    repaired: tuple[str, ...] = ()
    try:
        collection = Collection.open(folder)
    except HeaderError as error:
        if not repair:
            return CheckReport(0, (str(error),), (), ())
        Database.rebuild_header(folder / DATABASE_FILE, header_of_model(folder))
        repaired = (f"{folder / DATABASE_FILE}: the header was built anew from the model",)
        collection = Collection.open(folder)
    with collection:
        report = collection.check(repair=repair)
    return replace(report, repaired=repaired + report.repaired)


def is_collection(path: Path) -> bool:
    """Whether a folder is a collection."""
    return (path / DATABASE_FILE).exists()


def model_hash_of(folder: Path) -> str:
    """The hash of the model of a collection. Raises StoreError as `Collection.open`."""
    with Database(folder / DATABASE_FILE) as database:
        return str(database.header["model_hash"])


def open_codes(path: str | Path) -> CodeSet:
    """The codes of a code file or of a collection; nothing is written.

    Args:
        path: the file, or the folder of the collection.

    Raises:
        StoreError: see `CodeSet.open` and `Collection.open`.
    """
    path = Path(path)
    if not path.is_dir():
        return CodeSet.open(path)
    with Collection.open(path) as collection:
        return collection.codes()


def _copy_model(file: CodeSet, folder: Path) -> None:
    """Puts the model of a code file into a folder that has none."""
    from regionhash.models.checkpoints import CONFIG_FILE, copy_checkpoint, model_folder

    if (folder / CONFIG_FILE).exists():
        return
    origin = model_folder(file)
    if not origin.exists():
        raise ValueError(f"{origin}: the model of {file.path} is not there")
    copy_checkpoint(origin, folder)


def _inputs(text: Any) -> list[str]:
    """What a source was named by. Raises ValueError where that is damaged."""
    try:
        inputs = json.loads(text)
    except (TypeError, ValueError):
        inputs = None
    if not isinstance(inputs, list) or not all(map(isinstance, inputs, repeat(str))):
        raise ValueError("collection.db: a row of sources is damaged")
    return inputs


def _shown_inputs(text: Any) -> list[str]:
    try:
        return _inputs(text)
    except ValueError as error:
        return [str(error)]


def _n_bytes(folder: Path) -> int:
    """Of all files below a folder; those that are removed meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total
