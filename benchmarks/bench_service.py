"""The service under load: 32 clients search by stored regions while pictures are added.

Makes a synthetic collection once (random codes, 64 bits, ten regions a picture), then measures

- the time to open it, and the memory that the process holds after searches, beside the bytes of the
  region codes and boxes;
- the time of an answer on loopback, with `--pause` seconds between the requests of a client (0:
  each sends the next at once), while another process adds pictures; what service and clients need
  of the processor; and the memory of the service, every second (`--seconds 600`: ten minutes);
- the scan alone, beside the time in which NumPy reads the same codes once.

Run: python benchmarks/bench_service.py [--images 1000000] [--seconds 60] [--pause 1] [--json]
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
from pathlib import Path
from statistics import median

import numpy as np

N_REGIONS, N_BYTES = 10, 8
CLASSES = tuple("0123456789")
BATCH = 5_000


def make_collection(folder: Path, n_images: int) -> None:
    """A collection of random codes beside an untrained model."""
    import torch

    from regionhash.collection.database import DATABASE_FILE, Database
    from regionhash.models.checkpoints import Checkpoint, build_model, save_checkpoint

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
    for n in range(count):
        rows = {
            "id_bytes": np.zeros(0, np.uint8),
            "sizes": np.array([[500, 500]], "<i4"),
            "image_codes": codes[n, :1],
            "class_probs": np.full((1, len(CLASSES)), 0.1, np.float32),
            "boxes": boxes[n],
            "scores": np.full(N_REGIONS, 0.9, np.float32),
            "labels": np.arange(N_REGIONS, dtype=np.int64),
            "region_codes": codes[n],
        }
        name = f"{first + n:09}"
        yield NewImage(name, FileState(taken=float(n)), None, rows)


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
    np.asarray(table.boxes).sum()  # every page of the boxes
    after = memory()
    held = (table.region_codes.nbytes + table.boxes.nbytes) / 1e6
    return {
        "open seconds": opened,
        "scan milliseconds": 1000 * median(times[3:]),
        "reading the codes once, milliseconds": 1000 * median(sums[3:]),
        "codes and boxes MB": held,
        "memory MB": after["all"] - before["all"],
        "memory ratio": (after["all"] - before["all"]) / held,
    }


def load(port: int, n_clients: int, seconds: float, pause: float, n_images: int) -> dict:
    """In a process of its own: the times of all answers."""
    until = time.monotonic() + seconds
    times: list[float] = []
    wrong: list[str] = []

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        time.sleep(rng.random() * pause)
        while time.monotonic() < until:
            row, region = int(rng.integers(1, n_images + 1)), int(rng.integers(N_REGIONS))
            body = json.dumps({"queries": [{"image": row, "regions": [region]}], "limit": 20})
            began = time.perf_counter()
            connection.request("POST", "/api/search", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200 or json.loads(content)["hits"][0]["distance"] != 0:
                wrong.append(content.decode()[:200])
            time.sleep(pause)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = np.percentile(1000 * np.array(times), [50, 95, 99, 100]).round(1).tolist()
    return {
        "requests": len(times),
        "errors": len(wrong),
        "per second": round(len(times) / seconds, 1),
        "milliseconds": dict(zip(("median", "p95", "p99", "most"), shares, strict=True)),
        "clients' processor seconds": round(time.process_time(), 1),
    }


def keep_adding(folder: Path, first: int, per_second: float) -> None:
    """In a process of its own: stores a batch of eight pictures again and again."""
    from regionhash.collection.database import DATABASE_FILE, Database

    with Database(folder / DATABASE_FILE) as database:
        while True:
            database.store(random_images(first, 8))
            first += 8
            time.sleep(8 / per_second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench.collection"))
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--adding", type=float, default=20, help="pictures per second")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["open", "load", "add"])
    parser.add_argument("--port", type=int)
    own = parser.parse_args()
    if own.part == "open":
        print(json.dumps(measure_opening(own.folder)))
        return
    if own.part == "load":
        print(json.dumps(load(own.port, own.clients, own.seconds, own.pause, own.images)))
        return
    if own.part == "add":
        keep_adding(own.folder, own.images + int(time.time()) * 1000, own.adding)
        return

    def part(name: str, *options: object) -> subprocess.Popen:
        given = ["--folder", own.folder, "--images", own.images, "--part", name, *options]
        command = [sys.executable, __file__, *map(str, given)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    from regionhash.collection import Collection

    if not (own.folder / "collection.db").exists():
        began = time.perf_counter()
        own.folder.mkdir(parents=True, exist_ok=True)
        make_collection(own.folder, own.images)
        Collection(own.folder).close()  # builds the arrays
        print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    record = {"load average before": os.getloadavg()[0], "images": own.images}
    record |= json.loads(part("open").communicate()[0])
    command = [sys.executable, "-m", "regionhash", "serve", str(own.folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    adding = part("add", "--adding", own.adding)
    try:
        port = int(server.stdout.readline().rstrip().rstrip("/").rpartition(":")[2])
        options = ["--port", port, "--clients", own.clients, "--pause", own.pause]
        part("load", *options, "--seconds", 5).communicate()  # warms up
        used, held = processor_seconds(server.pid), []
        asked = part("load", *options, "--seconds", own.seconds)
        while asked.poll() is None:
            held.append(memory(str(server.pid))["anonymous"])
            time.sleep(1)
        record |= json.loads(asked.communicate()[0])
        used = processor_seconds(server.pid) - used
    finally:
        for process in (adding, server):
            process.terminate()
            process.wait()
    record["service's processor seconds"] = round(used, 1)
    record["service's MB not mapped"] = {
        "start": held[0],
        "end": held[-1],
        "most": max(held),
        "mean of each tenth": [
            round(np.mean(tenth)) for tenth in np.array_split(held, 10) if len(tenth)
        ],
    }
    if own.json:
        print(json.dumps(record))
        return
    for name, value in record.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
