"""What the command line does not show of searches: the modes that queries ask for."""

import numpy as np
import pytest

from regionhash.search.run import QueryPicture, default_mode, distance_text
from regionhash.structures import Hit, Match

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


def test_without_codes_of_pictures_one_picture_asks_for_its_objects():
    picture = QueryPicture("a", np.zeros((5, 5, 3), np.uint8))
    assert default_mode([picture], whole=False) == "objects"


def test_the_distance_of_several_objects_is_shown_with_its_parts():
    matches = tuple(Match(BOX, distance, 0, 0.5) for distance in (5, 7))
    assert distance_text(Hit(0, "a", 12, matches)) == "12 = 5 + 7"
    assert distance_text(Hit(0, "a", 5, matches[:1])) == "5"
    assert distance_text(Hit(0, "a", 3)) == "3"
