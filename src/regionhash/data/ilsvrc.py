"""The layout of the ILSVRC 2013 detection set: pictures and VOC's XML in two parallel trees."""

from __future__ import annotations

import os
from pathlib import Path

from regionhash.data.boxes import LabelledBox, PictureLabels, make_targets, parse_size, plain_name
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, find_images
from regionhash.data.listed import ids_of_files
from regionhash.data.notices import Notices
from regionhash.data.xmlfile import read_xml
from regionhash.files.text import refusing
from regionhash.structures import Box


def read_ilsvrc(root: str | Path, split: str) -> ImageSet:
    """The pictures of a split with their objects; ids are paths below the split, without suffix.

    Pictures are below `ILSVRC2013_DET_<split>`, annotations below `ILSVRC2013_DET_bbox_<split>` at
    the same paths, ending in .xml. A picture without an annotation has no objects (the split train
    has some). Classes are the synsets that occur, in alphabetical order. Coordinates count from 0;
    both edges are inside the object. For the boxes see `make_targets`. If the pictures end in
    several suffixes, ids have them.

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
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    files = [annotations / f"{stem}.xml" for stem in stems]
    found = [_read_objects(file, notices) for file in files]
    classes = tuple(sorted({item[0] for objects, _ in found for item in objects}))
    if not classes:
        raise ValueError(f"{annotations}: no picture of {pictures} has an object")
    indices = {name: index for index, name in enumerate(classes)}
    targets = make_targets(
        str(annotations),
        [
            PictureLabels(
                path,
                [LabelledBox(str(file), indices[synset], box) for synset, box in objects],
                noted_size=size,
                source=str(file),
            )
            for path, file, (objects, size) in zip(paths, files, found, strict=True)
        ],
        notices,
        last=1,
    )
    ids = ids_of_files(stems, list(paths))
    return ImageSet(f"ILSVRC2013:{split}", classes, ids, FileImages(paths), targets, notices)


_Objects = list[tuple[str, Box]]


def _read_objects(path: Path, notices: Notices) -> tuple[_Objects, tuple[int, int] | None]:
    """Synset and box of each object of a picture, and the noted height and width."""
    if not os.path.lexists(path):
        return [], None
    root = read_xml(path)
    with refusing(f"{path}: broken annotation"):
        if root.tag != "annotation":
            raise ValueError(f"must be <annotation>, got <{root.tag}>")
        size = parse_size(root.findtext("size/height"), root.findtext("size/width"))
        objects: _Objects = []
        for item in root.iterfind("object"):
            x0, y0, x1, y1 = (
                float(item.findtext(f"bndbox/{edge}", ""))
                for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            name = plain_name(item.findtext("name") or "", str(path), notices)
            if not name:
                raise ValueError("an object has no name")
            objects.append((name, (x0, y0, x1, y1)))
    return objects, size
