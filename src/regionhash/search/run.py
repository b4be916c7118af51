"""Running a search: query pictures are encoded once, then codes are scanned.

Search -> mode -> codes of the query pictures -> MODES[mode](codes, table) -> page -> Answer
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import Weights, pack_signs, weights_of
from regionhash.parts.choosing import overlaps
from regionhash.search.assignment import SAME_IOU, same_objects
from regionhash.search.duplicates import fold_duplicates
from regionhash.search.exact import (
    context_distances,
    search_categories,
    search_images,
    search_objects,
)
from regionhash.search.marks import place_boxes
from regionhash.search.request import Filter, Mode, Query, RequestError, Search
from regionhash.search.steps import (
    CANDIDATES,
    EXPANSION,
    Rescoring,
    default_steps,
    search_in_steps,
)
from regionhash.search.together import Running, Shared
from regionhash.search.united import Costs, Unlike
from regionhash.store import CodeSet
from regionhash.structures import (
    Box,
    CategoryCodes,
    CategoryHits,
    Codes,
    CodeTable,
    EncodedImage,
    Floats,
    Hit,
    Ints,
    Mask,
    Regions,
)

if TYPE_CHECKING:
    from regionhash.data.detections import Detector
    from regionhash.data.image_set import Image
    from regionhash.models import HashModel
    from regionhash.models.checkpoints import Checkpoint
    from regionhash.models.runtime import Precision, Runtime, RuntimeName


@dataclass(frozen=True, eq=False)
class QueryPicture:
    """A picture to search by, read and marked.

    Attributes:
        name: for messages and captions.
        image: (H, W, 3) uint8, RGB; None if `encoded` or `text` suffices.
        boxes: xyxy in its pixels, one per object; without any, the mode decides what is searched.
        encoded: the codes of the picture, if already known; with boxes, its regions are the boxes,
            or None.
        text: words in place of a picture.
        found: with boxes, the regions of the picture itself, if already known.
    """

    name: str
    image: Image | None
    boxes: tuple[Box, ...] = ()
    encoded: EncodedImage | None = None
    text: str | None = None
    found: Regions | None = None

    @property
    def pixels(self) -> Image:
        """The picture. Raises ValueError if it is missing."""
        if self.image is None:
            raise ValueError(f"{self.name}: this search needs the picture, which is missing")
        return self.image


@dataclass(frozen=True, eq=False)
class Answer:
    """One page of results, with what was searched.

    Attributes:
        mode: see `Mode`.
        codes: what was searched.
        queries: the query pictures, with the boxes that were searched for.
        hits: best first; each with one match per box of the queries, picture by picture, or without
            matches if the last step compared whole pictures.
        groups: mode category: the page of each category of the query; `hits` is then empty.
        excluded: pictures of excluded objects, with the boxes that were excluded.
        steps: steps of a search for one object, see `regionhash.search.steps`; otherwise empty.
        offset: rank of the first hit, from 0.
        more: whether there is a next page.
        n_searched: number of pictures that passed the filter.
        notes: what was searched for other than asked, as sentences that name picture and box.
    """

    mode: Mode
    codes: CodeSet
    queries: tuple[QueryPicture, ...]
    hits: tuple[Hit, ...]
    groups: tuple[CategoryHits, ...]
    excluded: tuple[QueryPicture, ...]
    steps: tuple[str, ...]
    offset: int
    more: bool
    n_searched: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class EncodedSearch:
    """The codes of a search's query pictures; None for what its mode does not compare.

    Attributes:
        queries, excluded: the pictures, with their boxes.
        image: (K2/8,) uint8, code of the query picture, or of its part inside the box.
        objects: (Q, K1/8) uint8, codes of the query objects.
        apart: (Q, Q) bool, which of the objects need different regions.
        weights: of the bits of each object, of words or for the step asymmetric, see
            `asymmetric_distances`; None if all weigh 1.
        unwanted: (W, K1/8) uint8, codes of the excluded objects.
        classes: (Q,) int64, of each object; -1 is unknown.
        pictures: (P, K2/8) uint8, codes of the query pictures as a whole, if they take part, see
            `Search.context`.
        categories: categories of the query picture and their codes.
        certain: whether the model gives every category, without a probability.
        steps: steps of a search for one object.
        features: (P,) float32, of the object that the last of these steps compares.
        notes: see `Answer`.
    """

    queries: tuple[QueryPicture, ...]
    excluded: tuple[QueryPicture, ...] = ()
    image: Codes | None = None
    objects: Codes | None = None
    apart: Mask | None = None
    weights: Weights | None = None
    unwanted: Codes | None = None
    classes: Ints | None = None
    pictures: Codes | None = None
    categories: CategoryCodes | None = None
    certain: bool = False
    steps: tuple[str, ...] = ()
    features: Floats | None = None
    notes: tuple[str, ...] = ()


@Shared
def run(
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    codes: CodeSet,
    search: Search,
    *,
    picture_of: Callable[[Query], QueryPicture] | None = None,
    mask: Mask | None = None,
    detector_of: Callable[[], Detector | None] = lambda: None,
) -> Running[Answer]:
    """Searches codes.

    Args:
        model: the model that made the codes.
        checkpoint: its checkpoint.
        codes: the codes of N pictures.
        search: see `Search`; its filter is ignored, `mask` takes its place.
        picture_of: gives the picture of a query; None is `read_query`.
        mask: (N,) bool, the pictures that are searched; None searches all that are alive.
        detector_of: gives what finds the objects of a query picture without boxes, if its model
            takes boxes.

    Raises:
        ValueError: the codes are of another model, the codes or the model lack what the search
            compares, a box does not belong to its picture (see `place_boxes`), or nothing is
            detected in a picture.
        RequestError: a least probability, but the model gives none; shared regions, but whole
            pictures are compared; a part of whole pictures, but they have no codes; or a `rescore`
            that the codes or the model cannot do.
        ImageError: a query picture cannot be read.
    """
    mode, encoded = encode_search(
        model, checkpoint, codes, search, picture_of=picture_of, detector_of=detector_of
    )
    mask = codes.alive if mask is None else mask
    rankings, more = yield from _page(mode, encoded, codes.table, search, mask)
    by_category = mode == "category"
    return Answer(
        mode,
        codes,
        encoded.queries,
        () if by_category else rankings[0].hits,
        tuple(rankings) if by_category else (),
        encoded.excluded,
        encoded.steps,
        search.offset,
        more,
        len(codes.table) if mask is None else int(np.count_nonzero(mask)),
        encoded.notes,
    )


def encode_search(
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    codes: CodeSet,
    search: Search,
    *,
    picture_of: Callable[[Query], QueryPicture] | None = None,
    detector_of: Callable[[], Detector | None] = lambda: None,
) -> tuple[Mode, EncodedSearch]:
    """The mode of a search and the codes that it compares; see `run` for arguments and errors."""
    if codes.model_hash != checkpoint.model_hash:
        raise ValueError(
            f"{codes.path}: made by the model {codes.model_hash} ({codes.model}), which cannot be "
            f"searched with {checkpoint.model_hash} ({checkpoint.name})"
        )
    mode = search.mode_for(whole_pictures=codes.table.image_codes is not None)
    if search.assignment == "shared" and mode != "objects":
        raise RequestError("assignment", f"needs mode objects, got mode {mode}")
    if search.context and codes.table.image_codes is None:
        raise RequestError(
            "context", f"needs codes of whole pictures, which the model {checkpoint.name} lacks"
        )
    picture_of = picture_of or read_query
    encoder = _Encoder(model, checkpoint, codes.recorded("precision"), detector_of)
    encoded = encoder.encode(
        mode,
        search,
        codes.table,
        [picture_of(query) for query in search.queries],
        [picture_of(query) for query in search.exclude],
    )
    return mode, encoded


def find(
    codes: CodeSet,
    search: Search,
    *,
    model: Path | None = None,
    device: str = "auto",
    runtime: RuntimeName = "auto",
) -> Answer:
    """Searches codes with the model that made them.

    Args:
        codes: see `regionhash.collection.open_codes`.
        search: see `Search`. Ids of pictures work only in `Collection.search`.
        model: folder of the model; None looks next to the codes, then where they record it.
        device: see `regionhash.models.runtime.pick_device`.
        runtime: see `regionhash.models.runtime.load_runtime`.

    Raises:
        ValueError: the model is missing or another one, a filter is given, or see `run`.
    """
    if search.filter != Filter():
        raise RequestError("filter", "needs a collection")
    return run(*load_model_of(codes, model, device, runtime), codes, search)


def load_model_of(
    codes: CodeSet,
    folder: Path | None,
    device: str,
    runtime: RuntimeName = "auto",
    *,
    advice: str = "",
) -> tuple[Runtime, Checkpoint]:
    """The model that made the codes, ready to run, and its checkpoint; see `find`.

    Raises:
        ValueError: it is missing, which is said with `advice`, or damaged.
    """
    from regionhash.models.checkpoints import model_folder
    from regionhash.models.runtime import load_runtime

    folder = folder or model_folder(codes.path, codes.model_hash, codes.meta)
    if not folder.exists():
        raise ValueError(f"{folder}: model not found{advice}")
    precision = codes.recorded("precision")
    return load_runtime(folder, device=device, runtime=runtime, precision=precision)


def read_query(query: Query) -> QueryPicture:
    """Reads the picture of a query that brings one.

    Raises:
        ValueError: the query names a picture of a collection, or its picture lacks a region.
        ImageError: the picture cannot be read.
    """
    from regionhash.data.images import read_image

    if query.text is not None:
        return QueryPicture(query.text, None, text=query.text)
    if query.image is None:
        raise ValueError(f"{query.image_id}: searching by id needs a collection")
    image, name = query.image, query.name
    if not isinstance(image, np.ndarray):
        image, name = read_image(image), str(image)
    return marked(name, image, query, query.encoded)


def marked(
    name: str, image: Image | None, query: Query, encoded: EncodedImage | None
) -> QueryPicture:
    """Applies the marks of a query to its picture.

    Raises:
        ValueError: the picture lacks a region.
    """
    if query.boxes:
        whole = None if encoded is None else replace(encoded, regions=None)
        found = None if encoded is None else encoded.regions
        return QueryPicture(name, image, tuple(query.boxes), whole, found=found)
    if not query.regions or encoded is None:
        return QueryPicture(name, image, (), encoded)
    regions, numbers = encoded.regions, list(query.regions)
    if regions is None or not all(0 <= n < len(regions) for n in numbers):
        count = 0 if regions is None else len(regions)
        raise ValueError(f"{name}: has {count} regions, got {numbers}")
    chosen = regions[np.array(numbers)]
    return QueryPicture(name, image, chosen.as_tuples(), replace(encoded, regions=chosen))


# -- encoding -------------------------------------------------------------------------------------


class _Encoder:
    """Encodes query pictures, each of them once."""

    def __init__(
        self,
        model: HashModel | Runtime,
        checkpoint: Checkpoint,
        precision: Precision,
        detector_of: Callable[[], Detector | None],
    ) -> None:
        self._model, self._checkpoint, self._precision = model, checkpoint, precision
        self._detector_of = detector_of
        self._notes: list[str] = []
        self._words: dict[str, Floats] = {}

    def encode(
        self,
        mode: Mode,
        search: Search,
        table: CodeTable,
        queries: Sequence[QueryPicture],
        excluded: Sequence[QueryPicture],
    ) -> EncodedSearch:
        if mode in ("image", "category"):
            return self._whole(mode, search, queries[0])
        if search.context:
            queries = [self._with_whole(query) for query in queries]
        asked = [
            self._objects(query, best_of_each=mode == "objects", whole=bool(search.context))
            for query in queries
        ]
        unwanted = [self._objects(query, best_of_each=False) for query in excluded]
        encoded = EncodedSearch(
            tuple(picture for picture, _ in asked),
            tuple(picture for picture, _ in unwanted),
            objects=np.concatenate([regions.codes for _, regions in asked]),
            apart=self._apart(queries, [regions for _, regions in asked], search),
            weights=self._weights(queries, [regions for _, regions in asked]),
            unwanted=np.vstack([regions.codes for _, regions in unwanted]) if unwanted else None,
            classes=np.concatenate([_classes_of(query, regions) for query, regions in asked]),
            pictures=self._pictures([query for query, _ in asked]) if search.context else None,
            notes=tuple(self._notes),
        )
        if mode != "region":
            return encoded
        encoded = self._with_steps(encoded, search, table)
        if encoded.steps[-1] in get_args(Rescoring):
            return self._with_features(encoded, asked[0][1].features, table)
        return encoded

    def _with_whole(self, query: QueryPicture) -> QueryPicture:
        """A query picture with its codes as a whole, unless boxes are encoded together with it."""
        if query.text is not None or query.encoded is not None:
            return query
        if query.boxes and self._model.shared_code_space:
            return query
        encoded = self._encoded(query)
        return replace(query, encoded=replace(encoded, regions=None) if query.boxes else encoded)

    def _pictures(self, queries: Sequence[QueryPicture]) -> Codes:
        """The image codes (P, K2/8) of query pictures that are encoded as a whole."""
        codes = []
        for query in queries:
            if query.encoded is not None:
                if query.encoded.image_code is None:
                    raise ValueError(f"{query.name}: its code as a whole picture is missing")
                codes.append(query.encoded.image_code)
        return np.stack(codes)

    def _apart(
        self, queries: Sequence[QueryPicture], asked: Sequence[Regions], search: Search
    ) -> Mask:
        """Which objects (Q, Q) need different regions.

        What overlaps in the query, such as the best detections of two classes, may overlap in an
        answer too. But a box that was marked twice is searched for twice.
        """
        n_objects = sum(map(len, asked))
        apart = np.full((n_objects, n_objects), search.assignment == "distinct")
        first = 0
        for query, regions in zip(queries, asked, strict=True):
            together = same_objects(regions.boxes, regions.labels)
            if query.boxes:
                together &= (regions.boxes[:, None] != regions.boxes[None]).any(axis=2)
            own = slice(first, first + len(regions))
            apart[own, own] &= ~together
            first += len(regions)
        np.fill_diagonal(apart, val=False)
        return apart

    def _weights(self, queries: Sequence[QueryPicture], asked: Sequence[Regions]) -> Weights | None:
        """The weights of the bits of each object: words are known before they were cut to bits."""
        if all(query.text is None for query in queries):
            return None
        weights: list[Floats | None] = []
        for query, regions in zip(queries, asked, strict=True):
            if query.text is None:
                weights += [None] * len(regions)
            else:
                weights.append(weights_of(self._activations(query.text)))
        return weights

    def _activations(self, text: str) -> Floats:
        """What the bits (K,) of words are the signs of."""
        if text not in self._words:
            encode = getattr(self._model, "text_activations", None)
            if encode is None:
                raise ValueError(
                    f"the model {self._checkpoint.name} has no words: it needs an encoder with a "
                    "text tower, see `regionhash index --encoder`"
                )
            self._words[text] = encode([text])[0]
        return self._words[text]

    def _whole(self, mode: Mode, search: Search, query: QueryPicture) -> EncodedSearch:
        found = self._encoded(query)
        if mode == "image" and found.image_code is None:
            raise ValueError(f"the model {self._checkpoint.name} has no codes of whole pictures")
        if mode == "category" and found.categories is None:
            raise ValueError(f"the model {self._checkpoint.name} has no codes of categories")
        # The baseline by category has codes of all classes, and does not classify.
        certain = (
            found.categories is not None
            and found.class_probs is None
            and bool((found.categories.probs == 1).all())
        )
        if certain and search.min_prob:
            raise RequestError(
                "min_prob",
                f"needs probabilities of categories, which the model {self._checkpoint.name} lacks",
            )
        return EncodedSearch(
            (query,), image=found.image_code, categories=found.categories, certain=certain
        )

    def _with_steps(
        self, encoded: EncodedSearch, search: Search, table: CodeTable
    ) -> EncodedSearch:
        """Adds the steps of a search for one object, and the image code that they need.

        For steps that compare whole pictures, that is the box's code if the model's codes of boxes
        and pictures can be compared, else the code of the picture inside the box.
        """
        assert encoded.objects is not None
        shared = self._model.shared_code_space
        steps = tuple(search.steps) or (
            ("exact",)
            if search.context or search.other_class
            else default_steps(table, shared_code_space=shared)
        )
        if search.rescore:
            steps = (*steps, search.rescore)
        image = encoded.objects[0] if shared else None
        if steps[0] == "global" and image is None:
            image = self._encoded(QueryPicture("query", _cut_out(encoded.queries[0]))).image_code
        return replace(encoded, steps=steps, image=image)

    def _with_features(
        self, encoded: EncodedSearch, features: NDArray[Any] | None, table: CodeTable
    ) -> EncodedSearch:
        """Adds what the last step compares, given the features (1, P) of the object.

        Raises:
            RequestError: they are unknown, or nothing is kept beside the codes.
        """
        rescoring = encoded.steps[-1]
        if rescoring == "floats" and table.region_features is None:
            raise RequestError(
                "rescore",
                "floats needs features beside the codes; `regionhash index --keep-floats` makes a "
                "collection with them, and asymmetric needs none",
            )
        if features is None:
            raise RequestError(
                "rescore",
                f"{rescoring} needs more than bits of the query, and "
                f"{self._checkpoint.name}, as it is run here, gives no more"
                if encoded.queries[0].image is not None
                else f"{rescoring} needs the pixels of the query: mark it with a box",
            )
        if rescoring == "floats":
            return replace(encoded, features=features[0].astype(np.float32))
        activations = None
        if features.dtype == np.float32:  # those that were kept have lost their lengths
            activations = getattr(self._model, "activations_of", lambda _: None)(features)
        if activations is None:
            raise RequestError(
                "rescore", "asymmetric needs the pixels of the query: mark it with a box"
            )
        return replace(encoded, weights=[weights_of(activations[0])])

    def _objects(
        self, query: QueryPicture, *, best_of_each: bool, whole: bool = False
    ) -> tuple[QueryPicture, Regions]:
        """A query picture with the boxes of its objects, and their regions, at least one.

        With `whole`, a picture that has boxes and no codes also gets its code as a whole.
        """
        from regionhash.models.encoding import encode_boxes

        if query.text is not None:
            codes = pack_signs(self._activations(query.text)[None])
            nowhere = np.zeros((1, 4), np.float32)
            return query, Regions(nowhere, np.ones(1, np.float32), np.full(1, -1), codes)
        if query.boxes and query.encoded is not None and query.encoded.regions is not None:
            return query, query.encoded.regions
        if query.boxes:
            height, width = query.pixels.shape[:2]
            try:
                boxes, notes = place_boxes(query.boxes, (height, width))
                together = whole and query.encoded is None  # in one pass
                frame = [(0.0, 0.0, float(width), float(height))] if together else []
                regions = encode_boxes(
                    self._model,
                    self._checkpoint,
                    query.pixels,
                    np.array([*boxes, *frame], np.float32),
                    precision=self._precision,
                )
            except ValueError as error:
                raise ValueError(f"{query.name}: {error}") from error
            self._notes += [f"{query.name}: {note}" for note in notes]
            if together:
                encoded = EncodedImage((height, width), regions.codes[-1])
                query, regions = replace(query, encoded=encoded), regions[np.arange(len(boxes))]
            return replace(query, boxes=regions.as_tuples()), regions
        found = self._encoded(query, detected=best_of_each).regions
        if found is None or not len(found):
            raise ValueError(
                f"{query.name}: nothing was detected in it; mark the object with a box"
            )
        rows = np.array([0])
        if best_of_each:  # regions are best first, so the first of each label is its best
            rows = np.sort(np.unique(found.labels, return_index=True)[1])
            if (found.labels >= 0).any():  # the whole picture, which has no class, is no object
                rows = rows[found.labels[rows] >= 0]
        return replace(query, boxes=found[rows].as_tuples()), found[rows]

    def _encoded(self, query: QueryPicture, *, detected: bool = False) -> EncodedImage:
        """The codes of a query picture; `detected` if the objects in it matter."""
        from regionhash.models.encoding import encode_picture

        if query.encoded is not None:
            return query.encoded
        return encode_picture(
            self._model,
            self._checkpoint,
            query.pixels,
            precision=self._precision,
            detector=self._detector_of() if detected else None,
        )


def _classes_of(query: QueryPicture, regions: Regions) -> Ints:
    """The classes (R,) of the objects of a picture.

    A box that the model gives none has that of the first region of the picture that has a class and
    overlaps it by an IoU of .5; -1 if there is none.
    """
    classes = np.array(regions.labels, np.int64)
    if query.found is None:
        return classes
    known = query.found[np.flatnonzero(query.found.labels >= 0)]
    for n in np.flatnonzero(classes < 0) if len(known) else ():
        near = np.flatnonzero(overlaps(regions.boxes[[n]], known.boxes)[0] >= SAME_IOU)
        classes[n] = known.labels[near[0]] if len(near) else -1
    return classes


def _cut_out(query: QueryPicture) -> Image:
    """The part of a picture that its one box touches."""
    ((x0, y0, x1, y1),) = query.boxes
    image = query.pixels
    height, width = image.shape[:2]
    left, upper = min(math.floor(x0), width - 1), min(math.floor(y0), height - 1)
    return np.ascontiguousarray(image[upper : math.ceil(y1), left : math.ceil(x1)])


# -- scanning -------------------------------------------------------------------------------------


class _Scan(NamedTuple):
    """The input of a mode's scan; `top` is the number of results, `context` that of pictures."""

    encoded: EncodedSearch
    table: CodeTable
    search: Search
    mask: Mask | None
    top: int
    context: Ints | None = None


def _scan_images(scan: _Scan) -> Running[list[CategoryHits]]:
    assert scan.encoded.image is not None
    hits = yield from search_images.begin(
        scan.encoded.image, scan.table, top=scan.top, mask=scan.mask
    )
    return [_unnamed(hits)]


def _scan_regions(scan: _Scan) -> Running[list[CategoryHits]]:
    encoded = scan.encoded
    assert encoded.objects is not None
    if scan.search.context or scan.search.other_class:  # one step, exact
        return (yield from _scan_objects(scan))
    hits = yield from search_in_steps.begin(
        scan.table,
        encoded.steps,
        image_query=encoded.image,
        region_query=encoded.objects[0],
        weights=None if encoded.weights is None else encoded.weights[0],
        features=encoded.features,
        top=scan.top,
        candidates=scan.search.candidates or CANDIDATES,
        expand=scan.search.expand or EXPANSION,
        mask=scan.mask,
    )
    return [_unnamed(hits)]


def _scan_objects(scan: _Scan) -> Running[list[CategoryHits]]:
    assert scan.encoded.objects is not None and scan.encoded.apart is not None
    unlike = None
    if scan.search.other_class and scan.encoded.classes is not None:
        n_bits = 8 * scan.encoded.objects.shape[1]
        unlike = Unlike(scan.encoded.classes, round(scan.search.other_class * n_bits))
    hits = yield from search_objects.begin(
        scan.encoded.objects,
        scan.table,
        top=scan.top,
        mask=scan.mask,
        exclude=scan.encoded.unwanted,
        max_distance=scan.search.max_distance,
        apart=scan.encoded.apart,
        costs=Costs(scan.encoded.weights, unlike),
        context=scan.context,
    )
    return [_unnamed(hits)]


def _scan_categories(scan: _Scan) -> Running[list[CategoryHits]]:
    assert scan.encoded.categories is not None
    groups = yield from search_categories.begin(
        scan.encoded.categories,
        scan.table,
        top=scan.top,
        min_prob=scan.search.min_prob or 0.0,
        mask=scan.mask,
    )
    return [replace(group, prob=None) for group in groups] if scan.encoded.certain else groups


def _unnamed(hits: Sequence[Hit]) -> CategoryHits:
    """The single ranking of a search without categories."""
    return CategoryHits(-1, 1.0, tuple(hits))


MODES: dict[Mode, Callable[[_Scan], Running[list[CategoryHits]]]] = {
    "image": _scan_images,
    "region": _scan_regions,
    "objects": _scan_objects,
    "category": _scan_categories,
}
"""The scan of each mode; gives one ranking, or one per category of the query."""


def _page(
    mode: Mode, encoded: EncodedSearch, table: CodeTable, search: Search, mask: Mask | None
) -> Running[tuple[list[CategoryHits], bool]]:
    """The rankings cut to the page, and whether there is a next page.

    Near-duplicates share a place, so more hits are fetched until the page is full.
    """
    end = search.offset + search.limit
    top = end + 1
    context = None
    if encoded.pictures is not None:
        context = context_distances(encoded.pictures, table, search.context)
    while True:
        found = yield from MODES[mode](_Scan(encoded, table, search, mask, top, context))
        folded = found
        if search.group_within is not None:
            folded = [
                replace(
                    ranking, hits=tuple(fold_duplicates(ranking.hits, table, search.group_within))
                )
                for ranking in found
            ]
        if all(
            len(short.hits) > end or len(long.hits) < top
            for short, long in zip(folded, found, strict=True)
        ):
            break
        top *= 2
    more = any(len(ranking.hits) > end for ranking in folded)
    return [replace(r, hits=r.hits[search.offset : end]) for r in folded], more
