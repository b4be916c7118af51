"""Export of a collection to a code file, and import of a code file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regionhash.collection.database import Database, FileState, NewImage
from regionhash.data.inputs import file_of_id
from regionhash.files.atomic import replacing
from regionhash.files.names import as_shown, shown_name
from regionhash.precision import check_same_precision
from regionhash.store import CodeFileWriter, CodeSet, reported, rows_of

if TYPE_CHECKING:
    from regionhash.data.inputs import Source

_IMPORTED_AT_A_TIME = 1000


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
    exists = f"{path}: already exists"
    if path.exists():
        raise ValueError(exists)
    with reported(path, "cannot write"):
        try:
            with replacing(path, exclusive=True) as temporary:
                _write(temporary, codes, files)
        except FileExistsError:
            raise ValueError(exists) from None
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


def import_code_file(database: Database, codes: CodeSet) -> int:
    """Stores the pictures of a code file that are not stored yet; returns how many.

    If a picture's file is where the code file says, the picture is linked to it without reading
    it: the next `add` or `refresh` records its bytes, trusting that they are those encoded.

    Raises:
        ValueError: the codes are of another precision.
        StoreError: writing fails.
    """
    recorded = codes.meta.get("precision", "32-true")
    check_same_precision(codes.path, recorded, database.header["meta"]["precision"])
    places = folders(codes.meta)
    sources = [
        database.source([place["data"]], place)
        for place in codes.meta.get("sources", [])
        if "data" in place
    ]
    stored, pending = 0, []
    for n, stored_id in enumerate(codes.table.ids):
        image_id = as_shown(stored_id)
        labels = None if codes.labels is None else np.flatnonzero(codes.labels[n]).tolist()
        picture, keep = codes.table.picture(n), database.keeps_floats
        rows = rows_of(image_id, picture, labels, database.header, keep_features=keep)
        state = file_of(image_id, places)
        source = None if state.path or len(sources) != 1 else sources[0]
        pending.append(NewImage(image_id, state, source, rows))
        if len(pending) >= _IMPORTED_AT_A_TIME:
            stored += database.store(pending)
            pending.clear()
    return stored + database.store(pending)


def folders(meta: Mapping[str, object]) -> list[Source]:
    """The folders of its pictures that a code file records."""
    sources = meta.get("sources", [])
    assert isinstance(sources, list)
    return [place for place in sources if "folder" in place]


def file_of(image_id: str, places: Sequence[Source]) -> FileState:
    """The file that an id resolves to, as in `regionhash.data.inputs.Pictures`."""
    for place in places:
        path = file_of_id(image_id, place)
        if path.is_file():
            return FileState(os.fsencode(path.absolute()), taken=path.stat().st_mtime)
    return FileState()
