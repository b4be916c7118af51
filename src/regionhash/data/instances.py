"""Instance search: query boxes, and the pictures that show the same thing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regionhash.data.csv_table import read_csv
from regionhash.data.image_set import ImageSet, joined_images
from regionhash.structures import Box, Target


@dataclass(frozen=True, slots=True)
class InstanceQuery:
    """One thing to search for.

    Attributes:
        name: for reports.
        image_id: the picture in which it is marked, one of the database.
        box: x0, y0, x1, y1 in pixels of that picture.
        positives: ids of the pictures that a search should find.
        junk: ids of the pictures that count neither as found nor as missed.
    """

    name: str
    image_id: str
    box: Box
    positives: tuple[str, ...]
    junk: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class BoxQuerySet:
    """A database and the queries to it.

    Positives missing from the database count as never found.

    Attributes:
        name: shown in reports.
        database: all pictures, including those of the queries; targets are not read.
        queries: at least one, and one of them with a positive in the database.
    """

    name: str
    database: ImageSet
    queries: tuple[InstanceQuery, ...]

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError(f"{self.name}: there is nothing to search for")
        known = set(self.database.ids)
        for query in self.queries:
            if query.image_id not in known:
                raise ValueError(
                    f"{self.name}: the picture {query.image_id} of query {query.name} is missing"
                )
        if not any((known & set(query.positives)) - set(query.junk) for query in self.queries):
            raise ValueError(
                f"{self.name}: no positive picture of any query is in the database, so there is "
                "nothing to measure"
            )


def read_instances(
    path: str | Path, *, images_dir: str | Path | None = None, relative: bool = False
) -> BoxQuerySet:
    """Queries and database from a table of boxes (see `read_csv`).

    The queries are the boxes whose label occurs in at least one other picture. Its positives are
    the other pictures with that label; the query's picture is junk.

    Raises:
        ValueError: see `read_csv`; or no label of a box occurs in two pictures.
    """
    image_set = read_csv(path, images_dir=images_dir, relative=relative)
    pictures_of: dict[int, list[str]] = defaultdict(list)
    for image_id, target in zip(image_set.ids, image_set.targets, strict=True):
        for label in target.all_labels():
            pictures_of[label].append(image_id)
    queries = [
        InstanceQuery(
            name=f"{image_set.classes[label]} {number} of {image_id}",
            image_id=image_id,
            box=(box[0], box[1], box[2], box[3]),
            positives=tuple(other for other in pictures_of[label] if other != image_id),
            junk=(image_id,),
        )
        for image_id, target in zip(image_set.ids, image_set.targets, strict=True)
        for number, (box, label) in enumerate(
            zip(target.boxes.tolist(), target.labels.tolist(), strict=True), 1
        )
        if len(pictures_of[label]) > 1
    ]
    if not queries:
        raise ValueError(f"{path}: no label of a box occurs in two pictures")
    return BoxQuerySet(image_set.name, image_set, tuple(queries))


def with_distractors(query_set: BoxQuerySet, distractors: Sequence[ImageSet]) -> BoxQuerySet:
    """The same search among more pictures, none of which shows a searched object.

    Their ids are prefixed with the name of their set.

    Raises:
        ValueError: two sets of distractors have the same name and an id in common.
    """
    database = query_set.database
    ids = [*database.ids]
    for image_set in distractors:
        ids += [f"{image_set.name}/{image_id}" for image_id in image_set.ids]
    joined = replace(
        database,
        name=" + ".join([database.name, *(image_set.name for image_set in distractors)]),
        ids=tuple(ids),
        images=joined_images([database.images, *(image_set.images for image_set in distractors)]),
        targets=database.targets + (Target.empty(),) * (len(ids) - len(database)),
    )
    return replace(query_set, database=joined)
