"""What a search of a collection is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import hamming_distances
from regionhash.structures import CodeTable, EncodedImage, Hit, Match

if TYPE_CHECKING:
    from regionhash.collection.arrays import Snapshot
    from regionhash.search.run import Mode

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A picture to search by: one that is given, or one of the collection.

    Attributes:
        image: a file, or pixels (H, W, 3) uint8 RGB.
        like: id of a picture of the collection, instead of `image`.
        boxes: xyxy in pixels of the picture, one per object.
        encoded: of `image`, what the model gave for it, if that is known already.
        regions: numbers of the regions of `like` or `encoded` that are the objects, instead of
            `boxes`; their codes are searched for, and the file of `like` is not needed.
        name: of `image`, for messages.
    """

    image: str | Path | NDArray[np.uint8] | None = None
    like: str | None = None
    boxes: Sequence[Box] = ()
    regions: Sequence[int] = ()
    name: str = "picture"
    encoded: EncodedImage | None = None

    def __post_init__(self) -> None:
        if (self.image is None) == (self.like is None):
            raise ValueError("a query needs either an image or the id of a picture (like)")
        if self.regions and ((self.like is None and self.encoded is None) or self.boxes):
            raise ValueError("regions are for a picture whose codes are known, and without boxes")


@dataclass(frozen=True, slots=True)
class Result:
    """One found picture.

    Attributes:
        id: of the picture; row: its number in the database, which never stands for another.
        path: its file; None of a picture that is in no file.
        size: (height, width) in pixels.
        distance: Hamming distance in bits; over several objects their sum.
        matches: the regions that answer the query objects, in their order; none of whole pictures.
        classes: names of the classes that are known of the picture or detected in it.
        taken: seconds since 1970; None where unknown.
        duplicates: pictures that look nearly the same and rank below, where that was asked for.
    """

    id: str
    row: int
    path: Path | None
    size: tuple[int, int]
    distance: int
    matches: tuple[Match, ...]
    classes: tuple[str, ...]
    taken: float | None
    duplicates: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True)
class ResultGroup:
    """What was found for one category of the query.

    Attributes:
        category: name of the class.
        prob: the probability that the query shows it.
        hits: pictures that show it, best first; their distances are of its codes.
    """

    category: str
    prob: float
    hits: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """One page of an answer.

    Attributes:
        mode: what was compared, see `regionhash.search.run.Mode`.
        steps: of the search for one object, see `regionhash.search.steps`.
        boxes: of the query objects, one tuple per query picture.
        hits: best first; equal distances in the order in which the pictures were stored.
        offset: rank of the first hit, from 0.
        more: whether there is a next page.
        searched: pictures that the filter let through.
        groups: of mode category, the page of each category of the query, most probable category
            first; `hits` is empty then.
        without: boxes of what must not be there, one tuple per picture of it.
        snapshot: the collection as it was searched.
    """

    mode: Mode
    steps: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]
    hits: tuple[Result, ...]
    offset: int
    more: bool
    searched: int
    groups: tuple[ResultGroup, ...] = ()
    without: tuple[tuple[Box, ...], ...] = ()
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)


def group_near_duplicates(hits: Sequence[Hit], table: CodeTable, bits: int) -> list[list[Hit]]:
    """Ranked hits as groups of pictures that look nearly the same, each in order of rank.

    A picture joins the first group whose best picture is nearly the same: their image codes, and
    each region of either and the nearest region of the other, differ in at most `bits` bits.
    """
    groups: list[list[Hit]] = []
    for hit in hits:
        for group in groups:
            if _nearly_same(hit.index, group[0].index, table, bits):
                group.append(hit)
                break
        else:
            groups.append([hit])
    return groups


def _nearly_same(n: int, m: int, table: CodeTable, bits: int) -> bool:
    if table.image_codes is not None:
        (distances,) = hamming_distances(table.image_codes[n][None], table.image_codes[m][None])
        if distances[0] > bits:
            return False
    if table.offsets is None:
        return True
    codes = [table.regions(own).codes for own in (n, m)]
    if not (len(codes[0]) and len(codes[1])):
        return len(codes[0]) == len(codes[1])
    distances = hamming_distances(*codes)  # (R, S)
    return bool(max(distances.min(axis=0).max(), distances.min(axis=1).max()) <= bits)


def with_duplicates(results: Sequence[Result]) -> Result:
    """The first of a group, with the others as its duplicates."""
    return replace(results[0], duplicates=tuple(results[1:]))
