"""Pictures behind URLs: the same ids, pixels and hashes as those of files."""

import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import ExifTags, Image

from regionhash.data.images import ImageError, file_version, read_image
from regionhash.data.remote import RemoteImages, open_urls
from reporters import told

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket(photos, tmp_path):
    """The photos in fsspec's memory, with files that are no pictures of the user's."""
    memory = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}"
    for path in sorted(photos.iterdir()):
        memory.pipe(f"{root}/photos/{path.name}", path.read_bytes())
    for name in ("sub/A.JPG", "notes.txt", "raw.cr2", ".hidden/a.jpg", "@eaDir/a.jpg", ".a.jpg"):
        memory.pipe(f"{root}/photos/{name}", b"")
    yield f"memory:/{root}"
    memory.rm(root, recursive=True)


def test_a_folder_gives_the_ids_that_a_folder_of_files_gives(bucket):
    images = open_urls([f"{bucket}/photos/"])
    assert images.ids == (*(f"{n}.png" for n in range(6)), "sub/A.JPG")
    assert images.images.paths[0] == f"{bucket}/photos/0.png"
    assert told(images.notices) == [".cr2 files, not read: 1"]


def test_a_name_with_two_colons_is_not_another_picture(tmp_path, photos):
    (tmp_path / "odd").mkdir()
    for n, name in enumerate(("a.png", "a.png::z.png", "x::y.png")):
        (tmp_path / "odd" / name).write_bytes((photos / f"{n}.png").read_bytes())
    url = f"file://{tmp_path}/odd"
    images = open_urls([url])
    assert images.ids == ("a.png", "a.png::z.png", "x::y.png")
    for n in range(3):
        assert images.images.version(n).hash == file_version(photos / f"{n}.png").hash
    named = open_urls([f"{url}/a.png::z.png"]).images
    assert named.version(0).hash == file_version(photos / "1.png").hash


def test_a_name_that_a_url_of_s3_cannot_have_is_left_out(bucket):
    root = f"{bucket}/odd".removeprefix("memory:/")
    for name in ("q.png", "q.png?versionId=a.png", "q?version.png"):
        fsspec.filesystem("memory").pipe(f"{root}/{name}", b"")
    images = open_urls([f"{bucket}/odd"])
    assert images.ids == ("q.png", "q?version.png")
    assert told(images.notices) == ["files with ?versionId= in their names, not read: 1"]


def test_several_urls_give_urls_as_ids(bucket):
    urls = [f"{bucket}/photos/1.png", f"{bucket}/photos/sub", f"{bucket}/photos/1.png"]
    images = open_urls(urls)
    assert images.ids == (urls[0], f"{bucket}/photos/sub/A.JPG")
    assert images.images.paths == list(images.ids)


def test_a_picture_is_that_of_the_file(bucket, photos):
    image, version, note = open_urls([f"{bucket}/photos"]).images.read(2)
    np.testing.assert_array_equal(image, read_image(photos / "2.png"))
    of_file = file_version(photos / "2.png")
    assert (version.hash, version.n_bytes) == (of_file.hash, (photos / "2.png").stat().st_size)
    assert version.hash == hashlib.sha256((photos / "2.png").read_bytes()).digest()
    assert abs(version.taken - of_file.taken) < 3600  # when it was written
    assert note is None


def test_behind_http_the_time_of_a_picture_is_that_of_its_exif_or_unknown(tmp_path):
    pytest.importorskip("aiohttp")
    noted = Image.Exif()
    noted.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "noted.jpg", exif=noted)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "plain.jpg")
    silent = type("Silent", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(silent, directory=tmp_path))
    Thread(target=server.serve_forever).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        images = open_urls([f"{url}/noted.jpg", f"{url}/plain.jpg"]).images
        versions = [images.read(n).version for n in range(2)]
        with pytest.raises(ImageError, match=r"gone\.jpg: "):
            RemoteImages([f"{url}/gone.jpg"]).version(0)
    finally:
        server.shutdown()
        server.server_close()
    of_file = file_version(tmp_path / "noted.jpg")
    assert versions[0].taken == of_file.taken < (tmp_path / "noted.jpg").stat().st_mtime - 1e6
    assert versions[1].taken is None
    assert versions[1].hash == file_version(tmp_path / "plain.jpg").hash


def test_what_cannot_be_read_names_the_url(bucket):
    images = open_urls([f"{bucket}/photos"]).images
    with pytest.raises(ImageError, match=r"photos/sub/A\.JPG: the file is empty"):
        images[6]
    fsspec.filesystem("memory").rm(f"{bucket}/photos/0.png")
    with pytest.raises(ImageError, match=r"photos/0\.png: "):
        images.version(0)


def test_a_url_without_pictures_is_refused(bucket):
    for url in (f"{bucket}/none", f"{bucket}/photos/.hidden/none"):
        with pytest.raises(ValueError, match=f"{url}: "):
            open_urls([url])
    fsspec.filesystem("memory").pipe(f"{bucket}/texts/a.txt", b"")
    with pytest.raises(ValueError, match=r"texts: no picture found"):
        open_urls([f"{bucket}/texts"])
