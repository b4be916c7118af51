"""The Oxford and Paris buildings: instance search with official lists of good, ok and junk.

Philbin et al., "Object retrieval with large vocabularies and fast spatial matching", CVPR 2007, and
"Lost in quantization", CVPR 2008. With 100,000 other pictures they are Oxford 105k and Paris 106k.
"""

from __future__ import annotations

import math
from pathlib import Path

from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, find_images
from regionhash.data.instances import BoxQuerySet, InstanceQuery
from regionhash.data.notices import Notices
from regionhash.files.text import one_line, read_text, shown
from regionhash.structures import Box, Target

_QUERY = "_query.txt"
_PREFIX = "oxc1_"  # of picture names in Oxford's query files, and nowhere else


def read_oxford(root: str | Path) -> BoxQuerySet:
    """The pictures below a folder, and the queries from the ground-truth files below it.

    Ids are the names of the pictures without folder and ending, as in the ground truth: pictures
    may be in one folder (Oxford) or in one per building (Paris). Each query NAME has the files
    NAME_query.txt (picture, x0, y0, x1, y1), NAME_good.txt, NAME_ok.txt and NAME_junk.txt (one
    picture per line). Good and ok are positive. The query's picture is one of the good ones and
    counts, as in the official evaluation.

    Pictures are not opened: some of Paris are broken, which shows when they are read. Positives
    without a file are noticed; they count as never found.

    Args:
        root: the folder.

    Raises:
        ValueError: the folder, its pictures or ground truth are missing or broken; the message
            describes the layout.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is missing: it must hold pictures and ground truth; {_layout()}")
    files = sorted(root.rglob(f"*{_QUERY}"))
    if not files:
        raise ValueError(f"{root}: no *{_QUERY} below it; {_layout()}")
    notices = Notices()
    try:
        paths = [path for _, path in find_images([root], notices)]
    except ValueError as error:
        raise ValueError(f"{error}; {_layout()}") from error
    ids = tuple(path.stem for path in paths)
    database = ImageSet(
        root.resolve().name, (), ids, FileImages(paths), (Target.empty(),) * len(ids), notices
    )
    queries = tuple(_read_query(path) for path in files)
    known = set(ids)
    for path, query in zip(files, queries, strict=True):
        if query.image_id not in known:
            picture = one_line(query.image_id)
            raise ValueError(f"{path}: the picture {picture} of query {query.name} is missing")
    missing = {image_id for query in queries for image_id in query.positives} - known
    for image_id in sorted(missing):
        notices.add(
            "positive pictures without a file",
            f"{root}: the positive picture {one_line(image_id)} has no file; it counts as never "
            "found",
        )
    if not any((known & set(query.positives)) - set(query.junk) for query in queries):
        good = files[0].with_name(f"{queries[0].name}_good.txt")
        raise ValueError(
            f"{good}: names no picture of {root}, and neither does that of any other query, so "
            "there is nothing to measure"
        )
    return BoxQuerySet(database.name, database, queries)


def _layout() -> str:
    return (
        "it takes, in any folders below: the pictures (NAME.jpg), and for each query the ground "
        "truth QUERY_query.txt, QUERY_good.txt, QUERY_ok.txt and QUERY_junk.txt"
    )


def _read_query(path: Path) -> InstanceQuery:
    name = path.name.removesuffix(_QUERY)
    words = _text(path).split()
    try:
        image_id, edges = words[0], tuple(map(float, words[1:]))
        box: Box = (edges[0], edges[1], edges[2], edges[3])
        finite = all(map(math.isfinite, edges))
        if len(edges) != 4 or not (finite and box[0] < box[2] and box[1] < box[3]):
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(
            f"{path}: must be a picture and a box x0 y0 x1 y1, got {shown(' '.join(words))}"
        ) from None
    good, ok, junk = (
        tuple(_text(path.with_name(f"{name}_{kind}.txt")).split())
        for kind in ("good", "ok", "junk")
    )
    return InstanceQuery(name, image_id.removeprefix(_PREFIX), box, good + ok, junk)


def _text(path: Path) -> str:
    return read_text(path, "the ground truth")
