"""How a database keeps the ids and paths of its pictures: what those of a folder share, once.

Most ids end with the name of the picture's file. Then neither the id nor the path is in the row,
only the name and the number of a folder, which has what stands before the name in both. Any other
id is in the row, and its folder has none. A picture without a file has no folder, and neither has
one of a database of an earlier version, whose rows keep whole ids and paths.

Rows are read through `PICTURES`, which puts both together again. If a folder is damaged, the
checksums of its rows fail.
"""

from __future__ import annotations

from typing import AnyStr

FOLDERS_FROM = 4
"""The first version of the database with folders."""

FOLDERS = """
CREATE TABLE IF NOT EXISTS folders (
    folder INTEGER PRIMARY KEY,
    place BLOB NOT NULL,           -- what paths have before the name of the file
    ids TEXT,                      -- what ids have before it; NULL if they do not end with it
    UNIQUE (place, ids)
);
CREATE INDEX IF NOT EXISTS folders_by_ids ON folders (ids);
"""

PICTURES = """
CREATE TEMP VIEW pictures AS SELECT
    coalesce(id, ids || CAST(path AS TEXT)) AS id,
    coalesce(CAST(place || path AS BLOB), path) AS path,
    {others}
FROM images LEFT JOIN folders ON folders.folder = images.folder
    -- Not of damaged ones whose type is wrong: joined, they would look intact.
    AND typeof(path) = 'blob' AND typeof(place) = 'blob' AND typeof(ids) != 'blob'
"""
"""The pictures with whole ids and paths; `others` are the other columns of images."""

ROW_OF_PATH = """
SELECT row FROM folders JOIN images USING (folder) WHERE place = ?1 AND path = ?2
UNION ALL SELECT row FROM images WHERE folder IS NULL AND path = ?3
"""
"""The row of a path, given its parts and itself."""

ROW_OF_ID = """
SELECT row FROM folders JOIN images USING (folder) WHERE ids = ?1 AND path = ?2
UNION ALL SELECT row FROM images WHERE id = ?3
"""
"""The row of an id, given its parts, the last as UTF-8, and itself.

Only indices are read, so that a damaged page does not keep other ids from being found free.
"""


def parted(name: AnyStr) -> tuple[AnyStr, AnyStr]:
    """A path or an id up to its last slash, and what follows."""
    slash: AnyStr = "/" if isinstance(name, str) else b"/"
    end = name.rfind(slash) + 1
    return name[:end], name[end:]
