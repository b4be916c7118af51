"""Codes on disk: one HDF5 file that holds the codes of many pictures (docs/code-file.md)."""

from regionhash.store.codeset import CodeFile, CodeSet, Ids
from regionhash.store.layout import (
    LAYOUT,
    OFFSETS,
    StoreError,
    dtype_of,
    encode_id,
    new_file,
    reported,
    row_shapes_of,
    rows_of,
)
from regionhash.store.writer import CodeFileWriter

__all__ = [
    "LAYOUT",
    "OFFSETS",
    "CodeFile",
    "CodeFileWriter",
    "CodeSet",
    "Ids",
    "StoreError",
    "dtype_of",
    "encode_id",
    "new_file",
    "reported",
    "row_shapes_of",
    "rows_of",
]
