"""The layout of Ultralytics YOLO, in the forms in which its tools write it."""

import numpy as np
import pytest
from PIL import Image

from regionhash.data import open_dataset
from regionhash.data.inputs import Pictures, open_inputs
from regionhash.data.yolo import label_file, read_yolo
from reporters import told

HEIGHT, WIDTH = 80, 100
LINE = "1 0.3 0.5 0.4 0.5\n"  # pixels 10 to 50 and 20 to 60


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


@pytest.fixture
def root(tmp_path):
    """A set of two pictures in train, the second without objects, and one in val."""
    for name in ("train/a.jpg", "train/b.png", "val/c.jpg"):
        save(tmp_path / "images" / name)
    for name, text in (("train/a", LINE), ("train/b", ""), ("val/c", LINE)):
        path = tmp_path / f"labels/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write(tmp_path, "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return tmp_path


def write(root, text):
    (root / "data.yaml").write_text(text)


def labelled(root, text):
    (root / "labels/train/a.txt").write_text(text)
    return read_yolo(root / "data.yaml", "train")


def test_pictures_and_objects_are_read(root):
    image_set = open_dataset(f"yolo:{root}/data.yaml:train")
    assert image_set.name == "data:train"
    assert image_set.ids == ("images/train/a.jpg", "images/train/b.png")
    assert image_set.classes == ("cat", "dog")
    first, second = image_set.targets
    assert np.allclose(first.boxes, [[10, 20, 50, 60]])
    assert first.labels.tolist() == [1]
    assert len(second.boxes) == 0
    assert image_set.images[1].shape == (HEIGHT, WIDTH, 3)
    assert image_set.notices.counts == {}


def test_pictures_are_found_again_by_their_ids(root, monkeypatch):
    monkeypatch.chdir(root)
    image_set, source = open_inputs(["yolo:data.yaml:train"])
    monkeypatch.chdir("/")
    for image_id in image_set.ids:
        assert Pictures([source])[image_id].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nnames: [cat, dog]",
        "path: ROOT\ntrain: images/train\nnames: [cat, dog]",
        "path: ''\ntrain: ROOT/images/train\nnc: 2\nnames: ['cat', 'dog']",
        "train: ../images/train  # as Roboflow writes it\nnc: 2\nnames: [cat, dog]",
        "train: ./images/train\nnames: {0: cat, 1: dog}",
        "train: images/train/\nnames:\n  1: dog\n  0: cat\n",
        "train: [images/train]\nnames: [cat, dog]",
        "train:\n- images/train/\nnames:\n- cat\n- dog\n",
        "train: train.txt\nnames: [cat, dog]",
        "train: lists/train.txt\nnames: [cat, dog]",
        "train: below.txt\nnames: [cat, dog]",
        "train: backslashes.txt\nnames: [cat, dog]",
        "train: [images/train, train.txt]\nnames: [cat, dog]",
        "\ufeffdownload: https://x\ntrain: images/train\ntest:\nnames: [cat, dog]\nextra: {a: [1]}",
    ],
)
def test_the_file_may_have_any_of_its_forms(root, text):
    names = ["images/train/a.jpg", "images/train/b.png"]
    (root / "train.txt").write_text("\n".join(f"./{name}" for name in names))
    (root / "below.txt").write_text("\n".join(f"{root}/{name}" for name in names))
    (root / "backslashes.txt").write_text("\r\n".join(name.replace("/", "\\") for name in names))
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text("\n".join(names) + "\n\n")
    write(root, text.replace("ROOT", str(root)))
    image_set = read_yolo(root / "data.yaml", "train")
    assert image_set.ids == tuple(names)
    assert image_set.classes == ("cat", "dog")
    assert [len(target.boxes) for target in image_set.targets] == [1, 0]
    assert image_set.notices.counts == {}


def test_a_set_that_was_moved_is_read_and_told(root):
    write(root, "path: ../datasets/pets\ntrain: images/train\nnames: [cat, dog]\n")
    image_set = read_yolo(root / "data.yaml", "train")
    assert len(image_set) == 2
    assert "the folder '../datasets/pets' ('path') is missing" in told(image_set.notices)[0]


@pytest.mark.parametrize("name", ["no", "yes", "1", "null", "1.0", "2024-01-01", "0x1f", "on"])
def test_names_are_text_whatever_yaml_makes_of_them(root, name):
    write(root, f"train: images/train\nnames: [cat, {name}]\n")
    assert read_yolo(root / "data.yaml", "train").classes == ("cat", name)


def test_names_may_be_missing_if_their_number_is_there(root):
    write(root, "train: images/train\nnc: 3\n")
    assert read_yolo(root / "data.yaml", "train").classes == ("class_0", "class_1", "class_2")


def test_names_that_occur_twice_are_one_class_and_quotes_are_taken_off(root):
    write(root, "train: images/train\nnames: [dog, \"'dog'\", cat]\n")
    image_set = read_yolo(root / "data.yaml", "train")
    assert image_set.classes == ("dog", "cat")
    assert image_set.targets[0].labels.tolist() == [0]
    assert image_set.notices.counts == {
        "class names in quotes, taken without": 1,
        "categories of the same name, taken as one class": 1,
    }


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_the_split_val_has_several_names(root, split):
    write(root, f"{split}: images/val\nnames: [cat, dog]\n")
    assert read_yolo(root / "data.yaml", "val").ids == ("images/val/c.jpg",)


@pytest.mark.parametrize(
    ("line", "box"),
    [
        (LINE, [10, 20, 50, 60]),
        ("1.0\t0.3  0.5 0.4 0.5\r\n", [10, 20, 50, 60]),
        ("1 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75\n", [10, 20, 50, 60]),  # a polygon, or turned box
        ("1 0.1 0.25 0.5 0.75 0.3 0.5\n", [10, 20, 50, 60]),
        ("1 0.5 0.5 1 1\n", [0, 0, 100, 80]),
        ("1 0 0 0.2 0.5\n", [0, 0, 10, 20]),  # centred on the corner
        ("1 1.001 -0.001 1 1\n", [50.1, 0, 100, 39.92]),
    ],
)
def test_boxes_and_polygons_are_read(root, line, box):
    image_set = labelled(root, line)
    assert np.allclose(image_set.targets[0].boxes, [box], atol=1e-4)
    assert image_set.notices.counts == {}


def test_key_points_are_ignored(root):
    write(root, "train: images/train\nkpt_shape: [2, 3]\nnames: [cat, dog]\n")
    image_set = labelled(root, LINE.strip() + " 0.5 0.5 2 0.1 0.1 0\n")
    assert np.allclose(image_set.targets[0].boxes, [[10, 20, 50, 60]])


def test_lines_that_occur_twice_and_boxes_without_area_are_told(root):
    image_set = labelled(root, LINE + LINE + "0 0.5 0.5 0 0.1\n")
    assert len(image_set.targets[0].boxes) == 1
    assert image_set.notices.counts == {
        "objects that occur twice, taken once": 1,
        "boxes without area, left out": 1,
    }
    assert "labels/train/a.txt, line 2" in told(image_set.notices)[0]


def test_a_picture_without_a_file_of_labels_has_no_objects_and_is_told(root):
    (root / "labels/train/a.txt").unlink()
    image_set = read_yolo(root / "data.yaml", "train")
    assert [len(target.boxes) for target in image_set.targets] == [0, 0]
    assert "labels/train/a.txt is missing" in told(image_set.notices)[0]


def test_boxes_of_a_picture_that_cannot_be_read_are_left_out_and_told(root):
    (root / "images/train/a.jpg").write_bytes(b"no picture")
    image_set = read_yolo(root / "data.yaml", "train")
    assert len(image_set.targets[0].boxes) == 0
    assert image_set.notices.counts == {"pictures of unknown size, their boxes left out": 1}


@pytest.mark.parametrize(
    ("picture", "labels"),
    [
        ("/x/images/y/a.jpg", "/x/labels/y/a.txt"),
        ("/images/images/a.b.jpg", "/images/labels/a.b.txt"),
        ("/x/images/a.jpeg", "/x/labels/a.txt"),
        ("/x/pictures/a.jpg", "/x/pictures/a.txt"),
        ("/x/images", "/x/images.txt"),
        ("/x/my images/a.png", "/x/my images/a.txt"),
    ],
)
def test_labels_lie_where_ultralytics_looks_for_them(tmp_path, picture, labels):
    assert str(label_file(type(tmp_path)(picture))) == labels


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.3 0.5 0.4 0.5", "class index must be 0 to 1, got '2'"),
        ("-1 0.3 0.5 0.4 0.5", "class index must be"),
        ("0.5 0.3 0.5 0.4 0.5", "class index must be"),
        ("nan 0.3 0.5 0.4 0.5", "class index must be"),
        ("dog 0.3 0.5 0.4 0.5", "must be numbers, got 'dog 0.3"),
        ("0 30 50 40 50", r"fractions \(0 to 1\) of the picture, got 30.0"),
        ("0 0.3 0.5 -0.4 0.5", r"fractions \(0 to 1\) of the picture, got -0.4"),
        ("0 0.3 0.5 nan 0.5", "box must be finite"),
        ("0 0.3 0.5 0.4", "a box .4 numbers. or a polygon .6 or more., got 4 numbers"),
        ("0 0.3 0.5 0.4 0.5 0.9", "got 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "got 8 numbers"),
        ("0", "got 1 numbers"),
    ],
)
def test_a_wrong_line_is_an_error_that_names_it(root, line, reason):
    with pytest.raises(ValueError, match=rf"labels/train/a\.txt, line 2: .*{reason}"):
        labelled(root, LINE + line)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must have 'names'"),
        ("- a", "must have 'names'"),
        ("train: images/train", "must have 'names'"),
        ("train: images/train\nnames: []", "must have 'names'"),
        ("train: images/train\nnames: [[a]]", "names must be text"),
        ("train: images/train\nnames: ['']", "names must be text"),
        ("train: images/train\nnames: {0: a, 2: b}", "names lacks the class index 1"),
        ("train: images/train\nnames: {a: b}", "names must have class indices, got 'a'"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2, but names has 1 classes"),
        ("train: images/train\nnc: many", "nc must be a number of classes"),
        ("train: images/train\nnc: 999999", "nc must be a number of classes"),
        ("val: images/val\nnames: [a, b]", "'train' must be a folder.*the file has val"),
        ("train: {a: b}\nnames: [a, b]", "'train' must be a folder"),
        ("train: [[x]]\nnames: [a, b]", "'train' must be a folder"),
        ("train: gone\nnames: [a, b]", "gone is missing: it must be a folder or a .txt file"),
        ("train: gone.txt\nnames: [a, b]", "cannot read the list"),
        ("train: empty.txt\nnames: [a, b]", r"empty\.txt lists no picture"),
        ("train: [images/train\nnames: [a, b]", "broken YAML"),
        ("a: &a [x, x]\nb: *a\nnames: [a]", "aliases"),
        ("names: !!python/object/apply:os.system [ls]", "names|'train' must be"),
        ("? [a, b]\n: c\n", "broken YAML"),
        ("a: " + "[" * 100, "nested too deeply|broken YAML"),
        ("#" * (300 << 10), "more than the limit of 262,144"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(root, text, reason):
    write(root, text)
    (root / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=rf"(data\.yaml|gone\.txt): .*({reason})"):
        read_yolo(root / "data.yaml", "train")
    with pytest.raises(ValueError, match=r"none\.yaml: cannot read"):
        read_yolo(root / "none.yaml", "train")


def test_aliases_that_would_expand_to_gigabytes_are_refused_at_once(root):
    rows = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    rows += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    write(root, "\n".join([*rows, "names: *i"]))
    with pytest.raises(ValueError, match="aliases"):
        read_yolo(root / "data.yaml", "train")
