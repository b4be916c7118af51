"""The service under load: 32 clients search by stored regions while pictures are added.

Makes a synthetic collection once (random codes, 64 bits, ten regions a picture), then measures

- the time to open it, and the memory that the process holds after searches, beside the bytes of the
  region codes and boxes;
- the time of an answer on loopback, with `--pause` seconds between the requests of a client (0:
  each sends the next at once), while another process adds pictures; what the service and the
  clients need of the processor; and the memory of the service, every second (`--seconds 600`: ten
  minutes);
- the scan alone, beside the time in which NumPy reads the same codes once.

With `--against SRC`, the `src` of another checkout of regionhash serves a collection of its own,
and the two services are asked in turn, `--rounds` times each. `--heavy N` adds clients that search
for three objects in regions of their own; their times are not counted.

Run: python benchmarks/bench_service.py [--images 1000000] [--seconds 60] [--pause 1] [--json]
     python benchmarks/bench_service.py --pause 0 --seconds 20 --against ../before/src
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median

import numpy as np

N_REGIONS, N_BYTES = 10, 8
CLASSES = tuple("0123456789")
BATCH = 5_000


def make_collection(folder: Path, n_images: int) -> None:
    """A collection of random codes beside an untrained model; its arrays are made once opened."""
    import torch

    from regionhash.collection.database import DATABASE_FILE, Database
    from regionhash.models.checkpoints import Checkpoint, build_model, save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    arguments = {
        "n_bits": 64,
        "n_classes": 10,
        "n_region_bits": 8 * N_BYTES,
        "backbone": "tiny_fpn",
        "weights": "none",
        "n_hidden": 32,
        "fpn_channels": 16,
    }
    model = build_model("region-dh", arguments)
    saved = save_checkpoint(folder, model, Checkpoint("region-dh", arguments, CLASSES, short=64))
    header = {
        "model": saved.name,
        "model_hash": saved.model_hash,
        "classes": list(CLASSES),
        "n_bits": 64,
        "n_region_bits": 8 * N_BYTES,
        "meta": {"precision": "32-true", "provenance": {}},
    }
    with Database.create(folder / DATABASE_FILE, header) as database:
        for first in range(0, n_images, BATCH):
            database.store(random_images(first, min(BATCH, n_images - first)))


def random_images(first: int, count: int):
    from regionhash.collection.database import FileState, NewImage

    rng = np.random.default_rng(first)
    codes = rng.integers(0, 256, (count, N_REGIONS, N_BYTES), dtype=np.uint8)
    boxes = np.sort(rng.random((count, N_REGIONS, 2, 2), np.float32) * 500, axis=2)
    boxes = boxes.reshape(count, N_REGIONS, 4)
    alike = {
        "id_bytes": np.zeros(0, np.uint8),
        "sizes": np.array([[500, 500]], "<i4"),
        "class_probs": np.full((1, len(CLASSES)), 0.1, np.float32),
        "scores": np.full(N_REGIONS, 0.9, np.float32),
        "labels": np.arange(N_REGIONS, dtype=np.int64),
    }
    for n in range(count):
        own = {"image_codes": codes[n, :1], "boxes": boxes[n], "region_codes": codes[n]}
        rows = alike | own
        name = f"{first + n:09}"
        path = f"/pictures/{name}.jpg".encode()
        yield NewImage(f"{name}.jpg", FileState(path, taken=float(n)), None, rows)


def memory(process: str = "self") -> dict[str, float]:
    """Resident MB, all of it and what is not mapped from files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    anonymous, mapped = int(values["RssAnon"]) / 1e3, int(values["RssFile"]) / 1e3
    return {"anonymous": anonymous, "all": anonymous + mapped}


def processor_seconds(process: int) -> float:
    """What a process has used of the processor."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def measure_opening(folder: Path, searches: int = 20) -> dict[str, float]:
    """In a process of its own: time to open, memory before and after some searches, scan times."""
    import faiss  # noqa: F401  (before the memory is taken)

    from regionhash.collection import Collection
    from regionhash.search import nearest_bags

    before = memory()
    began = time.perf_counter()
    collection = Collection(folder)
    opened = time.perf_counter() - began
    table = collection.snapshot.table
    times, sums = [], []
    for n in range(searches):
        query = table.region_codes[n * N_REGIONS]
        began = time.perf_counter()
        nearest_bags(query, table.region_codes, table.offsets, top=20)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        table.region_codes.view(np.uint64).sum()
        sums.append(time.perf_counter() - began)
    table.boxes.packed.sum()  # every page of the boxes
    after = memory()
    held = (table.region_codes.nbytes + table.boxes.packed.nbytes) / 1e6
    return {
        "open seconds": opened,
        "scan milliseconds": 1000 * median(times[3:]),
        "reading the codes once, milliseconds": 1000 * median(sums[3:]),
        "codes and boxes MB": held,
        "memory MB": after["all"] - before["all"],
        "memory ratio": (after["all"] - before["all"]) / held,
    }


def load(
    port: int, n_clients: int, n_heavy: int, seconds: float, pause: float, n_images: int
) -> dict:
    """In a process of its own: the milliseconds of all answers."""
    began, used = time.monotonic(), time.process_time()
    until = began + seconds
    times: list[float] = []
    wrong: list[str] = []

    def client(seed: int, n_objects: int, times: list[float]) -> None:
        rng = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        time.sleep(rng.random() * pause)
        while time.monotonic() < until:
            row = int(rng.integers(1, n_images + 1))
            regions = rng.choice(N_REGIONS, n_objects, replace=False).tolist()
            body = json.dumps({"queries": [{"image": row, "regions": regions}], "limit": 20})
            sent = time.perf_counter()
            connection.request("POST", "/api/search", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            times.append(round(1000 * (time.perf_counter() - sent), 2))
            if answer.status != 200 or json.loads(content)["hits"][0]["distance"] != 0:
                wrong.append(content.decode()[:200])
            time.sleep(pause)

    asked = [(n, 1, times) for n in range(n_clients)]
    asked += [(n_clients + n, 3, []) for n in range(n_heavy)]
    threads = [threading.Thread(target=client, args=each) for each in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "times": times,
        "errors": len(wrong),
        "processor": time.process_time() - used,
        "seconds": time.monotonic() - began,
    }


def keep_adding(folder: Path, first: int, per_second: float) -> None:
    """In a process of its own: stores a batch of eight pictures again and again."""
    from regionhash.collection.database import DATABASE_FILE, Database

    with Database(folder / DATABASE_FILE) as database:
        while True:
            database.store(random_images(first, 8))
            first += 8
            time.sleep(8 / per_second)


class Service:
    """A service of a collection, and what it was measured to do.

    Args:
        folder: the collection, which is made if there is none.
        source: where regionhash is imported from; None is where this process has it from.
        options: of the command line.
    """

    def __init__(self, folder: Path, source: Path | None, options: argparse.Namespace) -> None:
        self.folder, self._options = folder, options
        self._environment = dict(os.environ)
        if source is not None:
            self._environment["PYTHONPATH"] = str(source.resolve())
        self.times: list[float] = []
        self.held: list[float] = []
        self._processes: list[subprocess.Popen] = []
        self.errors, self.used, self.asked, self.seconds = 0, 0.0, 0.0, 0.0
        if not (folder / "collection.db").exists():
            began = time.perf_counter()
            self.part("make").communicate()
            print(f"{folder}: made in {time.perf_counter() - began:.0f} s", file=sys.stderr)

    def part(self, name: str, *options: object) -> subprocess.Popen:
        """A part of this benchmark, in a process of its own."""
        own = self._options
        given = ["--folder", self.folder, "--images", own.images, "--part", name, *options]
        return self._process(__file__, *given)

    def start(self) -> None:
        """Starts to serve, and to add pictures."""
        self._server = self._process("-m", "regionhash", "serve", self.folder, "--port", 0)
        self._port = int(self._server.stdout.readline().rstrip().rstrip("/").rpartition(":")[2])
        self._processes = [self._server, self.part("add", "--adding", self._options.adding)]
        self._ask(5).communicate()  # warms up

    def measure(self) -> None:
        """Asks for some seconds."""
        used = processor_seconds(self._server.pid)
        load = self._ask(self._options.seconds)
        printed = None
        while printed is None:  # it may print more than a pipe holds: always read
            self.held.append(memory(str(self._server.pid))["anonymous"])
            with suppress(subprocess.TimeoutExpired):
                printed = load.communicate(timeout=1)[0]
        found = json.loads(printed)
        self.used += processor_seconds(self._server.pid) - used
        self.seconds += found["seconds"]
        self.times += found["times"]
        self.errors += found["errors"]
        self.asked += found["processor"]

    def stop(self) -> None:
        """Ends its processes."""
        for process in self._processes:
            process.terminate()
            process.wait()

    def record(self) -> dict:
        """What was measured."""
        shares = np.percentile(self.times, [50, 95, 99, 100]).round(1).tolist()
        return {
            "requests": len(self.times),
            "errors": self.errors,
            "per second": round(len(self.times) / self.seconds, 1),
            "milliseconds": dict(zip(("median", "p95", "p99", "most"), shares, strict=True)),
            "milliseconds of a core per request": round(1000 * self.used / len(self.times), 2),
            "the same of the clients": round(1000 * self.asked / len(self.times), 2),
            "MB not mapped": {
                "start": self.held[0],
                "end": self.held[-1],
                "most": max(self.held),
                "mean of each tenth": [
                    round(np.mean(tenth)) for tenth in np.array_split(self.held, 10) if len(tenth)
                ],
            },
        }

    def _ask(self, seconds: float) -> subprocess.Popen:
        own = self._options
        options = ["--port", self._port, "--clients", own.clients, "--heavy", own.heavy]
        return self.part("load", *options, "--pause", own.pause, "--seconds", seconds)

    def _process(self, *command: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench.collection"))
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--heavy", type=int, default=0, help="clients that search for 3 objects")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--adding", type=float, default=20, help="pictures per second")
    parser.add_argument("--against", type=Path, help="src of another checkout of regionhash")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["make", "open", "load", "add"])
    parser.add_argument("--port", type=int)
    own = parser.parse_args()
    if own.part == "make":
        from regionhash.collection import Collection

        make_collection(own.folder, own.images)
        Collection(own.folder).close()  # makes the arrays
    elif own.part == "open":
        print(json.dumps(measure_opening(own.folder)))
    elif own.part == "load":
        given = own.port, own.clients, own.heavy, own.seconds, own.pause, own.images
        print(json.dumps(load(*given)))
    elif own.part == "add":
        keep_adding(own.folder, own.images + int(time.time()) * 1000, own.adding)
    else:
        measure_all(own)


def measure_all(own: argparse.Namespace) -> None:
    """Measures one service or two, and prints what came out."""
    services = {"now": Service(own.folder, None, own)}
    if own.against is not None:
        other = own.folder.with_name(f"{own.folder.stem}-against{own.folder.suffix}")
        services["against"] = Service(other, own.against, own)
    record: dict = {"load average before": os.getloadavg()[0], "images": own.images}
    record |= json.loads(services["now"].part("open").communicate()[0])
    with ExitStack() as started:
        for service in services.values():
            started.callback(service.stop)
            service.start()
        for _ in range(own.rounds):
            for service in services.values():
                service.measure()
    record |= {name: service.record() for name, service in services.items()}
    if own.json:
        print(json.dumps(record))
        return
    for name, value in record.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
