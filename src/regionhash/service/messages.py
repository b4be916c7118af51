"""Requests and answers as JSON; `/openapi.json` has these descriptions and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from typing_extensions import TypedDict  # that of typing does for pydantic from Python 3.12 on

from regionhash.collection import Filter, Result, Results
from regionhash.search.request import (
    MAX_CONTEXT,
    Assignment,
    Mode,
    Query,
    RequestError,
    Search,
)
from regionhash.search.steps import Rescoring
from regionhash.structures import EncodedImage, meaningful_score

MAX_ROW = 2**63 - 1

_JSON_NAMES = {"group_within": "near", "exclude": "without", "max_distance": "within"}
"""Fields of a request that are not named as those of a `Search`."""

BoxOut = tuple[float, float, float, float]
Row = Annotated[int, Field(ge=1, le=MAX_ROW)]
Edge = Annotated[FiniteFloat, Field(ge=-1e9, le=1e9)]
BoxIn = tuple[Edge, Edge, Edge, Edge]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
When = Annotated[FiniteFloat, Field(ge=-1e11, le=1e12)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QueryIn(_Request):
    """What to search by: an upload, a picture of the collection, or words."""

    upload: Annotated[
        str | None, Field(max_length=64, description="An upload, as POST /api/uploads named it.")
    ] = None
    image: Annotated[Row | None, Field(description="Row of a picture in the collection.")] = None
    text: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=500,
            description="Words for an object, instead of a picture, if the collection has `words`.",
        ),
    ] = None
    boxes: Annotated[
        list[BoxIn],
        Field(max_length=16, description="Objects: x0, y0, x1, y1 in pixels of the picture."),
    ] = []
    regions: Annotated[
        list[Annotated[int, Field(ge=0, le=1_000_000)]],
        Field(max_length=16, description="Objects, as numbers of regions, instead of boxes."),
    ] = []


class FilterIn(_Request):
    """Which pictures are searched."""

    labels: Annotated[
        list[Name], Field(max_length=16, description="Classes; a picture must contain all.")
    ] = []
    min_score: Annotated[
        FiniteFloat,
        Field(
            ge=0,
            le=1,
            description="Smallest score of a detection; with `labels`, of one of that class.",
        ),
    ] = 0.0
    folder: Annotated[Name | None, Field(description="The file is in this folder or below it.")] = (
        None
    )
    after: Annotated[
        When | None, Field(description="Taken at or after this time, in seconds since 1970.")
    ] = None
    before: Annotated[When | None, Field(description="Taken before this time.")] = None

    def to_filter(self) -> Filter:
        """The filter of the collection."""
        return Filter(tuple(self.labels), self.min_score, self.folder, self.after, self.before)


class SearchIn(_Request):
    """A search."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"queries": [{"image": 1}], "limit": 20},
                {
                    "queries": [{"image": 1, "boxes": [[10, 20, 200, 220]]}],
                    "filter": {"folder": "holidays"},
                    "limit": 20,
                    "near": 2,
                },
                {
                    "queries": [{"image": 1, "regions": [0]}],
                    "without": [{"image": 1, "regions": [1]}],
                },
            ]
        },
    )

    queries: Annotated[list[QueryIn], Field(min_length=1, max_length=8)]
    without: Annotated[
        list[QueryIn], Field(max_length=8, description="Objects that results must not show.")
    ] = []
    within: Annotated[
        int | None,
        Field(
            ge=0,
            le=4096,
            description="Largest distance, in bits, at which a region counts as an object of "
            "`without`; by default, an eighth of the code.",
        ),
    ] = None
    assignment: Annotated[
        Assignment,
        Field(
            description="Mode objects: whether each object needs a region of its own (distinct) or "
            "may have that of another (shared)."
        ),
    ] = "distinct"
    context: Annotated[
        FiniteFloat,
        Field(
            ge=0,
            le=MAX_CONTEXT,
            description="Searches for objects: share of the distance between the whole pictures "
            "that is added to the distance of a picture.",
        ),
    ] = 0.0
    other_class: Annotated[
        FiniteFloat,
        Field(
            ge=0,
            le=1,
            description="Searches for objects: what is added to the distance of a region that has "
            "another class than the query's object, as a share of the bits, if both are known.",
        ),
    ] = 0.0
    rescore: Annotated[
        Rescoring | None,
        Field(
            description="Searches for one object: rank the best again by more than the bits of the "
            "query; floats requires `has_floats` in /api/collection."
        ),
    ] = None
    candidates: Annotated[
        int | None,
        Field(ge=1, le=10_000, description="How many `rescore` ranks again; no more are found."),
    ] = None
    mode: Annotated[
        Mode | None,
        Field(
            description="What is compared. Mode category searches for each category of one whole "
            "picture; it requires `by_category` in /api/collection."
        ),
    ] = None
    min_prob: Annotated[
        FiniteFloat,
        Field(ge=0, le=1, description="Mode category: smallest probability of a category."),
    ] = 0.0
    filter: FilterIn = FilterIn()
    limit: Annotated[
        int, Field(ge=1, le=200, description="Pictures on a page; in mode category, for each.")
    ] = 24
    offset: Annotated[int, Field(ge=0, le=10_000, description="Number of results to skip.")] = 0
    near: Annotated[
        int | None,
        Field(
            ge=0,
            le=4096,
            description="Group pictures whose codes differ in at most this many bits; all but the "
            "first of a group are its `duplicates`.",
        ),
    ] = None

    def to_search(self, queries: Sequence[Query], exclude: Sequence[Query]) -> Search:
        """The search, with the pictures of `queries` and `without`.

        Raises:
            ValueError: its fields contradict each other; the message has the names of this request.
        """
        try:
            return Search(
                queries,
                exclude=exclude,
                mode=self.mode,
                min_prob=self.min_prob,
                max_distance=self.within,
                assignment=self.assignment,
                context=self.context,
                other_class=self.other_class,
                rescore=self.rescore,
                candidates=self.candidates,
                filter=self.filter.to_filter(),
                group_within=self.near,
                limit=self.limit,
                offset=self.offset,
            )
        except RequestError as error:
            name = _JSON_NAMES.get(error.field, error.field)
            raise ValueError(f"{name} {error.reason}") from error


class MatchOut(TypedDict):
    """The region of a found picture that matches one object of the query.

    If no region is left for the object, `box`, `label` and `score` are null; `label` and `score`
    also if the model gives none.
    """

    box: BoxOut | None
    distance: int
    label: str | None
    score: float | None


class HitOut(TypedDict):
    """One found picture.

    `context` is the part of `distance` that the whole pictures add; null if they do not take part.
    """

    row: int
    id: str
    height: int
    width: int
    distance: int
    matches: list[MatchOut]
    classes: list[str]
    taken: float | None
    context: int | None
    duplicates: list[HitOut]


class GroupOut(TypedDict):
    """The results for one category of the query; `prob` is null if the model gives none."""

    category: str
    prob: float | None
    hits: list[HitOut]


class SearchOut(TypedDict):
    """A page of results; in mode category, one for each, in `groups` instead of `hits`."""

    mode: Mode
    boxes: list[list[BoxOut]]
    without: list[list[BoxOut]]
    hits: list[HitOut]
    groups: list[GroupOut]
    offset: int
    more: bool
    searched: int
    seconds: float
    notes: Annotated[
        list[str],
        Field(description="What was searched for other than asked, such as a part of a box."),
    ]


def search_out(found: Results, classes: Sequence[str], seconds: float) -> SearchOut:
    """The message of the results of a search that took some seconds."""
    return SearchOut(
        mode=found.mode,
        boxes=[list(boxes) for boxes in found.boxes],
        without=[list(boxes) for boxes in found.without],
        hits=_hits_out(found.hits, classes),
        groups=[
            GroupOut(category=group.category, prob=group.prob, hits=_hits_out(group.hits, classes))
            for group in found.groups
        ],
        offset=found.offset,
        more=found.more,
        searched=found.searched,
        seconds=seconds,
        notes=[json_id(note) for note in found.notes],
    )


def _hits_out(results: Sequence[Result], classes: Sequence[str]) -> list[HitOut]:
    return [
        HitOut(
            row=result.row,
            id=json_id(result.id),
            height=result.size[0],
            width=result.size[1],
            distance=result.distance,
            matches=[
                MatchOut(
                    box=match.box,
                    distance=match.distance,
                    label=_label(match.label, classes),
                    score=match.score,
                )
                for match in result.matches
            ],
            classes=list(result.classes),
            taken=result.taken,
            context=result.context,
            duplicates=_hits_out(result.duplicates, classes),
        )
        for result in results
    ]


class RegionOut(BaseModel):
    """A region of a picture; its number is its position in the list, from 0.

    `label` and `score` are null if the model gives none.
    """

    box: BoxOut
    label: str | None
    score: float | None

    @classmethod
    def list_of(cls, encoded: EncodedImage, classes: Sequence[str]) -> list[Self]:
        """The messages of all regions of a picture, in their order."""
        regions = encoded.regions
        if regions is None:
            return []
        return [
            cls(
                box=tuple(box),
                label=_label(label, classes),
                score=meaningful_score(label, score),
            )
            for box, label, score in zip(
                regions.boxes.tolist(),
                regions.labels.tolist(),
                regions.scores.tolist(),
                strict=True,
            )
        ]


Note = Annotated[
    str | None, Field(description="That the end of the file is missing, and how much of it.")
]


class UploadOut(BaseModel):
    """An uploaded picture and the regions detected in it."""

    upload: str
    height: int
    width: int
    regions: list[RegionOut]
    note: Note = None


class ImageOut(BaseModel):
    """A picture of the collection and its regions."""

    row: int
    id: str
    height: int
    width: int
    regions: list[RegionOut]


class ImageLine(BaseModel):
    """A picture in a list."""

    row: int
    id: str
    height: int
    width: int


class ListOut(BaseModel):
    """Pictures of the collection by row; `next` is the `after` of the next ones."""

    images: list[ImageLine]
    next: int | None


class AddedOut(BaseModel):
    """The picture that was added, or the one that had the same content already."""

    row: int
    id: str
    note: Note = None


class InfoOut(BaseModel):
    """The collection that is served, and the limits of the service."""

    pictures: int
    model: str
    model_hash: str
    bits: int
    region_bits: int
    classes: list[str]
    by_category: bool
    words: Annotated[bool, Field(description="Whether `text` of a query is accepted.")]
    has_floats: Annotated[bool, Field(description="Whether `rescore` of a search may be floats.")]
    has_scores: Annotated[bool, Field(description="Whether `min_score` of a filter is accepted.")]
    can_change: bool
    max_upload_bytes: int
    max_pixels: int


class HealthOut(BaseModel):
    """Whether the service works."""

    status: Literal["ok", "failing"]
    pictures: int
    reason: Annotated[str | None, Field(description="Why it fails.")] = None


class Problem(BaseModel):
    """An error (RFC 9457), as application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def json_id(image_id: str) -> str:
    """An id that JSON can hold."""
    return image_id.encode("utf-8", "backslashreplace").decode()


def _label(label: int, classes: Sequence[str]) -> str | None:
    return classes[label] if label >= 0 else None


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the errors of a route."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": "An error, as problem details.", "content": content}
        for status in statuses
    }
