"""A collection that an engine holds too: filled from the database, checked, and searched.

The engine has the pictures up to some row, in order of their rows; the rest is scanned here, so
that an answer is always that of the collection as it is. `engines/state.json`, in its folder, says
up to which row each engine has them, and how many. What an engine finds is compared with the codes
of the collection, and it is asked at each search whether it still holds what it held.

A picture's row number is its number in the engine: a row never changes its content. It does in
another past: in a clone of the collection that has gone its own way, or if the collection was
restored from a backup. So a sync marks what it changes, and the mark stands in the state too, with
the newest row of the database. If they do not agree, all is compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import numpy as np

from regionhash.collection.arrays import Snapshot, has_row, newest_row, places_among
from regionhash.collection.database import Database
from regionhash.collection.filters import as_engines_know
from regionhash.collection.transfer import facts_of
from regionhash.engines import Backend, Condition, EngineError, Held, MayMiss, Nearest, Stored
from regionhash.files.atomic import locked_folder, write_text
from regionhash.reporter import SILENT, Reporter
from regionhash.search.request import Filter, RequestError, Search
from regionhash.search.scan import BagSearch
from regionhash.search.together import Found, Running, Scan
from regionhash.search.united import united_hamming
from regionhash.store import CodeSet
from regionhash.structures import Codes, Ints, Mask, items_of

FOLDER = "engines"
"""Folder of a collection that holds what is known of its engines, and the files of those that need
no server."""

_STATE_FILE = "state.json"
_AT_A_TIME = 5_000
"""Pictures that are stored at a time."""
_SAMPLED = 100
"""Regions by which the recall is measured."""

T = TypeVar("T")


@dataclass(frozen=True)
class _State:
    """What an engine holds, as far as is known.

    Attributes:
        fill: changes when the engine is filled from nothing.
        row: it has all pictures up to this row, except those removed after `removal`.
        removal: number of the last removal that it was told of.
        pictures, regions: how many it has: exactly, or at least while it is being filled.
        adding: it may have some of the pictures up to this row; 0 if it is not being filled.
        sound: False if it may have any picture, or parts of it, beyond `row`.
        stamps: what it is marked with: one of these, see `Backend.stamp`.
        past: by which the database is known again, see `_past`.
    """

    fill: str
    row: int
    removal: int
    pictures: int
    regions: int
    adding: int = 0
    sound: bool = True
    stamps: tuple[str, ...] = ()
    past: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def read(cls, found: object) -> _State | None:
        """The state in a JSON object; None if it is none."""
        try:
            state = cls(**found)  # type: ignore[arg-type]
            stamps = tuple(map(str, state.stamps))
            past = tuple(tuple(map(float, values)) for values in state.past)
        except (TypeError, ValueError, OverflowError):
            return None
        numbers = [state.row, state.removal, state.pictures, state.regions, state.adding]
        sane = (
            isinstance(state.fill, str)
            and isinstance(state.sound, bool)
            and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
            and all(len(values) in (0, 2) for values in past)
        )
        return replace(state, stamps=stamps, past=past) if sane else None


class SyncReport(NamedTuple):
    """What was changed in an engine, in pictures."""

    added: int
    removed: int


class Lag(NamedTuple):
    """How far an engine is behind its collection.

    Attributes:
        waiting: how many pictures it does not have yet.
        up_to: the row up to which it has all pictures; it may have parts of later ones.
        removed: (n,) int64, ascending: rows that it may have though they were removed.
    """

    waiting: int
    up_to: int
    removed: Ints


@dataclass(frozen=True)
class EngineReport:
    """How an engine differs from its collection.

    Attributes:
        pictures: how many the collection has.
        waiting: how many of them came after the last sync; searches find them all the same.
        missing: rows of pictures that it lacks, wholly or in part.
        extra: rows of pictures that it has, but the collection has not.
        different: rows of pictures whose codes are others than in the collection.
        recall: the share of the nearest regions that searches find; None if they find all.
    """

    pictures: int
    waiting: int
    missing: tuple[int, ...]
    extra: tuple[int, ...]
    different: tuple[int, ...]
    recall: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it has what it should."""
        return not (self.missing or self.extra or self.different)


class CollectionEngine:
    """An engine of one collection. Threads may share an object, processes an engine.

    Args:
        backend: where the codes are.
        folder: of the collection.
        database: gives the connection of this thread.
        now: gives the pictures of this moment, and their codes.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        database: Callable[[], Database],
        now: Callable[[], tuple[CodeSet, Snapshot]],
    ) -> None:
        self._backend, self._folder, self._database = backend, folder / FOLDER, database
        self._now = now

    @property
    def backend(self) -> Backend:
        """Where the codes are."""
        return self._backend

    def close(self) -> None:
        """Closes the connections to the engine."""
        self._backend.close()

    # Filling

    def sync(self, *, reporter: Reporter = SILENT) -> SyncReport:
        """Brings the engine to the state of the collection.

        Killed at any moment, it is continued by the next call. Only what has changed since the last
        one is looked at, unless the engine has other than it had or a check found a difference.

        Args:
            reporter: is told how many are stored.

        Raises:
            EngineError: the engine cannot be reached, or fails.
        """
        with self._locked():
            codes, snapshot = self._now()
            alive, totals = snapshot.present, _Totals(snapshot)
            last_row, last_removal = snapshot.version
            self._backend.create()
            state, past, stamp = self._state(), _past(self._database()), uuid4().hex
            sound = state is not None and state.sound and self._holds(state, exactly=True)
            fill = uuid4().hex if state is None else state.fill
            if state is not None and sound:
                there = snapshot.rows <= state.row
                half = (snapshot.rows > state.row) & (snapshot.rows <= state.adding)
                gone = np.union1d(snapshot.rows[half], self._removed(state))
            else:
                found = self._compared(snapshot)
                there = found.whole
                gone = np.union1d(found.extra, snapshot.rows[found.touched & ~there])
            missing = np.flatnonzero(alive & ~there)
            row = int(snapshot.rows[missing[0]]) - 1 if len(missing) else last_row
            if state is not None:  # searches go on meanwhile
                stamps = (*self._backend.stamps().intersection(state.stamps), stamp)
                kept = replace(
                    state, row=min(row, state.row), sound=sound, stamps=stamps, past=past
                )
                self._record(self._at_least(totals, kept))
            self._backend.stamp(stamp)
            if len(gone):
                self._backend.remove(gone)
            state = _State(fill, row, last_removal, 0, 0, sound=sound, stamps=(stamp,), past=past)
            added = 0
            with reporter.stage("storing"):
                for first in range(0, len(missing), _AT_A_TIME):
                    rows = missing[first : first + _AT_A_TIME]
                    end = first + len(rows)
                    state = replace(state, adding=int(snapshot.rows[rows[-1]]))
                    self._record(self._at_least(totals, state))
                    added += self._insert(codes, snapshot, rows)
                    row = int(snapshot.rows[missing[end]]) - 1 if end < len(missing) else last_row
                    state = replace(state, row=row)
                    reporter.progress(end, len(missing))
            held = self._backend.held()
            self._record(_State(fill, last_row, last_removal, *held, stamps=(stamp,), past=past))
        return SyncReport(added, len(gone))

    def _insert(self, codes: CodeSet, snapshot: Snapshot, rows: Ints) -> int:
        """Stores pictures by their indices; those that were removed meanwhile are left out."""
        numbers = snapshot.rows[rows]
        facts = facts_of(self._database(), int(numbers[0]), int(numbers[-1]))
        kept = rows[[number in facts for number in numbers.tolist()]]
        if len(kept):
            labels = None if codes.labels is None else codes.labels[kept]
            taken = replace(codes, table=codes.table.take(kept), labels=labels, alive=None)
            self._backend.insert(taken, [facts[number] for number in snapshot.rows[kept].tolist()])
        return len(kept)

    def _at_least(self, totals: _Totals, state: _State) -> _State:
        """The state with the number of what the engine has at least, up to its row."""
        held = totals.up_to(state.row, self._removed_after(totals.removal))
        return replace(state, pictures=held.pictures, regions=held.regions)

    def drop(self) -> None:
        """Removes all that the engine holds of the collection."""
        with self._locked():
            self._record(None)
            self._backend.drop()

    # Checking

    def check(self) -> EngineReport:
        """Compares every code of the engine with the collection.

        If they differ, the engine is searched only for what comes before the first difference,
        until a `sync` has mended it.

        Raises:
            EngineError: the engine cannot be reached, or was never filled.
        """
        with self._locked():
            state, (_, snapshot) = self._known(), self._now()
            found = self._compared(snapshot)
            due = snapshot.present & (snapshot.rows <= state.row)
            lacking = due & ~found.whole
            later = np.union1d(snapshot.rows[snapshot.rows > state.row], self._removed(state))
            report = EngineReport(
                len(snapshot),
                int(np.count_nonzero(snapshot.present & ~due)),
                tuple(snapshot.rows[lacking & ~found.different].tolist()),
                tuple(np.setdiff1d(found.extra, later).tolist()),
                tuple(snapshot.rows[due & found.different].tolist()),
                self._recall(snapshot),
            )
            if not (report.ok and self._is_of_now(state)):
                before = snapshot.rows[lacking][:1].tolist() or [state.row + 1]
                kept = replace(
                    state,
                    row=before[0] - 1,
                    sound=False,
                    stamps=(*self._backend.stamps(),),
                    past=_past(self._database()),
                )
                self._record(self._at_least(_Totals(snapshot), kept))
        return report

    def _recall(self, snapshot: Snapshot) -> float | None:
        """How much is found of what is near to some regions of the collection."""
        codes = snapshot.table.region_codes
        if not isinstance(self._backend, MayMiss) or codes is None or not len(codes):
            return None
        some = np.linspace(0, len(codes) - 1, min(_SAMPLED, len(codes))).astype(np.int64)
        return self._backend.recall("region", np.asarray(codes[some]))

    def _compared(self, snapshot: Snapshot) -> _Compared:
        """What the engine has of each picture, code by code."""
        table, n = snapshot.table, len(snapshot.rows)
        found = _Compared(snapshot)
        stored = self._backend.stored("picture", codes=table.image_codes is not None)
        found.take(stored, np.arange(n + 1), table.image_codes)
        if table.offsets is not None:
            stored = self._backend.stored("region", codes=True)
            found.take(stored, np.asarray(table.offsets), table.region_codes)
        return found

    # Searching

    def answered(
        self, running: Running[T], search: Search, snapshot: Snapshot, mask: Mask | None
    ) -> Running[T]:
        """A search of the collection whose passes the engine makes.

        Args:
            running: the search, begun with `snapshot` and `mask`.
            search: what is searched for.
            snapshot: the pictures.
            mask: (N,) bool, those that are searched; None is all.

        Raises:
            RequestError: the search needs more of all pictures than the distances of their codes.
            EngineError: the engine cannot be reached, was never filled, or lost something.
        """
        place = self._backend.place
        for field, is_given in (
            ("context", search.context > 0),
            ("other_class", search.other_class > 0),
            ("text", any(query.text is not None for query in search.queries)),
        ):
            if is_given:
                raise RequestError(field, f"cannot be searched in {place}, only without an engine")
        state = self._whole()
        scans = _Scans(self._backend, state, snapshot, mask, search.filter, self._removed(state))
        found: Found | None = None
        try:
            while True:
                scan = next(running) if found is None else running.send(found)
                if scan.part == "category":
                    raise RequestError(
                        "mode", f"category cannot be searched in {place}, only without an engine"
                    )
                found = yield from scans.found(scan)
        except StopIteration as end:
            after = self._whole()
            if after.fill != state.fill or after.row < state.row:
                raise EngineError(
                    f"{place}: was filled again during the search; search once more"
                ) from None
            answer: T = end.value
            return answer
        finally:
            running.close()

    def _whole(self) -> _State:
        """The state of an engine that has all that it should have.

        Raises:
            EngineError: it has not.
        """
        state = self._known()
        while not self._holds(state):
            before, state = state, self._known()
            if state == before:
                raise EngineError(
                    f"{self._backend.place}: has lost codes of the collection, or they were stored "
                    "for a copy or a backup of it; `regionhash engine sync` mends it"
                )
        return state

    def _holds(self, state: _State, *, exactly: bool = False) -> bool:
        """Whether the engine has as much as it had, and, if that is known `exactly`, no more."""
        if not self._is_of_now(state):
            return False
        held = self._backend.held()
        if exactly and not state.adding:
            return held == (state.pictures, state.regions)
        return held.pictures >= state.pictures and held.regions >= state.regions

    def _is_of_now(self, state: _State) -> bool:
        """Whether a state is of the past of the database, and what the engine has is of the state.

        Not after either was restored from a backup, or another copy has filled the engine.
        """
        return _has_past(self._database(), state.past) and not self._backend.stamps().isdisjoint(
            state.stamps
        )

    def _removed(self, state: _State) -> Ints:
        """Rows (n,) that were removed since the engine was told of removals, ascending."""
        return self._removed_after(state.removal)

    def _removed_after(self, removal: int) -> Ints:
        rows = self._database().read(
            "SELECT DISTINCT row FROM removals WHERE seq > ? ORDER BY row", removal
        )
        return np.array([row for (row,) in rows], np.int64)

    def lag(self) -> Lag | None:
        """How far the engine is behind the collection; None if no sync has filled it."""
        state, (_, snapshot) = self._state(), self._now()
        if state is None:
            return None
        later = snapshot.present & (snapshot.rows > state.row)
        return Lag(int(np.count_nonzero(later)), state.row, self._removed(state))

    # State

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time changes an engine."""
        self._folder.mkdir(exist_ok=True)
        with locked_folder(self._folder):
            yield

    def _states(self) -> dict[str, dict[str, Any]]:
        """What is known of each engine; nothing if the file is damaged: then all is compared."""
        try:
            states = json.loads((self._folder / _STATE_FILE).read_text())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return states if isinstance(states, dict) else {}

    def _state(self) -> _State | None:
        return _State.read(self._states().get(self._backend.place))

    def _known(self) -> _State:
        state = self._state()
        if state is None:
            raise EngineError(
                f"{self._backend.place}: holds nothing of this collection yet; "
                "`regionhash engine sync` fills it"
            )
        return state

    def _record(self, state: _State | None) -> None:
        states = self._states()
        states.pop(self._backend.place, None)
        if state is not None:
            states[self._backend.place] = asdict(state)
        write_text(self._folder / _STATE_FILE, json.dumps(states, indent=1) + "\n")


def _past(database: Database) -> tuple[tuple[float, ...], ...]:
    """The newest row and removal of a database, by which its past differs from that of a copy."""
    last = "SELECT seq, row FROM removals ORDER BY seq DESC LIMIT 1"
    return tuple(newest_row(database)), *database.read(last)


def _has_past(database: Database, past: tuple[tuple[float, ...], ...]) -> bool:
    """Whether `_past` once gave this of a database."""
    newest, *removals = past or ((),)
    return has_row(database, *newest) and all(
        database.read("SELECT 1 FROM removals WHERE seq = ? AND row = ?", *removal)
        for removal in removals
    )


class _Totals:
    """How many pictures and regions a snapshot has up to any row, added up once.

    Attributes:
        removal: number of the last removal that the snapshot knows.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.removal, self._rows = snapshot.version[1], snapshot.rows
        self._pictures = _sums(snapshot.present)
        self._regions = _sums(snapshot.present * snapshot.n_regions)

    def up_to(self, row: int, removed: Ints) -> Held:
        """What there is up to a row, without pictures that were `removed` since: rows (n,)."""
        end = np.searchsorted(self._rows, row, side="right")
        places, known = places_among(self._rows[:end], removed)
        gone = places[known]
        return Held(
            *(
                int(sums[end] - (sums[gone + 1] - sums[gone]).sum())
                for sums in (self._pictures, self._regions)
            )
        )


def _sums(counts: Ints | Mask) -> Ints:
    """The sums (n + 1,) of the first 0, 1, ... n of some counts (n,)."""
    return np.concatenate([[0], np.cumsum(counts)])


class _Compared:
    """The pictures of a snapshot beside what an engine has of them.

    Attributes:
        touched: (N,) bool, which pictures the engine has, at least in part.
        different: (N,) bool, which it has otherwise than the collection.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._right = np.zeros(len(snapshot.rows), np.int64)
        self._extra: list[Ints] = []
        self.touched = np.zeros(len(snapshot.rows), bool)
        self.different = self.touched.copy()

    @property
    def whole(self) -> Mask:
        """(N,) bool, which pictures the engine has as they are in the collection."""
        complete: Mask = self._right == 1 + self._snapshot.n_regions
        return complete & ~self.different & self._snapshot.present

    @property
    def extra(self) -> Ints:
        """(n,) int64, ascending: rows that the engine has, but the collection has not."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self._extra]))

    def take(self, stored: Iterator[Stored], offsets: Ints, own: Codes | None) -> None:
        """Compares a part of an engine with codes (M, B); those of a picture are between `offsets`.

        Without codes, only their places are compared.
        """
        previous: tuple[int, int] | None = None
        counts = np.diff(offsets)
        for numbers, positions, codes in stored:
            rows, known = places_among(self._snapshot.rows, numbers)
            known[known] = self._snapshot.present[rows[known]]
            self._extra.append(np.unique(numbers[~known]))
            keys = np.stack([numbers, positions], 1)
            before = np.array([previous or (-1, -1)]) if len(keys) else keys
            twice = (keys == np.concatenate([before, keys[:-1]])).all(1)[known]
            rows, at, codes = rows[known], positions[known], codes[known]
            same = ~twice & (at >= 0) & (at < counts[rows])
            if own is not None:
                same[same] = (own[offsets[rows[same]] + at[same]] == codes[same]).all(1)
            self.touched[rows] = True
            self.different[rows[~same]] = True
            self._right += np.bincount(rows[same], minlength=len(self._right))
            if len(keys):
                previous = (int(numbers[-1]), int(positions[-1]))


class _Scans:
    """Passes over the pictures of a snapshot, made by an engine and, for the newest, here.

    Args:
        backend: the engine.
        state: what it has.
        snapshot: the pictures.
        mask: (N,) bool, those that are searched; None is all.
        wanted: what made the mask.
        removed: rows that the engine may still have, ascending.
    """

    def __init__(
        self,
        backend: Backend,
        state: _State,
        snapshot: Snapshot,
        mask: Mask | None,
        wanted: Filter,
        removed: Ints,
    ) -> None:
        self._backend, self._snapshot, self._mask, self._wanted = backend, snapshot, mask, wanted
        self._removed = removed
        self._up_to = min(state.row, snapshot.version[0])
        self._n_there = int(np.searchsorted(snapshot.rows, self._up_to, side="right"))

    def found(self, scan: Scan) -> Running[Found]:
        """What a pass finds: see `regionhash.search.scan.scan_bags`."""
        nearest = [self._nearest(scan, search) for search in scan.searches]
        if self._n_there == len(self._snapshot.rows):
            return nearest
        first, start = self._n_there, self._n_there
        if scan.offsets is not None:
            start = int(scan.offsets[first])
        newest = [
            search._replace(mask=None if search.mask is None else search.mask[first:])
            for search in scan.searches
        ]
        offsets = None if scan.offsets is None else scan.offsets[first:] - start
        of_newest = yield Scan(scan.part, newest, scan.codes[start:], offsets)
        return [
            _merged(found, (bags + first, distances), search.top)
            for search, found, (bags, distances) in zip(
                scan.searches, nearest, of_newest, strict=True
            )
        ]

    def _nearest(self, scan: Scan, search: BagSearch) -> tuple[Ints, Ints]:
        """What the engine finds of a search: indices (K,) of pictures and distances (K,)."""
        rows = self._snapshot.rows
        numbers, distances = self._backend.nearest(
            Nearest(
                part="picture" if scan.part == "picture" else "region",
                queries=search.queries,
                top=search.top,
                condition=self._condition(search.mask),
                max_distance=search.max_distance,
                may_be_found=lambda numbers: self._may_be_found(numbers, search.mask),
                distances_of=lambda numbers: _distances(
                    scan, search.queries, np.searchsorted(rows, numbers)
                ),
            )
        )
        found = self._may_be_found(numbers, search.mask)
        own = _distances(scan, search.queries, np.searchsorted(rows, numbers[found]))
        wrong = np.concatenate([numbers[~found], numbers[found][own != distances[found]]])
        if len(wrong):
            raise EngineError(
                f"{self._backend.place}: finds picture {wrong[0]} where the collection does not; "
                "`regionhash engine check` compares them, and `sync` mends it"
            )
        return np.searchsorted(rows, numbers), distances

    def _condition(self, mask: Mask | None) -> Condition:
        """A mask in words of an engine: the filter that made it, and what it lacks besides."""
        there = self._snapshot.rows[: self._n_there]
        if mask is None:
            return Condition(Filter(), self._up_to, None, self._removed)
        mask = mask[: self._n_there]
        wanted = as_engines_know(self._wanted, self._snapshot)
        if wanted is None:
            return Condition(Filter(), self._up_to, there[mask], self._removed[:0])
        base = np.ones(len(there), bool) if self._mask is None else self._mask[: self._n_there]
        without = np.union1d(self._removed, there[base & ~mask])
        return Condition(wanted, self._up_to, None, without)

    def _may_be_found(self, numbers: Ints, mask: Mask | None) -> Mask:
        """Mask (n,) of the rows (n,) that are searched in the engine."""
        places, found = places_among(self._snapshot.rows[: self._n_there], numbers)
        if mask is not None:
            found[found] = mask[places[found]]
        return found


def _distances(scan: Scan, queries: Codes, indices: Ints) -> Ints:
    """Distances (n,) of pictures, by their indices (n,), as a pass gives them."""
    offsets = np.arange(len(scan.codes) + 1) if scan.offsets is None else scan.offsets
    items, bounds = items_of(offsets, indices)
    distances: Ints = united_hamming(queries, scan.codes[items], bounds)
    return distances


def _merged(some: tuple[Ints, Ints], others: tuple[Ints, Ints], top: int) -> tuple[Ints, Ints]:
    """The nearest of two lists of bags and their distances, ties in order."""
    bags = np.concatenate([some[0], others[0]])
    distances = np.concatenate([some[1], others[1]])
    best = np.lexsort([bags, distances])[:top]
    return bags[best], distances[best]
