"""What lies below a folder: found, left out or unreadable, and never without a word."""

import os
from pathlib import Path

import pytest

from regionhash.data.inputs import open_inputs
from regionhash.data.notices import Notices
from regionhash.data.walking import MEDIA, NOT_THE_USERS, files_below
from reporters import told

SUFFIXES = {".jpg", ".png"}


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(folder, pattern="**/*"):
    notices = Notices()
    paths = files_below(folder, pattern, SUFFIXES, notices)
    return [path.relative_to(folder).as_posix() for path in paths], notices


@pytest.fixture
def unreadable(monkeypatch):
    """Makes folders that cannot be listed; permissions do not stop root."""
    scandir, closed = os.scandir, set()

    def failing(path):
        if Path(path).name in closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    return closed


def test_a_folder_that_cannot_be_read_is_told_once(tmp_path, unreadable):
    touch(tmp_path, "a.jpg", "closed/b.jpg", "open/c.jpg")
    unreadable.add("closed")
    names, notices = found(tmp_path)
    assert names == ["a.jpg", "open/c.jpg"]
    assert told(notices) == [f"{tmp_path}/closed: cannot be read: Permission denied"]
    assert notices.counts == {"folders that cannot be read": 1}


@pytest.mark.parametrize("pattern", ["*/*.jpg", "**/*.jpg", "closed/*", "c*/**/b.jpg"])
def test_so_is_one_that_a_pattern_goes_through(tmp_path, unreadable, pattern):
    touch(tmp_path, "closed/b.jpg")
    unreadable.add("closed")
    assert found(tmp_path, pattern)[1].counts == {"folders that cannot be read": 1}


@pytest.mark.parametrize("name", [*sorted(NOT_THE_USERS), "@eaDir", "$RECYCLE.BIN", "#Recycle"])
def test_folders_of_systems_are_left_out_with_a_line(tmp_path, name):
    touch(tmp_path, "a.jpg", f"{name}/a.jpg", f"sub/{name}/deep/b.jpg")
    names, notices = found(tmp_path)
    assert names == ["a.jpg"]
    assert notices.counts == {"folders of previews or deleted files, left out": 2}
    assert f"{tmp_path}/sub/{name}: made by the system, not by a photographer; left out" in told(
        notices
    )


@pytest.mark.parametrize("pattern", ["**/*", "**/b/*", "**/**/a.jpg"])
def test_folders_may_be_deeper_than_python_calls(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("b").mkdir()
        os.chdir("b")
    Path("a.jpg").write_bytes(b"x")
    names, notices = found(tmp_path, pattern)
    Path("a.jpg").unlink()
    for _ in range(1200):  # Python cannot remove them at once
        os.chdir("..")
        Path("b").rmdir()
    assert (names, notices.counts) == (["b/" * 1200 + "a.jpg"], {})


def test_one_that_would_not_be_entered_anyway_is_not_told(tmp_path):
    touch(tmp_path, "a.jpg", "@eaDir/a.jpg")
    names, notices = found(tmp_path, "*.jpg")
    assert (names, notices.counts) == (["a.jpg"], {})


def test_such_a_folder_is_read_when_it_is_named(tmp_path):
    touch(tmp_path, "@eaDir/a.jpg")
    ids = open_inputs([str(tmp_path / "@eaDir")])[0].ids
    assert ids == ("a.jpg",)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*", ["a.jpg", "x/b.jpg", "x/y/c.png"]),
        ("**", ["a.jpg", "x/b.jpg", "x/y/c.png"]),
        ("*", ["a.jpg"]),
        ("*.png", []),
        ("**/*.png", ["x/y/c.png"]),
        ("*/*", ["x/b.jpg"]),
        ("x/**/*", ["x/b.jpg", "x/y/c.png"]),
        ("**/y/*", ["x/y/c.png"]),
        ("**/x/**/y/**/*", ["x/y/c.png"]),
        ("**/**/*", ["a.jpg", "x/b.jpg", "x/y/c.png"]),
        ("?/[b]*", ["x/b.jpg"]),
        ("X/*", []),
        (".h/*", [".h/d.jpg"]),
        (".*/*", [".h/d.jpg"]),
        ("x/.e.jpg", ["x/.e.jpg"]),
        ("x/.*", ["x/.e.jpg"]),
    ],
)
def test_patterns_find_what_a_shell_would(tmp_path, pattern, names):
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.png", ".h/d.jpg", "x/.e.jpg", "x/notes.md")
    assert found(tmp_path, pattern)[0] == names


def test_links_to_folders_are_followed_by_name_and_not_by_any_number(tmp_path):
    touch(tmp_path / "root", "a.jpg")
    touch(tmp_path / "far", "b.jpg")
    (tmp_path / "root/link").symlink_to(tmp_path / "far")
    assert found(tmp_path / "root")[0] == ["a.jpg"]
    assert found(tmp_path / "root", "*/*.jpg")[0] == ["link/b.jpg"]


def test_pictures_and_films_that_are_not_read_are_counted_by_ending(tmp_path):
    touch(tmp_path, "a.jpg", "b.DNG", "c.dng", "x/d.mov", "notes.md", "labels.xml", ".e.mov")
    names, notices = found(tmp_path)
    assert names == ["a.jpg"]
    assert notices.counts == {".dng files, not read": 2, ".mov files, not read": 1}
    assert told(notices) == [".dng files, not read: 2", ".mov files, not read: 1"]


def test_a_folder_with_nothing_else_says_what_it_has(tmp_path):
    touch(tmp_path, *(f"{n}.mp4" for n in range(4)))
    with pytest.raises(ValueError, match=r"no picture .*found; \.mp4 files, not read: 4$"):
        open_inputs([str(tmp_path)])


def test_every_reader_of_folders_gives_the_notices(tmp_path, unreadable):
    touch(tmp_path, "cats/a.jpg", "cats/closed/b.jpg")
    unreadable.add("closed")
    for given in (str(tmp_path), f"folder:{tmp_path}", f"labelled-folder:{tmp_path}"):
        image_set = open_inputs([given])[0]
        assert image_set.notices.counts == {"folders that cannot be read": 1}, given


def test_the_endings_that_are_counted_are_in_lower_case():
    assert all(ending == ending.lower() and ending.startswith(".") for ending in MEDIA)
