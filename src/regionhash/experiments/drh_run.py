"""Runs a preset of instance search: DRH's Tables 1 to 5 on one database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from regionhash.codes import binarize, pack_bits
from regionhash.collection.fitting import MAX_REGIONS
from regionhash.data import open_dataset
from regionhash.data.instances import BoxQuerySet, read_instances, with_distractors
from regionhash.data.oxford import read_oxford
from regionhash.evaluation import (
    CosineRanks,
    HammingMatrix,
    InstanceRelevance,
    dense_ranks,
    paper_figures,
)
from regionhash.evaluation.levels import IntegerMatrix
from regionhash.experiments.common import (
    body,
    built,
    command,
    described,
    facts_of_run,
    needed,
)
from regionhash.experiments.drh import PRESETS, DRHOptions, DRHPreset
from regionhash.experiments.drh_features import (
    DESCRIPTORS,
    Bags,
    InstanceFeatures,
    instance_features,
    windows_kind,
)
from regionhash.experiments.drh_report import (
    HYPERPLANES,
    MAX_POOLED,
    DRHReport,
    InstanceResult,
    ScanTime,
    score_instances,
    write_report,
)
from regionhash.models.checkpoints import read_checkpoint
from regionhash.models.classical import RandomHyperplanes
from regionhash.models.drh import DRH, fit_drh
from regionhash.parts.descriptors import aggregate
from regionhash.parts.hashes import FitReport
from regionhash.parts.whitening import Whitening
from regionhash.reporter import Reporter
from regionhash.search import search_images, united_hamming
from regionhash.search.steps import (
    CANDIDATES,
    EXPANSION,
    Ranking,
    expand_images,
    expand_regions,
    rank_images,
    rank_regions,
)
from regionhash.structures import Codes, CodeTable, Floats, Ints

Hasher = Callable[[Tensor], Codes]
"""Codes (N, K/8) of features (N, D) as a region has them, not yet whitened."""

DEFAULT_BITS, DEFAULT_OVERLAP = 1024, 0.6
"""The paper's, chosen on Oxford 5k (Sec. "Performance using Different Settings")."""

_CANDIDATES = (100, 200, 400, 800)  # Table 2
_EXPANSIONS = (4, 5, 6, 7)  # Table 3
_TIMED_BITS = (512, 1024)  # Table 5
_TIMED_QUERIES = 64
_REPEATS = 11


def reproduce(name: str, root: Path, out: Path, options: DRHOptions, reporter: Reporter) -> Path:
    """Runs a preset, see `Experiment.run`."""
    preset = PRESETS[name]
    query_set = open_queries(preset, root, options)
    features = instance_features(
        _model(options, DEFAULT_BITS),
        query_set,
        out / "features",
        short=options.short,
        overlaps=preset.overlaps,
        detector=options.detector,
        settings=(options.backbone, options.weights),
        reporter=reporter,
    )
    tables = DRHTables(preset, options, query_set, features, reporter)
    results = [*tables.lengths(), *tables.windows(), *tables.steps(), *tables.descriptors()]
    report = DRHReport(
        title=f"{name}: DRH",
        facts=_facts(command(name, root, options), tables),
        results=results,
        published=paper_figures("drh"),
        default_bits=DEFAULT_BITS,
        times=tables.times(),
        batch_size=min(_TIMED_QUERIES, len(query_set.queries)),
    )
    return write_report(out, report)


def open_queries(preset: DRHPreset, root: Path, options: DRHOptions) -> BoxQuerySet:
    """The database with all distractors, and its queries. Raises ValueError if data is missing."""
    with needed(preset.layout, root):
        if preset.buildings:
            query_set = read_oxford(root / preset.buildings)
        else:
            query_set = read_instances(root / "objects.csv", images_dir=root / "images")
        specs = [spec.format(root=root) for spec in preset.distractors] + [*options.distractors]
        return with_distractors(query_set, [open_dataset(spec) for spec in specs])


def _model(options: DRHOptions, n_bits: int) -> DRH:
    return built(DRH, body(options) | {"n_bits": n_bits, "n_classes": 0}).eval()


# -- methods --------------------------------------------------------------------------------------


class DRHTables:
    """The methods on one database.

    Attributes:
        models: DRH of each length of code; fitted: how it was fitted.
        regions: features of the windows of the default overlap.
        first, whole: (N,), where the whole picture stands among them, and its features.
        floats: (M, P), of these whitened; query_floats: (Q, P). Whitening does not depend on the
            length.
    """

    def __init__(
        self,
        preset: DRHPreset,
        options: DRHOptions,
        query_set: BoxQuerySet,
        features: InstanceFeatures,
        reporter: Reporter,
    ) -> None:
        self.preset, self.options, self.reporter = preset, options, reporter
        self.query_set, self.features = query_set, features
        self.relevance = InstanceRelevance.of_ids(
            features.ids,
            [query.positives for query in query_set.queries],
            [query.junk for query in query_set.queries],
        )
        self.fitted: dict[int, FitReport] = {}
        self.regions = features.database[windows_kind(DEFAULT_OVERLAP)]
        self.first = self.regions.offsets[:-1]
        self.whole = Bags(self.regions.values[self.first], np.arange(len(self.first) + 1))
        self.models = {n_bits: self._fit(n_bits) for n_bits in preset.bits}
        whitening = self.models[DEFAULT_BITS].whitening
        self.floats = self.regions.map(whitening)  # (M, P)
        self.query_floats = features.queries["MAC"].map(whitening)  # (Q, P)

    def _fit(self, n_bits: int) -> DRH:
        self.reporter.note(f"fitting {n_bits} bits")
        torch.manual_seed(0)
        model = _model(self.options, n_bits)
        rows = np.arange(len(self.regions.values))
        if len(rows) > MAX_REGIONS:
            rows = np.sort(np.random.default_rng(0).choice(rows, MAX_REGIONS, replace=False))
        regions = torch.from_numpy(self.regions.values[rows].astype(np.float32))
        self.fitted[n_bits] = fit_drh(model, regions)
        return model.eval()

    def _score(
        self,
        table: str,
        method: str,
        n_bits: int | None,
        distances: IntegerMatrix,
        remark: str = "",
    ) -> InstanceResult:
        result = score_instances(table, method, n_bits, distances, self.relevance, remark)
        self.reporter.note(f"table {table}, {method}, {n_bits or 'floats'}: mAP {result.map:.4f}")
        return result

    def lengths(self) -> Iterator[InstanceResult]:
        """Table 1: whole pictures, by codes of several lengths and by the floats before them."""
        queries = self.features.queries["MAC"]
        score = partial(self._score, "1")
        for n_bits in self.preset.bits:
            for hashed_by, codes in self._hashers(n_bits):
                distances = HammingMatrix(queries.map(codes), self.whole.map(codes))
                yield score(f"gDRH{hashed_by}", n_bits, distances)
        ranks = CosineRanks(_unit(self.query_floats), _unit(self.floats[self.first]))
        yield score(MAX_POOLED, None, ranks, f"{self.floats.shape[1]}-d, whitened")

    def windows(self) -> Iterator[InstanceResult]:
        """Table 2: local re-ranking with windows of several overlaps and numbers of candidates."""
        for way in [
            *map(windows_kind, self.preset.overlaps),
            *["RPN"] * bool(self.options.detector),
        ]:
            remark = f"{self.features.database[way].mean_length:.0f} boxes"
            for hashed_by, codes in self._hashers(DEFAULT_BITS):
                queries, table = self._codes(way, codes)
                for m in _CANDIDATES:
                    ranks = _Steps(queries, table, local=True, candidates=m)
                    method = f"gDRH+lDRH ({way}; M = {m}){hashed_by}"
                    yield self._score("2", method, DEFAULT_BITS, ranks, remark)

    def steps(self) -> Iterator[InstanceResult]:
        """Table 3: every combination of the steps, and exact search over all regions."""
        (_, codes), (by_planes, planes) = self._hashers(DEFAULT_BITS)
        queries, table = self._codes(windows_kind(DEFAULT_OVERLAP), codes)
        score = partial(self._score, "3")
        yield score("gDRH", DEFAULT_BITS, _Steps(queries, table))
        yield score("gDRH+lDRH", DEFAULT_BITS, _Steps(queries, table, local=True))
        for q in _EXPANSIONS:
            wide = partial(_Steps, queries, table, expansion=q)
            for method, ranks in (
                ("gDRH+gQE", wide(expand_global=True)),
                ("gDRH+gQE+lDRH", wide(expand_global=True, local=True)),
                ("gDRH+lDRH+lQE", wide(local=True, expand_local=True)),
                ("gDRH+gQE+lDRH+lQE", wide(expand_global=True, local=True, expand_local=True)),
            ):
                yield score(f"{method} (q = {q})", DEFAULT_BITS, ranks)
        yield score("all regions", DEFAULT_BITS, _AllRegions(queries, table))
        queries, table = self._codes(windows_kind(DEFAULT_OVERLAP), planes)
        local = _Steps(queries, table, local=True)
        yield score(f"gDRH+lDRH{by_planes}", DEFAULT_BITS, local)
        yield score(f"all regions{by_planes}", DEFAULT_BITS, _AllRegions(queries, table))
        floats = _AllRegionsCosine(
            _unit(self.query_floats), _unit(self.floats), self.regions.offsets
        )
        yield score("all regions, floats", None, floats)

    def descriptors(self) -> Iterator[InstanceResult]:
        """Table 4: the descriptors that are simple to have, whitened as DRH's features are."""
        power = self.models[DEFAULT_BITS].whitening.power
        for kind in (*DESCRIPTORS, "R-MAC"):
            database, queries = self.features.database[kind], self.features.queries[kind]
            whitening = Whitening(database.values.shape[1], self.floats.shape[1], power=power)
            whitening.fit(database)
            for method, function in ((f"{kind}, not whitened", _same), (kind, whitening)):
                vectors = [_aggregated(bags, function) for bags in (queries, database)]
                remark = f"{vectors[0].shape[1]} floats"
                yield self._score("4", method, None, CosineRanks(*vectors), remark)
        many = f"{self.regions.mean_length:.0f} codes"
        for hashed_by, codes in self._hashers(DEFAULT_BITS):
            asked, table = self._codes(windows_kind(DEFAULT_OVERLAP), codes)
            local = partial(_Steps, asked, table, local=True)
            for method, ranks, remark in (
                ("gDRH", _Steps(asked, table), "1 code"),
                ("gDRH+lDRH", local(), many),
                ("DRH", local(expand_global=True, expand_local=True), many),
                ("all regions", _AllRegions(asked, table), many),
            ):
                yield self._score("4", f"{method}{hashed_by}", DEFAULT_BITS, ranks, remark)

    def times(self) -> list[ScanTime]:
        """Table 5: the nearest pictures by floats and by codes, on one thread."""
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            return self._times()
        finally:
            faiss.omp_set_num_threads(threads)

    def _times(self) -> list[ScanTime]:
        top = min(CANDIDATES, len(self.first))
        raw = self.features.queries["MAC"].map(_same)[:_TIMED_QUERIES]
        peer = "Tolias et al. 2015 (512-d floats)"
        times = []
        for queries, database, what, published in (
            (raw, self.whole.values.astype(np.float32), MAX_POOLED, peer),
            (self.query_floats[:_TIMED_QUERIES], self.floats[self.first], "whitened floats", ""),
        ):
            index = faiss.IndexFlatIP(database.shape[1])
            index.add(np.ascontiguousarray(database))
            single = _milliseconds(partial(index.search, queries[:1], top))
            batch = _milliseconds(partial(index.search, queries, top)) / len(queries)
            times.append(ScanTime(f"{database.shape[1]} {what}", single, batch, published, None))
        for n_bits in sorted({*_TIMED_BITS} & {*self.preset.bits}):
            for hashed_by, codes in self._hashers(n_bits):
                table = CodeTable(
                    ids=self.features.ids,
                    sizes=np.zeros((len(self.first), 2), np.int32),
                    image_codes=self.whole.map(codes),
                )
                asked = self.features.queries["MAC"].map(codes)[:_TIMED_QUERIES]
                single = _milliseconds(partial(_search_all, asked[:1], table, top))
                batch = _milliseconds(partial(_search_all, asked, table, top)) / len(asked)
                what = f"codes of {n_bits} bits{hashed_by}"
                times.append(ScanTime(what, single, batch, f"DRH{hashed_by}", n_bits))
        return times

    def _hashers(self, n_bits: int) -> list[tuple[str, Hasher]]:
        """DRH's hash, and random hyperplanes on what it reads; before each, what names it."""
        model, planes = self.models[n_bits], RandomHyperplanes(n_bits).fit(self.floats)
        return [
            ("", _hasher(model)),
            (f", {HYPERPLANES}", lambda x: planes.encode(model.whitening(x).numpy())),
        ]

    def _codes(self, way: str, hasher: Hasher) -> tuple[Codes, CodeTable]:
        """Codes of the queries, and those of the database with regions made in one way."""
        regions = self.features.database[way]
        codes = regions.map(hasher)
        n = len(codes)
        table = CodeTable(
            ids=self.features.ids,
            sizes=np.zeros((len(self.features.ids), 2), np.int32),
            image_codes=codes[regions.offsets[:-1]],
            offsets=regions.offsets,
            boxes=np.zeros((n, 4), np.float32),
            scores=np.ones(n, np.float32),
            labels=np.full(n, -1, np.int64),
            region_codes=codes,
        )
        return self.features.queries["MAC"].map(hasher), table


@dataclass(frozen=True, eq=False)
class _Steps:
    """Levels (Q, N) of the pictures after the steps of a search, computed when read.

    A step ranks the first M pictures again. Those that it leaves at one distance stay in the order
    of the step before, and are tied if they were; the other pictures follow, in the order of the
    first step.

    Attributes:
        queries: (Q, B) uint8.
        table: N pictures with regions.
        expand_global, local, expand_local: which steps follow the first (gQE, lDRH, lQE).
        candidates: M.
        expansion: q.
    """

    queries: Codes
    table: CodeTable
    expand_global: bool = False
    local: bool = False
    expand_local: bool = False
    candidates: int = CANDIDATES
    expansion: int = EXPANSION

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.table)

    def __getitem__(self, rows: slice, /) -> Ints:
        return np.stack([self._levels(query) for query in self.queries[rows]])

    def _levels(self, query: Codes) -> Ints:
        ranking = rank_images(query, self.table)
        levels = refine_levels(np.zeros(len(self.table), np.int64), ranking)
        ranking = ranking.first(self.candidates)
        if self.expand_global:
            ranking = expand_images(ranking, self.table, self.expansion)
            levels = refine_levels(levels, ranking)
        if self.local:
            ranking = rank_regions(query, self.table, ranking)
            levels = refine_levels(levels, ranking)
        if self.expand_local:
            ranking = expand_regions(ranking, self.table, self.expansion)
            levels = refine_levels(levels, ranking)
        return levels


def refine_levels(levels: Ints, ranking: Ranking) -> Ints:
    """Levels (N,) of all pictures once a step has ranked some of them again.

    These come first, by their new distances and, if those are equal, by their levels before; the
    others follow by their levels.
    """
    distances = np.full(len(levels), ranking.distances.max(initial=0) + 1)
    distances[ranking.rows] = ranking.distances
    keys = distances * (levels.max(initial=0) + 1) + levels
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, eq=False)
class _AllRegions:
    """The least distances (Q, N) of any region of a picture, computed when read."""

    queries: Codes
    table: CodeTable

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.table)

    def __getitem__(self, rows: slice, /) -> Ints:
        codes, offsets = self.table.region_codes, self.table.offsets
        if codes is None or offsets is None:
            raise ValueError("these codes have no regions")
        return np.stack([united_hamming(code[None], codes, offsets) for code in self.queries[rows]])


@dataclass(frozen=True, eq=False)
class _AllRegionsCosine:
    """Ranks (Q, N) by the largest inner product with any region of a picture, when read."""

    queries: Floats
    regions: Floats
    offsets: Ints

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.offsets) - 1

    def __getitem__(self, rows: slice, /) -> Ints:
        queries = self.queries[rows]
        best = np.empty((len(queries), self.shape[1]), np.float32)
        step = 256  # pictures at a time
        for first in range(0, self.shape[1], step):
            offsets = self.offsets[first : first + step + 1]
            products = queries @ self.regions[offsets[0] : offsets[-1]].T
            starts = offsets[:-1] - offsets[0]
            best[:, first : first + step] = np.maximum.reduceat(products, starts, axis=1)
        return dense_ranks(-best)


def _hasher(model: DRH) -> Hasher:
    return lambda features: pack_bits(binarize(model(model.whitening(features)).numpy(), 0.0))


def _same(features: Tensor) -> Tensor:
    return features


def _aggregated(bags: Bags, function: Callable[[Tensor], Tensor]) -> Floats:
    """One vector (N, P) of length 1 per picture: what `function` makes of its features, summed."""
    rows = bags.map(function)
    if len(rows) == len(bags.offsets) - 1:
        return _unit(rows)
    parts = [
        aggregate(torch.from_numpy(rows[low:high])[None]).numpy()
        for low, high in zip(bags.offsets[:-1], bags.offsets[1:], strict=True)
    ]
    return np.concatenate(parts)


def _unit(vectors: Floats) -> Floats:
    return F.normalize(torch.from_numpy(vectors), dim=1).numpy()


def _search_all(queries: Codes, table: CodeTable, top: int) -> None:
    for query in queries:
        search_images(query, table, top=top)


def _milliseconds(run: Callable[[], object]) -> float:
    """The least of several runs after one that warms up: other work on the machine only adds."""
    taken = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return 1000 * min(taken[1:])


# -- facts ----------------------------------------------------------------------------------------


def _facts(command: str, tables: DRHTables) -> list[str]:
    """What a report must state of how its figures came to be."""
    options, features, query_set = tables.options, tables.features, tables.query_set
    model, fit = tables.models[DEFAULT_BITS], tables.fitted[DEFAULT_BITS]
    n_positives = [len(query.positives) for query in query_set.queries]
    pictures = len({query.image_id for query in query_set.queries})
    lines = [
        f"Command: `{command}`",
        f"Database: {described(query_set.database.name, features.ids)}; "
        f"{len(features.skipped)} could not be read.",
        f"Queries: {len(query_set.queries)} boxes in {pictures} pictures, with "
        f"{np.mean(n_positives):.1f} positives on average ({min(n_positives)} to "
        f"{max(n_positives)}).",
        "mAP: official trapezoids without junk, exact expectation over random orders of ties; "
        "`results.csv` has the rectangles and the stable order, too.",
        f"Whitening to {model.hash.in_features} dimensions (power {model.whitening.power:g}) and "
        f"hash are fitted on {MAX_REGIONS:,} regions of the database at most, without labels; "
        f"M = {CANDIDATES}, q = {EXPANSION}, overlap {DEFAULT_OVERLAP} where a table does not vary "
        f"them.",
        f"Hash of {DEFAULT_BITS} bits: loss per bit {fit.losses[0]:.4f} in the first tenth of the "
        f"steps, {fit.losses[-1]:.4f} in the last; balance {fit.before.balance:.4f} before and "
        f"{fit.after.balance:.4f} after, correlation {fit.before.correlation:.4f} and "
        f"{fit.after.correlation:.4f}.",
        f"Backbone {options.backbone}, weights `{Path(options.weights).name}`, short side "
        f"{options.short} pixels.",
        *facts_of_run(),
    ]
    if options.detector:
        checkpoint = read_checkpoint(options.detector)
        seen = checkpoint.provenance.get("data", {}).get(
            "name", "what its checkpoint does not tell"
        )
        lines.append(
            f"RPN: that of a {checkpoint.name} of {checkpoint.arguments['backbone']}, model "
            f"{checkpoint.model_hash}, trained on {seen}."
        )
    return lines + [f"Skipped: {reason}" for reason in features.skipped.values()]
