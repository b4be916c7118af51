"""What is kept of what was used last."""

from regionhash.service.lru import LruBytes


def test_what_was_used_last_is_kept_up_to_so_many_bytes():
    kept = LruBytes(30)
    for key in "abc":
        kept.put(key, key.upper(), 10)
    assert kept.get("a") == "A"
    kept.put("d", "D", 10)
    assert kept.get("b") is None  # the others were used after it
    kept.put("c", "new", 11)
    assert [kept.get(key) for key in "abcd"] == [None, None, "new", "D"]


def test_the_newest_is_kept_whatever_its_size():
    kept = LruBytes(30)
    kept.put("a", "A", 10)
    kept.put("b", "B", 1000)
    assert kept.get("a") is None and kept.get("b") == "B"
