"""What damages files: bytes that rot, and values that somebody has written over others."""

import copy
import random
from typing import Any

ODD: list[Any] = [
    None, True, 0, -1, 7, 20_000, 2**31, 2**63, 10**10, 10**400, 0.5, float("nan"), float("inf"),
    "", "text", "a\nb", "\0", "../..", "x" * 5000, [], [[]], ["a", "a"], [1, "a", None], {},
    {"a": {"b": []}}, [[[[[[[[[[0]]]]]]]]]],
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with some flipped, written over, left out or cut off."""
    damaged = bytearray(content)
    kind = rng.choice(["flip", "flip", "flip", "cut", "zero", "random", "drop", "insert"])
    at = rng.randrange(len(damaged))
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del damaged[at:]
    elif kind == "zero":
        damaged[at : at + 16] = bytes(len(damaged[at : at + 16]))
    elif kind == "random":
        damaged[at : at + 8] = rng.randbytes(len(damaged[at : at + 8]))
    elif kind == "drop":
        del damaged[at : at + rng.randrange(1, 64)]
    else:
        damaged[at:at] = rng.randbytes(rng.randrange(1, 64))
    return bytes(damaged)


def changed(record: Any, rng: random.Random) -> Any:
    """The JSON value with one of the values in it replaced, left out or added."""
    record = copy.deepcopy(record)
    places = list(_places(record))
    if rng.random() < 0.5:  # the values at the top are the ones that are read most
        places = [(holder, key) for holder, key in places if holder is record] or places
    holder, key = rng.choice(places)
    kind = rng.choice(["replace", "replace", "replace", "delete", "add"])
    if kind == "replace":
        holder[key] = copy.deepcopy(rng.choice(ODD))
    elif kind == "delete":
        del holder[key]
    elif isinstance(holder, dict):
        holder["odd"] = copy.deepcopy(rng.choice(ODD))
    else:
        holder.append(copy.deepcopy(rng.choice(ODD)))
    return record


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
