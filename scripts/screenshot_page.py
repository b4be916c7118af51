"""Draws docs/images/page.png: the page with a search of the demonstration's scenes.

Needs Debian's chromium, Playwright, and what `regionhash demo` has left in FOLDER.

Run: python scripts/screenshot_page.py [FOLDER] [--theme dark] [--width 375] [--out FILE]
"""

import argparse
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from chromium import launched, served
from regionhash.experiments.demo import make_collection
from regionhash.service import create_app

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "page.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--out", type=Path, default=IMAGE)
    options = parser.parse_args()
    with served(create_app(make_collection(options.folder))) as address:
        shoot(address, options)


def shoot(address: str, options: argparse.Namespace) -> None:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        size = {"width": options.width, "height": 820}
        page = browser.new_page(viewport=size, color_scheme=options.theme)
        page.goto(address)
        page.wait_for_selector(".hit")
        page.set_input_files("#file", options.folder / "query.png")
        page.wait_for_selector("rect.found")
        page.locator("rect.found").nth(1).press("Enter")
        page.wait_for_selector("#title:has-text('with this object')")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(500)
        page.screenshot(path=options.out)
        browser.close()
    with Image.open(options.out) as taken:  # 96 colours: a third of the bytes
        small = taken.convert("RGB").quantize(96, dither=Image.Dither.NONE)
    small.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
