"""An answer as people see it."""

from regionhash.search.answer import distance_text
from regionhash.structures import Hit, Match

BOX = (1.0, 2.0, 3.0, 4.0)


def test_the_distance_of_several_objects_is_shown_with_its_parts():
    matches = tuple(Match(BOX, distance, 0, 0.5) for distance in (5, 7))
    assert distance_text(Hit(0, "a", 12, matches)) == "12 = 5 + 7"
    assert distance_text(Hit(0, "a", 5, matches[:1])) == "5"
    assert distance_text(Hit(0, "a", 3)) == "3"
