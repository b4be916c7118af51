"""The pass over packed codes, with every set of instructions, against NumPy's counts of bits."""

import ctypes
import mmap
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regionhash.search import nearest_bags, scan
from regionhash.search.scan import AVAILABLE, BagSearch, scan_bags
from regionhash.search.united import first_least, united_hamming
from regionhash.structures import items_of

COMPILED = AVAILABLE[:-1]
needs_the_pass = pytest.mark.skipif(not COMPILED, reason="installed without a compiler")
FAR = np.uint64(2**64 - 1)


@contextmanager
def searching_with(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGIONHASH_SCAN", name)
        scan.instructions.cache_clear()
        try:
            yield
        finally:
            scan.instructions.cache_clear()


def ranked(search, codes, offsets):
    """Bags and distances of a search, one bag after another."""
    united = np.zeros(len(offsets) - 1, np.int64)
    for query in search.queries:
        each = np.bitwise_count(codes ^ query).sum(axis=1, dtype=np.int64)
        for n, (start, end) in enumerate(pairwise(offsets.tolist())):
            united[n] += min(each[start:end], default=0)
    found = [
        (distance, n)
        for n, distance in enumerate(united.tolist())
        if offsets[n] < offsets[n + 1]
        and (search.mask is None or search.mask[n])
        and (search.max_distance is None or distance <= search.max_distance)
    ]
    return [(n, distance) for distance, n in sorted(found)[: search.top]]


def pairs(answer):
    bags, distances = answer
    assert (bags.dtype, distances.dtype) == (np.int64, np.int64)
    return list(zip(bags.tolist(), distances.tolist(), strict=True))


def laid_out(codes, layout, folder):
    """The same codes in memory that is aligned, or not, or mapped."""
    if layout == "mapped":
        file = folder / "codes"
        file.write_bytes(b"x" + codes.tobytes())  # beside a multiple of everything
        if not codes.size:
            return codes
        return np.memmap(file, np.uint8, "r", 1, codes.shape)
    if layout == "unaligned":
        memory = np.empty(1 + codes.size, np.uint8)[1:]
        memory[:] = codes.ravel()
        codes = memory.reshape(codes.shape)
    elif layout == "strided":
        codes = np.repeat(codes, 2, axis=0)[::2]
    codes.flags.writeable = False
    return codes


@st.composite
def passes(draw):
    """Bags of codes and a few searches."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n_bytes = draw(
        st.sampled_from([1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 24, 31, 32, 33, 63, 64, 65, 128, 200, 512])
        | st.integers(1, 140)
    )
    most = draw(st.sampled_from([0, 1, 2, 9, 70]))
    sizes = rng.integers(0, 1 + most, draw(st.sampled_from([0, 1, 2, 10, 70, 300])))
    if len(sizes) and draw(st.booleans()):
        sizes[rng.integers(len(sizes))] = draw(st.sampled_from([255, 256, 257, 511, 512, 700]))
    offsets = None if draw(st.booleans()) else np.concatenate([[0], np.cumsum(sizes)])
    highest = draw(st.sampled_from([1, 3, 255]))  # few values make ties
    codes = rng.integers(0, highest, (int(sizes.sum()), n_bytes), np.uint8, endpoint=True)
    n = len(codes) if offsets is None else len(sizes)
    searches = []
    for _ in range(draw(st.integers(0, 4))):
        n_queries = draw(st.integers(1, 4))
        share = draw(st.sampled_from([None, None, 0, 0.05, 0.5, 0.9, 1]))
        limit = draw(st.none() | st.sampled_from([0, 1, n_bytes, 4 * n_bytes * n_queries, 10**20]))
        searches.append(
            BagSearch(
                rng.integers(0, highest, (n_queries, n_bytes), np.uint8, endpoint=True),
                draw(st.sampled_from([1, 2, 20, max(n, 1), n + 1, 1 << 62, 10**30])),
                None if share is None else rng.random(n) < share,
                limit,
            )
        )
    return searches, codes, offsets, draw(st.sampled_from(["", "unaligned", "mapped", "strided"]))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", AVAILABLE)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=passes())
def test_bags_are_ranked_as_their_bits_rank_them(name, tmp_path, drawn):
    searches, codes, offsets, layout = drawn
    bounds = np.arange(len(codes) + 1) if offsets is None else offsets
    with searching_with(name):
        found = scan_bags(searches, laid_out(codes, layout, tmp_path), offsets)
    assert len(found) == len(searches)
    for search, answer in zip(searches, found, strict=True):
        assert pairs(answer) == ranked(search, codes, bounds)


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("n_bytes", [8191, 8192, 20_000])
def test_distances_of_very_long_codes_are_counted_in_full(name, n_bytes):
    codes = np.zeros((9, n_bytes), np.uint8)
    codes[1:, : n_bytes - 1] = 255
    with searching_with(name):
        bags, distances = nearest_bags(~codes[0], codes, top=9)
    assert bags.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert distances.tolist() == [8] * 8 + [8 * n_bytes]


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("n_bytes", [1, 6, 8, 20, 64])
def test_what_follows_the_last_code_is_no_code(name, n_bytes):
    """Memory before and after is like the query, the codes are its opposite."""
    for size in (1, 2, 3, 5, 7, 255, 257, 260, 263, 513):
        memory = np.zeros((size + 64, n_bytes), np.uint8)
        codes = memory[32:-32]
        codes[:] = 255
        with searching_with(name):
            found = nearest_bags(memory[0], codes, np.array([0, size]), top=2)
        assert pairs(found) == [(0, 8 * n_bytes)]


@pytest.mark.parametrize("name", AVAILABLE)
def test_nothing_is_read_beyond_the_last_code(name):
    """The codes end where memory does: a page that cannot be read follows."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + page
    protect = ctypes.CDLL(None).mprotect
    assert not protect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0)  # PROT_NONE
    for n_bytes in (1, 3, 6, 8, 12, 40, 64, 100):
        size = n_bytes * 13
        codes = np.frombuffer(memory, np.uint8, size, page - size).reshape(13, n_bytes)
        with searching_with(name):
            assert len(nearest_bags(codes[0], codes, top=20)[0]) == 13


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("top", [1, 7, 400, 20_000])
def test_a_large_table_is_ranked_as_sorting_ranks_it(name, top):
    """The level falls from hit to hit here: the later a bag, the nearer it is."""
    by_distance = np.packbits(np.arange(512) < np.arange(513)[:, None], axis=1)
    distances = np.sort(np.random.default_rng(0).integers(100, 500, 30_000))[::-1]
    distances[[5, 29_998]] = 3
    codes, offsets = by_distance[distances], np.arange(0, 30_001, 3)
    each = distances.reshape(-1, 3).min(axis=1)
    for mask in (None, np.arange(10_000) < 9_000, np.arange(10_000) % 40 == 0):
        searched = np.arange(10_000) if mask is None else np.flatnonzero(mask)
        wanted = searched[np.argsort(each[searched], kind="stable")][:top]
        with searching_with(name):
            bags, found = nearest_bags(by_distance[0], codes, offsets, top=top, mask=mask)
        np.testing.assert_array_equal(bags, wanted)
        np.testing.assert_array_equal(found, each[wanted])


@pytest.mark.parametrize("dtype", [np.int32, np.uint64, ">i8"])
def test_offsets_of_any_integers_divide_the_codes(dtype):
    codes = np.eye(8, dtype=np.uint8)
    offsets = np.array([0, 3, 3, 8], dtype)
    assert pairs(nearest_bags(codes[4], codes, offsets, top=3)) == [(2, 0), (0, 2)]


# -- what does not fit ----------------------------------------------------------------------------

CODES = np.zeros((4, 8), np.uint8)
OFFSETS = np.array([0, 2, 4])


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": CODES[0]}, r"codes must be \(M, B\) uint8, got \(8,\) uint8"),
        ({"codes": CODES.astype(np.int8)}, r"codes must be \(M, B\) uint8, got \(4, 8\) int8"),
        ({"codes": CODES[:, :7]}, "one length, got 8 and 7 bytes"),
        (
            {"queries": CODES.view(np.uint64)},
            r"queries must be \(N, B\) uint8, got \(4, 1\) uint64",
        ),
        ({"queries": CODES[:0]}, r"queries must hold at least one code, got \(0, 8\)"),
        (
            {"queries": CODES[:, :0], "codes": CODES[:, :0]},
            r"queries must hold at least one code, got \(4, 0\)",
        ),
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"max_distance": -1}, "max_distance must not be negative, got -1"),
        ({"mask": np.ones(3, bool)}, r"mask must be \(2,\) bool, got \(3,\) bool"),
        ({"mask": np.ones(2, np.uint8)}, r"mask must be \(2,\) bool, got \(2,\) uint8"),
        (
            {"offsets": np.array([0, 4.0])},
            r"offsets must be \(N \+ 1,\) integers, got \(2,\) float",
        ),
        ({"offsets": OFFSETS[:0]}, r"offsets must be \(N \+ 1,\) integers, got \(0,\)"),
        ({"offsets": OFFSETS[None]}, r"offsets must be \(N \+ 1,\) integers, got \(1, 3\)"),
        ({"offsets": np.array([1, 4])}, "offsets must "),
        ({"offsets": np.array([0, 3])}, "offsets must rise from 0 to 4"),
        ({"offsets": np.array([0, 5])}, "offsets must rise from 0 to 4"),
        ({"offsets": np.array([0, 3, 2, 4])}, "offsets must rise from 0 to 4"),
        ({"offsets": np.array([0, 5, 4])}, "offsets must rise from 0 to 4"),
        ({"offsets": np.array([0, -1, 4])}, "offsets must rise from 0 to 4"),
        ({"offsets": np.array([0, 1 << 62, 4])}, "offsets must rise from 0 to 4"),
        ({"offsets": np.array([0])}, "offsets must rise from 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, message):
    wanted = {"codes": CODES, "offsets": OFFSETS, "queries": CODES[:1], "top": 3} | change
    codes, offsets = wanted.pop("codes"), wanted.pop("offsets")
    with searching_with(name), pytest.raises(ValueError, match=message):
        scan_bags([BagSearch(**wanted)], codes, offsets)


@needs_the_pass
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mmx", CODES, 8, OFFSETS, None, ()), "does not have these instructions"),
        (("portable", CODES, 5, OFFSETS, None, ()), r"codes must be \(M, B\) uint8"),
        (("portable", CODES, 0, OFFSETS, None, ()), r"codes must be \(M, B\) uint8"),
        (("portable", CODES, -8, OFFSETS, None, ()), r"codes must be \(M, B\) uint8"),
        (("portable", CODES, 8, CODES[0, :7], None, ()), r"offsets must be \(N \+ 1,\) int64"),
        (("portable", CODES, 8, CODES[:0], None, ()), r"offsets must be \(N \+ 1,\) int64"),
        (("portable", CODES, 8, CODES.ravel()[1:9], None, ()), r"offsets must be \(N \+ 1,\)"),
        (("portable", CODES, 8, OFFSETS + 1, None, ()), "offsets must begin with 0"),
        (("portable", CODES, 8, OFFSETS, CODES[0, :3], ()), "mask must be"),
        (("portable", CODES, 8, OFFSETS, None, ((CODES[0, :7], None, OFFSETS),)), "queries must"),
        (("portable", CODES, 8, OFFSETS, None, ((CODES[:0], None, OFFSETS),)), "queries must"),
        (
            ("portable", CODES, 8, OFFSETS, None, ((np.zeros(1 << 21), None, OFFSETS),)),
            r"less than 2\^24 bits",
        ),
        (("portable", CODES, 8, OFFSETS, None, ((CODES[0], CODES[0], OFFSETS),)), "mask must be"),
        (("portable", CODES, 8, OFFSETS, None, ((CODES[0], None, OFFSETS[:0]),)), "found must be"),
        (("portable", CODES, 8, OFFSETS, None, ((CODES[0], None, CODES[0, 1:]),)), "found must"),
    ],
)
def test_the_pass_itself_trusts_no_size(arguments, message):
    from regionhash.search import _scan

    with pytest.raises(ValueError, match=message):
        _scan.nearest(*arguments)


@needs_the_pass
def test_the_pass_itself_trusts_no_type():
    from regionhash.search import _scan

    keys = np.full(3, FAR)
    keys.flags.writeable = False
    for wrong in (
        ("portable", CODES[:, ::2], 4, None, None, ()),
        ("portable", "codes", 4, None, None, ()),
        ("portable", CODES, 8, None, None, []),
        ("portable", CODES, 8, None, None, ((CODES[0], None),)),
        ("portable", CODES, 8, None, None, ("abc", None)),
        ("portable", CODES, 8, None, None, ((CODES[0], None, keys),)),
        ("portable", CODES, 8, None, None, ((None, None, np.full(3, FAR)),)),
        (),
    ):
        with pytest.raises((TypeError, BufferError, ValueError)):
            _scan.nearest(*wrong)


@needs_the_pass
def test_offsets_that_change_meanwhile_lead_to_no_other_memory():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (20_000, 8), np.uint8)
    good = np.arange(0, 20_001, 10)
    offsets, done = good.copy(), threading.Event()

    def change():
        while not done.is_set():
            offsets[rng.integers(1, len(offsets))] = rng.integers(-(1 << 62), 1 << 62)
            offsets[:] = good

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            try:
                (bags, _distances), *_ = scan_bags(
                    [BagSearch(codes[:3], 2000), BagSearch(codes[:1], 2000)], codes, offsets
                )
            except ValueError as error:
                assert "offsets must rise" in str(error)
            else:
                assert ((bags >= 0) & (bags < len(good))).all()
    finally:
        done.set()
        thread.join()


# -- other threads --------------------------------------------------------------------------------


def test_many_threads_find_the_same():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (60_000, 8), np.uint8)
    offsets = np.arange(0, 60_001, 6)
    searches = [BagSearch(codes[n : n + 1 + n % 3], 50, rng.random(10_000) < 0.5) for n in range(8)]
    wanted = [pairs(scan_bags([search], codes, offsets)[0]) for search in searches]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: scan_bags(searches, codes, offsets), range(40)):
            assert [pairs(answer) for answer in found] == wanted


@needs_the_pass
def test_other_threads_run_meanwhile():
    codes = np.zeros((1_000_000, 8), np.uint8)
    searches = [BagSearch(codes[:1], 1)] * 100
    thread = threading.Thread(target=scan_bags, args=(searches, codes))
    ticks = 0
    thread.start()
    while thread.is_alive():
        ticks += 1
        thread.join(0.0005)
    assert ticks > 10


INTERRUPTED = """
import signal
import numpy as np
from regionhash.search.scan import BagSearch, scan_bags

n_signals = 0

def interrupt(*_):
    global n_signals
    n_signals += 1
    if n_signals == 2:  # the first alone could have waited for the end of the pass
        raise KeyboardInterrupt

codes = np.zeros((1 << 28, 8), np.uint8)  # 2 GiB of addresses, but hardly any memory
signal.signal(signal.SIGALRM, interrupt)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    scan_bags([BagSearch(codes[:1], 3)], codes)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@needs_the_pass
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of POSIX")
def test_a_long_pass_can_be_interrupted():
    """In a process of its own: a late signal must not end this one."""
    command = [sys.executable, "-c", INTERRUPTED]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "interrupted\n", ran.stderr


# -- the choice -----------------------------------------------------------------------------------


def test_the_fastest_is_taken_and_a_variable_names_another_one(monkeypatch):
    monkeypatch.delenv("REGIONHASH_SCAN", raising=False)
    scan.instructions.cache_clear()
    assert scan.instructions() == AVAILABLE[0]
    with searching_with("numpy"):
        assert scan.instructions() == "numpy"


def test_what_the_machine_cannot_do_is_refused():
    with (
        searching_with("mmx"),
        pytest.raises(ValueError, match=f"^REGIONHASH_SCAN must be one of .*{AVAILABLE[-1]} on"),
    ):
        nearest_bags(CODES[0], CODES, top=1)


def test_without_a_compiler_numpy_searches():
    code = """
import sys
sys.modules["regionhash.search._scan"] = None
import numpy as np
from regionhash.search import nearest_bags, scan
codes = np.eye(8, dtype=np.uint8)
print(scan.AVAILABLE, nearest_bags(codes[4], codes, np.array([0, 3, 3, 8]), top=3))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "('numpy',) (array([2, 0]), array([0, 2]))"


@given(
    lengths=st.lists(st.integers(0, 4), max_size=8),
    rows=st.lists(st.integers(0, 7), max_size=8),
    seed=st.integers(0, 99),
)
def test_the_items_of_bags_and_the_least_of_each_are_those_of_a_loop(lengths, rows, seed):
    offsets = np.cumsum([0, *lengths])
    chosen = np.array([row for row in rows if row < len(lengths)], np.int64)
    items, bounds = items_of(offsets, chosen)
    loop = [[*range(offsets[row], offsets[row + 1])] for row in chosen]
    assert items.tolist() == [item for bag in loop for item in bag]
    assert np.diff(bounds).tolist() == [len(bag) for bag in loop] and bounds[0] == 0
    full = chosen[[bool(bag) for bag in loop]]
    items, bounds = items_of(offsets, full)
    values = np.random.default_rng(seed).integers(0, 3, len(items))
    firsts = [start + int(np.argmin(values[start:end])) for start, end in pairwise(bounds)]
    assert first_least(values, bounds).tolist() == firsts


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("n_each", [1, 5, 40])
def test_filters_of_all_kinds_on_many_bags(name, n_each):
    """Bags are left out in groups, unless the bags beside the wanted ones mislead the search."""
    rng = np.random.default_rng(n_each)
    lengths = rng.integers(0, 2 * n_each + 1, 40_003 // n_each)
    offsets = np.cumsum([0, *lengths])
    codes = rng.integers(0, 256, (offsets[-1], 3), dtype=np.uint8)
    query, n_bags = codes[17], len(lengths)
    united = united_hamming(query[None], codes, offsets)
    masks = [rng.random(n_bags) < share for share in (0.003, 0.05, 0.5, 0.95)]
    masks += [united > level for level in np.quantile(united, [0.01, 0.4, 0.9])]
    masks += [np.arange(n_bags) >= n_bags - 3, np.zeros(n_bags, bool)]
    with searching_with(name):
        for mask in masks:
            found, distances = nearest_bags(query, codes, offsets, top=30, mask=mask)
            wanted = np.flatnonzero(mask & (lengths > 0))
            best = wanted[np.argsort(united[wanted], kind="stable")][:30]
            np.testing.assert_array_equal(found, best)
            np.testing.assert_array_equal(distances, united[best])
        searches = [BagSearch(query[None], 30, mask) for mask in masks]
        for mask, (found, _) in zip(masks, scan_bags(searches, codes, offsets), strict=True):
            alone, _ = nearest_bags(query, codes, offsets, top=30, mask=mask)
            np.testing.assert_array_equal(found, alone)
