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
        ("annotations", {"image_id": None}, r"annotations\[0\] needs 'image_id'"),
        ("annotations", {"category_id": 2}, r"annotations\[0\]: unknown category_id 2"),
        ("annotations", {"bbox": [1, 2, 3]}, r"bbox must be \[x, y, width, height\]"),
        ("annotations", {"bbox": [1, 2, 3, "w"]}, "bbox must be"),
        ("annotations", {"bbox": [1, 2, 3, None]}, "bbox must be"),
        ("annotations", {"bbox": [1, 2, 3, float("inf")]}, "box must be finite"),
        ("annotations", {"bbox": None}, r"annotations\[0\]: needs 'bbox' \(list\) or 'segm"),
        ("annotations", {"iscrowd": 2}, "iscrowd must be 0 or 1, got 2"),
        ("annotations", {"iscrowd": "yes"}, "iscrowd must be 0 or 1, got 'yes'"),
        ("images", {"file_name": None}, r"images\[0\] needs 'file_name' \(str\)"),
        ("images", {"height": "eight"}, r"images\[0\]: height must be a whole number, got 'eig"),
        ("images", {"width": -3}, r"images\[0\]: width must be positive, got -3"),
        ("categories", {"id": None}, r"categories\[0\] needs 'id'"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(tmp_path, content, part, changes, reason):
    content[part][0] |= changes
    with pytest.raises(ValueError, match=rf"instances\.json: .*{reason}"):
        read(tmp_path, content)


@pytest.mark.parametrize("part", ["images", "categories"])
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


@pytest.mark.parametrize(
    ("value", "crowd"),
    [
        *((value, False) for value in (0, 0.0, "0", None, False, "false")),
        *((value, True) for value in (1, 1.0, "1", True, "true")),
    ],
)
def test_the_mark_of_a_crowd_is_read_by_value(tmp_path, content, value, crowd):
    content["annotations"][0]["iscrowd"] = value
    assert read(tmp_path, content).targets[0].difficult[0] == crowd


@pytest.mark.parametrize("kind", [int, float, str])
@pytest.mark.parametrize("other", [int, float, str])
def test_ids_are_matched_by_value(tmp_path, content, kind, other):
    for part in ("images", "categories"):
        for record in content[part]:
            record["id"] = kind(record["id"])
    for record in content["annotations"]:
        record["image_id"] = other(record["image_id"])
        record["category_id"] = other(record["category_id"])
    for record in content["annotations"] + content["images"] + content["categories"]:
        for field, value in record.items():
            if isinstance(value, str) and value.endswith(".0"):
                record[field] = value.removesuffix(".0")
    image_set = read(tmp_path, content)
    assert image_set.classes == ("person", "toothbrush")
    assert image_set.targets[0].labels.tolist() == [1, 0]


def test_ids_may_be_any_text(tmp_path, content):
    for record, image_id in zip(content["images"], ("b/1", "007"), strict=True):
        record["id"] = image_id
    for record in content["annotations"]:
        record["image_id"] = "007"
    content["categories"][0]["id"] = content["annotations"][0]["category_id"] = "tooth"
    image_set = read(tmp_path, content)
    assert [len(target.boxes) for target in image_set.targets] == [0, 2]
    assert image_set.classes == ("person", "toothbrush")  # numbers come before text


def test_records_of_one_id_are_refused_unless_they_are_the_same(tmp_path, content):
    for part, names in (("images", "'b.png' and 'c.png'"), ("categories", "'toothbrush' and 'x'")):
        changed = json.loads(json.dumps(content))
        field = "file_name" if part == "images" else "name"
        other = "c.png" if part == "images" else "x"
        changed[part].append(changed[part][0] | {field: other})
        id_ = changed[part][0]["id"]
        with pytest.raises(ValueError, match=f"two of '{part}' have the id {id_}: {names}"):
            read(tmp_path, changed)
        content[part].append(dict(content[part][0]))
    image_set = read(tmp_path, content)
    assert len(image_set) == len(image_set.classes) == 2
    assert image_set.notices.counts == {
        "records that occur twice in 'categories', taken once": 1,
        "records that occur twice in 'images', taken once": 1,
    }


def test_an_object_that_occurs_twice_with_its_id_is_taken_once(tmp_path, content):
    first = content["annotations"][0] | {"id": 7}
    content["annotations"] = [first, first | {"iscrowd": 1}, dict(first)]
    image_set = read(tmp_path, content)  # merged files may give one id to different objects
    assert sorted(map(len, (target.boxes for target in image_set.targets))) == [0, 2]
    assert image_set.notices.counts == {"records that occur twice in 'annotations', taken once": 1}


def test_a_size_beyond_all_numbers_is_refused_with_its_place(tmp_path, content):
    mask = {"size": [10**400, 5], "counts": [1, 10**400]}
    content["annotations"][1] |= {"bbox": None, "segmentation": mask}
    with pytest.raises(ValueError, match=r"annotations\[1\]: height must fit a float32"):
        read(tmp_path, content)
    content["images"][1]["width"] = 10**400  # of a picture that cannot be read
    with pytest.raises(ValueError, match=r"images\[1\]: width must fit a float32, got 1000"):
        read(tmp_path, content)


@pytest.mark.parametrize("name", ["person", " person", "'person'"])
def test_categories_of_one_name_are_one_class(tmp_path, content, name):
    content["categories"].append({"id": 101, "name": name})
    content["annotations"][0]["category_id"] = 101
    image_set = read(tmp_path, content)
    assert image_set.classes == ("person", "toothbrush")
    assert image_set.targets[0].labels.tolist() == [0, 0]
    assert image_set.notices.counts["categories of the same name, taken as one class"] == 1


def test_a_root_category_that_no_object_has_is_left_out_and_told(tmp_path, content):
    content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    for category in content["categories"][1:]:
        category["supercategory"] = "things"
    image_set = read(tmp_path, content)
    assert image_set.classes == ("person", "toothbrush")
    assert "'things' is the supercategory of others" in told(image_set.notices)[0]
    content["annotations"][0]["category_id"] = 0
    assert read(tmp_path, content).classes == ("things", "person", "toothbrush")


@pytest.mark.parametrize("above", [None, "person", "", "x"])
def test_a_category_without_objects_stays_a_class(tmp_path, content, above):
    content["categories"].append({"id": 1, "name": "rare", "supercategory": above})
    content["categories"][1]["supercategory"] = "person"  # its own name
    image_set = read(tmp_path, content)
    assert image_set.classes == ("rare", "person", "toothbrush")
    assert image_set.notices.counts == {}


@pytest.mark.parametrize("size", [{}, {"height": None, "width": None}, {"height": 0, "width": 0}])
def test_a_picture_without_a_size_keeps_its_objects(tmp_path, content, size):
    Image.new("RGB", (10, 8)).save(tmp_path / "b.png")
    for image in content["images"]:
        del image["height"], image["width"]
        image |= size
    content["annotations"][0]["bbox"] = [5, 5, 50, 50]
    image_set = read(tmp_path, content)
    assert image_set.targets[0].boxes.tolist() == [[5, 5, 10, 8], [0, 0, 10, 8]]
    assert image_set.notices.counts == {}


def test_objects_of_pictures_that_are_not_listed_are_left_out_and_told(tmp_path, content):
    content["annotations"][0]["image_id"] = 8
    image_set = read(tmp_path, content)
    assert image_set.targets[0].labels.tolist() == [0]
    assert "annotations[0]: no picture has the id 8" in told(image_set.notices)[0]


@pytest.mark.parametrize("nothing", ["drop", None, []])
def test_a_file_without_annotations_lists_pictures(tmp_path, content, nothing):
    content["annotations"] = nothing
    if nothing == "drop":
        del content["annotations"]
    image_set = read(tmp_path, content)
    assert (len(image_set), len(image_set.classes)) == (2, 2)
    assert image_set.notices.counts == ({} if nothing == [] else {"files without annotations": 1})


# The mask of 8 x 10 pixels that covers rows 2 to 4 of columns 3 to 6: by hand, 26 pixels come
# before it, column by column, then 3 inside and 5 outside in turn.
RUNS = [26, 3, 5, 3, 5, 3, 5, 3, 27]


def compressed(runs):
    """As pycocotools' rleToString, written after its source."""
    text = ""
    for n, run in enumerate(runs):
        x = run - (runs[n - 2] if n > 2 else 0)
        more = True
        while more:
            low = x & 31
            x >>= 5
            more = x != (-1 if low & 16 else 0)
            text += chr((low | (32 if more else 0)) + 48)
    return text


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[3, 2, 7, 2, 7, 5, 3, 5]], [3, 2, 7, 5]),
        ([[3, 2, 7, 2, 7, 5], [1.5, 4, 2, 4, 2, 6]], [1.5, 2, 7, 6]),
        ({"size": [8, 10], "counts": RUNS}, [3, 2, 7, 5]),
        ({"size": [8, 10], "counts": compressed(RUNS)}, [3, 2, 7, 5]),
        ({"size": [8, 10], "counts": [0, 80]}, [0, 0, 10, 8]),
        ({"size": [8, 10], "counts": [30, 4, 46]}, [3, 0, 5, 8]),  # from one column into the next
        ({"size": [8, 10], "counts": [79, 1]}, [9, 7, 10, 8]),
    ],
)
@pytest.mark.parametrize("bbox", ["drop", None, []])
def test_an_object_without_a_box_has_that_of_its_outline(
    tmp_path, content, segmentation, box, bbox
):
    own = content["annotations"][0]
    own |= {"bbox": bbox, "segmentation": segmentation}
    if bbox == "drop":
        del own["bbox"]
    image_set = read(tmp_path, content)
    assert image_set.targets[0].boxes[0].tolist() == box
    assert image_set.notices.counts == {}


def test_the_text_of_a_mask_is_that_of_the_tests_of_pycocotools(tmp_path, content):
    mask = {"size": [9, 10], "counts": "61X13mN000`0"}  # its test of a mask of 9 x 10
    assert compressed([6, 1, 40, 4, 5, 4, 5, 4, 21]) == mask["counts"]
    content["images"][0] |= {"height": 9}
    content["annotations"][0] |= {"bbox": None, "segmentation": mask}
    # Pixel 6 of column 0, then 4 pixels each of columns 5, 6 and 7 from row 2.
    assert read(tmp_path, content).targets[0].boxes[0].tolist() == [0, 2, 8, 7]


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [8, 10], "counts": [81]},
        {"size": [8, 10], "counts": [1, -1]},
        {"size": [8, 10], "counts": [1.5]},
        {"size": [8, 10], "counts": "~~~"},
        {"size": [8, 10], "counts": "X" * 100},
        {"size": [8, 10], "counts": "X"},
        {"size": [8], "counts": [1]},
        {"size": [0, 0], "counts": [1]},
        {"counts": [1]},
        {"size": [8, 10]},
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [1, 2, 3, 4, 5, 6],
        [["a"] * 6],
        [[float("nan")] * 6],
        "text",
    ],
)
def test_a_broken_outline_is_refused_with_its_place(tmp_path, content, mask):
    content["annotations"][0] |= {"bbox": None, "segmentation": mask}
    with pytest.raises(
        ValueError, match=r"instances\.json: annotations\[0\]: .*(mask|segmentation)"
    ):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "name", ["sub\\b.png", "./sub/b.png", "sub//b.png", "pictures/sub/b.png", "FOLDER/sub/b.png"]
)
def test_a_picture_is_found_however_it_is_named(tmp_path, content, name):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (10, 8)).save(folder / "sub/b.png")
    content["images"][0]["file_name"] = name.replace("FOLDER", str(folder))
    content["images"][1] |= {"file_name": "sub/b.png"}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    image_set = read_coco(folder, path)
    assert image_set.ids == (str(folder / "sub/b.png") if "FOLDER" in name else "sub/b.png",)
    assert image_set.images[0].shape == (8, 10, 3)
    assert image_set.notices.counts == {"pictures named in several ways, taken once": 1}


def test_a_picture_that_is_listed_under_two_ids_is_one_picture(tmp_path, content):
    content["images"][1]["file_name"] = "b.png"
    content["annotations"][1]["image_id"] = 3
    image_set = read(tmp_path, content)
    assert image_set.ids == ("b.png",)
    assert image_set.targets[0].labels.tolist() == [1, 0]
    (line,) = told(image_set.notices)
    assert "images[1]: 'b.png' is also that of images[0]" in line


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
