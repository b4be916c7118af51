"""Data sets: one reader per layout, and the one form in which a command names them."""

from __future__ import annotations

from regionhash.data.coco import read_coco
from regionhash.data.csv_table import read_csv
from regionhash.data.digits import digit_scenes
from regionhash.data.folder import read_folder
from regionhash.data.ilsvrc import read_ilsvrc
from regionhash.data.image_set import ImageSet
from regionhash.data.mirflickr import read_mirflickr
from regionhash.data.sival import read_sival
from regionhash.data.voc import read_voc

DATASETS = {
    "voc:ROOT:SPLIT": "PASCAL VOC layout; ROOT holds JPEGImages, Annotations and ImageSets",
    "coco:IMAGES_DIR:ANNOTATIONS.json": "COCO layout; the JSON file holds the instances",
    "csv:FILE[:IMAGES_DIR]": "a table image,label[,x0,y0,x1,y1] with one row per object",
    "mirflickr:ROOT": "MIRFLICKR-25K; ROOT holds im1.jpg, ... and the folder of annotations",
    "folder:DIR": "all pictures below a folder, without labels",
    "labelled-folder:DIR": "pictures in subfolders, whose names are the labels",
    "sival:DIR": "SIVAL layout: a folder for each of the 25 categories",
    "ilsvrc:ROOT:SPLIT": "ILSVRC 2013 detection layout; ROOT holds ILSVRC2013_DET_bbox_<SPLIT>",
    "digits:SPLIT:N[:SEED]": "N built-in scenes of handwritten digits, train or test; no files",
}
"""What `open_dataset` understands: each form with a line of description."""


def open_dataset(spec: str) -> ImageSet:
    """The image set that `spec` names in one of the forms of `DATASETS`.

    Raises:
        ValueError: `spec` has no such form, or the data is missing or broken.
    """
    layout, _, rest = spec.partition(":")
    match layout, rest.split(":"):
        case "voc", [root, split] if root and split:
            return read_voc(root, split)
        case "coco", [images_dir, annotations] if images_dir and annotations:
            return read_coco(images_dir, annotations)
        case "csv", [path] if path:
            return read_csv(path)
        case "csv", [path, images_dir] if path and images_dir:
            return read_csv(path, images_dir=images_dir)
        case "mirflickr", [root] if root:
            return read_mirflickr(root)
        case "folder", [folder] if folder:
            return read_folder(folder)
        case "labelled-folder", [folder] if folder:
            return read_folder(folder, labelled=True)
        case "sival", [folder] if folder:
            return read_sival(folder)
        case "ilsvrc", [root, split] if root and split:
            return read_ilsvrc(root, split)
        case "digits", [split, n] if n.isdecimal():
            return digit_scenes(split, int(n))
        case "digits", [split, n, seed] if n.isdecimal() and seed.isdecimal():
            return digit_scenes(split, int(n), seed=int(seed))
    forms = "\n".join(f"  {form}  {line}" for form, line in DATASETS.items())
    raise ValueError(f"{spec!r} names no data set; the forms are\n{forms}")
