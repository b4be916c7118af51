import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F  # noqa: N812

from regionhash.data.frames import Frame, clip_boxes, fit_size, resize, to_pixels
from regionhash.data.transforms import to_input

SIDES = st.integers(1, 400)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resized_by_torchvision(image, size):
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return F.resize(tensor, list(size), antialias=True).permute(1, 2, 0).numpy()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 9))
def test_every_byte_is_the_one_that_torchvision_gives(height, width, new_height, new_width, seed):
    image, size = picture(height, width, seed), (new_height, new_width)
    np.testing.assert_array_equal(resize(image, size), resized_by_torchvision(image, size))


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_one_colour_stays_that_colour(value):
    flat = np.full((97, 130, 3), value, np.uint8)
    assert (resize(flat, (32, 64)) == value).all()
    assert (resize(flat, (320, 448)) == value).all()


def test_large_pictures_and_views_of_others_are_the_same_too():
    image = picture(1500, 2100)
    for view in (image, image[::-1, 3:1000], image[:, :, ::-1]):
        size = fit_size(*view.shape[:2], 384)
        contiguous = np.ascontiguousarray(view)
        np.testing.assert_array_equal(resize(view, size), resized_by_torchvision(contiguous, size))


def test_pixels_and_frame_are_those_of_the_tensor():
    image = picture(75, 100)
    pixels, frame = to_pixels(image, 64)
    tensor, same = to_input(image, 64)
    np.testing.assert_array_equal(pixels, tensor.numpy())
    assert frame == same and pixels.flags.c_contiguous


def test_boxes_are_scaled_and_clipped_as_tensors_are():
    frame = Frame((100, 150), (64, 96))
    boxes = np.array([[-5, 3.3, 160, 99], [10, 20, 30, 140]], np.float32)
    tensor = torch.from_numpy(boxes)
    np.testing.assert_array_equal(frame.to_input(boxes), frame.to_input(tensor).numpy())
    np.testing.assert_array_equal(frame.to_original(boxes), frame.to_original(tensor).numpy())
    clipped = clip_boxes(boxes, frame.size)
    np.testing.assert_array_equal(clipped, clip_boxes_to_image(tensor, frame.size).numpy())
    assert clipped.dtype == np.float32 and clip_boxes(boxes[:0], frame.size).shape == (0, 4)


def test_resizing_needs_no_torch():
    code = """
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from regionhash.data.frames import to_pixels
        pixels, _ = to_pixels(np.zeros((40, 60, 3), np.uint8), 32)
        sys.exit(pixels.shape != (3, 32, 64))
    """  # 32 * 60 / 40 = 48 is rounded to 64 (half to even)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, check=False).returncode == 0


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, st.sampled_from([1, 8, 14, 16, 32]))
def test_sides_are_multiples_of_the_stride_and_keep_the_aspect(height, width, short, stride):
    sides = fit_size(height, width, short, stride)
    assert not any(side % stride for side in sides)
    assert min(sides) == max(stride, stride * round(short / stride))
    assert max(sides) <= 2 * min(sides)
    assert fit_size(width, height, short, stride) == (sides if height == width else sides[::-1])
