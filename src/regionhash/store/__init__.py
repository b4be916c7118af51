"""Codes on disk."""

from regionhash.store.code_file import (
    CODES_FILE,
    LAYOUT,
    OFFSETS,
    PRECISIONS,
    CodeFile,
    CodeFileWriter,
    Ids,
    StoreError,
    dtype_of,
    encode_id,
    reported,
    row_shapes_of,
    rows_of,
)

__all__ = [
    "CODES_FILE",
    "LAYOUT",
    "OFFSETS",
    "PRECISIONS",
    "CodeFile",
    "CodeFileWriter",
    "Ids",
    "StoreError",
    "dtype_of",
    "encode_id",
    "reported",
    "row_shapes_of",
    "rows_of",
]
