"""From pictures to codes on many machines: Ray Data, one actor per GPU or core (docs/ray.md).

Pictures are divided into pieces of some hundreds. An actor holds the network; it encodes a piece as
`regionhash.models.encoding` does, into a code file of its own, and writes that as one Parquet file.
Only names and counts travel between processes. A piece is stored when its file is there, and counts
as never begun before.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, FileVersion, ImageError
from regionhash.data.inputs import Source, open_inputs
from regionhash.data.notices import Notices
from regionhash.data.remote import RemoteImages, open_urls
from regionhash.files.names import absolute
from regionhash.files.text import is_text, one_line
from regionhash.files.urls import is_url, located
from regionhash.models.checkpoints import Checkpoint, read_checkpoint
from regionhash.models.encoding import EncodingReport, encode_set
from regionhash.models.runtime import Runtime, RuntimeName, load_runtime
from regionhash.precision import PrecisionName, check_same_precision
from regionhash.reporter import SILENT, Reporter
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts
from regionhash.store.shards import Contents, Shards

LOCAL = "local"
"""The address of a Ray that runs on this machine alone, from the start of a run to its end."""

_PIECE_SIZE = 500
"""Pictures of a shard, at most; an actor that is killed has lost no more work than this."""

_TRIES = 3  # of a piece whose actor dies, for lack of memory or of a decoder's fault
_READERS = 8  # of an actor at most, as of `encode`
_START_SECONDS = 300  # Ray waits 30 for its own processes, too few on a machine that is busy
_KNOCK_SECONDS = 20
_OBJECT_BYTES = 512 << 20  # of pieces in shared memory; the default is a third of all memory


def encode(
    model_folder: str | Path,
    inputs: Sequence[str],
    output: str | Path,
    *,
    address: str = LOCAL,
    batch_size: int = 8,
    workers: int | None = None,
    precision: PrecisionName = "auto",
    device: str = "auto",
    runtime: RuntimeName = "auto",
    reporter: Reporter = SILENT,
) -> EncodingReport:
    """Hashes pictures into a folder of Parquet files, except those it already holds.

    A picture is held if a file has its id, with the SHA-256 of its bytes. Codes are those of
    `regionhash.models.encoding.encode` in the same precision.

    Args:
        model_folder: folder of a trained model, the same on all machines.
        inputs: see `regionhash.data.inputs.open_inputs`; pictures must be files. Or URLs, see
            `regionhash.data.remote.open_urls`.
        output: the folder, or its URL.
        address: `LOCAL`, or that of a cluster as `ray.init` takes it.
        batch_size: pictures per batch of the model.
        workers: actors at most; None for one per GPU, or per core if the model runs on none.
        precision: see `regionhash.models.encoding.encode`.
        device: see `pick_device`.
        runtime: see `load_runtime`.
        reporter: is told the pictures done and their total, and those that cannot be read.

    Raises:
        ValueError: no model, no picture, codes of another model or precision; another run writes
            to the folder; or Ray does not start.
        OSError: the folder cannot be written.
        ModuleNotFoundError: Ray, pyarrow or s3fs is missing.
    """
    import pyarrow  # noqa: F401  (better missing here than in every actor)

    _import_ray(address)  # early, since it may be missing
    if batch_size < 1 or (workers is not None and workers < 1):
        raise ValueError(f"batch_size and workers must be at least 1, got {batch_size}, {workers}")
    began = time.perf_counter()
    checkpoint = read_checkpoint(Path(model_folder))
    images, source = open_pictures(inputs)
    images.notices.tell(reporter)
    shards = Shards(located(output))
    with shards.reserved():
        stored = shards.tidy(checkpoint.model_hash)
        if stored.precision:
            check_same_precision(shards.folder, stored.precision, precision)
        job = Job(
            model_folder=absolute(model_folder),
            model_hash=checkpoint.model_hash,
            shards=shards,
            run=secrets.token_hex(4),
            source=source,
            batch_size=batch_size,
            precision=stored.precision or precision,
            device=device,
            runtime=runtime,
        )
        outcomes = _encoded(job, address, workers, images, stored, reporter)
        if any(outcome.has_changed for outcome in outcomes):
            shards.tidy(checkpoint.model_hash)
        skipped = {name: why for outcome in outcomes for name, why in outcome.skipped.items()}
        locations = dict(zip(images.ids, _locations_of(images), strict=True))
        shards.write_unreadable((name, locations[name], why) for name, why in skipped.items())
    n_encoded = sum(outcome.n_encoded for outcome in outcomes)
    return EncodingReport(
        n_encoded,
        len(images) - n_encoded - len(skipped),
        skipped,
        time.perf_counter() - began,
        sum(outcome.model_seconds for outcome in outcomes),
        images.notices.counts,
    )


def _encoded(
    job: Job,
    address: str,
    workers: int | None,
    images: ImageSet,
    stored: Contents,
    reporter: Reporter,
) -> list[Outcome]:
    """Encodes all pictures; returns what became of each piece, see `encode`."""
    outcomes: list[Outcome] = []
    with connected(address), reporter.stage("encoding"):
        job, pool = planned(job, workers)
        for outcome in _outcomes(job, pool, pieces_of(images, stored, pool.n_actors)):
            for image_id, reason in outcome.skipped.items():
                reporter.skipped(image_id, reason)
            outcome.notices.move_to(images.notices)
            images.notices.tell(reporter)
            outcomes.append(outcome)
            reporter.progress(sum(piece.n_pictures for piece in outcomes), len(images))
    return outcomes


# -- pictures -------------------------------------------------------------------------------------


def open_pictures(inputs: Sequence[str]) -> tuple[ImageSet, Source | None]:
    """The pictures named by `inputs`, and where they are; None behind URLs.

    Paths of files are absolute, since actors have other working directories.

    Raises:
        ValueError: an input is missing or holds no picture, pictures are not files, or files and
            URLs are mixed.
    """
    urls = [given for given in inputs if is_url(given)]
    if not urls:
        images, source = open_inputs(inputs)
        files = images.images
        if not isinstance(files, FileImages):
            raise ValueError(f"{images.name}: has no files of pictures, which Ray needs")
        return replace(images, images=FileImages([*map(absolute, files.paths)])), source
    if len(urls) < len(inputs):
        raise ValueError(f"{urls[0]}: URLs and files cannot be encoded in one run")
    return open_urls(urls), None


def _files_of(images: ImageSet) -> FileImages | RemoteImages:
    files = images.images
    assert isinstance(files, FileImages | RemoteImages)  # see `open_pictures`
    return files


def _locations_of(images: ImageSet) -> list[str]:
    """The absolute path or URL of each picture."""
    return [str(path) for path in _files_of(images).paths]


def _part(images: ImageSet, rows: Sequence[int]) -> ImageSet:
    """Some of the pictures, as a set of files like the whole."""
    files = _files_of(images)
    taken: Any = [files.paths[row] for row in rows]
    return replace(images.subset(rows), images=type(files)(taken), notices=Notices())


@dataclass(frozen=True)
class Piece:
    """The pictures of a shard.

    Attributes:
        number: of the first of them, counted through all shards.
        images: the pictures.
        hashes: SHA-256 by id of those whose codes are stored; None if unknown.
    """

    number: int
    images: ImageSet
    hashes: Mapping[str, bytes | None]

    def rows_to_encode(self) -> list[int]:
        """The pictures that are new, have changed, or cannot be read."""
        with ThreadPoolExecutor(_READERS) as pool:  # they mostly wait, for disk or network
            return [
                row
                for row, is_stored in enumerate(pool.map(self._is_stored, range(len(self.images))))
                if not is_stored
            ]

    def given_up(self) -> Outcome:
        """The outcome if every actor dies of the piece."""
        rows = self.rows_to_encode()
        reason = f"the process that encodes it, with {len(rows) - 1} others, died {_TRIES} times"
        return Outcome(len(self.images), skipped=self.refused(rows, reason))

    def refused(self, rows: Sequence[int], reason: str) -> dict[str, str]:
        """The reason why some pictures were not encoded, by their ids."""
        locations = _locations_of(self.images)
        return {self.images.ids[row]: f"{locations[row]}: {reason}" for row in rows}

    def _is_stored(self, row: int) -> bool:
        digest = self.hashes.get(self.images.ids[row])
        if digest is None:
            return False
        try:
            return _files_of(self.images).version(row).hash == digest
        except (OSError, ValueError):
            return False  # encoding reports the reason


def pieces_of(images: ImageSet, stored: Contents, n_actors: int) -> Iterator[Piece]:
    """All pictures, divided so that each actor has work."""
    size = min(_PIECE_SIZE, -(-len(images) // n_actors))
    for first in range(0, len(images), size):
        part = _part(images, range(len(images))[first : first + size])
        hashes = {name: stored.hashes[name] for name in part.ids if name in stored.hashes}
        yield Piece(stored.next_number + first, part, hashes)


# -- an actor -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What is the same for all actors.

    Attributes:
        model_folder: of the trained model, absolute.
        model_hash: of the model that must be there.
        shards: where the codes go.
        run: part of the names of the files of this run, hexadecimal.
        source: where the pictures are, as recorded with their codes.
        batch_size: pictures per batch of the model.
        n_readers: processes or threads that read pictures; with 0, the actor does.
        precision, device, runtime: see `load_runtime`.
    """

    model_folder: Path
    model_hash: str
    shards: Shards
    run: str
    source: Source | None
    batch_size: int
    precision: PrecisionName
    device: str
    runtime: RuntimeName
    n_readers: int = 0

    def load(self) -> tuple[Runtime, Checkpoint]:
        """The model, ready to run.

        Raises:
            ValueError: it cannot be run here, or is another one.
        """
        model, checkpoint = load_runtime(
            self.model_folder, device=self.device, runtime=self.runtime, precision=self.precision
        )
        if checkpoint.model_hash != self.model_hash:
            raise ValueError(
                f"{self.model_folder}: on {socket.gethostname()} is model "
                f"{checkpoint.model_hash}, not {self.model_hash}"
            )
        return model, checkpoint


@dataclass(frozen=True)
class Outcome:
    """What became of a piece.

    Attributes:
        n_pictures: how many it has.
        n_encoded: those encoded now.
        skipped: id and reason of those that could not be read.
        has_changed: whether older codes of a picture are stored besides.
        notices: what was put right or left out.
        model_seconds: time spent in the model.
    """

    n_pictures: int
    n_encoded: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    has_changed: bool = False
    notices: Notices = field(default_factory=Notices)
    model_seconds: float = 0.0


class Tries:
    """An actor that knows what others did when they died: Ray starts these again, without end."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.reading: dict[int, int] = {}
        self.fatal: dict[int, list[int]] = defaultdict(list)

    def begin(self, number: int) -> tuple[int, list[int]]:
        """Notes one more try of the piece with this number.

        Returns:
            How many there were, without those that died of a picture alone; and the rows of these
            pictures.
        """
        self.counts[number] += 1
        if number in self.reading:
            self.fatal[number].append(self.reading.pop(number))
        return self.counts[number] - len(self.fatal[number]), self.fatal[number]

    def read(self, number: int, row: int | None) -> None:
        """Notes that a picture of a piece is now read alone; None after the last one."""
        if row is None:
            self.reading.pop(number, None)
        else:
            self.reading[number] = row


class Encoder:
    """An actor that encodes piece after piece with one model.

    Args:
        job: what to do.
        tries: handle of the `Tries` of the run.
    """

    def __init__(self, job: Job, tries: Any) -> None:
        self.job = job
        self.tries = tries

    @cached_property
    def model(self) -> tuple[Runtime, Checkpoint]:
        """The model and its checkpoint, loaded when the first picture needs it."""
        return self.job.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encodes the pickled "piece"; gives its pickled "outcome", or a line of "error".

        If an actor has died of the piece, its pictures are first read one by one, and those that
        kill the process are left out. If that does not help, the piece is given up.
        """
        import ray

        piece: Piece = pickle.loads(row["piece"])
        n_tries, fatal = ray.get(self.tries.begin.remote(piece.number))
        if n_tries > _TRIES:
            return _or_error(lambda: pickle.dumps(piece.given_up()))
        if n_tries + len(fatal) > 1:
            for n in sorted({*range(len(piece.images))} - {*fatal}):
                ray.get(self.tries.read.remote(piece.number, n))
                with suppress(ImageError):
                    _files_of(piece.images).read(n)
            ray.get(self.tries.read.remote(piece.number, None))
        return _or_error(lambda: pickle.dumps(self.encode(piece, fatal)))

    def encode(self, piece: Piece, fatal: Sequence[int] = ()) -> Outcome:
        """Encodes a piece and stores its codes.

        Args:
            piece: the pictures.
            fatal: rows of those that kill the process.

        Raises:
            ValueError: see `encode_set` and `Shards.write`.
            OSError: the disk refuses.
        """
        skipped = piece.refused(fatal, "reading it kills the process")
        rows = [row for row in piece.rows_to_encode() if row not in fatal]
        if not rows:
            return Outcome(len(piece.images), skipped=skipped)
        job, (model, checkpoint) = self.job, self.model
        images = _part(piece.images, rows)
        versions: dict[str, FileVersion] = {}
        with TemporaryDirectory(prefix="regionhash-") as folder:
            path = Path(folder) / "codes.h5"
            report = encode_set(
                model,
                checkpoint,
                images,
                path,
                checkpoint_path=job.model_folder,
                source=job.source,
                precision=model.precision,
                batch_size=job.batch_size,
                workers=job.n_readers,
                on_file=versions.__setitem__,
            )
            if report.n_encoded:
                self._store(piece, CodeSet.open(path), versions)
        return Outcome(
            len(piece.images),
            report.n_encoded,
            skipped | report.skipped,
            bool(versions.keys() & piece.hashes.keys()),
            images.notices,
            report.model_seconds,
        )

    def _store(self, piece: Piece, codes: CodeSet, versions: Mapping[str, FileVersion]) -> None:
        """Writes the codes of a piece as a shard."""
        row_of = {name: row for row, name in enumerate(piece.images.ids)}
        locations = _locations_of(piece.images)
        facts = []
        for name in codes.table.ids:
            location, version = locations[row_of[name]], versions[name]
            path = location if is_text(location) else None
            facts.append(Facts(piece.number + row_of[name], path, version.hash, version.taken))
        self.job.shards.write(piece.number, self.job.run, codes, facts)


def _or_error(work: Callable[[], bytes]) -> dict[str, Any]:
    """The "outcome" of some work, or a line of "error"; Ray would make a page of an exception."""
    try:
        return {"outcome": work(), "error": ""}
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return {"outcome": b"", "error": one_line(str(error))}


def _checked(row: Mapping[str, Any]) -> Any:
    """The outcome in what an actor gives. Raises ValueError with its error."""
    if row["error"]:
        raise ValueError(row["error"])
    return pickle.loads(row["outcome"])


# -- Ray ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """The actors of a run: how many there are, and the cores and GPUs that each has."""

    n_actors: int
    n_cpus: int
    n_gpus: int


def pool_of(machines: Sequence[Mapping[str, float]], workers: int | None, *, on_gpu: bool) -> Pool:
    """One actor per GPU, or else per core.

    Args:
        machines: the "CPU" and "GPU" that each has.
        workers: how many actors there are at most.
        on_gpu: whether the model runs on GPUs.
    """
    n_cpus = 1
    kind = "GPU" if on_gpu else "CPU"
    able = [machine for machine in machines if machine.get(kind, 0) >= 1]
    if on_gpu:
        n_cpus = max(1, min(int(machine["CPU"] // machine["GPU"]) for machine in able))
    n_actors = sum(int(machine[kind]) for machine in able)
    return Pool(min(n_actors, workers or n_actors), n_cpus, int(on_gpu))


def planned(job: Job, workers: int | None) -> tuple[Job, Pool]:
    """The job with everything decided that was left to choose, and the actors to do it.

    The model is loaded once on a machine like those that will run it: this one may have other
    processors, or no GPU.

    Raises:
        ValueError: the model cannot be run there.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = any(machine.get("GPU", 0) >= 1 for machine in machines) and job.device != "cpu"
    task = ray.remote(num_cpus=1, num_gpus=int(gpus))(_try_out)
    precision, on_gpu = _checked(ray.get(task.remote(job)))
    pool = pool_of(machines, workers, on_gpu=on_gpu)
    return replace(
        job,
        precision=precision,
        device="cuda" if on_gpu else "cpu",
        n_readers=min(_READERS, pool.n_cpus // 2),
    ), pool


def _try_out(job: Job) -> dict[str, Any]:
    """The precision of a model, and whether it runs on a GPU."""

    def found() -> bytes:
        model, _ = job.load()
        return pickle.dumps((model.precision, "cuda" in str(getattr(model, "device", "cpu"))))

    return _or_error(found)


def _import_ray(address: str) -> None:
    """Imports Ray for the first time: it reads its settings from the environment.

    What it starts itself is for this machine and this run alone: it listens on the loopback address
    (what Ray does on other systems than Linux; there it listens on all), and takes orders only
    with a token that it is given here, instead of one that it keeps in the home folder.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(_START_SECONDS))
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised as well
    if address == LOCAL:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # noqa: F401


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects to Ray; with `LOCAL`, it starts here and ends with the context.

    What Ray prints of its processes goes to stderr.

    Raises:
        ValueError: it does not start, or none is at the address.
    """
    _import_ray(address)
    import ray

    with (
        redirect_stdout(sys.stderr),
        TemporaryDirectory(prefix="regionhash-ray-", ignore_cleanup_errors=True) as folder,
    ):
        options: dict[str, Any] = {}
        if address == LOCAL:
            options = {
                "include_dashboard": False,
                "object_store_memory": _OBJECT_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        try:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"Ray at {address}: {one_line(str(error))}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at "HOST:PORT"; Ray tries for minutes, line by line."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def _outcomes(job: Job, pool: Pool, pieces: Iterator[Piece]) -> Iterator[Outcome]:
    """What became of each piece, as they are done. Raises ValueError for an actor's error."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a piece may take longer than Ray expects
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    tries = ray.remote(num_cpus=0)(Tries).remote()
    encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Encoder,
        fn_constructor_args=(job, tries),
        compute=ray.data.ActorPoolStrategy(size=pool.n_actors, max_tasks_in_flight_per_actor=1),
        num_cpus=pool.n_cpus,
        num_gpus=pool.n_gpus,
    )
    for row in encoded.iter_rows():
        yield _checked(row)
