"""Windows and boxes as regions: what is measured, against slow loops, and a whole run."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY_BACKBONE, build_tiny, save_tiny
from regionhash.data import open_dataset
from regionhash.data.detections import Boxes, read_detections
from regionhash.evaluation import dense_ranks, instance_average_precision
from regionhash.experiments.boxes import BoxesOptions
from regionhash.experiments.boxes_features import (
    POOLS,
    Regions,
    View,
    crop,
    enlarged,
    features_of,
    pooled,
    regions_of,
)
from regionhash.experiments.boxes_methods import (
    FLOATS,
    SIZES,
    Method,
    Score,
    compared,
    nearest,
    scores,
)
from regionhash.experiments.boxes_report import mean_of
from regionhash.experiments.boxes_run import (
    CHOSEN,
    best_of,
    held_out,
    kinds,
    levers,
    more_levers,
    named,
    reproduce,
    task_of,
)
from regionhash.experiments.boxes_trained import open_models, scores_of_model
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.reporter import SILENT
from regionhash.training import TrainingConfig, train
from scene_cases import write_voc_scenes

TINY = {"backbone": "tiny_fpn", "weights": "none", "short": 64}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_voc_scenes(tmp_path_factory.mktemp("voc"))


def rows_of(folder):
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["part"], row["method"], row["bits"], row["size"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
def test_a_run_goes_from_pictures_to_a_report_and_resumes(voc, tmp_path):
    options = BoxesOptions(**TINY, detections=(str(voc / "found.csv"),))
    page = reproduce("boxes/voc2012", voc, tmp_path, options, SILENT)
    text = page.read_text()
    assert "## Small objects: what was tried" in text and " 9 best boxes " in text
    found = rows_of(tmp_path)
    assert len(found) == 4 * (3 * len(kinds(64)) + 3 * 2 + len(levers(64)))
    assert all(row["map"] == "nan" or 0 < float(row["map"]) <= 1 for row in found.values())
    boxes, windows = (found["compared", name, "1024", "all"] for name in ("boxes", "windows"))
    assert float(boxes["locscore"]) > float(windows["locscore"])  # boxes of the objects
    sizes = [int(found["compared", "boxes", "1024", size]["queries"]) for size, *_ in SIZES]
    assert sum(sizes) == int(boxes["queries"]) > 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.f16")}
    assert before
    reproduce("boxes/voc2012", voc, tmp_path, options, SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.f16")} == before
    assert page.read_text() == text


@pytest.mark.slow
def test_a_table_of_boxes_takes_over_what_was_chosen(voc, tmp_path):
    options = BoxesOptions(
        **TINY, detections=(str(voc / "found.csv"),), distractors=("digits:train:3",)
    )
    with pytest.raises(ValueError, match="files of boxes need pictures that are files"):
        reproduce("boxes/instances", voc, tmp_path, options, SILENT)
    (tmp_path / "more").mkdir()
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "more/black.png")
    options = BoxesOptions(
        **TINY,
        detections=(str(voc / "found.csv"),),
        distractors=(f"folder:{tmp_path / 'more'}",),
    )
    page = reproduce("boxes/instances", voc, tmp_path, options, SILENT)
    assert "what was tried" not in page.read_text() and "13 pictures" in page.read_text()
    assert {key[:2] for key in rows_of(tmp_path) if key[0] == "chosen"} == {
        ("chosen", name) for name in CHOSEN
    }


@pytest.mark.parametrize("name", ["region-dh", "dmih"])
@pytest.mark.slow
def test_a_trained_model_has_rows_with_its_own_regions_and_with_boxes(voc, tmp_path, name):
    pictures = open_dataset(f"voc:{voc}/VOC2012:train")
    arguments = TINY_BACKBONE | {"n_bits": 16, "n_classes": 3}
    config = TrainingConfig(epochs=1, batch_size=4, short=64, held_out=0.0)
    train(name, arguments, pictures, tmp_path / "run", config)
    (model,) = open_models([str(tmp_path / "run")])
    assert "VOC2012:train, 9 pictures; 16 bits" in model.fact
    sides = [pictures, open_dataset(f"voc:{voc}/VOC2012:val")]
    boxes = Boxes([read_detections(voc / "found.csv")])
    drh = build_tiny("drh", n_bits=8, n_classes=0).eval()
    regions = regions_of(drh, sides, boxes, short=64)
    labels = [target.labels for side in sides for target in side.targets]
    task = task_of(regions, labels, np.arange(9), np.arange(9, 12))
    scores = scores_of_model(task, model, 2, SILENT)
    assert [score.method.name for score in scores] == [
        f"{name}, its own regions",
        f"{name}, 2 best boxes",
    ]

    def codes_of(row, boxes):
        found = encode_boxes(model.runtime, model.checkpoint, regions.image(row), boxes)
        return np.unpackbits(found.codes, axis=1)

    # A slow loop: each picture by its nearest code, and the expected precision over orders of ties.
    for own, score in zip((True, False), scores, strict=True):
        bags = []
        for row in range(9):
            bag = codes_of(row, regions.boxes["whole"][row])
            if own:
                image = regions.image(row)
                found = encode_picture(model.runtime, model.checkpoint, image).regions
                bag = np.concatenate([bag, np.unpackbits(found.codes, axis=1)])
            elif len(regions.boxes["boxes"][row]):
                bag = np.concatenate([bag, codes_of(row, regions.boxes["boxes"][row][:2])])
            bags.append(bag)
        assert score.per_picture == sum(map(len, bags)) / 9
        assert own or 1 < score.per_picture <= 3
        distances = np.array(
            [
                [
                    (bag != codes_of(row, regions.boxes["objects"][row])[n]).sum(1).min()
                    for bag in bags
                ]
                for row, n in task.queries
            ]
        )
        wanted = instance_average_precision(dense_ranks(distances), task.relevance)
        np.testing.assert_allclose(score.precision, wanted)
        assert ((score.located >= 0) & (score.located <= 1) | np.isnan(score.located)).all()

    options = BoxesOptions(
        **TINY, detections=(str(voc / "found.csv"),), models=(str(tmp_path / "run"),)
    )
    page = reproduce("boxes/instances", voc, tmp_path / "out", options, SILENT)
    assert "## Models trained on labels" in page.read_text() and model.fact in page.read_text()
    rows = rows_of(tmp_path / "out")
    assert len([key for key in rows if key[0] == "trained"]) == 2 * 4


def test_a_model_that_was_not_trained_is_no_row(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(ValueError, match="region-dh is not trained, or has no regions"):
        open_models([str(tmp_path)])


def test_missing_boxes_are_named(voc, tmp_path):
    with pytest.raises(ValueError, match="no boxes: give files of detections with --set"):
        reproduce("boxes/voc2012", voc, tmp_path, BoxesOptions(**TINY), SILENT)


def test_what_was_chosen_is_among_what_is_tried():
    methods = named(384, CHOSEN)
    assert [method.name for method in methods] == [*CHOSEN]
    assert [bool(method.labels) for method in methods] == [False, True]
    names = [method.name for method in (*levers(384), *more_levers(384))]
    assert len(set(names)) == len(names)


# Scores by size


def drawn(seed):
    """Six pictures with random boxes and vectors, and the objects of all as queries."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        low = rng.uniform(0, 60, (n, 2))
        return np.concatenate([low, low + rng.uniform(5, 40, (n, 2))], 1).astype(np.float32)

    groups = {
        "whole": [np.array([[0, 0, 100, 100]], np.float32)] * 6,
        "boxes": [boxes(n) for n in (0, 3, 2, 4, 1, 3)],
        "objects": [boxes(2) for _ in range(6)],
    }
    groups["boxes"][3][:2] = groups["objects"][3]  # some are right
    labels = [rng.integers(0, 3, len(group)) for group in groups["boxes"]]
    asked = [rng.integers(-1, 3, 2) for _ in range(6)]
    sizes = np.full((6, 2), 100)
    regions = Regions(tuple("abcdef"), (), sizes, groups, labels, asked)
    classes = [np.array([n % 2, 0]) for n in range(6)]
    return regions, classes, rng


class Vectors:
    def __init__(self, groups, rng):
        self.offsets = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
        self.values = rng.normal(size=(self.offsets[-1], 8)).astype(np.float16)

    def of(self, n):
        return self.values[self.offsets[n] : self.offsets[n + 1]].astype(np.float64)


def iou(box, other):
    both = np.prod([max(min(box[n + 2], other[n + 2]) - max(box[n], other[n]), 0) for n in (0, 1)])
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other))
    return both / (areas - both)


@pytest.mark.parametrize("labels", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_scores_by_size_are_those_of_a_slow_loop(seed, labels):
    regions, classes, rng = drawn(seed)
    view = View(32)
    kept = {kind: Vectors(regions.boxes[kind], rng) for kind in ("whole", "boxes", "objects")}
    features = {view: {f"{kind} max": vectors for kind, vectors in kept.items()}}
    method = Method("boxes", ("boxes",), (view,), n_dims=4, power=0.0, picture=0.3, labels=labels)
    task = task_of(regions, classes, np.arange(6), np.arange(6))
    (score,) = scores(task, features, method, [FLOATS])

    # What a reader of the report would do: the same whitening, one region at a time.
    from regionhash.parts.whitening import Whitening

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    every = np.concatenate(
        [np.concatenate([unit(kept[k].of(n)) for k in ("whole", "boxes")]) for n in range(6)]
    ).astype(np.float16)
    whitening = Whitening(8, 4, power=0.0).fit([torch.from_numpy(every).float()])

    def described(x):
        return unit(whitening(torch.from_numpy(unit(x)).half().float()).double().numpy())

    assert len(task.queries) == 12
    for row, (n, m) in enumerate(task.queries.tolist()):
        asked = described(kept["objects"].of(n))[m]
        found = []
        for other in range(6):
            vectors = described(np.concatenate([kept["whole"].of(other), kept["boxes"].of(other)]))
            own = [-1, *regions.labels[other]]
            differ = [
                regions.asked[n][m] >= 0 and label >= 0 and label != regions.asked[n][m]
                for label in own
            ]
            distances = (1 - vectors @ asked) / 2 + labels * np.array(differ)
            best = int(distances.argmin())
            whole = (1 - described(kept["whole"].of(n))[0] @ vectors[0]) / 2
            boxes = [*regions.boxes["whole"][other], *regions.boxes["boxes"][other]]
            found.append((distances[best] + 0.3 * whole, other, boxes[best]))
        ranking = [item for item in sorted(found, key=lambda item: item[0]) if item[1] != n]
        right = [classes[n][m] in classes[other] for _, other, _ in ranking]
        total, hits = 0.0, 0
        for place, is_right in enumerate(right, 1):
            if is_right:  # the trapezoid of the precision before and at this place
                before = hits / (place - 1) if place > 1 else 1.0
                hits += 1
                total += (before + hits / place) / 2
        assert score.precision[row] == pytest.approx(total / hits, abs=1e-9)
        on = [
            any(
                iou(box, wanted) >= 0.5
                for wanted in regions.boxes["objects"][other][classes[other] == classes[n][m]]
            )
            for (_, other, box), is_right in list(zip(ranking, right, strict=True))[:hits]
            if is_right
        ]
        if on:
            assert score.located[row] == pytest.approx(np.mean(on))
        else:
            assert np.isnan(score.located[row])
        x0, y0, x1, y1 = regions.boxes["objects"][n][m]
        assert task.parts[row] == pytest.approx((x1 - x0) * (y1 - y0) / 10_000)
    small = [row for row in range(12) if task.parts[row] < 0.05]
    np.testing.assert_array_equal(task.of_size(0.0, 0.05), small)
    known = [value for value in score.located.tolist() if value == value]
    assert known and mean_of(score.located, np.arange(12)) == pytest.approx(np.mean(known))


def test_the_queries_are_objects_whose_class_another_picture_has():
    regions, _, _ = drawn(0)
    classes = [np.array(pair) for pair in ([0, 1], [2, 1], [1, 1], [3, 0], [4, 4], [0, 5])]
    task = task_of(regions, classes, np.array([1, 2, 3]), np.array([0, 2]))
    assert task.queries.tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
    assert [rows.tolist() for rows in task.relevance.positives] == [[2], [0, 1], [0], [0]]
    assert [rows.tolist() for rows in task.relevance.junk] == [[], [], [1], [1]]
    np.testing.assert_array_equal(task.objects[0][2], regions.boxes["objects"][3][1:])
    with pytest.raises(ValueError, match="nothing to search for"):
        task_of(regions, classes, np.array([4]), np.array([4]))


def test_a_third_is_held_out():
    held, rest = held_out(np.arange(5, 16))
    assert len(held) == 3 and sorted([*held, *rest]) == [*range(5, 16)]


def test_the_best_are_those_for_small_objects_with_few_codes():
    regions, classes, _ = drawn(1)
    task = task_of(regions, classes, np.arange(6), np.arange(6))
    small = task.of_size(0, 0.05)
    assert len(small)

    def score(name, per_picture, value, labels=0.0):
        precision = np.zeros(12)
        precision[small] = value
        return Score(Method(name, labels=labels), 64, per_picture, precision, np.zeros(12))

    found = [
        score("windows", 40, 0.3),
        score("many", 11, 0.9),
        score("few", 10, 0.4),
        score("fewer", 9, 0.5),
        score("classes", 9, 0.6, 0.1),
    ]
    assert best_of(task, found) == ["fewer", "classes"]


def test_the_nearest_of_equal_regions_is_the_first():
    codes = np.array([[0], [255], [255], [3], [1], [1]], np.uint8)
    distances, matched = nearest(np.array([[1], [255]], np.uint8), codes, np.array([0, 3, 6]))
    np.testing.assert_allclose(distances, [[1 / 8, 0], [0, 6 / 8]])
    assert matched.tolist() == [[0, 4], [1, 3]]
    assert compared(codes[:1], codes).dtype == np.float32


# Views


def test_a_view_of_the_map_has_the_features_that_drh_encodes(voc, tmp_path):
    model = build_tiny("drh", n_bits=8, n_dims=16, proposals="boxes+windows").eval()
    image_set = open_dataset(f"voc:{voc}/VOC2012:val")
    boxes = Boxes([read_detections(voc / "found.csv")])
    regions = regions_of(model, [image_set], boxes, short=64)
    wanted = {"whole": None, "boxes": 2, "windows": None}
    found = features_of(model, regions, View(64), wanted, tmp_path, SILENT, n_pictures=2)
    from regionhash.data.transforms import to_input
    from regionhash.structures import Detections

    assert len(found["boxes max"].offsets) == 3
    for n in range(2):
        tensor, frame = to_input(image_set.images[n], 64)
        group = regions.boxes["boxes"][n][:2]
        placed = frame.to_input(group)
        given = Detections(placed, np.ones(len(group), np.float32), np.zeros(len(group), np.int64))
        (theirs,) = model.region_features([tensor], [given])
        kinds_of = [found[f"{kind} max"] for kind in ("whole", "boxes", "windows")]
        ours = np.concatenate([bag.values[bag.offsets[n] : bag.offsets[n + 1]] for bag in kinds_of])
        np.testing.assert_allclose(ours, theirs.features.numpy(), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_is_that_of_a_slow_loop(pool):
    top = torch.rand(1, 3, 5, 7)
    cells = np.array([[0, 0, 7, 5], [2, 1, 3, 2], [4, 0, 7, 3]])
    found = pooled(top, cells, pool)
    for (x0, y0, x1, y1), row in zip(cells.tolist(), found, strict=True):
        own = top[0, :, y0:y1, x0:x1].flatten(1).double()
        expected = {
            "max": own.amax(1),
            "mean": own.mean(1),
            "gem": own.pow(3).mean(1).pow(1 / 3),
        }[pool]
        torch.testing.assert_close(row.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_crop_is_the_box_with_its_margin_within_the_picture():
    box = np.array([10, 20, 30, 30], np.float32)
    assert enlarged(box, 0.5, square=False).tolist() == [0, 15, 40, 35]
    assert enlarged(box, 0.0, square=True).tolist() == [10, 15, 30, 35]
    image = np.zeros((40, 60, 3), np.uint8)
    image[15:35, 0:40] = 200
    assert (crop(image, box, View(32, 0.5)) == 200).all()
    assert (crop(image, box, View(32, 1.0)) == 0).any()
    far = np.array([59.9, 39.9, 80, 80], np.float32)
    assert crop(image, far, View(32, 0.0)).shape == (3, 32, 32)
