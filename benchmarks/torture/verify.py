"""What is in a collection, read without the package, and the comparison of all that it says."""

import os
import pickle
import select
import shutil
import signal
import sqlite3
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from history import ABSENT, allowed, contents_of, owner, story
from world import GONE, Board, World, fork, key_of, parts_of, shown, wait

from regionhash.collection import Collection, Filter, Query
from regionhash.store import CodeFile

COLUMNS = ("image_codes", "boxes", "scores", "labels", "region_codes")


@dataclass(frozen=True, eq=False)
class Row:
    """One picture as `collection.db` has it."""

    row: int
    id: str
    path: str | None
    digest: bytes | None
    key: bytes
    image_code: np.ndarray
    region_codes: np.ndarray
    boxes: list


def read_rows(folder: Path) -> list[Row]:
    """All pictures in the order of their rows: the one place that knows the tables."""
    query = (
        "SELECT row, coalesce(id, ids || CAST(path AS TEXT)), CAST(place || path AS BLOB), hash, "
        f"{', '.join(COLUMNS)} FROM images LEFT JOIN folders USING (folder) ORDER BY row"
    )
    with closing(sqlite3.connect(folder / "collection.db", timeout=60)) as connection:
        return [
            Row(
                row,
                image_id,
                None if path is None else str(folder / os.fsdecode(path)),  # uploads are relative
                digest,
                key_of(parts),
                np.frombuffer(parts[0], np.uint8),
                np.frombuffer(parts[4], np.uint8).reshape(-1, 2),
                (np.frombuffer(parts[1], "<u2").reshape(-1, 4) / 16).tolist(),
            )
            for row, image_id, path, digest, *parts in connection.execute(query)
        ]


def left_out(folder: Path) -> frozenset[bytes]:
    """Hashes of pictures that were removed while their file was there."""
    with closing(sqlite3.connect(folder / "collection.db", timeout=60)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'left_out'").fetchone():
            return frozenset()
        return frozenset(digest for (digest,) in connection.execute("SELECT hash FROM left_out"))


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each code of `a` to each of `b`, by unpacked bits."""
    return (np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)[None]).sum(axis=2)


def rank(rows: list[Row], codes: np.ndarray, *, whole: bool) -> list[tuple]:
    """Row, distance and boxes of all pictures, by a loop over the rows of the database."""
    found = []
    for own in rows:
        if whole:
            found.append((int(hamming(codes, own.image_code[None])[0, 0]), own.row, []))
        elif len(own.region_codes):
            distances = hamming(codes, own.region_codes)
            best = distances.argmin(axis=1)
            found.append((int(distances.min(axis=1).sum()), own.row, [own.boxes[n] for n in best]))
    return [(row, distance, boxes) for distance, row, boxes in sorted(found, key=lambda f: f[:2])]


def compare_searches(world: World, collection: Collection, rows: list[Row], rng, n: int) -> list:
    """Searches that do not give what the loop gives: (kind, text) each."""
    told = []
    for _ in range(n if rows else 0):
        asked, other = (rows[int(rng.integers(len(rows)))] for _ in range(2))
        mode = ("image", "region", "objects")[int(rng.integers(3))]
        among, wanted = rows, None
        if asked.path and rng.random() < 0.4:
            folder = os.path.dirname(asked.path)  # noqa: PTH120 (a text that need not be UTF-8)
            among = [own for own in rows if own.path and own.path.startswith(folder + "/")]
            wanted = Filter(folder=folder)
        offset = int(rng.choice([0, 0, 1, 5, len(among) - 1, len(among), len(among) + 3]))
        limit = int(rng.choice([1, 7, 1000]))
        region = int(rng.integers(len(asked.region_codes)))
        queries, codes = [Query(image_id=asked.id)], asked.image_code[None]
        if mode != "image":
            queries, codes = (
                [Query(image_id=asked.id, regions=[region])],
                asked.region_codes[[region]],
            )
        if mode == "objects":
            queries.append(Query(image_id=other.id, regions=[0]))
            codes = np.concatenate([codes, other.region_codes[:1]])
        right = rank(among, codes, whole=mode == "image")
        found = collection.search(
            queries=queries,
            mode=mode,
            assignment="shared" if mode == "objects" else "distinct",  # as the loop has it
            filter=wanted,
            offset=offset,
            limit=limit,
        )
        hits = [(h.row, h.distance, [list(m.box) for m in h.matches]) for h in found.hits]
        if (hits, found.more) != (right[offset : offset + limit], len(right) > offset + limit):
            told.append(
                (
                    "search",
                    f"{mode} like {asked.id!r}, folder {wanted}, {offset=}, {limit=}: "
                    f"got {hits[:4]} of {len(hits)}, must be {right[offset:][:4]} of {len(right)}",
                )
            )
        if found.searched != len(among):
            told.append(("search", f"searched {found.searched} pictures of {len(among)}"))
    return told


def compare_all(world: World, folder: Path, seed: int, *, n: int = 6, lose_arrays=False) -> list:
    """Everything that the collection itself says, at a moment when nobody changes it."""
    if lose_arrays:
        shutil.rmtree(folder / "arrays", ignore_errors=True)
    told, rows, rng = [], read_rows(folder), np.random.default_rng(seed)
    with world.open(folder) as collection:
        if sorted((image.row, image.id) for image in collection.images()) != sorted(
            (own.row, own.id) for own in rows
        ):
            told.append(("ids", "images() are not those of the database"))
        if not len(collection) == collection.info()["pictures"] == len(rows):
            told.append(("search", f"says to hold {len(collection)} pictures, holds {len(rows)}"))
        told += compare_searches(world, collection, rows, rng, n)
        report = collection.check()
        told += [("check", problem) for problem in report.problems]
        gone = {own.id for own in rows if own.path and not Path(own.path).exists()}
        if set(report.missing) != gone:
            told.append(("check", f"missing {sorted(report.missing)}, must be {sorted(gone)}"))
    return told


def attempt(call, *args) -> list:
    """What it tells; an error is a violation, and what is there now is known all the same."""
    try:
        return call(*args)
    except Exception:
        return [("exception", traceback.format_exc())]


def compare_export(world: World, folder: Path, seed: int) -> list:
    """What a code file and a new collection made of it hold otherwise than the database."""
    rows = read_rows(folder)
    path, new = folder.parent / f"export-{seed}.h5", world.fresh("imported")
    # An id that would lead to another file gives way to the whole path.
    whole = {own.id: shown(own.path) for own in rows if own.path}
    wanted = Counter((whole.get(own.id, own.id), own.key) for own in rows)
    with world.open(folder) as collection:
        collection.export(path)
    table = CodeFile.open(path).table
    exported = Counter()
    for n, image_id in enumerate(table.ids):
        parts = parts_of(table.image_codes[n], table.regions(n))
        exported[whole.get(image_id, image_id), key_of(parts)] += 1
    told = [] if exported == wanted else [("export", f"differs in {_difference(exported, wanted)}")]
    with world.open(new) as collection:
        collection.import_codes(path)
    imported = Counter((whole.get(own.id, own.id), own.key) for own in read_rows(new))
    if imported != wanted:
        told.append(("export", f"the import differs in {_difference(imported, wanted)}"))
    told += compare_all(world, new, seed, n=2)
    shutil.rmtree(new)
    path.unlink()
    return told


def _difference(a: Counter, b: Counter) -> str:
    return str([image_id for image_id, _ in [*(a - b), *(b - a)]][:5])


def names_of(world: World, rows: list[Row], folder: Path) -> tuple[dict[str, list[Row]], list]:
    """The rows of each picture that the oracle knows, and what is wrong with single rows."""
    told, found = [], defaultdict(list)
    uploads = str(folder / "uploads") + "/"
    if len({own.id for own in rows}) != len(rows):
        told.append(("doubled", "two rows have one id"))
    for own in rows:
        name = own.path or f"import/{own.id}"
        if own.path and own.path.startswith(uploads):
            number = world.number_of(own.path)
            name = f"upload/{number}"
            if number == GONE:
                told.append(("upload", f"{own.id!r} is there without its file"))
        elif own.path and own.id not in (shown(own.path), *relative_ids(world, own.path)):
            told.append(("ids", f"{own.path!r} has the id {own.id!r}"))
        found[name].append(own)
        number = number_of_row(world, own)
        if number is None:
            told.append(("torn", f"{name!r}: codes and boxes of no picture"))
        elif own.digest is not None and world.by_digest.get(own.digest) != number:
            told.append(("mixed", f"{name!r}: codes of {number}, but the hash of another"))
    return found, told


def number_of_row(world: World, own: Row) -> int | None:
    """Which picture has these codes and boxes; a service's batch may round boxes otherwise."""
    if own.key in world.by_key or not (own.path and "/uploads/" in own.path):
        return world.by_key.get(own.key)
    for picture in world.pictures:
        regions = picture.encoded.regions
        if len(own.boxes) == len(regions) and np.allclose(own.boxes, regions.boxes, atol=0.1):
            far = hamming(own.image_code[None], picture.encoded.image_code[None]).sum()
            return picture.number if far <= 2 else None
    return None


def relative_ids(world: World, path: str) -> list[str]:
    starts = [str(own) + "/" for own in world.all_folders]
    return [shown(path[len(start) :]) for start in starts if path.startswith(start)]


def verify_round(world, before: dict, files: dict, records: dict, operations: list, seed: int):
    """Violations at a quiet point, and what each picture is now.

    Args:
        world: of the run.
        before: number of each picture at the last quiet point; absent ones are left out.
        files: number of each file then.
        records: notes of each process.
        operations: of all processes.
        seed: of the searches.
    """
    rows = read_rows(world.folder)
    found, told = names_of(world, rows, world.folder)
    now, out = {}, left_out(world.folder)
    imported = [f"import/{number}.png" for number in world.imported]
    uploads = [own.scope for own in operations if own.scope.startswith("upload/")]
    for name in dict.fromkeys([*world.paths, *imported, *uploads, *before, *found]):
        numbers = [number_of_row(world, own) for own in found.get(name, [])]
        observed = numbers[0] if numbers else ABSENT
        now |= {name: observed} if numbers else {}
        if name.startswith("/"):
            contents = contents_of(name, files.get(name, GONE), owner(name, records))
        else:
            contents = contents_of(name, fixed_number(name), [])
        may_be = allowed(name, before.get(name, ABSENT), contents, operations)
        if len(numbers) > 1:
            told.append(("doubled", f"{name!r} is there {len(numbers)} times"))
        if name not in world.cell and name.startswith("/"):
            told.append(("invented", f"{name!r} is no file that anyone added"))
        elif observed == ABSENT and world.digest_of.get(contents[-1].number) in out:
            pass  # it was removed while its file was there, which has the same bytes now
        elif observed not in may_be:
            kind = "lost" if observed == ABSENT else "ghost" if may_be == {ABSENT} else "stale"
            text = (
                f"{name!r} is {observed}, may be {sorted(may_be)}, was {before.get(name, ABSENT)}"
            )
            told.append((kind, "\n".join([text, *story(name, contents, operations)])))
    told += attempt(compare_all, world, world.folder, seed)
    if seed % 3 == 0:
        told += attempt(lambda: compare_all(world, world.folder, seed + 1, lose_arrays=True))
    if seed % 4 == 0:
        told += attempt(compare_export, world, world.folder, seed)
    return told, now


def fixed_number(name: str) -> int:
    """The picture of a name that always stands for the same: "upload/7", "import/102.png"."""
    return int(Path(name).stem)


# -- searches while others write ------------------------------------------------------------------


def look(world: World, collection: Collection, rng) -> list:
    """One search that takes all pictures, and what of it cannot be true at any moment of it."""
    keep = str(world.keeps[int(rng.integers(len(world.keeps)))])
    picture = world.pictures[world.board.state(world.cell[keep]) - Board.SURE]
    region = int(rng.integers(len(picture.encoded.regions)))
    mode = ("image", "region")[int(rng.integers(2))]
    wanted = Filter(folder=str(Path(keep).parent)) if rng.random() < 0.3 else None
    query = Query(image_id=Path(keep).name, regions=[] if mode == "image" else [region])
    before = world.board.cells.copy()
    found = collection.search(queries=[query], mode=mode, filter=wanted, limit=1000)
    steady = world.board.steady(before)
    code = picture.encoded.image_code
    if mode == "region":
        code = picture.encoded.regions.codes[region]
    return [
        (kind, f"{mode}, {wanted}: {text}", *path)
        for kind, text, *path in judge(world, found.hits, steady, code, mode, wanted)
    ]


def judge(world: World, hits, steady, code, mode: str, wanted: Filter | None) -> list:
    """What the hits of a search contradict of that which was certain all the time."""
    told, at = [], defaultdict(list)
    for hit in hits:
        # A row that was replaced or removed during the search tells no file, but its id.
        at[str(hit.path) if hit.path else world.path_of_id.get(hit.id, hit.id)].append(hit)
    for what in ("row", "id"):
        ((most, count),) = Counter(getattr(hit, what) for hit in hits).most_common(1) or [(0, 0)]
        if count > 1:
            told.append(("doubled", f"a search finds {what} {most!r} {count} times"))
    distances = [hit.distance for hit in hits]
    if distances != sorted(distances):
        told.append(("search", "hits are not in the order of their distance"))
    for cell, state in steady:
        path = world.paths[cell]
        outside = wanted is not None and not path.startswith(wanted.folder + "/")
        own = at.get(path, [])
        if not own and state == Board.THERE and not outside:
            # Being replaced: it may have an id that others share.
            own = [hit for n in relative_ids(world, path) for hit in at.get(n, [])][:1]
        if outside or state == Board.ABSENT:
            if own:
                told.append(
                    ("ghost", f"a search finds {path!r}, row {own[0].row}, not there", path)
                )
        elif len(own) != 1:
            kind = "doubled" if own else "hidden"
            told.append((kind, f"a search finds {path!r} {len(own)} times", path))
        elif state >= Board.SURE:
            encoded = world.pictures[state - Board.SURE].encoded
            codes = encoded.image_code[None] if mode == "image" else encoded.regions.codes
            right = int(hamming(code[None], codes).min())
            if own[0].distance != right:
                text = f"{path!r} at distance {own[0].distance}, must be {right}"
                told.append(("stale", text, path))
    return told


def look_at_snapshot(world: World, collection: Collection) -> list:
    """Pictures of a snapshot that are torn or there twice."""
    snapshot = collection.snapshot
    table = snapshot.table
    alive = np.ones(len(table), bool) if snapshot.alive is None else snapshot.alive
    ids, told = [], []
    for n in np.flatnonzero(alive).tolist():
        parts = parts_of(table.image_codes[n], table.regions(n))
        ids.append(table.ids[n])
        if key_of(parts) not in world.by_key and "uploads/" not in ids[-1]:
            told.append(("torn", f"snapshot: {ids[-1]!r} has codes and boxes of no picture"))
    if len(set(ids)) != len(ids):
        told.append(("doubled", "a snapshot holds an id twice"))
    if len(ids) < len(world.keeps):
        told.append(("hidden", f"a snapshot holds {len(ids)} pictures, fewer than always are"))
    return told


def start_apart(call, *args, seconds: float = 120) -> Callable:
    """Begins `call` in a process of its own; what is returned waits for it and gives its result.

    Its death, an error or silence is a violation.
    """
    reading, writing = os.pipe()

    def answer() -> None:
        os.close(reading)
        try:
            result = call(*args) or []
        except Exception:
            result = [("exception", traceback.format_exc())]
        with os.fdopen(writing, "wb") as file:
            pickle.dump(result, file)

    process = fork(answer)
    os.close(writing)
    until = time.monotonic() + seconds

    def finish():
        content, chunk = b"", None
        while (
            chunk != b"" and select.select([reading], [], [], max(0, until - time.monotonic()))[0]
        ):
            chunk = os.read(reading, 1 << 20)
            content += chunk
        if chunk != b"":
            os.kill(process, signal.SIGKILL)
        os.close(reading)
        _, status = wait(process)
        try:
            return pickle.loads(content)
        except (EOFError, pickle.UnpicklingError):
            word = "was silent for long" if chunk != b"" else f"ended with status {status}"
            return [("crash", f"{call.__name__} {word}")]

    return finish


def apart(call, *args, seconds: float = 120):
    """The same, waited for."""
    return start_apart(call, *args, seconds=seconds)()
