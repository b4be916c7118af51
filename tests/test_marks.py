"""Boxes of a query, and the picture that they are in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionhash.search.marks import place_boxes

SIZE = 100, 160  # height, width
FRAME = "the picture, 160 x 100 pixels"


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((500, 500, 600, 600), f"box 500,500,600,600: lies outside of {FRAME}"),
        ((160, 0, 200, 100), f"box 160,0,200,100: lies outside of {FRAME}"),
        ((0, 100, 160, 101), f"box 0,100,160,101: lies outside of {FRAME}"),
        ((-50, -50, -1, -1), f"box -50,-50,-1,-1: lies outside of {FRAME}"),
        ((-50, 10, 0, 50), f"box -50,10,0,50: lies outside of {FRAME}"),
        ((150, 10, 180, 50), f"box 150,10,180,50: more than half of it lies outside of {FRAME}"),
        ((0, 0, 1600, 1000), f"box 0,0,1600,1000: more than half of it lies outside of {FRAME}"),
        ((-9, -9, 3, 2), f"box -9,-9,3,2: more than half of it lies outside of {FRAME}"),
        ((-1e9, 0, 1e9, 9), f"box -1e+09,0,1e+09,9: more than half of it lies outside of {FRAME}"),
        ((0, 0, 1e308, 9), f"box 0,0,1e+308,9: more than half of it lies outside of {FRAME}"),
        ((100, 10, 40, 50), "box 100,10,40,50: needs x0 < x1 and y0 < y1"),
        ((40, 50, 100, 10), "box 40,50,100,10: needs x0 < x1 and y0 < y1"),
        ((40, 10, 40, 50), "box 40,10,40,50: needs x0 < x1 and y0 < y1"),
        ((float("nan"), 0, 9, 9), "box nan,0,9,9: needs x0 < x1 and y0 < y1"),
        ((float("-inf"), 0, 9, 9), "box -inf,0,9,9: must be finite"),
        ((0, 0, float("inf"), 9), "box 0,0,inf,9: must be finite"),
        (
            (0.1, 0.2, 0.5, 0.9),
            f"box 0.1,0.2,0.5,0.9: must be in pixels of {FRAME}; these look like fractions of its "
            "sides",
        ),
        (
            (-0.02, 0.2, 0.5, 1.01),
            f"box -0.02,0.2,0.5,1.01: must be in pixels of {FRAME}; these look like fractions of "
            "its sides",
        ),
        (
            (0, 0, 1, 1),
            f"box 0,0,1,1: must be in pixels of {FRAME}; these look like fractions of its sides",
        ),
    ],
)
def test_a_box_that_cannot_be_meant_is_named_with_the_size_of_the_picture(box, message):
    with pytest.raises(ValueError, match="box") as error:
        place_boxes([(10, 10, 20, 20), box], SIZE)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("box", "inside", "percent"),
    [
        ((140, 10, 180, 50), (140, 10, 160, 50), 50),  # exactly half
        ((-20, 10, 80, 50), (0, 10, 80, 50), 20),
        ((0, -30, 160, 100), (0, 0, 160, 100), 23),
        ((10, 60, 50, 140), (10, 60, 50, 100), 50),
        ((-2, -2, 400, 60), None, None),
        ((0, 0, 162, 100), (0, 0, 160, 100), 1),
    ],
)
def test_a_box_that_is_partly_outside_is_cut_off_and_noted(box, inside, percent):
    if inside is None:
        with pytest.raises(ValueError, match="more than half"):
            place_boxes([box], SIZE)
        return
    shown = ",".join(f"{edge:g}" for edge in box)
    note = f"box {shown}: {percent}% of it lies outside of {FRAME}, and is ignored"
    assert place_boxes([box], SIZE) == ([inside], [note])


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 160, 100), SIZE),
        ((-1, -1, 161, 101), SIZE),  # a pixel
        ((-1.6, 20, 80.5, 50), SIZE),  # 1% of the width
        ((159.5, 99.5, 161, 101), SIZE),  # mostly outside, but by a pixel
        ((-30, -30, 4030, 3030), (3000, 4000)),  # boxes of a thumbnail
        ((0, 0, 1, 1), (1, 1)),  # the only pixel
        ((0, 0, 2, 2), (1, 1)),
        ((0.5, 0.5, 1.5, 1.5), SIZE),
    ],
)
def test_what_rounding_cuts_off_is_not_noted(box, size):
    (inside,), notes = place_boxes([box], size)
    edges = np.clip(box, 0, [size[1], size[0]] * 2)
    assert (inside, notes) == (tuple(edges.tolist()), [])


@given(
    st.tuples(*[st.floats(-400, 400)] * 4),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_what_is_searched_for_is_inside_and_at_least_half_or_a_pixel_off(box, size):
    try:
        (inside,), notes = place_boxes([box], size)
    except ValueError as error:
        assert "box" in str(error)
        return
    x0, y0, x1, y1 = inside
    assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
    assert bool(notes) <= (inside != box)
    off = max(-box[0], -box[1], box[2] - size[1], box[3] - size[0])
    if off > max(1, *(0.01 * side for side in size)):
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert notes and (x1 - x0) * (y1 - y0) >= 0.499 * area


def test_no_box_has_no_note():
    assert place_boxes([], SIZE) == ([], [])
