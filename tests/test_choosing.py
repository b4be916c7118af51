"""Overlaps of boxes, against torchvision."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from regionhash.parts.choosing import overlaps


def boxes_of(rng, n, dtype):
    low, sides = rng.uniform(0, 90, (n, 2)), rng.uniform(0.1, 60, (n, 2))
    return np.concatenate([low, low + sides], axis=1).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(60, 50), (1, 7), (0, 3), (3, 0)])
def test_overlaps_are_those_of_torchvision_to_the_last_bit(dtype, sizes):
    boxes, others = (boxes_of(np.random.default_rng(n), n, dtype) for n in sizes)
    found = overlaps(boxes, others)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, box_iou(*map(torch.from_numpy, (boxes, others))).numpy())


def test_boxes_without_area_overlap_nothing_not_even_themselves():
    boxes = np.array([[5, 5, 5, 9], [0, 0, 10, 10]], np.float32)
    assert overlaps(boxes, boxes).tolist() == [[0, 0], [0, 1]]
