from itertools import combinations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from regionhash.data import digits
from regionhash.data.digits import SIZE, digit_scenes, handwriting


def grey(pixels):
    return pixels.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_the_handwriting_of_train_and_test_is_disjoint_and_all_of_it():
    written = {split: handwriting(split)[0] for split in ("train", "test")}
    rows = {split: {image.tobytes() for image in images} for split, images in written.items()}
    assert not rows["train"] & rows["test"]
    assert len(written["train"]) + len(written["test"]) == len(load_digits().images)
    for label in range(10):
        n_train, n_test = ((handwriting(split)[1] == label).sum() for split in ("train", "test"))
        assert n_train == pytest.approx(2 * n_test, abs=2)


def test_handwriting_keeps_its_labels():
    images, labels = handwriting("test")
    data = load_digits()
    label_of = {
        np.round(image * (255 / 16)).astype(np.uint8).tobytes(): label
        for image, label in zip(data.images, data.target, strict=True)
    }
    assert all(
        label_of[image.tobytes()] == label for image, label in zip(images, labels, strict=True)
    )


def test_a_scene_is_the_same_again_whatever_the_number_of_scenes():
    few, many = digit_scenes("train", 3), digit_scenes("train", 5)
    for n in (2, 0, 1):
        np.testing.assert_array_equal(few.images[n], many.images[n])
    assert few.ids == many.ids[:3]
    assert few.fingerprint() == many.subset(range(3)).fingerprint()


def test_scenes_differ_by_index_split_and_seed():
    sets = [digit_scenes("train", 2), digit_scenes("test", 2), digit_scenes("train", 2, seed=1)]
    scenes = {image_set.images[n].tobytes() for image_set in sets for n in range(2)}
    assert len(scenes) == 6
    assert len({image_id for image_set in sets for image_id in image_set.ids}) == 6


def test_splits_differ_in_more_than_their_handwriting():
    train, test = (digit_scenes(split, 20).targets for split in ("train", "test"))
    assert [len(target.boxes) for target in train] != [len(target.boxes) for target in test]


def test_scenes_have_one_to_five_digits_that_hardly_overlap():
    image_set = digit_scenes("test", 100)
    counts = [len(target.boxes) for target in image_set.targets]
    assert set(counts) == {1, 2, 3, 4, 5}
    assert image_set.labels().any(axis=0).all()
    for target in image_set.targets:
        assert (target.boxes >= 0).all() and (target.boxes <= SIZE).all()
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        assert sides.min() >= 3
        assert sides.max() >= 15
        for a, b in combinations(target.boxes, 2):
            sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - sides.prod()
            assert sides.prod() / union <= 0.05


@pytest.mark.parametrize("seed", range(10))
def test_no_ink_is_lost_and_no_margin_left_when_a_digit_is_drawn(seed):
    """A frame looks the same upside down, turned or not; cut on one side it does not."""
    frame = np.full((8, 8), 255, np.uint8)
    frame[2:6, 2:6] = 0
    cover = digits._draw_digit(frame, np.random.default_rng(seed))
    np.testing.assert_allclose(cover, cover[::-1, ::-1], atol=0.2)
    for edge in (cover[0], cover[-1], cover[:, 0], cover[:, -1]):
        assert edge.max() >= 0.5
    assert cover[0, 0] < 0.5  # the corner is turned away or rounded


def test_boxes_are_tight_around_the_ink(monkeypatch):
    """Painted in white on black alone, the pixels that are more white than black fill the box."""
    monkeypatch.setattr(digits, "_paint_ground", lambda _: digits.PILImage.new("RGB", (SIZE, SIZE)))
    monkeypatch.setattr(digits, "_paint_letters", lambda *_: None)
    monkeypatch.setattr(digits, "_contrasting", lambda *_: np.full(3, 255.0))
    image_set = digit_scenes("train", 60)
    lonely = [n for n, target in enumerate(image_set.targets) if len(target.boxes) == 1]
    assert len(lonely) >= 5
    for n in lonely:
        rows, columns = np.nonzero(grey(image_set.images[n]) > 100)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(image_set.targets[n].boxes[0], found, atol=1)


def test_digits_stand_out_from_their_ground():
    image_set = digit_scenes("test", 30)
    for image, target in zip(image_set.images, image_set.targets, strict=True):
        for x0, y0, x1, y1 in target.boxes.astype(int):
            values = grey(image[y0:y1, x0:x1])
            assert np.ptp(values) > 60


def test_pictures_are_rgb_bytes_and_rows_may_count_from_the_end():
    image_set = digit_scenes("train", 3)
    assert image_set.classes == tuple("0123456789")
    assert image_set.images[0].shape == (SIZE, SIZE, 3)
    assert image_set.images[0].dtype == np.uint8
    np.testing.assert_array_equal(image_set.images[-1], image_set.images[2])
    with pytest.raises(IndexError):
        image_set.images[3]


def test_a_wrong_split_or_number_is_an_error():
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        digit_scenes("val", 3)
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        digit_scenes("train", 0)
