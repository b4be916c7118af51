"""A file that is written is there whole, or is what it was before."""

import fcntl
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionhash.files.atomic import leftovers, replacing, write_text
from regionhash.files.names import path_of, shown_name

WRITER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from regionhash.files.atomic import replacing
    with replacing(Path(sys.argv[1])) as new:
        new.write_text("half")
        print("written", flush=True)
        time.sleep(60)
""")


def names(folder):
    return [path.name for path in folder.iterdir()]


def writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "written\n"
    return process


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["page.html"]


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as new:
        new.write_text("new")
        raise KeyError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "a[b].json"
    with writer(path) as process:
        assert leftovers(path) == []  # it is being written
        write_text(path, "whole")
        assert path.read_text() == "whole"
        assert len(names(tmp_path)) == 3
        process.send_signal(signal.SIGKILL)
    assert sorted(left.suffix for left in leftovers(path)) == [".lock", ".new"]
    write_text(path, "again")
    assert names(tmp_path) == ["a[b].json"]
    assert path.read_text() == "again"


def test_a_file_that_came_meanwhile_is_not_replaced_where_that_is_asked_for(tmp_path):
    path = tmp_path / "codes.h5"
    with pytest.raises(FileExistsError), replacing(path, exclusive=True) as new:
        new.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["codes.h5"]


def test_where_no_links_can_be_made_nothing_is_replaced_either(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "codes.h5"
    with replacing(path, exclusive=True) as new:
        new.write_text("first")
    with pytest.raises(FileExistsError), replacing(path, exclusive=True) as new:
        new.write_text("second")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["codes.h5"]


def test_a_lock_that_was_removed_before_it_was_held_is_made_again(tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.extend(tmp_path.glob(".*.lock"))
            removed[0].unlink()  # as another process does that takes it for a leftover
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    path = tmp_path / "page.html"
    with replacing(path) as new:
        new.write_text("new")
        assert len(list(tmp_path.glob(".*.lock"))) == 1
        assert leftovers(path) == []  # nobody takes it for one
    assert path.read_text() == "new"
    assert names(tmp_path) == ["page.html"]


parts = st.lists(
    st.sampled_from([b"a", b"\\", b"\xff", b"\\xff", b"xff", "é".encode(), b" ", b"\\xFF"]),
    min_size=1,
    max_size=6,
).map(b"".join)


@given(st.lists(parts, min_size=1, max_size=2), st.lists(parts, min_size=1, max_size=2))
def test_different_paths_have_different_names_and_names_lead_back(one, other):
    paths = [b"/".join(parts) for parts in (one, other)]
    shown = [shown_name(path) for path in paths]
    assert (shown[0] == shown[1]) == (paths[0] == paths[1])
    for path, name in zip(paths, shown, strict=True):
        name.encode()
        assert bytes(path_of(name)) == path


def test_ordinary_names_are_shown_as_they_are():
    for name in ("photos/cat 1.jpg", "a\\b.png", "/x/é.jpg"):
        assert shown_name(name) == name
