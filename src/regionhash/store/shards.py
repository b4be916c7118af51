"""A folder of Parquet files that together hold the codes of many pictures (docs/ray.md).

  codes-000000000500-5f0c9a1e.parquet   pictures with the numbers from 500 on, as in docs/parquet.md
  unreadable.csv                        what the last run could not read: id, path, reason
  .lock                                 locked by the run that writes, which numbers the pictures

The folder may be behind a URL, where nothing can be locked. Each file appears whole, under a name
that no other run takes, so that many processes write to one folder, and a killed one leaves nothing
that has to be cleaned up.
"""

from __future__ import annotations

import csv
import fcntl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from regionhash.files.urls import Location, child, files_in, reading, remove_file, whole_file
from regionhash.precision import Precision, precision_of
from regionhash.store.codeset import CodeSet
from regionhash.store.layout import StoreError
from regionhash.store.parquet import COMPRESSION, Facts, write_rows
from regionhash.store.parquet_reader import ParquetCodes, as_store_errors

SUFFIX = ".parquet"
UNREADABLE = "unreadable.csv"
LOCK = ".lock"


@dataclass(frozen=True)
class Contents:
    """What the shards of a folder hold.

    Attributes:
        hashes: SHA-256 of the file of each picture, by id; None if unknown.
        next_number: the first that no picture has.
        precision: of all codes; None if there are none.
    """

    hashes: Mapping[str, bytes | None]
    next_number: int
    precision: Precision | None


@dataclass(frozen=True)
class Shards:
    """The files in a folder, which need not be there yet.

    Attributes:
        folder: its path or URL.
    """

    folder: Location

    def files(self) -> list[Location]:
        """All shards, sorted by name. Raises ValueError if the folder cannot be read."""
        return files_in(self.folder, SUFFIX)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Excludes other runs from the folder, which is created if it is missing.

        Two runs at once would give the same numbers. Behind a URL, they are not noticed.

        Raises:
            StoreError: another run writes to it.
            OSError: the disk refuses, or a file is in the way.
        """
        if isinstance(self.folder, str):
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("ab") as file:  # network disks lock what can be written
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(f"{self.folder}: another run writes to this folder") from error
            yield

    def tidy(self, model_hash: str) -> Contents:
        """Leaves of each picture only the codes with the highest number; returns what is there.

        A picture that has changed is encoded again into a new shard; its old codes go when the new
        ones are there.

        Raises:
            StoreError: a shard cannot be used, is of another model, or differs in precision.
            ValueError: the folder cannot be read or written.
        """
        hashes: dict[str, bytes | None] = {}
        newest: dict[str, tuple[int, Location]] = {}
        outdated: dict[Location, set[int]] = {}
        sizes: dict[Location, int] = {}
        precision: Precision | None = None
        for path in self.files():
            found = _precision_of(path, model_hash)
            if precision not in (None, found):
                raise StoreError(f"{path}: precision must be {precision}, got {found}")
            precision = found
            stored = ParquetCodes.open(path).stored()
            sizes[path] = len(stored)
            columns = [stored[name].to_pylist() for name in ("picture", "id", "sha256")]
            for number, image_id, digest in zip(*columns, strict=True):
                other = newest.get(image_id)
                if other is None or number >= other[0]:
                    newest[image_id], hashes[image_id] = (number, path), digest
                    old = other
                else:
                    old = number, path
                if old is not None:
                    outdated.setdefault(old[1], set()).add(old[0])
        for path, numbers in outdated.items():
            _drop(path, numbers, all_of_it=len(numbers) == sizes[path])
        next_number = max((number for number, _ in newest.values()), default=-1) + 1
        return Contents(hashes, next_number, precision)

    def write(self, name: str, codes: CodeSet, facts: Sequence[Facts]) -> None:
        """Writes a shard; another one of this name is replaced.

        Args:
            name: of the shard, without its ending.
            codes: the pictures.
            facts: of each of them; numbers are those of no other shard.

        Raises:
            OSError: the disk refuses.
            ValueError: what is behind a URL refuses.
        """
        with whole_file(child(self.folder, name + SUFFIX)) as temporary:
            write_rows(temporary, codes, facts)

    def write_unreadable(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Writes id, path and reason of the pictures that a run could not read.

        What is no Unicode in a name is escaped.

        Raises:
            OSError: the disk refuses.
            ValueError: what is behind a URL refuses.
        """
        with (
            whole_file(child(self.folder, UNREADABLE)) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([("id", "path", "reason"), *rows])


def _precision_of(path: Location, model_hash: str) -> Precision:
    """The precision of a shard, which must be of a model."""
    header = ParquetCodes.open(path).header
    if header is None:
        raise StoreError(f"{path}: has no header, which another program may have left out")
    if header["model_hash"] != model_hash:
        raise StoreError(f"{path}: made by model {header['model_hash']}, but this is {model_hash}")
    return precision_of(header["meta"])


def _drop(path: Location, numbers: set[int], *, all_of_it: bool) -> None:
    """Removes pictures from a shard."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if all_of_it:
        remove_file(path)
        return
    with as_store_errors(path), reading(path) as file:
        rows = pq.read_table(file)
    gone = pc.is_in(rows["picture"], value_set=pa.array(sorted(numbers), rows["picture"].type))
    with whole_file(path) as temporary:
        pq.write_table(rows.filter(pc.invert(gone)), temporary, compression=COMPRESSION)
