"""The recipes of docs/engines.md that can be run here."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cli_runner import run
from regionhash.collection import Collection
from regionhash.search.scan import BagSearch, scan_bags

pytest.importorskip("pyarrow")

PAGE = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()


def recipe(section):
    """The Python of a section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.fixture
def exported(photo_collection, tmp_path, monkeypatch):
    """The snapshot and the table of the photos, whose export is in the working directory."""
    monkeypatch.chdir(tmp_path)
    run("export", photo_collection, "-o", "codes.parquet")
    with Collection.open(photo_collection) as collection:
        return collection.snapshot, collection.code_file().table


def test_faiss_finds_the_nearest_pictures(exported):
    snapshot, table = exported
    given = {}
    exec(recipe("FAISS"), given)
    rng = np.random.default_rng(0)
    queries = [*table.region_codes[::7], *rng.integers(0, 256, (20, 2), dtype=np.uint8)]
    for top in (1, 2, 5, 6, 20):
        for query in queries:
            ((bags, wanted),) = scan_bags(
                [BagSearch(query[None], top)], table.region_codes, table.offsets
            )
            numbers, distances = given["nearest_pictures"](query, top)
            assert distances.tolist() == wanted.tolist()
            assert numbers.tolist() == snapshot.rows[bags].tolist()


def test_the_feed_of_vespa_has_all_codes(exported):
    snapshot, table = exported
    exec(recipe("Vespa"), {})
    fed = [json.loads(line) for line in Path("feed.jsonl").read_text().splitlines()]
    assert [one["put"] for one in fed] == [f"id:photos:picture::{n}" for n in snapshot.rows]
    for n, one in enumerate(fed):
        blocks = one["fields"]["regions"]["blocks"]
        codes = [bytes.fromhex(blocks[str(number)]) for number in range(len(blocks))]
        assert codes == [code.tobytes() for code in table.regions(n).codes]
        assert one["fields"]["taken"] == pytest.approx(snapshot.taken[n], abs=1e-5)
