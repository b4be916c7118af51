"""A CSV table of objects: the simplest way to supply labels."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from regionhash.data.boxes import (
    LabelledBox,
    PictureLabels,
    Size,
    make_targets,
    parse_flag,
    parse_score,
    parse_size,
    plain_name,
)
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages
from regionhash.data.listed import ListedPictures
from regionhash.data.notices import Notices
from regionhash.files.text import open_regular, reason_of, shown
from regionhash.structures import Box

_FORMS = "image,label or image,label,x0,y0,x1,y1 or image,label,xmin,ymin,xmax,ymax"
_DETECTIONS = "image,x0,y0,x1,y1 with or without label and score"

# Names of columns, in lower case without blanks, "_" and "-". Of several that mean the same, the
# first is taken.
_IMAGES = (
    "image", "imageid", "filename", "file", "path", "imagepath", "imagename", "imagefile",
    "filepath", "img",
)  # fmt: skip
_LABELS = ("label", "labelname", "class", "classname", "category", "categoryname")
_SCORES = ("score", "confidence", "conf", "probability")
_SIZES = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("width", "height"))

_Edges = Callable[[float, float, float, float], Box]


def _corners(x0: float, y0: float, x1: float, y1: float) -> Box:
    return x0, y0, x1, y1


def _sides(x0: float, y0: float, width: float, height: float) -> Box:
    return x0, y0, x0 + width, y0 + height


def _centre(cx: float, cy: float, width: float, height: float) -> Box:
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


_BOXES: tuple[tuple[tuple[str, str, str, str], _Edges], ...] = (
    (("xmin", "ymin", "xmax", "ymax"), _corners),
    (("x0", "y0", "x1", "y1"), _corners),
    (("x1", "y1", "x2", "y2"), _corners),
    (("left", "top", "right", "bottom"), _corners),
    (("bboxx", "bboxy", "bboxwidth", "bboxheight"), _sides),
    (("bboxx", "bboxy", "bboxw", "bboxh"), _sides),
    (("x", "y", "w", "h"), _sides),
    (("x", "y", "width", "height"), _sides),
    (("left", "top", "width", "height"), _sides),
    (("xmin", "ymin", "width", "height"), _sides),
    (("xcenter", "ycenter", "width", "height"), _centre),
    (("cx", "cy", "w", "h"), _centre),
)
_EDGES = {name for names, _ in _BOXES for name in names} - {"width", "height"}

_LONGEST = 1 << 20  # characters of a line; `csv` allows six cells at most 6 x 128 Ki


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        source: the file and the line.
        image: the cell of the picture.
        label: the class; empty if there is none.
        box: None if its cells are empty.
        size: of the picture, if noted.
        difficult: Open Images' mark of a group.
        score: of a table of detections, in [0, 1]; 1 if there is none.
    """

    source: str
    image: str
    label: str
    box: Box | None
    size: Size | None
    difficult: bool
    score: float = 1.0


@dataclass(frozen=True)
class _Columns:
    """Which cells of a row hold what.

    Attributes:
        n_cells: of a row.
        image: the picture; label: the class, which only detections may lack.
        edges: the four of the box, empty if the table has none; box_of: the box that they give.
        size: width and height of the picture, empty if the table has none.
        relative: whether the header is that of Open Images, whose boxes are fractions.
        confidence: of a label in Open Images; 0 means verified as absent.
        score: of a detection; None unless the table is one of detections.
        group: Open Images' mark of a box around several objects.
        unused: names of the other columns.
    """

    n_cells: int
    image: int
    label: int | None
    edges: tuple[int, ...]
    box_of: _Edges
    size: tuple[int, ...]
    relative: bool
    confidence: int | None
    score: int | None
    group: int | None
    unused: tuple[str, ...]


def read_csv(
    path: str | Path, images_dir: str | Path | None = None, *, relative: bool = False
) -> ImageSet:
    """The pictures of a table with one row per object; ids are the cells of the column image.

    The header is `image,label`, `image,label,x0,y0,x1,y1` or `image,label,xmin,ymin,xmax,ymax`:
    pixels from 0, the last edges exclusive. Other common names, orders and separators are
    understood; see docs/data.md. If the four cells of a box are empty, the label applies to the
    whole picture; if the label is empty too, the row only lists the picture. Classes are the labels
    in alphabetical order.

    For the boxes see `make_targets`; only the headers of pictures are read.

    Args:
        path: the table, in UTF-8, or in UTF-16 with a byte order mark.
        images_dir: the folder of the pictures; if None, that of the table.
        relative: whether boxes are fractions of the picture's width and height, as they always are
            in tables of Open Images.

    Raises:
        ValueError: the table is missing or empty, or a cell is wrong; the message names the line.
    """
    path = Path(path)
    folder = path.parent if images_dir is None else Path(images_dir)
    notices = Notices()
    rows, in_fractions = read_rows(path, notices)
    classes = tuple(sorted({row.label for row in rows if row.label}))
    indices = {name: index for index, name in enumerate(classes)}
    pictures = ListedPictures(folder, notices)
    rows_of: dict[str, list[TableRow]] = defaultdict(list)
    for row in rows:
        rows_of[pictures.add(row.image, row.source)].append(row)
    targets = make_targets(
        str(path),
        [_labels_of(pictures.paths[image], group, indices) for image, group in rows_of.items()],
        notices,
        relative=relative or in_fractions,
        ask="name the set csv:FILE[:IMAGES_DIR]:relative (in Python, relative=True)",
    )
    paths = FileImages([pictures.paths[image] for image in rows_of])
    return ImageSet(path.stem, classes, tuple(rows_of), paths, targets, notices)


def read_rows(
    path: Path, notices: Notices, *, detections: bool = False
) -> tuple[list[TableRow], bool]:
    """The rows of a table, and whether its boxes are fractions, see `read_csv`.

    Args:
        path: the table.
        notices: is told what was left out.
        detections: whether boxes may have a score and lack a class.

    Raises:
        ValueError: the table is missing or empty, or a cell is wrong; the message names the line.
    """
    try:
        with open_regular(path) as content:
            encoding = "utf-16" if _is_utf16(content) else "utf-8-sig"
            with io.TextIOWrapper(content, encoding=encoding, newline="") as file:
                columns, rows = _table(path, file, notices, detections)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the table: {reason_of(error)}") from error
    if not rows:
        raise ValueError(f"{path} lists no picture")
    return rows, columns.relative


def _labels_of(path: Path, rows: list[TableRow], indices: dict[str, int]) -> PictureLabels:
    return PictureLabels(
        path,
        [
            LabelledBox(row.source, indices[row.label], row.box, row.difficult)
            for row in rows
            if row.box
        ],
        [indices[row.label] for row in rows if row.label and not row.box],
        next((row.size for row in rows if row.size), None),
        rows[0].source,
    )


def _is_utf16(content: BinaryIO) -> bool:
    start = content.read(2)
    content.seek(0)
    return start in (b"\xff\xfe", b"\xfe\xff")


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise ValueError(f"a line has {_LONGEST:,} characters or more")
        yield line


def _table(
    path: Path, file: io.TextIOWrapper, notices: Notices, detections: bool
) -> tuple[_Columns, list[TableRow]]:
    lines = _lines(file)
    n_before = 0  # lines before those that `csv` counts
    reader = None
    try:
        first = next(lines, "")
        if re.fullmatch(r'"?sep=.?"?\s*', first, re.IGNORECASE):  # as Excel writes it
            first, n_before = next(lines, ""), 1
        while first and not first.strip(" ,;\t\r\n"):
            first, n_before = next(lines, ""), n_before + 1
        separator, columns = _columns(first, detections)
        reader = csv.reader(lines, delimiter=separator)
        if columns.unused:
            names = ", ".join(map(shown, columns.unused))
            notices.add("columns that were not used", f"{path}: not used: the columns {names}")
        rows = []
        for cells in reader:
            source = f"{path}:{n_before + 1 + reader.line_num}"
            row = _row(source, cells, columns, separator, notices, detections)
            if row:
                rows.append(row)
    except (ValueError, csv.Error) as error:
        line = n_before + 1 + (reader.line_num if reader else 0)
        raise ValueError(f"{path}:{line}: {reason_of(error)}") from error
    return columns, rows


def _columns(header: str, detections: bool) -> tuple[str, _Columns]:
    """The separator of a table and what its columns mean, from its first line."""
    fault = None
    for separator in ",;\t":
        try:
            cells = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:  # the whole line is too long for a cell
            continue
        names = [re.sub(r"[\s_-]", "", cell.strip().strip("'\"")).lower() for cell in cells]
        if not set(names) & set(_IMAGES) or not (detections or set(names) & set(_LABELS)):
            continue
        try:
            return separator, _meaning(names, [cell.strip() for cell in cells], detections)
        except ValueError as error:
            fault = error
    if fault:
        raise fault
    cells = next(csv.reader([header]), [])
    got = shown(",".join(cell.strip() for cell in cells))
    forms = _DETECTIONS if detections else _FORMS
    raise ValueError(f"header must be {forms}, got {got}")


def _meaning(names: list[str], cells: Sequence[str], detections: bool) -> _Columns:
    for name in names:
        if name and names.count(name) > 1 and (name in _EDGES or name in (*_IMAGES, *_LABELS)):
            raise ValueError(f"header must name each column once, got {shown(name)} twice")
    known = set(names)
    boxes = [(edges, box_of) for edges, box_of in _BOXES if known.issuperset(edges)]
    if {"x0", "y0", "x1", "y1", "x2", "y2"} <= known:
        raise ValueError("header must name two corners, got x0, x1 and x2")
    if not boxes and (found := [name for name in names if name in _EDGES]):
        raise ValueError(
            f"header must be {_FORMS}; the columns {', '.join(map(shown, found))} are no whole box"
        )
    if detections and not boxes:
        raise ValueError(f"header must be {_DETECTIONS}; it names no box")
    edges, box_of = boxes[0] if boxes else ((), _corners)
    sizes = [pair for pair in _SIZES if known.issuperset(pair) and not set(pair) & set(edges)]
    size = sizes[0] if sizes else ()
    image = next(name for name in _IMAGES if name in known)
    label = next((name for name in _LABELS if name in known), None)
    score = next((name for name in _SCORES if name in known), None) if detections else None
    # Its header is spelled ImageID,LabelName: image_id,label_name is anybody's.
    open_images = {"imageid", "labelname"} <= {cell.strip("'\"").lower() for cell in cells}
    open_images &= (image, label) == ("imageid", "labelname")
    confidence = "confidence" if open_images and "confidence" in known and not score else None
    group = "isgroupof" if open_images and "isgroupof" in known else None
    used = {image, label, *edges, *size, confidence, score, group}
    return _Columns(
        n_cells=len(names),
        image=names.index(image),
        label=names.index(label) if label else None,
        edges=tuple(map(names.index, edges)),
        box_of=box_of,
        size=tuple(map(names.index, size)),
        relative=open_images,
        confidence=names.index(confidence) if confidence else None,
        score=names.index(score) if score else None,
        group=names.index(group) if group else None,
        unused=tuple(
            cell for name, cell in zip(names, cells, strict=True) if name and name not in used
        ),
    )


def _row(
    source: str,
    cells: list[str],
    columns: _Columns,
    separator: str,
    notices: Notices,
    detections: bool,
) -> TableRow | None:
    cells = [cell.strip() for cell in cells]
    if not any(cells):
        return None
    if len(cells) < columns.n_cells or any(cells[columns.n_cells :]):
        raise ValueError(f"expected {columns.n_cells} cells, got {len(cells)}")
    image = cells[columns.image]
    label = "" if columns.label is None else cells[columns.label]
    if not image:
        raise ValueError("the column image is empty")
    if "\0" in image or "\0" in label:
        raise ValueError("a cell contains a NUL")
    edges = [cells[column] for column in columns.edges]
    box = columns.box_of(*_numbers(edges, separator)) if any(edges) else None
    if box and not label and not detections:
        raise ValueError("a box needs a label")
    score = 1.0 if columns.score is None else _score(cells[columns.score], separator)
    sides = [cells[column] for column in columns.size] or ["", ""]
    width, height = _with_points(sides, separator)
    if columns.confidence is not None and _is_zero(cells[columns.confidence]):
        notices.add(
            "labels verified as absent, left out",
            f"{source}: confidence 0: {shown(label)} is not in the picture; the label is left out",
        )
        label, box = "", None
    return TableRow(
        source,
        image,
        plain_name(label, source, notices),
        box,
        parse_size(height, width),
        columns.group is not None and _is_group(cells[columns.group]),
        score,
    )


def _score(cell: str, separator: str) -> float:
    if not cell:
        return 1.0
    try:
        return parse_score(*_with_points([cell], separator))
    except ValueError as error:
        raise ValueError(f"score {error}") from None


def _is_zero(cell: str) -> bool:
    try:
        return float(cell) == 0
    except ValueError:
        return False


def _is_group(cell: str) -> bool:
    return cell != "-1" and parse_flag(cell, "IsGroupOf")  # -1: Open Images does not know


def _with_points(numbers: list[str], separator: str) -> list[str]:
    """Numbers with decimal points: spreadsheets that separate by ";" write decimal commas."""
    if separator != ";":
        return numbers
    return [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", number) for number in numbers]


def _numbers(edges: list[str], separator: str) -> Box:
    try:
        x0, y0, x1, y1 = map(float, _with_points(edges, separator))
    except ValueError as error:
        raise ValueError(f"a box must be four numbers or empty, got {','.join(edges)}") from error
    return x0, y0, x1, y1
