"""A file that is written is there whole, or is what it was before."""

import signal
import subprocess
import sys
import textwrap

import pytest

from regionhash.files import leftovers, replacing, write_text

WRITER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from regionhash.files import replacing
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
        assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
    (left,) = leftovers(path)
    assert left.read_text() == "half"
    write_text(path, "again")
    assert names(tmp_path) == ["a[b].json"]
    assert path.read_text() == "again"
