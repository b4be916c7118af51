import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionhash.data import LAYOUTS, forms, open_dataset, parse_spec, write_spec


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with one picture in every layout, as the current one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("voc/JPEGImages", "voc/Annotations", "voc/ImageSets/Main", "pets/cat"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("voc/JPEGImages/a.jpg", "pets/cat/a.jpg"):
        Image.new("RGB", (10, 8)).save(tmp_path / name)
    (tmp_path / "voc/ImageSets/Main/train.txt").write_text("a\n")
    size = "<size><width>10</width><height>8</height></size>"
    (tmp_path / "voc/Annotations/a.xml").write_text(f"<annotation>{size}</annotation>")
    (tmp_path / "table.csv").write_text("image,label\npets/cat/a.jpg,cat\n")
    (tmp_path / "far.csv").write_text("image,label\na.jpg,cat\n")
    image = {"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}
    coco = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (tmp_path / "data.yaml").write_text("val: pets\nnames: [cat, dog]\n")
    (tmp_path / "coco.json").write_text(json.dumps(coco))


@pytest.mark.parametrize(
    ("spec", "image_id", "n_classes"),
    [
        ("voc:voc:train", "a", 20),
        ("voc:voc:train:relative", "a", 20),
        ("voc:voc:train:cup,bowl", "a", 2),
        ("voc:voc:train:cup,bowl:relative", "a", 2),
        ("yolo:data.yaml:val", "pets/cat/a.jpg", 2),
        ("coco:pets/cat:coco.json:relative", "a.jpg", 1),
        ("csv:table.csv:relative", "pets/cat/a.jpg", 1),
        ("csv:far.csv:pets/cat:relative", "a.jpg", 1),
        ("coco:pets/cat:coco.json", "a.jpg", 1),
        ("csv:table.csv", "pets/cat/a.jpg", 1),
        ("csv:far.csv:pets/cat", "a.jpg", 1),
        ("folder:pets", "cat/a.jpg", 0),
        ("labelled-folder:pets", "cat/a.jpg", 1),
        ("digits:test:1", "test-0-00000", 10),
        ("digits:train:1:7", "train-7-00000", 10),
    ],
)
def test_each_form_opens_its_layout(place, spec, image_id, n_classes):
    image_set = open_dataset(spec)
    assert image_set.ids == (image_id,)
    assert len(image_set.classes) == n_classes
    assert image_set.images[0].shape[2] == 3
    assert spec.partition(":")[0] in LAYOUTS


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("csv:a:b", ["a", "b"]),
        ("csv:", [""]),
        ("csv:a:", ["a", ""]),
        (r"csv:C\:/x.csv:dir", ["C:/x.csv", "dir"]),
        (r"csv:C:\x.csv", ["C", r"\x.csv"]),
        (r"csv:a\b\c.csv:dir", [r"a\b\c.csv", "dir"]),
        (r"csv:a\\:b", ["a\\", "b"]),
        (r"csv:a\\\:b", [r"a\:b"]),
        (r"csv:\\host\x", [r"\\host\x"]),
        ("csv:a\\", ["a\\"]),
    ],
)
def test_a_colon_in_a_name_is_written_with_a_backslash(spec, parts):
    assert parse_spec(spec) == ("csv", parts)


@given(st.lists(st.text(r"ab:\/\n "), min_size=1))
def test_any_parts_are_written_and_read_back(parts):
    assert parse_spec(write_spec("csv", parts)) == ("csv", parts)


def test_files_and_folders_may_have_colons_in_their_names(place):
    Path("a:b").mkdir()
    Path("a:b/x:y.csv").write_text("image,label\nc:d.jpg,cat\n")
    Path("pets/cat/a.jpg").rename("a:b/c:d.jpg")
    for spec in (r"csv:a\:b/x\:y.csv", r"csv:a\:b/x\:y.csv:a\:b", r"folder:a\:b"):
        image_set = open_dataset(spec)
        assert image_set.ids == ("c:d.jpg",)
        assert image_set.images[0].shape == (8, 10, 3)


def test_a_folder_named_relative_is_a_folder_where_one_can_be_given(place):
    assert open_dataset("csv:far.csv:pets/cat:relative").ids == ("a.jpg",)
    assert not Path(open_dataset("csv:far.csv:relative").images.paths[0]).exists()
    Path("relative").mkdir()
    Path("pets/cat/a.jpg").rename("relative/a.jpg")
    for spec in ("csv:far.csv:relative", "csv:far.csv:relative:relative"):
        assert open_dataset(spec).images[0].shape == (8, 10, 3)


WRONG = (
    " pets voc voc:root voc::train voc:root: coco:dir csv: csv:a:b:c folder: labelled-folder: "
    "coco:dir:relative voc:root:relative: csv:a:b:relative:relative yolo:a.yaml "
    "folder:a:relative zip:a digits digits:train digits:train:many digits:train:-3 digits:train:3:x"
)


@pytest.mark.parametrize("spec", WRONG.split(" "))
def test_a_wrong_form_is_an_error_that_lists_all_forms(spec):
    with pytest.raises(ValueError, match="names no data set") as caught:
        open_dataset(spec)
    assert repr(spec) in str(caught.value)
    assert all(form in str(caught.value) for form in forms())


def test_naming_the_layouts_imports_neither_torch_nor_scikit_learn():
    code = "import sys, regionhash.data; print({'torch', 'sklearn'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n"


def test_the_examples_of_the_documentation_run():
    page = Path(__file__).parents[1] / "docs/data.md"
    failed, attempted = doctest.testfile(str(page), module_relative=False)
    assert (failed, attempted > 5) == (0, True)
    assert all(f"`{form}`" in page.read_text() for form in forms())
