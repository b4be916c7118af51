"""Codes in Parquet files, searched by DuckDB.

FOLDER/
  shards.json              what the place says of itself, and the files that belong to it
  stamp                    its mark, see `Backend.stamp`
  1-5000.3f2a9c1d.parquet  a shard: the rows of pictures between two numbers

A file never changes and its name is never used twice. What changes the codes writes new files and
then replaces shards.json, so a process that is killed leaves all as it was, and a search whose
files are gone starts again. Files that shards.json does not name are removed by the next change.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from regionhash.engines.backend import EngineError, Held, Nearest, Owner, Part, Stored
from regionhash.engines.sql_rows import n_words, rows_of, stored_of
from regionhash.engines.sql_statements import DUCKDB, Rows, conditions_of, everything, nearest
from regionhash.files.atomic import locked_folder, write_text
from regionhash.files.strict_json import field, parse_object
from regionhash.files.text import reason_of
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts
from regionhash.structures import Ints

if TYPE_CHECKING:
    import pyarrow as pa

_STATE, _STAMP = "shards.json", "stamp"
_NAME = re.compile(r"\d+-\d+\.[0-9a-f]+\.parquet")
_SHARD_ROWS = 1 << 20
"""Rows up to which shards are joined: some 16 MB of codes of 64 bits, 130 MB of 1,024."""
_GROUP_ROWS = 1 << 17
"""Rows of a group in a file: DuckDB gives each thread one at a time."""


class _Shard(NamedTuple):
    """A file of codes: pictures from number `first` to `last`, and what the file has."""

    name: str
    first: int
    last: int
    pictures: int
    regions: int
    n_bytes: int

    @classmethod
    def read(cls, values: Any) -> _Shard:
        """A shard of JSON. Raises ValueError if it is none."""
        match values:
            case [str(name), int(), int(), int(), int(), int()] if _NAME.fullmatch(name):
                return cls(*values)
        raise ValueError("no shard")

    @property
    def rows(self) -> int:
        return self.pictures + self.regions


class DuckDB:
    """Parquet files in a folder, one backend of `regionhash.engines.backend`.

    Args:
        folder: of the files of this collection alone.
        owner: the collection.

    Raises:
        ValueError: DuckDB cannot read files with such paths.
        ModuleNotFoundError: DuckDB or pyarrow is not installed.
    """

    def __init__(self, folder: Path, owner: Owner) -> None:
        import duckdb
        import pyarrow.parquet  # noqa: F401 (says what is missing)

        self.place = str(folder)
        DUCKDB.files([self.place])  # now, since it could be written
        self._folder, self._owner = folder, owner
        # What does not fit in memory goes there; the folder is made when it is needed.
        spilled = Path(tempfile.gettempdir()) / f"regionhash-duckdb-{secrets.token_hex(8)}"
        self._connection = duckdb.connect(config={"temp_directory": str(spilled)})

    def create(self) -> None:
        """Makes the folder, see `Backend`."""
        with self._reported():
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked_folder(self._folder):
                if not self._exists():
                    self._commit([])
        self._shards()

    def held(self) -> Held:
        """What the files that are there have, see `Backend`."""
        while True:
            shards = self._shards()
            whole = self._whole(shards)
            if whole == shards or shards == self._shards():
                return Held(
                    sum(shard.pictures for shard in whole), sum(shard.regions for shard in whole)
                )

    def stamps(self) -> frozenset[str]:
        """What a file says, see `Backend`."""
        with self._reported(), suppress(FileNotFoundError):
            return frozenset(
                [(self._folder / _STAMP).read_text(encoding="utf-8", errors="replace")]
            )
        return frozenset()

    def stamp(self, stamp: str) -> None:
        """Writes a file, see `Backend`."""
        with self._reported():
            write_text(self._folder / _STAMP, stamp)

    def insert(self, codes: CodeSet, facts: Sequence[Facts]) -> None:
        """Writes a shard, into which small ones are taken, see `Backend`."""
        import pyarrow as pa

        with self._changing() as shards:
            rows = rows_of(codes, facts, self._owner)
            while (
                shards
                and shards[-1].rows <= len(rows)
                and shards[-1].rows + len(rows) <= _SHARD_ROWS
            ):
                rows = pa.concat_tables([self._read(shards.pop()), rows])
            shards.append(self._write(rows))

    def remove(self, numbers: Ints) -> None:
        """Writes the shards that have them again, see `Backend`."""
        with self._changing() as shards:
            for n, shard in reversed([*enumerate(shards)]):
                first, last = np.searchsorted(numbers, [shard.first, shard.last + 1])
                if first == last:
                    continue
                rows = self._read(shard)
                kept = ~np.isin(np.asarray(rows["picture"]), numbers[first:last])
                if not kept.all():
                    shards[n : n + 1] = [self._write(rows.filter(kept))] if kept.any() else []

    def stored(self, part: Part, *, codes: bool) -> Iterator[Stored]:
        """All that is there, see `Backend`."""
        import pyarrow as pa

        shards = self._whole(self._shards())
        if not shards:
            return
        width = n_words(self._owner) if codes else 0
        with self._reported():
            cursor = self._connection.cursor()
            found = cursor.sql(everything(self._rows(shards), part, width))
            yield from stored_of(pa.RecordBatchReader.from_stream(found), part, self._owner)

    def nearest(self, search: Nearest) -> tuple[Ints, Ints]:
        """One statement, see `Backend`."""
        while True:
            shards = self._shards()
            if not shards:
                return np.zeros(0, np.int64), np.zeros(0, np.int64)
            rows = self._rows(shards)
            statement = nearest(
                rows,
                search.part,
                search.queries,
                conditions_of(rows, search.condition),
                top=search.top,
                max_distance=search.max_distance,
            )
            try:
                with self._reported():
                    cursor = self._connection.cursor()
                    found = cursor.sql(statement).fetchnumpy()
            except EngineError:
                if shards == self._shards():
                    raise
            else:
                return found["picture"].astype(np.int64), found["distance"].astype(np.int64)

    def drop(self) -> None:
        """Removes the files, and the folder if nothing else is in it, see `Backend`."""
        with self._reported(), suppress(FileNotFoundError), locked_folder(self._folder):
            for name in (_STATE, _STAMP):
                (self._folder / name).unlink(missing_ok=True)
            self._remove_all_but([])
            with suppress(OSError):  # something else is in it
                self._folder.rmdir()

    def close(self) -> None:
        """Closes DuckDB."""
        self._connection.close()

    def rows(self) -> Rows:
        """What statements read at this moment. Raises EngineError if nothing is there."""
        shards = self._shards()
        if not shards:
            raise EngineError(f"{self.place}: holds no codes; `regionhash engine sync` fills it")
        return self._rows(shards)

    def _rows(self, shards: Sequence[_Shard]) -> Rows:
        return Rows.of_shards(DUCKDB, [str(self._folder / shard.name) for shard in shards])

    # Files

    def _exists(self) -> bool:
        return (self._folder / _STATE).exists()

    def _shards(self) -> list[_Shard]:
        """The shards of this moment. Raises EngineError if the place has another record."""
        with self._reported():
            if not self._exists():
                return []
            text = (self._folder / _STATE).read_bytes()
        try:
            state = parse_object(text)
            record = field(state, "record", dict)
            shards = [_Shard.read(values) for values in field(state, "shards", list)]
        except ValueError:
            raise EngineError(
                f"{self._folder / _STATE}: damaged; `regionhash engine drop` and `sync` make it "
                "again"
            ) from None
        self._owner.check(self.place, record)
        return shards

    def _whole(self, shards: Sequence[_Shard]) -> list[_Shard]:
        """Those of shards whose files are there."""
        found = []
        for shard in shards:
            with suppress(OSError):
                if (self._folder / shard.name).stat().st_size == shard.n_bytes:
                    found.append(shard)
        return found

    @contextmanager
    def _changing(self) -> Iterator[list[_Shard]]:
        """The shards that are there, to be changed; they are kept at the end.

        If anything fails, say for want of space, the new files are removed.
        """
        with self._reported(), locked_folder(self._folder):
            shards = self._whole(self._shards())
            try:
                yield shards
                self._commit(shards)
            except Exception:
                self._remove_all_but(self._shards())
                raise

    def _commit(self, shards: Sequence[_Shard]) -> None:
        state = {"record": self._owner.record, "shards": shards}
        write_text(self._folder / _STATE, json.dumps(state, indent=1) + "\n")
        self._remove_all_but(shards)

    def _remove_all_but(self, shards: Sequence[_Shard]) -> None:
        named = {shard.name for shard in shards}
        for path in self._folder.glob("*.parquet"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _read(self, shard: _Shard) -> pa.Table:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._folder / shard.name).read()

    def _write(self, rows: pa.Table) -> _Shard:
        """Writes rows, those of pictures first, each part by picture and number."""
        import pyarrow.parquet as pq

        is_region = np.asarray(rows["part"]) == "region"
        pictures = np.asarray(rows["picture"])
        order = np.lexsort([np.asarray(rows["number"]), pictures, is_region])
        first, last = int(pictures.min()), int(pictures.max())
        # Codes do not compress, and reading them plain takes half the time.
        words = [name for name in rows.column_names if name.startswith("word_")]
        others = [name for name in rows.column_names if name not in words]
        path = self._folder / f"{first}-{last}.{secrets.token_hex(4)}.parquet"
        with path.open("xb") as file:
            pq.write_table(
                rows.take(order),
                file,
                compression=dict.fromkeys(others, "zstd") | dict.fromkeys(words, "none"),
                use_dictionary=others,
                row_group_size=_GROUP_ROWS,
            )
            file.flush()
            os.fsync(file.fileno())
        n_regions = int(np.count_nonzero(is_region))
        size = path.stat().st_size
        return _Shard(path.name, first, last, len(rows) - n_regions, n_regions, size)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors of files and of DuckDB, in one line."""
        import duckdb
        import pyarrow as pa

        try:
            yield
        except EngineError:
            raise
        except (OSError, duckdb.Error, pa.ArrowException) as error:
            raise EngineError(f"{self.place}: {reason_of(error)}") from error
