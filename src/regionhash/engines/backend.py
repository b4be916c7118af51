"""What an engine must be able to do: the interface that Milvus and SQL implement.

An engine holds one entry for each picture of a collection and one for each of its regions. A
picture's number is its row in the database of the collection and never stands for another content.
What is more than storing and finding (following a collection, checking it, pictures that are not
there yet) is done once for all engines by `regionhash.collection.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from regionhash.files.text import one_line, shown
from regionhash.search.request import Filter
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts
from regionhash.structures import Codes, Ints, Mask

VERSION = 1
"""Of the tables that an engine keeps."""

Part = Literal["picture", "region"]
"""What is compared: the code of whole pictures, or those of regions."""


class EngineError(OSError):
    """An engine cannot be reached, or does not hold what it should; the text is one line."""


@dataclass(frozen=True)
class Owner:
    """The collection whose codes an engine holds.

    Attributes:
        uuid: of the collection in its place, 32 hexadecimal digits; a copy has another one. An
            engine's tables are named by it.
        model_hash: of its model.
        n_bits: bits of a picture's code, 0 if there is none; n_region_bits: of a region's.
        folder: where an engine without a server may keep its files; need not exist.
    """

    uuid: str
    model_hash: str
    n_bits: int
    n_region_bits: int
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        """What a place says of itself; one that says otherwise is not searched."""
        return {
            "format": "regionhash engine",
            "version": VERSION,
            "uuid": self.uuid,
            "model_hash": self.model_hash,
            "n_bits": self.n_bits,
            "n_region_bits": self.n_region_bits,
        }

    def check(self, place: str, found: object) -> None:
        """Raises EngineError if what a place says of itself is not the record."""
        if found == self.record:
            return
        found, needed = found if isinstance(found, dict) else {}, self.record
        name = next(n for n in [*needed, *found] if n not in needed or found.get(n) != needed[n])
        raise EngineError(
            f"{place}: holds codes with {one_line(name)} {shown(found.get(name))}, but the "
            f"collection needs {shown(needed.get(name))}; after `regionhash engine drop`, `sync` "
            "fills it again"
        )


class Held(NamedTuple):
    """How much an engine holds of a collection."""

    pictures: int
    regions: int


class Stored(NamedTuple):
    """Some codes of an engine.

    Attributes:
        numbers: (n,) int64, of their pictures.
        positions: (n,) int64, of the region in its picture; 0 for the code of a picture.
        codes: (n, B) uint8, packed.
    """

    numbers: Ints
    positions: Ints
    codes: Codes


@dataclass(frozen=True, eq=False)
class Condition:
    """Which pictures are searched: those that meet all of it.

    Attributes:
        filter: classes, scores and dates; never a folder, since files move and an engine is not
            told. The least score is as the collection keeps scores, see
            `regionhash.collection.packing.as_kept`, and can be compared as it is.
        up_to: the greatest number of a picture.
        among: (n,) int64, ascending, the numbers that are searched; None is no limit.
        without: (n,) int64, ascending, numbers that are not searched.
    """

    filter: Filter
    up_to: int
    among: Ints | None
    without: Ints


@dataclass(frozen=True, eq=False)
class Nearest:
    """A search of an engine.

    Attributes:
        part: what is compared.
        queries: (Q, B) uint8, packed, Q >= 1. The distance of a picture is their `united_hamming`:
            the sum over the queries of the least distance of one of its regions.
        top: how many pictures to find.
        condition: which pictures are searched.
        max_distance: the greatest distance of a picture, in bits; None is no limit.
        may_be_found: mask (n,) bool of numbers (n,) int64: which are in the collection and meet the
            condition, for engines that cannot apply all of it themselves.
        distances_of: gives the distances (n,) int64 of such pictures by their numbers (n,), from
            the codes of the collection itself, for engines that find regions alone.
    """

    part: Part
    queries: Codes
    top: int
    condition: Condition
    max_distance: int | None
    distances_of: Callable[[Ints], Ints]
    may_be_found: Callable[[Ints], Mask]


@runtime_checkable
class MayMiss(Protocol):
    """An engine that can be asked to search only a part of the codes."""

    def recall(self, part: Part, queries: Codes) -> float | None:
        """The share of the nearest codes of queries (Q, B) that it finds; None if it is exact."""


class Backend(Protocol):
    """A place where an engine keeps one collection. Threads may share an object.

    Every method raises EngineError, in one line that names the place, if the place cannot be
    reached within its time limit or does not do what it should.

    Attributes:
        place: where it is, without a password; for messages and for the record of what it holds.
    """

    place: str

    def create(self) -> None:
        """Makes an empty place for the collection, unless there is one already.

        Raises:
            EngineError: there is one with another record, see `Owner.check`.
        """

    def held(self) -> Held:
        """How much is there, quickly, with all that was inserted; nothing if there is no place.

        Raises:
            EngineError: the place has another record.
        """

    def stamps(self) -> frozenset[str]:
        """What the place was marked with last, if it was, and maybe with before that."""

    def stamp(self, stamp: str) -> None:
        """Marks the place, which is there.

        Args:
            stamp: 32 hexadecimal digits. A mark is kept as long as the place is. If this is
                interrupted, the place may have both marks, this one and the one before.
        """

    def insert(self, codes: CodeSet, facts: Sequence[Facts]) -> None:
        """Stores pictures; when it returns, searches find them and a restart keeps them.

        Args:
            codes: the pictures, none removed and none stored yet.
            facts: of each of them; `Facts.number` is the number of the picture.
        """

    def remove(self, numbers: Ints) -> None:
        """Removes pictures (n,) int64 with their regions; numbers that are not there are fine."""

    def stored(self, part: Part, *, codes: bool) -> Iterator[Stored]:
        """All that is there of a part, in batches ascending by picture and position.

        Without `codes`, those of the batches have shape (n, 0).
        """

    def nearest(self, search: Nearest) -> tuple[Ints, Ints]:
        """The nearest pictures, best first, of equals the lower number first.

        Returns:
            Their numbers (K,) int64 and distances (K,) int64, exact; pictures without regions are
            not among them.
        """

    def drop(self) -> None:
        """Removes the place and all that it holds; there may be none."""

    def close(self) -> None:
        """Closes connections."""
