"""What is kept of what was used last."""

from regionhash.service.lru import LruBytes


def test_what_was_used_last_is_kept_up_to_so_many_bytes():
    kept = LruBytes(30)
    for key in "abc":
        kept.put(key, key.upper(), 10)
    assert kept.get("a") == "A"
    kept.put("d", "D", 10)
    assert kept.kept() == ["c", "a", "d"]  # b was used before all of them
    assert kept.get("b") is None
    kept.put("c", "new", 11)
    assert kept.kept() == ["d", "c"] and kept.get("c") == "new"
    kept.drop(lambda key: key == "d")
    assert kept.kept() == ["c"]


def test_the_newest_is_kept_whatever_its_size():
    kept = LruBytes(30)
    kept.put("a", "A", 10)
    kept.put("b", "B", 1000)
    assert kept.kept() == ["b"]
