"""Thumbnails: made from a fraction of a large file, and kept beside the collection."""

import io
import shutil
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from conftest import collect
from regionhash.collection.thumbnails import THUMBNAILS_FILE, Thumbnails
from regionhash.data.images import read_image, read_thumbnail, thumbnail
from regionhash.service.app import create_app

HOME = "http://127.0.0.1"


def smooth(height, width):
    """A picture with a mark in one corner."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * y / height, 255 * x / width, np.full_like(y, 90)], -1).astype(np.uint8)
    image[: height // 4, : width // 4] = (250, 20, 20)
    return image


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})],
)
def test_a_thumbnail_of_a_file_is_that_of_its_picture(tmp_path, mode, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "large.jpg"
    Image.fromarray(smooth(1500, 2000)).convert(mode).save(path, exif=exif, **options)
    for size in (160, 640, 2048):
        ours, slow = (
            np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int32)
            for content in (read_thumbnail(path, size), thumbnail(read_image(path), size))
        )
        assert ours.shape == slow.shape and max(ours.shape) == min(size, 2000)
        assert np.abs(ours - slow).mean() < 1


def test_a_thumbnail_of_a_large_jpeg_is_quicker_than_the_picture(tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(smooth(3000, 4000)).save(path, quality=90)

    def least(run):
        times = []
        for _ in range(4):
            start = time.thread_time()
            run()
            times.append(time.thread_time() - start)
        return min(times)

    slow = least(lambda: thumbnail(read_image(path), 320))
    assert least(lambda: read_thumbnail(path, 320)) < slow / 2


def test_what_is_kept_outlives_the_object_and_is_given_for_its_tag_alone(tmp_path):
    kept = Thumbnails(tmp_path, 1000)
    kept.put(1, 160, "old", b"first")
    kept.put(1, 320, "old", b"larger")
    kept.put(2, 160, "old", b"other")
    kept.close()
    kept = Thumbnails(tmp_path, 1000)
    assert kept.get(1, 160, "old") == b"first" and kept.get(1, 320, "old") == b"larger"
    assert kept.get(1, 160, "new") is None and kept.get(3, 160, "old") is None
    kept.put(1, 160, "new", b"second")
    assert kept.get(1, 160, "old") is None and kept.get(1, 160, "new") == b"second"
    assert kept.rows() == [1, 2]
    kept.drop([1, 3])
    assert kept.rows() == [2] and kept.get(1, 320, "old") is None


def test_what_was_used_last_is_kept_up_to_so_many_bytes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    kept = Thumbnails(tmp_path, 100)
    for row in range(5):
        now[0] += 7200
        kept.put(row, 160, "t", bytes(20))
    now[0] += 7200
    assert kept.get(0, 160, "t") is not None
    kept.close()
    kept = Thumbnails(tmp_path, 100)  # counts what is there
    kept.put(5, 160, "t", bytes(20))
    assert kept.rows() == [0, 3, 4, 5]  # four fifths of the room


def test_a_file_that_is_damaged_held_or_refused_is_no_error(tmp_path):
    (tmp_path / THUMBNAILS_FILE).write_bytes(b"no database at all, " * 500)
    kept = Thumbnails(tmp_path, 1000)
    kept.put(1, 160, "t", b"content")
    assert kept.get(1, 160, "t") == b"content"
    other = sqlite3.connect(tmp_path / THUMBNAILS_FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    kept.put(2, 160, "t", b"lost")
    assert kept.get(1, 160, "t") is None
    held = Thumbnails(tmp_path, 1000)
    held.put(3, 160, "t", b"in memory")
    assert held.get(3, 160, "t") == b"in memory"
    other.execute("ROLLBACK")
    assert kept.get(1, 160, "t") == b"content" and kept.get(2, 160, "t") is None
    nowhere = Thumbnails(tmp_path / "missing", 1000)
    nowhere.put(1, 160, "t", b"content")
    assert nowhere.get(1, 160, "t") == b"content"


def test_threads_and_objects_share_a_folder(tmp_path):
    objects = [Thumbnails(tmp_path, 1 << 20) for _ in range(2)]

    def use(n):
        kept = objects[n % 2]
        for row in range(10):
            kept.put(row, n, "t", bytes([n, row]) * 100)
            found = kept.get(row, n, "t")
            assert found in (None, bytes([n, row]) * 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert objects[0].rows() == objects[1].rows() == [*range(10)]


def test_the_service_shows_them_again_after_a_restart(saved, photos, tmp_path, monkeypatch):
    pictures = shutil.copytree(photos, tmp_path / "pictures")
    folder = collect(pictures, saved.folder, tmp_path / "c")
    where = "/api/images/1/picture?size=160"
    with TestClient(create_app(folder), base_url=HOME) as client:
        first = client.get(where)
        assert client.get("/api/images/2/picture").status_code == 200
    from regionhash.collection import Collection

    with Collection.open(folder) as other:
        other.remove_rows([2])
    with TestClient(create_app(folder), base_url=HOME) as client:
        with client.app.state.service.opened as opened:
            assert opened._thumbnails.rows() == [1]
            monkeypatch.setattr(opened._decoders, "thumbnail", None)
            again = client.get(where)
        assert (again.status_code, again.content) == (200, first.content)
    mode = (folder / THUMBNAILS_FILE).stat().st_mode
    assert not mode & stat.S_IWOTH
