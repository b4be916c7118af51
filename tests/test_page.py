"""The page as people use it, in a real Chromium."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from chromium import CHROMIUM, launched, served
from regionhash.collection import Collection
from regionhash.data.images import read_image
from regionhash.service import create_app

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def address(photo_collection):
    """Where the photos are served."""
    with served(create_app(photo_collection)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = launched(started)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, opened."""
    with opened(browser, address) as page:
        yield page


@contextmanager
def opened(browser, address):
    """The page of a service; what `watched` finds fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong = watched(page, address)
    page.goto(address)
    page.wait_for_selector(".hit")
    yield page
    context.close()
    assert wrong == []


def watched(page, address):
    """What goes wrong in a page: errors, requests to other places, what the policy forbids.

    Answers of 4xx are written to the console too; those are not wrong, the page shows them.
    """
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def on_console(message):
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            wrong.append(message.text)

    def on_request(request):
        if not request.url.startswith((address, "blob:", "data:")):
            wrong.append(request.url)

    page.on("console", on_console)
    page.on("request", on_request)
    return wrong


def upload(page, path):
    page.set_input_files("#file", path)
    page.wait_for_selector(".query svg")
    page.wait_for_selector("#title:has-text('Pictures')")


def shown(page):
    return [tile.get_attribute("title") for tile in page.query_selector_all(".hit")]


def drag(page, *points):
    """Draws from one place to another, in shares of the query picture."""
    frame = page.locator(".query .canvas svg").bounding_box()
    at = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=5)
    page.mouse.up()


@pytest.mark.slow
def test_what_the_policy_forbids_is_noticed_by_these_tests(browser, address):
    context = browser.new_context()
    page = context.new_page()
    wrong = watched(page, address)
    page.goto(address)
    page.wait_for_selector(".hit")
    assert wrong == []
    for markup in ("<b style='color: red'>", "<img src=x onerror='document.title = 1'>"):
        with page.expect_console_message(lambda said: "Content Security Policy" in said.text):
            page.evaluate("text => { document.querySelector('#state').innerHTML = text }", markup)
        assert "Content Security Policy" in "".join(wrong)
        wrong.clear()
    assert page.title() == "regionhash"
    context.close()


def test_it_begins_with_the_pictures_of_the_collection(page):
    assert shown(page) == [f"{n}.png" for n in range(6)]
    assert "6 pictures" in page.inner_text("#about")


def test_an_uploaded_picture_finds_itself(page, photos):
    upload(page, photos / "2.png")
    assert page.inner_text("#title") == "Pictures like this"
    assert shown(page)[0] == "2.png"
    assert page.query_selector(".hit .tip").text_content().startswith("0 bits")


def test_a_drawn_box_is_searched_and_the_answer_is_drawn_where_the_codes_say(
    page, photos, photo_collection
):
    upload(page, photos / "2.png")
    with page.expect_response("**/api/search") as caught:
        drag(page, (0.1, 0.1), (0.6, 0.6))
    (query,) = caught.value.request.post_data_json["queries"]
    ((x0, y0, x1, y1),) = query["boxes"]
    height, width, _ = read_image(photos / "2.png").shape
    drawn_at = (0.1 * width, 0.1 * height, 0.6 * width, 0.6 * height)
    assert (x0, y0, x1, y1) == pytest.approx(drawn_at, abs=2)
    answer = caught.value.json()
    page.wait_for_selector(".hit svg rect")
    assert page.inner_text("#title") == "Pictures with this object"
    with Collection.open(photo_collection) as collection:
        boxes = [(x0, y0, x1, y1)]
        wanted = collection.search(photos / "2.png", boxes=boxes).hits
    assert shown(page) == [hit.id for hit in wanted] == [hit["id"] for hit in answer["hits"]]
    tile, hit = page.query_selector(".hit"), wanted[0]
    view = tile.query_selector("svg").bounding_box()
    drawn = tile.query_selector("svg rect:last-child").bounding_box()
    height, width = hit.size
    scale = min(view["width"] / width, view["height"] / height)
    left = view["x"] + (view["width"] - scale * width) / 2
    upper = view["y"] + (view["height"] - scale * height) / 2
    box = hit.matches[0].box
    edges = (drawn["x"], drawn["y"], drawn["x"] + drawn["width"], drawn["y"] + drawn["height"])
    on_screen = [left + scale * box[0], upper + scale * box[1]]
    on_screen += [left + scale * box[2], upper + scale * box[3]]
    assert edges == pytest.approx(on_screen, abs=2.5)


# Browsers ignore an orientation that is in XMP alone, and Chromium does not show HEIC.
@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_boxes_lie_on_the_picture_as_the_service_read_it(page, tmp_path, kind):
    stored = np.full((320, 640, 3), (0, 0, 255), np.uint8)
    stored[:, :320] = 255, 0, 0
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = {"exif": exif.tobytes()}
    else:
        turned = {"xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'}
    Image.fromarray(stored).save(tmp_path / "a", kind, **turned)
    upload(page, tmp_path / "a")
    image = page.locator(".query img")
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [320, 640]
    assert page.get_attribute(".query .canvas svg", "viewBox") == "0 0 320 640"
    colours = image.evaluate(
        """image => {
          const canvas = document.createElement("canvas");
          Object.assign(canvas, { width: 320, height: 640 });
          const context = canvas.getContext("2d", { willReadFrequently: true });
          context.drawImage(image, 0, 0);
          return [100, 500].map(y => [...context.getImageData(160, y, 1, 1).data.slice(0, 3)]);
        }"""
    )
    np.testing.assert_allclose(colours, [[255, 0, 0], [0, 0, 255]], atol=20)


@pytest.mark.slow
def test_a_picture_that_is_cut_off_is_searched_with_a_note(page, photos, tmp_path):
    content = (photos / "2.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) * 4 // 5])
    upload(page, tmp_path / "cut.png")
    assert "the end of the file is missing" in page.inner_text(".query")
    assert len(shown(page)) == 6


def test_a_detected_object_is_outlined_clicked_and_left_out_again(page, photos):
    upload(page, photos / "2.png")
    outlines = page.locator("rect.found")
    assert outlines.count() > 0
    with page.expect_response("**/api/search") as caught:
        outlines.last.press("Enter")
    assert len(caught.value.request.post_data_json["queries"][0]["regions"]) == 1
    with page.expect_response("**/api/search") as caught:
        page.locator("rect.chosen").first.press("Delete")
    assert caught.value.request.post_data_json["mode"] == "image"


@pytest.mark.slow
def test_a_score_is_asked_for_only_where_there_are_scores(browser, page, drh_collection, photos):
    page.click("summary")
    assert page.is_visible("#score")
    with served(create_app(drh_collection)) as address, opened(browser, address) as windows:
        windows.click("summary")
        assert windows.is_visible("#folder") and windows.is_hidden("#score")
        upload(windows, photos / "2.png")
        drag(windows, (0.1, 0.1), (0.6, 0.6))
        windows.wait_for_selector("#title:has-text('with this object')")
        tips = [tip.text_content() for tip in windows.query_selector_all(".hit .tip")]
        assert len(tips) == 6 and all(re.fullmatch(r"\d+ bits", tip) for tip in tips)


def test_words_are_searched_alone_and_beside_a_picture(browser, page, worded, photos):
    assert page.is_hidden("#words")
    with served(create_app(worded)) as address, opened(browser, address) as words:
        words.fill("#text", " red cat ")
        words.press("#text", "Enter")
        words.wait_for_selector("#title:has-text('with this object')")
        assert words.inner_text(".query figcaption span:not(.swatch)") == "\u201cred cat\u201d"
        assert len(words.query_selector_all(".hit rect.match, .hit svg rect")) >= 6
        words.set_input_files("#file", photos / "2.png")
        words.wait_for_selector("#title:has-text('with all of these objects')")
        assert len(words.query_selector_all(".query")) == 2
        words.click(".query:first-child button:has-text('Remove')")
        words.wait_for_selector("#title:has-text('like this')")
        assert len(words.query_selector_all(".query")) == 1


@pytest.mark.slow
def test_a_category_without_a_probability_shows_none(browser, certain_collection):
    with served(create_app(certain_collection)) as address, opened(browser, address) as page:
        page.evaluate("grouped = true")
        page.locator(".hit").nth(3).click()
        page.wait_for_selector("h3")
        headings = [heading.inner_text() for heading in page.query_selector_all("h3")]
        assert headings == ["cat (6)", "dog (6)", "cow (6)"]


@pytest.mark.slow
def test_a_note_of_the_answer_is_shown_above_the_results(page, photos):
    def with_note(route):
        answer = route.fetch()
        route.fulfill(json=answer.json() | {"notes": ["box 1,2,3,4: a <b>part</b>"]})

    page.route("**/api/search", with_note)
    upload(page, photos / "2.png")
    page.wait_for_selector("#state:not([hidden])")
    assert "box 1,2,3,4: a <b>part</b>" in page.inner_text("#state")
    assert page.locator(".hit").count() == 6
    page.unroute("**/api/search")
    drag(page, (0.1, 0.1), (0.6, 0.6))
    page.wait_for_selector("#title:has-text('with this object')")
    assert page.is_hidden("#state")


def test_objects_of_two_pictures_are_searched_together(page, photos):
    upload(page, photos / "2.png")
    drag(page, (0.1, 0.1), (0.6, 0.6))
    page.wait_for_selector("#title:has-text('with this object')")
    with page.expect_response("**/api/search") as caught:
        page.set_input_files("#file", photos / "3.png")
    assert len(caught.value.request.post_data_json["queries"]) == 2
    page.wait_for_selector("#title:has-text('all of these')")


@pytest.mark.slow
def test_an_object_without_a_region_in_a_result_has_no_box_there(browser, cups, photos):
    with served(create_app(cups)) as address, opened(browser, address) as page:
        upload(page, photos / "2.png")
        drag(page, (0.1, 0.1), (0.4, 0.4))
        page.wait_for_selector("#title:has-text('with this object')")
        drag(page, (0.5, 0.5), (0.9, 0.9))
        page.wait_for_selector("#title:has-text('all of these')")
        drawn = {
            tile.get_attribute("title"): len(tile.query_selector_all("svg rect"))
            for tile in page.query_selector_all(".hit")
        }
        assert drawn == {"nested.png": 2, "one.png": 2, "two.png": 4}


def test_a_result_is_searched_on_from_with_the_keyboard_and_back(page):
    page.locator(".hit").nth(0).focus()
    page.keyboard.press("ArrowRight")
    with page.expect_response("**/api/search"):
        page.keyboard.press("Enter")
    page.wait_for_selector(".query svg")
    page.wait_for_selector(".hit:first-child[title='1.png']")
    page.keyboard.press("Escape")
    page.wait_for_selector(".hit:first-child[title='0.png']")


def test_results_are_grouped_by_category(page, photos):
    upload(page, photos / "2.png")
    page.click("#group")
    assert page.get_attribute("#group", "aria-pressed") == "true"
    headings = [heading.inner_text() for heading in page.query_selector_all("h3")]
    assert sum(int(text.rpartition("(")[2].rstrip(")")) for text in headings) == 6


def test_a_model_with_codes_of_categories_answers_for_each(browser, category_collection):
    with served(create_app(category_collection)) as address, opened(browser, address) as page:
        page.locator(".hit").nth(3).click()
        page.wait_for_selector("#title:has-text('like this')")
        with page.expect_response("**/api/search") as caught:
            page.click("#group")
        answer = caught.value.json()
        page.wait_for_selector("#title:has-text('each of its categories')")
        headings = [heading.inner_text() for heading in page.query_selector_all("h3")]
        assert headings == [
            f"{group['category']}, probability {group['prob']:.2f} ({len(group['hits'])})"
            for group in answer["groups"]
            if group["hits"]
        ]
        assert shown(page) == [hit["id"] for group in answer["groups"] for hit in group["hits"]]
        with page.expect_response("**/api/search") as caught:
            page.click("#group")
        assert caught.value.json()["mode"] == "image"


def test_what_a_second_picture_shows_is_left_out(page, photos):
    upload(page, photos / "2.png")
    drag(page, (0.1, 0.1), (0.6, 0.6))
    page.wait_for_selector("#title:has-text('with this object')")
    page.set_input_files("#file", photos / "3.png")
    page.wait_for_selector("#title:has-text('all of these')")
    with page.expect_response("**/api/search") as caught:
        page.locator("text=Not this").nth(1).click()
    asked = caught.value.request.post_data_json
    assert (len(asked["queries"]), len(asked["without"])) == (1, 1)
    page.wait_for_selector("#title:has-text('but not that')")
    assert shown(page) == [hit["id"] for hit in caught.value.json()["hits"]]
    assert page.locator("text=Not this").nth(0).is_disabled()
    with page.expect_response("**/api/search") as caught:
        page.locator("button", has_text="Remove").nth(0).click()
    assert caught.value.request.post_data_json["without"] == []


def test_a_file_that_is_no_picture_and_an_empty_answer_are_told(page, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    page.set_input_files("#file", bad)
    page.wait_for_selector(".state.bad")
    assert "not a picture of a known format" in page.inner_text("#state")
    upload(page, photos / "2.png")
    page.click("summary")
    page.fill("#folder", "nowhere")
    page.press("#folder", "Tab")
    page.wait_for_selector("#state:not([hidden])")
    assert "Nothing found" in page.inner_text("#state")


@pytest.mark.slow
def test_near_duplicates_are_grouped_up_to_the_bits_that_are_chosen(page, photos):
    upload(page, photos / "2.png")
    page.click("summary")
    for label, bits in (("up to 4 bits apart", 4), ("with the same code", 0), ("no", None)):
        with page.expect_response("**/api/search") as caught:
            page.select_option("#near", label=label)
        assert caught.value.request.post_data_json["near"] == bits


@pytest.mark.slow
def test_the_rest_of_the_picture_and_the_class_count_as_chosen_for_objects_alone(page, photos):
    page.click("summary")
    upload(page, photos / "2.png")
    for place, label in (
        ("#context", "counts half as much as the object"),
        ("#other-class", "rank lower"),
    ):
        with page.expect_response("**/api/search") as caught:
            page.select_option(place, label=label)
        asked = caught.value.request.post_data_json
        assert (asked["mode"], asked["context"], asked["other_class"]) == ("image", 0, 0)
    with page.expect_response("**/api/search") as caught:
        drag(page, (0.1, 0.1), (0.6, 0.6))
    asked = caught.value.request.post_data_json
    assert (asked["context"], asked["other_class"]) == (0.5, 0.1)
    assert any(hit["context"] for hit in caught.value.json()["hits"])
    page.focus("#context")
    with page.expect_response("**/api/search") as caught:
        page.keyboard.press("ArrowDown")
    assert caught.value.request.post_data_json["context"] == 1
    assert caught.value.status == 200


@pytest.mark.slow
def test_what_a_collection_cannot_weigh_is_not_asked_for(browser, worded, certain_collection, page):
    page.click("summary")
    assert page.is_visible("#context") and page.is_visible("#other-class")
    for folder, context in ((worded, True), (certain_collection, False)):
        with served(create_app(folder)) as address, opened(browser, address) as other:
            other.click("summary")
            assert other.is_visible("#context") == context
            assert other.is_hidden("#other-class")


@pytest.mark.slow
def test_words_alone_are_searched_whatever_the_options(browser, worded):
    with served(create_app(worded)) as address, opened(browser, address) as page:
        page.click("summary")
        page.select_option("#context", label="counts a little")
        page.fill("#text", "cat")
        with page.expect_response("**/api/search") as caught:
            page.press("#text", "Enter")
        assert caught.value.status == 200
        assert caught.value.request.post_data_json["context"] == 0


@pytest.mark.slow
def test_a_narrow_screen_has_one_column_and_no_scrolling_sideways(page, photos):
    page.set_viewport_size({"width": 375, "height": 720})
    upload(page, photos / "2.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    boxes = [page.locator(place).bounding_box() for place in (".side", "#results")]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]


@pytest.mark.slow
def test_dark_and_light_are_chosen_and_kept(page):
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.click("#theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_token_is_asked_for_kept_and_given_back(browser, photo_collection):
    app = create_app(photo_collection, token="secret", loopback=False)
    with served(app) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(10_000)
        wrong = watched(page, address)
        page.goto(address)
        page.fill("#token", "secret")
        page.press("#token", "Enter")
        page.wait_for_selector(".hit")
        page.reload()
        page.wait_for_selector(".hit")  # the cookie has it
        page.click("#leave")
        page.wait_for_selector("#ask[open]")
        assert context.cookies() == []
        context.close()
        assert wrong == []


@pytest.mark.slow
def test_without_a_token_there_is_nothing_to_log_out_of(page):
    assert page.is_hidden("#leave")
