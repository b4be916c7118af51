from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.evaluation.detection import detection_map
from regionhash.structures import Target

Prediction = tuple[Any, Any, Any]


def target(*objects: tuple[list[float], int] | tuple[list[float], int, bool]) -> Target:
    boxes = [item[0] for item in objects]
    return Target(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([item[1] for item in objects], np.int64),
        np.array([len(item) > 2 and item[2] for item in objects], bool),
    )


def predicted(*detections: tuple[list[float], float, int]) -> Prediction:
    return (
        np.array([box for box, _, _ in detections], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in detections], np.float32),
        np.array([label for _, _, label in detections], np.int64),
    )


def iou_of(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union)


def development_kit_ap(
    predictions: list[Prediction], targets: list[Target], label: int, iou: float, eleven: bool
) -> float:
    """VOCevaldet.m and VOCap.m of the development kit, line by line."""
    n_positive = sum(((t.labels == label) & ~t.difficult).sum() for t in targets)
    detections = [
        (float(score), image, box.tolist())
        for image, (boxes, scores, labels) in enumerate(predictions)
        for box, score, found_label in zip(boxes, scores, labels, strict=True)
        if found_label == label
    ]
    detections.sort(key=lambda detection: -detection[0])
    detected: set[tuple[int, int]] = set()
    right, wrong = [0] * len(detections), [0] * len(detections)
    for d, (_, image, box) in enumerate(detections):
        most, best = -np.inf, -1
        for j, true_label in enumerate(targets[image].labels):
            if true_label == label and iou_of(box, targets[image].boxes[j].tolist()) > most:
                most, best = iou_of(box, targets[image].boxes[j].tolist()), j
        if most >= iou:
            if not targets[image].difficult[best]:
                if (image, best) not in detected:
                    right[d] = 1
                    detected.add((image, best))
                else:
                    wrong[d] = 1
        else:
            wrong[d] = 1
    recall, precision = [], []
    for d in range(len(detections)):
        n_right, n_wrong = sum(right[: d + 1]), sum(wrong[: d + 1])
        recall.append(n_right / n_positive)
        precision.append(n_right / (n_right + n_wrong) if n_right + n_wrong else 0.0)
    if eleven:
        ap = 0.0
        for t in range(11):
            reached = [p for r, p in zip(recall, precision, strict=True) if r * 10 >= t - 1e-9]
            ap += max(reached, default=0.0) / 11
        return ap
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def test_a_small_case_is_as_worked_by_hand() -> None:
    # right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3 of three objects
    targets = [target((BOX, 0), (FAR, 0)), target((BOX, 0))]
    predictions = [predicted((BOX, 0.9, 0), ([20, 20, 30, 30], 0.8, 0), (FAR, 0.7, 0)), predicted()]
    area = detection_map(predictions, targets, 1)
    assert area["map"] == pytest.approx((1 + 2 / 3) / 3)
    eleven = detection_map(predictions, targets, 1, interpolation="11point")
    assert eleven["map"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # recalls 0..0.3, 0.4..0.6


def test_the_best_score_takes_the_object_and_the_next_is_wrong() -> None:
    predictions = [predicted((BOX, 0.5, 0), ([0, 0, 10, 9], 0.9, 0), (FAR, 0.4, 0))]
    got = detection_map(predictions, [target((BOX, 0), (FAR, 0))], 1)
    assert got["map"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_a_taken_object_is_not_passed_on_to_a_second_overlap() -> None:
    # the second detection overlaps both objects enough, but the taken one more: wrong in VOC
    objects = target(([0, 0, 10, 10], 0), ([0, 0, 10, 14], 0))
    predictions = [predicted(([0, 0, 10, 10], 0.9, 0), ([0, 0, 10, 11], 0.8, 0))]
    assert detection_map(predictions, [objects], 1)["map"] == pytest.approx(1 / 2)


def test_a_difficult_object_is_neither_missed_nor_found() -> None:
    objects = target((BOX, 0), (FAR, 0, True))
    plain = detection_map([predicted((BOX, 0.5, 0))], [objects], 1)
    assert plain["map"] == 1
    found = detection_map([predicted((FAR, 0.9, 0), (FAR, 0.8, 0), (BOX, 0.5, 0))], [objects], 1)
    assert found["map"] == 1


def test_the_threshold_itself_is_a_match() -> None:
    half = [predicted(([0, 0, 10, 5], 0.9, 0))]
    assert detection_map(half, [target((BOX, 0))], 1)["map"] == 1
    assert detection_map(half, [target((BOX, 0))], 1, iou=0.51)["map"] == 0


def test_objects_match_only_in_their_own_image_and_class() -> None:
    targets = [target((BOX, 0)), target((BOX, 1))]
    predictions = [predicted((BOX, 0.9, 1)), predicted((BOX, 0.9, 0))]
    assert detection_map(predictions, targets, 2)["per_class"].tolist() == [0, 0]


def test_a_class_without_an_object_is_not_a_number_and_left_out_of_the_mean() -> None:
    got = detection_map([predicted((BOX, 0.9, 0), (BOX, 0.9, 2))], [target((BOX, 0))], 3)
    assert got["map"] == 1
    assert got["per_class"] == pytest.approx([1, np.nan, np.nan], nan_ok=True)


def test_no_image_or_no_object_or_no_detection_is_valid() -> None:
    assert np.isnan(detection_map([], [], 2)["map"])
    assert np.isnan(detection_map([predicted((BOX, 0.9, 0))], [Target.empty()], 2)["map"])
    assert detection_map([predicted()], [target((BOX, 0))], 2)["map"] == 0


boxes = st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
images = st.tuples(
    st.lists(st.tuples(boxes, st.integers(0, 1), st.booleans()), max_size=5),
    st.lists(
        st.tuples(boxes, st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 1)), max_size=7
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(images, min_size=1, max_size=3), st.sampled_from([0.3, 0.5]), st.booleans())
def test_the_development_kit_gives_the_same(pictures: list[Any], iou: float, eleven: bool) -> None:
    targets = [target(*objects) for objects, _ in pictures]
    predictions = [predicted(*detections) for _, detections in pictures]
    got = detection_map(
        predictions, targets, 2, iou=iou, interpolation="11point" if eleven else "area"
    )
    for label in range(2):
        if any(((t.labels == label) & ~t.difficult).any() for t in targets):
            expected = development_kit_ap(predictions, targets, label, iou, eleven)
            assert got["per_class"][label] == pytest.approx(expected)
        else:
            assert np.isnan(got["per_class"][label])


@pytest.mark.parametrize(
    ("predictions", "options", "message"),
    [
        ([], {}, "1 targets need as many predictions, got 0"),
        ([predicted((BOX, 0.5, 3))], {}, r"labels of predictions\[0\] must be in 0..1, got 3..3"),
        (
            [(np.zeros((1, 4)), np.zeros(2), np.zeros(2, int))],
            {},
            r"predictions\[0\] must be boxes \(R, 4\).*got \(1, 4\), \(2,\) and \(2,\)",
        ),
        ([predicted()], {"interpolation": "coco"}, "interpolation must be one of area, 11point"),
        ([predicted()], {"iou": 0.0}, r"iou must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(
    predictions: list[Prediction], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        detection_map(predictions, [target((BOX, 0))], 2, **options)
