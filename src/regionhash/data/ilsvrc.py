"""The layout of the ILSVRC 2013 detection set: pictures and VOC's XML in two parallel trees."""

from __future__ import annotations

import os
from pathlib import Path

from regionhash.data.boxes import LabelledBox, make_target
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, find_images
from regionhash.data.notices import Notices
from regionhash.data.xmlfile import read_xml
from regionhash.files.text import refusing
from regionhash.structures import Box, Target


def read_ilsvrc(root: str | Path, split: str) -> ImageSet:
    """The pictures of a split with their objects; ids are paths below the split, without suffix.

    Pictures are below `ILSVRC2013_DET_<split>`, annotations below `ILSVRC2013_DET_bbox_<split>` at
    the same paths, ending in .xml. A picture without an annotation has no objects (the split train
    has some). Classes are the synsets that occur, in alphabetical order. Coordinates count from 0;
    both edges are inside the object.

    Raises:
        ValueError: a folder is missing or holds no picture, no picture has an object, or an
            annotation is broken.
    """
    pictures = Path(root) / f"ILSVRC2013_DET_{split}"
    annotations = Path(root) / f"ILSVRC2013_DET_bbox_{split}"
    for folder in (pictures, annotations):
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is missing: {root} must hold ILSVRC2013_DET_{split} with pictures and "
                f"ILSVRC2013_DET_bbox_{split} with an XML file of the same name for each"
            )
    notices = Notices()
    names, paths = zip(*find_images([pictures], notices), strict=True)
    files = [annotations / Path(name).with_suffix(".xml") for name in names]
    found = [_read_objects(file) for file in files]
    classes = tuple(sorted({item[0] for objects, _ in found for item in objects}))
    if not classes:
        raise ValueError(f"{annotations}: no picture of {pictures} has an object")
    targets = [
        make_target(
            [LabelledBox(str(file), classes.index(synset), box) for synset, box in objects],
            size,
            notices,
        )
        if objects
        else Target.empty()
        for file, (objects, size) in zip(files, found, strict=True)
    ]
    ids = tuple(Path(name).with_suffix("").as_posix() for name in names)
    return ImageSet(f"ILSVRC2013:{split}", classes, ids, FileImages(paths), tuple(targets), notices)


_Objects = list[tuple[str, Box]]


def _read_objects(path: Path) -> tuple[_Objects, tuple[int, int] | None]:
    """Synset and box of each object of a picture, and the picture's height and width."""
    if not os.path.lexists(path):
        return [], None
    root = read_xml(path)
    with refusing(f"{path}: broken annotation"):
        size = int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
        if min(size) < 1:
            raise ValueError(f"height and width must be positive, got {size}")
        objects: _Objects = []
        for item in root.iterfind("object"):
            x0, y0, x1, y1 = (
                float(item.findtext(f"bndbox/{edge}", ""))
                for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            name = (item.findtext("name") or "").strip()
            if not name:
                raise ValueError("an object has no name")
            objects.append((name, (x0, y0, x1 + 1, y1 + 1)))
    return objects, size
