"""Contact sheets, as pixels and as markup."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageColor

from regionhash.search.sheet import Tile, saliency_map, with_saliency, write_sheet

ORANGE, BLUE = (ImageColor.getrgb(color) for color in ("#ffb000", "#38b6ff"))
GREEN, RED, GREY = (ImageColor.getrgb(color) for color in ("#1a9850", "#d73027", "#9aa0a6"))


def tile(boxes=(), caption="a.jpg", good=None, size=(60, 80)):
    return Tile(np.full((*size, 3), 128, np.uint8), list(boxes), caption, good)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def where(image, color):
    """Row and column range of the pixels of one colour, None where there is none."""
    rows, columns = np.nonzero((image == color).all(axis=2))
    return (rows.min(), rows.max(), columns.min(), columns.max()) if len(rows) else None


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_box_is_drawn_where_it_is_in_the_colour_of_its_object(tmp_path):
    path = tmp_path / "sheet.png"
    # 80 pixels become a thumbnail of 240: a factor of 3.
    write_sheet(path, [tile([(10, 20, 50, 40)])], [], title="t")
    top, bottom, left, right = where(pixels(path), ORANGE)
    assert right - left == pytest.approx(3 * 40, abs=1)
    assert bottom - top == pytest.approx(3 * 20, abs=1)
    write_sheet(path, [], [tile([(10, 20, 50, 40), (0, 0, 80, 60)])], title="t")
    top_blue, bottom_blue, left_blue, right_blue = where(pixels(path), BLUE)
    top, bottom, left, right = where(pixels(path), ORANGE)
    assert (right_blue - left_blue, bottom_blue - top_blue) == pytest.approx((237, 177), abs=2)
    assert (left - left_blue, top - top_blue) == pytest.approx((30, 60), abs=2)


def test_objects_are_counted_through_all_query_pictures(tmp_path):
    path = tmp_path / "sheet.png"
    one = [tile([(10, 10, 50, 50)])]
    write_sheet(path, one, [], title="t")
    assert where(pixels(path), BLUE) is None
    write_sheet(path, one * 2, [], title="t")
    assert where(pixels(path), BLUE)[0] > where(pixels(path), ORANGE)[1]
    page = tmp_path / "sheet.html"
    write_sheet(page, one * 2, one, title="t")
    strokes = [rect["stroke"] for rect in Page(page.read_text()).all("rect")]
    assert strokes == ["#000", "#ffb000", "#000", "#38b6ff", "#000", "#ffb000"]


@pytest.mark.parametrize(("good", "color"), [(True, GREEN), (False, RED), (None, GREY)])
def test_the_frame_tells_right_from_wrong_from_unknown(tmp_path, good, color):
    path = tmp_path / "sheet.png"
    write_sheet(path, [], [tile(good=good)], title="t")
    image = pixels(path)
    assert {c for c in (GREEN, RED, GREY) if where(image, c)} == {color}
    top, bottom, left, right = where(image, color)
    assert (bottom - top, right - left) == (249, 249)


def test_queries_stand_left_of_the_results_which_form_a_grid(tmp_path):
    path = tmp_path / "sheet.png"
    write_sheet(path, [tile(good=True)], [tile(good=False)] * 7, title="t")
    image = pixels(path)
    assert where(image, GREEN)[3] < where(image, RED)[2]
    frame_columns = (image == RED).all(axis=2).sum(axis=0) >= 250
    frame_rows = (image == RED).all(axis=2).sum(axis=1) >= 250
    runs = [int((np.diff(edge.astype(int)) == 1).sum()) for edge in (frame_columns, frame_rows)]
    assert runs == [10, 4]  # two edges of each of five columns and two rows


@pytest.mark.parametrize("suffix", [".png", ".html"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_pictures_of_any_form_and_boxes_beyond_them_are_drawn(tmp_path, suffix, size):
    path = tmp_path / f"sheet{suffix}"
    odd = tile([(-5, -5, 9000, 9000), (1, 1, 1, 1), (5000, 5000, 6000, 6000)], size=size)
    write_sheet(path, [odd], [odd] * 3, title="t")
    assert path.stat().st_size > 500


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_a_sheet_without_results_or_text_is_written(tmp_path, suffix):
    path = tmp_path / f"sheet{suffix}"
    write_sheet(path, [], [], title="")
    assert path.stat().st_size > 100


def test_a_long_name_keeps_its_ends_and_stays_in_its_cell(tmp_path):
    name = "holidays_" + "x" * 300 + "_0001.jpg"
    page = tmp_path / "sheet.html"
    write_sheet(page, [], [tile(caption=f"{name}\ndistance 7")], title="t")
    html = Page(page.read_text())
    shown = re.search(r"holidays_x*…x*_0001\.jpg\ndistance 7", html.text)
    assert shown
    assert len(shown[0].splitlines()[0]) == 34
    assert html.all("figure")[0]["title"] == f"{name}\ndistance 7"

    path = tmp_path / "sheet.png"
    write_sheet(path, [tile(caption=name)], [], title="t")
    image = pixels(path)
    below = where(image, GREY)[1] + 1
    gap = image[below:, 266:282]  # between the cell's right edge and the panel's
    assert (gap == gap[0, 0]).all()
    assert (image[below : below + 24, 16:266] != gap[0, 0]).any()


def test_the_page_needs_no_other_file_and_holds_the_pictures(tmp_path):
    path = tmp_path / "sheet.html"
    write_sheet(path, [tile([(10, 20, 50, 40)])], [tile(good=True), tile(good=False)], title="t")
    text = path.read_text()
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    page = Page(text)
    sources = [image["href"] for image in page.all("image")]
    assert len(sources) == 3
    assert not [attrs for _, attrs in page.tags if "src" in attrs or "url(" in str(attrs)]
    prefix = "data:image/jpeg;base64,"
    assert all(source.startswith(prefix) for source in sources)
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].removeprefix(prefix))))
    assert picture.size == (480, 360)
    box = page.all("rect")[0]
    assert [float(box[name]) for name in ("x", "y", "width", "height")] == [10, 20, 40, 20]
    assert page.all("svg")[0]["viewbox"] == "0 0 80 60"
    assert [svg["aria-label"] for svg in page.all("svg")] == [
        "a.jpg, not judged",
        "a.jpg, right",
        "a.jpg, wrong",
    ]


def test_each_group_of_results_begins_a_row_below_its_heading(tmp_path):
    cat = replace(tile(good=True), heading="cat & kitten, probability 0.90")
    dog = replace(tile(good=False), heading="dog, probability 0.40")
    path = tmp_path / "sheet.png"
    write_sheet(path, [tile()], [cat, tile(good=True), dog, tile(good=False)], title="t")
    image = pixels(path)
    rights, wrongs = where(image, GREEN), where(image, RED)
    assert rights[2:] == wrongs[2:]  # both begin at the left, two side by side
    between = image[rights[1] + 1 : wrongs[0]]
    # The caption of the first row, the heading of the second, and nothing above the first but its.
    assert len(between) > 60
    for rows in (image[rights[0] - 30 : rights[0] - 4], between[-30:-4]):
        assert (rows[:, rights[2] : rights[3]] < 100).any()
    write_sheet(tmp_path / "sheet.html", [], [cat, tile(), dog], title="t")
    text = (tmp_path / "sheet.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags if tag in ("h2", "figure")] == [
        *("h2", "figure", "figure"),
        *("h2", "figure"),
    ]
    assert "<h2>cat &amp; kitten, probability 0.90</h2>" in text


def test_text_is_text_and_never_markup(tmp_path):
    path = tmp_path / "sheet.html"
    nasty = '<script>alert("x")</script>&{cell}'
    write_sheet(path, [], [tile(caption=nasty[:30])], title=nasty)
    page = Page(path.read_text())
    assert not page.all("script")
    assert nasty in page.text
    assert page.all("figure")[0]["title"] == nasty[:30]


def test_a_sheet_is_replaced_in_one_step_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "sheet.html"
    write_sheet(path, [], [], title="old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_sheet(path, [], [], title="new")
    assert "old" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.html"]


def test_other_suffixes_and_bad_tiles_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"sheet\.pdf: a sheet must end in \.png or \.html"):
        write_sheet(tmp_path / "sheet.pdf", [], [], title="t")
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got \(4, 4\) uint8"):
        Tile(np.zeros((4, 4), np.uint8), [], "")
    with pytest.raises(ValueError, match=r"boxes must be \(x0, y0, x1, y1\), got"):
        Tile(np.zeros((4, 4, 3), np.uint8), [(1, 2, 3)], "")


def test_a_saliency_map_is_the_sum_of_the_weights_that_cover_a_pixel():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 9, 3], [-5, -5, -1, -1]], np.float32)
    found = saliency_map((3, 4), boxes, np.array([1, 3, 8], np.float32))
    expected = np.zeros((3, 4))
    expected[:2, :2] += 1
    expected[1:3, 1:4] += 3
    np.testing.assert_allclose(found, expected / 4)
    assert not saliency_map((3, 4), np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).any()


def test_the_map_stands_to_the_right_of_the_picture():
    image = np.full((3, 4, 3), 7, np.uint8)
    shown = with_saliency(image, np.array([[0, 0, 2, 3]], np.float32), np.ones(1, np.float32))
    np.testing.assert_array_equal(shown[:, :4], image)
    assert (shown[:, 4:6] == 255).all() and (shown[:, 6:] == 0).all()
