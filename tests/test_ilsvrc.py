import numpy as np
import pytest
from PIL import Image

from regionhash.data import open_dataset

OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><xmax>{}</xmax><ymin>{}</ymin><ymax>{}</ymax>"
    "</bndbox></object>"
)


def _write(root, name, *objects):
    picture = root / "ILSVRC2013_DET_train" / f"{name}.JPEG"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(picture)
    annotation = root / "ILSVRC2013_DET_bbox_train" / f"{name}.xml"
    annotation.parent.mkdir(parents=True, exist_ok=True)
    if objects:
        body = "".join(OBJECT.format(*marked) for marked in objects)
        size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
        annotation.write_text(f"<annotation>{size}{body}</annotation>")
    return annotation


def test_pictures_and_annotations_lie_in_parallel_trees(tmp_path):
    _write(tmp_path, "n02/n02_1", ("n02", 0, 59, 0, 39), ("n01", 5, 10, 6, 20))
    _write(tmp_path, "extra/e_1")  # no annotation: no object
    image_set = open_dataset(f"ilsvrc:{tmp_path}:train")
    assert image_set.ids == ("extra/e_1", "n02/n02_1")
    assert image_set.classes == ("n01", "n02")
    assert image_set.labels().tolist() == [[0, 0], [1, 1]]
    assert image_set.targets[1].boxes.tolist() == [[0, 0, 60, 40], [5, 6, 11, 21]]
    assert image_set.images[1].shape == (40, 60, 3)


def test_a_missing_tree_and_a_broken_annotation_are_named(tmp_path):
    with pytest.raises(ValueError, match="ILSVRC2013_DET_val is missing"):
        open_dataset(f"ilsvrc:{tmp_path}:val")
    path = _write(tmp_path, "n/1", ("n", 1, 2, 3, 4))
    for text, reason in (("<annotation>", "broken"), ("<html/>", "broken annotation")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"1\.xml: {reason}"):
            open_dataset(f"ilsvrc:{tmp_path}:train")
    path.unlink()
    with pytest.raises(ValueError, match=r"no picture of .* has an object"):
        open_dataset(f"ilsvrc:{tmp_path}:train")
