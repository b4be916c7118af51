"""Contact sheet of a search: queries, results and matched boxes (Region-DH, Fig. 3)."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from regionhash.files.atomic import replacing
from regionhash.structures import Box

THUMBNAIL = 240
"""Longest side of a thumbnail in pixels."""

_BOX_COLORS = ("#ffb000", "#38b6ff", "#ff5fd2", "#f5f02a", "#9b8cff", "#ffffff")
"""One per query object, repeated if there are more; green and red are left to the frames."""
_FRAME_COLORS = {True: "#1a9850", False: "#d73027", None: "#9aa0a6"}
_FRAME_WORDS = {True: "right", False: "wrong", None: "not judged"}

_FRAME = 5  # pixels around a thumbnail
_GAP = 16
_CAPTION = 15  # font size
_TITLE = 22
_LINE = 20  # height of a caption's line
_HEADING = 34  # height of a group's heading
_COLUMNS = 5
_CELL = THUMBNAIL + 2 * _FRAME
_CAPTION_LETTERS = 34  # per line of a caption in HTML


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture on the sheet.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        boxes: xyxy in pixels of the image; for a result one per query object, in order, None for
            an object that has no region.
        caption: text below, at most two lines.
        good: whether the result is correct: green or red frame; None if unknown.
        heading: heading of the group that begins with this result; "" is none.
    """

    image: NDArray[np.uint8]
    boxes: Sequence[Box | None]
    caption: str
    good: bool | None = None
    heading: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"image must be (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}"
            )
        if any(box is not None and len(box) != 4 for box in self.boxes):
            raise ValueError(f"boxes must be (x0, y0, x1, y1), got {list(self.boxes)}")


def saliency_map(
    size: tuple[int, int], boxes: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Evidence for an object at each pixel: a map (H, W) in [0, 1] (IAH, Fig. 5).

    The sum of the weights of the boxes that cover the pixel, divided by its maximum; all zeros if
    no box has a weight.

    Args:
        size: (H, W).
        boxes: (R, 4), xyxy in pixels; R may be 0.
        weights: (R,), at least 0.
    """
    height, width = size
    sums = np.zeros((height + 1, width + 1))
    low = np.clip(np.floor(boxes), 0, [width, height] * 2).astype(int)
    high = np.clip(np.ceil(boxes), 0, [width, height] * 2).astype(int)
    # A box adds its weight at two of its corners and subtracts it at the others.
    for (x0, y0), (x1, y1), weight in zip(low[:, :2], high[:, 2:], weights, strict=True):
        sums[y0, x0] += weight
        sums[y1, x1] += weight
        sums[y0, x1] -= weight
        sums[y1, x0] -= weight
    covered = sums.cumsum(0).cumsum(1)[:height, :width]
    most = covered.max(initial=0)
    return (np.clip(covered, 0, None) / most if most > 0 else covered).astype(np.float32)


def with_saliency(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The picture (H, 2 W, 3) with its saliency map to its right; see `saliency_map`."""
    grey = np.round(255 * saliency_map((image.shape[0], image.shape[1]), boxes, weights))
    shown = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.concatenate([image, shown], axis=1)


def write_sheet(
    path: str | Path, queries: Sequence[Tile], results: Sequence[Tile], *, title: str
) -> None:
    """Writes a contact sheet, replacing the file in one step.

    Args:
        path: ends in .png, or in .html for a self-contained page.
        queries: query pictures, set apart on the left. Their boxes, picture by picture, are the
            query objects in order, and give the boxes of the results their colours.
        results: pictures found, best first.
        title: the sheet's heading.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".png":
        content = _png(queries, results, title)
    elif path.suffix == ".html":
        content = _html(queries, results, title).encode()
    else:
        raise ValueError(f"{path}: a sheet must end in .png or .html, got {path.suffix!r}")
    with replacing(path) as new:
        new.write_bytes(content)


def _thumbnail(image: NDArray[np.uint8], longest: int) -> Image.Image:
    """The picture, resized so that its longer side has `longest` pixels."""
    picture = Image.fromarray(image)
    scale = longest / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _shortened(text: str, fits: Callable[[str], bool]) -> str:
    """`text`, with its middle shortened until it fits."""
    if fits(text):
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if fits(shorter):
            return shorter
    return "…"


def _colors(n_objects: int) -> list[str]:
    return list(islice(cycle(_BOX_COLORS), n_objects))


def _query_colors(queries: Sequence[Tile]) -> list[list[str]]:
    """Colours of the boxes of each query picture, counting objects through all pictures."""
    colors = cycle(_BOX_COLORS)
    return [list(islice(colors, len(tile.boxes))) for tile in queries]


def _caption_lines(caption: str) -> list[str]:
    return caption.splitlines()[:2]


def _png(queries: Sequence[Tile], results: Sequence[Tile], title: str) -> bytes:
    """Queries in a shaded column, results in a grid to its right."""
    columns = max(1, min(_COLUMNS, len(results)))
    n_lines = max((len(_caption_lines(tile.caption)) for tile in (*queries, *results)), default=0)
    step_x, step_y = _CELL + _GAP, _CELL + n_lines * _LINE + _GAP + 4
    top = _TITLE + 2 * _GAP
    left = _CELL + 3 * _GAP  # of the results
    corners: list[tuple[int, int]] = []  # of the results' cells
    column, y = 0, top
    for tile in results:
        if column == columns or (tile.heading and column):
            column, y = 0, y + step_y
        y += _HEADING * bool(tile.heading)
        corners.append((left + column * step_x, y))
        column += 1
    height = max(y + step_y, top + len(queries) * step_y)
    sheet = Image.new("RGB", (left + columns * step_x, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, top - _GAP // 2, _CELL + 2 * _GAP, sheet.height), "#eceff3")
    title_font = ImageFont.load_default(_TITLE)
    _draw_text(draw, (_GAP, _GAP), title, title_font, sheet.width - 2 * _GAP)
    for n, (tile, colors) in enumerate(zip(queries, _query_colors(queries), strict=True)):
        _draw_tile(sheet, draw, (_GAP, top + n * step_y), tile, colors)
    for (x, y), tile in zip(corners, results, strict=True):
        _draw_text(draw, (x, y - _HEADING), tile.heading, title_font, sheet.width - x - _GAP)
        _draw_tile(sheet, draw, (x, y), tile, _colors(len(tile.boxes)))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    tile: Tile,
    colors: Sequence[str],
) -> None:
    """Draws frame, picture, boxes and caption of a tile whose cell has its upper left `corner`."""
    x, y = corner
    picture = _thumbnail(tile.image, THUMBNAIL)
    _draw_boxes(picture, tile, colors)
    draw.rectangle(
        (x, y, x + _CELL - 1, y + _CELL - 1), "#f7f8fa", _FRAME_COLORS[tile.good], _FRAME
    )
    sheet.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
    font = ImageFont.load_default(_CAPTION)
    for n, line in enumerate(_caption_lines(tile.caption)):
        _draw_text(draw, (x, y + _CELL + 4 + n * _LINE), line, font, _CELL)


def _draw_boxes(picture: Image.Image, tile: Tile, colors: Sequence[str]) -> None:
    draw = ImageDraw.Draw(picture)
    scale = picture.width / tile.image.shape[1], picture.height / tile.image.shape[0]
    for (x0, y0, x1, y1), color in _drawn(tile, colors):
        # Inside the picture, so that a box around all of it is seen.
        x0, x1 = (min(max(x * scale[0], 1), picture.width - 2) for x in (x0, x1))
        y0, y1 = (min(max(y * scale[1], 1), picture.height - 2) for y in (y0, y1))
        x0, y0 = min(x0, x1), min(y0, y1)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="black", width=5)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=3)


def _drawn(tile: Tile, colors: Sequence[str]) -> Iterator[tuple[Box, str]]:
    """The boxes of a tile, each with its colour."""
    for box, color in zip(tile.boxes, colors, strict=True):
        if box is not None:
            yield box, color


def _draw_text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> None:
    fitting = _shortened(text, lambda part: draw.textlength(part, font) <= width)
    draw.text(corner, fitting, "#202124", font)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --back: #fff; --side: #eceff3; --text: #202124; --cell: #f7f8fa; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #16181c; --side: #23272e; --text: #e8eaed; --cell: #0d0e10; }}
}}
body {{ margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.35 system-ui, sans-serif; }}
h1 {{ margin: 16px; font-size: 22px; font-weight: 600; overflow-wrap: anywhere; }}
main {{ display: flex; align-items: stretch; }}
section {{ display: grid; gap: 16px; padding: 16px; align-content: start;
  grid-template-columns: repeat(auto-fill, {cell}px); }}
.queries {{ background: var(--side); flex: none; grid-template-columns: {cell}px; }}
.results {{ flex: 1; }}
h2 {{ grid-column: 1 / -1; margin: 0; font-size: 19px; font-weight: 600; }}
figure {{ margin: 0; }}
.picture {{ box-sizing: border-box; width: {cell}px; height: {cell}px; background: var(--cell);
  border: {frame}px solid; display: grid; place-items: center; }}
.picture svg {{ display: block; }}
rect {{ fill: none; vector-effect: non-scaling-stroke; }}
figcaption {{ padding-top: 4px; white-space: pre; overflow: hidden; }}
</style>
<h1>{title}</h1>
<main>
<section class="queries" aria-label="query">
{queries}
</section>
<section class="results" aria-label="results">
{results}
</section>
</main>
</html>
"""


def _html(queries: Sequence[Tile], results: Sequence[Tile], title: str) -> str:
    return _PAGE.format(
        title=escape(title),
        cell=_CELL,
        frame=_FRAME,
        queries="\n".join(map(_figure, queries, _query_colors(queries))),
        results="\n".join(
            f"<h2>{escape(tile.heading)}</h2>" * bool(tile.heading)
            + _figure(tile, _colors(len(tile.boxes)))
            for tile in results
        ),
    )


def _figure(tile: Tile, colors: Sequence[str]) -> str:
    """A tile as HTML; the boxes are SVG rectangles in the frame of the full picture."""
    height, width = tile.image.shape[:2]
    picture = _thumbnail(tile.image, 2 * THUMBNAIL)  # sharp on a dense screen
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    rectangles = "".join(
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" '
        f'height="{max(y1 - y0, 0):.1f}" stroke="{stroke}" stroke-width="{width_in_pixels}"/>'
        for (x0, y0, x1, y1), color in _drawn(tile, colors)
        for stroke, width_in_pixels in (("#000", 5), (color, 3))
    )
    caption = "\n".join(
        _shortened(line, lambda part: len(part) <= _CAPTION_LETTERS)
        for line in _caption_lines(tile.caption)
    )
    return (
        f'<figure title="{escape(tile.caption)}">'
        f'<div class="picture" style="border-color: {_FRAME_COLORS[tile.good]}">'
        f'<svg viewBox="0 0 {width} {height}" width="{max(1, picture.width // 2)}" '
        f'height="{max(1, picture.height // 2)}" role="img" '
        f'aria-label="{escape(tile.caption)}, {_FRAME_WORDS[tile.good]}">'
        f'<image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}"/>'
        f"{rectangles}</svg></div><figcaption>{escape(caption)}</figcaption></figure>"
    )
