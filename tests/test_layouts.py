"""The same objects, written as every layout has them, are read as the same boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regionhash.data import open_dataset

SIZES = {"a": (40, 60), "b": (33, 21)}  # (height, width)
CLASSES = ["cat", "dog"]


def edges(size):
    return st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(sorted)


def objects_of(size):
    """(class, x0, y0, x1, y1), whole pixels, the last edges exclusive; no object twice."""
    height, width = size
    return st.lists(
        st.tuples(st.sampled_from(CLASSES), edges(width), edges(height)).map(
            lambda drawn: (drawn[0], drawn[1][0], drawn[2][0], drawn[1][1], drawn[2][1])
        ),
        unique=True,
        max_size=4,
    )


def write_voc(root, pictures):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / "voc" / name).mkdir(parents=True)
    for name, objects in pictures.items():
        Image.new("RGB", SIZES[name][::-1]).save(root / f"voc/JPEGImages/{name}.jpg")
        text = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, x0, y0, x1, y1 in objects
        )
        height, width = SIZES[name]
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        path = root / f"voc/Annotations/{name}.xml"
        path.write_text(f"<annotation>{size}{text}</annotation>")
    (root / "voc/ImageSets/Main/all.txt").write_text("a\nb\n")
    return f"voc:{root}/voc:all:{','.join(CLASSES)}"


def write_coco(root, pictures, *, relative=False, outline=False):
    annotations = []
    for name, objects in pictures.items():
        height, width = SIZES[name] if relative else (1, 1)
        for label, x0, y0, x1, y1 in objects:
            box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
            shape = {"bbox": box}
            if outline:
                shape = {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            ids = {"image_id": ord(name), "category_id": CLASSES.index(label)}
            annotations.append({"id": len(annotations), **ids, **shape})
    content = {
        "images": [
            {"id": ord(name), "file_name": f"{name}.jpg", "height": h, "width": w}
            for name, (h, w) in SIZES.items()
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
        "annotations": annotations,
    }
    (root / "coco.json").write_text(json.dumps(content))
    return f"coco:{root}/JPEGImages:{root}/coco.json" + ":relative" * relative


def write_csv(root, pictures, *, relative=False):
    rows = ["image,label,x0,y0,x1,y1"]
    for name, objects in pictures.items():
        height, width = SIZES[name] if relative else (1, 1)
        rows += [
            f"{name}.jpg,{label},{x0 / width},{y0 / height},{x1 / width},{y1 / height}"
            for label, x0, y0, x1, y1 in objects
        ] or [f"{name}.jpg,,,,,"]
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{root}/table.csv:{root}/JPEGImages" + ":relative" * relative


def write_yolo(root, pictures):
    for folder in ("images", "labels"):
        (root / "yolo" / folder).mkdir(parents=True)
    for name, objects in pictures.items():
        height, width = SIZES[name]
        Image.new("RGB", (width, height)).save(root / f"yolo/images/{name}.jpg")
        lines = [
            f"{CLASSES.index(label)} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
            f"{(x1 - x0) / width} {(y1 - y0) / height}"
            for label, x0, y0, x1, y1 in objects
        ]
        (root / f"yolo/labels/{name}.txt").write_text("\n".join(lines))
    names = ", ".join(CLASSES)
    (root / "yolo/data.yaml").write_text(f"train: images\nnames: [{names}]\n")
    return f"yolo:{root}/yolo/data.yaml:train"


LAYOUTS = {
    "voc": write_voc,
    "coco": write_coco,
    "coco relative": lambda root, pictures: write_coco(root, pictures, relative=True),
    "coco outlines": lambda root, pictures: write_coco(root, pictures, outline=True),
    "csv": write_csv,
    "csv relative": lambda root, pictures: write_csv(root, pictures, relative=True),
    "yolo": write_yolo,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=st.tuples(*map(objects_of, SIZES.values())))
def test_all_layouts_give_the_same_boxes(tmp_path_factory, layout, drawn):
    root = tmp_path_factory.mktemp("layouts")
    pictures = dict(zip(SIZES, drawn, strict=True))
    (root / "JPEGImages").mkdir()
    for name, (height, width) in SIZES.items():
        Image.new("RGB", (width, height)).save(root / f"JPEGImages/{name}.jpg")
    ones = [item for objects in drawn for item in objects if max(item[1:]) <= 1]
    image_set = open_dataset(LAYOUTS[layout](root, pictures))
    assert [Path(image_id).stem for image_id in image_set.ids] == list(SIZES)
    for target, objects in zip(image_set.targets, pictures.values(), strict=True):
        found = {
            (image_set.classes[label], *map(float, np.round(box, 3)))
            for label, box in zip(target.labels, target.boxes, strict=True)
        }
        assert found == {(item[0], *map(float, item[1:])) for item in objects}
    assert bool(image_set.notices.counts) <= bool(
        ones
    )  # a box of the first pixel may be a fraction
