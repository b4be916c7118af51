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
        ("a.jpg,1,2,3,4,cup\n", 1, "header must be image,label or"),
        ("image,label,x0,y0,x1\n", 1, "the columns 'x0', 'y0', 'x1' are no whole box"),
        ("image,label,x0,y0,x1,y1,x2,y2\n", 1, "two corners, got x0, x1 and x2"),
        ("image,label,Label\n", 1, "each column once, got 'label' twice"),
        ("image,x0,y0,x1,y1\n", 1, "header must be"),
        ("image,label,x,y,w,h,width,height\na,b,1,2,3,4,ten,8\n", 2, "width must be a whole"),
        ("sep=;\nimage;label;x0;y0;x1;y1\n\na.png;cup;1;2;3;w\n", 4, "four numbers"),
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


ROWS = [
    # The header and a row of a picture of 8 x 10 pixels, with the box 1, 2, 3, 4 of a cup.
    ("image,label,x0,y0,x1,y1", "a.png,cup,1,2,3,4"),
    ("label,x0,y0,x1,y1,image", "cup,1,2,3,4,a.png"),
    ("Image,LABEL,X0,Y0,X1,Y1", "a.png,cup,1,2,3,4"),
    ("image;label;x0;y0;x1;y1", "a.png;cup;1;2;3;4"),
    ("image;label;x0;y0;x1;y1", "a.png;cup;1,0;2,0;3,0;4,0"),
    ("image\tlabel\tx0\ty0\tx1\ty1", "a.png\tcup\t1\t2\t3\t4"),
    ("sep=;\nimage;label;x0;y0;x1;y1", "a.png;cup;1;2;3;4"),
    ('"image","label","x0","y0","x1","y1"', '"a.png","cup","1","2","3","4"'),
    ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,10,8,cup,1,2,3,4"),
    ("file_name,label,x1,y1,x2,y2", "a.png,cup,1,2,3,4"),
    ("image_path,category,left,top,right,bottom", "a.png,cup,1,2,3,4"),
    ("path,class_name,x,y,w,h", "a.png,cup,1,2,2,2"),
    ("file,classname,x,y,width,height", "a.png,cup,1,2,2,2"),
    ("image,label,x,y,w,h,width,height", "a.png,cup,1,2,2,2,10,8"),
    (
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
        "cup,1,2,2,2,a.png,10,8",
    ),
    ("image,label,xmin,xmax,ymin,ymax", "a.png,cup,1,3,2,4"),
    ("image,label,cx,cy,w,h", "a.png,cup,2,3,2,2"),
    ("image,label,x0,y0,x1,y1,,", "a.png,cup,1,2,3,4,,"),
    ("image,label,x0,y0,x1,y1", "a.png,cup,1,2,3,4,,"),
    ("image,label,x0,y0,x1,y1", ",,,,,\n\n   \na.png,cup,1,2,3,4\n,,"),
    (",,,,,\n\n  \nimage,label,x0,y0,x1,y1", "a.png,cup,1,2,3,4"),
    ("sep=;\n;;\n\nimage;label;x0;y0;x1;y1", "a.png;cup;1;2;3;4"),
    ("image;label;x0;y0;x1;y1;width;height", "a.png;cup;1,0;2,0;3,0;4,0;10,0;8,0"),
    ("image_id,label_name,xmin,ymin,xmax,ymax", "a.png,cup,1,2,3,4"),
    ("ImageID,LabelName,XMin,XMax,YMin,YMax", "a,cup,0.1,0.3,0.25,0.5"),
    ("ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax", "a,cup,1,0.1,0.3,0.25,0.5"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("header", "row"), ROWS)
def test_tables_of_other_tools_are_read(table, header, row, encoding):
    table.write_bytes(f"{header}\r\n{row}\r\n".encode(encoding))
    image_set = read_csv(table)
    assert (image_set.ids, image_set.classes) == (("a.png",), ("cup",))
    (target,) = image_set.targets
    assert target.boxes.tolist() == [[1, 2, 3, 4]]
    assert image_set.notices.counts == {}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_both_orders_of_utf_16_are_read(table, encoding):
    table.write_bytes("\ufeffimage,label\na.png,t\u00e9\n".encode(encoding))
    assert read_csv(table).classes == ("t\u00e9",)


@pytest.mark.parametrize(
    ("header", "row", "unused"),
    [
        ("image,label,note,date", "a.png,cup,x,y", "'note', 'date'"),
        ("image,label,class", "a.png,cup,3", "'class'"),
        ("ImageID,Source,LabelName,Confidence", "a,x,cup,1", "'Source'"),
        ("image,label,x0,y0,x1,y1,difficult", "a.png,cup,1,2,3,4,1", "'difficult'"),
        ("image,label,xmin,ymin,xmax,ymax,x0", "a.png,cup,1,2,3,4,5", "'x0'"),
    ],
)
def test_columns_that_are_not_used_are_told_once(table, header, row, unused):
    table.write_text(f"{header}\n{row}\n{row}\n")
    image_set = read_csv(table)
    assert image_set.classes == ("cup",)
    assert image_set.notices.counts == {"columns that were not used": 1}
    assert told(image_set.notices) == [f"{table}: not used: the columns {unused}"]


def test_open_images_has_fractions_groups_and_labels_that_are_absent(table):
    table.write_text(
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
        "a,x,/m/01,1,0.5,1,0,0.5,1\na,x,/m/02,1,0,1,0,1,0\na,x,/m/03,0,,,,,-1\n"
    )
    image_set = read_csv(table)
    (target,) = image_set.targets
    assert image_set.classes == ("/m/01", "/m/02")
    assert target.boxes.tolist() == [[5, 0, 10, 4], [0, 0, 10, 8]]
    assert target.difficult.tolist() == [True, False]
    assert target.image_labels == ()
    assert image_set.notices.counts == {
        "columns that were not used": 1,
        "labels verified as absent, left out": 1,
    }


@pytest.mark.parametrize(
    ("cell", "group"),
    [("1.0", True), ("True", True), ("true", True), ("0.0", False), ("False", False), ("-1", False),
     ("", False)],
)  # fmt: skip
def test_groups_of_open_images_are_read_by_value(table, cell, group):
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
    table.write_text(f"{header}a,cup,0,1,0,1,{cell}\n")
    assert read_csv(table).targets[0].difficult.tolist() == [group]
    table.write_text(f"{header}a,cup,0,1,0,1,1\na,cup,0,1,0,1,{cell}2\n")
    with pytest.raises(ValueError, match=r":3: IsGroupOf must be 0 or 1, got "):
        read_csv(table)


def test_a_line_is_numbered_with_those_above_the_header(table):
    table.write_text("sep=;\n\n;;\nimage;label;x0;y0;x1;y1\na.png;cup;1;2;3;x\n")
    with pytest.raises(ValueError, match=r":5: a box must be four numbers"):
        read_csv(table)


@pytest.mark.parametrize(
    "cell", ["'cup'", '"""cup"""', '" ""cup"""', "\u201ccup\u201d", "' cup '", ' "cup"']
)
def test_quotes_around_a_class_are_taken_off_and_told(table, cell):
    table.write_text(f"image,label\na.png,{cell}\na.png,cup\n")
    image_set = read_csv(table)
    assert image_set.classes == ("cup",)
    assert image_set.notices.counts == {"class names in quotes, taken without": 1}
    assert f"{table}:2: the class" in told(image_set.notices)[0]


@pytest.mark.parametrize("second", ["./a.png", ".//a.png", ".\\a.png", "ABSOLUTE", "sub/../a.png"])
def test_a_picture_under_two_spellings_is_one_picture(table, second):
    (table.parent / "sub").mkdir()
    second = second.replace("ABSOLUTE", str(table.with_name("a.png")))
    table.write_text(HEADER + f"a.png,cup,1,2,3,4\n{second},bed,2,3,4,5\n")
    image_set = read_csv(table)
    assert image_set.ids == ("a.png",)
    assert image_set.targets[0].boxes.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert len(image_set.images) == 1
    (line,) = told(image_set.notices)
    assert line.startswith(f"{table}:3: ") and line.endswith("is the same picture as 'a.png'")


@pytest.mark.data
@needs_data
def test_the_photographs_of_the_flat_are_read():
    image_set = read_csv(DATA / "indoor/objects.csv", images_dir=DATA / "indoor/images")
    assert len(image_set.classes) == 30
    assert sum(len(target.boxes) for target in image_set.targets) == 686
    assert image_set.notices.counts == {}
    assert image_set.images[0].shape[2] == 3
