"""Pictures are found again by their ids, wherever the command is given."""

import os
from pathlib import Path

import numpy as np
import pytest

from conftest import write_picture
from regionhash.data.images import ImageError
from regionhash.data.inputs import Pictures, absolute_inputs, class_indices, open_inputs
from reporters import told


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder a/b with two pictures; the working folder lies above it."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for n, name in enumerate(("1.png", "2.png")):
        write_picture(tmp_path / "a" / "b" / name, np.full((4, 5, 3), 100 + n))
    (tmp_path / "a" / "list.txt").write_text("b/2.png\nb/1.png\n")
    (tmp_path / "voc" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "voc" / "ImageSets" / "Main" / "all.txt").write_text("7\n")
    (tmp_path / "voc" / "JPEGImages").mkdir()
    (tmp_path / "voc" / "Annotations").mkdir()
    size = "<annotation><size><width>5</width><height>4</height></size></annotation>"
    (tmp_path / "voc" / "Annotations" / "7.xml").write_text(size)
    write_picture(tmp_path / "voc" / "JPEGImages" / "7.jpg", np.full((4, 5, 3), 102))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "ids"),
    [
        (["a"], ["b/1.png", "b/2.png"]),
        (["a/b"], ["1.png", "2.png"]),
        (["a/list.txt"], ["b/2.png", "b/1.png"]),
        (["@a/list.txt"], ["b/2.png", "b/1.png"]),
        (["a/b/2.png", "a/b/1.png"], ["a/b/2.png", "a/b/1.png"]),
        (["a/*/1.png"], ["a/b/1.png"]),
        (["PLACE/a/b/1.png", "a/b/2.png"], ["PLACE/a/b/1.png", "a/b/2.png"]),
        (["folder:a"], ["b/1.png", "b/2.png"]),
        (["voc:voc:all"], ["7"]),
        (["digits:test:2"], ["test-0-00000", "test-0-00001"]),
    ],
)
def test_every_picture_is_found_again_from_another_folder(place, monkeypatch, inputs, ids):
    def placed(texts):
        return [text.replace("PLACE", str(place)) for text in texts]

    image_set, source = open_inputs(placed(inputs))
    assert list(image_set.ids) == placed(ids)
    elsewhere = place / "a"
    monkeypatch.chdir(elsewhere)
    pictures = Pictures([source])
    monkeypatch.chdir(place)
    wanted = list(image_set.images)
    monkeypatch.chdir(elsewhere)
    for image_id, image in zip(image_set.ids, wanted, strict=True):
        np.testing.assert_array_equal(pictures[image_id], image)


def test_the_first_source_that_has_a_picture_gives_it(place):
    sources = [open_inputs([inputs])[1] for inputs in ("digits:test:1", "a", "a/b")]
    assert Pictures(sources)["2.png"][0, 0, 0] == 101
    assert Pictures(sources)["b/1.png"][0, 0, 0] == 100
    assert Pictures(sources)["test-0-00000"].shape == (160, 160, 3)


def test_a_picture_that_is_gone_is_an_image_error(place):
    _, source = open_inputs(["a/b"])
    Path("a/b").rename("moved")
    with pytest.raises(ImageError, match=r"1\.png: the picture is no longer where it was"):
        Pictures([source])["1.png"]
    assert Pictures([source], Path("moved"))["1.png"].shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("csv:t.csv", "csv:PLACE/t.csv"),
        ("csv:t.csv:a", "csv:PLACE/t.csv:PLACE/a"),
        ("csv:t.csv:relative", "csv:PLACE/t.csv:relative"),
        ("csv:t.csv:a:relative", "csv:PLACE/t.csv:PLACE/a:relative"),
        (r"csv:a\:b/t.csv", r"csv:PLACE/a\:b/t.csv"),
        ("voc:voc:all", "voc:PLACE/voc:all"),  # although there is a file all
        ("voc:voc:all:data:relative", "voc:PLACE/voc:all:data:relative"),
        ("voc:voc:all:names.txt", "voc:PLACE/voc:all:PLACE/names.txt"),
        ("digits:test:2", "digits:test:2"),
        ("yolo:d.yaml:all", "yolo:PLACE/d.yaml:all"),
    ],
)
def test_inputs_are_written_so_that_they_mean_the_same_elsewhere(place, given, wanted):
    (place / "a:b").mkdir()
    for name in ("t.csv", "a:b/t.csv", "all", "names.txt", "d.yaml", "data", "test"):
        (place / name).write_text("")
    assert absolute_inputs([given]) == [wanted.replace("PLACE", str(place))]
    assert absolute_inputs(absolute_inputs([given])) == absolute_inputs([given])


def test_text_files_among_pictures_are_lists_only_if_they_list_files(place):
    Path("a/b/1.txt").write_text("0 0.5 0.5 0.1 0.1\n")  # labels as YOLO has them
    Path("a/b/2.txt").write_text("")
    Path("a/b/classes.txt").write_text("dog\n" + "x" * 3000 + "\n")
    Path("a/b/odd.txt").write_bytes(b"\xff\xfe\x00")
    image_set, _ = open_inputs(sorted(str(path) for path in Path("a/b").iterdir()))
    assert image_set.ids == ("a/b/1.png", "a/b/2.png")
    assert image_set.notices.counts == {"text files that list no picture, left out": 4}
    assert "a/b/1.txt: no line names a file; left out; to take it as a list, write @a/b/1.txt" in (
        told(image_set.notices)
    )
    image_set, _ = open_inputs(["a/list.txt", "voc/JPEGImages/7.jpg"])
    assert image_set.ids == ("a/b/2.png", "a/b/1.png", "voc/JPEGImages/7.jpg")
    image_set, _ = open_inputs(["a/b/1.png", "@a/b/classes.txt"])
    assert len(image_set) == 3


def test_a_text_file_alone_is_a_list(place):
    Path("a/b/1.txt").write_text("")
    with pytest.raises(ValueError, match=r"1\.txt: no picture"):
        open_inputs(["a/b/1.txt"])
    with pytest.raises(ValueError, match=r"1\.txt: no picture"):
        open_inputs(["a/b/1.txt", "a/b/1.txt"])


@pytest.mark.parametrize(
    "second", ["./1.png", ".//1.png", ".\\1.png", "PLACE/a/b/1.png", "b\\1.png"]
)
def test_a_picture_that_a_list_spells_in_two_ways_is_taken_once(place, second):
    folder = "a" if second.startswith("b") else "a/b"
    first = "b/1.png" if second.startswith("b") else "1.png"
    Path(f"{folder}/x.txt").write_text(f"{first}\n{second.replace('PLACE', str(place))}\n")
    for given in (f"@{folder}/x.txt", f"@{place}/{folder}/x.txt"):
        assert open_inputs([given])[0].ids == (first,)


def test_a_data_set_is_the_only_input(place):
    with pytest.raises(ValueError, match="digits:test:1: a data set must be the only input"):
        open_inputs(["a", "digits:test:1"])


def test_a_file_whose_name_looks_like_a_data_set_is_a_file(place):
    Path("voc:x.png").write_bytes(Path("a/b/1.png").read_bytes())
    assert open_inputs(["voc:x.png"])[0].ids == ("voc:x.png",)


def test_classes_are_matched_by_name(place):
    image_set, _ = open_inputs(["labelled-folder:a"])
    assert class_indices(image_set, ("x", "b")) == [1]
    with pytest.raises(ValueError, match="a: the model does not know the classes b; it knows x"):
        class_indices(image_set, ("x",))


def test_a_picture_whose_name_is_no_text_is_found_by_its_id(tmp_path):
    write_picture(tmp_path / os.fsdecode(b"caf\xe9.png"), np.full((4, 5, 3), 7))
    image_set, source = open_inputs([str(tmp_path)])
    assert image_set.ids == ("caf\\xe9.png",)
    assert Pictures([source])["caf\\xe9.png"][0, 0, 0] == 7
