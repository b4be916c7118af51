"""The COCO layout (Lin et al., ECCV 2014): a folder of pictures and one JSON file of instances."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regionhash.data.boxes import (
    LabelledBox,
    PictureLabels,
    Size,
    make_targets,
    parse_flag,
    parse_size,
    plain_name,
)
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages
from regionhash.data.listed import ListedPictures
from regionhash.data.notices import Notices
from regionhash.files.strict_json import read_json
from regionhash.files.text import is_text, shown
from regionhash.structures import Box

_MOST_BITS = 60  # of a run in a compressed mask; a picture has fewer pixels


def read_coco(
    images_dir: str | Path, annotations_json: str | Path, *, relative: bool = False
) -> ImageSet:
    """All pictures of an instances file, with or without objects; ids are file names.

    Classes are the file's categories in the order of their ids, which need not be contiguous and
    may be text. Categories of one name are one class. A category that no object has, that has no
    supercategory itself and that is the supercategory of others, as Roboflow writes it, is left
    out. Boxes (x, y, width, height) become xyxy, see `make_targets`; an object without a box has
    that of its polygons or mask. Crowd regions are marked difficult. A file without annotations
    only lists pictures.

    Args:
        images_dir: the folder of the pictures.
        annotations_json: the file.
        relative: whether boxes and polygons are fractions of the picture's width and height.

    Raises:
        ValueError: the folder or the file is missing, is not JSON or lacks a field; an object names
            an unknown category; or different categories or pictures have the same id.
    """
    images_dir, path = Path(images_dir), Path(annotations_json)
    if not images_dir.is_dir():
        raise ValueError(f"{images_dir} is missing: it must be the folder of the COCO pictures")
    content = read_json(path, "the instances file")
    notices = Notices()

    categories = records_of(path, content, "categories", ("name",), notices)
    images = records_of(path, content, "images", ("file_name",), notices)
    pictures = ListedPictures(images_dir, notices)
    picture_of: dict[int | str, str] = {}
    sizes: dict[str, Size] = {}
    source_of: dict[str, str] = {}
    first_of: dict[str, str] = {}
    for index, image in images.items():
        source = f"{path}: images[{index}]"
        image_id = pictures.add(image["file_name"], source)
        picture_of[image["id"]] = image_id
        if image["file_name"] in first_of:
            notices.add(
                "pictures that are listed twice, taken once",
                f"{source}: {shown(image['file_name'])} is also that of "
                f"{first_of[image['file_name']]}; taken once, with the objects of both",
            )
        first_of.setdefault(image["file_name"], f"images[{index}]")
        source_of.setdefault(image_id, source)
        try:
            size = parse_size(image.get("height"), image.get("width"))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        if size:
            sizes.setdefault(image_id, size)

    annotations = annotations_of(path, content, notices)
    used = {item["category_id"] for item in annotations.values()}
    classes, indices = classes_of(path, categories, used, notices)
    objects: dict[str, list[LabelledBox]] = defaultdict(list)
    for index, item in annotations.items():
        source = f"{path}: annotations[{index}]"
        if item["category_id"] not in indices:
            raise ValueError(f"{source}: unknown category_id {shown(item['category_id'])}")
        try:
            crowd, box = parse_flag(item.get("iscrowd"), "iscrowd"), box_of(item)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        if item["image_id"] in picture_of:
            labelled = LabelledBox(source, indices[item["category_id"]], box, crowd)
            objects[picture_of[item["image_id"]]].append(labelled)
        else:
            notices.add(
                "objects of pictures that are not listed, left out",
                f"{source}: no picture has the id {shown(item['image_id'])}; left out",
            )
    targets = make_targets(
        str(path),
        [
            PictureLabels(own, objects[image_id], (), sizes.get(image_id), source_of[image_id])
            for image_id, own in pictures.paths.items()
        ],
        notices,
        relative=relative,
        ask="name the set coco:IMAGES_DIR:ANNOTATIONS.json:relative (in Python, relative=True)",
    )
    files = FileImages(list(pictures.paths.values()))
    return ImageSet(path.stem, classes, tuple(pictures.paths), files, targets, notices)


def records_of(
    path: Path, content: object, name: str, names: Iterable[str], notices: Notices
) -> dict[int, dict[str, Any]]:
    """The records of the list `name` by their places, with the fields `names`, of different ids."""
    found: dict[int, dict[str, Any]] = {}
    place_of: dict[str | int, int] = {}
    for index, record in enumerate(_list(path, content, name)):
        source = f"{path}: {name}[{index}]"
        record = record if isinstance(record, dict) else {}
        own = {**record, "id": id_of(source, record, "id")}
        for field in names:
            value = record.get(field)
            if not isinstance(value, str):
                raise ValueError(f"{source} needs {field!r} (str), got {shown(value)}")
            if not value.strip() or not is_text(value):
                raise ValueError(f"{source}: {field!r} is not a name: {shown(value)}")
        first = place_of.setdefault(own["id"], index)
        if first == index:
            found[index] = own
            continue
        (field,) = names
        if found[first] != own:
            raise ValueError(
                f"{path}: two of {name!r} have the id {shown(own['id'])}: "
                f"{shown(found[first][field])} and {shown(own[field])}"
            )
        notices.add(
            f"records that occur twice in {name!r}, taken once",
            f"{source}: the same as {name}[{first}]; taken once",
        )
    return found


def annotations_of(path: Path, content: Any, notices: Notices) -> dict[int, dict[str, Any]]:
    """The records of the list "annotations" by their places, with the ids of picture and class."""
    if content.get("annotations") is None:
        notices.add("files without annotations", f"{path}: no list 'annotations'; no objects")
        return {}
    found: dict[int, dict[str, Any]] = {}
    place_of: dict[int | str, int] = {}
    for index, record in enumerate(_list(path, content, "annotations")):
        source = f"{path}: annotations[{index}]"
        record = record if isinstance(record, dict) else {}
        ids = {field: id_of(source, record, field) for field in ("image_id", "category_id")}
        own = record | ids
        # Merged files often number the objects of each from 1: only the same record is taken once.
        if isinstance(own.get("id"), int | str):
            first = place_of.setdefault(own["id"], index)
            if first != index and found[first] == own:
                notices.add(
                    "records that occur twice in 'annotations', taken once",
                    f"{source}: the same as annotations[{first}]; taken once",
                )
                continue
        found[index] = own
    return found


def _list(path: Path, content: object, name: str) -> list[Any]:
    records = content.get(name) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: no list {name!r}; an instances file has images, annotations and categories"
        )
    return records


def id_of(source: str, record: dict[str, Any], field: str) -> int | str:
    """An id by value: 7, 7.0 and "7" are the same."""
    value = record.get(field)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value:
        text = value.strip()
        if text.isascii() and text.isdecimal() and len(text) < 20 and str(int(text)) == text:
            return int(text)
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{source} needs {field!r} (int), got {shown(value)}")
    return value


def classes_of(
    path: Path,
    categories: dict[int, dict[str, Any]],
    used: set[int | str],
    notices: Notices,
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """The names of the classes, and the class of each category's id."""
    ordered = sorted(
        categories.items(), key=lambda item: (isinstance(item[1]["id"], str), item[1]["id"])
    )
    above = {
        category["supercategory"]
        for category in categories.values()
        if isinstance(category.get("supercategory"), str)
        and category["supercategory"] != category["name"]
    }
    classes: dict[str, int] = {}
    indices: dict[int | str, int] = {}
    for index, category in ordered:
        source = f"{path}: categories[{index}]"
        is_root = category.get("supercategory") in (None, "", "none")
        if is_root and category["name"] in above and category["id"] not in used:
            notices.add(
                "categories above others that no object has, left out",
                f"{source}: {shown(category['name'])} is the supercategory of others and no object "
                "has it; left out",
            )
            continue
        name = plain_name(category["name"], source, notices)
        if name in classes:
            notices.add(
                "categories of the same name, taken as one class",
                f"{source}: {shown(name)} occurs more than once; taken as one class",
            )
        indices[category["id"]] = classes.setdefault(name, len(classes))
    return tuple(classes), indices


# -- boxes ----------------------------------------------------------------------------------------


def box_of(item: dict[str, Any]) -> Box:
    """The box of an object, from its polygons or its mask if it has none."""
    bbox, segmentation = item.get("bbox"), item.get("segmentation")
    if bbox in (None, []) and segmentation:
        return _mask_box(segmentation) if isinstance(segmentation, dict) else _outline(segmentation)
    if not isinstance(bbox, list):
        raise ValueError(f"needs 'bbox' (list) or 'segmentation', got {shown(bbox)}")
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"bbox must be [x, y, width, height], got {shown(bbox)}") from error
    return x, y, x + width, y + height


def _outline(polygons: object) -> Box:
    """The box around polygons [[x, y, x, y, ...], ...]."""
    xs: list[float] = []
    ys: list[float] = []
    try:
        if not isinstance(polygons, list):
            raise ValueError
        for polygon in polygons:
            values = [*map(float, polygon)]
            if len(values) % 2 or len(values) < 6:
                raise ValueError
            xs += values[::2]
            ys += values[1::2]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"segmentation must be polygons [[x, y, x, y, x, y, ...], ...] or a mask, "
            f"got {shown(polygons)}"
        ) from error
    if not all(map(math.isfinite, (*xs, *ys))):
        raise ValueError("segmentation must be finite")
    return min(xs), min(ys), max(xs), max(ys)


def _mask_box(mask: dict[str, Any]) -> Box:
    """The box around a mask {"size": [height, width], "counts": ...}, as pycocotools gives it.

    The counts are lengths of runs of pixels outside and inside in turn, column by column.
    """
    counts, size = mask.get("counts"), mask.get("size")
    size = size if isinstance(size, list) and len(size) == 2 else [None, None]
    frame = parse_size(*size)
    if frame is None:
        raise ValueError(f"a mask needs 'size' [height, width], got {shown(mask.get('size'))}")
    height, width = frame
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError(f"a mask needs 'counts' of pixels, got {shown(counts)}")
    if sum(runs) > height * width:
        raise ValueError(f"the mask has more than the {height} x {width} pixels of its size")
    lowest, highest, columns = height, -1, []
    end = 0
    for number, run in enumerate(runs):
        start, end = end, end + run
        if number % 2 and run:
            (first, top), (last, bottom) = divmod(start, height), divmod(end - 1, height)
            columns += [first, last]
            lowest = min(lowest, top if first == last else 0)
            highest = max(highest, bottom if first == last else height - 1)
    if not columns:
        return 0.0, 0.0, 0.0, 0.0  # without area: left out
    return float(min(columns)), float(lowest), float(max(columns) + 1), float(highest + 1)


def _decompressed(counts: str) -> list[int]:
    """Runs in pycocotools' text: 5 bits a character, from the third on less the one before last."""
    runs: list[int] = []
    position = 0
    while position < len(counts):
        value = shift = 0
        more = True
        while more:
            char = ord(counts[position]) - 48 if position < len(counts) else -1
            if not 0 <= char < 64 or shift > _MOST_BITS:
                raise ValueError("a mask needs 'counts' of pixels; its text is broken")
            value |= (char & 31) << shift
            shift += 5
            more = bool(char & 32)
            position += 1
            if not more and char & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
