"""Runs a preset of DMIH: queries of one object and of several, by all methods of its paper.

The base network is not trained: its maps are computed once, and all methods read them. What is
trained on them is trained by the same code as any other model, with `cached_views`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from regionhash.data import open_dataset
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
from regionhash.experiments.dmih_report import (
    Kind,
    Localisation,
    ObjectReport,
    ObjectResult,
    QueryTime,
    score_objects,
    write_object_report,
)
from regionhash.experiments.presets import TABLE_2, ObjectPreset, find_object_preset
from regionhash.experiments.region_dh_report import hash_ids
from regionhash.models.checkpoints import build_model, load_checkpoint, provenance, read_checkpoint
from regionhash.models.classical import PartitionMinHash, VisualWords
from regionhash.models.dmih import THETA
from regionhash.models.encoding import code_file_writer, encode_boxes, encode_images
from regionhash.parts.multiscale import window_boxes
from regionhash.parts.pooling import pool_top
from regionhash.parts.regions import codes_of
from regionhash.parts.sift import load_opencv, sift_features
from regionhash.parts.windows import sliding_windows
from regionhash.search import united_hamming
from regionhash.store import CodeFile
from regionhash.structures import Codes, CodeTable, Floats, Ints
from regionhash.training import Cache, TrainingConfig, train
from regionhash.training.feature_cache import PRECISION, head_training, stored_features

Say = Callable[[str], None]
Vectors = Codes | Floats  # (n, B) uint8 codes, or (n, D) floats
Ask = Callable[[QueryBox], Vectors]

_OVERLAP = 0.4  # of the windows that DSRH and PmH hash: 21 of a picture
_LEAST = 20  # relevant pictures of a combination
_SAMPLE = 20_000  # descriptors that a vocabulary is learned from
_BATCH = 64
_TIMED = 20  # queries
_RAMP = {"ramp_start": 0.4, "ramp_end": 0.6}
"""Of DMIH's pair loss: until the proposals are known, it would pull at the wrong ones."""


@dataclass(frozen=True)
class ObjectOptions:
    """How a preset of DMIH is run.

    Attributes:
        backbone, weights: see `build_backbone`.
        short: short side of the network's input in pixels.
        epochs: of every training.
        views: of every training picture that are cached.
        margin: of DMIH's pair loss, in place of the paper's.
        channels: of the multi-scale maps, and features of a proposal.
        detector: folder of a Region-DH checkpoint, whose codes of regions are a further row.
        sift: whether PmH on SIFT words is run; it needs OpenCV.
        seed: of the trainings and of the draw of the queries.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 320
    epochs: int = 8
    views: int = 2
    margin: float = 1.25
    channels: int = 128
    detector: Path | None = None
    sift: bool = True
    seed: int = 0

    def network(self, n_bits: int) -> dict[str, Any]:
        """Arguments of DMIH."""
        return {
            "n_bits": n_bits,
            "backbone": self.backbone,
            "weights": self.weights,
            "n_channels": self.channels,
            "n_features": self.channels,
            "margin": self.margin,
        }

    def training(self) -> TrainingConfig:
        """Of all methods that learn from labels."""
        return head_training(epochs=self.epochs, short=self.short, views=self.views, seed=self.seed)


@dataclass(frozen=True)
class Method:
    """How one method describes pictures and what is asked.

    Attributes:
        name: as the paper calls it.
        n_bits: of a code; None for floats.
        values: (M, ...), codes or floats of all pictures of the database.
        offsets: (N + 1,), where each picture's begin.
        ask: those of an object that is searched for.
        seconds: of training.
    """

    name: str
    n_bits: int | None
    values: Vectors
    offsets: Ints
    ask: Ask
    seconds: float = 0.0


def reproduce_objects(name: str, root: Path, out: Path, options: ObjectOptions, say: Say) -> Path:
    """Runs the preset `name` on the data below `root`; returns the report's path in `out`.

    What was done before in the same folder with the same options is not done again.

    Raises:
        ValueError: unknown preset, missing data (the message says what to put where), a picture
            that cannot be read, no query at all, or SIFT is wanted without OpenCV.
    """
    preset = find_object_preset(name)
    if options.sift:
        load_opencv()  # that it is missing is told before hours of training
    run = _Run(preset, *_open(preset, root, options), options, out, say)
    singles, combined = run.queries()
    results: list[ObjectResult] = []
    for method in run.methods():
        results += _measure(method, preset, singles, combined, run.database, run.asked, say)
    report = ObjectReport(
        title=f"{name}: DMIH and its peers",
        facts=_facts(name, preset, run, singles),
        results=results,
        cuts=preset.cuts,
        classes=run.database.classes,
        relevant={labels: run.count(labels) for labels in run.wanted},
        published=paper_figures("dmih", "voc2007-multi") if preset.combined else [],
        localisation=run.localise(),
        times=run.times(singles or combined),
    )
    return write_object_report(out, report)


def _open(preset: ObjectPreset, root: Path, options: ObjectOptions) -> tuple[ImageSet, ImageSet]:
    """Database and pictures of the queries."""
    try:
        pictures = _joined([open_dataset(own.format(root=root)) for own in preset.pictures])
        if preset.queries:
            return pictures, open_dataset(preset.queries.format(root=root))
        return hold_out(pictures, preset.per_class, seed=options.seed)
    except ValueError as error:
        raise ValueError(f"{error}\nthis preset needs, below {root}: {preset.layout}") from error


def _joined(sets: list[ImageSet]) -> ImageSet:
    """The pictures of several sets of one layout and the same classes."""
    if len(sets) == 1:
        return sets[0]
    first = sets[0]
    return replace(
        first,
        name=" + ".join(own.name for own in sets),
        ids=tuple(image_id for own in sets for image_id in own.ids),
        images=_Chained([own.images for own in sets]),
        targets=tuple(target for own in sets for target in own.targets),
    )


class _Chained(Sequence[Any]):
    """Several sequences of pictures, one after the other."""

    def __init__(self, parts: list[Sequence[Any]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, n: Any) -> Any:
        for part in self._parts:
            if n < len(part):
                return part[n]
            n -= len(part)
        raise IndexError(n)


# -- methods --------------------------------------------------------------------------------------


class _Run:
    """The methods on one database.

    Attributes:
        database: what is searched and trained on; asked: the pictures of the queries.
        wanted: combinations of classes that are measured, or named as too rare.
    """

    def __init__(
        self,
        preset: ObjectPreset,
        database: ImageSet,
        asked: ImageSet,
        options: ObjectOptions,
        out: Path,
        say: Say,
    ) -> None:
        common = set(database.ids) & set(asked.ids)
        if common:
            raise ValueError(
                f"{len(common)} pictures are queries and database at once: {min(common)}"
            )
        self.preset, self.options, self.out, self.say = preset, options, out, say
        self.database, self.asked = database, asked
        self.labels = database.labels()
        self.sizes = {"database": _sizes(database), "asked": _sizes(asked)}
        self.maps = self._cache(database, options.views)
        self.asked_maps = self._cache(asked, 1)
        self._trained: dict[Path, tuple[Any, float]] = {}
        self._described: list[tuple[Any, str, list[_Proposals]]] = []
        self.wanted: list[tuple[int, ...]] = []
        if preset.combined:
            names = [sorted(database.classes.index(own) for own in row) for row in TABLE_2]
            own = frequent_combinations(self.labels, least=_LEAST)
            self.wanted = list(dict.fromkeys([*map(tuple, names), *own]))

    def queries(self) -> tuple[list[ObjectQuery], list[ObjectQuery]]:
        """Those of one object, and those of several; classes that the database lacks have none."""
        options, preset = self.options, self.preset

        def draw(labels: tuple[int, ...], n: int) -> list[ObjectQuery]:
            marked = preset.marked
            return draw_queries(self.asked, labels, n, marked=marked, seed=options.seed)

        singles = [
            query
            for label in range(len(self.database.classes))
            if self.count((label,))
            for query in draw((label,), preset.per_class)
        ]
        combined = [
            query
            for labels in self.wanted
            if self.count(labels) >= _LEAST
            for query in draw(labels, preset.combined)
        ]
        if not singles:
            raise ValueError(f"{self.asked.name}: no picture shows what the database has")
        return singles, combined

    def count(self, labels: tuple[int, ...]) -> int:
        """How many pictures of the database show all of some classes."""
        return int(self.labels[:, labels].all(axis=1).sum())

    def methods(self) -> Iterator[Method]:
        """All methods at all lengths, DMIH first."""
        yield from (self._dmih("DMIH", n_bits) for n_bits in self.preset.bits)
        yield from (self._dmih("DMIH-ind", n_bits) for n_bits in self.preset.bits)
        yield self._l2_scan()
        yield from (self._dsrh(n_bits) for n_bits in self.preset.bits)
        words = self._cnn_words()
        yield from (self._pmh("PmH+CNN", n_bits, *words) for n_bits in self.preset.bits)
        if self.options.sift:
            words = self._sift_words()
            yield from (self._pmh("PmH", n_bits, *words) for n_bits in self.preset.bits)
        if self.options.detector:
            yield self._region_dh(self.options.detector)

    def trained(self, part: str, n_bits: int) -> tuple[Any, float]:
        """DMIH trained as a whole, or one part after the other, and the seconds that it took."""
        folder = self.out / "runs" / f"dmih-{part}-{n_bits}"
        arguments = self.options.network(n_bits) | {"part": part}
        start, seconds, changes = None, 0.0, {}
        if part == "hash":  # the proposals do not depend on the length of the code
            start, seconds = self.trained("mil", max(self.preset.bits))
        if part == "joint":
            changes = _RAMP
        return self._train("dmih", arguments, folder, self.maps, start, seconds, changes)

    def _train(
        self,
        name: str,
        arguments: dict[str, Any],
        folder: Path,
        cache: Cache,
        start: Any = None,
        seconds: float = 0.0,
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[Any, float]:
        if folder in self._trained:
            return self._trained[folder]
        self.say(f"training in {folder}")
        train(
            name,
            arguments,
            self.database,
            folder,
            replace(self.options.training(), **changes),
            start=start,
            cache=cache,
            on_epoch=lambda report: self.say(str(report)),
        )
        model, checkpoint = load_checkpoint(folder)
        epochs = checkpoint.provenance["epochs"]
        self._trained[folder] = model, seconds + sum(row["seconds"] for row in epochs)
        return self._trained[folder]

    def _dmih(self, name: str, n_bits: int) -> Method:
        model, seconds = self.trained("joint" if name == "DMIH" else "hash", n_bits)

        @torch.no_grad()
        def codes(x: Tensor) -> Codes:
            return codes_of(model.hash(x))

        return self._of_proposals(name, n_bits, model, codes, seconds)

    def _l2_scan(self) -> Method:
        model, seconds = self.trained("mil", max(self.preset.bits))
        return self._of_proposals("l2-scan", None, model, lambda x: x.numpy(), seconds)

    def _of_proposals(
        self,
        name: str,
        n_bits: int | None,
        model: Any,
        describe: Callable[[Tensor], Vectors],
        seconds: float,
    ) -> Method:
        """A method whose regions are the proposals of a DMIH network."""
        own = [
            describe(x[model.select(logits, boxes)])
            for x, logits, boxes in self._proposals(model, "database")
        ]
        asked = self._proposals(model, "asked")

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

        return Method(name, n_bits, *_bags(own), ask, seconds)

    def _proposals(self, model: Any, side: str) -> list[_Proposals]:
        """Features (M, D), logits (M, C) and boxes (M, 4), in pixels, of each picture's own.

        The last few are kept: several measures read the same.
        """
        for known, own_side, found in self._described:
            if known is model and own_side == side:
                return found
        found = list(self._describe(model, side))
        self._described = [*self._described[-3:], (model, side, found)]
        return found

    def _describe(self, model: Any, side: str) -> Iterator[_Proposals]:
        maps, sizes = (self.maps if side == "database" else self.asked_maps), self.sizes[side]
        features = maps[0][0]
        for first in range(0, len(sizes), _BATCH):
            part = {key: value[first : first + _BATCH] for key, value in features.items()}
            with torch.no_grad():
                bags = model.describe(part)
            for n, (h, w) in enumerate(part["shape"].tolist()):
                height, width = sizes[first + n]
                pixels = torch.tensor([width / w, height / h] * 2)
                boxes = window_boxes(h, w, model.maps.n_scales) * pixels
                yield bags.x[n, bags.present[n]], bags.logits[n, bags.present[n]], boxes

    def _dsrh(self, n_bits: int) -> Method:
        """DSRH, trained on whole pictures, of sliding windows."""
        arguments = {
            "n_bits": n_bits,
            "backbone": self.options.backbone,
            "weights": self.options.weights,
            "trained_stages": 0,
        }
        pooled: Cache = [
            ({"pooled": torch.stack([_pooled(own) for own in _cells(maps)])}, labels)
            for maps, labels in self.maps
        ]
        folder = self.out / "runs" / f"dsrh-{n_bits}"
        model, seconds = self._train("dsrh", arguments, folder, pooled)
        cells = list(_cells(self.asked_maps[0][0]))

        @torch.no_grad()
        def codes(own: Tensor, boxes: Tensor) -> Codes:
            features = {"pooled": pool_top(own[None], [boxes], 1.0)}
            return codes_of(model.hash_features(features))

        @torch.no_grad()
        def ask(query: QueryBox) -> Codes:
            own = cells[query.row]
            if query.box is None:
                return codes_of(model.hash_features({"pooled": _pooled(own)[None]}))
            return codes(own, torch.from_numpy(self._in_cells(query, own)))

        bags = [codes(own, _windows(own)) for own in _cells(self.maps[0][0])]
        return Method("DSRH", n_bits, *_bags(bags), ask, seconds)

    def _in_cells(self, query: QueryBox, own: Tensor) -> Floats:
        """The box (1, 4) of a query object in cells of its picture's map (D, h, w)."""
        height, width = self.sizes["asked"][query.row]
        scale = np.array([own.shape[2] / width, own.shape[1] / height] * 2, np.float32)
        return np.asarray(query.box * scale if query.box is not None else None)[None]

    def _cnn_words(self) -> tuple[list[_Words], list[_Words]]:
        """Visual words of the cells of the base network's maps."""
        sides = []
        for maps in (self.maps, self.asked_maps):
            side = []
            for own in _cells(maps[0][0]):
                h, w = own.shape[1:]
                rows, columns = np.divmod(np.arange(h * w), w)
                places = np.stack([(columns + 0.5) / w, (rows + 0.5) / h], 1).astype(np.float32)
                vectors = torch.nn.functional.normalize(own.flatten(1).T, dim=1)
                side.append((places, vectors.half().numpy()))
            sides.append(side)
        return _to_words(sides[0]), _to_words(sides[1], sides[0])

    def _sift_words(self) -> tuple[list[_Words], list[_Words]]:
        """Visual words of SIFT descriptors."""
        sides = []
        for image_set in (self.database, self.asked):
            self.say(f"{image_set.name}: SIFT")
            side = []
            for image in image_set.images:
                places, descriptors = sift_features(image)
                height, width = image.shape[:2]
                side.append(((places / (width, height)).astype(np.float32), descriptors))
            sides.append(side)
        return _to_words(sides[0]), _to_words(sides[1], sides[0])

    def _pmh(self, name: str, n_bits: int, database: list[_Words], asked: list[_Words]) -> Method:
        n_words = 1 + max(int(words.max(initial=0)) for _, words in [*database, *asked])
        hasher = PartitionMinHash(n_bits, n_words, seed=self.options.seed)
        # The partitions do not depend on the picture: the windows on a fine square grid.
        partitions = (sliding_windows(60, 60, _OVERLAP) / 60).astype(np.float32)
        partitions[:, 2:] += 1e-6

        def ask(query: QueryBox) -> Codes:
            places, words = asked[query.row]
            height, width = self.sizes["asked"][query.row]
            box = partitions[:1]
            if query.box is not None:
                box = (query.box / (width, height, width, height)).astype(np.float32)[None]
            codes = hasher.encode(words, places, box)
            return codes if len(codes) else hasher.encode(words, places, partitions[:1])

        bags = [hasher.encode(words, places, partitions) for places, words in database]
        return Method(name, n_bits, *_bags(bags, width=n_bits // 8), ask)

    def _region_dh(self, folder: Path) -> Method:
        """The codes of the instances that a trained Region-DH keeps."""
        model, checkpoint = load_checkpoint(folder)
        path = self.out / f"region-dh-{checkpoint.model_hash}-{self.database.fingerprint()}.h5"
        self.say(f"{self.database.name}: codes of Region-DH")
        with code_file_writer(
            path, model, checkpoint, checkpoint_path=folder, precision=PRECISION
        ) as writer:
            encode_images(model, checkpoint, self.database, writer, precision=PRECISION)
            writer.finish()
        table: CodeTable = CodeFile.open(path).table
        row_of = {image_id: n for n, image_id in enumerate(table.ids)}
        bags = []
        for image_id in self.database.ids:
            regions = table.regions(row_of[image_id])
            bags.append(regions.codes[: max(1, int((regions.scores > THETA).sum()))])

        def ask(query: QueryBox) -> Codes:
            image = self.asked.images[query.row]
            whole = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
            boxes = (whole if query.box is None else query.box)[None]
            return encode_boxes(model, checkpoint, image, boxes, precision=PRECISION).codes

        seconds = sum(row["seconds"] for row in checkpoint.provenance["epochs"])
        width = model.n_region_bits // 8
        values = _bags(bags, width=width)
        return Method("Region-DH, trained on boxes", model.n_region_bits, *values, ask, seconds)

    # -- further measures -------------------------------------------------------------------------

    def localise(self) -> list[Localisation]:
        """CorLoc of the most probable proposal of each label that a training picture owns."""
        n_bits = max(self.preset.bits)
        found = []
        for name, part in (("DMIH", "joint"), ("DMIH-ind", "mil")):
            model, _ = self.trained(part, n_bits)
            hits: dict[int, list[tuple[bool, bool]]] = {}
            proposals = self._proposals(model, "database")
            for target, (_, logits, boxes) in zip(self.database.targets, proposals, strict=True):
                for label in np.unique(target.labels[~target.difficult]).tolist():
                    own = target.boxes[(target.labels == label) & ~target.difficult]
                    overlap = box_iou(boxes, torch.from_numpy(own)).amax(1) >= 0.5
                    best = int(logits[:, label].argmax())
                    hits.setdefault(label, []).append((bool(overlap[best]), bool(overlap.any())))
            if hits:
                every = np.array([own for rows in hits.values() for own in rows])
                means = np.array([np.mean(rows, axis=0) for rows in hits.values()])
                shares = [float(own) for own in (*every.mean(0), *means.mean(0))]
                found.append(Localisation(name, tuple(shares), len(every)))
        return found

    @torch.no_grad()
    def times(self, queries: list[ObjectQuery]) -> list[QueryTime]:
        """Milliseconds of the steps of a query of one picture, one at a time, on one thread."""
        n_bits = max(self.preset.bits)
        model, _ = self.trained("joint", n_bits)
        codes, offsets = _bags(
            [
                codes_of(model.hash(x[model.select(logits, boxes)]))
                for x, logits, boxes in self._proposals(model, "database")
            ]
        )
        steps: dict[str, list[float]] = {"F": [], "O+H": [], "S": []}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for query in queries[: _TIMED + 1]:
                image = self.asked.images[query.objects[0].row]
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
                for own, taken in zip(steps.values(), np.diff(marks).tolist(), strict=True):
                    own.append(1000 * taken)
        finally:
            torch.set_num_threads(threads)
        medians = tuple(median(own[1:] or own) for own in steps.values())
        return [QueryTime("DMIH", medians, len(codes))]

    def _cache(self, image_set: ImageSet, n_views: int) -> Cache:
        """The base network's maps of all pictures, from the folder where they are there."""
        options = self.options
        network = f"{options.backbone}-{Path(options.weights).stem}-{options.short}"
        key = f"maps-{network}-{n_views}-{image_set.fingerprint()}"
        path = self.out / "features" / f"{key}.safetensors"
        arguments = options.network(8) | {"n_classes": max(len(image_set.classes), 1)}
        return stored_features(
            path,
            lambda: build_model("dmih", arguments),
            image_set,
            options.training(),
            n_views,
            self.say,
        )


_Proposals = tuple[Tensor, Tensor, Tensor]
_Words = tuple[Floats, Ints]  # places (P, 2) in [0, 1], and words (P,), of a picture
_Described = list[tuple[Floats, Any]]


def _to_words(side: _Described, vocabulary: _Described | None = None) -> list[_Words]:
    """Words of the descriptors of each picture, of a vocabulary learned from the database's."""
    rng = np.random.default_rng(0)
    every = [own for _, own in (vocabulary or side) if len(own)]
    share = min(1.0, _SAMPLE / sum(map(len, every)))
    sample = np.concatenate([own[rng.random(len(own)) < share] for own in every])
    words = VisualWords().fit(sample.astype(np.float32))
    return [(places, words.assign(own)) for places, own in side]


def _sizes(image_set: ImageSet) -> list[tuple[int, int]]:
    """Height and width of each picture."""
    if isinstance(image_set.images, FileImages):
        return [read_size(path) for path in image_set.images.paths]
    return [image_set.images[n].shape[:2] for n in range(len(image_set))]


def _cells(features: dict[str, Tensor]) -> Iterator[Tensor]:
    """The map (D, h, w) float32 of each picture."""
    for cells, (h, w) in zip(features["cells"], features["shape"].tolist(), strict=True):
        yield cells[: h * w].float().T.unflatten(1, (h, w))


def _windows(own: Tensor) -> Tensor:
    """The sliding windows (R, 4) on a map (D, h, w), in cells."""
    height, width = own.shape[1:]
    return torch.from_numpy(sliding_windows(height, width, _OVERLAP)).float()


def _pooled(own: Tensor) -> Tensor:
    """Average and maximum (2 * D,) of a map (D, h, w): what whole-image methods read."""
    return torch.cat([own.mean((1, 2)), own.amax((1, 2))])


def _bags(bags: list[Any], *, width: int | None = None) -> tuple[Any, Ints]:
    """All values in one array, and where those of each picture begin."""
    lengths = [len(own) for own in bags]
    values = np.concatenate(bags) if sum(lengths) else np.zeros((0, width or 0), np.uint8)
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


# -- measures -------------------------------------------------------------------------------------


def _measure(
    method: Method,
    preset: ObjectPreset,
    singles: list[ObjectQuery],
    combined: list[ObjectQuery],
    database: ImageSet,
    asked: ImageSet,
    say: Say,
) -> Iterator[ObjectResult]:
    labels = database.labels()
    kinds: tuple[tuple[Kind, list[ObjectQuery]], ...]
    kinds = (("single", singles), ("combined", combined))
    for kind, queries in kinds:
        if queries:
            ranks = rank_bags([[method.ask(own) for own in q.objects] for q in queries], method)
            result = score_objects(
                kind,
                method.name,
                method.n_bits,
                ranks,
                queries,
                labels,
                preset.cuts,
                method.seconds,
            )
            say(f"{method.name}, {method.n_bits or 'floats'}, {kind}: MAP {result.map.mean():.4f}")
            yield result


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


def _facts(name: str, preset: ObjectPreset, run: _Run, singles: list[ObjectQuery]) -> list[str]:
    """What a report must tell of how its figures came to be."""
    facts, options = provenance(), run.options
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    counts = [len(own) for own in (run.database, run.asked)]
    lines = [
        f"Command: `regionhash reproduce {name} --data DIR --backbone {options.backbone} "
        f"--weights {Path(options.weights).name} --short {options.short}"
        f"{' --detector DETECTOR' if options.detector else ''}"
        f"{'' if options.sift else ' --no-sift'}`",
        f"Database and training: {run.database.name}, {counts[0]} pictures, hash of ids "
        f"{hash_ids(run.database.ids)}. Only their image labels are trained on.",
        f"Queries: {len(singles)} of one object, from {run.asked.name}, {counts[1]} pictures, hash "
        f"of ids {hash_ids(run.asked.ids)}; "
        + ("each object is a box." if preset.marked else "whole pictures."),
        "Relevant: contains all labels of the query. Ties: exact expectation over random orders. "
        "MAP over the whole ranking, divided by all relevant pictures.",
        f"Base network {options.backbone}, weights `{Path(options.weights).name}`, not trained; "
        f"short side {options.short} pixels; {options.epochs} epochs on {options.views} views; "
        f"margin {options.margin:g}, {options.channels} channels; seed {options.seed}.",
    ]
    if options.detector:
        checkpoint = read_checkpoint(options.detector)
        lines.append(
            f"Region-DH: checkpoint {checkpoint.model_hash}, trained on the boxes of the same "
            "pictures; its regions above the same probability, by the same distance."
        )
    return [
        *lines,
        f"Versions: {versions}; Python {facts['python']}; git {facts['git']}.",
        f"Machine: {facts['machine']}.",
    ]
