import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from regionhash.parts.pooling import pool_pyramid, pool_top


def _by_torchvision(top, boxes, stride):
    bins = roi_align(top, boxes, 4, 1 / stride, sampling_ratio=2, aligned=True)
    return torch.cat([bins.mean((2, 3)), bins.amax((2, 3))], dim=1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n_boxes=st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_pooling_is_torchvisions_roi_align(seed, n_boxes):
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 9, (2,), generator=generator).tolist()
    top = torch.randn(len(n_boxes), 5, height, width, generator=generator)
    boxes = []
    for n in n_boxes:  # some of them partly or wholly outside, some without area
        corners = torch.rand(n, 4, generator=generator) * 400 - 70
        boxes.append(torch.cat([corners[:, :2], torch.maximum(corners[:, :2], corners[:, 2:])], 1))
    torch.testing.assert_close(pool_top(top, boxes, 32), _by_torchvision(top, boxes, 32))


def test_a_map_of_one_value_pools_to_it():
    pooled = pool_top(torch.full((1, 3, 4, 6), 2.5), [torch.tensor([[10.0, 20, 90, 70]])], 16)
    assert pooled.tolist() == [pytest.approx([2.5] * 6)]


def test_gradients_reach_the_map():
    top = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    boxes = [torch.tensor([[0.0, 5, 60, 90]], dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda x: pool_top(x, boxes, 32), top)


def test_pyramid_pooling_is_the_maximum_of_the_bins():
    maps = torch.arange(2 * 8 * 8, dtype=torch.float32).view(1, 2, 8, 8)
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [2.0, 4.0, 6.0, 8.0]])]
    pooled = pool_pyramid(maps, boxes)
    assert pooled.shape == (2, 2 * 30)
    whole, part = maps[0], maps[0, :, 4:8, 2:6]
    quarters = [whole[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for i in range(4) for j in range(4)]
    expected = torch.stack([quarter.amax((1, 2)) for quarter in quarters], 1).flatten()
    torch.testing.assert_close(pooled[0, :32], expected)
    torch.testing.assert_close(pooled[:, -2:], torch.stack([whole.amax((1, 2)), part.amax((1, 2))]))
    torch.testing.assert_close(pooled[1, :32], part.flatten(1).flatten())  # a cell in each bin
