"""A search as a person asks for it: pictures and boxes in, ranked pictures and a sheet out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from regionhash.data.image_set import Image
from regionhash.data.images import ImageError
from regionhash.models import HashModel
from regionhash.models.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from regionhash.models.encoding import Precision, encode_boxes, encode_picture
from regionhash.search.exact import (
    search_categories,
    search_images,
    search_objects,
    search_regions,
)
from regionhash.search.sheet import THUMBNAIL, Tile, with_saliency, write_sheet
from regionhash.search.steps import (
    CANDIDATES,
    EXPANSION,
    check_steps,
    default_steps,
    search_in_steps,
)
from regionhash.store import CodeFile
from regionhash.structures import CategoryHits, Codes, EncodedImage, Hit, Mask, Regions

Box = tuple[float, float, float, float]

FindPicture = Callable[[str], Image]

Mode = Literal["image", "region", "objects", "category"]
"""What is compared: whole pictures; one object; several objects, all of which are wanted; or one
category after the other of those in a whole picture."""


@dataclass(frozen=True, eq=False)
class QueryPicture:
    """A picture to search by.

    Attributes:
        name: for messages and captions.
        image: (H, W, 3) uint8, RGB.
        boxes: xyxy in its pixels, one per object; none leaves it to the mode what is searched.
        known: the codes of the picture, or of the boxes where there are some, if they need not be
            computed; then `image` may be None.
    """

    name: str
    image: Image | None
    boxes: tuple[Box, ...] = ()
    known: EncodedImage | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What was searched and what was found.

    Attributes:
        mode: see `Mode`.
        queries: the pictures, with the boxes that were searched for.
        hits: best first; one match per box of the queries, picture after picture. None where the
            last step of a search compared whole pictures.
        steps: of the search for one object, see `regionhash.search.steps`; none in the other modes.
        groups: of mode category, what was found for each category of the query; `hits` is empty.
        without: pictures of what must not be there, with the boxes that were excluded.
    """

    mode: Mode
    queries: tuple[QueryPicture, ...]
    hits: list[Hit]
    steps: tuple[str, ...] = ()
    groups: tuple[CategoryHits, ...] = ()
    without: tuple[QueryPicture, ...] = ()


def default_mode(queries: Sequence[QueryPicture], *, whole: bool = True) -> Mode:
    """One picture asks for pictures, one box for an object, more of either for several objects.

    Where there are no codes of whole pictures (`whole`), one picture asks for its objects.
    """
    n_boxes = sum(len(query.boxes) for query in queries)
    if len(queries) > 1 or n_boxes > 1:
        return "objects"
    if n_boxes:
        return "region"
    return "image" if whole else "objects"


def model_folder(file: CodeFile) -> Path:
    """Where the model of a code file is: beside it, as `regionhash index` leaves it, or recorded.

    A directory that holds both can be moved and copied.
    """
    beside, recorded = file.path.parent, Path(file.recorded("checkpoint"))
    try:
        return beside if read_checkpoint(beside).model_hash == file.model_hash else recorded
    except CheckpointError:
        return recorded


def find(
    model: HashModel,
    checkpoint: Checkpoint,
    file: CodeFile,
    queries: Sequence[QueryPicture],
    *,
    mode: Mode | None = None,
    top: int = 20,
    steps: Sequence[str] = (),
    candidates: int = CANDIDATES,
    expand: int = EXPANSION,
    min_prob: float = 0.0,
    among: Mask | None = None,
    without: Sequence[QueryPicture] = (),
    within: int | None = None,
) -> Answer:
    """Searches a code file by pictures and boxes.

    A query picture without a box stands, in mode "region", for its best-scored detection and, in
    mode "objects", for the best-scored detection of each class in it.

    Where a step compares whole pictures, the query is the box's own code if the model's codes of
    boxes and pictures can be compared (`HashModel`), and else the image code of the picture that is
    cut out along the box.

    Args:
        model: the model that made the codes.
        checkpoint: as well.
        file: the codes to search.
        queries: at least one picture.
        mode: see `Mode`; None takes `default_mode`, and "region" where steps are given.
        top: how many pictures to return, at most.
        steps: of the search for one object, see `regionhash.search.steps`; none takes
            `default_steps`.
        candidates: how many pictures the first step leaves for the next ones.
        expand: how many pictures give their codes to an expansion.
        min_prob: of mode category, the least probability of a category in query and pictures.
        among: (N,) bool, the pictures of the file that are searched; None searches all.
        without: pictures of objects that must not be there: their boxes, or the best detection in a
            picture without one. It makes the mode "objects".
        within: up to how many bits a region is taken for such an object, see `search_objects`.

    Raises:
        ValueError: codes of another model, pictures, boxes or steps that do not fit the mode, a box
            that has no area in its picture, a picture in which nothing is detected, or a number
            below 1.
    """
    if file.model_hash != checkpoint.model_hash:
        raise ValueError(
            f"{file.path}: made by the model {file.model_hash} ({file.model}), which cannot be "
            f"searched with {checkpoint.model_hash} ({checkpoint.name})"
        )
    if steps:
        check_steps(steps)
    if mode is None:
        whole = file.table.image_codes is not None
        mode = "region" if steps and len(queries) == 1 else default_mode(queries, whole=whole)
        if without and not steps:
            mode = "objects"
    if within is not None and not without:
        raise ValueError("within is of use only with objects that must not be there")
    if min_prob and mode != "category":
        raise ValueError(f"the least probability is for mode category, got mode {mode}")
    if without and mode != "objects":
        raise ValueError(f"what must not be there is for mode objects, got mode {mode}")
    if steps and mode != "region":
        raise ValueError(f"steps are for a search of one object (mode region), got mode {mode}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    n_boxes = sum(len(query.boxes) for query in queries)
    if mode != "objects" and (len(queries) != 1 or n_boxes > (mode == "region")):
        wanted = "one picture, one box at most" if mode == "region" else "one picture without a box"
        raise ValueError(
            f"mode {mode} takes {wanted}, got {len(queries)} pictures and {n_boxes} boxes"
        )
    precision: Precision = file.recorded("precision")
    if mode == "image":
        encoded = _encoded(model, checkpoint, queries[0], precision)
        if encoded.image_code is None:
            raise ValueError(f"the model {checkpoint.name} has no codes of whole pictures")
        hits = search_images(encoded.image_code, file.table, top=top, among=among)
        return Answer(mode, tuple(queries), hits)
    if mode == "category":
        encoded = _encoded(model, checkpoint, queries[0], precision)
        if encoded.categories is None:
            raise ValueError(f"the model {checkpoint.name} has no codes of categories")
        groups = search_categories(
            encoded.categories, file.table, top=top, min_prob=min_prob, among=among
        )
        return Answer(mode, tuple(queries), [], groups=tuple(groups))
    asked, codes = [], []
    for query in queries:
        regions = _objects(model, checkpoint, query, mode, precision)
        asked.append(replace(query, boxes=_boxes(regions)))
        codes.append(regions.codes)
    objects: Codes = np.concatenate(codes)
    if mode == "region":
        shared = model.shared_code_space
        chosen = tuple(steps) or default_steps(file.table, shared_code_space=shared)
        if chosen == ("exact",):
            hits = search_regions(objects[0], file.table, top=top, among=among)
        else:
            code = objects[0] if shared else None
            if chosen[0] == "global" and code is None:
                image = _cut_out(asked[0])
                code = encode_picture(model, checkpoint, image, precision=precision).image_code
            hits = search_in_steps(
                file.table,
                chosen,
                image_query=code,
                region_query=objects[0],
                top=top,
                candidates=candidates,
                expand=expand,
                among=among,
            )
        return Answer(mode, tuple(asked), hits, chosen)
    unwanted: Codes | None = None
    excluded = []
    for query in without:
        regions = _objects(model, checkpoint, query, "region", precision)
        excluded.append(replace(query, boxes=_boxes(regions)))
        unwanted = regions.codes if unwanted is None else np.vstack([unwanted, regions.codes])
    hits = search_objects(
        objects, file.table, top=top, among=among, without=unwanted, within=within
    )
    return Answer(mode, tuple(asked), hits, without=tuple(excluded))


def _objects(
    model: HashModel, checkpoint: Checkpoint, query: QueryPicture, mode: Mode, precision: Precision
) -> Regions:
    """What a query picture asks for, at least one region."""
    if query.boxes and query.known is not None and query.known.regions is not None:
        return query.known.regions
    if query.boxes:
        boxes = np.array(query.boxes, np.float32)
        try:
            return encode_boxes(model, checkpoint, _pixels(query), boxes, precision=precision)
        except ValueError as error:
            raise ValueError(f"{query.name}: {error}") from error
    found = _encoded(model, checkpoint, query, precision).regions
    if found is None or not len(found):
        raise ValueError(f"{query.name}: nothing was detected in it; mark the object with a box")
    rows = np.array([0])
    if mode == "objects":  # regions are best first, so the first of each label is its best
        rows = np.sort(np.unique(found.labels, return_index=True)[1])
    return Regions(found.boxes[rows], found.scores[rows], found.labels[rows], found.codes[rows])


def _encoded(
    model: HashModel, checkpoint: Checkpoint, query: QueryPicture, precision: Precision
) -> EncodedImage:
    if query.known is not None:
        return query.known
    return encode_picture(model, checkpoint, _pixels(query), precision=precision)


def _pixels(query: QueryPicture) -> Image:
    if query.image is None:
        raise ValueError(f"{query.name}: this search needs the picture, which is not there")
    return query.image


def _cut_out(query: QueryPicture) -> Image:
    """The part of a picture that its one box touches."""
    ((x0, y0, x1, y1),) = query.boxes
    image = _pixels(query)
    height, width = image.shape[:2]
    left, upper = min(math.floor(x0), width - 1), min(math.floor(y0), height - 1)
    return np.ascontiguousarray(image[upper : math.ceil(y1), left : math.ceil(x1)])


def _boxes(regions: Regions) -> tuple[Box, ...]:
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in regions.boxes.tolist())


def distance_text(hit: Hit) -> str:
    """The distance of a hit; of several objects with that of each, in their order: "12 = 5 + 7"."""
    if len(hit.matches) < 2:
        return str(hit.distance)
    return f"{hit.distance} = {' + '.join(str(match.distance) for match in hit.matches)}"


def write_answer(
    path: str | Path,
    answer: Answer,
    file: CodeFile,
    find_picture: FindPicture,
    *,
    title: str,
    wanted: Sequence[int] = (),
) -> None:
    """Writes an answer as a contact sheet; of a picture that is gone, the tile says so.

    Of mode category, the results of each category stand below its name and probability, and each
    picture has its saliency map beside it: where the kept proposals of the category are, weighted
    by their probabilities (IAH, Fig. 5).

    Args:
        path: ends in .png or .html.
        answer: of `find`.
        file: the codes that were searched.
        find_picture: gives the picture with an id; raises ImageError where it is gone.
        title: the sheet's heading.
        wanted: indices of the classes that a right result shows, all of them. Frames are green and
            red where some are given and the file has labels, else grey.

    Raises:
        ValueError: another suffix.
        OSError: the sheet cannot be written.
    """
    results = [
        _tile(
            hit,
            file,
            find_picture,
            wanted,
            caption=f"{rank}. {hit.image_id}\ndistance {distance_text(hit)}",
        )
        for rank, hit in enumerate(answer.hits, 1)
    ]
    for group in answer.groups:
        tiles = [
            _tile(
                hit,
                file,
                find_picture,
                wanted or [group.category] * (file.labels is not None),
                caption=f"{rank}. {hit.image_id}\ndistance {hit.distance}",
                category=group.category,
            )
            for rank, hit in enumerate(group.hits, 1)
        ]
        heading = f"{file.classes[group.category]}, probability {group.prob:.2f}"
        results += [replace(tile, heading=heading) for tile in tiles[:1]] + tiles[1:]
    queries = [Tile(_pixels(query), query.boxes, query.name) for query in answer.queries]
    write_sheet(path, queries, results, title=title)


def _tile(
    hit: Hit,
    file: CodeFile,
    find_picture: FindPicture,
    wanted: Sequence[int],
    *,
    caption: str,
    category: int | None = None,
) -> Tile:
    """A result on the sheet; with a category, its saliency map stands beside the picture."""
    good = None
    if wanted and file.labels is not None:
        good = bool(file.labels[hit.index, list(wanted)].all())
    boxes = [match.box for match in hit.matches]
    try:
        image = find_picture(hit.image_id)
    except ImageError:
        grey = np.full((THUMBNAIL, THUMBNAIL, 3), 200, np.uint8)
        return Tile(grey, [], f"{caption}, picture not found", good)
    if category is not None and file.table.offsets is not None:
        regions = file.table.regions(hit.index)
        own = regions.labels == category
        image = with_saliency(image, regions.boxes[own], regions.scores[own])
    return Tile(image, boxes, caption, good)
