"""Showing an answer: distances as text, and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regionhash.data.images import ImageError
from regionhash.search.run import Answer, QueryPicture
from regionhash.search.sheet import THUMBNAIL, Tile, with_saliency, write_sheet
from regionhash.store import CodeSet
from regionhash.structures import CategoryHits, Hit

if TYPE_CHECKING:
    from regionhash.data.image_set import Image

FindPicture = Callable[[str], "Image"]


def distance_text(hit: Hit) -> str:
    """The distance of a hit, and its parts if there are several: "14 = 5 + 7 + 2 (picture)".

    These are the distances of the objects, in order, and what the whole picture adds.
    """
    parts = [str(match.distance) for match in hit.matches]
    if hit.context is not None:
        parts.append(f"{hit.context} (picture)")
    return str(hit.distance) if len(parts) < 2 else f"{hit.distance} = {' + '.join(parts)}"


def heading_text(group: CategoryHits, codes: CodeSet) -> str:
    """The name of a group's category, with its probability if there is one."""
    name = codes.classes[group.category]
    return name if group.prob is None else f"{name}, probability {group.prob:.2f}"


def write_answer(
    path: str | Path,
    answer: Answer,
    find_picture: FindPicture,
    *,
    title: str,
    wanted: Sequence[int] = (),
) -> None:
    """Writes an answer as a contact sheet; the tile of a missing picture says so.

    In mode category, the results of each category follow its name and probability, and each
    picture has its saliency map to its right: the kept proposals of the category, weighted by
    their probabilities (IAH, Fig. 5).

    Args:
        path: ends in .png or .html.
        answer: of `regionhash.search.run`.
        find_picture: gives the picture with an id; raises ImageError or KeyError if it is gone.
        title: the sheet's heading.
        wanted: indices of classes, all of which a correct result shows. Frames are green or red if
            there are some and the codes have labels, else grey.

    Raises:
        ValueError: another suffix, or a query without its picture.
        OSError: the sheet cannot be written.
    """
    codes = answer.codes
    results = [
        _tile(
            hit,
            codes,
            find_picture,
            wanted,
            caption=f"{rank}. {hit.image_id}\ndistance {distance_text(hit)}",
        )
        for rank, hit in enumerate(answer.hits, 1 + answer.offset)
    ]
    for group in answer.groups:
        tiles = [
            _tile(
                hit,
                codes,
                find_picture,
                wanted or [group.category] * (codes.labels is not None),
                caption=f"{rank}. {hit.image_id}\ndistance {hit.distance}",
                category=group.category,
            )
            for rank, hit in enumerate(group.hits, 1 + answer.offset)
        ]
        heading = heading_text(group, codes)
        results += [replace(tile, heading=heading) for tile in tiles[:1]] + tiles[1:]
    queries = [_query_tile(query) for query in answer.queries]
    write_sheet(path, queries, results, title=title)


def _query_tile(query: QueryPicture) -> Tile:
    if query.text is None:
        return Tile(query.pixels, query.boxes, query.name)
    blank = np.full((THUMBNAIL // 8, THUMBNAIL, 3), 255, np.uint8)
    return Tile(blank, (), f"\u201c{query.text}\u201d")


def _tile(
    hit: Hit,
    codes: CodeSet,
    find_picture: FindPicture,
    wanted: Sequence[int],
    *,
    caption: str,
    category: int | None = None,
) -> Tile:
    """A result on the sheet; with a category, its saliency map is to the picture's right."""
    good = None
    if wanted and codes.labels is not None:
        good = bool(codes.labels[hit.index, list(wanted)].all())
    boxes = [match.box for match in hit.matches]  # of an object without a region, None
    try:
        image = find_picture(hit.image_id)
    except (ImageError, KeyError):
        grey = np.full((THUMBNAIL, THUMBNAIL, 3), 200, np.uint8)
        return Tile(grey, [], f"{caption}, picture not found", good)
    if category is not None and codes.table.offsets is not None:
        regions = codes.table.regions(hit.index)
        shown = regions[regions.labels == category]
        image = with_saliency(image, shown.boxes, shown.scores)
    return Tile(image, boxes, caption, good)
