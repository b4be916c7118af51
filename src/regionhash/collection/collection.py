"""A collection: a folder with a model, a database of pictures, and arrays to search them.

photos.collection/
  model.json, model.safetensors   an ordinary checkpoint
  collection.db                   the source of truth
  arrays/                         derived, rebuilt when missing or stale
  uploads/                        files that the service was given
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.arrays import Arrays, Snapshot
from regionhash.collection.database import (
    BLOBS,
    DATABASE_FILE,
    Database,
    FileState,
    NewImage,
    row_width,
)
from regionhash.collection.filters import Filter, mask_of
from regionhash.collection.results import (
    Box,
    Query,
    Result,
    ResultGroup,
    Results,
    group_near_duplicates,
    with_duplicates,
)
from regionhash.store import CODES_FILE, LAYOUT, CodeFile, CodeFileWriter, StoreError, rows_of
from regionhash.structures import (
    CategoryCodes,
    CategoryHits,
    CodeTable,
    EncodedImage,
    Hit,
    Mask,
    Regions,
)

if TYPE_CHECKING:
    from regionhash.checkpoints import Checkpoint
    from regionhash.collection.adding import AddReport
    from regionhash.data.image_set import ImageSet
    from regionhash.querying import Answer, Mode, QueryPicture
    from regionhash.sources import Source

UPLOADS_FOLDER = "uploads"
SHOWN_SCORE = 0.5
"""Least score of a detection whose class is named with a result."""

_KEPT_MASKS = 8  # of filters used last
_IMPORTED_AT_A_TIME = 1000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """What `Collection.check` found.

    Attributes:
        n_images: pictures in the database.
        problems: what is wrong with the collection itself, a line each.
        missing: ids of pictures whose file is gone; changed: whose file is not what was encoded.
            `Collection.refresh` sets both right.
    """

    n_images: int
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]


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
        self._databases: WeakSet[Database] = WeakSet()  # one per thread that lives
        self._loading, self._following = threading.Lock(), threading.Lock()
        self._model: tuple[Any, Checkpoint] | None = None
        self._arrays = Arrays(folder)
        self._masks: OrderedDict[tuple[Filter, Any], Mask | None] = OrderedDict()
        self._snapshot = self._arrays.follow(self._database)

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", follow: bool = True) -> Self:
        """Opens the collection in a folder; the model is loaded when it is needed.

        An index of an older version, a folder with codes.h5, becomes a collection.

        Args:
            path: the folder.
            device: where the model runs: "cpu", "cuda" or "auto".
            follow: look at each search whether the database has changed; else `sync` does.

        Raises:
            StoreError: no collection, a damaged one, or one of another version.
        """
        folder = Path(path)
        if (folder / DATABASE_FILE).exists():
            return cls(folder, device=device, follow=follow)
        if (folder / CODES_FILE).exists():
            return cls.of_code_file(folder, folder / CODES_FILE, device=device, follow=follow)
        raise StoreError(
            f"{folder}: no collection; `regionhash index PICTURES -o {folder}` makes one"
        )

    @classmethod
    def create(cls, folder: Path, *, device: str = "auto") -> Self:
        """The collection of the model in `folder`, empty where there was none.

        Raises:
            ValueError: no model is there.
            StoreError: a collection of another model is there, or the disk refuses.
        """
        if not (folder / DATABASE_FILE).exists() and (folder / CODES_FILE).exists():
            return cls.of_code_file(folder, folder / CODES_FILE, device=device)
        from regionhash.checkpoints import load_checkpoint, provenance

        model, checkpoint = load_checkpoint(folder)
        Database.create(
            folder / DATABASE_FILE,
            {
                "model": checkpoint.name,
                "model_hash": checkpoint.model_hash,
                "classes": list(checkpoint.classes),
                "n_bits": model.n_bits,
                "n_region_bits": model.n_region_bits,
                "meta": {"precision": "32-true", "provenance": provenance()},
            },
        ).close()
        return cls(folder, device=device)

    @classmethod
    def of_code_file(
        cls, folder: Path, path: Path, *, device: str = "auto", follow: bool = True
    ) -> Self:
        """The collection in `folder` with the pictures of a code file added to it.

        Where `folder` has no model, that of the code file is copied there.

        Raises:
            StoreError: the file cannot be used, or is of another model than the collection.
            ValueError: the model of the file is not where it was.
        """
        file = CodeFile.open(path)
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
        with Database.create(folder / DATABASE_FILE, header) as database:
            _import(database, file)
        return cls(folder, device=device, follow=follow)

    def close(self) -> None:
        """Lets go of the database."""
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
            self._local.database = Database(self.folder / DATABASE_FILE)
            self._databases.add(self._local.database)
        database: Database = self._local.database
        return database

    @property
    def snapshot(self) -> Snapshot:
        """The pictures as they are now; where `follow` is False, as they were at the last `sync`.

        While one thread takes over what is new, others get the snapshot before.
        """
        if self._follow and self._following.acquire(blocking=False):
            try:
                self._snapshot = self._arrays.follow(self._database, self._snapshot)
            finally:
                self._following.release()
        return self._snapshot

    def sync(self) -> Snapshot:
        """Takes over what has changed in the database; waits where another thread does that."""
        with self._following:
            self._snapshot = self._arrays.follow(self._database, self._snapshot)
            return self._snapshot

    @property
    def header(self) -> dict[str, Any]:
        """Model, model_hash, classes, n_bits, n_region_bits and meta."""
        return self._database.header

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the model."""
        return self._snapshot.table.classes

    @property
    def model(self) -> tuple[Any, Checkpoint]:
        """The model and what is known of it.

        Raises:
            ValueError: it is not in the folder, damaged, or not the one that made the codes.
        """
        with self._loading:
            if self._model is None:
                from regionhash.checkpoints import load_checkpoint
                from regionhash.encoding import pick_device

                model, checkpoint = load_checkpoint(self.folder)
                if checkpoint.model_hash != self.header["model_hash"]:
                    raise ValueError(
                        f"{self.folder}: the codes are of the model {self.header['model_hash']}, "
                        f"which {checkpoint.model_hash} beside them is not"
                    )
                self._model = model.to(pick_device(self._device)), checkpoint
            return self._model

    @model.setter
    def model(self, given: tuple[Any, Checkpoint]) -> None:
        self._model = given

    # Searching

    def search(
        self,
        image: str | Path | NDArray[np.uint8] | None = None,
        *,
        boxes: Sequence[Box] = (),
        like: str | None = None,
        regions: Sequence[int] = (),
        queries: Sequence[Query] = (),
        without: Sequence[Query] = (),
        mode: Mode | None = None,
        filter: Filter | None = None,
        limit: int = 20,
        offset: int = 0,
        near: int | None = None,
        steps: Sequence[str] = (),
        candidates: int | None = None,
        expand: int | None = None,
        min_prob: float = 0.0,
        within: int | None = None,
    ) -> Results:
        """The pictures that look like a picture, or that contain an object or several.

        Args:
            image: a picture to search by; with `like`, `boxes` and `regions` as in `Query`.
            boxes: objects in it.
            like: instead of `image`, the id of a picture of the collection.
            regions: objects in that.
            queries: more pictures to search by.
            without: pictures of objects that must not be there.
            mode: see `regionhash.querying.find`, as are all arguments below `near`.
            filter: which pictures are searched.
            limit: hits on a page, or groups of near ones; of mode category, for each category.
            offset: how many to leave out before the first.
            near: group results whose codes differ in at most so many bits.
            steps: of a search for one object.
            candidates: pictures that the first of several steps leaves for the others.
            expand: results that an expansion takes as queries.
            min_prob: of mode category, the least probability of a category.
            within: bits up to which a region is taken for an object that must not be there.

        Raises:
            ValueError: nothing to search by, or what `find`, `Filter` and `Query` refuse.
            KeyError: `like` is no picture of the collection.
        """
        from regionhash.querying import find
        from regionhash.reranking import CANDIDATES, EXPANSION

        if limit < 1 or offset < 0:
            raise ValueError(f"limit must be at least 1 and offset 0, got {limit} and {offset}")
        if near is not None and near < 0:
            raise ValueError(f"near must be at least 0, got {near}")
        asked = list(queries)
        if image is not None or like is not None:
            asked.insert(0, Query(image, like, boxes, regions))
        if not asked:
            raise ValueError("nothing to search by: give an image, or the id of a picture (like)")
        snapshot = self.snapshot
        among = self._mask(filter or Filter(), snapshot)
        model, checkpoint = self.model
        pictures = [self._query_picture(query, snapshot) for query in asked]
        unwanted = [self._query_picture(query, snapshot) for query in without]
        file = self._as_file(snapshot)
        end = offset + limit
        fetched = end + 1
        while True:
            answer = find(
                model,
                checkpoint,
                file,
                pictures,
                mode=mode,
                top=fetched,
                steps=steps,
                candidates=CANDIDATES if candidates is None else candidates,
                expand=EXPANSION if expand is None else expand,
                min_prob=min_prob,
                among=among,
                without=unwanted,
                within=within,
            )
            by_category = answer.mode == "category"
            found = [own.hits for own in answer.groups] if by_category else [answer.hits]
            ranked = [
                [[hit] for hit in hits]
                if near is None
                else group_near_duplicates(hits, snapshot.table, near)
                for hits in found
            ]
            if all(
                len(own) > end or len(hits) < fetched
                for own, hits in zip(ranked, found, strict=True)
            ):
                break
            fetched *= 2
        pages = [self._page(own[offset:end], snapshot) for own in ranked]
        return Results(
            answer.mode,
            answer.steps,
            tuple(query.boxes for query in answer.queries),
            () if by_category else pages[0],
            offset,
            any(len(own) > end for own in ranked),
            len(snapshot) if among is None else int(np.count_nonzero(among)),
            tuple(
                ResultGroup(self.classes[own.category], own.prob, page)
                for own, page in zip(answer.groups, pages if by_category else (), strict=True)
            ),
            tuple(query.boxes for query in answer.without),
        )

    def answer(
        self,
        results: Results,
        queries: Sequence[QueryPicture],
        without: Sequence[QueryPicture] = (),
    ) -> Answer:
        """The same as `find` gives it for `code_file`, for a contact sheet.

        Args:
            results: of `search`.
            queries: the pictures that were searched for.
            without: the pictures of what must not be there.
        """
        from regionhash.querying import Answer

        return Answer(
            results.mode,
            _with_boxes(queries, results.boxes),
            self._hits(results.hits),
            results.steps,
            tuple(
                CategoryHits(
                    self.classes.index(own.category), own.prob, tuple(self._hits(own.hits))
                )
                for own in results.groups
            ),
            _with_boxes(without, results.without),
        )

    def _hits(self, results: Sequence[Result]) -> list[Hit]:
        at = self.snapshot.places(np.array([own.row for own in results], np.int64)).tolist()
        return [
            Hit(n, own.id, own.distance, own.matches) for n, own in zip(at, results, strict=True)
        ]

    def image(self, image_id: str) -> tuple[int, EncodedImage]:
        """Row number and codes of a picture. Raises KeyError for an id that is not there."""
        snapshot = self.snapshot
        return self._stored(image_id, snapshot)

    def path(self, row: int) -> Path | None:
        """The file of the picture of a row; None of one without. Raises KeyError."""
        found = self._database.read("SELECT path FROM images WHERE row = ?", row)
        if not found:
            raise KeyError(row)
        (path,) = found[0]
        return None if path is None else Path(os.fsdecode(path))

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row, (H, W, 3) uint8 RGB.

        Raises:
            KeyError: there is no such row.
            ImageError: the file is gone or cannot be read.
        """
        from regionhash.data.images import read_image
        from regionhash.sources import Pictures

        path = self.path(row)
        if path is not None:
            return read_image(path)
        ((image_id, place),) = self._database.read(
            "SELECT id, place FROM images LEFT JOIN sources USING (source) WHERE row = ?", row
        )
        return Pictures([json.loads(place)] if place else [])[image_id]

    def images(self, *, after: int = 0, limit: int = 100) -> list[tuple[int, str, int, int]]:
        """Row, id, height and width of the pictures of the rows behind `after`, in their order."""
        return self._database.read(
            "SELECT row, id, height, width FROM images WHERE row > ? ORDER BY row LIMIT ?",
            after,
            limit,
        )

    def id_of(self, row: int) -> str:
        """The id of the picture of a row. Raises KeyError."""
        found = self._database.read("SELECT id FROM images WHERE row = ?", row)
        if not found:
            raise KeyError(row)
        return str(found[0][0])

    def ids(self) -> Iterator[tuple[int, str]]:
        """Row number and id of each picture, in the order of the rows."""
        return self._database.stream("SELECT row, id FROM images ORDER BY row")

    def code_file(self) -> CodeFile:
        """The collection as an opened code file, for everything that reads one."""
        with self._following:
            self._snapshot = self._arrays.follow(self._database, self._snapshot, compact=True)
            return self._as_file(self._snapshot)

    def _as_file(self, snapshot: Snapshot) -> CodeFile:
        header = self.header
        places: list[Source] = [
            json.loads(place) for (place,) in self._database.read("SELECT place FROM sources")
        ]
        everywhere: Source = {"folder": "/", "suffix": ""}  # ids may be whole paths
        return CodeFile(
            path=self.folder / DATABASE_FILE,
            table=snapshot.table,
            model=header["model"],
            model_hash=header["model_hash"],
            n_bits=header["n_bits"],
            n_region_bits=header["n_region_bits"],
            meta=header["meta"]
            | {
                "checkpoint": str(self.folder.absolute()),
                "sources": [*({json.dumps(own): own for own in places}.values()), everywhere],
            },
            labels=snapshot.labels if header.get("labelled") else None,
        )

    def _mask(self, wanted: Filter, snapshot: Snapshot) -> Mask | None:
        key = (wanted, (snapshot.generation, snapshot.version))
        with suppress(KeyError):
            return self._masks[key]
        mask = mask_of(wanted, snapshot, self._database)
        self._masks[key] = mask
        with suppress(KeyError):  # another thread may have made room
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask

    def _stored(self, image_id: str, snapshot: Snapshot) -> tuple[int, EncodedImage]:
        try:
            found = self._database.read("SELECT row FROM images WHERE id = ?", image_id)
        except UnicodeEncodeError:
            found = []
        at = snapshot.places(np.array([row for (row,) in found], np.int64))
        if not len(at):
            raise KeyError(image_id)
        return int(found[0][0]), _encoded(snapshot.table, int(at[0]))

    def _query_picture(self, query: Query, snapshot: Snapshot) -> QueryPicture:
        from regionhash.data.images import read_image
        from regionhash.querying import QueryPicture

        boxes: tuple[Any, ...] = tuple(tuple(map(float, box)) for box in query.boxes)
        if any(len(box) != 4 for box in boxes):
            raise ValueError("a box must be four numbers x0, y0, x1, y1")
        image, name, known = query.image, query.name, query.encoded
        if isinstance(image, str | Path):
            image, name = read_image(image), str(image)
        if query.like is not None:
            row, known = self._stored(query.like, snapshot)
            name = query.like
            image = self.pixels(row) if boxes else None
        if boxes:
            return QueryPicture(name, image, boxes)
        if query.regions and known is not None:
            own, chosen = known.regions, list(query.regions)
            if own is None or not all(0 <= n < len(own) for n in chosen):
                count = 0 if own is None else len(own)
                raise ValueError(f"{name}: has {count} regions, got {chosen}")
            own = Regions(
                own.boxes[chosen], own.scores[chosen], own.labels[chosen], own.codes[chosen]
            )
            boxes = tuple(tuple(box) for box in own.boxes.tolist())
            return QueryPicture(name, image, boxes, replace(known, regions=own))
        return QueryPicture(name, image, (), known)

    def _page(self, groups: Sequence[Sequence[Hit]], snapshot: Snapshot) -> tuple[Result, ...]:
        """One result for each group, the others of the group as its duplicates."""
        paths = self._paths([int(snapshot.rows[hit.index]) for group in groups for hit in group])
        return tuple(
            with_duplicates([self._result(hit, snapshot, paths) for hit in group])
            for group in groups
        )

    def _paths(self, rows: Sequence[int]) -> dict[int, Path]:
        """The files of some rows; of those that are in no file, or removed by now, none."""
        found = self._database.read(
            "SELECT row, path FROM images WHERE path NOT NULL "
            "AND row IN (SELECT value FROM json_each(?))",
            json.dumps(rows),
        )
        return {row: Path(os.fsdecode(path)) for row, path in found}

    def _result(self, hit: Hit, snapshot: Snapshot, paths: Mapping[int, Path]) -> Result:
        table, n = snapshot.table, hit.index
        row = int(snapshot.rows[n])
        labels: set[int] = set()
        if snapshot.labels is not None:
            labels |= set(np.flatnonzero(snapshot.labels[n]).tolist())
        if table.classes and table.scores is not None and table.labels is not None:
            assert table.offsets is not None
            own = slice(*table.offsets[n : n + 2].tolist())
            labels |= set(table.labels[own][table.scores[own] >= SHOWN_SCORE].tolist()) - {-1}
        taken = float(snapshot.taken[n])
        height, width = table.sizes[n].tolist()
        return Result(
            hit.image_id,
            row,
            paths.get(row),
            (height, width),
            hit.distance,
            hit.matches,
            tuple(table.classes[label] for label in sorted(labels)),
            None if np.isnan(taken) else taken,
        )

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
        from regionhash.sources import absolute_inputs, open_inputs

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

        report = add_pictures(self._database, *self.model, image_set, inputs, place, **options)
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
        reports = []
        for source, text in self._database.read("SELECT source, inputs FROM sources"):
            try:
                report = self.add(
                    json.loads(text),
                    batch_size=batch_size,
                    workers=workers,
                    on_skip=on_skip,
                    on_progress=on_progress,
                )
            except StoreError:
                raise
            except ValueError as error:
                if on_lost:
                    on_lost(f"{error}; its pictures are kept")
                continue
            rows = self._database.stream(
                "SELECT row, path FROM images WHERE source = ? AND path NOT NULL", source
            )
            gone = [row for row, path in rows if not os.path.exists(path)]  # noqa: PTH110 (bytes)
            reports.append(replace(report, removed=self._database.remove(gone)))
        self.sync()
        return reports

    def remove(self, names: Sequence[str]) -> int:
        """Removes pictures, at once; their files stay. Returns how many.

        Args:
            names: ids, files, or folders, of which all pictures below are removed.

        Raises:
            ValueError: a name that is nothing in the collection; then nothing is removed.
        """
        rows: set[int] = set()
        for name in names:
            path = os.fsencode(Path(name).absolute())
            found = self._database.read(
                "SELECT row FROM images WHERE id = ? OR path = ? OR (path >= ? AND path < ?)",
                name,
                path,
                path + b"/",
                path + b"0",
            )
            if not found:
                raise ValueError(f"{name}: no picture of {self.folder}, and no folder with one")
            rows |= {row for (row,) in found}
        removed = self._database.remove(sorted(rows))
        self.sync()
        return removed

    def remove_rows(self, rows: Sequence[int]) -> int:
        """Removes pictures by row number, at once; returns how many were there."""
        removed = self._database.remove(rows)
        self.sync()
        return removed

    def add_encoded(self, image_id: str, file: FileState, encoded: EncodedImage) -> int:
        """Stores one picture that was encoded by the collection's model; returns its row.

        A picture whose file has the same bytes is not stored a second time.
        """
        known = self._database.read("SELECT row FROM images WHERE hash = ?", file.hash)
        if not known:
            rows = rows_of(image_id, encoded, None, self.header)
            self._database.store([NewImage(image_id, file, None, rows)])
            known = self._database.read("SELECT row FROM images WHERE id = ?", image_id)
        return int(known[0][0])

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
            "added": [{"inputs": json.loads(text), "pictures": count} for text, count in sources],
            "bytes": sum(own.stat().st_size for own in self.folder.rglob("*") if own.is_file()),
            **header["meta"],
        }

    def check(self, *, repair: bool = False) -> CheckReport:
        """Compares database, arrays and files.

        Args:
            repair: build the arrays anew where they are not what the database holds.
        """
        database = self._database
        problems = [
            f"{database.path}: {line}"
            for (line,) in database.read("PRAGMA integrity_check")
            if line != "ok"
        ]
        snapshot = self.sync()
        problems += _odd_rows(database)
        wrong = _differences(database, snapshot)
        if wrong and repair:
            self._arrays.discard()
            with self._following:
                self._snapshot = self._arrays.follow(database)
            wrong = _differences(database, self._snapshot)
        problems += wrong
        missing, changed = [], []
        query = "SELECT id, path, n_bytes, mtime_ns FROM images WHERE path NOT NULL ORDER BY row"
        for image_id, path, n_bytes, mtime_ns in database.stream(query):
            try:
                state = os.stat(path)  # noqa: PTH116 (bytes)
            except OSError:
                missing.append(image_id)
                continue
            if n_bytes is not None and (state.st_size, state.st_mtime_ns) != (n_bytes, mtime_ns):
                changed.append(image_id)
        return CheckReport(database.count(), tuple(problems), tuple(missing), tuple(changed))

    def export(self, path: Path) -> int:
        """Writes a code file of all pictures; returns how many.

        Raises:
            ValueError: something is there already.
            StoreError: the disk refuses.
        """
        if path.exists():
            raise ValueError(f"{path}: is there already")
        file = self.code_file()
        writer = CodeFileWriter(
            path,
            model_hash=file.model_hash,
            model_name=file.model,
            classes=file.classes,
            n_bits=file.n_bits,
            n_region_bits=file.n_region_bits,
            meta=file.meta,
        )
        with writer:
            for n, image_id in enumerate(file.table.ids):
                if image_id not in writer.done:
                    labels = None
                    if file.labels is not None:
                        labels = np.flatnonzero(file.labels[n]).tolist()
                    writer.add(image_id, _encoded(file.table, n), labels)
            writer.finish()
        return len(file.table)

    def import_codes(self, path: Path) -> int:
        """Adds the pictures of a code file of the same model; returns how many were new.

        Raises:
            StoreError: the file cannot be used, or is of another model.
        """
        file = CodeFile.open(path)
        if file.model_hash != self.header["model_hash"]:
            raise StoreError(
                f"{path}: of the model {file.model_hash}, {self.folder} is of "
                f"{self.header['model_hash']}"
            )
        stored = _import(self._database, file)
        self.sync()
        return stored


def is_collection(path: Path) -> bool:
    """Whether a folder is a collection, or an index of an older version that can become one."""
    return (path / DATABASE_FILE).exists() or (path / CODES_FILE).exists()


def open_codes(path: str | Path) -> CodeFile:
    """The codes of a code file, or of a collection as if it were one.

    Args:
        path: the file; or the folder of a collection or of an index of an older version.

    Raises:
        StoreError: see `CodeFile.open` and `Collection.open`.
    """
    path = Path(path)
    if (path / DATABASE_FILE).exists():
        with Collection.open(path) as collection:
            return collection.code_file()
    return CodeFile.open(path / CODES_FILE if path.is_dir() else path)


def _with_boxes(
    queries: Sequence[QueryPicture], boxes: Sequence[tuple[Box, ...]]
) -> tuple[QueryPicture, ...]:
    return tuple(replace(query, boxes=own) for query, own in zip(queries, boxes, strict=True))


def _encoded(table: CodeTable, n: int) -> EncodedImage:
    """Picture `n` of a table as a model gave it."""
    categories = None
    if (
        table.category_offsets is not None
        and table.categories is not None
        and table.category_probs is not None
        and table.category_codes is not None
    ):
        own = slice(*table.category_offsets[n : n + 2].tolist())
        categories = CategoryCodes(
            np.asarray(table.categories[own]),
            np.asarray(table.category_probs[own]),
            np.asarray(table.category_codes[own]),
        )
    height, width = table.sizes[n].tolist()
    return EncodedImage(
        (height, width),
        None if table.image_codes is None else np.asarray(table.image_codes[n]),
        None if table.class_probs is None else np.asarray(table.class_probs[n]),
        None if table.offsets is None else table.regions(n),
        categories,
    )


def _import(database: Database, file: CodeFile) -> int:
    """Stores the pictures of a code file; those whose id is there are left out.

    A picture whose file is where the code file says becomes one of that file. Its bytes are not
    read: the next `add` or `refresh` notes them, trusting that they are those that were encoded.
    """
    places = [place for place in file.meta.get("sources", []) if "folder" in place]
    sources = [
        database.source([place["data"]], place)
        for place in file.meta.get("sources", [])
        if "data" in place
    ]
    stored, pending = 0, []
    known = {image_id for (image_id,) in database.read("SELECT id FROM images")}
    for n, image_id in enumerate(file.table.ids):
        if image_id in known:
            continue
        labels = None if file.labels is None else np.flatnonzero(file.labels[n]).tolist()
        rows = rows_of(image_id, _encoded(file.table, n), labels, database.header)
        state = _file_of(image_id, places)
        source = None if state.path or len(sources) != 1 else sources[0]
        pending.append(NewImage(image_id, state, source, rows))
        if len(pending) >= _IMPORTED_AT_A_TIME:
            stored += database.store(pending)
            pending.clear()
    return stored + database.store(pending)


def _file_of(image_id: str, places: Sequence[Source]) -> FileState:
    for place in places:
        path = Path(place["folder"]) / (image_id + place["suffix"])
        if path.is_file():
            return FileState(os.fsencode(path.absolute()), taken=path.stat().st_mtime)
    return FileState()


def _copy_model(file: CodeFile, folder: Path) -> None:
    """Puts the model of a code file into a folder that has none."""
    from regionhash.checkpoints import CONFIG_FILE, WEIGHTS_FILE, read_checkpoint
    from regionhash.querying import model_folder

    if (folder / CONFIG_FILE).exists():
        return
    origin = model_folder(file)
    if not origin.exists():
        raise ValueError(f"{origin}: the model of {file.path} is not there")
    read_checkpoint(origin)
    folder.mkdir(parents=True, exist_ok=True)
    origin = origin if origin.is_dir() else origin.parent
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copy(origin / name, folder / name)


def _odd_rows(database: Database) -> list[str]:
    """Pictures whose parts do not fit together."""
    problems = []
    parts: dict[str, list[int]] = database.header.get("rows", {})
    names = [name for name in BLOBS if name in parts]
    lengths = "".join(f", length({name})" for name in names)
    for image_id, *sizes in database.stream(f"SELECT id{lengths} FROM images ORDER BY row"):
        counts: dict[str, set[float]] = {}
        for name, size in zip(names, sizes, strict=True):
            width = row_width(name, parts[name])
            counts.setdefault(LAYOUT[name][0], set()).add(-1 if size is None else size / width)
        if any(
            len(own) > 1 or not min(own).is_integer() or min(own) < 0 for own in counts.values()
        ):
            problems.append(f"{image_id}: its parts do not fit together")
    return problems


def _differences(database: Database, snapshot: Snapshot) -> list[str]:
    """What the arrays hold otherwise than the database."""
    table = snapshot.table
    alive = np.ones(len(snapshot.rows), bool) if snapshot.alive is None else snapshot.alive
    at = iter(np.flatnonzero(alive).tolist())
    names = [name for name in BLOBS if getattr(table, name, None) is not None]
    query = f"SELECT row, id, height, width{''.join(', ' + name for name in names)} "
    query += "FROM images WHERE row <= ? ORDER BY row"
    for row, image_id, height, width, *blobs in database.stream(query, snapshot.version[0]):
        n = next(at, None)
        if n is None or int(snapshot.rows[n]) != row:
            return [f"arrays: picture {image_id} (row {row}) is not in its place"]
        if table.ids[n] != image_id or table.sizes[n].tolist() != [height, width]:
            return [f"arrays: picture {image_id} (row {row}) has another id or size"]
        for name, blob in zip(names, blobs, strict=True):
            array = getattr(table, name)
            unit = LAYOUT[name][0]
            if unit == "image":
                own = array[n]
            else:
                offsets = table.offsets if unit == "region" else table.category_offsets
                own = array[slice(*offsets[n : n + 2].tolist())]  # type: ignore[index]
            if own.tobytes() != blob:
                return [f"arrays: {name} of picture {image_id} (row {row}) differ"]
    if next(at, None) is not None:
        return ["arrays: hold pictures that the database does not"]
    return []
