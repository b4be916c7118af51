"""The address of Milvus, and what needs no server; tests/with_milvus has the rest."""

import sys

import numpy as np
import pytest

from regionhash import extras
from regionhash.engines import Condition, Owner, open_backend
from regionhash.engines.milvus.address import Address
from regionhash.engines.milvus.rows import LIMIT, expression
from regionhash.search.request import Filter

NOBODY = np.zeros(0, np.int64)


def test_an_address_has_a_port_and_options():
    address = Address.read(
        "https://milvus.example?timeout=5&index=BIN_IVF_FLAT&nlist=64&nprobe=8&token=me:a%26b"
    )
    assert address.uri == "https://milvus.example:19530" and address.token == "me:a&b"
    assert address.search_params == {"nprobe": 8} and address.index_params == {"nlist": 64}
    assert address.place == "milvus:https://milvus.example:19530 (BIN_IVF_FLAT)"
    assert Address.read("http://h?token=me:a+b%23%25").token == "me:a+b#%"
    assert Address.read("https://a-b.c_d:5/").place == "milvus:https://a-b.c_d:5"
    assert "me:a&b" not in repr(address)
    assert Address.read("http://h").made == {"index": "BIN_FLAT", "partition": None}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "needs an address like"),
        ("localhost:19530", "needs an address like"),
        ("ftp://host", "needs an address like"),
        ("http://host:port", "needs an address like"),
        ("http://host/database", "needs an address like"),
        ("./codes.db", "needs an address like"),
        ("http://me:secret@host", "takes a password as an option"),
        ("http://host&secret", "needs an address like"),
        ("http://host;token=secret", "needs an address like"),
        ("http://host&token=secret:12", "needs an address like"),
        ("http://me:12/secret@host", "needs an address like"),
        ("http://host:0", "needs an address like"),
        ("http://[::1]:5", "pymilvus takes no address of IPv6"),
        ("http://host?secret=3", "option must be one of timeout, index, nlist, nprobe, part"),
        ("http://host?token=a&secret", "option must be one of .*; in a token, & is written %26"),
        ("http://host?timeout=2;token=secret", "timeout must be a whole number above 0$"),
        ("http://host?timeout=2?token=secret", "timeout must be a whole number above 0$"),
        ("http://host?token=a#secret", "has a '#'; in a token, & is written %26, # %23 and % %25"),
        ("http://host?uri=x", "option must be one of timeout"),
        ("http://host?timeout=0", "timeout must be a whole number above 0$"),
        ("http://host?timeout=", "timeout must be a whole number above 0$"),
        ("http://host?nlist=1e3", "nlist must be a whole number above 0$"),
        ("http://host?index=secret", "index must be one of BIN_FLAT, BIN_IVF_FLAT$"),
        ("http://host?partition=secret", "partition must be one of folder, picture$"),
        ("http://host?nprobe=9&nlist=8", "must be 1 <= nprobe <= nlist <= 65536, got 9 and 8"),
    ],
)
def test_an_address_that_cannot_be_is_refused_in_a_line_without_the_token(address, said):
    with pytest.raises(ValueError, match=said) as caught:
        Address.read(f"{address}&token=secret" if "?" in address else address)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_without_pymilvus_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_backend("milvus:http://localhost", Owner("a", "b", 8, 8, tmp_path))
    assert extras.missing(caught.value) == ('this needs pymilvus: pip install "regionhash[milvus]"')


@pytest.mark.parametrize("spec", ["milvu:http://h?token=secret", "milvus?token=secret", "secret"])
def test_an_engine_that_is_unknown_is_refused_without_what_was_typed(tmp_path, spec):
    with pytest.raises(ValueError, match=r"engine must be one of local, milvus, sql$"):
        open_backend(spec, Owner("a", "b", 8, 8, tmp_path))


def test_a_long_list_of_numbers_is_no_part_of_an_expression():
    for n in (LIMIT, LIMIT + 1):
        numbers = np.arange(n)
        text = expression("region", Condition(Filter(), 10**9, numbers, numbers))
        assert text.count("picture in [0, 1, 2,") == (2 if n == LIMIT else 0)
        assert text.startswith("picture <= 1000000000")


def test_times_that_are_no_numbers_are_no_part_of_an_expression():
    wanted = Filter(after=float("-inf"), before=float("inf"))
    text = expression("picture", Condition(wanted, 7, None, NOBODY))
    assert text == "id <= 7 and taken > -1e+300"
