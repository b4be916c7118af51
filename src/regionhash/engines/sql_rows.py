"""Codes as rows of a table of SQL.

| column | type | content |
|---|---|---|
| picture | int64 | number of the picture |
| part | text | `picture` or `region` |
| number | int32 | of the region in its picture, from 0; 0 for a picture |
| class | text | of the region; null if unknown |
| score | float32 | of the region, as it is kept; null for a picture |
| taken | float64 | seconds since 1970; null if unknown |
| shows | list of texts | classes that the picture is known to show; empty for a region |
| word_0, ... | uint64 | the code, 64 bits each, the first bit the most significant |

Words are compared two to four times as fast as bytes: `benchmarks/bench_sql.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regionhash.engines.backend import Owner, Part, Stored
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts, rows_of_pictures
from regionhash.structures import Codes

if TYPE_CHECKING:
    import pyarrow as pa

_WORD = 8
"""Bytes of a word."""


def words_of(codes: Codes) -> NDArray[np.uint64]:
    """Codes (M, B) uint8 as words (M, ceil(B / 8)) uint64; bits beyond the code are 0."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % _WORD)))
    return padded.view(">u8").astype(np.uint64)


def codes_of(words: NDArray[np.uint64], n_bytes: int) -> Codes:
    """Codes (M, B) uint8 of words (M, W), of which they may use only the first."""
    return np.ascontiguousarray(words).astype(">u8").view(np.uint8)[:, :n_bytes]


def n_words(owner: Owner) -> int:
    """How many words a row has: the same for both parts."""
    return -(-max(owner.n_bits, owner.n_region_bits) // (8 * _WORD))


def rows_of(codes: CodeSet, facts: Sequence[Facts], owner: Owner) -> pa.Table:
    """The rows of pictures, those of pictures first, each part by picture and number.

    Args:
        codes: the pictures, none removed.
        facts: of each of them.
        owner: their collection.
    """
    import pyarrow as pa

    exported = rows_of_pictures(codes, facts)
    parts = np.asarray(exported["part"].cast(pa.string()))
    rows = [np.flatnonzero(parts == part) for part in ("picture", "region")]
    exported = exported.take(np.concatenate(rows))
    pictures = np.asarray(exported["picture"])
    seconds = np.array([np.nan if fact.taken is None else fact.taken for fact in facts])
    seconds = seconds[np.searchsorted([fact.number for fact in facts], pictures)]
    words = np.zeros((len(exported), n_words(owner)), np.uint64)
    for part, packed in ((0, codes.table.image_codes), (1, codes.table.region_codes)):
        if packed is not None:
            own = words_of(np.asarray(packed))
            words[part * len(rows[0]) :][: len(rows[part]), : own.shape[1]] = own
    columns: dict[str, Any] = {
        "picture": exported["picture"],
        "part": exported["part"].cast(pa.string()),
        "number": exported["number"],
        "class": exported["class"].cast(pa.string()),
        "score": exported["score"],
        "taken": pa.array(seconds, mask=np.isnan(seconds)),
        "shows": _known(exported),
    }
    columns |= {
        f"word_{n}": pa.array(np.ascontiguousarray(words[:, n])) for n in range(len(words.T))
    }
    return pa.table(columns)


def _known(exported: pa.Table) -> pa.Array:
    """The classes that pictures are known to show, an empty list in other rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.list_(pa.string())
    if "shows" not in exported.column_names:
        return pa.array([[]] * len(exported), kind)
    return pc.fill_null(exported["shows"], pa.scalar([], kind))


def stored_of(batches: Iterator[pa.RecordBatch], part: Part, owner: Owner) -> Iterator[Stored]:
    """Batches of `picture`, `number` and the words that were asked for, as codes."""
    n_bytes = (owner.n_bits if part == "picture" else owner.n_region_bits) // 8
    for batch in batches:
        picture, number, *words = (np.asarray(column) for column in batch.columns)
        packed = np.zeros((len(batch), 0), np.uint8)
        if words:
            packed = codes_of(np.stack(words, axis=1), n_bytes)
        yield Stored(picture.astype(np.int64), number.astype(np.int64), packed)
