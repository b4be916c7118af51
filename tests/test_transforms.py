import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import resize

from regionhash.data.transforms import Frame, TrainingTransform, fit_size, to_input
from regionhash.structures import Target

SIDES = st.integers(1, 5000)


def target_of(*boxes, labels=None, difficult=None, image_labels=()):
    n = len(boxes)
    return Target(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(range(n) if labels is None else labels, np.int64),
        np.array([False] * n if difficult is None else difficult, np.bool_),
        image_labels,
    )


def picture(height=60, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((300, 400), 320, (320, 416)),  # 426.7 is nearer to 416 than to 448
        ((400, 300), 320, (416, 320)),
        ((375, 500), 300, (288, 384)),
        ((500, 500), 320, (320, 320)),
        ((1, 20_000), 320, (320, 640)),
        ((20_000, 1), 320, (640, 320)),
        ((1, 1), 320, (320, 320)),
        ((100, 100), 1, (32, 32)),
    ],
)
def test_input_sizes_are_as_computed_by_hand(size, short, expected):
    assert fit_size(*size, short) == expected


@given(SIDES, SIDES, st.integers(1, 1000))
def test_input_sides_are_multiples_of_32_of_nearly_the_aspect(height, width, short):
    h, w = fit_size(height, width, short)
    assert h % 32 == w % 32 == 0
    assert 32 <= min(h, w) <= short + 31
    assert max(h, w) <= 2 * min(h, w)
    assert (w, h) == fit_size(width, height, short)
    wanted = min(h, w) * min(2, max(height, width) / min(height, width))
    assert abs(max(h, w) - wanted) <= 16


@pytest.mark.parametrize("lengths", [(0, 5, 32), (5, 0, 32), (5, 5, 0)])
def test_lengths_must_be_positive(lengths):
    with pytest.raises(ValueError, match="must be positive"):
        fit_size(*lengths)


def test_a_frame_scales_each_axis_by_its_own_factor():
    frame = Frame(size=(100, 200), input_size=(50, 400))
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    assert frame.to_input(boxes).tolist() == [[20, 10, 60, 20]]
    assert frame.to_original(frame.to_input(boxes)).tolist() == boxes.tolist()
    assert frame.to_input(torch.zeros(0, 4)).shape == (0, 4)


def test_the_input_is_the_picture_resized():
    image = picture(60, 90)
    tensor, frame = to_input(image, 64)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 64, 96)
    assert frame == Frame((60, 90), (64, 96))
    expected = resize(torch.from_numpy(image).permute(2, 0, 1).float(), [64, 96], antialias=True)
    assert (tensor.float() - expected).abs().max() <= 1


def test_reduction_averages_all_pixels():
    """A chessboard of single pixels becomes grey; without antialiasing it stays black or white."""
    board = np.indices((288, 288)).sum(axis=0) % 2 * 255  # nine pixels to one: samples hit centres
    tensor, _ = to_input(np.dstack([board.astype(np.uint8)] * 3), 32)
    assert (tensor.float() - 127.5).abs().max() < 20


def test_without_changes_the_transform_only_resizes():
    image, target = picture(), target_of([9, 6, 45, 30])
    transform = TrainingTransform(64, scale=(1, 1), crop=False, flip=False, colour=False)
    sample = transform(image, target, np.random.default_rng(0))
    tensor, frame = to_input(image, 64)
    assert torch.equal(sample.image, tensor)
    assert torch.allclose(sample.boxes, frame.to_input(torch.from_numpy(target.boxes)))
    assert sample.labels.tolist() == [0]
    assert sample.labels.dtype == torch.int64
    assert sample.boxes.dtype == torch.float32


@pytest.mark.parametrize("seed", range(12))
def test_boxes_follow_their_objects_through_crop_flip_and_resize(seed):
    """Bright rectangles on black: after the transform their boxes still hold what is bright."""
    image = np.zeros((200, 300, 3), np.uint8)
    image[20:80, 30:130, 0] = 255
    image[90:190, 200:290, 1] = 255
    target = target_of([30, 20, 130, 80], [200, 90, 290, 190])
    transform = TrainingTransform(192, colour=False)
    sample = transform(image, target, np.random.default_rng(seed))
    for channel, box in enumerate(sample.boxes):
        rows, columns = np.nonzero(sample.image[channel].numpy() > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box.numpy(), found, atol=1.5)


def test_crops_cut_margins_and_vary():
    image, target = picture(), target_of([40, 25, 50, 35])
    transform = TrainingTransform(64, scale=(1, 1), flip=False, colour=False)
    generator = np.random.default_rng(0)
    boxes = torch.cat([transform(image, target, generator).boxes for _ in range(20)])
    plain = TrainingTransform(64, scale=(1, 1), flip=False, colour=False, crop=False)
    whole = plain(image, target, generator).boxes
    widths = boxes[:, 2] - boxes[:, 0]
    assert (widths > 1.1 * (whole[0, 2] - whole[0, 0])).sum() >= 10
    assert len(boxes.unique(dim=0)) == 20


def test_a_picture_with_a_label_that_has_no_box_is_not_cropped():
    image = picture()
    transform = TrainingTransform(64, scale=(1, 1), flip=False, colour=False)
    generator = np.random.default_rng(0)
    whole = to_input(image, 64)[0]
    kept = transform(image, target_of([40, 25, 50, 35], image_labels=(0, 3)), generator)
    cropped = transform(image, target_of([40, 25, 50, 35], image_labels=(0,)), generator)
    assert torch.equal(kept.image, whole)
    assert cropped.image.shape != whole.shape or not torch.equal(cropped.image, whole)
    assert kept.image_labels == (0, 3)


def test_every_other_picture_is_mirrored_where_allowed():
    image, target = picture(), target_of([0, 0, 10, 10])
    ends = []
    for flip in (True, False):
        transform = TrainingTransform(64, scale=(1, 1), flip=flip, crop=False, colour=False)
        generator = np.random.default_rng(0)
        boxes = torch.cat([transform(image, target, generator).boxes for _ in range(60)])
        ends.append(int((boxes[:, 2] == 96).sum()))
    assert 15 < ends[0] < 45
    assert ends[1] == 0


def test_colours_change_and_boxes_stay():
    image, target = picture(), target_of([9, 6, 45, 30])
    transform = TrainingTransform(64, scale=(1, 1), flip=False, crop=False)
    generator = np.random.default_rng(0)
    one, two = (transform(image, target, generator) for _ in range(2))
    assert torch.equal(one.boxes, two.boxes)
    means = [float(sample.image.float().mean()) for sample in (one, two)]
    assert abs(means[0] - means[1]) > 2
    assert one.image.dtype == torch.uint8


def test_sizes_are_drawn_around_the_short_side():
    transform = TrainingTransform(320, crop=False, flip=False, colour=False)
    generator = np.random.default_rng(0)
    image = picture(50, 50)
    sides = {transform(image, target_of(), generator).image.shape[1] for _ in range(60)}
    assert sides == {256, 288, 320, 352, 384}  # 0.8 and 1.25 times 320, rounded


def test_difficult_and_tiny_objects_are_left_out_of_the_boxes():
    target = target_of(
        [10, 10, 40, 40], [0, 0, 90, 60], [50, 50, 50.5, 60], difficult=[False, True, False]
    )
    transform = TrainingTransform(64, scale=(1, 1), crop=False, colour=False)
    sample = transform(picture(), target, np.random.default_rng(0))
    assert sample.labels.tolist() == [0]
    assert len(sample.boxes) == 1
    assert sample.image_labels == (0, 2)


def test_boxes_that_leave_the_picture_are_clipped_or_left_out():
    target = target_of([-20, 30, 95, 70], [100, 10, 120, 20])
    transform = TrainingTransform(60, scale=(1, 1), flip=False, colour=False)
    for seed in range(5):
        sample = transform(picture(), target, np.random.default_rng(seed))
        _, h, w = sample.image.shape
        assert sample.labels.tolist() == [0]
        assert sample.boxes[0, [0, 2, 3]].tolist() == pytest.approx([0, w, h])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2)])
def test_a_picture_without_objects_or_of_extreme_size_is_valid(size):
    sample = TrainingTransform(64)(picture(*size), target_of(), np.random.default_rng(0))
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == (0,)
    assert sample.image_labels == ()


@given(st.integers(0, 2**32), st.integers(0, 4))
def test_boxes_stay_inside_the_input_and_are_lost_where_a_side_is_less_than_a_pixel(seed, n_boxes):
    generator = np.random.default_rng(seed)
    low = generator.integers(0, (87, 57), (n_boxes, 2))
    high = np.minimum(low + generator.choice([1, 2, 3, 30, 90], (n_boxes, 2)), (90, 60))
    target = target_of(*np.hstack([low, high]).tolist())

    sample = TrainingTransform(96)(picture(), target, generator)
    _, h, w = sample.image.shape
    assert (sample.boxes >= -1e-3).all()
    assert (sample.boxes <= torch.tensor([w, h, w, h]) + 1e-3).all()
    assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 1 - 1e-3).all()
    # No crop shrinks a pixel to less than 0.8.
    assert set(np.flatnonzero((high - low >= 2).all(axis=1))) <= set(sample.labels.tolist())
    assert sample.image_labels == tuple(range(n_boxes))

    whole = TrainingTransform(40, crop=False)(picture(), target, generator)
    _, h, w = whole.image.shape
    kept = ((high - low) * (w / 90, h / 60) >= 1).all(axis=1)
    assert whole.labels.tolist() == np.flatnonzero(kept).tolist()


def test_the_same_generator_gives_the_same_sample():
    image, target = picture(), target_of([9, 6, 45, 30])
    one, two = (TrainingTransform(96)(image, target, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.boxes, two.boxes)


@pytest.mark.parametrize("scale", [(0, 1), (1.2, 0.8)])
def test_the_scale_must_be_a_range_of_positive_factors(scale):
    with pytest.raises(ValueError, match="range of positive factors"):
        TrainingTransform(64, scale=scale)
