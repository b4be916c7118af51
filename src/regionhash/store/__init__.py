"""Codes on disk."""

from regionhash.store.code_file import (
    LAYOUT,
    OFFSETS,
    PRECISIONS,
    CodeFile,
    CodeFileWriter,
    CodeSet,
    Ids,
    StoreError,
    dtype_of,
    encode_id,
    reported,
    row_shapes_of,
    rows_of,
)

__all__ = [
    "LAYOUT",
    "OFFSETS",
    "PRECISIONS",
    "CodeFile",
    "CodeFileWriter",
    "CodeSet",
    "Ids",
    "StoreError",
    "dtype_of",
    "encode_id",
    "reported",
    "row_shapes_of",
    "rows_of",
]
