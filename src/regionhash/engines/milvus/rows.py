"""What Milvus has of pictures and regions, and the expressions that select them.

The id of a region is the number of its picture times 65,536, and its position: ids ascend as
regions do, and those of consecutive pictures are a range. `shown` has a number for each class that
the picture is known to show and for each that was detected in it, with the score in steps. Scores
are rounded down, and two names may have one number: an expression passes all pictures that a filter
passes, and few others. `Nearest.may_be_found` is exact.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regionhash.engines.backend import Condition, Part, Stored
from regionhash.store import CodeSet
from regionhash.store.parquet import CORNERS, Facts
from regionhash.structures import Ints

LIMIT = 16_384
"""Rows that Milvus gives at most at once, and numbers in an expression."""

SHIFT: dict[Part, int] = {"picture": 0, "region": 16}
"""How far the number of the picture is shifted in an id."""

MOST_REGIONS = 1 << SHIFT["region"]
"""Of a picture."""

PICTURE: dict[Part, str] = {"picture": "id", "region": "picture"}
"""The field that has the number of the picture."""

MOST_SHOWN = 4096
"""Numbers in `shown`: the longest array of Milvus."""

NO_CODE = bytes(1)
"""The code of a picture that has none, since Milvus has no row without a vector."""

_UNKNOWN = -1e300  # a time; a field is never empty before Milvus 2.5
_STEPS = 16  # of scores from 0 to 1
_KNOWN = _STEPS + 1  # the step of a class that the picture is known to show
_SLACK = 2.0**-10  # of a score in [0, 1]: more than it changes when a collection packs it


def picture_rows(
    codes: CodeSet, facts: Sequence[Facts], *, with_codes: bool, by_folder: bool
) -> Iterator[dict[str, Any]]:
    """A row for each picture."""
    image_codes = codes.table.image_codes if with_codes else None
    for n, common in enumerate(_common(codes, facts, by_folder)):
        code = NO_CODE if image_codes is None else image_codes[n].tobytes()
        yield {"id": facts[n].number, "code": code} | common


def region_rows(
    codes: CodeSet, facts: Sequence[Facts], *, by_folder: bool
) -> Iterator[dict[str, Any]]:
    """A row for each region."""
    if codes.table.offsets is None:
        return
    for n, common in enumerate(_common(codes, facts, by_folder)):
        regions, first = codes.table.regions(n), facts[n].number << SHIFT["region"]
        common |= {"picture": facts[n].number}
        columns = [regions.labels.tolist(), regions.scores.tolist(), *regions.boxes.T.tolist()]
        for position, (code, *values) in enumerate(zip(regions.codes, *columns, strict=True)):
            own = dict(zip(("label", "score", *CORNERS), values, strict=True))
            yield {"id": first + position, "code": code.tobytes()} | common | own


def _common(codes: CodeSet, facts: Sequence[Facts], by_folder: bool) -> Iterator[dict[str, Any]]:
    """What the row of a picture and those of its regions share."""
    for fact, shown in zip(facts, _shown(codes), strict=True):
        common = {"taken": _UNKNOWN if fact.taken is None else fact.taken, "shown": shown}
        if by_folder:
            common["folder"] = "" if fact.path is None else str(Path(fact.path).parent)
        yield common


def _shown(codes: CodeSet) -> Iterator[list[int]]:
    """The classes of each picture, see `_number_of`."""
    table, classes = codes.table, codes.classes
    for n in range(len(table)):
        shown = set()
        if codes.labels is not None:
            known = np.flatnonzero(codes.labels[n]).tolist()
            shown |= {_number_of(classes[label], _KNOWN) for label in known}
        if table.offsets is not None and table.labels is not None and table.scores is not None:
            items = slice(*table.offsets[n : n + 2].tolist())
            detected = zip(table.labels[items].tolist(), table.scores[items].tolist(), strict=True)
            for label, score in detected:
                if label >= 0:
                    shown.add(_number_of(classes[label], _step(score)))
                if label >= 0 or score < 1:  # otherwise it is the whole picture, or a window
                    shown.add(_number_of("", _step(score)))
        yield sorted(shown)


def _number_of(name: str, step: int) -> int:
    """A class, "" for any, and a step of scores."""
    return zlib.crc32(name.encode()) * (_KNOWN + 1) + step


def _step(score: float) -> int:
    return int(min(max(score, 0.0), 1.0) * _STEPS)


def expression(part: Part, condition: Condition) -> str:
    """What selects all rows of pictures that meet a condition, and few others.

    Lists of more than `LIMIT` numbers are left out.
    """
    picture, wanted = PICTURE[part], condition.filter
    terms = [f"{picture} <= {condition.up_to}"]
    if condition.among is not None and len(condition.among) <= LIMIT:
        terms.append(is_in(picture, condition.among))
    if 0 < len(condition.without) <= LIMIT:
        terms.append(f"not ({is_in(picture, condition.without)})")
    times = {">=": wanted.after, "<": wanted.before}
    if any(time is not None for time in times.values()):
        terms.append(f"taken > {_UNKNOWN}")
    for sign, time in times.items():
        if time is not None and math.isfinite(time):
            terms.append(f"taken {sign} {float(time)!r}")
    for name in wanted.labels or (("",) if wanted.min_score else ()):
        steps = range(_step(wanted.min_score - _SLACK), _KNOWN + 1)
        terms.append(f"array_contains_any(shown, {[_number_of(name, step) for step in steps]})")
    return " and ".join(terms)


def is_in(field: str, numbers: Ints) -> str:
    """What selects the rows with some numbers (n,)."""
    return f"{field} in {numbers.tolist()}"


def stored(part: Part, rows: Sequence[dict[str, Any]], n_bytes: int) -> Stored:
    """Rows with an id and, if `n_bytes` is above 0, with a code of that many bytes."""
    rows = sorted(rows, key=lambda row: row["id"])
    ids = np.array([row["id"] for row in rows], np.int64)
    packed = b"".join(row["code"][0] for row in rows) if n_bytes else b""
    codes = np.frombuffer(packed, np.uint8).reshape(len(rows), n_bytes)
    return Stored(ids >> SHIFT[part], ids & ((1 << SHIFT[part]) - 1), codes)
