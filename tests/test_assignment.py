"""Different regions for different objects, against all ways to assign them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.search import assignment, exact, search_objects
from regionhash.search.assignment import same_objects
from regionhash.structures import CodeTable
from slow_assignment import bits, slow_assignment

NEAR, FAR = np.zeros(2, np.uint8), np.full(2, 255, np.uint8)  # 16 bits apart


@st.composite
def searches(draw):
    """Pictures of a few regions on a coarse grid, so that many are the same, nested or tied."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n_queries = draw(st.integers(2, 4))
    sizes = rng.integers(0, 7 if n_queries < 4 else 5, draw(st.integers(1, 20)))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    m, n_bytes = int(offsets[-1]), draw(st.sampled_from([1, 2]))
    values = np.array(draw(st.sampled_from([[0, 255], [0, 1, 3, 255], range(256)])), np.uint8)
    low = rng.integers(0, 4, (m, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 5, (m, 2))], axis=1) * 10
    table = CodeTable(
        ids=[f"image{n}" for n in range(len(sizes))],
        sizes=np.full((len(sizes), 2), 100, np.int32),
        classes=("cat", "dog"),
        offsets=offsets,
        boxes=boxes.astype(np.float32),
        scores=rng.random(m, np.float32),
        labels=rng.integers(0, 2, m) if draw(st.booleans()) else np.full(m, -1),
        region_codes=rng.choice(values, (m, n_bytes)),
    )
    queries = rng.choice(values, (n_queries, n_bytes))
    if draw(st.booleans()):
        queries[1] = queries[0]  # two of a kind
    apart = np.ones((n_queries, n_queries), bool)
    if draw(st.booleans()):
        apart = rng.random((n_queries, n_queries)) < 0.6
        apart |= apart.T
    mask = None if draw(st.booleans()) else rng.random(len(sizes)) < 0.7
    return queries, table, apart, mask, draw(st.integers(1, 30))


@pytest.mark.timeout(120)
@settings(deadline=None)
@given(searches(), st.sampled_from([1, 64]), st.sampled_from([1, 40, 1 << 20]))
def test_pictures_are_ranked_by_the_best_of_all_assignments(drawn, candidates, pairs):
    queries, table, apart, mask, top = drawn
    wanted = {
        n: slow_assignment(queries, table.regions(n), apart)
        for n in range(len(table))
        if len(table.regions(n)) and (mask is None or mask[n])
    }
    ranking = sorted(wanted, key=lambda n: (wanted[n][0], n))[:top]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_CANDIDATES", candidates)
        patch.setattr(exact, "_PAIRS", pairs)
        hits = search_objects(queries, table, top=top, mask=mask, apart=apart)
    assert [(hit.index, hit.distance) for hit in hits] == [(n, wanted[n][0]) for n in ranking]
    for hit in hits:
        regions, (_, chosen, each) = table.regions(hit.index), wanted[hit.index]
        assert [match.distance for match in hit.matches] == each
        assert [match.box for match in hit.matches] == [
            None if n == len(regions) else tuple(regions.boxes[n].tolist()) for n in chosen
        ]


@settings(deadline=None)
@given(searches())
def test_objects_that_exclude_others_are_compared_with_every_region(drawn):
    queries, table, *_ = drawn
    found = search_objects(queries[1:], table, top=99, exclude=queries[:1], max_distance=2)
    every = search_objects(queries[1:], table, top=99)
    clean = [
        hit
        for hit in every
        if all(bits(queries[0], code) > 2 for code in table.regions(hit.index).codes)
    ]
    assert found == clean


def table_of(*pictures):
    """Pictures of regions, each a code, a box and a label."""
    regions = [region for picture in pictures for region in picture]
    codes, boxes, labels = zip(*regions, strict=True)
    return CodeTable(
        ids=[f"image{n}" for n in range(len(pictures))],
        sizes=np.full((len(pictures), 2), 100, np.int32),
        classes=("cup", "table"),
        offsets=np.cumsum([0, *map(len, pictures)]),
        boxes=np.array(boxes, np.float32),
        scores=np.ones(len(regions), np.float32),
        labels=np.array(labels),
        region_codes=np.stack(codes),
    )


LEFT, RIGHT, INSIDE = (0, 0, 40, 40), (50, 0, 90, 40), (5, 5, 35, 35)


def test_two_cups_are_found_where_there_are_two():
    two_cups = np.stack([NEAR, NEAR])
    one = [(NEAR, LEFT, 0), (FAR, RIGHT, 1)]
    two = [(np.array([1, 0], np.uint8), LEFT, 0), (np.array([0, 3], np.uint8), RIGHT, 0)]
    hits = search_objects(two_cups, table_of(one, two))
    assert [(hit.index, hit.distance) for hit in hits] == [(1, 3), (0, 16)]
    assert [match.box for match in hits[0].matches] == [LEFT, RIGHT]
    shared = search_objects(two_cups, table_of(one, two), apart=False)
    assert [(hit.index, hit.distance) for hit in shared] == [(0, 0), (1, 2)]


def test_one_cup_that_was_proposed_twice_is_one_cup():
    two_cups = np.stack([NEAR, NEAR])
    twice = [(NEAR, LEFT, 0), (NEAR, INSIDE, 0), (FAR, RIGHT, 1)]
    (hit,) = search_objects(two_cups, table_of(twice))
    assert [match.distance for match in hit.matches] == [0, 16]


def test_a_cup_on_a_table_is_not_the_table():
    cup_and_table = np.stack([NEAR, FAR])
    (hit,) = search_objects(cup_and_table, table_of([(FAR, (0, 0, 90, 90), 1), (NEAR, INSIDE, 0)]))
    assert [match.box for match in hit.matches] == [INSIDE, (0, 0, 90, 90)]
    assert hit.distance == 0


def test_an_object_without_a_region_costs_all_bits_and_has_no_box():
    (hit,) = search_objects(np.stack([FAR, NEAR]), table_of([(NEAR, LEFT, 0)]))
    assert hit.distance == 16
    assert [(match.box, match.distance, match.score) for match in hit.matches] == [
        (None, 16, None),
        (LEFT, 0, 1.0),
    ]


@pytest.mark.parametrize(
    ("first", "second", "of_one_class", "of_two_classes"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), True, True),
        ((0, 0, 10, 10), (0, 0, 10, 5), True, True),  # exactly half
        ((0, 0, 10, 10), (0, 0, 10, 4.9), True, False),
        ((0, 0, 100, 100), (96, 96, 101, 101), False, False),  # 16 of 25
        ((0, 0, 100, 100), (96, 0, 101, 5), True, False),  # exactly four fifths
        ((0, 0, 10, 10), (10, 0, 20, 10), False, False),
        ((0, 0, 0, 0), (0, 0, 0, 0), False, False),
        ((9, 9, 1, 1), (9, 9, 1, 1), False, False),
        ((0, 0, 60_000, 60_000), (0, 0, 60_000, 30_000), True, True),
    ],
)
def test_boxes_that_show_one_object_are_told_by_overlap_and_class(
    first, second, of_one_class, of_two_classes
):
    boxes = np.array([first, second], np.float32)
    for labels, wanted in (([1, 1], of_one_class), ([-1, -1], of_one_class)):
        assert same_objects(boxes, np.array(labels)).tolist() == [[True, wanted], [wanted, True]]
    assert same_objects(boxes, np.array([0, 1]))[0, 1] == of_two_classes


def test_a_search_of_too_many_objects_for_the_regions_says_so(monkeypatch):
    monkeypatch.setattr(assignment, "_MOST_STEPS", 20)
    monkeypatch.setattr(assignment, "_FREE_STEPS", 1)
    rng = np.random.default_rng(0)
    picture = [
        (rng.integers(0, 256, 2, dtype=np.uint8), (9 * n, 0, 9 * n + 20, 9), 0) for n in range(9)
    ]
    queries = rng.integers(0, 256, (9, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="search for fewer objects, or let them share regions"):
        search_objects(queries, table_of(picture))
    assert len(search_objects(queries, table_of(picture), apart=False)) == 1


@pytest.mark.parametrize(
    ("apart", "message"),
    [
        (np.ones((3, 3), bool), r"apart must be \(2, 2\) bool, got \(3, 3\) bool"),
        (np.ones((2, 2)), r"apart must be \(2, 2\) bool, got \(2, 2\) float64"),
        (np.array([[False, True], [False, False]]), "apart must be symmetric"),
    ],
)
def test_pairs_that_do_not_fit_the_objects_are_refused(apart, message):
    with pytest.raises(ValueError, match=message):
        search_objects(np.stack([NEAR, FAR]), table_of([(NEAR, LEFT, 0)]), apart=apart)
