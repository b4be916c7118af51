"""Arguments of builders against their signatures."""

from pathlib import Path
from typing import Literal

import pytest

from regionhash.models.parameters import checked, defaults_of, types_of


def build(n: int, rate: float = 0.5, *, name: str | None = None, kind: Literal["a", "b"] = "a"):
    """A builder."""


def test_types_and_defaults_are_those_of_the_signature():
    assert list(types_of(build)) == ["n", "rate", "name", "kind"]
    assert defaults_of(build) == {"rate": 0.5, "name": None, "kind": "a"}


def test_a_value_of_the_right_type_is_taken():
    types = types_of(build)
    for name, value in (("n", 3), ("rate", 0.25), ("name", "x"), ("name", None), ("kind", "b")):
        assert checked(name, value, types[name]) == value
    made = checked("rate", 1, types["rate"])
    assert made == 1.0 and type(made) is float


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", "3", "n: must be int, got '3'"),
        ("n", True, "n: must be int, got True"),
        ("n", None, "n: must be int, got None"),
        ("rate", "a", "rate: must be float, got 'a'"),
        ("rate", float("nan"), "rate: must be finite, got nan"),
        ("rate", -float("inf"), "rate: must be finite, got -inf"),
        ("rate", 10**400, "rate: must be finite, got 1000"),
        ("name", 3, "name: must be str, got 3"),
        ("name", ["a"], "name: must be str, got "),
        ("kind", "c", "kind: must be one of a, b, got 'c'"),
        ("kind", ["a"], "kind: must be one of a, b, got "),
    ],
)
def test_another_value_is_refused_with_the_right_type(name, value, message):
    with pytest.raises(ValueError) as caught:
        checked(name, value, types_of(build)[name])
    assert str(caught.value).startswith(message)


def test_paths_and_tuples_are_made_of_what_a_setting_can_hold():
    assert checked("folder", "runs/a", Path | None) == Path("runs/a")
    assert checked("folder", Path("a"), Path | None) == Path("a")
    assert checked("folder", None, Path | None) is None
    assert checked("names", ["a", "b"], tuple[str, ...]) == ("a", "b")
    assert checked("names", "a", tuple[str, ...]) == ("a",)
    for value, hint in ((3, Path | None), ("", Path | None), ("a\0", Path), ([3], tuple[str, ...])):
        with pytest.raises(ValueError, match="must be "):
            checked("given", value, hint)
