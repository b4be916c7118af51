"""What all processes of a torture run share: pictures with known codes, folders, and a board."""

import ctypes
import hashlib
import io
import mmap
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from regionhash.collection import Collection
from regionhash.data.images import read_image_bytes
from regionhash.models.checkpoints import Checkpoint, build_model, load_checkpoint, save_checkpoint
from regionhash.models.encoding import encode_picture
from regionhash.structures import EncodedImage, Regions

GONE, BROKEN = -1, -2
"""What a file can be beside the number of a picture: not there, or bytes that are no picture."""

BROKEN_BYTES = b"no picture"
N_SHARED, N_UPLOADS, N_IMPORTED = 110, 24, 6
NAMES = (
    "a.png",
    "b.jpg",
    "sub/a.png",
    "with space.png",
    "back\\slash.png",
    os.fsdecode(b"\xff\xfe.png"),
    "n" * 200 + ".png",
    "sub/\u00e4 [x]*?.png",
)
"""Names that every folder has: relative to their folders they clash."""

_TINY = {
    "n_bits": 32,
    "n_classes": 10,
    "backbone": "tiny_fpn",
    "weights": "none",
    "n_proposals": 8,
    "n_hidden": 32,
    "fpn_channels": 16,
    "n_region_bits": 16,
    "max_regions": 5,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture file and what the model makes of it, alone; `key` is all of that as bytes."""

    number: int
    content: bytes
    encoded: EncodedImage
    key: bytes


class Replay:
    """Stands for the model in forked processes: remembers what it said of each picture."""

    def __init__(self, model) -> None:
        self._model, self._said, self.n_encoded = model, {}, 0

    def __getattr__(self, name):
        return getattr(self.__dict__["_model"], name)

    def encode(self, images):
        self.n_encoded += len(images)
        return [self._of(image) for image in images]

    def _of(self, image):
        key = (tuple(image.shape), image.numpy().tobytes())
        if key not in self._said:
            (self._said[key],) = self._model.encode([image])
        return self._said[key]


def _own(path: str | Path) -> str:
    """What the names that only one folder has end with."""
    folder = Path(path).parent
    return f"{folder.parent.name}{folder.name}"


def shown(path: str) -> str:
    """An id that is a whole path."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def parts_of(image_code: np.ndarray, regions: Regions) -> list[np.ndarray]:
    """The columns of `COLUMNS` as the database has them; the pictures are small, of few classes."""
    most = np.where(regions.scores < 1, np.float16(1 - 2**-11), np.float16(1))
    return [
        image_code,
        np.rint(regions.boxes * 16).astype("<u2"),
        np.minimum(regions.scores.astype("<f2"), most),
        regions.labels.astype("<i1"),
        regions.codes,
    ]


def key_of(parts) -> bytes:
    return b"|".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)


class Board:
    """Numbers in shared memory: what each picture file certainly is in the collection right now.

    Whoever changes a file or the collection says UNKNOWN (or THERE, of a file that is replaced)
    before, and the truth after it was acknowledged. A search during which a cell did not change
    must agree with it. Cells count their changes, so that going back is seen.
    """

    UNKNOWN, ABSENT, THERE, SURE = 0, 1, 2, 3  # SURE + number: there, with just that picture
    STOP, FULL, PORT, SERVICE = range(4)  # FULL is odd while the disk is full
    _ROOM = 1000

    def __init__(self, n_cells: int) -> None:
        self.flags = np.frombuffer(mmap.mmap(-1, 8 * 4), np.int64)
        self.cells = np.frombuffer(mmap.mmap(-1, 8 * n_cells), np.int64)

    def say(self, cell: int, state: int) -> None:
        self.cells[cell] = (self.cells[cell] // self._ROOM + 1) * self._ROOM + state

    def state(self, cell: int) -> int:
        return int(self.cells[cell] % self._ROOM)

    def steady(self, before: np.ndarray) -> list[tuple[int, int]]:
        """Cell and state of those that are known and have not changed since the copy `before`."""
        known = (before == self.cells) & (before % self._ROOM != self.UNKNOWN)
        return [(int(n), int(before[n] % self._ROOM)) for n in np.flatnonzero(known)]


class World:
    """Everything that is made before the first fork; nothing here starts a thread."""

    def __init__(self, base: Path, collection: Path, seed: int, n_writers: int) -> None:
        self.base, self.folder, self.seed, self.n_writers = base, collection, seed, n_writers
        self.template = base / "template"
        _save_model(self.template, seed)
        model, self.checkpoint = load_checkpoint(self.template)
        self.model = Replay(model.eval())
        self.pictures = self._make_pictures(np.random.default_rng(seed))
        self.by_key = {own.key: own.number for own in self.pictures}
        self.by_digest = {hashlib.sha256(own.content).digest(): own.number for own in self.pictures}
        self.digest_of = {number: digest for digest, number in self.by_digest.items()}
        self.folders = [[base / f"w{n}" / part for part in "AB"] for n in range(n_writers)]
        self.all_folders = [own for pair in self.folders for own in pair]
        self.keeps = [own / f"keep-{_own(own / 'name')}.png" for own in self.all_folders]
        self.paths = [str(own / name) for own in self.all_folders for name in self.names(own)]
        self.cell = {path: n for n, path in enumerate(self.paths)}
        self.board = Board(len(self.paths))
        self.path_of_id = {shown(path): path for path in self.paths}
        self.path_of_id |= {Path(p).name: p for p in self.paths if p.endswith(f"{_own(p)}.png")}
        Collection.create(self.template, precision="32-true").close()  # as the oracle encodes
        shutil.rmtree(self.template / "arrays", ignore_errors=True)
        shutil.copytree(self.template, collection, dirs_exist_ok=True)

    def names(self, folder: Path) -> list[str]:
        """Of the files of a folder: those that clash, and some that no other folder has."""
        own = f"{_own(folder / 'name')}.png"
        return [*NAMES, f"keep-{own}", f"own-{own}", f"blink-{own}", f"single-{own}"]

    def open(self, folder: Path | None = None) -> Collection:
        """The collection, with the model that is in memory."""
        opened = Collection.open(folder or self.folder, device="cpu")
        opened.model = self.model, self.checkpoint
        return opened

    def fresh(self, name: str) -> Path:
        """A new collection without pictures, beside the one that is tortured."""
        folder = self.base / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        shutil.copytree(self.template, folder)
        return folder

    def content(self, number: int) -> bytes:
        return BROKEN_BYTES if number == BROKEN else self.pictures[number].content

    def number_of(self, path: str) -> int:
        """What the file is."""
        try:
            content = Path(path).read_bytes()
        except OSError:
            return GONE
        return self.by_digest.get(hashlib.sha256(content).digest(), BROKEN)

    def put(self, path: str, number: int) -> None:
        """Makes the file a picture, broken or gone, in one step, with a time that is its own."""
        if number == GONE:
            Path(path).unlink()
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(path).parent / ".new"
        temporary.write_bytes(self.content(number))
        os.utime(temporary, ns=(time.time_ns(),) * 2)
        temporary.replace(path)

    def _make_pictures(self, rng) -> list[Picture]:
        """Pictures of which no two have the same codes and boxes, all with regions."""
        made: dict[bytes, Picture] = {}
        while len(made) < N_SHARED + N_UPLOADS + N_IMPORTED:
            blocks = rng.integers(0, 256, (*rng.integers(8, 13, 2), 3), dtype=np.uint8)
            stream = io.BytesIO()
            kind = "JPEG" if len(made) % 3 == 0 else "PNG"
            Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(stream, kind)
            pixels = read_image_bytes(stream.getvalue(), "made", max_pixels=1 << 20)
            encoded = encode_picture(self.model, self.checkpoint, pixels)
            key = key_of(parts_of(encoded.image_code, encoded.regions))
            if len(encoded.regions):
                made.setdefault(key, Picture(len(made), stream.getvalue(), encoded, key))
        return list(made.values())


def _save_model(folder: Path, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build_model("region-dh", _TINY)
    with torch.no_grad():  # spread around 0.5, so that codes of untrained weights differ
        for layer in (model.h1, model.h2):
            for parameter in layer.parameters():
                parameter.mul_(20)
    save_checkpoint(folder, model, Checkpoint("region-dh", _TINY, tuple("0123456789"), short=64))


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
FORKED: set[int] = set()
"""Processes that this one has started and not waited for by `wait`."""


def fork(call, *args) -> int:
    """The id of a new process that does this and nothing else, and dies with the one that asks."""
    # An interruption in the midst of it would lose the number of the new process.
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
    process = os.fork()
    if process:
        FORKED.add(process)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        return process
    code = 1
    try:
        FORKED.clear()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        call(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int, options: int = 0) -> tuple[int, int]:
    """`os.waitpid`."""
    ended, status = os.waitpid(process, options)
    if ended:
        FORKED.discard(process)
    return ended, status


def end_all() -> None:
    """Nothing that was forked goes on."""
    for process in list(FORKED):
        os.kill(process, signal.SIGKILL)
        wait(process)
