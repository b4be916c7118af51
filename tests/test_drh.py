"""DRH: codes of windows and boxes, and a hash that learns without labels."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from conftest import build_tiny, noise
from regionhash.codes import hamming_distances, unpack_bits
from regionhash.data import open_dataset
from regionhash.models.drh import DRH, fit_drh
from regionhash.parts.windows import pyramid_windows, sliding_windows
from regionhash.structures import Detections
from regionhash.training import TrainingConfig, TrainingError, train


def build(n_bits=64, seed=0, **arguments):
    return build_tiny("drh", seed=seed, n_bits=n_bits, **{"n_dims": 16} | arguments).eval()


def clusters(n=2000, d=128, n_clusters=30, seed=0):
    """Features of unit length around a few directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_clusters, d, generator=generator)
    x = centres[torch.arange(n) % n_clusters] + 0.7 * torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(x, dim=1)


# What it gives


def test_the_regions_are_the_windows_and_the_first_is_the_picture():
    (encoded,) = build().encode(noise((96, 128)))
    regions = encoded.regions
    windows = sliding_windows(6, 8, 0.6)  # the tiny network's last stage has stride 16
    np.testing.assert_allclose(regions.boxes, 16.0 * windows)
    assert regions.boxes[0].tolist() == [0, 0, 128, 96]
    np.testing.assert_array_equal(encoded.image_code, regions.codes[0])
    assert (regions.labels == -1).all()
    assert (regions.scores == 1).all()
    assert encoded.size == (96, 128)
    assert regions.codes.shape == (len(windows), 8)
    assert len(np.unique(regions.codes, axis=0)) > 10


def test_features_are_the_maxima_of_the_map_of_unit_length():
    model, images = build(), noise((64, 96))
    top = model.backbone.top(images[0][None].float() / 255)
    (regions,) = model.region_features(images)
    for box, feature in zip(regions.boxes.int().tolist(), regions.features, strict=True):
        x0, y0, x1, y1 = (edge // 16 for edge in box)
        wanted = top[0, :, y0:y1, x0:x1].amax((1, 2))
        torch.testing.assert_close(feature, wanted / wanted.norm())


def test_a_box_on_a_window_has_the_windows_code():
    model, images = build(), noise((96, 128))
    (encoded,) = model.encode(images)
    (boxes,) = model.encode_boxes(images, [torch.from_numpy(encoded.regions.boxes)])
    np.testing.assert_array_equal(boxes.codes, encoded.regions.codes)


def test_a_box_of_few_pixels_or_at_the_edge_has_a_code():
    model, images = build(), noise((96, 128))
    boxes = torch.tensor([[50.0, 40, 51, 41], [127.5, 95.5, 128, 96], [0, 0, 128, 1]])
    (regions,) = model.encode_boxes(images, [boxes])
    assert regions.codes.shape == (3, 8)
    (none,) = model.encode_boxes(images, [torch.zeros(0, 4)])
    assert none.codes.shape == (0, 8)


def test_pictures_of_several_shapes_in_one_batch_have_the_windows_of_their_own():
    model, images = build(), noise((64, 96), (96, 64), (96, 128))
    together = model.encode(images)
    for image, encoded in zip(images, together, strict=True):
        (alone,) = model.encode([image])
        np.testing.assert_array_equal(encoded.regions.boxes, alone.regions.boxes)
    same = model.encode([images[0], images[0]])
    np.testing.assert_array_equal(same[0].regions.codes, same[1].regions.codes)


def test_proposals_of_an_rpn_stand_behind_the_whole_picture():
    model = build(proposals="rpn", n_proposals=7, fpn_channels=16)
    (encoded,) = model.encode(noise((96, 128)))
    regions = encoded.regions
    assert 1 < len(regions) <= 8
    assert regions.boxes[0].tolist() == [0, 0, 128, 96]
    assert regions.scores[0] == 1
    assert (np.diff(regions.scores) <= 0).all()
    assert (regions.scores[1:] < 1).all()


def test_the_regions_of_a_pyramid_are_its_windows():
    (encoded,) = build(proposals="pyramid", n_proposals=50).encode(noise((96, 128)))
    windows = pyramid_windows(6, 8, 50)
    np.testing.assert_allclose(encoded.regions.boxes, 16.0 * windows)
    assert 20 < len(windows) <= 51
    sides = encoded.regions.boxes[:, 2:] - encoded.regions.boxes[:, :2]
    assert sides.prod(1).min() <= 96 * 128 / 16
    assert (encoded.regions.labels == -1).all()


def detections(boxes, scores, labels):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def test_given_boxes_are_the_regions_best_first_with_their_classes_and_scores():
    model, images = build(proposals="boxes"), noise((96, 128), (64, 64))
    boxes = [[3.5, 10, 70, 80], [40, 20, 44, 28], [0, 0, 128, 50]]
    some = detections(boxes, [0.2, 0.9, 0.5], [4, -1, 0])
    first, second = model.encode(images, [some, Detections.none()])
    np.testing.assert_array_equal(
        first.regions.boxes, np.array([[0, 0, 128, 96], boxes[1], boxes[2], boxes[0]], np.float32)
    )
    np.testing.assert_array_equal(first.regions.scores, np.array([1, 0.9, 0.5, 0.2], np.float32))
    assert first.regions.labels.tolist() == [-1, -1, 0, 4]
    np.testing.assert_array_equal(first.image_code, first.regions.codes[0])
    (asked,) = model.encode_boxes(images[:1], [torch.from_numpy(first.regions.boxes)])
    np.testing.assert_array_equal(asked.codes, first.regions.codes)
    assert second.regions.boxes.tolist() == [[0, 0, 64, 64]]


def test_no_more_boxes_are_taken_than_asked_for_and_the_best_stay():
    model, images = build(proposals="boxes", n_proposals=2), noise((96, 128))
    boxes = [[x, 0, x + 16, 16] for x in range(0, 80, 16)]
    (encoded,) = model.encode(images, [detections(boxes, [0.1, 0.5, 0.3, 0.9, 0.2], [-1] * 5)])
    np.testing.assert_allclose(encoded.regions.scores, [1, 0.9, 0.5], rtol=1e-6)


def test_a_picture_without_given_boxes_has_the_windows():
    images = noise((96, 128))
    (boxes,), (windows,) = build(proposals="boxes").encode(images), build().encode(images)
    np.testing.assert_array_equal(boxes.regions.boxes, windows.regions.boxes)
    np.testing.assert_array_equal(boxes.regions.codes, windows.regions.codes)


@pytest.mark.parametrize("kind", ["windows", "pyramid"])
def test_given_boxes_and_windows_are_regions_of_one_picture(kind):
    model, images = build(proposals=f"boxes+{kind}", n_proposals=40), noise((96, 128), (64, 64))
    some = detections([[3.5, 10, 70, 80], [40, 20, 44, 28]], [0.2, 0.9], [4, 2])
    both = model.encode(images, [some, Detections.none()])
    (boxes, _), windows = (
        build(proposals="boxes").encode(images, [some, Detections.none()]),
        build(proposals=kind, n_proposals=40).encode(images),
    )
    expected = [*boxes.regions.boxes, *windows[0].regions.boxes[1:]]
    np.testing.assert_allclose(both[0].regions.boxes, expected)
    assert both[0].regions.labels.tolist() == [-1, 2, 4, *[-1] * (len(expected) - 3)]
    assert both[0].regions.scores[3:].tolist() == [1] * (len(expected) - 3)
    codes = [*boxes.regions.codes, *windows[0].regions.codes[1:]]
    np.testing.assert_array_equal(both[0].regions.codes, codes)
    # Without boxes, or if none are given, only windows are left.
    for found in (both[1], model.encode(images)[1]):
        np.testing.assert_allclose(found.regions.boxes, windows[1].regions.boxes)
        np.testing.assert_array_equal(found.regions.codes, windows[1].regions.codes)


def test_boxes_and_windows_are_thinned_together_the_boxes_first():
    model = build(proposals="boxes+windows", n_proposals=2, max_iou=0.5)
    given = detections(
        [[1, 0, 63, 47], [0, 2, 64, 48], [64, 48, 128, 96]], [0.5, 0.4, 0.3], [0] * 3
    )
    (encoded,) = model.encode(noise((96, 128)), [given])
    found = encoded.regions.boxes.tolist()
    # The second box overlaps the first; the third is the second of at most two.
    assert found[:3] == [[0, 0, 128, 96], [1, 0, 63, 47], [64, 48, 128, 96]]
    left: list[list[float]] = found[:3]
    for window in build().encode(noise((96, 128)))[0].regions.boxes.tolist():
        if all(iou(window, box) <= 0.5 for box in left):
            left.append(window)
    assert found == left and [0, 0, 64, 48] not in found and len(found) > 4


def iou(box, other):
    sides = [min(box[n + 2], other[n + 2]) - max(box[n], other[n]) for n in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other))
    return both / (areas - both)


def test_regions_that_overlap_a_better_one_are_dropped():
    images = noise((96, 128))
    boxes = [[0, 0, 40, 40], [0, 0, 40, 36], [0, 0, 40, 20], [1, 0, 128, 96]]
    given = [detections(boxes, [0.5, 0.9, 0.8, 0.7], [0, 1, 2, 3])]
    (all_of_them,) = build(proposals="boxes").encode(images, given)
    assert all_of_them.regions.labels.tolist() == [-1, 1, 2, 3, 0]
    (thin,) = build(proposals="boxes", max_iou=0.6).encode(images, given)
    # 1 is better than 0, which it overlaps by .9, and by .56 than 2; 3 is nearly the picture
    assert thin.regions.labels.tolist() == [-1, 1, 2]
    (few,), (many,) = build(max_iou=0.3).encode(images), build().encode(images)
    rows = [many.regions.boxes.tolist().index(box) for box in few.regions.boxes.tolist()]
    assert rows[0] == 0 and rows == sorted(rows) and 1 < len(rows) < len(many.regions)
    np.testing.assert_array_equal(few.regions.codes, many.regions.codes[rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_bits": 12}, "positive multiple of 8, got 12"),
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"n_dims": 0}, r"n_out must be in \[1, 128\]"),
        ({"whitening": 2.0}, r"power must be in \[0, 1\]"),
        (
            {"proposals": "selective"},
            r"of windows, rpn, pyramid, boxes, boxes\+windows, boxes\+pyramid, got 'selective'",
        ),
        ({"n_proposals": 0}, r"n_proposals must be in \[1, 10000\], got 0"),
        ({"max_iou": 0.0}, r"max_iou must be in \(0, 1\], got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_training_on_labels_is_refused_with_what_to_do(tmp_path):
    arguments = {"n_bits": 8, "backbone": "tiny_fpn", "weights": "none"}
    with pytest.raises(TrainingError, match="drh learns without labels; `regionhash index` fits"):
        train("drh", arguments, open_dataset("digits:train:4"), tmp_path / "run", TrainingConfig())


# Fitting


def test_fitting_lowers_the_loss_moves_the_hash_and_keeps_the_bits_apart():
    model, untrained = build(256), build(256)
    features = clusters()
    report = fit_drh(model, features, n_steps=100)
    fit_drh(untrained, features, n_steps=1, learning_rate=1e-12)
    assert len(report.losses) == 10
    assert all(later < earlier for earlier, later in pairwise(report.losses))
    assert report.after.balance < 0.1
    assert report.after.correlation < 0.3
    x = model.whitening(features)
    moved = (model(x) >= 0) != (untrained(x) >= 0)
    assert 0.01 < moved.float().mean() < 0.5


def test_trained_bits_find_neighbours_better_than_they_did_before():
    model, untrained = build(64), build(64)
    features = clusters()
    fit_drh(model, features, n_steps=200)
    fit_drh(untrained, features, n_steps=1, learning_rate=1e-12)
    same = np.arange(300)[:, None] % 30 == np.arange(300) % 30

    def separation(fitted):
        with torch.no_grad():
            activations = fitted(fitted.whitening(features[:300]))
        distances = hamming_distances(*2 * [np.packbits(activations.numpy() >= 0, axis=1)])
        return distances[~same].mean() - distances[same].mean()

    assert separation(model) > separation(untrained) + 1


def test_fitting_is_the_same_for_the_same_seed():
    first, again, other = build(), build(), build()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        fit_drh(model, clusters(300), n_steps=5, seed=seed)
    assert torch.equal(first.hash.weight, again.hash.weight)
    assert not torch.equal(first.hash.weight, other.hash.weight)


def test_more_bits_than_dimensions_are_still_different_bits():
    model = build(512)  # of 16 dimensions
    fit_drh(model, clusters(), n_steps=50)
    with torch.no_grad():
        bits = (model(model.whitening(clusters())) >= 0).numpy()
    assert len(np.unique(bits, axis=1).T) == 512


@pytest.mark.parametrize(
    "features",
    [clusters(1), clusters(1).repeat(60, 1), torch.zeros(40, 128)],
    ids=["one", "identical", "zero"],
)
def test_a_collection_without_variance_can_be_fitted(features):
    model = build()
    report = fit_drh(model, features, n_steps=20)
    assert all(np.isfinite(report.losses))
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all(), name
    (encoded,) = model.encode(noise((64, 64)))
    assert len(np.unique(unpack_bits(encoded.regions.codes), axis=0)) > 1


def test_an_overlap_of_millions_of_windows_is_refused():
    with pytest.raises(ValueError, match=r"overlap must be at most 0\.95, got 0\.999"):
        DRH(64, backbone="tiny_fpn", weights="none", overlap=0.999)
