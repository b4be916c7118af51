"""A CSV table of objects: the simplest way to supply labels."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from regionhash.data.boxes import LabelledBox, make_target
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, ImageError, read_size
from regionhash.data.notices import Notices
from regionhash.files.text import open_regular, reason_of, shown
from regionhash.structures import Box, Target

_HEADERS = (
    ("image", "label"),
    ("image", "label", "x0", "y0", "x1", "y1"),
    ("image", "label", "xmin", "ymin", "xmax", "ymax"),
)

_LONGEST = 1 << 20  # characters of a line; `csv` allows six cells at most 6 x 128 Ki


class _Row(NamedTuple):
    source: str  # file:line
    image: str
    label: str
    box: Box | None


def read_csv(path: str | Path, images_dir: str | Path | None = None) -> ImageSet:
    """The pictures of a table with one row per object; ids are the cells of the column image.

    The header is `image,label`, `image,label,x0,y0,x1,y1` or `image,label,xmin,ymin,xmax,ymax`:
    pixels from 0, the last edges exclusive. If the four cells of a box are empty, the label applies
    to the whole picture; if the label is empty too, the row only lists the picture. Classes are the
    labels in alphabetical order.

    Boxes are clipped to the pictures, of which only the headers are read; boxes in a picture that
    cannot be read stay as they are. Objects without remaining area are left out with a notice.

    Args:
        path: the table, in UTF-8.
        images_dir: the folder of the pictures; if None, that of the table.

    Raises:
        ValueError: the table is missing or empty, or a cell is wrong; the message names the line.
    """
    path = Path(path)
    folder = path.parent if images_dir is None else Path(images_dir)
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, _lines(file)))
    except OSError as error:
        raise ValueError(f"{path}: cannot read the table: {reason_of(error)}") from error
    if not rows:
        raise ValueError(f"{path} lists no picture")
    classes = tuple(sorted({row.label for row in rows if row.label}))
    indices = {name: index for index, name in enumerate(classes)}
    rows_of: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        rows_of[row.image].append(row)
    notices = Notices()
    return ImageSet(
        name=path.stem,
        classes=classes,
        ids=tuple(rows_of),
        images=FileImages([folder / image for image in rows_of]),
        targets=tuple(
            _target(folder / image, group, indices, notices) for image, group in rows_of.items()
        ),
        notices=notices,
    )


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise ValueError(f"a line has {_LONGEST:,} characters or more")
        yield line


def _rows(path: Path, file: Iterator[str]) -> Iterator[_Row]:
    lines = csv.reader(file)
    try:
        header = tuple(cell.strip() for cell in next(lines, ()))
        if header not in _HEADERS:
            forms = " or ".join(",".join(form) for form in _HEADERS)
            raise ValueError(f"header must be {forms}, got {shown(','.join(header))}")
        for cells in lines:
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} cells, got {len(cells)}")
            image, label, *edges = (cell.strip() for cell in cells)
            if not image:
                raise ValueError("the column image is empty")
            if "\0" in image or "\0" in label:
                raise ValueError("a cell contains a NUL")
            box = _box(edges) if any(edges) else None
            if box and not label:
                raise ValueError("a box needs a label")
            yield _Row(f"{path}:{lines.line_num}", image, label, box)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}:{max(lines.line_num, 1)}: {reason_of(error)}") from error


def _box(edges: list[str]) -> Box:
    try:
        x0, y0, x1, y1 = map(float, edges)
    except ValueError as error:
        raise ValueError(f"a box must be four numbers or empty, got {','.join(edges)}") from error
    return x0, y0, x1, y1


def _target(path: Path, rows: list[_Row], indices: dict[str, int], notices: Notices) -> Target:
    objects = [LabelledBox(row.source, indices[row.label], row.box) for row in rows if row.box]
    size = None
    if objects:
        with suppress(ImageError):  # reading the picture will report it
            size = read_size(path)
    image_labels = [indices[row.label] for row in rows if row.label and not row.box]
    return make_target(objects, size, notices, image_labels)
