"""A collection: a folder with a model, a database of pictures, and arrays to search them.

photos.collection/
  model.json, model.safetensors   an ordinary checkpoint
  collection.db                   the source of truth
  arrays/                         derived, rebuilt when missing or stale
  thumbnails.db                   derived, made by the service
  uploads/                        files uploaded to the service
  engines/                        what is known of engines that hold the codes too
  boxes.json                      the files of boxes it was given, if any
  detector.json, detector.onnx    what finds the boxes of pictures that no file has, if any
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.arrays import (
    Arrays,
    Snapshot,
    wants_compaction,
    without_removed,
)
from regionhash.collection.box_files import boxes_of, detector_in
from regionhash.collection.checking import CheckReport, check, header_of_model
from regionhash.collection.database import (
    DATABASE_FILE,
    Columns,
    Database,
    HeaderError,
    Place,
)
from regionhash.collection.engine import FOLDER as ENGINES_FOLDER
from regionhash.collection.engine import CollectionEngine, EngineReport, SyncReport
from regionhash.collection.filters import Masks
from regionhash.collection.pictures import (
    StoredImage,
    columns_of,
    images_after,
    paths_of,
    pixels_of,
    places_of,
    stored_image,
)
from regionhash.collection.results import Results, results_of, rows_of_hits
from regionhash.collection.transfer import (
    PARQUET_SUFFIX,
    code_files,
    facts_of,
    header_of_file,
    import_files,
    write_code_file,
)
from regionhash.collection.uploads import remove_pictures, store_upload
from regionhash.engines import LOCAL, Owner, open_backend
from regionhash.files.atomic import replacing
from regionhash.files.urls import Location
from regionhash.precision import check_same_precision, precision_of
from regionhash.reporter import SILENT, Reporter
from regionhash.search.request import Filter, Query, Search
from regionhash.search.run import Answer, QueryPicture, marked, read_query, run
from regionhash.search.together import Running, run_alone
from regionhash.store import CodeSet, StoreError
from regionhash.store.parquet import write_parquet
from regionhash.structures import Box, EncodedImage, Ints, Mask, renamed

if TYPE_CHECKING:
    from regionhash.collection.adding import AddReport
    from regionhash.data.detections import Boxes, Detector
    from regionhash.data.image_set import ImageSet
    from regionhash.data.inputs import Source
    from regionhash.detectors import OnnxDetector
    from regionhash.models import HashModel
    from regionhash.models.checkpoints import Checkpoint
    from regionhash.models.runtime import Runtime, RuntimeName
    from regionhash.precision import Precision, PrecisionName


class Collection:
    """An open collection. Threads may share an object, processes a folder.

    Example:
        with Collection.open("photos.collection") as photos:
            for hit in photos.search("cat.jpg", boxes=[(40, 30, 220, 200)]).hits:
                print(hit.id, hit.distance, hit.matches[0].box)

    Attributes:
        folder: its folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        runtime: RuntimeName = "auto",
        follow: bool = True,
        engine: str = LOCAL,
    ) -> None:
        self.folder = folder
        self._device, self._runtime = device, runtime
        self._follow = follow
        self._engine, self._engines = engine, dict[str, CollectionEngine]()
        self._local = threading.local()
        self._identity: tuple[Place, str] | None = None
        self._databases: WeakSet[Database] = WeakSet()  # one per living thread
        self._loading, self._following = threading.Lock(), threading.Lock()
        self._model: tuple[Runtime, Checkpoint] | None = None
        self._detector: tuple[OnnxDetector | None] | None = None  # None: not read yet
        self._arrays = Arrays(folder)
        self._masks = Masks()
        self._places: tuple[tuple[int, int], list[Source]] | None = None  # of a version
        self._snapshot = self._arrays.follow(self._database)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        runtime: RuntimeName = "auto",
        follow: bool = True,
        engine: str = LOCAL,
    ) -> Self:
        """Opens the collection in a folder; the model is loaded on first use.

        Args:
            path: the folder.
            device: device of the model: "cpu", "cuda" or "auto".
            runtime: what runs the model, see `regionhash.models.runtime.load_runtime`.
            follow: check for changes of the database at each search; otherwise only `sync` does.
            engine: what searches the codes, see `regionhash.engines.open_backend`.

        Raises:
            ValueError: an unknown engine.
            StoreError: there is no collection, or it is damaged or of another version.
        """
        folder = Path(path)
        if not is_collection(folder):
            raise StoreError(
                f"{folder}: no collection; `regionhash index PICTURES -o {folder}` makes one"
            )
        opened = cls(folder, device=device, runtime=runtime, follow=follow, engine=engine)
        try:
            opened.engine()
        except BaseException:
            opened.close()
            raise
        return opened

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        runtime: RuntimeName = "auto",
        precision: PrecisionName = "auto",
        keep_floats: bool = False,
    ) -> Self:
        """Opens the collection of the model in `folder`, creating it if there is none.

        Args:
            folder: the folder.
            device: device of the model: "cpu", "cuda" or "auto".
            runtime: what runs the model, see `regionhash.models.runtime.load_runtime`.
            precision: of the codes of a new collection, see there; one that exists keeps its own.
            keep_floats: keep the features of regions beside their codes, as int8, by which
                `Search.rescore` can rank again.

        Raises:
            ValueError: the folder has no model, or a collection of another precision.
            StoreError: the folder has a collection of another model, or one without floats that are
                to be kept, or writing fails.
        """
        header = header_of_model(folder, device=device, runtime=runtime, precision=precision)
        if keep_floats:
            header["keeps_floats"] = True
        with Database.create(folder / DATABASE_FILE, header) as database:
            check_same_precision(folder, database.header["meta"]["precision"], precision)
            if keep_floats and not database.keeps_floats:
                raise StoreError(f"{folder}: keeps no floats beside its codes; give another folder")
        return cls(folder, device=device, runtime=runtime)

    @classmethod
    def of_code_file(cls, folder: Path, *paths: str | Path, device: str = "auto") -> Self:
        """Opens or creates the collection in `folder` and adds the pictures of files of codes.

        If `folder` has no model, that of the first file is copied into it.

        Args:
            folder: of the collection.
            paths: see `import_codes`.
            device: device of the model: "cpu", "cuda" or "auto".

        Raises:
            StoreError: a file cannot be used, or comes from another model than the collection.
            ValueError: the model of the first file cannot be found.
        """
        files = code_files(paths)
        header = header_of_file(files[0])
        meta = header["meta"]
        _copy_model(files[0], header["model_hash"], meta, folder)
        header["meta"] = {
            "precision": precision_of(meta),
            "provenance": meta.get("provenance", {}),
        }
        target = folder / DATABASE_FILE
        if not target.exists():  # all or nothing: a kill must not leave half of the pictures
            with (
                suppress(FileExistsError),  # another process was faster
                replacing(target, exclusive=True) as new,
                Database.create(new, header) as database,
            ):
                import_files(database, files)
        with Database.create(target, header) as database:
            import_files(database, files)
        return cls(folder, device=device)

    def close(self) -> None:
        """Closes the connections to the database and to engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
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
            if opened.identity != self._identity:  # replaced before this thread opened it
                raise opened.replaced()
            self._local.database = opened
            self._databases.add(opened)
        database: Database = self._local.database
        return database

    @property
    def snapshot(self) -> Snapshot:
        """The current pictures; without `follow`, those at the last `sync`."""
        return self.sync() if self._follow else self._snapshot

    def sync(self) -> Snapshot:
        """Picks up changes of the database; waits while another thread does so.

        Raises:
            CollectionMissingError: the collection is gone from its folder.
            CollectionReplacedError: another collection has replaced it.
            StoreError: it cannot be read.
        """
        with self._following:
            self._snapshot = self._arrays.follow(self._database, self._snapshot)
            return self._snapshot

    def _show_removals(self) -> None:
        """`sync` after a removal; if writing fails, the removed pictures are hidden anyway."""
        try:
            self.sync()
        except StoreError:
            with self._following:
                self._snapshot = without_removed(self._database, self._snapshot)

    def compact(self) -> None:
        """Rebuilds the arrays without removed pictures if these are more than a quarter.

        Searches and changes by other threads and processes are not held up. Whatever adds or
        removes many pictures does this at its end, except `add_upload` and `remove_rows`: a service
        answers those at once and compacts in a thread of its own. If the disk is full, the removed
        pictures stay masked; other errors are left to the next `sync`.
        """
        if not wants_compaction(self._snapshot):
            return
        with suppress(StoreError):
            if self._arrays.compact(self._database):
                with self._following:
                    self._snapshot = self._arrays.follow(self._database)

    @property
    def header(self) -> dict[str, Any]:
        """Model, model_hash, classes, n_bits, n_region_bits and meta."""
        return self._database.header

    @property
    def precision(self) -> Precision:
        """Precision in which the model computes all codes of the collection."""
        precision: Precision = self.header["meta"]["precision"]
        return precision

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's classes."""
        return self._snapshot.table.classes

    @property
    def model(self) -> tuple[Runtime, Checkpoint]:
        """The model, ready to run, and its checkpoint.

        Raises:
            ValueError: it is missing, damaged, or not the one that made the codes.
        """
        with self._loading:
            if self._model is None:
                from regionhash.models.runtime import load_runtime

                model, checkpoint = load_runtime(
                    self.folder,
                    device=self._device,
                    runtime=self._runtime,
                    precision=self.precision,
                )
                if checkpoint.model_hash != self.header["model_hash"]:
                    raise ValueError(
                        f"{self.folder}: the codes were made by model "
                        f"{self.header['model_hash']}, but the folder holds "
                        f"{checkpoint.model_hash}"
                    )
                self._model = model, checkpoint
            return self._model

    @model.setter
    def model(self, given: tuple[HashModel | Runtime, Checkpoint]) -> None:
        from regionhash.models.runtime import runtime_of

        self._model = runtime_of(given[0], self.precision), given[1]

    @property
    def detector(self) -> OnnxDetector | None:
        """What finds the boxes of pictures that no file has; None if there is none.

        Raises:
            ValueError: it is missing, damaged, or not the one that the collection was made with.
        """
        checkpoint = self.model[1]
        with self._loading:
            if self._detector is None:
                self._detector = (detector_in(self.folder, checkpoint),)
            return self._detector[0]

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
        text: str | None = None,
        filter: Filter | None = None,
        engine: str | None = None,
        **options: Any,
    ) -> Results:
        """Finds pictures that look alike, or that contain given objects.

        Args:
            image: a picture to search by; see `Query` for this and the next three.
            image_id: instead of `image`, the id of a picture in the collection.
            boxes: objects in that picture.
            regions: numbers of its regions, as the objects.
            queries: more pictures to search by.
            text: words for an object, alone or beside the picture.
            filter: which pictures to search.
            engine: what searches the codes, see `regionhash.engines.open_backend`; None is what the
                collection was opened with.
            options: other fields of `Search`: exclude, mode, steps, limit, offset, ...

        Raises:
            ValueError: nothing to search by, or see `find`, `Filter`, `Query` and `Search`.
            KeyError: the collection has no picture `image_id`.
            EngineError: see `CollectionEngine.answered`.
        """
        asked = list(queries)
        if image is not None or image_id is not None:
            asked.insert(0, Query(image, image_id, boxes, regions))
        if text is not None:
            asked.append(Query(text=text))
        request = Search(asked, filter=filter or Filter(), **options)
        return self.results(request, engine=engine)

    def results(self, search: Search, *, paths: bool = True, engine: str | None = None) -> Results:
        """Runs a search, and adds what the collection knows of the pictures; see `find`.

        Without `paths`, results have none, and the database is not read for them.
        """
        return run_alone(self.begin(search, paths=paths, engine=engine))

    def begin(
        self, search: Search, *, paths: bool = True, engine: str | None = None
    ) -> Running[Results]:
        """`results`, as a search that can run together with others, of any collection.

        Example:
            run_together([photos.begin(Search([Query("cat.jpg")])) for photos in collections])
        """
        answer, snapshot = yield from self._begin(search, engine)
        rows = rows_of_hits(answer, snapshot) if paths else []
        return results_of(answer, snapshot, paths_of(self._database, rows) if rows else {})

    def find(self, search: Search) -> Answer:
        """Runs a search; the answer holds the codes that were searched.

        Raises:
            ValueError: see `regionhash.search.run.run` and `mask_of`.
            KeyError: a query names a picture that the collection does not have.
        """
        return run_alone(self._begin(search))[0]

    def _begin(self, search: Search, engine: str | None = None) -> Running[tuple[Answer, Snapshot]]:
        """`find`, with the pictures that are searched."""
        searched_by = self.engine(engine)
        snapshot, mask = self._searched(search.filter)
        running = run.begin(
            *self.model,
            self._codes(snapshot),
            search,
            picture_of=lambda query: self._query_picture(query, snapshot),
            mask=mask,
            detector_of=lambda: self.detector,
        )
        if searched_by is not None:
            running = searched_by.answered(running, search, snapshot, mask)
        answer = yield from running
        return answer, snapshot

    def codes(self) -> CodeSet:
        """The collection as it is now; removed pictures may be in its arrays, see `alive`."""
        return self._codes(self.sync())

    def code_file(self) -> CodeSet:
        """`codes` without removed pictures."""
        return self.codes().compact()

    def _codes(self, snapshot: Snapshot) -> CodeSet:
        header = self.header
        if self._places is None or self._places[0] != snapshot.version:
            self._places = snapshot.version, places_of(self._database)
        places = self._places[1]
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
            labels=snapshot.labels,
            alive=snapshot.alive,
        )

    def numbers(self, wanted: Filter) -> Ints:
        """Numbers (n,) int64 of the pictures that pass a filter, ascending.

        Raises:
            ValueError: see `mask_of`.
        """
        snapshot, mask = self._searched(wanted)
        return snapshot.rows if mask is None else snapshot.rows[mask]

    @property
    def owner(self) -> Owner:
        """What an engine is told of the collection.

        A copy is another collection, though it has the same uuid: its pictures will differ.
        """
        database = self._database.identity[0]
        own = f"{self.header['uuid']} {database[1]}"
        return Owner(
            uuid=hashlib.sha256(own.encode()).hexdigest()[:32],
            model_hash=self.header["model_hash"],
            n_bits=self.header["n_bits"],
            n_region_bits=self.header["n_region_bits"],
            folder=(self.folder / ENGINES_FOLDER).absolute(),
        )

    def _searched(self, wanted: Filter) -> tuple[Snapshot, Mask | None]:
        """The pictures, and a mask of those that pass a filter, both of one moment."""
        if wanted.folder is None:
            snapshot = self.snapshot
            return snapshot, self._masks.of(wanted, snapshot, self._database)
        # Only the database knows the folders of the files.
        with self._arrays.at_moment(self._database, self._snapshot) as snapshot:
            return snapshot, self._masks.of(wanted, snapshot, self._database)

    def _query_picture(self, query: Query, snapshot: Snapshot) -> QueryPicture:
        if query.image_id is None:
            return read_query(query)
        if isinstance(query.image_id, int) and not query.boxes:
            index = snapshot.index_of(query.image_id)
            if index is not None and (snapshot.alive is None or snapshot.alive[index]):
                return marked(query.shown_name, None, query, snapshot.table.picture(index))
        stored, encoded = self._stored(query.image_id, snapshot)
        pixels = pixels_of(self._database, stored) if query.boxes else None
        return marked(query.shown_name, pixels, query, encoded)

    # Pictures

    def get(self, image: str | int) -> StoredImage:
        """The picture with an id or a row number. Raises KeyError if there is none."""
        return stored_image(self._database, columns_of(self._database, image))

    def images(self, *, after: int = 0, limit: int | None = None) -> list[StoredImage]:
        """The pictures of the rows above `after`, in order of their rows."""
        return images_after(self._database, after, limit)

    def encoded(self, image_id: str) -> EncodedImage:
        """The codes of a picture. Raises KeyError for an unknown id."""
        return self._stored(image_id, self.snapshot)[1]

    def pixels(self, image: str | int) -> NDArray[np.uint8]:
        """The pixels of the picture with an id or a row number, (H, W, 3) uint8 RGB.

        Raises:
            KeyError: there is no such picture.
            ImageError: its file is gone or cannot be read.
        """
        return pixels_of(self._database, columns_of(self._database, image))

    def _stored(self, image_id: str | int, snapshot: Snapshot) -> tuple[Columns, EncodedImage]:
        """Columns and codes of a picture, which may be newer than the snapshot."""
        stored = columns_of(self._database, image_id)
        if snapshot.index_of(stored["row"]) is None:
            with self._arrays.at_moment(self._database, self._snapshot) as snapshot:
                stored = columns_of(self._database, image_id)
        index = snapshot.index_of(stored["row"])
        if index is None:
            raise KeyError(image_id)
        return stored, snapshot.table.picture(index)

    # Changing

    def add(
        self,
        inputs: Sequence[str],
        *,
        again: bool = False,
        boxes: str | Path | Detector | None = None,
        renew_boxes: bool = False,
        **options: Any,
    ) -> AddReport:
        """Adds new and changed pictures.

        Pictures that were removed before are left out, except files that are named themselves.

        Args:
            inputs: see `regionhash.data.inputs.open_inputs`.
            again: adds all pictures that were removed before.
            boxes: of a collection whose regions are given boxes: a further file, which is recorded,
                see `read_detections`; or a function that finds them in these pictures.
            renew_boxes: encodes unchanged pictures again too if they are in that file; with a
                function, all of them. Those that the file does not have stay as they are.
            options: see `add_pictures`.

        Raises:
            ValueError: there is no picture, or one has classes that the model does not know; or
                boxes are to be renewed, but none are given.
            StoreError: writing fails; what was stored before stays.
        """
        from regionhash.collection.adding import keys_of
        from regionhash.data.inputs import absolute_inputs, open_inputs

        image_set, place = open_inputs(inputs)
        named = {self._database.path_of(Path(given)) for given in inputs}
        wanted = keys_of(self._database, image_set) if again else named
        return self.add_set(
            image_set,
            absolute_inputs(inputs),
            place,
            again=wanted,
            boxes=boxes,
            renew_boxes=renew_boxes,
            **options,
        )

    def add_set(
        self,
        image_set: ImageSet,
        inputs: Sequence[str],
        place: Source,
        *,
        boxes: str | Path | Boxes | Detector | None = None,
        renew_boxes: bool = False,
        **options: Any,
    ) -> AddReport:
        """`add` for an image set that is already open."""
        from regionhash.collection.adding import add_pictures
        from regionhash.data.detections import Boxes

        if renew_boxes and boxes is None:
            raise ValueError("renew_boxes needs boxes: a file of them, or a function")
        given = boxes_of(self.folder, self.model[0], boxes, image_set.notices, self.detector)
        renew: Iterable[str] = ()
        if renew_boxes:
            renew = given.newly_given(image_set) if isinstance(given, Boxes) else image_set.ids
        source = self._database.source(inputs, place)
        report = add_pictures(
            self._database, *self.model, image_set, source, boxes=given, renew=renew, **options
        )
        self.sync()
        self.compact()
        return report

    def refresh(
        self,
        *,
        reporter: Reporter = SILENT,
        remove_empty: bool = False,
        boxes: Detector | None = None,
        **options: Any,
    ) -> list[AddReport]:
        """Brings the collection up to date with its folders; returns a report per added source.

        New pictures are added, changed ones re-encoded, moved ones followed, and those whose file
        is gone removed. If a whole source is missing, or a folder is empty now or cannot be read,
        as with an unmounted disk, its pictures are kept and the reporter is told.

        Args:
            reporter: is told about each source or picture that is kept, and as in `add`.
            remove_empty: also removes the pictures of folders that are empty now.
            boxes: a function, see `add`; otherwise the recorded files are read again, and the
                collection's detector finds the boxes of pictures that they do not have.
            options: see `add_pictures`.
        """
        from regionhash.collection.adding import AddReport
        from regionhash.collection.refreshing import (
            encode_damaged_again,
            inputs_of,
            is_empty,
            remove_gone,
        )
        from regionhash.data.inputs import open_inputs
        from regionhash.data.notices import Notices
        from regionhash.models.encoding import EncodingReport

        notices = Notices()
        given = boxes_of(self.folder, self.model[0], boxes, notices, self.detector)
        notices.tell(reporter)
        reports: dict[int, AddReport] = {}
        for source, text in self._database.read("SELECT source, inputs FROM sources ORDER BY 1"):
            try:
                image_set, place = open_inputs(inputs := inputs_of(text))
                reports[source] = self.add_set(
                    image_set, inputs, place, boxes=given, reporter=reporter, **options
                )
            except StoreError:
                raise
            except (ValueError, OSError) as error:
                if remove_empty and is_empty(inputs_of(text)):
                    reports[source] = AddReport(EncodingReport(0, 0, {}, 0.0, 0.0))
                    continue
                reporter.note(f"{error}; its pictures are kept")
        # Only now: what has moved from one source to another was found there.
        gone = remove_gone(self._database, reports, reporter, remove_empty=remove_empty)
        for source, (removed, kept) in gone.items():
            reports[source] = replace(reports[source], removed=removed, kept=kept)
        of_damaged = encode_damaged_again(
            self._database, self, reports, boxes=given, reporter=reporter, **options
        )
        self.sync()
        self.compact()
        return [*reports.values(), *([] if of_damaged is None else [of_damaged])]

    def remove(self, names: Sequence[str]) -> int:
        """Removes pictures; searches no longer find them. Their files stay.

        Args:
            names: ids, files, or folders; all pictures below a folder are removed.

        Returns:
            Number of removed pictures.

        Raises:
            ValueError: a name is unknown; then nothing is removed.
        """
        removed = remove_pictures(self._database, (), names)
        self._show_removals()
        self.compact()
        return removed

    def remove_rows(self, rows: Sequence[int]) -> int:
        """Removes pictures by row number, as `remove` does; returns how many there were."""
        removed = remove_pictures(self._database, rows)
        self._show_removals()
        return removed

    def add_upload(
        self, content: bytes, name: str, kind: str, encoded: EncodedImage
    ) -> tuple[int, str]:
        """Stores a picture that came as bytes, and writes its file into the collection.

        If the collection already has a picture of the same content, nothing is stored.

        Args:
            content: bytes of the file; their hash names it.
            name: name of the picture, which becomes part of its id.
            kind: suffix of the file, such as ".jpg".
            encoded: its codes, by the collection's model.

        Returns:
            Row and id of the picture.

        Raises:
            StoreError: writing fails; then nothing is stored.
        """
        stored = store_upload(self._database, content, name, kind, encoded)
        self.sync()
        return stored

    # Engines

    def engine(self, spec: str | None = None) -> CollectionEngine | None:
        """What searches the codes in place of the collection itself; None if nothing does.

        Args:
            spec: see `regionhash.engines.open_backend`; None is what the collection was opened
                with.

        Raises:
            ValueError: an unknown engine, or an address that it cannot have.
            ModuleNotFoundError: the engine needs an extra that is not installed.
        """
        spec = self._engine if spec is None else spec
        with self._loading:
            if spec not in self._engines:
                backend = open_backend(spec, self.owner)
                if backend is None:
                    return None
                self._engines[spec] = CollectionEngine(
                    backend, self.folder, lambda: self._database, self._now
                )
            return self._engines[spec]

    def sync_engine(self, spec: str | None = None, *, reporter: Reporter = SILENT) -> SyncReport:
        """Fills an engine with what it does not have yet; see `CollectionEngine.sync`."""
        return self._needed(spec).sync(reporter=reporter)

    def check_engine(self, spec: str | None = None) -> EngineReport:
        """Compares an engine with the collection; see `CollectionEngine.check`."""
        return self._needed(spec).check()

    def drop_engine(self, spec: str | None = None) -> None:
        """Removes what an engine holds of the collection; see `CollectionEngine.drop`."""
        self._needed(spec).drop()

    def _now(self) -> tuple[CodeSet, Snapshot]:
        snapshot = self.sync()
        return self._codes(snapshot), snapshot

    def _needed(self, spec: str | None) -> CollectionEngine:
        engine = self.engine(spec)
        if engine is None:
            raise ValueError(f"engine {LOCAL} is the collection itself, which needs no filling")
        return engine

    # Keeping

    def info(self) -> dict[str, Any]:
        """A description of the collection, as `regionhash info` prints it."""
        from regionhash.collection.refreshing import shown_inputs

        snapshot = self.snapshot
        header = self.header
        sources = self._database.read(
            "SELECT inputs, count(row) FROM sources LEFT JOIN images USING (source) GROUP BY source"
        )
        return {
            "pictures": len(snapshot),
            "regions": int(snapshot.n_regions[snapshot.present].sum()),
            "removed_rows": len(snapshot.rows) - len(snapshot),
            "bits": header["n_bits"],
            "region_bits": header["n_region_bits"],
            "labels": bool(header.get("labelled")),
            "floats": self._database.keeps_floats,
            "classes": header["classes"],
            "model": header["model"],
            "model_hash": header["model_hash"],
            **_encoder_of(self.folder),
            "added": [{"inputs": shown_inputs(text), "pictures": n} for text, n in sources],
            "bytes": _n_bytes(self.folder),
            **header["meta"],
        }

    def check(self, *, repair: bool = False) -> CheckReport:
        """Compares database, arrays and files; see `regionhash.collection.checking.check`.

        Args:
            repair: repair what can be repaired.
        """
        report = check(self._database, self._arrays, repair=repair)
        self.sync()
        if repair:
            self.compact()
        return report

    def export(self, path: Path) -> int:
        """Writes a file of codes of all pictures; returns how many.

        Args:
            path: a Parquet file if its name ends in .parquet, otherwise a code file (HDF5).

        Raises:
            ValueError: the path already exists.
            StoreError: writing fails.
            ModuleNotFoundError: a Parquet file needs pyarrow.
        """
        with self._arrays.at_moment(self._database, self._snapshot) as snapshot:
            codes = self._codes(snapshot)
            if path.suffix == PARQUET_SUFFIX:
                facts = facts_of(self._database)
            else:
                files = {
                    image_id: self._database.place_of(path)
                    for image_id, path in self._database.read(
                        "SELECT id, path FROM pictures WHERE typeof(path) = 'blob'"
                    )
                }
        if path.suffix != PARQUET_SUFFIX:
            return write_code_file(path, codes, files)
        rows = snapshot.rows[codes.rows].tolist()
        return write_parquet(path, codes.compact(), [facts[row] for row in rows])

    def import_codes(self, *paths: str | Path) -> int:
        """Adds the pictures of files of codes of the same model; returns how many were new.

        Args:
            paths: files as of `export`, or folders of Parquet files, which are taken in the order
                of their names, of shards only the newest codes of each picture; a folder and a
                Parquet file may be named by a URL.

        Raises:
            StoreError: a file cannot be used, or comes from another model.
            ModuleNotFoundError: a Parquet file needs pyarrow, and s3:// needs s3fs.
        """
        stored = import_files(self._database, code_files(paths))
        self.sync()
        self.compact()
        return stored


def check_folder(folder: Path, *, repair: bool = False) -> CheckReport:
    """`Collection.check` of a folder, even if a damaged header keeps it from being opened.

    Raises:
        ValueError: there is no collection, or no model to rebuild the header from.
    """
    repaired: tuple[str, ...] = ()
    try:
        collection = Collection.open(folder)
    except HeaderError as error:
        if not repair:
            return CheckReport(0, (str(error),), (), ())
        Database.rebuild_header(folder / DATABASE_FILE, header_of_model(folder))
        repaired = (f"{folder / DATABASE_FILE}: the header was rebuilt from the model",)
        collection = Collection.open(folder)
    with collection:
        report = collection.check(repair=repair)
    return replace(report, repaired=repaired + report.repaired)


def is_collection(path: Path) -> bool:
    """Whether a folder is a collection."""
    return (path / DATABASE_FILE).exists()


def model_hash_of(folder: Path) -> str:
    """Hash of a collection's model. Raises StoreError like `Collection.open`."""
    with Database(folder / DATABASE_FILE) as database:
        return str(database.header["model_hash"])


def open_codes(path: str | Path) -> CodeSet:
    """The codes of a code file or of a collection, without removed pictures.

    The arrays of the collection stay as they are unless they are missing or out of date. Those of
    the result are copies if pictures have been removed.

    Args:
        path: the file, or the folder of the collection.

    Raises:
        StoreError: see `CodeSet.open` and `Collection.open`.
    """
    path = Path(path)
    if not path.is_dir():
        return CodeSet.open(path)
    with Collection.open(path) as collection:
        return collection.code_file()


def _copy_model(path: Location, model_hash: str, meta: Mapping[str, Any], folder: Path) -> None:
    """Copies the model of a file of codes into a folder that has none."""
    from regionhash.models.checkpoints import CONFIG_FILE, copy_checkpoint, model_folder

    if (folder / CONFIG_FILE).exists():
        return
    origin = model_folder(Path(path), model_hash, meta)
    if not origin.exists():
        raise ValueError(f"{origin}: the model of {path} was not found")
    copy_checkpoint(origin, folder)


def _n_bytes(folder: Path) -> int:
    """Size of all files below a folder; files removed meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total


def _encoder_of(folder: Path) -> dict[str, Any]:
    """What is known of the origin of a collection's encoder; nothing if it has none."""
    from regionhash.encoders import RECORD_FILE, EncoderError, read_encoder

    if not (folder / RECORD_FILE).exists():
        return {}
    try:
        stored = read_encoder(folder)
    except EncoderError as error:
        return {"encoder": f"damaged: {error}"}
    return {"encoder": stored.spec, "licence": stored.licence, "words": stored.text is not None}
