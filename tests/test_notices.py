"""What readers notice is counted by kind, and told once with a few examples."""

from regionhash.data.image_set import ImageSet, joined
from regionhash.data.notices import Notices
from regionhash.structures import Target
from reporters import Recording, told


def some(kind, n):
    notices = Notices()
    for number in range(n):
        notices.add(kind, f"{number}: {kind}")
    return notices


def test_three_examples_of_each_kind_are_told_and_the_rest_counted():
    notices = some("odd", 5)
    notices.add("even", "2.xml: even")
    lines = ["0: odd", "1: odd", "2: odd", "... and 2 more: odd", "2.xml: even"]
    assert told(notices) == lines
    assert notices.counts == {"odd": 5, "even": 1}
    assert notices.summary() == "odd: 5; even: 1"


def test_nothing_is_told_twice():
    notices, reporter = some("odd", 2), Recording()
    notices.tell(reporter)
    notices.tell(reporter)
    assert reporter.notes == ["0: odd", "1: odd"]
    for _ in range(3):
        notices.add("odd", "later")
    notices.tell(reporter)
    assert reporter.notes == ["0: odd", "1: odd", "later", "... and 2 more: odd"]


def test_joined_sets_have_the_notices_of_each():
    sets = [ImageSet(name, (), (name,), [None], (Target.empty(),), some("odd", 2)) for name in "ab"]
    notices = joined("both", sets).notices
    assert notices.counts == {"odd": 4}
    assert told(notices) == ["0: odd", "1: odd", "0: odd", "... and 1 more: odd"]
    assert sets[0].notices.counts == {"odd": 2}


def test_a_part_of_a_set_keeps_the_notices_of_all():
    whole = ImageSet("a", (), ("x", "y"), [None] * 2, (Target.empty(),) * 2, some("odd", 1))
    assert whole.subset([0]).notices.counts == {"odd": 1}
