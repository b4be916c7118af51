"""Real processes that decode, and pictures that are made to keep them busy."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import costly_pictures as costly
from regionhash.data.images import ImageError, read_image, read_image_bytes
from regionhash.service import decoding
from regionhash.service.decoding import Decoders
from regionhash.service.jobs import BusyError


def soon(seconds=20.0):
    return time.monotonic() + seconds


SMALL = costly.saved(Image.new("RGB", (8, 6), (10, 20, 30)), "PNG")


@pytest.fixture
def decoders():
    made = Decoders(2, 50_000_000)
    yield made
    made.close()


def processes(decoders):
    return [slot._process.pid for slot in decoders._all if slot._process is not None]


def test_pictures_come_as_they_are_read_here(decoders, photos):
    content = (photos / "2.png").read_bytes()
    image, kind, note = decoders.decode(content, "upload", soon())
    assert kind == "PNG" and image.flags.writeable and note is None
    np.testing.assert_array_equal(image, read_image_bytes(content, "upload"))
    np.testing.assert_array_equal(
        decoders.read(photos / "1.png", "picture 2", soon()), read_image(photos / "1.png")
    )
    small = decoders.thumbnail(photos / "1.png", "picture 2", 64, soon())
    assert small.startswith(b"\xff\xd8") and len(small) < 20_000
    assert len(processes(decoders)) == 1  # the second was not needed


def test_a_file_that_is_cut_off_comes_with_a_note(decoders):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = costly.saved(Image.fromarray(noise), "PNG")
    image, _, note = decoders.decode(content[: len(content) * 3 // 4], "upload", soon())
    np.testing.assert_array_equal(image[:40], noise[:40])
    assert re.search("missing, and 2[567] % of the picture", note)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2000)])
def test_heic_is_decoded_within_the_memory_of_a_process(size):
    pytest.importorskip("pillow_heif").register_heif_opener()
    content = costly.saved(Image.new("RGB", size, (200, 100, 50)), "HEIF", quality=50)
    decoders = Decoders(1, size[0] * size[1])
    try:
        image, kind, _ = decoders.decode(content, "upload", soon())
    finally:
        decoders.close()
    assert kind == "HEIF" and image.shape == (size[1], size[0], 3)
    assert np.abs(image.astype(int) - [200, 100, 50]).max() <= 4


def test_a_process_imports_neither_torch_nor_the_service(decoders):
    decoders.decode(SMALL, "upload", soon())
    (pid,) = processes(decoders)
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "numpy" in mapped and "torch" not in mapped


def test_what_takes_too_long_is_killed_and_replaced(decoders, slow_jpeg):
    decoders.decode(SMALL, "upload", soon())
    (before,) = processes(decoders)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        decoders.decode(slow_jpeg, "upload", soon(0.5))
    assert time.monotonic() - started < 3
    assert not Path(f"/proc/{before}").exists()
    assert decoders.decode(SMALL, "upload", soon()).image.shape == (6, 8, 3)


def test_a_process_that_was_killed_just_after_its_answer_is_replaced_before_the_next(
    decoders, monkeypatch
):
    original, until = decoding._exchange, soon(2)

    def late(*arguments):
        answer = original(*arguments)
        time.sleep(max(0, until + 0.1 - time.monotonic()))
        return answer

    decoders.decode(SMALL, "upload", soon())
    monkeypatch.setattr(decoding, "_exchange", late)
    assert decoders.decode(SMALL, "upload", until).image.shape == (6, 8, 3)
    assert decoders._all[0]._process.poll() is None


def test_who_finds_no_free_process_is_told(decoders, slow_jpeg):
    late = []

    def decode():
        with pytest.raises(TimeoutError):
            decoders.decode(slow_jpeg, "upload", soon(1.5))
        late.append(time.monotonic())

    threads = [threading.Thread(target=decode) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    with pytest.raises(BusyError, match="busy"):
        decoders.decode(SMALL, "upload", soon(0.2))
    for thread in threads:
        thread.join()
    assert len(late) == 2
    decoders.decode(SMALL, "upload", soon())


def test_a_process_that_dies_is_an_error_of_its_picture_alone(decoders, slow_jpeg):
    decoders.decode(SMALL, "upload", soon())
    (pid,) = processes(decoders)
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGSEGV))
    killer.start()
    with pytest.raises(ImageError, match="upload: the decoder died on it"):
        decoders.decode(slow_jpeg, "upload", soon())
    killer.join()
    decoders.decode(SMALL, "upload", soon())


def test_pixels_are_bounded():
    decoders = Decoders(1, 40_000)
    try:
        big = costly.saved(Image.new("L", (200, 200)), "PNG")
        assert decoders.decode(big, "upload", soon()).image.shape == (200, 200, 3)
        with pytest.raises(ImageError, match=r"upload: .*more than the limit of 40,000"):
            decoders.decode(costly.saved(Image.new("L", (201, 200)), "PNG"), "upload", soon())
    finally:
        decoders.close()


def test_a_picture_of_the_collection_that_takes_too_much_memory_is_refused(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    decoders = Decoders(1, 40_000)
    try:
        with pytest.raises(ImageError, match="picture 1: it takes more memory"):
            decoders.read(tmp_path / "a.png", "picture 1", soon())
        decoders.decode(SMALL, "upload", soon())
    finally:
        decoders.close()


def test_no_message_tells_a_path(decoders, tmp_path):
    (tmp_path / "text").write_text("no picture")
    os.mkfifo(tmp_path / "pipe")
    for name in ("gone", "text", "pipe", "."):
        with pytest.raises(ImageError, match=r"^picture 1: ") as told:
            decoders.read(tmp_path / name, "picture 1", soon())
        assert str(tmp_path) not in str(told.value)


def test_closing_ends_what_is_decoded(decoders, slow_jpeg):
    closing = threading.Timer(0.3, decoders.close)
    closing.start()
    started = time.monotonic()
    with pytest.raises(BusyError, match="shutting down"):
        decoders.decode(slow_jpeg, "upload", soon(30))
    assert time.monotonic() - started < 3
    closing.join()
    with pytest.raises(BusyError, match="shutting down"):
        decoders.decode(SMALL, "upload", soon())


def test_a_name_that_is_no_utf8_is_read(decoders, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png"))
    path.write_bytes(SMALL)
    assert decoders.read(path, "picture 1", soon()).shape == (6, 8, 3)


@pytest.mark.parametrize(("busy", "ended"), [(True, -signal.SIGALRM), (False, 0)])
def test_a_process_outlives_who_started_it_by_seconds_alone(slow_jpeg, busy, ended):
    command = [sys.executable, "-m", "regionhash.data.decoding_process", str(2 << 30)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process:
        if busy:
            request = {"name": "a", "bytes": len(slow_jpeg), "max_pixels": 10**8, "size": None}
            process.stdin.write(json.dumps(request | {"seconds": 0}).encode() + b"\n" + slow_jpeg)
        process.stdin.close()
        assert process.wait(20) == ended
