"""An engine in memory, collections of random codes, and what every engine must do."""

import os
from types import SimpleNamespace

import numpy as np

from regionhash.collection import Collection, Filter, Query, Search
from regionhash.collection.database import DATABASE_FILE, Database, FileState, NewImage
from regionhash.engines import EngineError, Held, Stored
from regionhash.models.checkpoints import Checkpoint
from regionhash.search.scan import BagSearch, scan_bags
from regionhash.store import rows_of
from regionhash.structures import EncodedImage, Regions

CLASSES = ("cat", "dog", "cow")
MODEL = {
    "model": "region-dh",
    "model_hash": "abc",
    "classes": list(CLASSES),
    "n_bits": 16,
    "n_region_bits": 8,
    "meta": {"precision": "32-true", "provenance": {}},
}


class MemoryBackend:
    """An engine as slow and simple as can be; `entries` may be changed behind its back."""

    place = "memory"

    def __init__(self, owner):
        self.owner = owner
        self.record = None
        self.marks = frozenset()
        self.entries = {}  # number: (image code or None, region codes)
        self.seen = []  # conditions that were asked for
        self.n_inserts_left = None

    def create(self):
        if self.record is None:
            self.record = self.owner.record
        self.owner.check(self.place, self.record)

    def held(self):
        if self.record is not None:
            self.owner.check(self.place, self.record)
        return Held(len(self.entries), sum(len(regions) for _, regions in self.entries.values()))

    def stamps(self):
        return self.marks

    def stamp(self, stamp):
        self.marks = frozenset([stamp])

    def insert(self, codes, facts):
        table = codes.table
        for n, fact in enumerate(facts):
            if self.n_inserts_left is not None:
                if not self.n_inserts_left:
                    raise EngineError("memory: is gone")
                self.n_inserts_left -= 1
            assert fact.number not in self.entries
            image = None if table.image_codes is None else np.array(table.image_codes[n])
            self.entries[fact.number] = image, np.array(table.regions(n).codes)

    def remove(self, numbers):
        for number in numbers.tolist():
            self.entries.pop(number, None)

    def stored(self, part, *, codes):
        for number in sorted(self.entries):
            image, regions = self.entries[number]
            own = np.zeros((1, 0), np.uint8) if image is None else image[None]
            own = regions if part == "region" else own
            positions = np.arange(len(own))
            yield Stored(np.full(len(own), number), positions, own if codes else own[:, :0])

    def nearest(self, search):
        self.seen.append(search.condition)
        numbers = np.array(sorted(self.entries), np.int64)
        numbers = [n for n in numbers.tolist() if self._meets(n, search.condition)]
        if search.condition.filter != Filter():  # as one that cannot apply it itself
            numbers = np.array(numbers, np.int64)[search.may_be_found(np.array(numbers, np.int64))]
        part = 1 if search.part == "region" else 0
        bags = [np.atleast_2d(self.entries[n][part]) for n in numbers]
        offsets = np.cumsum([0, *map(len, bags)])
        width = search.queries.shape[1]
        codes = np.concatenate([np.zeros((0, width), np.uint8), *bags])
        asked = BagSearch(search.queries, search.top, None, search.max_distance)
        ((found, distances),) = scan_bags([asked], codes, offsets)
        return np.array(numbers, np.int64)[found], distances

    def _meets(self, number, condition):
        among = condition.among is None or number in condition.among
        return number <= condition.up_to and among and number not in condition.without

    def drop(self):
        self.record, self.entries, self.marks = None, {}, frozenset()

    def close(self):
        pass


def random_picture(rng, n_regions):
    """Codes of few different values, so that there are ties."""
    corners = np.sort(rng.integers(0, 1600, (n_regions, 2, 2)), axis=1) / 16
    return EncodedImage(
        (100, 100),
        rng.integers(0, 4, 2, dtype=np.uint8),
        np.full(3, 0.25, np.float32),
        Regions(
            corners.reshape(-1, 4).astype(np.float32),
            np.sort(rng.integers(0, 5, n_regions) / 4)[::-1].astype(np.float32),
            rng.integers(0, 3, n_regions),
            rng.integers(0, 16, (n_regions, 1), dtype=np.uint8),
        ),
    )


def made(folder, engine="local"):
    """A collection of random codes whose model is never run."""
    folder.mkdir(exist_ok=True)
    Database.create(folder / DATABASE_FILE, MODEL).close()
    collection = Collection(folder, engine=engine)
    model = SimpleNamespace(shared_code_space=False, precision="32-true")
    collection._model = model, Checkpoint("region-dh", {}, CLASSES, 64, "abc")
    return collection


def add(collection, rng, count):
    """Adds random pictures, some without regions, some with known labels; returns their rows."""
    first = collection._database.version()[0]
    images = []
    for n in range(first, first + count):
        picture = random_picture(rng, int(rng.integers(0, 5)))
        shows = None if n % 3 else rng.choice(3, int(rng.integers(0, 3)), replace=False).tolist()
        path = os.fsencode(f"/photos/{'ab'[n % 2]}/{n}.jpg")
        taken = None if n % 5 == 0 else float(n)
        state = FileState(path, b"%032d" % n, taken=taken)
        images.append(NewImage(f"{n}.jpg", state, None, rows_of(f"{n}.jpg", picture, shows, MODEL)))
    with Database(collection.folder / DATABASE_FILE) as database:
        database.store(images)
    return list(range(first + 1, first + count + 1))


FILTERS = (
    Filter(),
    Filter(labels=("cat",)),
    Filter(labels=("cat", "dog"), min_score=0.5),
    Filter(min_score=0.75),
    Filter(after=7.0),
    Filter(before=23.0, after=3.0, labels=("cow",)),
    Filter(folder="/photos/a"),
    Filter(folder="/photos/b", before=40.0),
    Filter(after=1e9),
)


def searches(rng):
    """Searches of every kind that an engine must know, by random codes."""
    whole = Query(random_array(rng), encoded=random_picture(rng, 0))
    objects = Query(random_array(rng), encoded=random_picture(rng, 3), regions=(0, 2))
    one = Query(random_array(rng), encoded=random_picture(rng, 1), regions=(0,))
    other = Query(random_array(rng), encoded=random_picture(rng, 2), regions=(1,))
    for chosen in FILTERS:
        yield Search([whole], mode="image", filter=chosen, limit=4, offset=3)
        yield Search([one], mode="region", filter=chosen, limit=5)
        yield Search([one], exclude=[other], mode="objects", max_distance=0, filter=chosen)
        yield Search([objects], mode="objects", assignment="shared", filter=chosen, limit=5)
        yield Search([objects, other], mode="objects", filter=chosen, limit=5, offset=2)
        yield Search([one], mode="region", steps=("exact", "local-expand"), filter=chosen)
    yield Search([one], mode="region", limit=1000, group_within=0)


def random_array(rng):
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def same_answers(collection, engine, rng):
    """An engine answers every search as the collection itself does, hit by hit."""
    for search in searches(rng):
        expected = collection.results(search, engine="local")
        found = collection.results(search, engine=engine)
        assert found.hits == expected.hits, search
        assert (found.more, found.searched) == (expected.more, expected.searched), search
