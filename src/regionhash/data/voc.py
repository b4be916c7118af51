"""The PASCAL VOC layout (Everingham et al., IJCV 2010): one XML file of objects per picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from regionhash.data.boxes import LabelledBox, make_target
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages
from regionhash.data.notices import Notices
from regionhash.data.xmlfile import read_xml
from regionhash.files.text import one_line, read_text, refusing, shown
from regionhash.structures import Target

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def read_voc(
    root: str | Path,
    split: str,
    *,
    year: int | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """The pictures of one split with their objects, the difficult ones marked.

    VOC counts pixels from 1 and its boxes include the last one: (xmin, ymin, xmax, ymax) becomes
    the box (xmin - 1, ymin - 1, xmax, ymax), clipped to the size given in the XML file. Objects
    without remaining area are left out with a notice.

    Args:
        root: the folder with `JPEGImages`, `Annotations` and `ImageSets`; with `year`, the
            `VOCdevkit` folder above it.
        split: the name of a list in `ImageSets/Main`, such as "train". Only the first word of
            each line is read, so a list for one class ("dog_train") gives pictures of all classes.
        year: selects `VOC<year>` in `root`.
        classes: names in order, for other data in this layout; the 20 VOC classes if None.

    Raises:
        ValueError: the split or an XML file is missing or broken, or a class is unknown.
    """
    folder = Path(root) if year is None else Path(root) / f"VOC{year}"
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    for path in (folder / "JPEGImages", folder / "Annotations", listing):
        if not path.exists():
            raise ValueError(
                f"{path} is missing: {folder} must be a VOC folder with JPEGImages/<id>.jpg, "
                f"Annotations/<id>.xml and ImageSets/Main/{split}.txt (one id a line)"
            )
    ids = _listed(listing)
    names = tuple(VOC_CLASSES if classes is None else classes)
    indices = {name: index for index, name in enumerate(names)}
    notices = Notices()
    return ImageSet(
        name=f"{folder.name}:{split}",
        classes=names,
        ids=ids,
        images=FileImages([folder / "JPEGImages" / f"{image_id}.jpg" for image_id in ids]),
        targets=tuple(
            _read_annotation(folder / "Annotations" / f"{image_id}.xml", indices, listing, notices)
            for image_id in ids
        ),
        notices=notices,
    )


def _listed(path: Path) -> tuple[str, ...]:
    """The ids of a list."""
    rows: dict[str, int] = {}
    for row, line in enumerate(read_text(path, "the list").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if "\0" in words[0]:
            raise ValueError(
                f"{path}, line {row}: an id must not contain NUL, got {shown(words[0])}"
            )
        first = rows.setdefault(words[0], row)
        if first != row:
            raise ValueError(f"{path}, line {row}: {shown(words[0])} is already in line {first}")
    if not rows:
        raise ValueError(f"{path} lists no picture")
    return tuple(rows)


def _read_annotation(
    path: Path, indices: dict[str, int], listing: Path, notices: Notices
) -> Target:
    try:
        root = read_xml(path)
    except ValueError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise
        trouble = f"{path} is missing" if isinstance(cause, FileNotFoundError) else str(error)
        message = f"{listing}: each picture needs an XML file, but {trouble}"
        raise ValueError(one_line(message)) from error
    with refusing(str(path)):
        size = (int(_text(root, "size/height")), int(_text(root, "size/width")))
        if min(size) < 1:
            raise ValueError(f"height and width must be positive, got {size}")
        objects = [_read_object(path, item, indices) for item in root.iterfind("object")]
    return make_target(objects, size, notices)


def _read_object(path: Path, item: Element, indices: dict[str, int]) -> LabelledBox:
    name = _text(item, "name")
    if name not in indices:
        raise ValueError(f"unknown class {shown(name)}; known are {', '.join(indices)}")
    # Edges are inclusive and counted from 1, so the last ones are exclusive when counted from 0.
    xmin, ymin, xmax, ymax = (
        float(_text(item, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return LabelledBox(str(path), indices[name], (xmin - 1, ymin - 1, xmax, ymax), difficult)


def _text(element: Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"<{element.tag}> lacks <{path}>")
    return text
