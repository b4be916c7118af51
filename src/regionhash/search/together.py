"""Searches that run together: what they want scanned at the same moment takes one pass.

A search is written as a generator: it yields each `Scan` that it needs, and receives what was
found. `run_together` runs several; `Shared` makes an ordinary function, which runs one alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import update_wrapper
from itertools import islice
from typing import Generic, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar

from regionhash.search.scan import BagSearch, scan_bags
from regionhash.structures import Codes, Ints

P = ParamSpec("P")
T = TypeVar("T")

Found: TypeAlias = list[tuple[Ints, Ints]]
"""For each search of a `Scan`, the numbers (K,) of its bags and their distances (K,)."""


class Scan(NamedTuple):
    """What a search wants of a pass, see `scan_bags`.

    Attributes:
        part: whose codes are compared: those of whole pictures, of the regions of each picture, or
            of some pictures' codes of one category.
        searches, codes, offsets: see `scan_bags`.
    """

    part: Literal["picture", "region", "category"]
    searches: Sequence[BagSearch]
    codes: Codes
    offsets: Ints | None = None


Running: TypeAlias = Generator[Scan, Found, T]
"""A search that has begun, and returns a T."""


class Shared(Generic[P, T]):
    """A function that runs a search alone.

    Args:
        begin: begins the search; called by itself, to run it together with others.
    """

    def __init__(self, begin: Callable[P, Running[T]]) -> None:
        self.begin = begin
        update_wrapper(self, begin)

    def __call__(self, *args: P.args, **options: P.kwargs) -> T:
        """What the search returns."""
        return run_alone(self.begin(*args, **options))


def run_alone(search: Running[T]) -> T:
    """What a search returns; raises what it raises."""
    (answer,) = run_together([search])
    if isinstance(answer, Exception):
        raise answer
    return answer


def run_together(searches: Sequence[Running[T]]) -> list[T | Exception]:
    """What each search returns, or the error that it raises.

    The answers are those of the searches alone. All take their next step, then all that they want
    of the same codes is scanned in one pass, and so on.
    """
    answers: dict[int, T | Exception] = {}
    found: dict[int, Found | Exception | None] = dict.fromkeys(range(len(searches)))
    while found:
        wanted: dict[int, Scan] = {}
        for n, received in found.items():
            try:
                wanted[n] = _next_scan(searches[n], received)
            except StopIteration as end:
                answers[n] = end.value
            except Exception as error:  # it is the answer of this search alone
                answers[n] = error
        found = _scan_all(wanted)
    return [answers[n] for n in range(len(searches))]


def _next_scan(search: Running[T], received: Found | Exception | None) -> Scan:
    """What a search wants next. Raises StopIteration with its answer at the end."""
    if received is None:
        return next(search)
    return search.throw(received) if isinstance(received, Exception) else search.send(received)


def _scan_all(wanted: Mapping[int, Scan]) -> dict[int, Found | Exception | None]:
    """What each scan finds, or its error; scans of the same codes share a pass."""
    groups: dict[object, list[int]] = defaultdict(list)
    for n, scan in wanted.items():
        groups[_memory(scan.codes), _memory(scan.offsets)].append(n)
    found: dict[int, Found | Exception | None] = {}
    for group in groups.values():
        _, _, codes, offsets = wanted[group[0]]
        searches = [search for n in group for search in wanted[n].searches]
        try:
            each = iter(scan_bags(searches, codes, offsets))
            found |= {n: list(islice(each, len(wanted[n].searches))) for n in group}
        except Exception as error:
            if len(group) == 1:
                found[group[0]] = error
            else:  # only the faulty ones fail
                for n in group:
                    found |= _scan_all({n: wanted[n]})
    return found


def _memory(array: Codes | Ints | None) -> object:
    """Equal for arrays that are the same memory, also through different views."""
    if array is None:
        return None
    where = array.__array_interface__
    return where["data"], where["shape"], where["strides"], where["typestr"]
