import os
from pathlib import Path

import pytest
from PIL import Image

from regionhash.data.csv_table import read_csv
from regionhash.data.images import ImageError
from reporters import told

DATA = Path(os.environ.get("REGIONHASH_DATA", Path(__file__).parents[2] / "shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs in {DATA}")
HEADER = "image,label,x0,y0,x1,y1\n"


@pytest.fixture
def table(tmp_path):
    """Where a table is to be written, beside a picture "a.png" of 8 x 10 pixels."""
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    return tmp_path / "table.csv"


@pytest.mark.parametrize("edges", ["x0,y0,x1,y1", "xmin,ymin,xmax,ymax"])
def test_rows_of_one_picture_are_its_objects(table, edges):
    table.write_text(f"image,label,{edges}\na.png,cup,1,2,3,4.5\nb.png,bed,,,,\na.png,bed,0,0,10,8")
    image_set = read_csv(table)
    assert (image_set.name, image_set.ids) == ("table", ("a.png", "b.png"))
    assert image_set.classes == ("bed", "cup")
    first, second = image_set.targets
    assert first.boxes.tolist() == [[1, 2, 3, 4.5], [0, 0, 10, 8]]
    assert first.labels.tolist() == [1, 0]
    assert first.image_labels == ()
    assert second.boxes.shape == (0, 4)
    assert second.image_labels == (0,)
    assert image_set.images[0].shape == (8, 10, 3)


def test_a_table_without_boxes_gives_labels_of_whole_pictures(table):
    table.write_text("image,label\na.png,cup\na.png,bed\nb.png,\n")
    image_set = read_csv(table)
    assert [target.image_labels for target in image_set.targets] == [(0, 1), ()]
    assert image_set.labels().tolist() == [[1, 1], [0, 0]]


def test_a_table_as_spreadsheets_write_it_is_read(table):
    table.write_bytes(b'\xef\xbb\xbfimage, label\r\n"a.png","cup, red"\r\n\r\n')
    assert read_csv(table).classes == ("cup, red",)


def test_pictures_may_lie_elsewhere(table, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "pictures/a.png")
    table.write_text("image,label\na.png,cup\n")
    assert read_csv(table, images_dir=tmp_path / "pictures").images[0].shape == (8, 10, 3)
    with pytest.raises(ImageError, match="No such file"):
        read_csv(table).images[0]


def test_boxes_are_clipped_and_empty_ones_left_out_and_reported(table):
    table.write_text(HEADER + "a.png,cup,-1,2,30,4\na.png,bed,10,2,30,4\na.png,bed,5,5,5,6\n")
    image_set = read_csv(table)
    (target,) = image_set.targets
    assert target.boxes.tolist() == [[0, 2, 10, 4]]
    assert [line.split(": box")[0] for line in told(image_set.notices)] == [
        f"{table}:3",
        f"{table}:4",
    ]


def test_boxes_of_a_picture_that_cannot_be_read_stay(table):
    table.write_text(HEADER + "gone.png,cup,1,2,30,40\n")
    assert read_csv(table).targets[0].boxes.tolist() == [[1, 2, 30, 40]]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "header must be image,label or image,label,x0,y0,x1,y1 or .*got ''"),
        ("picture,label\n", 1, "header must be"),
        (HEADER + "a.png,cup\n", 2, "expected 6 cells, got 2"),
        (HEADER + "a.png,cup,,,,\na.png,cup,1,2,3,4,5\n", 3, "expected 6 cells, got 7"),
        (HEADER + "a.png,cup,1,2,3,\n", 2, "four numbers or empty, got 1,2,3,"),
        (HEADER + "a.png,cup,1,2,3,wide\n", 2, "four numbers or empty"),
        (HEADER + "a.png,cup,1,2,3,nan\n", 2, "box must be finite"),
        (HEADER + "\na.png,,1,2,3,4\n", 3, "a box needs a label"),
        (HEADER + ",cup,1,2,3,4\n", 2, "the column image is empty"),
        (HEADER + f'a.png,"{"x" * 200_000}",,,,\n', 2, "field larger than"),
    ],
)
def test_a_wrong_cell_is_an_error_that_names_the_line(table, content, line, reason):
    table.write_text(content)
    with pytest.raises(ValueError, match=rf"table\.csv:{line}: .*{reason}"):
        read_csv(table)


def test_a_table_without_rows_or_that_is_no_text_or_missing_is_an_error(table):
    with pytest.raises(ValueError, match=r"table\.csv: cannot read the table: No such file"):
        read_csv(table)
    table.write_text(HEADER)
    with pytest.raises(ValueError, match=r"table\.csv lists no picture"):
        read_csv(table)
    table.write_bytes(b"image,label\n\xe9.png,cup\n")
    with pytest.raises(ValueError, match=r"table\.csv:\d: .*utf-8"):
        read_csv(table)


@pytest.mark.data
@needs_data
def test_the_photographs_of_the_flat_are_read():
    image_set = read_csv(DATA / "indoor/objects.csv", images_dir=DATA / "indoor/images")
    assert len(image_set.classes) == 30
    assert sum(len(target.boxes) for target in image_set.targets) == 686
    assert image_set.notices.counts == {}
    assert image_set.images[0].shape[2] == 3
