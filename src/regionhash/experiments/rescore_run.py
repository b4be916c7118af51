"""Runs a preset of `rescore`: codes alone, and the best pictures ranked again by more than codes.

Regions are windows, as `regionhash index` lays them by default. Each length of code has a hash of
its own on the same whitened features; all are fitted on regions of the database, without labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from regionhash.codes import angles, pack_bits, pack_directions, weighted_distances, weights_of
from regionhash.collection.fitting import MAX_REGIONS
from regionhash.evaluation import dense_ranks, instance_average_precision
from regionhash.experiments.boxes_features import View, features_of, regions_of
from regionhash.experiments.boxes_methods import Method, Task, asked_vectors, nearest, region_table
from regionhash.experiments.boxes_run import open_sets, task_of_sides
from regionhash.experiments.common import body, built, command, described, facts_of_run, needed
from regionhash.experiments.rescore import PRESETS, RescoreOptions
from regionhash.experiments.rescore_report import Part, RescoreReport, Row, write_report
from regionhash.models.drh import DRH
from regionhash.parts.hashes import (
    LinearHash,
    fit_drh_hash,
    fit_hash,
    fit_whitening,
    unit_length,
)
from regionhash.reporter import Reporter
from regionhash.search.scan import nearest_bags
from regionhash.structures import Codes, Floats, Ints, items_of

DIMS = (32, 64, 128)
"""Of the features after whitening; the last is the default of `regionhash index`."""

POWER = 0.5  # of the whitening, as there

TOP = 20
"""How many of the first pictures by floats a ranking should have among its first."""

CANDIDATES = (200, 400)
"""How many of the first pictures are ranked again."""

BITS = (64, 128, 256, 512, 1024)
SHORT_BITS = (64, 128)
"""Lengths of codes after which pictures are ranked again by something else."""

PIECES = (8, 16)
"""Bytes of a product-quantised feature: each stands for a centroid of a piece of it."""

N_CENTROIDS = 256

_PER_PICTURE = 10  # regions, of the collection that is timed
_CHUNK = 8192  # features at a time
_REPEATS = 5  # runs of which the least time counts
_TENTH = 10  # floats of all regions take 5 GB


def reproduce(
    name: str, root: Path, out: Path, options: RescoreOptions, reporter: Reporter
) -> Path:
    """Runs a preset, see `Experiment.run`."""
    preset = PRESETS[name]
    with needed(preset.layout, root):
        sides, image_sets = open_sets(preset, root, options.distractors)
    model = built(DRH, body(options) | {"n_bits": 8, "n_classes": 0}).eval()
    reporter.note(f"{name}: laying regions on the pictures")
    regions = regions_of(model, image_sets, None, short=options.short)
    view = View(options.short)
    kinds: dict[str, int | None] = dict.fromkeys(("whole", "windows", "objects"))
    folder = out / "features" / regions.fingerprint()
    features = {view: features_of(model, regions, view, kinds, folder, reporter)}
    task = task_of_sides(regions, sides, image_sets)
    method = Method("windows", views=(view,))
    table = region_table(task, features, method)
    vectors, asked = table.vectors.numpy(), asked_vectors(task, features, method).numpy()
    rows = []
    for n_dims in DIMS:
        space = FeatureSpace(vectors, asked, table.offsets, n_dims)
        for row in measured(task, space):
            scores = f"MAP {row.precision.mean():.4f}, recall {row.recall.mean():.3f}"
            reporter.note(f"{n_dims} dimensions, {row.name}: {scores}")
            rows.append(row)
    reporter.note(f"timing a random collection of {options.timed:,} pictures")
    ids = [regions.ids[row] for row in task.database]
    places = " + ".join(each.name for each in image_sets if each not in sides[1:])
    report = RescoreReport(
        title=f"{name}: ranking the best again by more than codes",
        facts=[
            f"Command: `{command(name, root, options)}`",
            f"Database: {described(places, ids)}, {len(table.vectors) / len(ids):.1f} regions "
            "(windows and the whole picture) each.",
            f"Queries: {len(task.queries)} objects of {sides[-1].name}.",
            f"Whitening (power {POWER}), hashes and centroids are fitted on "
            f"{len(space.fitted_on):,} regions of the database without labels, seed 0.",
            f"Backbone {options.backbone}, weights `{Path(options.weights).name}`, short side "
            f"{options.short} pixels.",
            *facts_of_run(),
        ],
        rows=rows,
        milliseconds=timed((part for row in rows for part in row.parts), options.timed),
        timed=options.timed,
    )
    return write_report(out, report)


# -- rankings -------------------------------------------------------------------------------------


class FeatureSpace:
    """The whitened features of regions and queries.

    Args:
        vectors: (M, D) float16, of the regions of N pictures.
        asked: (Q, D) float32, of the queries.
        offsets: (N + 1,), the regions of picture n are `offsets[n]:offsets[n + 1]`.
        n_dims: P, at most D.

    Attributes:
        described: (M, P) float32; asked: (Q, P).
        offsets: as given.
        fitted_on: (F,) the regions that everything is fitted on.

    Raises:
        ValueError: there are fewer regions than centroids.
    """

    def __init__(self, vectors: Any, asked: Floats, offsets: Ints, n_dims: int) -> None:
        if len(vectors) < N_CENTROIDS:
            raise ValueError(f"needs at least {N_CENTROIDS} regions to fit on, got {len(vectors)}")
        rng = np.random.default_rng(0)
        n_fitted = min(MAX_REGIONS, len(vectors))
        self.fitted_on = np.sort(rng.choice(len(vectors), n_fitted, replace=False))
        sample = vectors[self.fitted_on].astype(np.float32)
        whitening = fit_whitening([sample], sample.shape[1], n_dims, power=POWER)
        self.described = np.concatenate(
            [
                whitening(vectors[first : first + _CHUNK].astype(np.float32))
                for first in range(0, len(vectors), _CHUNK)
            ]
        )
        self.asked, self.offsets = whitening(asked), offsets

    def hash(self, n_bits: int) -> LinearHash:
        """A hash of `n_bits` bits."""
        return fit_hash(fit_drh_hash, self.described[self.fitted_on], n_bits, seed=0)[0]

    def by_floats(self, described: Floats) -> Floats:
        """Distances (Q, N) by the cosine of the nearest of some features (M, P)."""
        return self._nearest(unit_length(self.asked), unit_length(described))

    def by_bits(self, hash_of: LinearHash) -> tuple[Floats, Floats]:
        """Hamming and asymmetric distances (Q, N)."""
        activations = hash_of(self.asked)
        bits = np.concatenate(
            [
                hash_of(self.described[first : first + _CHUNK]) >= 0
                for first in range(0, len(self.described), _CHUNK)
            ]
        )
        weights = np.stack([*map(weights_of, activations)])
        signs = np.where(bits, np.float32(1), np.float32(-1)) / np.float32(bits.shape[1])
        return (
            self._nearest(pack_bits(activations >= 0), pack_bits(bits)),
            self._nearest(weights * np.where(activations >= 0, 1, -1).astype(np.float32), signs),
        )

    def quantised(self, n_pieces: int) -> Floats:
        """The features as product quantisation keeps them, in `n_pieces` bytes."""
        quantiser: Any = faiss.ProductQuantizer(self.described.shape[1], n_pieces, 8)
        quantiser.cp.seed, quantiser.cp.min_points_per_centroid = 0, 1
        quantiser.train(self.described[self.fitted_on])
        kept: Floats = quantiser.decode(quantiser.compute_codes(self.described))
        return kept

    def _nearest(self, asked: Any, described: Any) -> Floats:
        return nearest(asked, described, self.offsets)[0]


def again(first: Floats, second: Floats, n: int) -> Ints:
    """Ranks (Q, N) by `first`, after which the `n` first pictures are ranked by `second`."""
    best = np.argsort(first, axis=1, kind="stable")[:, :n]
    ranks = n + dense_ranks(first)
    np.put_along_axis(ranks, best, dense_ranks(np.take_along_axis(second, best, 1)), 1)
    return ranks


def recall(ranks: Ints, wanted: Ints) -> Floats:
    """The share (Q,) of the first pictures of `wanted` (Q, N) that are first in `ranks`, too."""
    first, others = (np.argsort(each, axis=1, kind="stable")[:, :TOP] for each in (wanted, ranks))
    shared = [len(np.intersect1d(*pair)) for pair in zip(first, others, strict=True)]
    return np.asarray(np.array(shared, np.float32) / first.shape[1])


def measured(task: Task, space: FeatureSpace) -> Iterator[Row]:
    """All rows; those of codes alone have as many bytes as something kept beside codes."""
    wanted = dense_ranks(space.by_floats(space.described))

    def row(name: str, ranks: Ints, *parts: Part) -> Row:
        precision = instance_average_precision(ranks, task.relevance)
        return Row(space.described.shape[1], name, precision, recall(ranks, wanted), parts)

    n_dims = space.described.shape[1]
    kept = {("int8", n_dims): space.by_floats(pack_directions(space.described).astype(np.float32))}
    for n_pieces in PIECES:
        kept["PQ", n_pieces] = space.by_floats(space.quantised(n_pieces))
    yield row("floats", wanted, Part("floats", 4 * n_dims))
    for (what, n_bytes), distances in kept.items():
        yield row(_named(what, n_bytes), dense_ranks(distances), Part(what, n_bytes))
    longest, most = space.hash(BITS[-1]), CANDIDATES[-1]
    _, by_longest = space.by_bits(longest)
    beside = {n_bits + 8 * n_bytes for n_bits in SHORT_BITS for _, n_bytes in kept}
    for n_bits in sorted({*BITS, *beside}):
        hamming, asymmetric = space.by_bits(space.hash(n_bits))
        name, codes = f"{n_bits} bits", partial(Part, "codes", n_bits // 8)
        yield row(name, dense_ranks(hamming), codes(TOP))
        parts = (codes(most), Part("bits", n_bits // 8, most))
        yield row(f"{name}, asymmetric of {most}", again(hamming, asymmetric, most), *parts)
        if n_bits not in SHORT_BITS:
            continue
        for n in CANDIDATES:
            for (what, n_bytes), distances in kept.items():
                parts = (codes(n), Part(what, n_bytes, n))
                words = f"{name}, {_named(what, n_bytes)} of {n}"
                yield row(words, again(hamming, distances, n), *parts)
            some, _ = space.by_bits(LinearHash(longest.weight[:n_bits], longest.bias[:n_bits]))
            parts = (codes(n), Part("bits", BITS[-1] // 8, n))
            words = f"{n_bits} of {BITS[-1]} bits, all of them asymmetric of {n}"
            yield row(words, again(some, by_longest, n), *parts)


def _named(what: str, n_bytes: int) -> str:
    return what if what == "int8" else f"{what} of {n_bytes} bytes"


# -- times ----------------------------------------------------------------------------------------


def timed(parts: Iterable[Part], n_pictures: int) -> dict[Part, float]:
    """The milliseconds of each part in a random collection, ten regions a picture.

    The least processor time of several runs. Floats, int8 and PQ of all regions are searched by
    FAISS, in a tenth of the collection, and take ten times as long.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        return {part: 1000 * _seconds(part, n_pictures) for part in dict.fromkeys(parts)}
    finally:
        faiss.omp_set_num_threads(threads)


def _seconds(part: Part, n_pictures: int) -> float:
    rng = np.random.default_rng(0)
    if not part.n_pictures:
        return _TENTH * _least(_search_all(part, max(1, n_pictures * _PER_PICTURE // _TENTH), rng))
    offsets = np.arange(n_pictures + 1) * _PER_PICTURE
    stored = np.frombuffer(rng.bytes(n_pictures * _PER_PICTURE * part.n_bytes), np.uint8)
    stored = stored.reshape(-1, part.n_bytes)
    query = stored[0]
    if part.what == "codes":
        return _least(lambda: nearest_bags(query, stored, offsets, top=part.n_pictures))
    rows = rng.choice(n_pictures, min(part.n_pictures, n_pictures), replace=False)
    asked = rng.normal(size=(8 * part.n_bytes)).astype(np.float32)
    costs = rng.random((part.n_bytes, 256), np.float32)

    def distances(kept: Codes) -> Floats:
        if part.what == "int8":
            return angles(asked[: part.n_bytes], kept.view(np.int8))
        if part.what == "bits":
            return weighted_distances(query, weights_of(asked), kept)
        return np.asarray(sum(costs[n, kept[:, n]] for n in range(part.n_bytes)), np.float32)

    def rank() -> None:
        items, bounds = items_of(offsets, rows)
        np.minimum.reduceat(distances(stored[items]), bounds[:-1]).argsort()

    return _least(rank)


def _search_all(part: Part, n_regions: int, rng: np.random.Generator) -> Callable[[], object]:
    """A search of all regions by FAISS."""
    index: faiss.Index
    if part.what == "PQ":
        index = faiss.IndexPQ(DIMS[-1], part.n_bytes, 8)
        index.pq.cp.min_points_per_centroid = 1
    elif part.what == "int8":
        index = faiss.IndexScalarQuantizer(part.n_bytes, faiss.ScalarQuantizer.QT_8bit)
    else:
        index = faiss.IndexFlatIP(part.n_bytes // 4)
    features = rng.random((n_regions, index.d), np.float32)
    searched: Any = index  # FAISS's type stubs have the signatures of C++
    searched.train(rng.random((10_000, index.d), np.float32))
    searched.add(features)
    return lambda: searched.search(features[:1], CANDIDATES[0])


def _least(run: Callable[[], object]) -> float:
    """The least processor time of several runs, in seconds, after a first one."""
    taken = []
    for _ in range(1 + _REPEATS):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken[1:])
