import pytest
from PIL import Image

from regionhash.data.images import ImageError
from regionhash.data.oxford import read_oxford
from reporters import told


@pytest.fixture
def oxford(tmp_path):
    """Five pictures of two buildings, one query each, as the archives unpack."""
    root = tmp_path / "oxford5k"
    (root / "images").mkdir(parents=True)
    (root / "gt_files").mkdir()
    for name in ("all_souls_000001", "all_souls_000002", "ashmolean_000001", "ashmolean_000002"):
        Image.new("RGB", (20, 10)).save(root / "images" / f"{name}.jpg")
    Image.new("RGB", (20, 10)).save(root / "images/oxford_000317.jpg")
    write(root, "all_souls_1", "oxc1_all_souls_000001 1.5 2 18.0 9.5")
    write(root, "ashmolean_3", "oxc1_ashmolean_000001 0 0 10 10", good="ashmolean_000001\n", ok="")
    return root


def write(root, query, line, good="all_souls_000001\n", ok="all_souls_000002\n", junk=""):
    folder = root / "gt_files"
    for kind, text in (("query", line + "\n"), ("good", good), ("ok", ok), ("junk", junk)):
        (folder / f"{query}_{kind}.txt").write_text(text)


def test_the_layout_of_oxford_is_read(oxford):
    write(oxford, "ashmolean_3", "oxc1_ashmolean_000001 0 0 10 10", "ashmolean_000001\n", "",
          "ashmolean_000002\noxford_000317\n")  # fmt: skip
    search = read_oxford(oxford)
    assert search.name == "oxford5k"
    assert search.database.ids == (
        "all_souls_000001",
        "all_souls_000002",
        "ashmolean_000001",
        "ashmolean_000002",
        "oxford_000317",
    )
    first, second = search.queries
    assert (first.name, first.image_id) == ("all_souls_1", "all_souls_000001")
    assert first.box == (1.5, 2, 18, 9.5)
    assert first.positives == ("all_souls_000001", "all_souls_000002")
    assert first.junk == ()
    assert second.positives == ("ashmolean_000001",)
    assert second.junk == ("ashmolean_000002", "oxford_000317")
    assert search.database.images[0].shape == (10, 20, 3)


def test_the_layout_of_paris_is_read_and_a_broken_picture_fails_only_when_read(tmp_path):
    root = tmp_path / "paris6k"
    for name in ("defense", "eiffel"):
        (root / "paris" / name).mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(root / "paris" / name / f"paris_{name}_000001.jpg")
    (root / "paris/eiffel/paris_eiffel_000002.jpg").write_bytes(b"")
    (root / "gt_files").mkdir()
    write(root, "eiffel_1", "paris_eiffel_000001 0 0 10 10", "paris_eiffel_000001\n",
          "paris_eiffel_000002\n")  # fmt: skip
    search = read_oxford(root)
    ids = ("paris_defense_000001", "paris_eiffel_000001", "paris_eiffel_000002")
    assert search.database.ids == ids
    assert search.queries[0].image_id == "paris_eiffel_000001"
    with pytest.raises(ImageError, match=r"paris_eiffel_000002\.jpg: the file is empty"):
        search.database.images[2]


def test_positives_without_a_file_are_told_and_stay(oxford):
    (oxford / "images/all_souls_000002.jpg").unlink()
    search = read_oxford(oxford)
    (line,) = told(search.database.notices)
    assert line.endswith("all_souls_000002 has no file; it counts as never found")
    assert "all_souls_000002" in search.queries[0].positives


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("", "oxford5k is missing: it must hold pictures and ground truth"),
        ("images", "no picture"),
        ("gt_files", r"no \*_query\.txt below it"),
    ],
)
def test_what_is_missing_is_told_with_what_to_put_where(oxford, remove, reason):
    (oxford / remove).rename(oxford.parent / "away")
    with pytest.raises(ValueError, match=rf"(?s){reason}.*NAME\.jpg.*QUERY_good\.txt"):
        read_oxford(oxford)


@pytest.mark.parametrize(
    "line", ["", "oxc1_all_souls_000001", "oxc1_all_souls_000001 1 2 3", "a 1 2 3 x", "a 5 5 5 9"]
)
def test_a_broken_query_is_an_error_that_names_the_file(oxford, line):
    write(oxford, "all_souls_1", line)
    with pytest.raises(ValueError, match=r"all_souls_1_query\.txt: must be a picture and a box"):
        read_oxford(oxford)


def test_a_missing_list_or_query_picture_is_an_error_that_names_it(oxford):
    (oxford / "gt_files/all_souls_1_ok.txt").unlink()
    with pytest.raises(ValueError, match=r"all_souls_1_ok\.txt: cannot read .* No such file"):
        read_oxford(oxford)
    write(oxford, "all_souls_1", "oxc1_nowhere 1 2 3 4")
    with pytest.raises(ValueError, match="the picture nowhere of query all_souls_1 is missing"):
        read_oxford(oxford)
