"""Export of a collection to a code file or a Parquet file, and import of either."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionhash.collection.database import OF_MODEL, Database, FileState, NewImage
from regionhash.data.inputs import file_of_id
from regionhash.files.names import as_shown, shown_name
from regionhash.files.urls import Location, files_in, is_url, located
from regionhash.precision import check_same_precision, precision_of
from regionhash.store import CodeFileWriter, CodeSet, StoreError, new_file, rows_of
from regionhash.store.parquet import Facts
from regionhash.store.parquet_reader import ParquetCodes
from regionhash.store.shards import newest_in

if TYPE_CHECKING:
    from regionhash.data.inputs import Source

PARQUET_SUFFIX = ".parquet"
"""Files whose name ends so are Parquet files; all others are code files."""

_IMPORTED_AT_A_TIME = 1000
_SHA256_BYTES = 32


def write_code_file(path: Path, codes: CodeSet, files: Mapping[str, bytes]) -> int:
    """Writes the pictures of a collection as a code file; returns how many.

    If an id would resolve to a file other than its picture's, the full path becomes the id.

    Args:
        path: must not exist yet.
        codes: the codes of the collection.
        files: paths of the pictures' files, by id.

    Raises:
        ValueError: the path already exists.
        StoreError: writing fails.
    """
    with new_file(path) as temporary:
        _write(temporary, codes, files)
    return len(codes)


def _write(path: Path, codes: CodeSet, files: Mapping[str, bytes]) -> None:
    places = folders(codes.meta)
    with CodeFileWriter(
        path,
        model_hash=codes.model_hash,
        model_name=codes.model,
        classes=codes.classes,
        n_bits=codes.n_bits,
        n_region_bits=codes.n_region_bits,
        keep_features=codes.table.region_features is not None,
        meta=codes.meta,
    ) as writer:
        for n in codes.rows.tolist():
            image_id, labels = codes.table.ids[n], None
            if codes.labels is not None:
                labels = np.flatnonzero(codes.labels[n]).tolist()
            file = files.get(image_id)
            if file is not None and file_of(image_id, places).path not in (None, file):
                image_id = shown_name(file)
            writer.add(image_id, codes.table.picture(n), labels)
        writer.finish()


def facts_of(database: Database, first: int = 0, last: int | None = None) -> dict[int, Facts]:
    """What a Parquet file has of each picture beside its codes, by row.

    Args:
        database: of the collection.
        first: the least row.
        last: the greatest row; None is no limit.
    """
    found = {}
    for row, path, digest, taken in database.read(
        "SELECT row, path, hash, taken FROM pictures WHERE row >= ?1 AND (?2 IS NULL OR row <= ?2)",
        first,
        last,
    ):
        place: str | None = None
        if isinstance(path, bytes):
            with suppress(UnicodeDecodeError):
                place = database.place_of(path).decode()
        whole = isinstance(digest, bytes) and len(digest) == _SHA256_BYTES
        found[row] = Facts(row, place, digest if whole else None, taken)
    return found


def code_files(given: Sequence[str | Path]) -> list[Location]:
    """The files of codes that are named, in their order; a folder stands for its Parquet files.

    Raises:
        StoreError: nothing is named, or a folder without a Parquet file.
        ValueError: what is behind a URL cannot be read.
    """
    found: list[Location] = []
    for location in map(located, given):
        is_folder = isinstance(location, Path) and location.is_dir()
        if is_folder or (isinstance(location, str) and not location.endswith(PARQUET_SUFFIX)):
            shards = files_in(location, PARQUET_SUFFIX)
            if not shards:
                raise StoreError(f"{location}: no Parquet file is in this folder")
            found += shards
        else:
            found.append(location)
    if not found:
        raise StoreError("name a file of codes, or a folder of Parquet files")
    return found


def header_of_file(path: Location) -> dict[str, Any]:
    """What a collection of a file of codes has in its header, see `Database`; meta is the file's.

    Raises:
        StoreError: the file cannot be used, or does not say what model made it.
    """
    if _is_parquet(path):
        parquet = ParquetCodes.open(path)
        if parquet.header is None:
            raise StoreError(
                f"{path}: has no header, which another program may have left out; import it into a "
                "collection of its model"
            )
        known, keeps = dict(parquet.header), parquet.keeps_floats
    else:
        file = CodeSet.open(Path(path))
        known = {name: getattr(file, name) for name in (*OF_MODEL, "meta")}
        keeps = file.table.region_features is not None
    header = {name: known[name] for name in (*OF_MODEL, "meta")}
    return header | {"classes": [*known["classes"]]} | ({"keeps_floats": True} if keeps else {})


def _is_parquet(path: Location) -> bool:
    return str(path).endswith(PARQUET_SUFFIX)


def import_files(database: Database, paths: Sequence[Location]) -> int:
    """Stores the pictures of files of codes that are not stored yet; returns how many.

    Of shards in one folder, the newest codes of each picture are taken, see `newest_in`.

    Raises:
        StoreError: a file cannot be used, or comes from another model.
    """
    newest = newest_in(paths)
    return sum(_import_file(database, path, newest.get(path)) for path in paths)


def _import_file(database: Database, path: Location, only: Collection[int] | None) -> int:
    if _is_parquet(path):
        stored = seen = 0
        for codes, facts in ParquetCodes.open(path).parts(database.header, only):
            stored += import_codes(database, codes, facts)
            seen += len(codes)
        if only is not None and seen < len(only):
            raise StoreError(f"{path}: changed while it was read; import it again")
        return stored
    file = CodeSet.open(Path(path))
    if file.model_hash != database.header["model_hash"]:
        raise StoreError(
            f"{path}: made by model {file.model_hash}, but {database.path.parent} needs "
            f"{database.header['model_hash']}"
        )
    return import_codes(database, file)


def import_codes(database: Database, codes: CodeSet, facts: Sequence[Facts] | None = None) -> int:
    """Stores pictures that are not stored yet; returns how many.

    If a picture's file is where the codes say, the picture is linked to it without reading it: the
    next `add` or `refresh` records its bytes, trusting that they are those encoded if their hash is
    not among the facts.

    Args:
        database: of the collection.
        codes: of the same model.
        facts: of each picture, if they are known.

    Raises:
        ValueError: the codes are of another precision, or lack the floats that are kept here.
        StoreError: writing fails.
    """
    check_same_precision(codes.path, precision_of(codes.meta), database.header["meta"]["precision"])
    places = folders(codes.meta)
    sources = [
        database.source([place["data"]], place)
        for place in codes.meta.get("sources", [])
        if "data" in place
    ]
    stored, pending = 0, []
    linked: set[bytes | None] = set()
    for n, stored_id in enumerate(codes.table.ids):
        image_id = as_shown(stored_id)
        labels = None if codes.labels is None else np.flatnonzero(codes.labels[n]).tolist()
        picture, keep = codes.table.picture(n), database.keeps_floats
        rows = rows_of(image_id, picture, labels, database.header, keep_features=keep)
        if facts is None:
            state = file_of(image_id, places)
        else:
            state = _state(database, image_id, facts[n], places, linked)
            linked.add(state.path)
        source = None if state.path or len(sources) != 1 else sources[0]
        pending.append(NewImage(image_id, state, source, rows))
        if len(pending) >= _IMPORTED_AT_A_TIME:
            stored += database.store(pending)
            pending.clear()
    return stored + database.store(pending)


def _state(
    database: Database,
    image_id: str,
    facts: Facts,
    places: Sequence[Source],
    linked: Container[bytes | None],
) -> FileState:
    """The file of a picture, if it is there and no other picture has it.

    The facts may be old: what the collection has of the same picture is trusted more. What is
    behind a URL is no file that a collection can have.
    """
    if facts.path is not None and is_url(facts.path):
        return FileState(hash=facts.sha256, taken=facts.taken)
    path = file_of(image_id, places).path
    is_there = path is not None
    if facts.path is not None:
        path = database.path_of(Path(facts.path))
        is_there = os.path.isfile(facts.path)  # noqa: PTH113 (odd names raise there)
    found = database.of_path(path)
    if found is not None and found[0]["id"] == image_id:
        return FileState(path, taken=facts.taken)
    if found is not None or path in linked or not is_there:
        path = None
    return FileState(path, facts.sha256, taken=facts.taken)


def folders(meta: Mapping[str, object]) -> list[Source]:
    """The folders of its pictures that a code file records."""
    sources = meta.get("sources", [])
    assert isinstance(sources, list)
    return [place for place in sources if "folder" in place]


def file_of(image_id: str, places: Sequence[Source]) -> FileState:
    """The file that an id resolves to, as in `regionhash.data.inputs.Pictures`."""
    for place in places:
        path = file_of_id(image_id, place)
        if os.path.isfile(path):  # noqa: PTH113 (odd names raise there)
            return FileState(os.fsencode(path.absolute()), taken=path.stat().st_mtime)
    return FileState()
