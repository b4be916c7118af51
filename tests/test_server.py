"""The process of `regionhash serve`."""

import gc
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cli_runner import error_of
from regionhash.service.server import _Server, run_server


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_pictures_are_decoded(photo_collection, slow_jpeg, sent):
    command = [sys.executable, "-m", "regionhash", "serve", photo_collection, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().split()[-1]
        statuses = []

        def upload():
            with suppress(httpx.HTTPError):
                answer = httpx.post(f"{address}api/uploads", files={"file": slow_jpeg}, timeout=60)
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


def test_a_port_in_use_is_told_with_the_option(tmp_path, photo_collection):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert error_of("serve", photo_collection, "--port", port) == (
            f"cannot listen on 127.0.0.1, port {port}: Address already in use; pass another port "
            "with --port; 0 picks a free one"
        )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(99, "Cannot assign requested address"), "pass another address with --host"),
        (PermissionError(13, "Permission denied"), "pass a port from 1024 on with --port"),
        (socket.gaierror(-2, "Name or service not known"), "pass another address with --host"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_with_the_option(
    photo_collection, monkeypatch, error, advice
):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(socket, "create_server", failing)
    message = error_of("serve", photo_collection, "--host", "localhost")
    assert message == f"cannot listen on localhost, port 8000: {error.strerror}; {advice}"


def test_what_is_there_at_the_start_is_not_collected_again_and_again(photo_collection, monkeypatch):
    """A full collection of garbage looks at all objects, and holds up every request meanwhile."""
    exempt = []
    monkeypatch.setattr(_Server, "run", lambda *_: exempt.append(gc.get_freeze_count()))
    run_server(photo_collection, port=0, note=lambda _: None)
    assert exempt[0] > 10_000
    assert gc.get_freeze_count() == 0
