"""A Milvus server on loopback for these tests: `make test-milvus`."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from uuid import uuid4

import numpy as np
import pytest

from regionhash.engines import Owner, open_backend

STARTED = 180  # seconds: it takes ten on a quiet machine

# Milliseconds between looks at what is to be loaded or indexed; otherwise one to ten seconds.
OFTEN = {
    "QUERYCOORD_CHECKCHANNELINTERVAL": "100",
    "QUERYCOORD_CHECKSEGMENTINTERVAL": "100",
    "QUERYCOORD_CHECKINDEXINTERVAL": "100",
    "QUERYCOORD_DISTPULLINTERVAL": "50",
    "INDEXCOORD_SCHEDULER_INTERVAL": "100",
}


def free_ports(count):
    with ExitStack() as probes:
        opened = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in opened:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in opened]


def dies_with_its_parent():
    set_signal = 1  # PR_SET_PDEATHSIG of Linux
    ctypes.CDLL(None).prctl(set_signal, signal.SIGKILL)


class Server:
    """Milvus from its wheel, in a folder, on ports that were free."""

    def __init__(self, folder):
        # The wheel is of the environment that `make test-milvus` makes.
        milvus = pytest.importorskip("milvus", reason="needs the server: make test-milvus")
        names = [
            name
            for name in milvus.MilvusServerConfig().configurable_items
            if name.endswith("_port")
        ]
        *ports, health = free_ports(len(names) + 1)
        given = dict(zip(names, ports, strict=True))
        config = milvus.MilvusServerConfig(data_dir=str(folder), **given)
        config.set("proxy.timeTickInterval", 20)  # ms: what a read waits for, otherwise 200
        config.set("common.session.ttl", 5)  # s: what a server waits for that was killed, or 30
        config.resolve()
        milvus._initialize_data_files(str(folder))
        self.folder, self.process = folder, None
        self.address = f"http://127.0.0.1:{given['proxy_port']}"
        self._health = f"http://127.0.0.1:{health}/healthz"
        self._variables = (
            os.environ
            | OFTEN
            | {
                "DEPLOY_MODE": "STANDALONE",
                "METRICS_PORT": str(health),
                "MILVUS_RUN_DIR": str(folder / "run"),
                "LD_LIBRARY_PATH": str(folder / "bin"),
            }
        )

    def start(self, *, empty=False):
        if empty:
            shutil.rmtree(self.folder / "data")
            (self.folder / "data").mkdir()
        log = (self.folder / "milvus.log").open("ab")
        command = [self.folder / "bin" / "milvus", "run", "standalone"]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._variables,
            stdout=log,
            stderr=log,
            preexec_fn=dies_with_its_parent,
        )
        log.close()
        end = time.monotonic() + STARTED
        while not self._answers():
            if time.monotonic() > end or self.process.poll() is not None:
                self.kill()
                pytest.skip(f"Milvus does not start here, see {self.folder / 'milvus.log'}")
            time.sleep(0.2)

    def _answers(self):
        try:
            with urllib.request.urlopen(self._health, timeout=5) as answer:
                return b"OK" in answer.read()
        except (urllib.error.URLError, OSError):
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("pymilvus", reason="needs pymilvus: make test-milvus")
    server = Server(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.kill()
    shutil.rmtree(server.folder / "bin")  # 250 MB


@pytest.fixture
def engine_of(server, tmp_path):
    """Opens an engine for a collection; its place is removed at the end."""
    opened = []

    def open_engine(options="timeout=60", uuid=None, n_bits=16, n_region_bits=16):
        owner = Owner(uuid or uuid4().hex, "abc", n_bits, n_region_bits, tmp_path)
        engine = open_backend(f"milvus:{server.address}?{options}", owner)
        opened.append(engine)
        return engine

    yield open_engine
    for engine in opened:
        engine.drop()
        engine.close()


@pytest.fixture(scope="session")
def one_place(server, tmp_path_factory):
    """An engine whose place is made once: that takes five seconds."""
    owner = Owner(uuid4().hex, "abc", 16, 16, tmp_path_factory.mktemp("x"))
    engine = open_backend(f"milvus:{server.address}?timeout=60", owner)
    engine.create()
    yield engine
    engine.drop()
    engine.close()


@pytest.fixture
def empty(one_place):
    """An engine that holds nothing."""
    for part in ("region", "picture"):
        for batch in one_place.stored(part, codes=False):
            one_place.remove(np.unique(batch.numbers))
    assert one_place.held() == (0, 0)
    return one_place
