"""Files behind URLs: read, written whole, and named in every error."""

from pathlib import Path

import pytest

from regionhash.files import urls
from regionhash.files.urls import child, files_in, is_url, located, reading, remove_file, whole_file

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["path", "url"])
def folder(request, tmp_path):
    """A folder that is not there yet, on the disk or in fsspec's memory."""
    if request.param == "path":
        yield tmp_path
        return
    yield f"memory://{tmp_path.name}/files"
    memory = fsspec.filesystem("memory")
    if memory.exists(tmp_path.name):
        memory.rm(tmp_path.name, recursive=True)


def write(location, content):
    with whole_file(location) as temporary:
        temporary.write_bytes(content)


def content_of(location):
    with reading(location) as file:
        return file.read_bytes() if isinstance(file, Path) else file.read()


def test_a_url_stays_a_text():
    assert located("s3://bucket/a") == "s3://bucket/a"
    assert located("a/b") == Path("a/b")
    assert not is_url("voc:photos:train")


def test_files_are_written_listed_read_and_removed(folder):
    assert files_in(folder, ".txt") == []
    for name in ("b.txt", "a.txt", ".hidden.txt", "c.csv"):
        write(child(folder, name), name.encode())
    write(child(folder, "a.txt"), b"replaced")
    assert files_in(folder, ".txt") == [child(folder, "a.txt"), child(folder, "b.txt")]
    assert content_of(child(folder, "a.txt")) == b"replaced"
    remove_file(child(folder, "a.txt"))
    assert files_in(folder, ".txt") == [child(folder, "b.txt")]


def test_two_colons_are_part_of_a_name(tmp_path):
    """For fsspec, they chain file systems: "a::b" would be a."""
    folder = f"file://{tmp_path}"
    for name in ("a", "a::b", "x::y"):
        write(child(folder, name), name.encode())
    assert files_in(folder, "") == [child(folder, name) for name in ("a", "a::b", "x::y")]
    assert content_of(child(folder, "a::b")) == b"a::b"
    remove_file(child(folder, "a::b"))
    assert content_of(child(folder, "a")) == b"a"
    assert files_in(folder, "") == [child(folder, "a"), child(folder, "x::y")]


def test_what_fails_on_the_way_leaves_the_old_file(folder):
    write(child(folder, "a.txt"), b"old")
    with pytest.raises(KeyError), whole_file(child(folder, "a.txt")) as temporary:
        temporary.write_bytes(b"ne")
        raise KeyError
    assert content_of(child(folder, "a.txt")) == b"old"
    assert len(files_in(folder, "")) == 1


def test_a_url_that_nothing_reads_is_refused_in_a_line():
    with pytest.raises(ValueError, match="nothing://a: Protocol not known: nothing"):
        files_in("nothing://a", "")
    with pytest.raises(ValueError, match=r"^zip://a::memory://b: "):
        files_in("zip://a::memory://b", "")
    with pytest.raises(ValueError, match="simplecache::memory://a: Protocol not known"):
        files_in("simplecache::memory://a", "")


def test_what_an_extra_brings_is_missing_by_its_name(monkeypatch):
    def get_filesystem_class(scheme):
        raise ImportError("Install s3fs") from ModuleNotFoundError("no s3fs", name="s3fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", get_filesystem_class)
    with pytest.raises(ModuleNotFoundError) as missing:
        urls.file_system("s3://bucket")
    assert missing.value.name == "s3fs"


def test_errors_of_a_storage_name_the_url(monkeypatch):
    class Refusing:
        def __getattr__(self, name):
            def refuse(*_, **__):
                raise LookupError("no\ncredentials")

            return refuse

    monkeypatch.setattr(urls, "file_system", lambda url: (Refusing(), "a"))
    for work, said in (
        (lambda: files_in("s3://a", ""), "s3://a: cannot be read: no credentials"),
        (lambda: write("s3://a", b""), "s3://a: cannot write: no credentials"),
        (lambda: remove_file("s3://a"), "s3://a: cannot remove: no credentials"),
    ):
        with pytest.raises(ValueError, match=said):
            work()
    with pytest.raises(OSError, match="no credentials"):
        content_of("s3://a")
