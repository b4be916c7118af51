"""The COCO layout (Lin et al., ECCV 2014): a folder of pictures and one JSON file of instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regionhash.data.boxes import LabelledBox, make_target
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages
from regionhash.data.notices import Notices
from regionhash.files.strict_json import read_json
from regionhash.files.text import shown


def read_coco(images_dir: str | Path, annotations_json: str | Path) -> ImageSet:
    """All pictures of an instances file, with or without objects; ids are file names.

    Classes are the file's categories in the order of their ids, which need not be contiguous.
    Boxes (x, y, width, height) become xyxy, clipped to the picture; crowd regions are marked
    difficult. Objects without remaining area are left out with a notice.

    Raises:
        ValueError: the folder or the file is missing, is not JSON or lacks a field; an object names
            an unknown category or picture; or two categories or pictures have the same id.
    """
    images_dir, path = Path(images_dir), Path(annotations_json)
    if not images_dir.is_dir():
        raise ValueError(f"{images_dir} is missing: it must be the folder of the COCO pictures")
    content = read_json(path, "the instances file")

    categories = sorted(_records(path, content, "categories", {"id": int, "name": str}), key=_id)
    indices = {category["id"]: index for index, category in enumerate(categories)}
    fields = {"id": int, "file_name": str, "height": int, "width": int}
    images = _records(path, content, "images", fields)
    _check_unique(path, categories, "categories", "id")
    for field in ("id", "file_name"):
        _check_unique(path, images, "images", field)
    for index, image in enumerate(images):
        for field in ("height", "width"):
            if image[field] < 1:
                got = shown(image[field])
                raise ValueError(f"{path}: images[{index}] needs a positive {field!r}, got {got}")
    objects: dict[int, list[LabelledBox]] = {image["id"]: [] for image in images}
    fields = {"image_id": int, "category_id": int, "bbox": list}
    for index, item in enumerate(_records(path, content, "annotations", fields)):
        source = f"{path}: annotations[{index}]"
        if item["image_id"] not in objects:
            raise ValueError(f"{source}: unknown image_id {shown(item['image_id'])}")
        if item["category_id"] not in indices:
            raise ValueError(f"{source}: unknown category_id {shown(item['category_id'])}")
        try:
            x, y, width, height = map(float, item["bbox"])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{source}: bbox must be [x, y, width, height], got {shown(item['bbox'])}"
            ) from error
        crowd = item.get("iscrowd")
        if crowd not in (None, 0, 1):
            raise ValueError(f"{source}: iscrowd must be 0 or 1, got {shown(crowd)}")
        objects[item["image_id"]].append(
            LabelledBox(
                source,
                indices[item["category_id"]],
                (x, y, x + width, y + height),
                difficult=bool(crowd),
            )
        )
    notices = Notices()
    return ImageSet(
        name=path.stem,
        classes=tuple(category["name"] for category in categories),
        ids=tuple(image["file_name"] for image in images),
        images=FileImages([images_dir / image["file_name"] for image in images]),
        targets=tuple(
            make_target(objects[image["id"]], (image["height"], image["width"]), notices)
            for image in images
        ),
        notices=notices,
    )


def _id(record: dict[str, Any]) -> int:
    return int(record["id"])


def _records(
    path: Path, content: object, name: str, fields: dict[str, type]
) -> list[dict[str, Any]]:
    """The list `name` of the file, each record checked to have `fields` of the given types."""
    records = content.get(name) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: no list {name!r}; an instances file has images, annotations and categories"
        )
    for index, record in enumerate(records):
        for field, kind in fields.items():
            value = record.get(field) if isinstance(record, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                got = shown(value)
                raise ValueError(
                    f"{path}: {name}[{index}] needs {field!r} ({kind.__name__}), got {got}"
                )
            if isinstance(value, str) and not _is_text(value):
                raise ValueError(
                    f"{path}: {name}[{index}]: {field!r} is not a name: {shown(value)}"
                )
    return records


def _is_text(value: str) -> bool:
    """Whether it can name a file or a class: valid Unicode without NUL, not empty."""
    return bool(value) and not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value)


def _check_unique(path: Path, records: list[dict[str, Any]], name: str, field: str) -> None:
    seen = set()
    for record in records:
        if record[field] in seen:
            raise ValueError(f"{path}: two of {name!r} have the {field} {shown(record[field])}")
        seen.add(record[field])
