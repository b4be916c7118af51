import csv
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from conftest import build_tiny
from regionhash.codes import hamming_distances, unpack_bits
from regionhash.data import open_dataset
from regionhash.data.instances import read_instances
from regionhash.data.transforms import to_input
from regionhash.evaluation import dense_ranks
from regionhash.experiments.drh import PRESETS, DRHOptions
from regionhash.experiments.drh_features import instance_features, windows_kind
from regionhash.experiments.drh_run import (
    _AllRegions,
    _AllRegionsCosine,
    _hasher,
    _Steps,
    open_queries,
    refine_levels,
    reproduce,
)
from regionhash.models.checkpoints import Checkpoint, save_checkpoint
from regionhash.models.drh import fit_drh
from regionhash.parts.backbones import stack_images
from regionhash.parts.windows import snap_boxes
from regionhash.reporter import SILENT
from regionhash.search.steps import Ranking
from regionhash.structures import CodeTable
from reporters import Recording

PRESET = "drh/instances"
OVERLAPS = (0.4, 0.6)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Ten scenes of digits with a table of their boxes, and a broken picture among distractors."""
    root = tmp_path_factory.mktemp("flat")
    (root / "images").mkdir()
    (root / "more").mkdir()
    scenes = open_dataset("digits:test:12")
    lines = ["image,label,xmin,ymin,xmax,ymax"]
    for n in range(10):
        Image.fromarray(scenes.images[n][: 160 if n % 2 else 120]).save(root / f"images/{n}.png")
        target = scenes.targets[n]
        for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            lines.append(f"{n}.png,{label},{','.join(map(str, box))}")
    (root / "objects.csv").write_text("\n".join(lines) + "\n")
    for n in (10, 11):
        Image.fromarray(scenes.images[n]).save(root / f"more/{n}.png")
    (root / "more/broken.png").write_bytes(b"")
    return root


@pytest.fixture
def small_preset(monkeypatch):
    preset = replace(PRESETS[PRESET], bits=(128, 512, 1024), overlaps=OVERLAPS)
    monkeypatch.setitem(PRESETS, PRESET, preset)


def options(flat, **changes):
    settings = {"backbone": "tiny_fpn", "weights": "none", "short": 64}
    return DRHOptions(**settings | {"distractors": (f"folder:{flat}/more",)} | changes)


@pytest.mark.slow
def test_a_preset_runs_from_pictures_to_the_report_and_reads_them_once(
    flat, small_preset, saved, tmp_path
):
    told = Recording()
    torch.manual_seed(0)
    chosen = options(flat, detector=saved.folder)
    page = reproduce(PRESET, flat, tmp_path, chosen, told)
    text = page.read_text()
    assert "Database: objects + more, 12 pictures, hash of ids" in text
    assert "1 could not be read" in text and "broken.png: the file is empty" in text
    settings = "--backbone tiny_fpn --weights none --short 64 --set 'distractors=[\"folder:more\"]'"
    asked = f"regionhash reproduce {PRESET} --data {flat.name} {settings}"
    assert f"Command: `{asked} --detector {saved.folder.name}`" in text
    assert f"RPN: that of a region-dh of tiny_fpn, model {saved.checkpoint.model_hash}," in text
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["map"]) <= 1 for row in rows)
    per_table = [[row["method"] for row in rows if row["table"] == n] for n in "1234"]
    assert [len(table) for table in per_table] == [2 * 3 + 1, 3 * 2 * 4, 2 + 4 * 4 + 4, 2 * 5 + 8]
    by_method = {(row["table"], row["method"], row["bits"]): row["map"] for row in rows}
    # what must be equal: the same method in two tables, and M beyond the whole database
    assert by_method["1", "gDRH", "1024"] == by_method["3", "gDRH", "1024"]
    assert by_method["3", "gDRH+gQE+lDRH+lQE (q = 6)", "1024"] == by_method["4", "DRH", "1024"]
    way = "gDRH+lDRH (windows, overlap 0.6; M = {})"
    assert by_method["2", way.format(100), "1024"] == by_method["2", way.format(800), "1024"]
    for planes in ("", ", random hyperplanes"):
        whole, local = f"gDRH{planes}", f"gDRH+lDRH{planes}"
        assert by_method["1", whole, "1024"] == by_method["4", whole, "1024"]
        assert by_method["2", way.format(400) + planes, "1024"] == by_method["3", local, "1024"]
        assert by_method["3", local, "1024"] == by_method["4", local, "1024"]
        assert f"| codes of 512 bits{planes} |" in text
    for method in ("gDRH", "DRH"):
        assert (
            by_method["4", method, "1024"]
            != by_method["4", f"{method}, random hyperplanes", "1024"]
        )
    assert re.search(r"\| windows, overlap 0.6, \d+ boxes \| RPN, \d+ boxes \|", text)
    assert "| 128 max-pooled floats |" in text
    assert (tmp_path / "map.png").stat().st_size > 1000
    told.notes.clear()
    again = reproduce(PRESET, flat, tmp_path, chosen, told)
    assert not any("computing the features" in line for line in told.notes)
    assert again.read_text().split("## Table 2")[0] == text.split("## Table 2")[0]


@pytest.fixture(scope="module")
def model():
    return build_tiny("drh", n_bits=64, n_classes=0).eval()


def test_codes_of_kept_features_are_those_of_the_model(flat, model, tmp_path):
    search = read_instances(flat / "objects.csv", images_dir=flat / "images")
    features = instance_features(
        model,
        search,
        tmp_path,
        short=64,
        overlaps=OVERLAPS,
        detector=None,
        settings=(),
        reporter=SILENT,
    )
    regions = features.database[windows_kind(0.6)]
    assert features.ids == search.database.ids
    assert regions.offsets[-1] == len(regions.values)
    fit_drh(model, torch.from_numpy(regions.values.astype(np.float32)), n_steps=5)
    codes = _hasher(model)
    kept, asked = unpack_bits(regions.map(codes)), unpack_bits(features.queries["MAC"].map(codes))
    for n, image in enumerate(search.database.images):
        (encoded,) = model.encode([to_input(image, 64)[0]])
        kept_bits = kept[regions.offsets[n] : regions.offsets[n + 1]]
        # half precision may turn a bit whose activation is almost zero
        assert (kept_bits != unpack_bits(encoded.regions.codes)).mean() < 0.01
    for bits, query in zip(asked, search.queries, strict=True):
        image = search.database.images[search.database.ids.index(query.image_id)]
        tensor, frame = to_input(image, 64)
        (encoded,) = model.encode_boxes([tensor], [frame.to_input(torch.tensor([query.box]))])
        assert (bits != unpack_bits(encoded.codes)[0]).mean() < 0.05
    assert len(np.unique(asked, axis=0)) > 10


def test_features_of_proposals_are_the_maxima_in_the_boxes_of_the_detector(
    flat, model, saved, tmp_path
):
    search = read_instances(flat / "objects.csv", images_dir=flat / "images")
    read = partial(
        instance_features, model, search, short=64, overlaps=(), settings=(), reporter=SILENT
    )
    regions = read(tmp_path, detector=saved.folder).database["RPN"]
    for n, image in enumerate(search.database.images):
        tensor, _ = to_input(image, 64)
        batch, sizes = stack_images([tensor])
        with torch.no_grad():
            maps, _ = saved.model.backbone(batch)
            (boxes,), _, _ = saved.model.rpn(ImageList(batch, sizes), maps)
            top = model.backbone.top(batch)[0]
        stride = sizes[0][1] / top.shape[2]
        bag = regions.values[regions.offsets[n] : regions.offsets[n + 1]].astype(np.float32)
        assert len(bag) > 1 + len(boxes) > 1  # this detector keeps 8 proposals, the preset 300
        whole = boxes.new_tensor([[0, 0, sizes[0][1], sizes[0][0]]])
        cells = snap_boxes(torch.cat([whole, boxes]), stride, *top.shape[1:])
        for got, (x0, y0, x1, y1) in zip(bag[: len(cells)], cells, strict=True):
            expected = top[:, y0:y1, x0:x1].amax((1, 2))
            np.testing.assert_allclose(got, expected / expected.norm(), atol=1e-3)


def test_only_a_detector_proposes(flat, model, tmp_path):
    search = read_instances(flat / "objects.csv", images_dir=flat / "images")
    bare = Checkpoint("drh", {"n_bits": 64, "backbone": "tiny_fpn", "weights": "none"}, (), 64)
    save_checkpoint(tmp_path / "drh", model, bare)
    with pytest.raises(ValueError, match="drh: a drh proposes no regions"):
        instance_features(
            model,
            search,
            tmp_path / "features",
            short=64,
            overlaps=(),
            detector=tmp_path / "drh",
            settings=(),
            reporter=SILENT,
        )


def random_table(n=9, n_bytes=2, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 5, n))])
    m = int(offsets[-1])
    codes = rng.integers(0, 256, (m, n_bytes), dtype=np.uint8)
    return CodeTable(
        ids=[str(row) for row in range(n)],
        sizes=np.ones((n, 2), np.int32),
        image_codes=codes[offsets[:-1]],
        offsets=offsets,
        boxes=np.zeros((m, 4), np.float32),
        scores=np.ones(m, np.float32),
        labels=np.zeros(m, np.int64),
        region_codes=codes,
    )


def slow_levels(query, table, m, q, steps):
    """The steps of the paper with one tuple of distances per picture, the last step first."""
    codes = [table.regions(n).codes for n in range(len(table))]
    whole = [hamming_distances(query[None], table.image_codes)[0, n] for n in range(len(table))]
    keys = {n: (whole[n],) for n in range(len(table))}
    # those at one place are taken in the order of the table, as the search does
    order = sorted(keys, key=lambda n: (keys[n], n))
    first = order[:m]

    def near(asked, n):
        return int(hamming_distances(np.stack(asked), codes[n]).min())

    for step in steps:
        if step == "gQE":
            best = [table.image_codes[n] for n in first[:q]]
            new = {
                n: min(hamming_distances(b[None], table.image_codes)[0, n].item() for b in best)
                for n in first
            }
        elif step == "lDRH":
            new = {n: near([query], n) for n in first}
        else:
            best = [
                codes[n][hamming_distances(query[None], codes[n])[0].argmin()] for n in first[:q]
            ]
            new = {n: near(best, n) for n in first}
        keys |= {n: (new[n], *keys[n]) for n in first}
        first = sorted(first, key=lambda n: (new[n], first.index(n)))
    behind = set(order[m:]) if steps else set()
    places = [(n in behind, keys[n]) for n in range(len(table))]
    levels = sorted(set(places))
    return [levels.index(place) for place in places]


@pytest.mark.parametrize(
    ("steps", "arguments"),
    [
        ((), {}),
        (("lDRH",), {"local": True}),
        (("gQE",), {"expand_global": True}),
        (("gQE", "lDRH"), {"expand_global": True, "local": True}),
        (("lDRH", "lQE"), {"local": True, "expand_local": True}),
        (
            ("gQE", "lDRH", "lQE"),
            {"expand_global": True, "local": True, "expand_local": True},
        ),
    ],
)
def test_levels_of_steps_are_those_of_the_paper(steps, arguments):
    for seed in range(5):
        table = random_table(n_bytes=1, seed=seed)  # few distances, many ties
        queries = np.random.default_rng(seed + 100).integers(0, 256, (3, 1), dtype=np.uint8)
        ranks = _Steps(queries, table, candidates=5, expansion=2, **arguments)
        assert ranks.shape == (3, 9)
        for query, levels in zip(queries, ranks[0:3], strict=True):
            assert levels.tolist() == slow_levels(query, table, 5, 2, steps)


def test_a_step_refines_the_order_before_it_and_leaves_the_rest_behind():
    before = np.array([2, 0, 1, 1, 3])
    ranking = Ranking(np.array([3, 1, 2]), np.array([4, 7, 7]))
    assert refine_levels(before, ranking).tolist() == [3, 1, 2, 0, 4]
    assert refine_levels(before, Ranking(np.array([2, 3]), np.array([5, 5]))).tolist() == [
        2, 1, 0, 0, 3,
    ]  # fmt: skip


def test_all_regions_are_compared():
    table = random_table()
    queries = np.random.default_rng(1).integers(0, 256, (4, 2), dtype=np.uint8)
    expected = [
        [int(hamming_distances(query[None], table.regions(n).codes).min()) for n in range(9)]
        for query in queries
    ]
    assert _AllRegions(queries, table)[1:4].tolist() == expected[1:]


def test_all_regions_are_compared_by_cosine_across_blocks():
    rng = np.random.default_rng(2)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 4, 700))])
    regions = rng.standard_normal((offsets[-1], 6), dtype=np.float32)
    queries = rng.standard_normal((3, 6), dtype=np.float32)
    best = np.array(
        [[(regions[a:b] @ query).max() for a, b in pairwise(offsets)] for query in queries]
    )
    ranks = _AllRegionsCosine(queries, regions, offsets)
    assert ranks.shape == (3, 700)
    assert ranks[0:3].tolist() == dense_ranks(-best).tolist()


@pytest.mark.parametrize(
    ("preset", "folder", "n_pictures"),
    [
        ("drh/oxford5k", "oxford5k", 2),
        ("drh/oxford105k", "oxford5k", 5),
        ("drh/paris6k", "paris6k", 2),
        ("drh/paris106k", "paris6k", 5),
    ],
)
def test_the_large_presets_add_the_pictures_of_flickr(preset, folder, n_pictures, tmp_path):
    for name_of_folder, names in ((folder, ("sight_1", "sight_2")), ("flickr100k", "abc")):
        (tmp_path / name_of_folder).mkdir()
        for name in names:
            Image.new("RGB", (20, 10)).save(tmp_path / name_of_folder / f"{name}.jpg")
    for kind, text in (("query", "sight_1 0 0 9 9"), ("good", "sight_2"), ("ok", ""), ("junk", "")):
        (tmp_path / folder / f"sight_1_{kind}.txt").write_text(text)
    search = open_queries(PRESETS[preset], tmp_path, DRHOptions())
    assert len(search.database) == n_pictures
    assert [query.positives for query in search.queries] == [("sight_2",)]


def test_missing_data_says_what_to_put_where(tmp_path):
    for name, what in ((PRESET, "objects.csv"), ("drh/paris106k", "flickr100k")):
        with pytest.raises(ValueError, match=rf"(?s)this preset needs, below .*{what}"):
            reproduce(name, tmp_path, tmp_path / "out", DRHOptions(), SILENT)


def test_presets_are_those_of_the_paper():
    assert set(PRESETS) == {
        "drh/oxford5k", "drh/oxford105k", "drh/paris6k", "drh/paris106k", "drh/instances",
    }  # fmt: skip
    assert all(preset.bits == (128, 256, 512, 1024, 4096) for preset in PRESETS.values())
    assert PRESETS["drh/oxford5k"].overlaps == (0.4, 0.5, 0.6, 0.7)
