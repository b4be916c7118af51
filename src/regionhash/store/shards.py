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
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from regionhash.files.text import one_line
from regionhash.files.urls import Location, child, files_in, remove_file, whole_file
from regionhash.precision import Precision, precision_of
from regionhash.store.codeset import CodeSet
from regionhash.store.layout import StoreError
from regionhash.store.parquet import Facts, write_rows, writer_of
from regionhash.store.parquet_reader import ParquetCodes, as_store_errors, of_pictures

SUFFIX = ".parquet"
UNREADABLE = "unreadable.csv"
LOCK = ".lock"
_NAME = re.compile(r"codes-\d{12,}-[0-9a-f]+\.parquet")


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
        files, precision = self.files(), None
        for path in files:
            found = _precision_of(path, model_hash)
            if precision not in (None, found):
                raise StoreError(f"{path}: precision must be {precision}, got {found}")
            precision = found
        newest, mixed = _newest(files)
        for path, numbers in _numbers_by_shard(mixed, newest).items():
            _reduce(path, numbers)
        next_number = max((stored.number for stored in newest.values()), default=-1) + 1
        hashes = {image_id: stored.sha256 for image_id, stored in newest.items()}
        return Contents(hashes, next_number, precision)

    def write(self, first: int, run: str, codes: CodeSet, facts: Sequence[Facts]) -> None:
        """Writes a shard; another one of this name is replaced.

        Args:
            first: number of the first of the pictures that the run may write to it.
            run: hexadecimal, another one for each run.
            codes: the pictures.
            facts: of each of them; numbers are those of no other shard.

        Raises:
            OSError: the disk refuses.
            ValueError: what is behind a URL refuses.
        """
        with whole_file(child(self.folder, f"codes-{first:012d}-{run}{SUFFIX}")) as temporary:
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


def newest_in(files: Iterable[Location]) -> dict[Location, set[int]]:
    """For each shard of a run, the numbers of pictures of which its folder has no newer codes.

    A run that is at work, or was killed, leaves both codes of a picture that has changed.

    Args:
        files: of any folders; those that no run has named, such as exports, are left out: there,
            equal ids may be of different pictures.

    Raises:
        StoreError: a shard cannot be used.
    """
    folders: dict[str, list[Location]] = {}
    for path in files:
        folder, _, name = str(path).rpartition("/")
        if _NAME.fullmatch(name):
            folders.setdefault(folder, []).append(path)
    found: dict[Location, set[int]] = {}
    for shards in folders.values():
        found |= _numbers_by_shard(shards, _newest(shards)[0])
    return found


def _precision_of(path: Location, model_hash: str) -> Precision:
    """The precision of a shard, which must be of a model."""
    header = ParquetCodes.open(path).header
    if header is None:
        raise StoreError(f"{path}: has no header, which another program may have left out")
    if header["model_hash"] != model_hash:
        made_by = one_line(header["model_hash"])
        raise StoreError(f"{path}: made by model {made_by}, but this is {model_hash}")
    return precision_of(header["meta"])


class _Stored(NamedTuple):
    """The codes of a picture: their number, the SHA-256 of its file, and their shard."""

    number: int
    sha256: bytes | None
    shard: Location


def _newest(files: Iterable[Location]) -> tuple[dict[str, _Stored], set[Location]]:
    """The codes with the highest number of each picture, by its id; and the shards with others.

    Raises:
        StoreError: a shard cannot be used.
    """
    newest: dict[str, _Stored] = {}
    mixed: set[Location] = set()
    for path in files:
        for numbers, ids, digests in ParquetCodes.open(path).stored():
            for number, image_id, digest in zip(numbers.tolist(), ids, digests, strict=True):
                stored, other = _Stored(number, digest, path), newest.get(image_id)
                if other is not None:
                    other, stored = sorted([other, stored], key=attrgetter("number"))
                    mixed.add(other.shard)
                newest[image_id] = stored
    return newest, mixed


def _numbers_by_shard(
    shards: Iterable[Location], newest: Mapping[str, _Stored]
) -> dict[Location, set[int]]:
    """Which of the newest codes are in each shard."""
    found: dict[Location, set[int]] = {path: set() for path in shards}
    for stored in newest.values():
        if stored.shard in found:
            found[stored.shard].add(stored.number)
    return found


def _reduce(path: Location, numbers: Collection[int]) -> None:
    """Leaves some pictures of a shard; removes it if they are none."""
    import pyarrow as pa

    if not numbers:
        remove_file(path)
        return
    with as_store_errors(path):
        shard = ParquetCodes.open(path)
        kept = pa.concat_tables(of_pictures(rows, numbers) for rows in shard.rows())
    with whole_file(path) as temporary, writer_of(temporary, kept.schema) as writer:
        writer.write_table(kept)
