"""A search request: built once, checked once, and passed on as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from operator import index
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from regionhash.files.text import is_text
from regionhash.search.steps import Rescoring, check_steps
from regionhash.structures import Box, EncodedImage

Mode = Literal["image", "region", "objects", "category"]
"""What to compare: whole pictures; one object; several objects that must all be there; or each
category of a whole picture separately."""


Assignment = Literal["distinct", "shared"]
"""Whether each of several objects takes a region of its own, or the nearest one, which may be that
of another object (United Hamming distance of DMIH)."""


MAX_CONTEXT = 100
"""Largest `Search.context`: beyond it, regions decide nothing."""


_FEW_RESULTS = 1_000
"""Results up to which making them takes less time than a pass over a large collection."""


class RequestError(ValueError):
    """A field of a `Search` is invalid.

    Attributes:
        field: its name in Python; the command line and the service name it differently.
        reason: what is wrong, worded to follow the name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field, self.reason = field, reason


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What to search by: a given picture, one of the collection, or words.

    Attributes:
        image: a file, or pixels (H, W, 3) uint8 RGB.
        image_id: instead of `image`, the id of a picture in the collection, or its row number.
        boxes: xyxy in pixels of the picture, one per object.
        regions: instead of `boxes`, numbers of the regions of `image_id` or `encoded` that are the
            objects; their codes are searched for, and the file of `image_id` is not needed.
        name: of `image`, for messages.
        encoded: the codes of `image`, if already known.
        text: instead of a picture, words for one object; the model's encoder must know words.
        like: an older name of `image_id`.
    """

    image: str | Path | NDArray[np.uint8] | None = None
    image_id: str | int | None = None
    boxes: Sequence[Box] = ()
    regions: Sequence[int] = ()
    name: str = "picture"
    encoded: EncodedImage | None = None
    text: str | None = None
    like: InitVar[str | None] = None

    def __post_init__(self, like: str | None) -> None:
        if like is not None and self.image_id is not None:
            raise TypeError("like is an older name of image_id; give one of them")
        if like is not None:
            object.__setattr__(self, "image_id", like)
        if [self.image is None, self.image_id is None, self.text is None].count(False) != 1:
            raise ValueError(
                "a query needs one of an image, the id of a picture (image_id), or words (text)"
            )
        if self.text is not None:
            if not self.text.strip() or not is_text(self.text):
                raise ValueError("text must be words in Unicode, and not empty")
            if self.boxes or self.regions or self.encoded:
                raise ValueError("words are one object, without boxes, regions or codes")
        if any(len(box) != 4 for box in self.boxes):
            raise ValueError("a box must be four numbers x0, y0, x1, y1")
        object.__setattr__(self, "boxes", tuple(tuple(map(float, box)) for box in self.boxes))
        object.__setattr__(self, "regions", tuple(map(index, self.regions)))
        if self.regions and ((self.image_id is None and self.encoded is None) or self.boxes):
            raise ValueError("regions need a picture whose codes are known, and exclude boxes")

    @property
    def shown_name(self) -> str:
        """The picture, for messages."""
        if self.image_id is None:
            return self.name
        return self.image_id if isinstance(self.image_id, str) else f"picture {self.image_id}"

    @property
    def n_objects(self) -> int:
        """Number of marked objects; words are one."""
        return len(self.boxes) + len(self.regions) + (self.text is not None)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which pictures to search: those that meet all given conditions.

    Attributes:
        labels: names of classes; the picture is known to show each, or it was detected.
        min_score: least score of a detection, in [0, 1]; with `labels`, of each of these classes.
        folder: the file is in this folder or below it.
        after: taken at or after this time, in seconds since 1970.
        before: taken before this time.
    """

    labels: tuple[str, ...] = ()
    min_score: float = 0.0
    folder: str | None = None
    after: float | None = None
    before: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be in [0, 1], got {self.min_score}")
        if self.folder == "":
            raise ValueError("folder must be a path, got an empty text")
        if self.folder is not None and "\0" in self.folder:
            raise ValueError("folder must be a path, got a NUL character")


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What to search for, and how.

    Attributes:
        queries: pictures to search by, at least one. Without a mark, a picture stands for its best
            detection in mode region, and for the best detection of each class in mode objects.
        exclude: pictures of objects that must be absent: what is marked in them, or the best
            detection. The default mode is then objects.
        mode: by default image for one picture, region for one mark or with steps, and objects for
            more of either.
        steps: steps of a search for one object, see `regionhash.search.steps`; by default
            `default_steps`.
        rescore: one more step, which ranks the best again by more than the query's bits:
            "asymmetric" weighs the bits by how sure the query is of them; "floats" compares the
            features that a collection keeps beside its codes. The default mode is then region.
        candidates: pictures that the first of several steps passes on, and so the most that can be
            found; None is `CANDIDATES`.
        expand: pictures whose codes an expansion takes as queries; None is `EXPANSION`.
        min_prob: mode category: the least probability of a category, in the query and in the
            pictures.
        max_distance: largest distance, in bits, at which a region counts as an excluded object;
            None is an eighth of the code.
        assignment: mode objects: whether objects need different regions, see `Assignment`.
        context: modes region, with the step exact alone, and objects: share of the distance
            between the whole pictures that is added to the distance of a picture, rounded to whole
            bits; of several query pictures, the mean distance. 0 adds nothing. Words have no whole
            picture and do not take part.
        other_class: in the same modes: what is added to the distance of a region that has another
            class than the query's object, as a share of the bits, if both classes are known. A
            distance stays within the bits. 0 adds nothing.
        filter: which pictures to search.
        group_within: show near-duplicates once: pictures whose codes differ in at most this many
            bits, see `regionhash.search.duplicates`.
        limit: results per page; in mode category, per category.
        offset: number of results to skip.

    Raises:
        RequestError: two fields contradict each other, or a value is out of range.
        ValueError: no query, or invalid steps.
    """

    queries: Sequence[Query]
    exclude: Sequence[Query] = ()
    mode: Mode | None = None
    steps: Sequence[str] = ()
    rescore: Rescoring | None = None
    candidates: int | None = None
    expand: int | None = None
    min_prob: float | None = None
    max_distance: int | None = None
    assignment: Assignment = "distinct"
    context: float = 0.0
    other_class: float = 0.0
    filter: Filter = Filter()
    group_within: int | None = None
    limit: int = 20
    offset: int = 0

    def __post_init__(self) -> None:
        for name in ("queries", "exclude", "steps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.queries:
            raise ValueError("nothing to search by: give an image, the id of a picture, or words")
        if self.mode is not None and self.mode not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise RequestError("mode", f"must be one of {known}, got {self.mode!r}")
        if self.assignment not in get_args(Assignment):
            known = ", ".join(get_args(Assignment))
            raise RequestError("assignment", f"must be one of {known}, got {self.assignment!r}")
        self._check_numbers()
        if self.rescore is not None and self.rescore not in get_args(Rescoring):
            known = ", ".join(get_args(Rescoring))
            raise RequestError("rescore", f"must be one of {known}, got {self.rescore!r}")
        if self.steps:
            check_steps([*self.steps, *([self.rescore] if self.rescore else [])])
        if self.candidates is not None and len(self.steps) < 2 and self.rescore is None:
            raise RequestError("candidates", "needs several steps or rescore")
        if self.expand is not None and not any(s.endswith("-expand") for s in self.steps):
            raise RequestError("expand", "needs a step that expands")
        if self.max_distance is not None and not self.exclude:
            raise RequestError("max_distance", "needs objects to exclude")
        mode = self.mode_for(whole_pictures=True)
        if self.min_prob and mode != "category":
            raise RequestError("min_prob", f"needs mode category, got mode {mode}")
        alone = self.mode_for(whole_pictures=False)
        if self.assignment == "shared" and alone != "objects":
            raise RequestError("assignment", f"needs mode objects, got mode {alone}")
        self._check_share("context", MAX_CONTEXT, mode)
        self._check_share("other_class", 1, mode)
        if self.exclude and mode != "objects":
            raise RequestError("exclude", f"needs mode objects, got mode {mode}")
        if self.steps and mode != "region":
            raise RequestError("steps", f"need a search for one object (mode region), got {mode}")
        if self.rescore and any(query.text is not None for query in self.queries):
            raise RequestError("rescore", "takes a picture; the bits of words are weighed anyway")
        if self.rescore and mode != "region":
            raise RequestError(
                "rescore", f"needs a search for one object (mode region), got {mode}"
            )
        if any(query.text is not None for query in self.exclude):
            raise RequestError("exclude", "takes pictures, not words")
        if mode != "objects" and any(query.text is not None for query in self.queries):
            raise RequestError("steps" if self.steps else "mode", "must be objects for words")
        n_objects = sum(query.n_objects for query in self.queries)
        if mode != "objects" and (len(self.queries) > 1 or n_objects > (mode == "region")):
            wanted = "one picture with at most one box" if mode == "region" else "one whole picture"
            wanted += f", got {len(self.queries)} pictures and {n_objects} boxes"
            if self.mode is None:  # the steps have chosen it
                field, verb = ("steps", "take") if self.steps else ("rescore", "takes")
                raise RequestError(field, f"{verb} {wanted}")
            raise RequestError("mode", f"{mode} takes {wanted}")

    def _check_share(self, name: str, most: int, mode: Mode) -> None:
        """Checks a share that is added to distances of objects."""
        share = getattr(self, name)
        if not 0 <= share <= most:
            raise RequestError(name, f"must be in [0, {most}], got {share}")
        if not share:
            return
        if mode not in ("region", "objects"):
            raise RequestError(name, f"needs mode region or objects, got mode {mode}")
        if (self.steps and self.steps != ("exact",)) or self.rescore:
            given = ",".join([*self.steps, *([self.rescore] if self.rescore else [])])
            raise RequestError(name, f"needs the step exact alone, got {given}")
        if all(query.text is not None for query in self.queries):
            raise RequestError(name, "needs a query picture, got words alone")

    def _check_numbers(self) -> None:
        for name, least in (
            ("limit", 1),
            ("offset", 0),
            ("group_within", 0),
            ("candidates", 1),
            ("expand", 1),
            ("max_distance", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(name, f"must be at least {least}, got {value}")
        if self.min_prob is not None and not 0 <= self.min_prob <= 1:
            raise RequestError("min_prob", f"must be in [0, 1], got {self.min_prob}")

    def mode_for(self, *, whole_pictures: bool) -> Mode:
        """The mode; its default depends on whether there are codes of whole pictures."""
        if self.mode is not None:
            return self.mode
        if (self.steps or self.rescore) and len(self.queries) == 1:
            return "region"
        n_objects = sum(query.n_objects for query in self.queries)
        words = any(query.text is not None for query in self.queries)
        if self.exclude or words or len(self.queries) > 1 or n_objects > 1:
            return "objects"
        if n_objects:
            return "region"
        return "image" if whole_pictures else "objects"

    def is_light(self, *, whole_pictures: bool) -> bool:
        """Whether the search is one pass over codes and little else.

        It is if it compares one whole picture or one region whose code is known, and no more of the
        pictures that it finds. `whole_pictures` is as in `mode_for`.
        """
        query, *others = self.queries
        return (
            self.mode_for(whole_pictures=whole_pictures) in ("image", "region")
            and (query.image_id is not None or query.encoded is not None)
            and not (others or query.boxes or self.steps or self.rescore)
            and not (self.context or self.other_class)
            and self.group_within is None
            and self.filter.folder is None
            and self.offset + self.limit <= _FEW_RESULTS
        )
