"""Pictures are found again by their ids, wherever the command is given."""

import os
from pathlib import Path

import numpy as np
import pytest

from conftest import write_picture
from regionhash.data.images import ImageError
from regionhash.data.inputs import Pictures, class_indices, open_inputs


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
