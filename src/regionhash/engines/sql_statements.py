"""The statements of the SQL engines as text, in two dialects: they are run, and printed.

What is searched has one row for each picture and one for each region (`regionhash.engines.sql_rows`
has the columns), or it is a Parquet file of `regionhash export`, whose columns have the same names.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionhash.engines.backend import Condition, Part
from regionhash.engines.sql_rows import words_of
from regionhash.files.text import is_text
from regionhash.search.request import Filter
from regionhash.structures import Codes, Ints

MOST_RESULTS = 2**62
"""A limit that no search reaches: both dialects take it."""


@dataclass(frozen=True)
class Dialect:
    """What two databases say in different words.

    Attributes:
        name: of the dialect.
        text: a text as a literal.
        word_distance: the bits in which a column of 64 bits differs from a number.
        code_distance: the bits in which a column of bytes differs from a code.
        numbers: rows of the numbers in a text: of a hundred thousand literals, either parser takes
            a second.
        contains: function of a list and what it may hold.
        seconds: the seconds since 1970 of a column of times.
        files: the start of a statement that reads Parquet files as a table named `codes`; raises
            ValueError if the database cannot read files with such paths.
    """

    name: str
    text: Callable[[str], str]
    word_distance: Callable[[str, int], str]
    code_distance: Callable[[str, bytes], str]
    numbers: Callable[[str], str]
    contains: str
    seconds: Callable[[str], str]
    files: Callable[[Sequence[str]], str]


def _doubled(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _escaped(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bits(code: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in code)


def _files_of_duckdb(paths: Sequence[str]) -> str:
    for path in paths:
        if "\\" in path and glob.has_magic(path):
            # Among these characters, it takes a backslash for a slash, and none can be escaped.
            raise ValueError(f"{path}: DuckDB reads no file whose path has both \\ and one of *?[")
        if not is_text(path):
            raise ValueError(f"{path}: DuckDB reads no file whose path is not UTF-8")
    names = ",\n  ".join(_doubled(glob.escape(path)) for path in paths)
    return (
        f"WITH codes AS NOT MATERIALIZED (SELECT * FROM read_parquet([\n  {names}\n], "
        "hive_partitioning = false))\n"
    )


def _files_of_clickhouse(paths: Sequence[str]) -> str:
    (path,) = paths
    if set(path) & set("*?{}"):
        raise ValueError(f"{path}: ClickHouse would take the name of this file for a pattern")
    return f"WITH codes AS (SELECT * FROM {file_of_clickhouse(path)})\n"


def file_of_clickhouse(path: str) -> str:
    """A Parquet file as a table of ClickHouse: the end of a SELECT, since it has a setting.

    Without it, a folder named "class=cat" would replace the column "class".
    """
    return f"file({_escaped(path)}, 'Parquet') SETTINGS use_hive_partitioning = 0"


DUCKDB = Dialect(
    name="duckdb",
    text=_doubled,
    word_distance=lambda column, word: f"bit_count(xor({column}, {word}::UBIGINT))::INT",
    code_distance=lambda column, code: f"bit_count(xor({column}::BIT, '{_bits(code)}'::BIT))",
    numbers=lambda text: f"SELECT unnest(string_split('{text}', ' ')::BIGINT[])",
    contains="list_contains",
    seconds=lambda column: f"epoch({column})",
    files=_files_of_duckdb,
)

CLICKHOUSE = Dialect(
    name="clickhouse",
    text=_escaped,
    word_distance=lambda column, word: f"bitHammingDistance({column}, {word})",
    code_distance=lambda column, code: (
        f"bitHammingDistance({column}, toFixedString(unhex('{code.hex()}'), {len(code)}))"
    ),
    numbers=lambda text: f"SELECT toInt64(arrayJoin(splitByChar(' ', '{text}')))",
    contains="has",
    seconds=lambda column: f"toFloat64({column})",
    files=_files_of_clickhouse,
)

DIALECTS = {dialect.name: dialect for dialect in (DUCKDB, CLICKHOUSE)}


@dataclass(frozen=True)
class Rows:
    """The rows that a statement reads.

    Attributes:
        dialect: of the database that runs it.
        source: their table.
        head: what the statement starts with, which may define the table.
        exported: whether they are those of an export: codes are bytes, times are times, and
            pictures have ids.
        shows: whether there is a column of the classes that pictures are known to show.
    """

    dialect: Dialect
    source: str
    head: str = ""
    exported: bool = False
    shows: bool = True

    @classmethod
    def of_shards(cls, dialect: Dialect, paths: Sequence[str]) -> Rows:
        """Rows of Parquet files of this engine."""
        return cls(dialect, "codes", dialect.files(paths))

    @classmethod
    def of_export(cls, dialect: Dialect, path: Path) -> Rows:
        """Rows of a file of `regionhash export`.

        Raises:
            ValueError: the database cannot read a file with such a path.
        """
        import pyarrow.parquet as pq

        path = path.absolute()  # "a:b.parquet" would be a URL
        shows = "shows" in pq.read_schema(path).names
        return cls(dialect, "codes", dialect.files([str(path)]), exported=True, shows=shows)


def nearest(
    rows: Rows,
    part: Part,
    queries: Codes,
    conditions: Iterable[str],
    *,
    top: int,
    offset: int = 0,
    max_distance: int | None = None,
) -> str:
    """The statement that finds pictures by the sum of the least distances of their regions.

    It gives their numbers, ids if there are any, and distances, ordered by distance and number.

    Args:
        rows: what is searched.
        part: what is compared.
        queries: (Q, B) uint8, packed, Q >= 1.
        conditions: all that pictures must meet, see `conditions_of`, `passing` and `unlike`.
        top: how many pictures to find.
        offset: how many to skip.
        max_distance: the greatest distance, in bits; None is no limit.
    """
    least = [f"min({_distance(rows, part, code)})" for code in queries]
    names = "picture, id" if rows.exported else "picture"
    lines = [
        f"{rows.head}SELECT {names},",
        "  " + "\n  + ".join(least) + " AS distance",
        f"FROM {rows.source}",
        f"WHERE part = '{part}'",
        *(f"  AND {condition}" for condition in conditions),
        f"GROUP BY {names}",
        *([] if max_distance is None else [f"HAVING distance <= {max_distance}"]),
        "ORDER BY distance, picture",
        f"LIMIT {min(top, MOST_RESULTS)}" + (f" OFFSET {offset}" if offset else ""),
    ]
    return "\n".join(lines)


def _distance(rows: Rows, part: Part, code: Codes) -> str:
    """The distance between the code of a row and another one (B,)."""
    if rows.exported:
        column = "image_code" if part == "picture" else "region_code"
        return rows.dialect.code_distance(column, code.tobytes())
    words = words_of(code[None])[0].tolist()
    return " + ".join(rows.dialect.word_distance(f"word_{n}", word) for n, word in enumerate(words))


def everything(rows: Rows, part: Part, n_words: int) -> str:
    """The statement that reads all rows of a part, with that many words of their codes."""
    words = "".join(f", word_{n}" for n in range(n_words))
    return "\n".join(
        [
            f"{rows.head}SELECT picture, number{words}",
            f"FROM {rows.source}",
            f"WHERE part = '{part}'",
            "ORDER BY picture, number",
        ]
    )


# -- conditions -----------------------------------------------------------------------------------


def conditions_of(rows: Rows, condition: Condition) -> list[str]:
    """A condition of pictures, in SQL."""
    found = [f"picture <= {condition.up_to}", *passing(rows, condition.filter)]
    if condition.among is not None:
        found.append(among(rows, condition.among))
    if len(condition.without):
        found.append(f"NOT {among(rows, condition.without)}")
    return found


def among(rows: Rows, numbers: Ints) -> str:
    """Pictures of these numbers (n,) only."""
    if not len(numbers):
        return _NEVER
    text = " ".join(map(str, numbers.tolist()))
    return f"picture IN ({rows.dialect.numbers(text)})"


_NEVER = "1 = 0"


def passing(rows: Rows, wanted: Filter) -> list[str]:
    """What a filter without a folder demands, as `regionhash.collection.filters` does."""
    found = []
    taken = rows.dialect.seconds("taken") if rows.exported else "taken"
    if wanted.after is not None:
        found.append(_compared(taken, ">=", wanted.after, always=wanted.after < 0))
    if wanted.before is not None:
        found.append(_compared(taken, "<", wanted.before, always=wanted.before > 0))
    scored = f" AND score >= {_number(wanted.min_score)}" if wanted.min_score else ""
    for name in wanted.labels:
        literal = rows.dialect.text(name)
        shown = [f"(part = 'region' AND class = {literal}{scored})"]
        if rows.shows:
            shown.append(f"(part = 'picture' AND {rows.dialect.contains}(shows, {literal}))")
        found.append(_in(rows, _OR.join(shown)))
    if wanted.min_score and not wanted.labels:
        # The whole picture as a region has no class and the score 1: it is no detection.
        detected = f"part = 'region' AND (class IS NOT NULL OR score < 1){scored}"
        found.append(_in(rows, detected))
    return found


def unlike(rows: Rows, unwanted: Codes, max_distance: int) -> str:
    """Leaves out pictures with a region near one of some codes (W, B)."""
    near = [f"({_distance(rows, 'region', code)}) <= {max_distance}" for code in unwanted]
    return "NOT " + _in(rows, f"part = 'region' AND ({_OR.join(near)})")


_OR = "\n      OR "


def _in(rows: Rows, condition: str) -> str:
    """Pictures with a row that meets a condition."""
    return f"picture IN (\n    SELECT picture FROM {rows.source}\n    WHERE {condition}\n  )"


def _compared(column: str, sign: str, value: float, *, always: bool) -> str:
    """A known time compared with a number, which may be infinite or none."""
    if math.isfinite(value):
        return f"{column} {sign} {_number(value)}"
    return "taken IS NOT NULL" if always else _NEVER


def _number(value: float) -> str:
    """A number as a literal of 64 bits: without an exponent, DuckDB takes it for a decimal one."""
    text = repr(float(value)).removesuffix(".0")
    return text if "e" in text else f"{text}e0"
