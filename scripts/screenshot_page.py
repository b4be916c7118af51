"""Draws docs/images/page.png: the page with a search of the demonstration's scenes.

Needs Debian's chromium, Playwright, and what `regionhash demo` has left in FOLDER.

Run: python scripts/screenshot_page.py [FOLDER] [--theme dark] [--width 375] [--out FILE]
"""

import argparse
import socket
import threading
import time
from pathlib import Path
from shutil import which

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from regionhash.demo import make_collection
from regionhash.service import create_app

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--out", type=Path, default=IMAGE)
    options = parser.parse_args()
    app = create_app(make_collection(options.folder))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        shoot(f"http://127.0.0.1:{listening.getsockname()[1]}/", options)
        server.should_exit = True
        thread.join()


def shoot(address: str, options: argparse.Namespace) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=which("chromium"), args=FLAGS)
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
