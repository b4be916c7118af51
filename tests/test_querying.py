"""What the command line does not show of searches: the modes that queries ask for."""

import numpy as np
import pytest

from regionhash.querying import QueryPicture, default_mode

BOX = (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("boxes", "mode"),
    [
        ([()], "image"),
        ([(BOX,)], "region"),
        ([(BOX, BOX)], "objects"),
        ([(), ()], "objects"),
        ([(BOX,), ()], "objects"),
    ],
)
def test_pictures_and_boxes_ask_for_a_mode(boxes, mode):
    image = np.zeros((5, 5, 3), np.uint8)
    assert default_mode([QueryPicture("a", image, own) for own in boxes]) == mode
