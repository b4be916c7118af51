import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from regionhash.parts.multiscale import MultiScaleWindows, window_boxes
from regionhash.parts.windows import window_box


def _windows(n_scales=3, **changes):
    torch.manual_seed(0)
    sizes = {"n_in": 3, "n_channels": 4, "n_features": 5} | changes
    windows = MultiScaleWindows(**sizes, n_scales=n_scales).double()
    for parameter in windows.parameters():  # no unit may die: every path is open
        parameter.data = parameter.data.abs() + 0.1
    return windows


def _shapes(*shapes):
    return torch.tensor(shapes)


@pytest.mark.parametrize(("height", "width"), [(10, 13), (7, 16), (1, 1), (5, 2)])
def test_a_box_is_the_cells_that_the_window_reads(height, width):
    windows = _windows()
    base = torch.rand(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    features, present = windows(base, _shapes((height, width)))
    boxes = window_boxes(height, width, 3)
    assert len(boxes) == features.shape[1] and present.all()
    for n in range(0, len(boxes), 1 if height * width < 20 else 11):
        (gradient,) = torch.autograd.grad(features[0, n].sum(), base, retain_graph=True)
        rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        read = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes[n].tolist() == [int(edge) for edge in read]


def test_windows_of_three_scales_are_3_7_and_15_cells_wide():
    sides = [(box[2] - box[0], box[3] - box[1]) for box in (window_box(s, 4, 2) for s in range(3))]
    assert sides == [(3, 3), (7, 7), (15, 15)]
    assert window_box(1, 0, 3) == (3, -3, 10, 4)  # around the cell (0, 6)


def test_scales_halve_the_map_and_stand_one_after_the_other():
    boxes = window_boxes(5, 4, 3)
    assert len(boxes) == 5 * 4 + 3 * 2 + 2 * 1
    assert boxes[0].tolist() == [0, 0, 2, 2]
    assert boxes[20 + 3].tolist() == [0, 0, 4, 5]  # row 1, column 1 of scale 1: cells -1 to 5
    assert boxes[-1].tolist() == [0, 0, 4, 5]


def test_what_is_said_of_an_image_does_not_depend_on_the_padding():
    windows = _windows()
    base = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    alone, _ = windows(base, _shapes((5, 6)))
    padded = torch.zeros(2, 3, 8, 9, dtype=torch.float64)
    padded[0, :, :5, :6] = base[0]
    padded[1] = torch.rand(3, 8, 9)
    features, present = windows(padded, _shapes((5, 6), (8, 9)))
    torch.testing.assert_close(features[0, present[0]], alone[0])
    assert present[1].all() and present[0].sum() == alone.shape[1]


@pytest.mark.parametrize("n_scales", [0, 13, 10**9])
def test_no_scale_and_more_than_a_picture_has_are_refused(n_scales):
    with pytest.raises(ValueError, match=rf"n_scales must be in \[1, 12\], got {n_scales}"):
        _windows(n_scales=n_scales)


@pytest.mark.slow
def test_the_script_draws_a_window_of_each_scale(tmp_path):
    Image.fromarray(np.full((96, 128, 3), 128, np.uint8)).save(tmp_path / "in.png")
    script = Path(__file__).parents[1] / "scripts" / "draw_windows.py"
    command = [sys.executable, script, tmp_path / "in.png", tmp_path / "out.png", "--short", "320"]
    subprocess.run(command, check=True)
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (320, 3 * 416 + 2 * 12, 3)
    for scale, (color, side) in enumerate(zip(("#ffb000", "#38b6ff"), (96, 224), strict=True)):
        rows, columns = np.nonzero((drawn == ImageColor.getrgb(color)).all(axis=2))
        assert columns.min() // (416 + 12) == columns.max() // (416 + 12) == scale
        lines = np.bincount(columns, minlength=drawn.shape[1]) > 60  # of the window, not of a dot
        assert np.ptp(np.flatnonzero(lines)) == pytest.approx(side - 4, abs=2)
        assert np.ptp(rows) >= side - 8
