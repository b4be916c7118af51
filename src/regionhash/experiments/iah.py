"""Runs a preset of IAH: semantic and category-aware hashing, their peers, and the report.

All methods read one backbone, which is not trained here: what it and the proposals give for a
picture is computed once, and each method and length trains its own layers on it. Of IAH, the
convolution to 32 maps is trained once with all its losses; what its pooling then gives for the
proposals is shared by all lengths. Of Region-DH, modules 3 and 4 are trained as in `reproduce`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionhash.codes import pack_signs
from regionhash.data import open_dataset
from regionhash.data.image_set import ImageSet, joined
from regionhash.evaluation import paper_figures
from regionhash.evaluation.categories import CategorySide, category_precision
from regionhash.experiments.iah_report import (
    CURVE_BITS,
    OURS,
    REGION_DH,
    CategoryResult,
    MultiLabelReport,
    SemanticResult,
    score_semantic,
    write_multi_label_report,
)
from regionhash.experiments.presets import MultiLabelPreset, find_multi_label_preset
from regionhash.experiments.region_dh import HEAD_ARGUMENTS
from regionhash.experiments.region_dh_report import Labels, hash_ids
from regionhash.models.checkpoints import build_model, load_checkpoint, provenance, read_checkpoint
from regionhash.models.classical import (
    ITQ,
    ITQCCA,
    Hasher,
    RandomHyperplanes,
    SpectralHashing,
    ThresholdedClasses,
)
from regionhash.parts.regions import codes_of
from regionhash.structures import Codes, Floats, Ints
from regionhash.training import TrainingConfig, copy_weights, train
from regionhash.training.feature_cache import head_training, stored_features

Say = Callable[[str], None]

_TRUNK_BITS, _TRUNK_CATEGORY_BITS = 48, 12  # at which what all lengths of IAH share is trained
_OTHER_FORM = {"softmax": {", sigmoids": "bce"}, "bce": {", softmax": "softmax"}}
_SHARED_UNSEEN = 4  # one class in so many is unseen (Sablayrolles et al. 2017)
_BATCH = 64  # pictures at a time where nothing is trained

_READ = {  # of a side's features
    "iah": ("cells", "grid", "regions", "boxes", "present"),
    "region-dh": ("regions", "whole", "objectness", "present", "region_labels"),
}
_PEERS = {"One-Stage": "one-stage", "DSRH": "dsrh"}
_PEER_ARGUMENTS = {
    "one-stage": {"n_hidden_per_bit": 16},  # 50 take three times as long
    "dsrh": {},
}
_CLASSICAL: dict[str, Callable[[int], Hasher]] = {
    "ITQ-CCA": ITQCCA,
    "ITQ": ITQ,
    "SH": SpectralHashing,
    "LSH": RandomHyperplanes,
    "thresholded classes": ThresholdedClasses,
}


@dataclass(frozen=True)
class MultiLabelOptions:
    """How a preset of IAH is run.

    Attributes:
        backbone, weights: see `build_backbone`; a detector brings its own.
        short: short side of the network's input in pixels.
        detector: folder of a Region-DH checkpoint, whose RPN proposes and whose backbone all
            methods read; None takes selective search and the backbone as it is.
        n_proposals: of a picture, at most.
        epochs: of each training. IAH and Region-DH, of which a part is shared by all lengths, take
            a third for what is not; what IAH shares takes the rest.
        seed: of everything random.
        unseen: whether the protocol of unseen classes is run as well.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    detector: Path | None = None
    n_proposals: int = 48
    epochs: int = 8
    seed: int = 0
    unseen: bool = True

    @property
    def head_epochs(self) -> int:
        """Of the layers of IAH and Region-DH that each length has of its own."""
        return max(self.epochs // 3, 1)

    def training(self, epochs: int, *, ramped: bool = False) -> TrainingConfig:
        """Of all methods; the batch is the paper's."""
        return head_training(
            epochs=epochs, short=self.short, views=1, seed=self.seed, ramped=ramped
        )


@dataclass(frozen=True)
class _Trunk:
    """What a trained convolution gives for the proposals.

    Attributes:
        model: an IAH with this convolution.
        seconds: of its training.
        training: pictures to train on.
        queries, database: both sides.
    """

    model: Any
    seconds: float
    training: _Side
    queries: _Side
    database: _Side


@dataclass(frozen=True)
class _Side:
    """The pictures of one side and what the network says of them before any hash.

    Attributes:
        pictures: the set.
        features: as `IAH.frozen_features` or, behind the convolution, `IAH.pooled_features` gives
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

    def subset(self, rows: Any) -> _Side:
        features = {name: x[torch.from_numpy(rows)] for name, x in self.features.items()}
        return _Side(self.pictures.subset(rows), features, self.labels[rows])


def reproduce_multi_label(
    name: str, root: Path, out: Path, options: MultiLabelOptions, say: Say
) -> Path:
    """Runs the preset `name` on the data below `root`; returns the report's path in `out`.

    Features and trainings that are there from an earlier run with the same options are not made
    again.

    Raises:
        ValueError: unknown preset, missing data (the message says what to put where), or pictures
            that cannot be read.
    """
    preset = find_multi_label_preset(name)
    database_set, query_set = open_sides(preset, root, options.seed)
    trunk = _trunk(options, len(database_set.classes))
    database, queries = (
        _read(trunk, own, out / "features", options, say) for own in (database_set, query_set)
    )
    run = _Run(preset, options, trunk, database, queries, out / "runs", say)
    semantic = run.semantic()
    if options.detector is not None:
        regions = [
            _read_regions(own, out / "features", options, say) for own in (database, queries)
        ]
        semantic[len(preset.bits) : len(preset.bits)] = run.region_dh(*regions)
        del regions
    report = MultiLabelReport(
        title=f"{name}: IAH and its peers",
        facts=_facts(name, options, database, queries),
        classes=database_set.classes,
        k=preset.k,
        semantic=semantic,
        categories=run.categories(),
        unseen=run.unseen() if options.unseen else [],
        unseen_words=run.unseen_words(),
        published=paper_figures("iah", preset.dataset),
    )
    return write_multi_label_report(out, report)


def open_sides(preset: MultiLabelPreset, root: Path, seed: int) -> tuple[ImageSet, ImageSet]:
    """Database and queries of a preset.

    Raises:
        ValueError: missing data, or pictures on both sides.
    """
    try:
        sets = [open_dataset(spec.format(root=root)) for spec in preset.pictures]
        pictures = joined(" + ".join(own.name for own in sets), sets)
        if preset.queries:
            queries = open_dataset(preset.queries.format(root=root))
    except ValueError as error:
        raise ValueError(f"{error}\nthis preset needs, below {root}: {preset.layout}") from error
    if not preset.queries:
        n_queries = min(preset.n_queries, len(pictures) // 5)
        rows = np.random.default_rng(seed).permutation(len(pictures))
        queries = pictures.subset(np.sort(rows[:n_queries]), f"{n_queries} of {pictures.name}")
        rest = np.sort(rows[n_queries:])
        pictures = pictures.subset(rest, f"the other {len(rest)} of {pictures.name}")
    common = set(pictures.ids) & set(queries.ids)
    if common:
        raise ValueError(f"{len(common)} pictures are queries and database at once: {min(common)}")
    return pictures, queries


def _trunk(options: MultiLabelOptions, n_classes: int) -> Any:
    """An IAH whose backbone and proposals are those of all methods."""
    arguments = _iah_arguments(options) | {"n_bits": 8, "n_classes": n_classes}
    torch.manual_seed(options.seed)
    model = build_model("iah", arguments)
    if options.detector is not None:
        detector, _ = load_checkpoint(options.detector)
        copy_weights(model, detector)
    return model.eval()


def _body_arguments(options: MultiLabelOptions) -> dict[str, Any]:
    if options.detector is None:
        return {"backbone": options.backbone, "weights": options.weights, "trained_stages": 0}
    # The detector's weights follow.
    known = read_checkpoint(options.detector).arguments
    return {
        "backbone": known.get("backbone", "resnet50_fpn"),
        "weights": "none",
        "trained_stages": 0,
    }


def _iah_arguments(options: MultiLabelOptions) -> dict[str, Any]:
    arguments = _body_arguments(options) | {"n_proposals": options.n_proposals}
    if options.detector is None:
        return arguments | {"proposals": "selective-search"}
    known = read_checkpoint(options.detector).arguments
    return arguments | {"proposals": "rpn", "fpn_channels": known.get("fpn_channels", 256)}


def _read(
    trunk: Any, pictures: ImageSet, folder: Path, options: MultiLabelOptions, say: Say
) -> _Side:
    """Computes what the trunk says of pictures, or reads it from the disk."""
    source = f"search-{options.backbone}-{Path(options.weights).stem}"
    if options.detector is not None:
        source = read_checkpoint(options.detector).model_hash
    key = f"{source}-{options.n_proposals}-{options.short}-{pictures.fingerprint()}"
    path = folder / f"{key}-1.safetensors"
    config = options.training(options.epochs)
    ((features, _),) = stored_features(path, lambda: trunk, pictures, config, 1, say)
    features["pooled"] = _pooled(features["cells"], features["grid"])
    return _Side(pictures, features, pictures.labels())


def _read_regions(side: _Side, folder: Path, options: MultiLabelOptions, say: Say) -> _Side:
    """The same pictures with what the heads of the detector's Region-DH read."""
    assert options.detector is not None
    model, checkpoint = load_checkpoint(options.detector)
    pictures, config = side.pictures, options.training(options.epochs)
    key = f"{checkpoint.name}-{checkpoint.model_hash}-{options.short}-1-{pictures.fingerprint()}"
    path = folder / f"{key}.safetensors"
    ((features, _),) = stored_features(path, lambda: model, pictures, config, 1, say)
    return replace(side, features=features)


def _pooled(cells: Tensor, grid: Tensor) -> Tensor:
    """Average and maximum (N, 2 * D) of each picture's own cells (N, h * w, D)."""
    rows = []
    for own, n in zip(cells, grid.prod(1).tolist(), strict=True):
        inside = own[:n].float()
        rows.append(torch.cat([inside.mean(0), inside.amax(0)]))
    return torch.stack(rows)


class _Run:
    """All methods on one pair of sides."""

    def __init__(
        self,
        preset: MultiLabelPreset,
        options: MultiLabelOptions,
        trunk: Any,
        database: _Side,
        queries: _Side,
        folder: Path,
        say: Say,
    ) -> None:
        self.preset = preset
        self.options = options
        self.start = trunk
        self.database = database
        self.queries = queries
        self.folder = folder
        self.say = say
        rng = np.random.default_rng(options.seed)
        n_classes = len(database.pictures.classes)
        self.unseen_classes = np.sort(rng.permutation(n_classes)[: n_classes // _SHARED_UNSEEN])
        self.trunk = self._trunk_of(database, queries, preset.multi_label, "trunk")

    def semantic(self) -> list[SemanticResult]:
        """Table II: every method at every length."""
        return [
            self._scored(method, n_bits, self.trunk, "")
            for method in (OURS, *_PEERS, *_CLASSICAL)
            for n_bits in self.preset.bits
        ]

    def region_dh(self, database: _Side, queries: _Side) -> list[SemanticResult]:
        """Region-DH at every length, of what its heads read."""
        assert self.options.detector is not None
        detector, checkpoint = load_checkpoint(self.options.detector)
        results = []
        for n_bits in self.preset.bits:
            model, seconds = self._trained(
                f"region-dh-{n_bits}",
                checkpoint.name,
                checkpoint.arguments | {"n_bits": n_bits} | HEAD_ARGUMENTS,
                database,
                start=detector,
                config=self.options.training(self.options.head_epochs, ramped=True),
            )
            codes = [codes_of(_mapped(model.hash_features, own)) for own in (queries, database)]
            labels = queries.labels, database.labels
            results.append(self._score(REGION_DH, n_bits, codes, labels, seconds))
        return results

    def categories(self) -> list[CategoryResult]:
        """Fig. 8, and what of it the tables alone and the codes alone do."""
        results: list[CategoryResult] = []
        form, others = self.preset.multi_label, _OTHER_FORM[self.preset.multi_label]
        trunks = {"": self.trunk} | {
            words: self._trunk_of(self.database, self.queries, other, f"trunk{words}")
            for words, other in others.items()
        }
        forms = {"": form} | others
        for n_bits in self.preset.category_bits:
            first = len(results)
            for words, trunk in trunks.items():
                arguments = self._iah(8, n_category_bits=n_bits, semantic_weight=0.0)
                model, seconds = self._trained(
                    f"categories-{n_bits}{words}",
                    "iah",
                    arguments | {"multi_label": forms[words]},
                    trunk.training,
                    start=trunk.model,
                    config=self.options.training(self.options.head_epochs),
                )
                asking, tables = (
                    self._category_side(model, own) for own in (trunk.queries, trunk.database)
                )
                all_ask, all_in = (
                    replace(own, found=np.ones_like(own.found)) for own in (asking, tables)
                )
                blank = [replace(own, codes=np.zeros_like(own.codes)) for own in (asking, tables)]
                for part, sides in (
                    ("", (asking, tables)),
                    (", query's categories known", (all_ask, tables)),
                    (", tables without codes", blank),
                    (", codes without tables", (all_ask, all_in)),
                ):
                    scores = category_precision(*sides)
                    seconds_in_all = trunk.seconds + seconds
                    results.append(
                        CategoryResult(OURS + words + part, n_bits, scores, seconds_in_all)
                    )
            arguments = _body_arguments(self.options) | {"n_bits": n_bits}
            name = "category-baseline"
            model, seconds = self._trained(
                f"{name}-{n_bits}",
                name,
                arguments,
                self.database,
                start=self.start,
                config=self.options.training(self.options.epochs),
            )
            sides = [self._baseline_side(model, side) for side in (self.queries, self.database)]
            scores = category_precision(*sides)
            results.append(CategoryResult("Fig. 9 baseline", n_bits, scores, seconds))
            for result in results[first:]:
                self.say(f"{result.method}, {n_bits} bits: MAP {result.scores.mean():.4f}")
        return results

    def unseen(self) -> list[SemanticResult]:
        """Queries with classes that training left out, in the whole database."""
        seen = np.flatnonzero(~self.database.labels[:, self.unseen_classes].any(1))
        asking = np.flatnonzero(self.queries.labels[:, self.unseen_classes].any(1))
        if not len(seen) or not len(asking):
            return []
        queries = self.queries.subset(asking)
        form = self.preset.multi_label
        trunk = self._trunk_of(self.database, queries, form, "unseen-trunk", rows=seen)
        return [
            self._scored(method, CURVE_BITS, trunk, "unseen-", self.unseen_classes)
            for method in (OURS, *_PEERS, *_CLASSICAL)
        ]

    def unseen_words(self) -> str:
        """What the report says of this protocol."""
        names = ", ".join(self.database.pictures.classes[c] for c in self.unseen_classes)
        asking = int(self.queries.labels[:, self.unseen_classes].any(1).sum())
        words = (
            f"Trained without the pictures that show {names}; asked by the {asking} queries that "
            "do, with these classes alone as labels, in the whole database "
            "(Sablayrolles et al. 2017)."
        )
        if self.options.detector is not None:
            words += " The backbone's detector was trained on all classes."
        return words

    def _scored(
        self,
        method: str,
        n_bits: int,
        trunk: _Trunk,
        prefix: str,
        classes: Any = slice(None),
    ) -> SemanticResult:
        """A method at one length, trained on the trunk's pictures; `classes` are the labels."""
        codes, seconds = self._codes(method, n_bits, trunk, prefix + method)
        labels = trunk.queries.labels[:, classes], trunk.database.labels[:, classes]
        return self._score(method, n_bits, codes, labels, seconds, prefix)

    def _score(
        self,
        method: str,
        n_bits: int,
        codes: Sequence[Codes],
        labels: tuple[Labels, Labels],
        seconds: float,
        prefix: str = "",
    ) -> SemanticResult:
        own = (codes[0], labels[0]), (codes[1], labels[1])
        result = score_semantic(method, n_bits, *own, k=self.preset.k, seconds=seconds)
        self.say(f"{prefix}{method}, {n_bits} bits: MAP {result.mean('MAP'):.4f}")
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
        if method == OURS:
            name, arguments = "iah", self._iah(n_bits, category_weight=0.0)
            start, seconds, epochs = trunk.model, trunk.seconds, self.options.head_epochs
        else:
            name = _PEERS[method]
            arguments = _body_arguments(self.options) | {"n_bits": n_bits} | _PEER_ARGUMENTS[name]
            start, seconds, epochs = self.start, 0.0, self.options.epochs
        model, own_seconds = self._trained(
            f"{folder}-{n_bits}",
            name,
            arguments,
            trunk.training,
            start=start,
            config=self.options.training(epochs),
        )
        return [codes_of(_mapped(model.hash_features, side)) for side in sides], (
            seconds + own_seconds
        )

    def _trunk_of(
        self,
        database: _Side,
        queries: _Side,
        form: str,
        folder: str,
        *,
        rows: Ints | None = None,
    ) -> _Trunk:
        """Trains the convolution on the database, or on `rows` of it, with all losses of IAH."""
        arguments = self._iah(_TRUNK_BITS, n_category_bits=_TRUNK_CATEGORY_BITS)
        model, seconds = self._trained(
            folder,
            "iah",
            arguments | {"multi_label": form},
            database if rows is None else database.subset(rows),
            start=self.start,
            config=self.options.training(max(self.options.epochs - self.options.head_epochs, 1)),
        )
        self.say(f"{folder}: convolution and label branch trained in {seconds:.0f} s")
        behind = [self._behind(model, side) for side in (queries, database)]
        training = behind[1] if rows is None else behind[1].subset(rows)
        return _Trunk(model, seconds, training, *behind)

    @staticmethod
    def _behind(model: Any, side: _Side) -> _Side:
        """The same side with the features of its proposals in place of cells."""
        regions = _mapped(lambda own: model.pooled_features(own)["regions"].half(), side)
        kept = {name: side.features[name] for name in ("boxes", "present", "pooled")}
        return replace(side, features=kept | {"regions": regions})

    def _iah(self, n_bits: int, **changes: Any) -> dict[str, Any]:
        own = {"n_bits": n_bits, "multi_label": self.preset.multi_label}
        return _iah_arguments(self.options) | own | changes

    def _trained(
        self,
        folder: str,
        name: str,
        arguments: dict[str, Any],
        side: _Side,
        *,
        start: Any,
        config: TrainingConfig,
    ) -> tuple[Any, float]:
        """A model trained on cached features, and the seconds that it took."""
        wanted = _READ.get(name, ("pooled",))
        features = {key: side.features[key] for key in wanted if key in side.features}
        cache = [(features, torch.from_numpy(side.labels).float())]
        path = self.folder / folder.lower().replace(",", "").replace(" ", "-")
        checkpoint = train(name, arguments, side.pictures, path, config, start=start, cache=cache)
        seconds = sum(row["seconds"] for row in checkpoint.provenance["epochs"])
        model, _ = load_checkpoint(path)
        return model, float(seconds)

    def _category_side(self, model: Any, side: _Side) -> CategorySide:
        parts = _mapped(lambda own: torch.cat(_flat_categories(model, own), 1), side)
        n_classes = side.labels.shape[1]
        probs = parts[:, :n_classes].numpy()
        codes = pack_signs(parts[:, n_classes:].reshape(len(parts), n_classes, -1).numpy())
        return CategorySide(codes, probs >= model.threshold, side.labels)

    def _baseline_side(self, model: Any, side: _Side) -> CategorySide:
        """Without probabilities, every picture is in every table."""
        codes = pack_signs(_mapped(model.category_features, side).numpy())
        return CategorySide(codes, np.ones(side.labels.shape, bool), side.labels)


def _flat_categories(model: Any, features: dict[str, Tensor]) -> list[Tensor]:
    probs, activations = model.category_features(features)
    return [probs.float(), activations.flatten(1).float()]


@torch.no_grad()
def _mapped(function: Callable[[dict[str, Tensor]], Tensor], side: _Side) -> Tensor:
    """A function of features over all pictures of a side, some at a time."""
    rows = torch.split(torch.arange(len(side.labels)), _BATCH)
    return torch.cat(
        [function({name: x[own] for name, x in side.features.items()}) for own in rows]
    )


def _facts(name: str, options: MultiLabelOptions, database: _Side, queries: _Side) -> list[str]:
    """What a report must tell of how its figures came to be."""
    facts: Mapping[str, Any] = provenance()
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    command = f"regionhash reproduce {name} --short {options.short} --head-epochs {options.epochs}"
    if options.detector is None:
        command += f" --backbone {options.backbone} --weights {Path(options.weights).name}"
        source = (
            f"Proposals: selective search, {options.n_proposals} at most. Backbone "
            f"{options.backbone}, weights `{Path(options.weights).name}`, not trained."
        )
    else:
        command += f" --rpn {options.detector.name}"
        checkpoint = read_checkpoint(options.detector)
        source = (
            f"Proposals: {options.n_proposals} at most, of the RPN of {checkpoint.name} "
            f"{checkpoint.model_hash}, whose backbone all methods read, not trained further."
        )
    if not options.unseen:
        command += " --no-unseen"
    chance = float((queries.labels.astype(int) @ database.labels.T.astype(int) > 0).mean())
    lines = [f"Command: `{command}`"]
    for words, side in (("Database and training", database), ("Queries", queries)):
        lines.append(
            f"{words}: {side.pictures.name}, {len(side.labels)} pictures, "
            f"hash of ids {hash_ids(side.pictures.ids)}"
        )
    return [
        *lines,
        f"Chance: {chance:.3f} of the database shares a label with a query.",
        "Ties: exact expectation over random orders. MAP and WMAP over the whole ranking, divided "
        "by all relevant pictures (IAH, eqs. 12 and 13).",
        source,
        f"Trainings: {options.epochs} epochs of batches of 32, seed {options.seed}, short side "
        f"{options.short} pixels. Of IAH, {options.head_epochs} for each length and the rest, with "
        f"all its losses, for the convolution that all lengths share; of Region-DH, "
        f"{options.head_epochs} for the heads of each length, on the detector, whose own training "
        "is not counted. One-Stage has 16 features per bit instead of 50. Classical "
        "methods read averages over the last map, of unit length. Times are of the layers behind "
        "what is computed once, on a machine with other work.",
        f"Versions: {versions}; Python {facts['python']}; git {facts['git']}.",
        f"Machine: {facts['machine']}.",
    ]
