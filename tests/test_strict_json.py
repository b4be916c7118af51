"""JSON of strangers: an object of sane size, or the reason in one short line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionhash.files.strict_json import class_names, field, parse_object, whole_number
from regionhash.files.text import shown

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_json_writes_is_read(record):
    assert parse_object(json.dumps(record).encode()) == record


@given(VALUES)
def test_any_value_is_shown_in_one_short_line(value):
    said = shown(value)
    assert "\n" not in said and len(said) < 1000


def test_a_deep_value_is_shown_and_refused():
    deep: list[object] = []
    for _ in range(900):
        deep = [deep]
    assert len(shown(deep)) < 100
    for depth, ok in ((31, True), (32, False)):
        content = b'{"a":' * depth + b"1" + b"}" * depth
        if ok:
            assert parse_object(content)
        else:
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_object(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"3", "must be an object, got 3"),
        (b"null", "must be an object, got None"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        (b"{}" + b" " * (16 << 20), "longer than 16 MiB"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
        ('{"a": 1}'.encode("utf-16"), "can't decode byte"),
    ],
)
def test_what_is_no_object_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        parse_object(content)


@pytest.mark.parametrize("value", [None, True, 1.0, "1", [1], {"a": 1}, 10**30, -1])
def test_a_field_has_its_type_and_its_range(value):
    with pytest.raises(ValueError, match=r"^n must be "):
        whole_number({"n": value}, "n", 0, 9)
    with pytest.raises(ValueError, match=r"^'n' is missing"):
        field({}, "n", int)
    assert whole_number({"n": 9}, "n", 0, 9) == 9


def test_classes_are_distinct_names():
    assert class_names({"classes": ["a", "ä b"]}) == ("a", "ä b")
    assert class_names({"classes": []}) == ()
    for classes in (["a", "a"], ["a", ""], ["a", 1], ["a", ["b"]], "ab", None):
        with pytest.raises(ValueError, match=r"^classes must be "):
            class_names({"classes": classes})
