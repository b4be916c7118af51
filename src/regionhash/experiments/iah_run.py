"""Runs a preset of IAH: semantic and category-aware hashing, their peers, and the report.

All methods read one backbone, which is not trained here: what it and the proposals give for a
picture is computed once, and each method and length trains its own layers on it. Of IAH, the
convolution to 32 maps is trained once with all its losses; what its pooling then gives for the
proposals is shared by all lengths. Of Region-DH, modules 3 and 4 are trained as in `region_dh_run`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionhash.codes import pack_signs
from regionhash.data.image_set import ImageSet
from regionhash.evaluation import paper_figures
from regionhash.evaluation.categories import CategorySide, category_precision
from regionhash.experiments import common
from regionhash.experiments.common import Labels, Sides
from regionhash.experiments.iah import PRESETS, IAHOptions, IAHPreset
from regionhash.experiments.iah_report import (
    CURVE_BITS,
    OURS,
    REGION_DH,
    CategoryResult,
    IAHReport,
    score_semantic,
    write_report,
)
from regionhash.experiments.region_dh_run import HEAD_ARGUMENTS
from regionhash.experiments.results import Result, Results
from regionhash.models import HashModel, ImageHashModel, TrainedHashModel
from regionhash.models.checkpoints import Kind, load_checkpoint, read_checkpoint
from regionhash.models.classical import (
    ITQ,
    ITQCCA,
    Hasher,
    RandomHyperplanes,
    SpectralHashing,
    ThresholdedClasses,
)
from regionhash.models.iah import IAH
from regionhash.models.image_level import DSRH, CategoryBaseline, OneStage
from regionhash.models.region_dh import RegionDH
from regionhash.parts.regions import codes_of
from regionhash.reporter import Reporter
from regionhash.structures import Codes, Floats, Ints
from regionhash.training import TrainingConfig, copy_weights
from regionhash.training.feature_cache import head_training, kept_features

_TRUNK_BITS, _TRUNK_CATEGORY_BITS = 48, 12  # at which what all lengths of IAH share is trained
_OTHER_FORM = {"softmax": {", sigmoids": "bce"}, "bce": {", softmax": "softmax"}}
_SHARED_UNSEEN = 4  # one class in this many is unseen (Sablayrolles et al. 2017)
_BATCH = 64  # pictures at a time when nothing is trained

_READ: dict[type[HashModel], tuple[str, ...]] = {  # of a side's features; others read "pooled"
    IAH: ("cells", "grid", "regions", "boxes", "present"),
    RegionDH: ("regions", "whole", "objectness", "present", "region_labels"),
}
_PEERS: dict[str, tuple[type[ImageHashModel], dict[str, Any]]] = {
    "One-Stage": (OneStage, {"n_hidden_per_bit": 16}),  # 50 take three times as long
    "DSRH": (DSRH, {}),
}
_CLASSICAL: dict[str, Callable[[int], Hasher]] = {
    "ITQ-CCA": ITQCCA,
    "ITQ": ITQ,
    "SH": SpectralHashing,
    "LSH": RandomHyperplanes,
    "thresholded classes": ThresholdedClasses,
}
_METHODS = (OURS, *_PEERS, *_CLASSICAL)


def reproduce(name: str, root: Path, out: Path, options: IAHOptions, reporter: Reporter) -> Path:
    """Runs a preset, see `Experiment.run`."""
    preset = PRESETS[name]
    sides = open_iah_sides(preset, root, options.seed)
    network = Network(options, len(sides.database.classes))
    database, queries = (
        network.read(pictures, out / "features", reporter)
        for pictures in (sides.database, sides.queries)
    )
    tables = IAHTables(preset, network, database, queries, out / "runs", reporter)
    semantic = tables.semantic()
    if network.detector is not None:
        regions = [
            network.read_regions(side, out / "features", reporter) for side in (database, queries)
        ]
        semantic[len(preset.bits) : len(preset.bits)] = tables.region_dh(*regions)
        del regions
    report = IAHReport(
        title=f"{name}: IAH and its peers",
        facts=_facts(common.command(name, root, options), network, database, queries),
        classes=sides.database.classes,
        k=preset.k,
        semantic=semantic,
        categories=tables.categories(),
        unseen=tables.unseen() if options.unseen else Results(),
        unseen_words=tables.unseen_words(),
        published=paper_figures("iah", preset.dataset),
    )
    return write_report(out, report)


def open_iah_sides(preset: IAHPreset, root: Path, seed: int) -> Sides:
    """Database and queries of a preset.

    Raises:
        ValueError: missing data, or pictures on both sides.
    """

    def draw(pictures: ImageSet) -> tuple[ImageSet, ImageSet]:
        n_queries = min(preset.n_queries, len(pictures) // 5)
        order = np.random.default_rng(seed).permutation(len(pictures))
        drawn, rest = np.sort(order[:n_queries]), np.sort(order[n_queries:])
        return (
            pictures.subset(rest, f"the other {len(rest)} of {pictures.name}"),
            pictures.subset(drawn, f"{n_queries} of {pictures.name}"),
        )

    return common.open_sides(preset.pictures, preset.queries, preset.layout, root, draw)


@dataclass(frozen=True)
class _Side:
    """The pictures of one side and what the network says of them before any hash.

    Attributes:
        pictures: the set.
        features: as `IAH.frozen_features` or, after the convolution, `IAH.pooled_features` gives
            them, and "pooled" (N, 2 * D) of the whole picture.
        labels: (N, C).
    """

    pictures: ImageSet
    features: dict[str, Tensor]
    labels: Labels

    def pooled(self) -> Floats:
        """Averages over the picture (N, D), of unit length: what classical hashing reads."""
        pooled = self.features["pooled"]
        means = torch.nn.functional.normalize(pooled[:, : pooled.shape[1] // 2], dim=1)
        vectors: Floats = means.numpy()
        return vectors

    def subset(self, rows: Ints) -> _Side:
        features = {name: x[torch.from_numpy(rows)] for name, x in self.features.items()}
        return _Side(self.pictures.subset(rows), features, self.labels[rows])

    @torch.no_grad()
    def mapped(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """A function of the features of all pictures, some at a time."""
        blocks = torch.split(torch.arange(len(self.labels)), _BATCH)
        return torch.cat(
            [function({name: x[rows] for name, x in self.features.items()}) for rows in blocks]
        )


@dataclass(frozen=True)
class _Trunk:
    """What a trained convolution, or a detector, gives for the proposals.

    Attributes:
        model: an IAH with this convolution, or the detector.
        seconds: of its training.
        training: pictures to train on.
        queries, database: both sides.
    """

    model: IAH | RegionDH
    seconds: float
    training: _Side
    queries: _Side
    database: _Side


class Network:
    """What all methods share: a backbone and proposals, as they are or of a trained detector.

    Attributes:
        detector: folder of the checkpoint that both are of, if they are; detector_arguments: of it.
        body: arguments of any model that reads the backbone.
        arguments: of IAH.
        model: an IAH with both.
        epochs_per_length: of the layers of IAH and Region-DH that are not shared by all lengths.
    """

    def __init__(self, options: IAHOptions, n_classes: int) -> None:
        self.options, self.detector = options, options.detector
        self.epochs_per_length = max(options.head_epochs // 3, 1)
        known = read_checkpoint(self.detector).arguments if self.detector else {}
        self.body: dict[str, Any] = {"trained_stages": 0}
        self.arguments: dict[str, Any] = {"n_proposals": options.n_proposals}
        if self.detector is None:
            self.body |= common.body(options)
            self.arguments |= {"proposals": "selective-search"}
        else:
            # The detector's weights follow.
            self.body |= {"backbone": known.get("backbone", "resnet50_fpn"), "weights": "none"}
            self.arguments |= {"proposals": "rpn", "fpn_channels": known.get("fpn_channels", 256)}
        self.arguments |= self.body
        self.detector_arguments = known
        torch.manual_seed(options.seed)
        self.model = common.built(IAH, self.arguments | {"n_bits": 8, "n_classes": n_classes})
        if self.detector is not None:
            copy_weights(self.model, load_checkpoint(self.detector, RegionDH)[0])
        self.model.eval()

    def training(self, epochs: int, *, ramped: bool = False) -> TrainingConfig:
        """How all methods are trained; the batch is the paper's."""
        return head_training(
            epochs=epochs, short=self.options.short, views=1, seed=self.options.seed, ramped=ramped
        )

    def read(self, pictures: ImageSet, folder: Path, reporter: Reporter) -> _Side:
        """What the network says of pictures, from the disk if it is there."""
        options = self.options
        source = f"search-{options.backbone}-{Path(options.weights).stem}"
        if self.detector is not None:
            source = read_checkpoint(self.detector).model_hash
        name = f"{source}-{options.n_proposals}"
        features = self._features(name, self.model, pictures, folder, reporter)
        features["pooled"] = pooled_cells(features["cells"], features["grid"])
        return _Side(pictures, features, pictures.labels())

    def read_regions(self, side: _Side, folder: Path, reporter: Reporter) -> _Side:
        """The same pictures with what the heads of the detector's Region-DH read."""
        assert self.detector is not None
        model, checkpoint = load_checkpoint(self.detector, RegionDH)
        name = f"{checkpoint.name}-{checkpoint.model_hash}"
        return replace(side, features=self._features(name, model, side.pictures, folder, reporter))

    def _features(
        self,
        name: str,
        model: TrainedHashModel,
        pictures: ImageSet,
        folder: Path,
        reporter: Reporter,
    ) -> dict[str, Tensor]:
        config = self.training(1)
        ((features, _),) = kept_features(folder, name, lambda: model, pictures, config, 1, reporter)
        return features


def pooled_cells(cells: Tensor, grid: Tensor) -> Tensor:
    """Average and maximum (N, 2 * D) of each picture's own cells (N, h * w, D)."""
    rows = []
    for cells_of_picture, n in zip(cells, grid.prod(1).tolist(), strict=True):
        inside = cells_of_picture[:n].float()
        rows.append(torch.cat([inside.mean(0), inside.amax(0)]))
    return torch.stack(rows)


class IAHTables:
    """All methods on one pair of sides: Table II, Fig. 8, and unseen classes."""

    def __init__(
        self,
        preset: IAHPreset,
        network: Network,
        database: _Side,
        queries: _Side,
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self.preset, self.network = preset, network
        self.database, self.queries = database, queries
        self.folder, self.reporter = folder, reporter
        rng = np.random.default_rng(network.options.seed)
        n_classes = len(database.pictures.classes)
        self.unseen_classes = np.sort(rng.permutation(n_classes)[: n_classes // _SHARED_UNSEEN])
        self.trunk = self._trunk_of(database, queries, preset.multi_label, "trunk")

    def semantic(self) -> Results:
        """Table II: every method at every length."""
        return Results(
            self._scored(method, n_bits, self.trunk)
            for method in _METHODS
            for n_bits in self.preset.bits
        )

    def region_dh(self, database: _Side, queries: _Side) -> Results:
        """Region-DH at every length, of what its heads read."""
        assert self.network.detector is not None
        detector, _ = load_checkpoint(self.network.detector, RegionDH)
        trunk = _Trunk(detector, 0.0, database, queries, database)
        return Results(self._scored(REGION_DH, n_bits, trunk) for n_bits in self.preset.bits)

    def categories(self) -> list[CategoryResult]:
        """Fig. 8, and what of it the tables alone and the codes alone do."""
        results: list[CategoryResult] = []
        form = self.preset.multi_label
        forms = {"": form} | _OTHER_FORM[form]
        trunks = {
            words: self._trunk_of(self.database, self.queries, forms[words], f"trunk{words}")
            if words
            else self.trunk
            for words in forms
        }
        for n_bits in self.preset.category_bits:
            first = len(results)
            for words, trunk in trunks.items():
                results += self._by_category(n_bits, words, forms[words], trunk)
            results.append(self._baseline(n_bits))
            for result in results[first:]:
                self.reporter.note(
                    f"{result.method}, {n_bits} bits: MAP {result.scores.mean():.4f}"
                )
        return results

    def _by_category(
        self, n_bits: int, words: str, form: str, trunk: _Trunk
    ) -> list[CategoryResult]:
        """IAH's answers by category, and with one part of them left out."""
        model, seconds = self._trained(
            f"categories-{n_bits}{words}",
            IAH,
            self._iah(8, form, n_category_bits=n_bits, semantic_weight=0.0),
            trunk.training,
            start=trunk.model,
            config=self.network.training(self.network.epochs_per_length),
        )
        asking, tables = (_category_side(model, side) for side in (trunk.queries, trunk.database))
        all_ask, all_in = (
            replace(side, found=np.ones_like(side.found)) for side in (asking, tables)
        )
        blank = [replace(side, codes=np.zeros_like(side.codes)) for side in (asking, tables)]
        return [
            CategoryResult(
                OURS + words + part, n_bits, category_precision(*sides), trunk.seconds + seconds
            )
            for part, sides in (
                ("", (asking, tables)),
                (", query's categories known", (all_ask, tables)),
                (", tables without codes", blank),
                (", codes without tables", (all_ask, all_in)),
            )
        ]

    def _baseline(self, n_bits: int) -> CategoryResult:
        """Without probabilities, every picture is in every table."""
        model, seconds = self._trained(
            f"category-baseline-{n_bits}",
            CategoryBaseline,
            self.network.body | {"n_bits": n_bits},
            self.database,
            start=self.network.model,
            config=self.network.training(self.network.options.head_epochs),
        )
        sides = [
            CategorySide(
                pack_signs(side.mapped(model.category_features).numpy()),
                np.ones(side.labels.shape, bool),
                side.labels,
            )
            for side in (self.queries, self.database)
        ]
        return CategoryResult("Fig. 9 baseline", n_bits, category_precision(*sides), seconds)

    def unseen(self) -> Results:
        """Queries with classes that training left out, in the whole database."""
        seen = np.flatnonzero(~self.database.labels[:, self.unseen_classes].any(1))
        asking = np.flatnonzero(self.queries.labels[:, self.unseen_classes].any(1))
        if not len(seen) or not len(asking):
            return Results()
        queries = self.queries.subset(asking)
        form = self.preset.multi_label
        trunk = self._trunk_of(self.database, queries, form, "unseen-trunk", rows=seen)
        return Results(
            self._scored(method, CURVE_BITS, trunk, "unseen-", self.unseen_classes)
            for method in _METHODS
        )

    def unseen_words(self) -> str:
        """What the report says of this protocol."""
        names = ", ".join(self.database.pictures.classes[c] for c in self.unseen_classes)
        asking = int(self.queries.labels[:, self.unseen_classes].any(1).sum())
        words = (
            f"Trained without the pictures that show {names}; asked by the {asking} queries that "
            "do, with these classes alone as labels, in the whole database "
            "(Sablayrolles et al. 2017)."
        )
        if self.network.detector is not None:
            words += " The backbone's detector was trained on all classes."
        return words

    def _scored(
        self, method: str, n_bits: int, trunk: _Trunk, prefix: str = "", classes: Any = slice(None)
    ) -> Result:
        """A method at one length, trained on the trunk's pictures; `classes` are the labels."""
        codes, seconds = self._codes(method, n_bits, trunk, prefix + method)
        labels = (side.labels[:, classes] for side in (trunk.queries, trunk.database))
        sides = zip(codes, labels, strict=True)
        result = score_semantic(method, n_bits, *sides, k=self.preset.k, seconds=seconds)
        self.reporter.note(f"{prefix}{method}, {n_bits} bits: MAP {result.mean('MAP'):.4f}")
        return result

    def _codes(
        self, method: str, n_bits: int, trunk: _Trunk, folder: str
    ) -> tuple[list[Codes], float]:
        """Codes of queries and database by a method trained on `trunk.training`; its seconds."""
        sides = trunk.queries, trunk.database
        if method in _CLASSICAL:
            began = time.perf_counter()
            hasher = _CLASSICAL[method](n_bits).fit(trunk.training.pooled(), trunk.training.labels)
            seconds = time.perf_counter() - began
            return [hasher.encode(side.pooled()) for side in sides], seconds
        kind: type[ImageHashModel] = IAH
        start, epochs = trunk.model, self.network.epochs_per_length
        if method == OURS:
            arguments = self._iah(n_bits, self.preset.multi_label, category_weight=0.0)
        elif method == REGION_DH:
            kind = RegionDH
            arguments = self.network.detector_arguments | {"n_bits": n_bits} | HEAD_ARGUMENTS
        else:
            kind, changes = _PEERS[method]
            arguments = self.network.body | {"n_bits": n_bits} | changes
            start, epochs = self.network.model, self.network.options.head_epochs
        model, seconds = self._trained(
            f"{folder}-{n_bits}",
            kind,
            arguments,
            trunk.training,
            start=start,
            config=self.network.training(epochs, ramped=kind is RegionDH),
        )
        shared_seconds = 0.0 if method in _PEERS else trunk.seconds
        codes = [codes_of(side.mapped(model.hash_features)) for side in sides]
        return codes, shared_seconds + seconds

    def _trunk_of(
        self, database: _Side, queries: _Side, form: str, folder: str, *, rows: Ints | None = None
    ) -> _Trunk:
        """Trains the convolution on the database, or on `rows` of it, with all losses of IAH."""
        epochs = self.network.options.head_epochs - self.network.epochs_per_length
        model, seconds = self._trained(
            folder,
            IAH,
            self._iah(_TRUNK_BITS, form, n_category_bits=_TRUNK_CATEGORY_BITS),
            database if rows is None else database.subset(rows),
            start=self.network.model,
            config=self.network.training(max(epochs, 1)),
        )
        self.reporter.note(f"{folder}: convolution and label branch trained in {seconds:.0f} s")
        queries, database = (_after_convolution(model, side) for side in (queries, database))
        training = database if rows is None else database.subset(rows)
        return _Trunk(model, seconds, training, queries, database)

    def _iah(self, n_bits: int, form: str, **changes: Any) -> dict[str, Any]:
        return self.network.arguments | {"n_bits": n_bits, "multi_label": form} | changes

    def _trained(
        self,
        folder: str,
        kind: type[Kind],
        arguments: dict[str, Any],
        side: _Side,
        *,
        start: HashModel,
        config: TrainingConfig,
    ) -> tuple[Kind, float]:
        """A model trained on cached features, and the seconds that it took."""
        wanted = _READ.get(kind, ("pooled",))
        features = {key: side.features[key] for key in wanted if key in side.features}
        cache = [(features, torch.from_numpy(side.labels).float())]
        path = self.folder / folder.lower().replace(",", "").replace(" ", "-")
        return common.trained(
            kind, arguments, side.pictures, path, config, start=start, cache=cache
        )


def _after_convolution(model: IAH, side: _Side) -> _Side:
    """The same side with the features of its proposals in place of cells."""
    regions = side.mapped(lambda features: model.pooled_features(features)["regions"].half())
    kept = {name: side.features[name] for name in ("boxes", "present", "pooled")}
    return replace(side, features=kept | {"regions": regions})


def _category_side(model: IAH, side: _Side) -> CategorySide:
    def flat(features: dict[str, Tensor]) -> Tensor:
        probs, activations = model.category_features(features)
        return torch.cat([probs.float(), activations.flatten(1).float()], 1)

    parts = side.mapped(flat)
    n_classes = side.labels.shape[1]
    probs = parts[:, :n_classes].numpy()
    codes = pack_signs(parts[:, n_classes:].reshape(len(parts), n_classes, -1).numpy())
    return CategorySide(codes, probs >= model.threshold, side.labels)


def _facts(command: str, network: Network, database: _Side, queries: _Side) -> list[str]:
    """What a report must state of how its figures came to be."""
    options, per_length = network.options, network.epochs_per_length
    epochs, weights = options.head_epochs, Path(options.weights).name
    if options.detector is None:
        source = (
            f"Proposals: selective search, {options.n_proposals} at most. Backbone "
            f"{options.backbone}, weights `{weights}`, not trained."
        )
    else:
        checkpoint = read_checkpoint(options.detector)
        source = (
            f"Proposals: {options.n_proposals} at most, of the RPN of {checkpoint.name} "
            f"{checkpoint.model_hash}, whose backbone all methods read, not trained further."
        )
    sides = database.pictures, queries.pictures
    return [
        f"Command: `{command}`",
        *common.facts_of_sides(*sides, queries.labels, database.labels),
        "Ties: exact expectation over random orders. MAP and WMAP over the whole ranking, divided "
        "by all relevant pictures (IAH, eqs. 12 and 13).",
        source,
        f"Trainings: {epochs} epochs of batches of 32, seed {options.seed}, short side "
        f"{options.short} pixels. Of IAH, {per_length} for each length and the rest, with all its "
        f"losses, for the convolution that all lengths share; of Region-DH, {per_length} for the "
        "heads of each length, on the detector, whose own training is not counted. One-Stage has "
        "16 features per bit instead of 50. Classical methods read averages over the last map, of "
        "unit length. Times are of the layers after what is computed once, on a machine with "
        "other work.",
        *common.facts_of_run(),
    ]
