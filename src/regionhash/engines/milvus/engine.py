"""The engine: what Milvus is asked.

A collection has two of Milvus' own collections, since codes of pictures and of regions may differ
in their bits, and Milvus had one vector a row before version 2.4:

    regionhash_<uuid>_picture   a row for each picture: id, code, taken, shown
    regionhash_<uuid>_region    a row for each region: also picture, label, score and box

Rows of regions are written before those of their pictures, and removed before them: of a picture
whose removal was interrupted, the regions are gone first.

Milvus keeps what it has acknowledged, in its log, whether or not it was flushed. Reads have the
consistency level Strong: they wait until all that was written before can be seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from regionhash.engines.backend import EngineError, Held, Nearest, Owner, Part, Stored
from regionhash.engines.grouping import NearRegions, nearest_pictures
from regionhash.engines.milvus.address import EXACT, Address
from regionhash.engines.milvus.rows import (
    LIMIT,
    MOST_REGIONS,
    MOST_SHOWN,
    NO_CODE,
    PICTURE,
    SHIFT,
    expression,
    is_in,
    picture_rows,
    region_rows,
    stored,
)
from regionhash.files.strict_json import parse_object
from regionhash.store import CodeSet
from regionhash.store.parquet import CORNERS, Facts
from regionhash.structures import Codes, Ints

if TYPE_CHECKING:
    from pymilvus import MilvusClient

_WRITTEN = 1_000  # rows in a request; the time of pymilvus 2.3 to pack them grows with the square
_WRITERS = 2  # requests that write at once
_REMOVED = 10_000  # pictures in a request
_TRIES = 10
_HITS = 1 << 16  # of all queries of a request
_LONGEST_FOLDER = 65_535  # bytes: the longest text of Milvus
_END = (1 << 63) - 1  # above every id


class MilvusEngine:
    """A collection in Milvus, see `Backend`.

    With BIN_IVF_FLAT, a search is exact only among the lists that it reads, and `place` says so;
    `recall` measures it.

    Args:
        address: of the server and its options, see `Address`.
        owner: the collection.

    Raises:
        ValueError: the address cannot be used.
        ModuleNotFoundError: pymilvus is not installed.
    """

    def __init__(self, address: str, owner: Owner) -> None:
        import pymilvus  # noqa: F401  # raises before anything is asked

        self._address, self._owner = Address.read(address), owner
        self._timeout = self._address.timeout
        self.place = self._address.place

    def create(self) -> None:
        """See `Backend.create`."""
        with self._reported():
            for part in self._parts:
                name = self._name(part)
                if not self._is_there(part):
                    self._create(part)
                if not self._client.list_indexes(name):
                    index = self._client.prepare_index_params()
                    index.add_index(
                        "code",
                        index_type=self._address.index,
                        metric_type="HAMMING",
                        params=self._address.index_params,
                    )
                    self._client.create_index(name, index, timeout=self._timeout)
                self._client.load_collection(name, timeout=self._timeout)

    def held(self) -> Held:
        """See `Backend.held`."""
        with self._reported():
            counts = {part: self._count(part) for part in self._parts if self._is_there(part)}
        return Held(counts.get("picture", 0), counts.get("region", 0))

    def stamps(self) -> frozenset[str]:
        """What its aliases say, see `Backend.stamps`."""
        with self._reported():
            return frozenset(alias.rpartition("_")[2] for alias in self._aliases())

    def stamp(self, stamp: str) -> None:
        """Gives it another alias, see `Backend.stamp`."""
        with self._reported():
            before = self._aliases()
            name = self._name("picture")
            alias = f"regionhash_{self._owner.uuid}_{stamp}"
            self._client.create_alias(name, alias, timeout=self._timeout)
            for alias in before:
                self._client.drop_alias(alias, timeout=self._timeout)

    def insert(self, codes: CodeSet, facts: Sequence[Facts]) -> None:
        """See `Backend.insert`."""
        offsets = codes.table.offsets
        if offsets is not None and np.diff(offsets).max(initial=0) > MOST_REGIONS:
            raise EngineError(f"{self.place}: keeps at most {MOST_REGIONS} regions of a picture")
        numbers = np.array([fact.number for fact in facts], np.int64)
        self.remove(numbers)  # Milvus would keep an id twice
        by_folder = self._address.partition == "folder"
        with self._reported():
            for part in self._parts:
                rows = (
                    region_rows(codes, facts, by_folder=by_folder)
                    if part == "region"
                    else picture_rows(
                        codes, facts, with_codes=self._owner.n_bits > 0, by_folder=by_folder
                    )
                )
                written = self._write(part, rows)
                # The client asks again if it has no answer, which may double what it writes.
                # `upsert` would not, but Milvus 2.3 then puts rows into wrong partitions.
                if (there := self._count(part, is_in(PICTURE[part], numbers))) != written:
                    raise EngineError(
                        f"{self.place}: was given {written} rows, but has {there}; `sync` mends it"
                    )

    def _write(self, part: Part, rows: Iterator[dict[str, Any]]) -> int:
        """Writes rows, in several requests at once; returns how many.

        The client packs one request while the server stores another.
        """
        lock = Lock()

        def write(_: int) -> int:
            written = 0
            while True:
                with lock:
                    batch = [*islice(rows, _WRITTEN)]
                if not batch:
                    return written
                self._client.insert(self._name(part), batch, timeout=self._timeout)
                written += len(batch)

        with ThreadPoolExecutor(_WRITERS) as pool:
            return sum(pool.map(write, range(_WRITERS)))

    def remove(self, numbers: Ints) -> None:
        """See `Backend.remove`."""
        with self._reported():
            for part in filter(self._is_there, self._parts):
                for first in range(0, len(numbers), _REMOVED):
                    self._delete(part, is_in(PICTURE[part], numbers[first : first + _REMOVED]))

    def stored(self, part: Part, *, codes: bool) -> Iterator[Stored]:
        """See `Backend.stored`."""
        with self._reported():
            if part not in self._parts or not self._is_there(part):
                return
            left = self._count(part)
        n_bytes = self._n_bytes(part) if codes else 0
        start, step = 0, LIMIT << SHIFT[part]
        while left > 0 and start < _END:
            end = min(start + step, _END)
            with self._reported():
                rows = self._client.query(
                    self._name(part),
                    filter=f"id >= {start} and id < {end}",
                    output_fields=["id", "code"] if n_bytes else ["id"],
                    limit=LIMIT,
                    timeout=self._timeout,
                )
            if len(rows) == LIMIT:  # and maybe more, of which these need not be the first
                step //= 2
                continue
            if rows:
                yield stored(part, rows, n_bytes)
            left, start = left - len(rows), end
            if len(rows) < LIMIT // 4:
                step *= 2

    def nearest(self, search: Nearest) -> tuple[Ints, Ints]:
        """See `Backend.nearest`."""
        among = search.condition.among
        if among is not None and not len(among):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return nearest_pictures(search, _Searched(self, search))

    def recall(self, part: Part, queries: Codes, count: int = 100) -> float | None:
        """The share of the nearest codes of some queries that a search finds.

        Compared with the same index when all of its lists are read. A found code counts if it is
        as near as the last of these.

        Args:
            part: what is searched.
            queries: (Q, B) uint8, packed.
            count: how many codes of each query.

        Returns:
            None for an index that is exact.
        """
        if self._address.index == EXACT:
            return None
        there = wanted = 0
        every = self.rows(part, queries, count, "", {"nprobe": self._address.nlist})
        for exact, found in zip(every, self.rows(part, queries, count, "", {}), strict=True):
            wanted += len(exact.distances)
            there += int(np.count_nonzero(found.distances <= exact.distances.max(initial=0)))
        return there / wanted if wanted else 1.0

    def drop(self) -> None:
        """See `Backend.drop`."""
        with self._reported():
            for alias in self._aliases():
                self._client.drop_alias(alias, timeout=self._timeout)
            for part in self._parts:
                self._client.drop_collection(self._name(part), timeout=self._timeout)

    def close(self) -> None:
        """See `Backend.close`."""
        if "_client" in self.__dict__:
            self._client.close()

    def rows(
        self, part: Part, queries: Codes, count: int, condition: str, params: dict[str, int]
    ) -> list[NearRegions]:
        """The nearest rows of each query, for `nearest` and `recall`.

        Args:
            part: what is searched.
            queries: (Q, B) uint8, packed.
            count: how many rows, at most `LIMIT`.
            condition: an expression, which may be empty.
            params: of Milvus: "radius", "range_filter", "nprobe".
        """
        found, together = [], max(1, _HITS // count)
        for first in range(0, len(queries), together):
            with self._reported():
                answers = self._client.search(
                    self._name(part),
                    [query.tobytes() for query in queries[first : first + together]],
                    filter=condition,
                    limit=count,
                    anns_field="code",
                    search_params={
                        "metric_type": "HAMMING",
                        "params": self._address.search_params | params,
                    },
                    timeout=self._timeout,
                )
            for hits in answers:
                ids = np.array([hit["id"] for hit in hits], np.int64)
                distances = np.array([hit["distance"] for hit in hits], np.int64)
                found.append(NearRegions(ids >> SHIFT[part], distances))
        return found

    # -- what Milvus has --------------------------------------------------------------------------

    @cached_property
    def _client(self) -> MilvusClient:
        from pymilvus import MilvusClient

        for name in ("", ".milvus_client", ".milvus_client.milvus_client"):  # they print each error
            logging.getLogger(f"pymilvus{name}").setLevel(logging.CRITICAL + 1)
        return MilvusClient(self._address.uri, token=self._address.token, timeout=self._timeout)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raises what Milvus and the network say as an EngineError."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
            raise EngineError(f"{self.place}: {_said(error)}") from error

    @property
    def _parts(self) -> tuple[Part, ...]:
        """In the order in which they are written."""
        return ("region", "picture") if self._owner.n_region_bits else ("picture",)

    def _name(self, part: Part) -> str:
        return f"regionhash_{self._owner.uuid}_{part}"

    def _n_bytes(self, part: Part) -> int:
        """Of a code."""
        n_bits = self._owner.n_region_bits if part == "region" else self._owner.n_bits
        return (n_bits + 7) // 8

    def _is_there(self, part: Part) -> bool:
        """Whether a part is there. Raises EngineError if it has another record or was made so."""
        name = self._name(part)
        if not self._client.has_collection(name, timeout=self._timeout):
            return False
        text = self._client.describe_collection(name, timeout=self._timeout)["description"]
        try:
            found = parse_object(text.encode())
        except ValueError:
            found = {}
        made = found.pop("made", None)
        self._owner.check(self.place, found)
        if made != self._address.made:
            raise EngineError(
                f"{self.place}: was made with {_listed(made)}, but the address says "
                f"{_listed(self._address.made)}"
            )
        return True

    def _aliases(self) -> list[str]:
        """Those of the pictures, which end with what the place is marked with."""
        name = self._name("picture")
        if not self._client.has_collection(name, timeout=self._timeout):
            return []
        return [*self._client.describe_collection(name, timeout=self._timeout)["aliases"]]

    def _create(self, part: Part) -> None:
        """Makes an empty part, without an index."""
        from pymilvus import DataType, MilvusClient

        partition = self._address.partition
        about = json.dumps(self._owner.record | {"made": self._address.made})
        schema = MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=False, description=about
        )
        schema.add_field("id", DataType.INT64, is_primary=True)
        n_bytes = self._n_bytes(part) or len(NO_CODE)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=8 * n_bytes)
        schema.add_field("taken", DataType.DOUBLE)
        numbers = {"element_type": DataType.INT64, "max_capacity": MOST_SHOWN}
        schema.add_field("shown", DataType.ARRAY, **numbers)
        if partition == "folder":
            key = {"max_length": _LONGEST_FOLDER, "is_partition_key": True}
            schema.add_field("folder", DataType.VARCHAR, **key)
        if part == "region":
            key = {"is_partition_key": partition == "picture"}
            schema.add_field("picture", DataType.INT64, **key)
            schema.add_field("label", DataType.INT32)
            for name in ("score", *CORNERS):
                schema.add_field(name, DataType.FLOAT)
        self._client.create_collection(
            self._name(part), schema=schema, consistency_level="Strong", timeout=self._timeout
        )

    def _delete(self, part: Part, condition: str) -> None:
        """Deletes rows; of those that were written twice, Milvus 2.3 finds half at a time."""
        for _ in range(_TRIES):
            if not self._count(part, condition):
                return
            self._client.delete(self._name(part), filter=condition, timeout=self._timeout)
        raise EngineError(f"{self.place}: rows that were deleted are still there")

    def _count(self, part: Part, condition: str = "") -> int:
        (row,) = self._client.query(
            self._name(part), filter=condition, output_fields=["count(*)"], timeout=self._timeout
        )
        return int(row["count(*)"])


class _Searched:
    """What `nearest_pictures` asks: rows of regions, or of pictures with their own codes."""

    limit = LIMIT

    def __init__(self, engine: MilvusEngine, search: Nearest) -> None:
        self._engine, self._search = engine, search
        self._condition = expression(search.part, search.condition)
        farthest = search.max_distance
        self._near = {} if farthest is None else {"radius": farthest + 1}  # excludes the radius

    def nearest(self, count: int) -> Sequence[NearRegions]:
        part, queries = self._search.part, self._search.queries
        return self._engine.rows(part, queries, count, self._condition, self._near)

    def ring(self, query: int, distance: int) -> Ints:
        pieces = self._ring(query, distance, 0, self._search.condition.up_to + 1)
        return np.concatenate([*pieces])

    def _ring(self, query: int, distance: int, start: int, end: int) -> Iterable[Ints]:
        """The same of pictures from `start` to `end`, halved until there are not too many."""
        part, shift = self._search.part, SHIFT[self._search.part]
        (found,) = self._engine.rows(
            part,
            self._search.queries[query : query + 1],
            LIMIT,
            f"{self._condition} and id >= {start << shift} and id < {end << shift}",
            {"range_filter": distance, "radius": distance + 1},
        )
        if len(found.numbers) < LIMIT or end - start == 1:
            yield found.numbers
            return
        middle = (start + end) // 2
        yield from self._ring(query, distance, start, middle)
        yield from self._ring(query, distance, middle, end)


def _said(error: Exception) -> str:
    """An error as one line."""
    text = getattr(error, "message", None) or str(error)
    details = getattr(error, "details", None)
    if callable(details):
        text = details()
    return " ".join(str(text).split()) or type(error).__name__


def _listed(made: object) -> str:
    settings = made.items() if isinstance(made, dict) else ()
    return ", ".join(f"{name} {value}" for name, value in settings) or "other settings"
