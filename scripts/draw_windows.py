"""Draws the proposals of DMIH on a picture: the windows of each scale, with one of them marked.

Run: python scripts/draw_windows.py PICTURE OUTPUT.png [--short 320] [--stride 32]
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from regionhash.data.images import read_image
from regionhash.data.transforms import to_input
from regionhash.parts.multiscale import window_boxes

SCALES = 3
COLORS = ("#ffb000", "#38b6ff", "#ff5fd2")
GAP = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--short", type=int, default=320, help="side of the network's input")
    parser.add_argument("--stride", type=int, default=32, help="of the backbone's last stage")
    args = parser.parse_args()

    tensor, _ = to_input(read_image(args.picture), args.short)
    picture = Image.fromarray(tensor.permute(1, 2, 0).numpy())
    height, width = picture.height // args.stride, picture.width // args.stride
    boxes = (window_boxes(height, width, SCALES) * args.stride).tolist()
    sheet = Image.new("RGB", (SCALES * (picture.width + GAP) - GAP, picture.height), "white")
    for scale, color in enumerate(COLORS):
        columns = -(-width // 2**scale)
        n = -(-height // 2**scale) * columns
        own, boxes = boxes[:n], boxes[n:]
        panel = picture.copy()
        draw = ImageDraw.Draw(panel)
        for x0, y0, x1, y1 in own:  # a dot for each window, one of them as a whole
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), color, "black")
        x0, y0, x1, y1 = own[n // 2 - n // 2 % columns + columns // 2]
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline="black", width=7)
        draw.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline=color, width=4)
        sheet.paste(panel, (scale * (picture.width + GAP), 0))
    sheet.save(args.output)


if __name__ == "__main__":
    main()
