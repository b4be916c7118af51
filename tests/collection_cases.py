"""Pictures for collections, made without a model: processes that tests start import it quickly."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np

from regionhash.collection import Collection
from regionhash.collection.database import FileState, NewImage
from regionhash.store import rows_of
from regionhash.structures import EncodedImage, Regions

MODEL = {
    "model": "region-dh",
    "model_hash": "abc",
    "classes": ["cat", "dog"],
    "n_bits": 16,
    "n_region_bits": 8,
    "meta": {"precision": "32-true"},
}


def encoded(n, n_regions=2):
    """Codes that tell their number; a collection keeps their boxes and scores exactly."""
    rng = np.random.default_rng(n)
    corners = np.sort(rng.integers(0, 1600, (n_regions, 2, 2)), axis=1) / 16
    return EncodedImage(
        (100 + n, 200),
        rng.integers(0, 256, 2, dtype=np.uint8),
        np.array([0.5, 0.5], np.float32),
        Regions(
            corners.reshape(-1, 4).astype(np.float32),
            rng.random(n_regions).astype(np.float16).astype(np.float32),
            rng.integers(0, 2, n_regions),
            rng.integers(0, 256, (n_regions, 1), dtype=np.uint8),
        ),
    )


def new_image(n, **state):
    return NewImage(
        f"{n}.jpg",
        FileState(os.fsencode(f"/photos/{n}.jpg"), b"%d" % n, **state),
        None,
        rows_of(f"{n}.jpg", encoded(n), None, MODEL),
    )


def make_version(version, folder):
    """Makes an empty database what it was before it had folders (3), or small types as well (2)."""
    connection = sqlite3.connect(folder / "collection.db")
    with connection:
        connection.executescript(_WITHOUT_FOLDERS)
        header = f"json_set(header, '$.version', {version})"
        connection.execute(f"UPDATE about SET header = {header}")
        for rowid, header in connection.execute("SELECT rowid, header FROM about").fetchall():
            crc = zlib.crc32(header.encode())
            connection.execute("UPDATE about SET checksum = ? WHERE rowid = ?", (crc, rowid))
        if version == 2:
            connection.execute("DROP INDEX images_by_hash")
            connection.execute("CREATE INDEX images_by_hash ON images (hash)")
        connection.execute(f"PRAGMA user_version = {version if version > 2 else 0}")
    connection.close()


_WITHOUT_FOLDERS = """
DROP TABLE images;
DROP TABLE folders;
CREATE TABLE images (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    path BLOB UNIQUE,
    source INTEGER REFERENCES sources,
    hash BLOB,
    n_bytes INTEGER,
    mtime_ns INTEGER,
    taken REAL,
    added REAL NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    image_codes BLOB, class_probs BLOB, image_labels BLOB, boxes BLOB, scores BLOB, labels BLOB,
    region_codes BLOB, categories BLOB, category_probs BLOB, category_codes BLOB,
    region_features BLOB,
    name TEXT,
    checksum INTEGER
);
CREATE INDEX images_by_hash ON images (substr(hash, 1, 8));
CREATE INDEX images_without_file ON images (name) WHERE path IS NULL;
CREATE TRIGGER removed AFTER DELETE ON images BEGIN
    INSERT INTO removals (row) VALUES (old.row);
END;
"""


PRELUDE = """
import sys
import time
from pathlib import Path
from collection_cases import new_image
from regionhash.collection import Collection
from regionhash.collection.database import Database
from regionhash.store import StoreError
"""


def child(code, *args, **options):
    """A Python process that runs some code, with what stores pictures imported."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def holds(folder, numbers):
    """The collection has exactly these pictures, once each, with their codes, in their order."""
    with Collection(folder) as collection:
        table = collection.code_file().table
        assert list(table.ids) == [f"{n}.jpg" for n in numbers]
        for at, n in enumerate(numbers):
            np.testing.assert_array_equal(table.image_codes[at], encoded(n).image_code)
            for part in ("codes", "boxes", "scores", "labels"):
                np.testing.assert_array_equal(
                    getattr(table.regions(at), part), getattr(encoded(n).regions, part)
                )
        assert collection.check().problems == ()
