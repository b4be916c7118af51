"""Runs a preset of DMIH: queries of one object and of several, by all methods of its paper.

The base network is not trained: its maps are computed once, and all methods read them. What is
trained on them is trained by the same code as any other model, with `cached_views`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, read_size
from regionhash.data.object_queries import (
    ObjectQuery,
    QueryBox,
    draw_queries,
    frequent_combinations,
    hold_out,
)
from regionhash.data.transforms import to_input
from regionhash.evaluation import paper_figures
from regionhash.evaluation.instance import dense_ranks
from regionhash.experiments import common
from regionhash.experiments.dmih import PRESETS, TABLE_2, DMIHOptions, DMIHPreset
from regionhash.experiments.dmih_report import (
    DMIHReport,
    Kind,
    Localisation,
    ObjectResult,
    QueryTime,
    score_objects,
    write_report,
)
from regionhash.models.checkpoints import load_checkpoint, read_checkpoint
from regionhash.models.classical import PartitionMinHash, VisualWords
from regionhash.models.dmih import DMIH, THETA
from regionhash.models.encoding import encode_boxes
from regionhash.models.image_level import DSRH
from regionhash.models.region_dh import RegionDH
from regionhash.parts.multiscale import window_boxes
from regionhash.parts.pooling import pool_top
from regionhash.parts.regions import codes_of
from regionhash.parts.sift import load_opencv, sift_features
from regionhash.parts.windows import sliding_windows
from regionhash.reporter import Reporter
from regionhash.search import united_hamming
from regionhash.structures import Codes, Floats, Ints
from regionhash.training import Cache, TrainingConfig
from regionhash.training.feature_cache import PRECISION, head_training, kept_features

Vectors = Codes | Floats  # (n, B) uint8 codes, or (n, D) floats
Ask = Callable[[QueryBox], Vectors]
_OVERLAP = 0.4  # of the windows that DSRH and PmH hash: 21 of a picture
_LEAST = 20  # relevant pictures of a combination
_SAMPLE = 20_000  # descriptors that a vocabulary is learned from
_BATCH = 64
_TIMED = 20  # queries
_RAMP: dict[str, Any] = {"ramp_start": 0.4, "ramp_end": 0.6}
"""When DMIH's pair loss starts: until the proposals are known, it would pull at the wrong ones."""


@dataclass(frozen=True)
class Method:
    """How one method describes pictures and what is asked.

    Attributes:
        name: as the paper calls it.
        n_bits: of a code; None for floats.
        values: (M, ...), codes or floats of all pictures of the database.
        offsets: (N + 1,), where each picture's values begin.
        ask: those of an object that is searched for.
        seconds: of training.
    """

    name: str
    n_bits: int | None
    values: Vectors
    offsets: Ints
    ask: Ask
    seconds: float = 0.0


def reproduce(name: str, root: Path, out: Path, options: DMIHOptions, reporter: Reporter) -> Path:
    """Runs a preset, see `Experiment.run`."""
    preset = PRESETS[name]
    if options.sift:
        load_opencv()  # raises now, not after hours of training
    methods = DMIHMethods(preset, root, options, out, reporter)
    singles, combined = methods.queries()
    results: list[ObjectResult] = []
    for method in methods.all():
        results += methods.measure(method, singles, combined)
    report = DMIHReport(
        title=f"{name}: DMIH and its peers",
        facts=_facts(common.command(name, root, options), methods, singles),
        results=results,
        cuts=preset.cuts,
        classes=methods.database.pictures.classes,
        relevant={labels: methods.count(labels) for labels in methods.combinations},
        published=paper_figures("dmih", "voc2007-multi") if preset.combined else [],
        localisation=methods.localise(),
        times=methods.times(singles or combined),
    )
    return write_report(out, report)


# -- methods --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Side:
    """The pictures of one side, their (height, width), and the base network's maps of them."""

    pictures: ImageSet
    sizes: list[tuple[int, int]]
    maps: Cache

    def cells(self, view: int = 0) -> Iterator[Tensor]:
        """The map (D, h, w) float32 of each picture."""
        features, _ = self.maps[view]
        for cells, (h, w) in zip(features["cells"], features["shape"].tolist(), strict=True):
            yield cells[: h * w].float().T.unflatten(1, (h, w))


class DMIHMethods:
    """The methods on one database.

    Attributes:
        database: what is searched and trained on; asked: the pictures of the queries.
        labels: (N, C), of the database.
        combinations: of classes, that are measured, or named as too rare.
    """

    def __init__(
        self, preset: DMIHPreset, root: Path, options: DMIHOptions, out: Path, reporter: Reporter
    ) -> None:
        draw = partial(hold_out, per_class=preset.per_class, seed=options.seed)
        sides = common.open_sides(preset.pictures, preset.queries, preset.layout, root, draw)
        self.preset, self.options, self.out, self.reporter = preset, options, out, reporter
        self.database = self._read(sides.database, options.views)
        self.asked = self._read(sides.queries, 1)
        self.labels = sides.database.labels()
        self._trained: dict[tuple[str, int], tuple[DMIH, float]] = {}
        self._proposed: list[tuple[DMIH, _Side, list[_Proposals]]] = []
        self.combinations: list[tuple[int, ...]] = []
        if preset.combined:
            index = sides.database.classes.index
            of_table = [tuple(sorted(map(index, names))) for names in TABLE_2]
            frequent = frequent_combinations(self.labels, least=_LEAST)
            self.combinations = list(dict.fromkeys([*of_table, *frequent]))

    def _read(self, pictures: ImageSet, n_views: int) -> _Side:
        options = self.options
        network = f"{options.backbone}-{Path(options.weights).stem}"
        arguments = self._arguments(8) | {"n_classes": max(len(pictures.classes), 1)}
        maps = kept_features(
            self.out / "features",
            f"maps-{network}",
            lambda: common.built(DMIH, arguments),
            pictures,
            self._training(),
            n_views,
            self.reporter,
        )
        return _Side(pictures, _sizes(pictures), maps)

    def queries(self) -> tuple[list[ObjectQuery], list[ObjectQuery]]:
        """Those of one object, and those of several; classes that the database lacks have none."""
        preset, asked = self.preset, self.asked.pictures
        draw = partial(draw_queries, asked, marked=preset.marked, seed=self.options.seed)
        singles = [
            query
            for label in range(self.labels.shape[1])
            if self.count((label,))
            for query in draw((label,), preset.per_class)
        ]
        combined = [
            query
            for labels in self.combinations
            if self.count(labels) >= _LEAST
            for query in draw(labels, preset.combined)
        ]
        if not singles:
            raise ValueError(f"{asked.name}: no picture shows what the database has")
        return singles, combined

    def count(self, labels: tuple[int, ...]) -> int:
        """How many pictures of the database show all of some classes."""
        return int(self.labels[:, labels].all(axis=1).sum())

    def all(self) -> Iterator[Method]:
        """All methods at all lengths, DMIH first."""
        for name, part in (("DMIH", "joint"), ("DMIH-ind", "hash")):
            yield from (self._dmih(name, part, n_bits) for n_bits in self.preset.bits)
        model, seconds = self.trained("mil", max(self.preset.bits))
        yield self._of_proposals("l2-scan", None, model, lambda x: x.numpy(), seconds)
        yield from (self._dsrh(n_bits) for n_bits in self.preset.bits)
        words = self._words(self._cnn_descriptors)
        yield from (self._pmh("PmH+CNN", n_bits, *words) for n_bits in self.preset.bits)
        if self.options.sift:
            words = self._words(self._sift_descriptors)
            yield from (self._pmh("PmH", n_bits, *words) for n_bits in self.preset.bits)
        if self.options.detector:
            yield self._region_dh(self.options.detector)

    def measure(
        self, method: Method, singles: list[ObjectQuery], combined: list[ObjectQuery]
    ) -> Iterator[ObjectResult]:
        """The results of a method on the queries of each kind, if there are any."""
        kinds: tuple[tuple[Kind, list[ObjectQuery]], ...]
        kinds = (("single", singles), ("combined", combined))
        for kind, queries in kinds:
            if queries:
                asked = [[method.ask(box) for box in query.objects] for query in queries]
                result = score_objects(
                    kind,
                    method.name,
                    method.n_bits,
                    rank_bags(asked, method),
                    queries,
                    self.labels,
                    self.preset.cuts,
                    method.seconds,
                )
                self.reporter.note(
                    f"{method.name}, {method.n_bits or 'floats'}, {kind}: "
                    f"MAP {result.map.mean():.4f}"
                )
                yield result

    def trained(self, part: str, n_bits: int) -> tuple[DMIH, float]:
        """DMIH trained as a whole, or one part after the other, and the seconds that it took."""
        if (part, n_bits) not in self._trained:
            start, shared_seconds = None, 0.0
            if part == "hash":  # the proposals do not depend on the length of the code
                start, shared_seconds = self.trained("mil", max(self.preset.bits))
            folder = self.out / "runs" / f"dmih-{part}-{n_bits}"
            model, seconds = common.trained(
                DMIH,
                self._arguments(n_bits) | {"part": part},
                self.database.pictures,
                folder,
                replace(self._training(), **_RAMP) if part == "joint" else self._training(),
                start=start,
                cache=self.database.maps,
                reporter=self.reporter,
            )
            self._trained[part, n_bits] = model, shared_seconds + seconds
        return self._trained[part, n_bits]

    def _arguments(self, n_bits: int) -> dict[str, Any]:
        """Arguments of DMIH."""
        return common.body(self.options) | {
            "n_bits": n_bits,
            "n_channels": self.options.channels,
            "n_features": self.options.channels,
            "margin": self.options.margin,
        }

    def _training(self) -> TrainingConfig:
        """How all methods that learn from labels are trained."""
        options = self.options
        return head_training(
            epochs=options.epochs, short=options.short, views=options.views, seed=options.seed
        )

    def _dmih(self, name: str, part: str, n_bits: int) -> Method:
        model, seconds = self.trained(part, n_bits)

        @torch.no_grad()
        def codes(x: Tensor) -> Codes:
            return codes_of(model.hash(x))

        return self._of_proposals(name, n_bits, model, codes, seconds)

    def _of_proposals(
        self,
        name: str,
        n_bits: int | None,
        model: DMIH,
        describe: Callable[[Tensor], Vectors],
        seconds: float,
    ) -> Method:
        """A method whose regions are the proposals of a DMIH network."""
        bags = [
            describe(x[model.select(logits, boxes)])
            for x, logits, boxes in self._proposals(model, self.database)
        ]
        asked = self._proposals(model, self.asked)

        def ask(query: QueryBox) -> Vectors:
            x, logits, boxes = asked[query.row]
            if query.box is not None:
                rows = model.match_boxes(torch.from_numpy(query.box[None]), boxes, logits)
            else:  # the most probable of each class in the bag, as `regionhash search` asks
                rows = model.select(logits, boxes)
                labels = logits[rows].argmax(1)
                first = {int(label): n for n, label in reversed(list(enumerate(labels)))}
                rows = rows[sorted(first.values())]
            return describe(x[rows])

        return Method(name, n_bits, *in_one_array(bags), ask, seconds)

    def _proposals(self, model: DMIH, side: _Side) -> list[_Proposals]:
        """Features (M, D), logits (M, C) and boxes (M, 4), in pixels, of each picture's proposals.

        The last few are kept: several measures read the same.
        """
        for known, known_side, found in self._proposed:
            if known is model and known_side is side:
                return found
        found = list(_propose(model, side))
        self._proposed = [*self._proposed[-3:], (model, side, found)]
        return found

    def _dsrh(self, n_bits: int) -> Method:
        """DSRH, trained on whole pictures, of sliding windows."""
        arguments = common.body(self.options) | {"n_bits": n_bits, "trained_stages": 0}
        database, asked = self.database, list(self.asked.cells())
        pooled: Cache = [
            ({"pooled": torch.stack([_pooled(cells) for cells in database.cells(view)])}, labels)
            for view, (_, labels) in enumerate(database.maps)
        ]
        folder = self.out / "runs" / f"dsrh-{n_bits}"
        model, seconds = common.trained(
            DSRH,
            arguments,
            database.pictures,
            folder,
            self._training(),
            cache=pooled,
            reporter=self.reporter,
        )

        @torch.no_grad()
        def codes(cells: Tensor, boxes: Tensor) -> Codes:
            features = {"pooled": pool_top(cells[None], [boxes], 1.0)}
            return codes_of(model.hash_features(features))

        @torch.no_grad()
        def ask(query: QueryBox) -> Codes:
            cells = asked[query.row]
            if query.box is None:
                return codes_of(model.hash_features({"pooled": _pooled(cells)[None]}))
            height, width = self.asked.sizes[query.row]
            scale = np.array([cells.shape[2] / width, cells.shape[1] / height] * 2, np.float32)
            return codes(cells, torch.from_numpy((query.box * scale)[None]))

        bags = []
        for cells in database.cells():
            windows = sliding_windows(cells.shape[1], cells.shape[2], _OVERLAP)
            bags.append(codes(cells, torch.from_numpy(windows).float()))
        return Method("DSRH", n_bits, *in_one_array(bags), ask, seconds)

    def _words(
        self, describe: Callable[[_Side], Iterator[_Described]]
    ) -> tuple[list[_Words], list[_Words]]:
        """Visual words of both sides' descriptors, of a vocabulary learned from the database's."""
        database, asked = list(describe(self.database)), list(describe(self.asked))
        rng = np.random.default_rng(0)
        every = [descriptors for _, descriptors in database if len(descriptors)]
        share = min(1.0, _SAMPLE / sum(map(len, every)))
        sample = np.concatenate([each[rng.random(len(each)) < share] for each in every])
        words = VisualWords().fit(sample.astype(np.float32))
        sides = ([(places, words.assign(x)) for places, x in side] for side in (database, asked))
        return next(sides), next(sides)

    def _cnn_descriptors(self, side: _Side) -> Iterator[_Described]:
        """The cells of the base network's map of each picture."""
        for cells in side.cells():
            h, w = cells.shape[1:]
            rows, columns = np.divmod(np.arange(h * w), w)
            places = np.stack([(columns + 0.5) / w, (rows + 0.5) / h], 1).astype(np.float32)
            vectors = torch.nn.functional.normalize(cells.flatten(1).T, dim=1)
            yield places, vectors.half().numpy()

    def _sift_descriptors(self, side: _Side) -> Iterator[_Described]:
        self.reporter.note(f"{side.pictures.name}: SIFT")
        for image in side.pictures.images:
            points, descriptors = sift_features(image)
            height, width = image.shape[:2]
            yield (points / (width, height)).astype(np.float32), descriptors

    def _pmh(self, name: str, n_bits: int, database: list[_Words], asked: list[_Words]) -> Method:
        n_words = 1 + max(int(words.max(initial=0)) for _, words in [*database, *asked])
        hasher = PartitionMinHash(n_bits, n_words, seed=self.options.seed)
        # The partitions do not depend on the picture: the windows on a fine square grid.
        partitions = (sliding_windows(60, 60, _OVERLAP) / 60).astype(np.float32)
        partitions[:, 2:] += 1e-6

        def ask(query: QueryBox) -> Codes:
            places, words = asked[query.row]
            height, width = self.asked.sizes[query.row]
            box = partitions[:1]
            if query.box is not None:
                box = (query.box / (width, height, width, height)).astype(np.float32)[None]
            codes = hasher.encode(words, places, box)
            return codes if len(codes) else hasher.encode(words, places, partitions[:1])

        bags = [hasher.encode(words, places, partitions) for places, words in database]
        return Method(name, n_bits, *in_one_array(bags, width=n_bits // 8), ask)

    def _region_dh(self, folder: Path) -> Method:
        """The codes of the instances that a trained Region-DH keeps."""
        model, checkpoint = load_checkpoint(folder, RegionDH)
        pictures = self.database.pictures
        path = self.out / f"region-dh-{checkpoint.model_hash}-{pictures.fingerprint()}.h5"
        self.reporter.note(f"{pictures.name}: codes of Region-DH")
        table = common.encoded(model, checkpoint, folder, pictures, path).table
        row_of = {image_id: n for n, image_id in enumerate(table.ids)}
        bags = []
        for image_id in pictures.ids:
            regions = table.regions(row_of[image_id])
            bags.append(regions.codes[: max(1, int((regions.scores > THETA).sum()))])

        def ask(query: QueryBox) -> Codes:
            image = self.asked.pictures.images[query.row]
            whole = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
            boxes = (whole if query.box is None else query.box)[None]
            return encode_boxes(model, checkpoint, image, boxes, precision=PRECISION).codes

        values, offsets = in_one_array(bags, width=model.n_region_bits // 8)
        return Method(
            "Region-DH, trained on boxes",
            model.n_region_bits,
            values,
            offsets,
            ask,
            common.training_seconds(checkpoint),
        )

    # -- further measures -------------------------------------------------------------------------

    def localise(self) -> list[Localisation]:
        """CorLoc of the most probable proposal of each label that a training picture owns."""
        n_bits = max(self.preset.bits)
        found = []
        for name, part in (("DMIH", "joint"), ("DMIH-ind", "mil")):
            model, _ = self.trained(part, n_bits)
            hits: dict[int, list[tuple[bool, bool]]] = {}
            targets = self.database.pictures.targets
            proposals = self._proposals(model, self.database)
            for target, (_, logits, boxes) in zip(targets, proposals, strict=True):
                for label in np.unique(target.labels[~target.difficult]).tolist():
                    objects = target.boxes[(target.labels == label) & ~target.difficult]
                    overlap = box_iou(boxes, torch.from_numpy(objects)).amax(1) >= 0.5
                    best = int(logits[:, label].argmax())
                    hits.setdefault(label, []).append((bool(overlap[best]), bool(overlap.any())))
            if hits:
                every = np.array([hit for rows in hits.values() for hit in rows])
                means = np.array([np.mean(rows, axis=0) for rows in hits.values()])
                shares = (*every.mean(0).tolist(), *means.mean(0).tolist())
                found.append(Localisation(name, shares, len(every)))
        return found

    @torch.no_grad()
    def times(self, queries: list[ObjectQuery]) -> list[QueryTime]:
        """Milliseconds of the steps of a query of one picture, one at a time, on one thread."""
        n_bits = max(self.preset.bits)
        model, _ = self.trained("joint", n_bits)
        codes, offsets = in_one_array(
            [
                codes_of(model.hash(x[model.select(logits, boxes)]))
                for x, logits, boxes in self._proposals(model, self.database)
            ]
        )
        steps: dict[str, list[float]] = {"F": [], "O+H": [], "S": []}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for query in queries[: _TIMED + 1]:
                image = self.asked.pictures.images[query.objects[0].row]
                marks = [time.perf_counter()]
                tensor, _ = to_input(image, self.options.short)
                features = model.frozen_features([tensor])
                marks.append(time.perf_counter())
                bags = model.describe(features)
                h, w = features["shape"][0].tolist()
                boxes = window_boxes(h, w, model.maps.n_scales)
                rows = model.select(bags.logits[0], boxes)
                asked = codes_of(model.hash(bags.x[0, rows[:1]]))
                marks.append(time.perf_counter())
                united_hamming(asked, np.asarray(codes, np.uint8), offsets)
                marks.append(time.perf_counter())
                for times, taken in zip(steps.values(), np.diff(marks).tolist(), strict=True):
                    times.append(1000 * taken)
        finally:
            torch.set_num_threads(threads)
        medians = tuple(median(times[1:] or times) for times in steps.values())
        return [QueryTime("DMIH", medians, len(codes))]


_Proposals = tuple[Tensor, Tensor, Tensor]
_Words = tuple[Floats, Ints]  # places (P, 2) in [0, 1], and words (P,), of a picture
_Described = tuple[Floats, Any]  # places, and descriptors (P, D), of a picture


def _propose(model: DMIH, side: _Side) -> Iterator[_Proposals]:
    features, n_scales = side.maps[0][0], model.maps.n_scales
    for first in range(0, len(side.sizes), _BATCH):
        part = {key: value[first : first + _BATCH] for key, value in features.items()}
        with torch.no_grad():
            bags = model.describe(part)
        for n, (h, w) in enumerate(part["shape"].tolist()):
            height, width = side.sizes[first + n]
            boxes = window_boxes(h, w, n_scales) * torch.tensor([width / w, height / h] * 2)
            yield bags.x[n, bags.present[n]], bags.logits[n, bags.present[n]], boxes


def _sizes(image_set: ImageSet) -> list[tuple[int, int]]:
    """Height and width of each picture."""
    if isinstance(image_set.images, FileImages):
        return [read_size(path) for path in image_set.images.paths]
    return [image_set.images[n].shape[:2] for n in range(len(image_set))]


def _pooled(cells: Tensor) -> Tensor:
    """Average and maximum (2 * D,) of a map (D, h, w): what whole-image methods read."""
    return torch.cat([cells.mean((1, 2)), cells.amax((1, 2))])


def in_one_array(bags: Sequence[Vectors], *, width: int = 0) -> tuple[Vectors, Ints]:
    """All values in one array, and where those of each picture begin.

    Without any value, the array is (0, width) of codes.
    """
    lengths = [len(bag) for bag in bags]
    values: Any = np.concatenate(bags) if sum(lengths) else np.zeros((0, width), np.uint8)
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


# -- measures -------------------------------------------------------------------------------------


def rank_bags(asked: list[list[Any]], method: Method) -> Ints:
    """Distances, or dense ranks of real ones, (Q, N): the sum over the objects' nearest (eq. 8)."""
    rows = []
    for objects in asked:
        values = np.concatenate(objects)
        if method.n_bits is not None:
            rows.append(united_hamming(values, np.asarray(method.values), method.offsets))
        else:
            distances = united_euclidean(values, np.asarray(method.values), method.offsets)
            rows.append(dense_ranks(distances[None])[0])
    return np.stack(rows).astype(np.int64)


def united_euclidean(queries: Floats, values: Floats, offsets: Ints) -> Floats:
    """Eq. 8 with Euclidean distances, (N,), of bags that are not empty."""
    squares = (values**2).sum(1) - 2 * queries @ values.T + (queries**2).sum(1)[:, None]
    minima = np.minimum.reduceat(squares, offsets[:-1], axis=1)
    return np.asarray(np.sqrt(np.maximum(minima, 0)).sum(0), np.float32)


def _facts(command: str, methods: DMIHMethods, singles: list[ObjectQuery]) -> list[str]:
    """What a report must state of how its figures came to be."""
    options, weights = methods.options, Path(methods.options.weights).name
    database, asked = methods.database.pictures, methods.asked.pictures
    lines = [
        f"Command: `{command}`",
        f"Database and training: {common.described(database.name, database.ids)}. Only their image "
        "labels are trained on.",
        f"Queries: {len(singles)} of one object, from {common.described(asked.name, asked.ids)}; "
        + ("each object is a box." if methods.preset.marked else "whole pictures."),
        "Relevant: contains all labels of the query. Ties: exact expectation over random orders. "
        "MAP over the whole ranking, divided by all relevant pictures.",
        f"Base network {options.backbone}, weights `{weights}`, not trained; "
        f"short side {options.short} pixels; {options.epochs} epochs on {options.views} views; "
        f"margin {options.margin:g}, {options.channels} channels; seed {options.seed}.",
    ]
    if options.detector:
        checkpoint = read_checkpoint(options.detector)
        lines.append(
            f"Region-DH: checkpoint {checkpoint.model_hash}, trained on the boxes of the same "
            "pictures; its regions above the same probability, by the same distance."
        )
    return [*lines, *common.facts_of_run()]
