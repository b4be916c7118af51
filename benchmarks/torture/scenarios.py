"""Small stories of two or three processes on a collection of their own; each must end well.

Every one returns its violations, (kind, text) each, and is run by the dozen.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np
from verify import apart, compare_all, compare_searches, number_of_row, read_rows, start_apart
from world import GONE, World


def put_all(world: World, folder: Path, numbers) -> dict[str, int]:
    """Files 0.png, 1.png, ... in a folder: what each is."""
    made = {str(folder / f"{n}.png"): int(number) for n, number in enumerate(numbers)}
    for path, number in made.items():
        world.put(path, number)
    return made


def draw(rng, n: int) -> list[int]:
    """Numbers of different pictures."""
    return rng.choice(100, n, replace=False).tolist()


def add(world: World, folder: Path, *inputs: Path) -> None:
    with world.open(folder) as collection:
        for given in inputs:
            collection.add([str(given)], workers=0)


def together(*calls) -> list:
    """What processes tell that begin at the same moment; a call is a function and its arguments."""
    begin = time.monotonic() + 0.03 * len(calls)

    def waiting(call, *args):
        time.sleep(max(0.0, begin - time.monotonic()))
        return call(*args)

    return [one for finish in [start_apart(waiting, *own) for own in calls] for one in finish()]


def read_on(world: World, folder: Path, n_pictures: int, delay: float, drop: bool) -> list:
    """Opens the collection (`drop`: often, without arrays) and checks it until all is there."""
    until, told = time.monotonic() + 5, []
    time.sleep(0 if drop else delay)
    while drop and time.monotonic() < until - 4.95 + delay:
        shutil.rmtree(folder / "arrays", ignore_errors=True)
        world.open(folder).close()
    with world.open(folder) as collection:
        while not told and time.monotonic() < until:
            n = len(collection)
            told += [("check", problem) for problem in collection.check().problems]
            if n == n_pictures:
                break
    return told


def holds(world: World, folder: Path, files: dict[str, int], seed: int) -> list:
    """The collection has exactly these files, once each, with their codes, and says so."""
    found = [(own.path, number_of_row(world, own)) for own in read_rows(folder)]
    told = []
    if sorted(found) != sorted(files.items()):
        lost = sorted(set(files.items()) - set(found))
        told.append(("lost", f"{len(lost)} of {len(files)} pictures, such as {lost[:2]}"))
    return told + compare_all(world, folder, seed, n=3)


def newborn(world: World, base: Path, rng) -> list:
    """An empty collection is filled by one process and read by others from its first moment on."""
    folder = world.fresh("newborn")
    files = put_all(world, base / "new", draw(rng, 3))
    drop = bool(rng.random() < 0.5)
    reading = [(read_on, world, folder, 3, rng.random() * 0.04, drop and n == 0) for n in range(3)]
    told = together((add, world, folder, base / "new"), *reading)
    return told + holds(world, folder, files, 0)


def clash(world: World, base: Path, rng) -> list:
    """Two folders whose files have the same relative names are added at once."""
    folder, numbers = world.fresh("clash"), draw(rng, 10)
    files = put_all(world, base / "one", numbers[:5]) | put_all(world, base / "two", numbers[5:])
    adds = [(add, world, folder, base / name) for name in ("one", "two")]
    return together(*adds) + holds(world, folder, files, 0)


def copies(world: World, base: Path, rng) -> list:
    """The same, of files with the same bytes, and of the same folder twice."""
    folder, numbers = world.fresh("copies"), draw(rng, 4)
    files = put_all(world, base / "one", numbers) | put_all(world, base / "two", numbers[::-1])
    adds = [(add, world, folder, base / name) for name in ("one", "two", "one")]
    return together(*adds) + holds(world, folder, files, 0)


def reborn(world: World, base: Path, rng) -> list:
    """A reader that has masked removed pictures goes on after the arrays were deleted."""
    folder, numbers = world.fresh("reborn"), draw(rng, 40)
    put_all(world, base / "one", numbers[:20])
    add(world, folder, base / "one")
    with world.open(folder) as reader:
        with world.open(folder) as writer:
            writer.remove([str(base / "one" / f"{n}.png") for n in range(3)])
        first = len(reader)
        shutil.rmtree(folder / "arrays", ignore_errors=True)
        put_all(world, base / "two", numbers[20:])
        told = apart(add, world, folder, base / "two")
        rows = read_rows(folder)
        if (first, len(reader)) != (17, 37):
            told.append(("hidden", f"counts {first} and {len(reader)} pictures, must be 17, 37"))
        told += compare_searches(world, reader, rows, rng, 6)
        return told + [("check", problem) for problem in reader.check().problems]


def moved(world: World, base: Path, rng) -> list:
    """A file goes from one source to another: a refresh takes over its codes."""
    folder, numbers = world.fresh("moved"), draw(rng, 6)
    files = put_all(world, base / "one", numbers[:3]) | put_all(world, base / "two", numbers[3:])
    add(world, folder, base / "one", base / "two")
    one, two = ("one", "two") if rng.random() < 0.5 else ("two", "one")
    old, new = str(base / one / "1.png"), str(base / two / "moved.png")
    os.replace(old, new)  # noqa: PTH105
    files[new] = files.pop(old)
    with world.open(folder) as collection:
        before = world.model.n_encoded
        collection.refresh(workers=0)
        n = world.model.n_encoded - before
    told = [("encoded", f"a file that was moved was encoded again ({n} pictures)")] if n else []
    return told + holds(world, folder, files, 0)


def unreadable(world: World, base: Path, rng) -> list:
    """Files that may not be read for a while are not gone."""
    folder = world.fresh("unreadable")
    files = put_all(world, base / "one", draw(rng, 3))
    files |= put_all(world, base / "one" / "closed", draw(rng, 3))
    add(world, folder, base / "one")

    def refresh_as_nobody() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        with world.open(folder) as collection:
            collection.refresh(workers=0)

    for path in (world.base, base, folder, *folder.rglob("*")):
        path.chmod(0o777)
    (base / "one" / "closed").chmod(0)
    told = apart(refresh_as_nobody)
    (base / "one" / "closed").chmod(0o755)
    return told + holds(world, folder, files, 0)


def beside(world: World, base: Path, rng) -> list:
    """Pictures are replaced in their place, the arrays deleted now and then: all are seen."""
    folder, until = world.fresh("beside"), time.monotonic() + 0.6
    files = put_all(world, base / "one", draw(rng, 4))
    add(world, folder, base / "one")

    def replace() -> None:
        with world.open(folder) as collection:
            while time.monotonic() < until:
                path = str(base / "one" / f"{rng.integers(4)}.png")
                files[path] = int(rng.integers(100))
                world.put(path, files[path])
                collection.add([str(base / "one")], workers=0)
                if rng.random() < 0.1:
                    shutil.rmtree(folder / "arrays", ignore_errors=True)

    def read() -> list:
        told = []
        with world.open(folder) as collection:
            while not told and time.monotonic() < until:
                if (n := len(collection)) != 4:
                    told.append(("hidden", f"counts {n} pictures of 4"))
                hits = collection.search(image_id="0.png", limit=9).hits
                if sorted(hit.id for hit in hits) != [f"{n}.png" for n in range(4)]:
                    told.append(("hidden", f"a search finds {sorted(h.id for h in hits)} of 4"))
                told += [("check", problem) for problem in collection.check().problems]
        return told

    told = together((replace,), (read,), (read,))
    return told + holds(world, folder, {path: world.number_of(path) for path in files}, 0)


def return_home(world: World, base: Path, rng) -> list:
    """A file is away and comes back while another process adds a copy of it."""
    folder, numbers = world.fresh("return"), draw(rng, 6)
    files = put_all(world, base / "one", numbers)
    add(world, folder, base / "one")
    world.put(str(base / "one" / "0.png"), GONE)
    files |= put_all(world, base / "two", numbers[:1] * 4)

    def back() -> None:
        time.sleep(rng.random() * 0.01)
        world.put(str(base / "one" / "0.png"), numbers[0])
        add(world, folder, base / "one")

    told = together((back,), (add, world, folder, base / "two"))
    return told + holds(world, folder, files, 0)


SCENARIOS = {
    "newborn": newborn,
    "clash": clash,
    "copies": copies,
    "reborn": reborn,
    "moved": moved,
    "unreadable": unreadable,
    "beside": beside,
    "return home": return_home,
}


def play(world: World, name: str, seed: int) -> list:
    """One story, in a process of its own."""
    base = world.base / f"story-{seed}"
    base.mkdir()
    try:
        return SCENARIOS[name](world, base, np.random.default_rng(seed))
    finally:
        for own in [base, *world.base.glob(f"*-{os.getpid()}-*")]:
            shutil.rmtree(own, ignore_errors=True)
