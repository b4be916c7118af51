"""Labels and boxes from annotation files, checked and turned into targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionhash.data.images import ImageError, read_orientation, read_size
from regionhash.data.notices import Notices
from regionhash.files.text import shown
from regionhash.structures import Box, Target

Size = tuple[int, int]
"""Height and width in pixels."""

_LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 0.01  # fractions may leave 0 to 1 by this much, as in Ultralytics' check of labels
_OUTSIDE = 1.0  # an object cut off by the picture's edge may reach out by its own size
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}


class LabelledBox(NamedTuple):
    """One object of an annotation file.

    Attributes:
        source: the file, and the line if known; for messages.
        label: class index.
        box: (x0, y0, x1, y1) as in the file.
        difficult: VOC's mark, COCO's crowd.
    """

    source: str
    label: int
    box: Box
    difficult: bool = False


class PictureLabels(NamedTuple):
    """What an annotation file says of one picture.

    Attributes:
        path: the picture.
        objects: its objects.
        image_labels: class indices of the picture as a whole.
        noted_size: the size that the file gives; None if it gives none.
        source: what gives it, for messages.
    """

    path: Path
    objects: Sequence[LabelledBox]
    image_labels: Sequence[int] = ()
    noted_size: Size | None = None
    source: str = ""


def make_targets(
    name: str,
    pictures: Iterable[PictureLabels],
    notices: Notices,
    *,
    relative: bool = False,
    ask: str | None = None,
    first: float = 0.0,
    last: float = 0.0,
) -> tuple[Target, ...]:
    """The targets of a set, boxes in pixels from 0 with exclusive last edges.

    Boxes refer to the picture as shown, whose size is read from its header, because sizes noted in
    annotations may be out of date. If the noted size is that of the picture before EXIF
    orientation, its boxes are turned with it. Boxes are clipped to the picture; objects without
    remaining area are left out with a notice, and exchanged corners are put right with one. If the
    picture cannot be read, the noted size is used; without one, boxes are only clipped to
    x0, y0 >= 0.

    Args:
        name: the annotation file or folder, for messages.
        pictures: the objects of each picture.
        notices: is told what was put right or left out.
        relative: whether boxes are fractions of the picture's width and height.
        ask: how to say that boxes are fractions, for the message that refuses them; None if the
            layout has no such form.
        first: added to x0 and y0 in pixels; -1 if the file counts from 1.
        last: added to x1 and y1 in pixels; 1 if the file counts from 0 and includes last edges.

    Raises:
        ValueError: a coordinate is not finite or does not fit a float32; most boxes of the set are
            fractions but `relative` is False, or a box is none but it is True.
    """
    pictures = [
        picture._replace(objects=[_in_order(item, notices) for item in picture.objects])
        for picture in pictures
    ]
    _check_unit(name, [item for picture in pictures for item in picture.objects], relative, ask)
    return tuple(_target(picture, notices, relative, first, last) for picture in pictures)


def _in_order(item: LabelledBox, notices: Notices) -> LabelledBox:
    if not all(map(math.isfinite, item.box)):
        raise ValueError(f"{item.source}: box must be finite, got {shown(item.box)}")
    x0, y0, x1, y1 = item.box
    if x0 <= x1 and y0 <= y1:
        return item
    notices.add(
        "boxes with exchanged corners, put right",
        f"{item.source}: box {item.box} ends before it starts; its corners were exchanged",
    )
    return item._replace(box=(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))


def _is_within(box: Box) -> bool:
    return all(-_ROUNDING <= edge <= 1 + _ROUNDING for edge in box)


def _is_fraction(box: Box) -> bool:
    return _is_within(box) and not all(edge.is_integer() for edge in map(float, box))


def _check_unit(name: str, items: Sequence[LabelledBox], relative: bool, ask: str | None) -> None:
    """Refuses fractions that were not asked for, and pixels in place of fractions.

    Whole numbers within 0 to 1 may be either, so they count for neither.
    """
    if relative:
        for item in items:
            if any(not -_OUTSIDE <= edge <= 1 + _OUTSIDE for edge in item.box):
                raise ValueError(
                    f"{item.source}: box must be fractions (0 to 1) of the picture, "
                    f"got {shown(item.box)}"
                )
        return
    fractions = [item for item in items if _is_fraction(item.box)]
    if len(fractions) > sum(not _is_within(item.box) for item in items):
        advice = f"if they are fractions, {ask}" if ask else "multiply them by width and height"
        raise ValueError(
            f"{name}: boxes must be in pixels, but {len(fractions)} of {len(items)} are within 0 "
            f"to 1, such as {fractions[0].box} in {fractions[0].source}; {advice}"
        )


def _target(
    picture: PictureLabels, notices: Notices, relative: bool, first: float, last: float
) -> Target:
    boxes, kept = [], []
    size, turn = _frame(picture, notices) if picture.objects else (None, 1)
    if relative and size is None and picture.objects:
        notices.add(
            "pictures of unknown size, their boxes left out",
            f"{picture.objects[0].source}: {picture.path} cannot be read, so its boxes, which are "
            "fractions of its size, are left out",
        )
    elif picture.objects:
        height, width = size or (math.inf, math.inf)
        stored = (width, height) if turn in _TURNS else (height, width)
        for item in picture.objects:
            box = _in_pixels(item, stored, notices, relative, first, last)
            if turn in _TURNS:
                box = _turned(box, stored, turn)
            x0, y0, x1, y1 = box
            box = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
            if max(box[2:]) > _LARGEST:
                raise ValueError(f"{item.source}: box must be in pixels, got {shown(item.box)}")
            if _has_area(box):
                boxes.append(box)
                kept.append(item)
                continue
            frame = f"a picture of {shown(width)} x {shown(height)} pixels"
            notices.add(
                "boxes without area, left out",
                f"{item.source}: box {item.box} has no area in {frame}; left out",
            )
    return Target(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([item.label for item in kept], np.int64),
        difficult=np.array([item.difficult for item in kept], np.bool_),
        image_labels=tuple(sorted(set(picture.image_labels))),
    )


def _has_area(box: Box) -> bool:
    """Whether a box has an area as it is stored, in float32."""
    if not (box[0] < box[2] and box[1] < box[3]):
        return False
    left, top, right, bottom = np.array(box, np.float32)
    return bool(left < right and top < bottom)


def _in_pixels(
    item: LabelledBox,
    size: tuple[float, float],
    notices: Notices,
    relative: bool,
    first: float,
    last: float,
) -> Box:
    x0, y0, x1, y1 = item.box
    height, width = size
    if relative:
        return x0 * width, y0 * height, x1 * width, y1 * height
    # The whole picture in fractions, unless the picture has one pixel.
    whole = (x0, y0, x1, y1) == (0, 0, 1, 1) and max(size) > 1
    if _is_fraction(item.box) or (whole and not first and not last):
        notices.add(
            "boxes within 0 to 1, taken as pixels",
            f"{item.source}: box {item.box} is within 0 to 1; taken as pixels, as the others are",
        )
    if first:  # adding 0 would turn -0.0 into 0.0
        x0, y0 = x0 + first, y0 + first
    return x0, y0, x1 + last, y1 + last


def _frame(picture: PictureLabels, notices: Notices) -> tuple[Size | None, int]:
    """The picture's size as shown, and its EXIF orientation if the boxes must be turned, else 1."""
    noted, size = picture.noted_size, None
    with suppress(ImageError):  # reading the picture will report it
        size = read_size(picture.path)
    if size is None or noted is None or noted == size:
        return size or noted, 1
    turn = read_orientation(picture.path) if noted == size[::-1] else 1
    if turn in _TURNS:
        notices.add(
            "pictures with boxes from before EXIF orientation, turned",
            f"{picture.source}: the size {noted[1]} x {noted[0]} is that of {picture.path} before "
            "its EXIF orientation is applied; its boxes were turned with the picture",
        )
        return size, turn
    notices.add(
        "sizes that are not the picture's",
        f"{picture.source}: the size is {shown(noted[1])} x {shown(noted[0])}, but that of "
        f"{picture.path} is {size[1]} x {size[0]}, which was taken; boxes were not scaled",
    )
    return size, 1


_TURNS = frozenset((5, 6, 7, 8))  # the EXIF orientations that swap height and width


def _turned(box: Box, stored: tuple[float, float], orientation: int) -> Box:
    """A box of the picture as stored (height, width) in the picture as shown (EXIF 4.6.4 A)."""
    height, width = stored
    (x0, y0, x1, y1) = box
    across = (height - y1, height - y0) if orientation in (6, 7) else (y0, y1)
    down = (width - x1, width - x0) if orientation in (7, 8) else (x0, x1)
    return across[0], down[0], across[1], down[1]


# -- fields of annotation files -------------------------------------------------------------------


def plain_name(text: str, source: str, notices: Notices) -> str:
    """The name of a class without blanks around it and without one pair of matching quotes."""
    name = text.strip()
    if len(name) > 2 and _QUOTES.get(name[0]) == name[-1] and name[1:-1].strip():
        name = name[1:-1].strip()
        notices.add(
            "class names in quotes, taken without",
            f"{source}: the class {shown(text)} is taken as {shown(name)}",
        )
    return name


def parse_flag(value: object, field: str) -> bool:
    """Whether a mark such as COCO's iscrowd is set; None and "" mean that it is not.

    Raises:
        ValueError: the value is neither 0 nor 1, nor a word for them.
    """
    text = str(value).strip().lower() if isinstance(value, str | int | float | None) else "?"
    if text in ("", "none", "0", "0.0", "false", "unspecified"):
        return False
    if text in ("1", "1.0", "true"):
        return True
    raise ValueError(f"{field} must be 0 or 1, got {shown(value)}")


def parse_score(value: object) -> float:
    """How sure a detector is. Raises ValueError unless it is a number, or its text, in [0, 1]."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        score = float(value)
        if not 0 <= score <= 1:
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"must be a number in [0, 1], got {shown(value)}") from None
    return score


def parse_size(height: object, width: object) -> Size | None:
    """A size as annotations note it; None if it is missing or 0.

    Raises:
        ValueError: a side is not a whole number, is negative or does not fit a float32, as the
            edges of boxes must.
    """
    sides = []
    for field, value in (("height", height), ("width", width)):
        text = value.strip() if isinstance(value, str) else value
        if text is None or text == "":
            sides.append(0)
            continue
        try:
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                raise ValueError
            number = int(text) if isinstance(text, int) else float(text)
            if isinstance(number, float):
                if not number.is_integer():
                    raise ValueError
                number = int(number)
        except (ValueError, OverflowError):
            raise ValueError(f"{field} must be a whole number, got {shown(value)}") from None
        if number < 0:
            raise ValueError(f"{field} must be positive, got {shown(value)}")
        if number > _LARGEST:
            raise ValueError(f"{field} must fit a float32, got {shown(value)}")
        sides.append(number)
    return (sides[0], sides[1]) if all(sides) else None
