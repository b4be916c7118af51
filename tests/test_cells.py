import math

import pytest
import torch

from conftest import build_tiny, noise
from regionhash.parts.cells import crop_maps, mask_cells, pack_cells, unpack_cells


def test_each_picture_gets_its_cells_without_the_padding():
    maps = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    small, large = crop_maps(maps, [(32, 64), (64, 96)])  # 16 pixels to a cell
    assert torch.equal(small, maps[0, :, :2, :4])
    assert torch.equal(large, maps[1])


def test_a_cell_in_part_is_rounded_as_asked_and_one_is_left():
    maps = torch.zeros(2, 1, 4, 4)
    sizes = [(5, 35), (64, 64)]  # 0.3 and 2.2 cells
    assert crop_maps(maps, sizes)[0].shape == (1, 1, 2)
    assert crop_maps(maps, sizes, math.ceil)[0].shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["dmih", "iah"])
def test_a_backbone_whose_stride_is_not_whole_has_codes(name):
    changes = {"fpn_channels": 32} if name == "iah" else {}
    model = build_tiny(name, n_bits=16, n_classes=3, backbone="squeezenet1_0_fpn", **changes)
    (encoded,) = model.eval().encode(noise((384, 768)))  # 23 x 47 cells of 16.7 x 16.3 pixels
    assert len(encoded.regions)


def test_cells_are_row_by_row_with_zeros_after_those_of_the_smaller_map():
    small, large = torch.rand(3, 2, 2), torch.rand(3, 2, 4)
    cells, shapes = pack_cells([small, large])
    assert cells.shape == (2, 8, 3) and shapes.tolist() == [[2, 2], [2, 4]]
    for y in range(2):
        for x in range(4):
            assert torch.equal(cells[1, 4 * y + x], large[:, y, x])
            if x < 2:
                assert torch.equal(cells[0, 2 * y + x], small[:, y, x])
    assert not cells[0, 4:].any()


def test_unpacked_maps_are_the_packed_ones_and_zero_beyond():
    maps = [torch.rand(3, 5, 2), torch.rand(3, 1, 7), torch.rand(3, 3, 3)]
    cells, shapes = pack_cells(maps)
    back, inside = unpack_cells(cells, shapes), mask_cells(shapes, 5, 7)
    assert back.shape == (3, 3, 5, 7) and inside.shape == (3, 1, 5, 7)
    for n, one in enumerate(maps):
        height, width = one.shape[1:]
        assert torch.equal(back[n, :, :height, :width], one)
        assert inside[n, 0, :height, :width].all() and inside[n].sum() == height * width
    assert not back.masked_select(~inside).any()
