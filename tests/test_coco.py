import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionhash.data.coco import read_coco
from reporters import told

DATA = Path(os.environ.get("REGIONHASH_DATA", Path(__file__).parents[2] / "shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs in {DATA}")


@pytest.fixture
def content():
    """Two pictures of 8 x 10 pixels, the first with two objects; category ids with gaps."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": 8, "width": 10},
            {"id": 3, "file_name": "a.png", "height": 8, "width": 10},
        ],
        "categories": [{"id": 100, "name": "toothbrush"}, {"id": 20, "name": "person"}],
        "annotations": [
            {"image_id": 7, "category_id": 100, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
            {"image_id": 7, "category_id": 20, "bbox": [0, 0, 10, 8], "iscrowd": 1},
        ],
    }


def read(tmp_path: Path, content: object):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return read_coco(tmp_path, path)


def test_objects_and_pictures_are_read(tmp_path, content):
    Image.new("RGB", (10, 8)).save(tmp_path / "b.png")
    image_set = read(tmp_path, content)
    assert image_set.name == "instances"
    assert image_set.ids == ("b.png", "a.png")
    assert image_set.classes == ("person", "toothbrush")
    assert image_set.images[0].shape == (8, 10, 3)
    target, none = image_set.targets
    assert target.boxes.tolist() == [[1.5, 2, 4.5, 6], [0, 0, 10, 8]]
    assert target.labels.tolist() == [1, 0]
    assert target.difficult.tolist() == [False, True]
    assert none.boxes.shape == (0, 4)


def test_boxes_are_clipped_and_empty_ones_left_out_and_reported(tmp_path, content):
    content["annotations"][0]["bbox"] = [-1, 6, 4, 9]
    content["annotations"][1]["bbox"] = [3, 3, 0, 2]
    image_set = read(tmp_path, content)
    assert image_set.targets[0].boxes.tolist() == [[0, 6, 3, 8]]
    (line,) = told(image_set.notices)
    assert "instances.json: annotations[1]" in line
    assert image_set.notices.counts == {"boxes without area, left out": 1}


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("annotations", {"image_id": 8}, r"annotations\[0\]: unknown image_id 8"),
        ("annotations", {"category_id": 2}, r"annotations\[0\]: unknown category_id 2"),
        ("annotations", {"bbox": [1, 2, 3]}, r"bbox must be \[x, y, width, height\]"),
        ("annotations", {"bbox": [1, 2, 3, "w"]}, "bbox must be"),
        ("annotations", {"bbox": [1, 2, 3, None]}, "bbox must be"),
        ("annotations", {"bbox": [1, 2, 3, float("inf")]}, "box must be finite"),
        ("annotations", {"bbox": None}, r"annotations\[0\] needs 'bbox' \(list\), got None"),
        ("images", {"file_name": None}, r"images\[0\] needs 'file_name' \(str\)"),
        ("images", {"height": "8"}, r"images\[0\] needs 'height' \(int\), got '8'"),
        ("categories", {"id": None}, r"categories\[0\] needs 'id'"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(tmp_path, content, part, changes, reason):
    content[part][0] |= changes
    with pytest.raises(ValueError, match=rf"instances\.json: .*{reason}"):
        read(tmp_path, content)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_missing_list_is_an_error_that_names_it(tmp_path, content, part):
    del content[part]
    with pytest.raises(ValueError, match=rf"instances\.json: no list '{part}'"):
        read(tmp_path, content)
    with pytest.raises(ValueError, match="no list 'categories'"):
        read(tmp_path, [content])


def test_a_missing_or_broken_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: cannot read .*No such file"):
        read_coco(tmp_path, tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cut\.json: broken JSON"):
        read_coco(tmp_path, tmp_path / "cut.json")
    with pytest.raises(ValueError, match="pictures is missing: it must be the folder"):
        read_coco(tmp_path / "pictures", tmp_path / "cut.json")


@pytest.mark.data
@needs_data
def test_the_photographs_of_coco_are_read():
    image_set = read_coco(
        DATA / "coco/train2017", DATA / "coco/annotations/instances_train2017.json"
    )
    assert len(image_set) == 128
    assert len(image_set.classes) == 80
    assert image_set.classes[0] == "person"
    assert image_set.classes[-1] == "toothbrush"
    assert sum(len(target.boxes) for target in image_set.targets) == 929
    for n in range(0, 128, 20):
        height, width, _ = image_set.images[n].shape
        assert (image_set.targets[n].boxes <= np.array([width, height] * 2)).all()
