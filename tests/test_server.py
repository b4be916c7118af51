"""The process of `regionhash serve`."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import costly_pictures as costly


@pytest.fixture(scope="module")
def slow():
    """A picture that decodes for seconds."""
    return costly.jpeg_of_many_scans(85, side=7000)


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_while_pictures_are_decoded(photo_collection, slow, sent):
    command = [sys.executable, "-m", "regionhash", "serve", photo_collection, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().split()[-1]
        statuses = []

        def upload():
            with suppress(httpx.HTTPError):
                answer = httpx.post(f"{address}api/uploads", files={"file": slow}, timeout=60)
                statuses.append(answer.status_code)

        threads = [threading.Thread(target=upload) for _ in range(4)]
        for thread in threads:
            thread.start()
        decoders = _until(lambda: _busy_children(server.pid), 20)
        started = time.monotonic()
        server.send_signal(sent)
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 3  # all who waited have been told
        server.wait(20)
        assert (
            time.monotonic() - started < 8
        )  # torch alone takes two to be torn down when it is busy
    assert statuses == [503] * 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in decoders)


def _busy_children(parent):
    """Processes that `parent` has started, once they are at work."""
    found = subprocess.run(
        ["ps", "-o", "pid=,time=", "--ppid", str(parent)], text=True, capture_output=True
    )
    rows = [line.split() for line in found.stdout.splitlines()]
    return [int(pid) for pid, used in rows if used != "00:00:00"]


def _until(call, seconds):
    until = time.monotonic() + seconds
    while not (answer := call()) and time.monotonic() < until:
        time.sleep(0.05)
    assert answer
    return answer
