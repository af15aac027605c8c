"""How often text that is written into a drawn retina is missed, and how often a plain one is taken to hold some.

    python benchmarks/burnt_in_text.py [--pictures 144]

Random names, dates and numbers are written at the edges of drawn retinas, five times on each, in eight colours, and
half of them are stored as JPEG. The fonts are Pillow's and OpenCV's own, so that the figures are the same everywhere;
DejaVu and Liberation were used while the search was written, with other seeds. A text is missed if no box touches it,
and covered if the boxes hold all of it that can be seen. Text that cannot be seen, such as black on the border, is left
out. Figures of the last run: docs/RESULTS.md.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from keepfit_clip.drawing import KINDS, draw_retina
from keepfit_clip.images.burnt_in_text import find_text, mask_text
from keepfit_clip.images.reading import encode_jpeg, open_image

SEED = 7
SIZES = 512, 768, 1024
HEIGHTS = (0.012, 0.018), (0.018, 0.03), (0.03, 0.06)  # of capitals, as a share of the picture's side
TEXTS = 5  # on each picture
VISIBLE = 40  # of 255, by how much a pixel of a text differs from the picture
COLOURS = "white", "yellow", "lime", "cyan", "red", "orange", "gray", "black"
CHINESE = "张伟李娜王芳刘洋陈静杨敏赵磊黄勇周强吴艳徐杰孙丽朱军高明"

Writer = Callable[[str, float], Image.Image]  # (text, height in pixels) -> L, how much of a pixel is covered


def pillow_writer(font: str | None = None) -> Writer:
    """Writes with a TrueType font, or Pillow's own."""

    def write(text: str, height: float) -> Image.Image:
        size = height / 0.72
        loaded = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
        box = loaded.getbbox(text)
        mask = Image.new("L", (int(box[2] - box[0]) + 2, int(box[3] - box[1]) + 2))
        ImageDraw.Draw(mask).text((1 - box[0], 1 - box[1]), text, 255, loaded)
        return mask

    return write


def opencv_writer(face: str) -> Writer:
    """Writes with one of the fonts that OpenCV holds: sans, italic or uni."""

    def write(text: str, height: float) -> Image.Image:
        size = max(6, round(height / 0.72))
        canvas = np.zeros((3 * size, size * len(text) * 2, 3), np.uint8)
        cv2.putText(canvas, text, (size, 2 * size), (255, 255, 255), cv2.FontFace(face), size, 400)
        return cut_out(Image.fromarray(canvas[..., 0]))

    return write


def cut_out(mask: Image.Image) -> Image.Image:
    """The part of a mask that is not empty."""
    return mask.crop(mask.getbbox())


HELD_OUT = {
    "Pillow": pillow_writer(),
    "OpenCV sans": opencv_writer("sans"),
    "OpenCV italic": opencv_writer("italic"),
    "OpenCV, Chinese": opencv_writer("uni"),
}


def draw_line(rng: np.random.Generator, chinese: bool = False) -> str:
    """A name, a date, a number, or two of them."""
    letters = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

    def word() -> str:
        return "".join(rng.choice(letters, rng.integers(3, 9))).capitalize()

    if chinese:
        name = "".join(rng.choice(list(CHINESE), 3))
    else:
        name = f"{word()}, {word()}" if rng.random() < 0.5 else f"{word()} {word()}".upper()
    year, month, day = rng.integers(1930, 2026), rng.integers(1, 13), rng.integers(1, 29)
    dates = f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}", f"{month:02}/{day:02}/{year}"
    date = str(rng.choice(dates))
    number = f"ID {rng.integers(10**5, 10**8)}"
    return str(rng.choice([name, date, number, f"{name} {date}", f"{name} {number}"]))


def write(image: Image.Image, mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray, str]:
    """A picture with text at one of its edges or corners, where the text is, (H, W) bool, and the place's name."""
    spare = np.array(image.size) - mask.size
    margin = image.width * rng.uniform(0.005, 0.04)
    along = [margin, spare[0] / 2, spare[0] - margin]
    places = [(x, y) for x in along for y in (margin, spare[1] - margin)]
    places += [(x, spare[1] * rng.uniform(0.2, 0.8)) for x in (along[0], along[2])]
    number = int(rng.integers(len(places)))
    left, upper = np.maximum(0, places[number]).astype(int).tolist()
    layer = Image.new("L", image.size)
    layer.paste(mask, (left, upper))
    ground = np.asarray(image).max(axis=2)[np.asarray(layer) > 100]
    colours = COLOURS[:-1] if np.median(ground) < 120 else COLOURS
    picture = image.copy()
    picture.paste(Image.new("RGB", image.size, str(rng.choice(colours))), (0, 0), layer)
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(image)).max(axis=2)
    return (
        picture,
        difference > VISIBLE,
        ("corner", "corner", "top", "bottom", "corner", "corner", "side", "side")[number],
    )


def retinas(seed: int, count: int) -> list[tuple[str, Image.Image]]:
    """Drawn retinas of every kind and size: modality and picture."""
    drawn = []
    for number in range(count):
        modality, condition = KINDS[number % len(KINDS)]
        size = SIZES[number // len(KINDS) % len(SIZES)]
        drawn.append((modality, draw_retina(modality, condition, [seed, number], size).image))
    return drawn


def covered(shown: np.ndarray, boxes: list) -> float:
    """The share of the text's pixels that the boxes hold."""
    inside = np.zeros_like(shown)
    for left, upper, right, lower in boxes:
        inside[upper:lower, left:right] = True
    return float((inside & shown).sum() / shown.sum())


def measure(pictures: list[tuple[str, Image.Image]], writers: dict[str, Writer], seed: int) -> list[dict]:
    """Writes on every picture and looks for it: one row for each text that can be seen."""
    rng = np.random.default_rng(seed)
    rows = []
    for modality, plain in pictures * TEXTS:
        font, span = str(rng.choice(list(writers))), HEIGHTS[rng.integers(len(HEIGHTS))]
        text = draw_line(rng, chinese=font.endswith("Chinese"))
        mask = writers[font](text, rng.uniform(*span) * plain.width)
        if mask.width > plain.width:
            continue
        picture, shown, place = write(plain, mask, rng)
        if shown.sum() < (np.asarray(mask) > 100).sum() / 2:
            continue
        if rng.random() < 0.5:
            picture = open_image(encode_jpeg(picture, 85))
        share = covered(shown, boxes := find_text(picture))
        again = bool(boxes) and bool(find_text(mask_text(picture, boxes)))
        rows.append(
            {"modality": modality, "height": span, "font": font, "place": place, "share": share, "again": again}
        )
    return rows


def rate(count: int, total: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return f"{count / total:.3f} ({low:.3f} to {high:.3f})"


def table_of(rows: list[dict]) -> Table:
    """Misses by modality, height and font."""
    table = Table("texts", "", "n", "missed", "covered wholly")
    groups = [("all", "", rows)]
    for what in ("modality", "place", "height", "font"):
        values = sorted({row[what] for row in rows})
        groups += [(what, value, [row for row in rows if row[what] == value]) for value in values]
    side = [row for row in rows if row["place"] == "side"]
    groups += [("side", value, [row for row in side if row["modality"] == value]) for value in ("CFP", "FFA", "OCT")]
    for what, value, chosen in groups:
        name = f"{value[0]:.1%} to {value[1]:.1%}" if what == "height" else value
        missed, whole = sum(row["share"] == 0 for row in chosen), sum(row["share"] == 1 for row in chosen)
        table.add_row(what, name, str(len(chosen)), rate(missed, len(chosen)), rate(whole, len(chosen)))
    return table


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=144)
    pictures = retinas(SEED, parser.parse_args().pictures)
    console = Console(width=110)
    alarms = Table("plain pictures", "n", "false alarms", "ms a picture")
    for modality in dict.fromkeys(modality for modality, _ in pictures):
        plain = [picture for name, picture in pictures if name == modality]
        start = time.process_time()
        found = sum(bool(find_text(picture)) for picture in plain)
        seconds = time.process_time() - start
        alarms.add_row(modality, str(len(plain)), rate(found, len(plain)), f"{1000 * seconds / len(plain):.1f}")
    console.print(alarms)
    rows = measure(pictures, HELD_OUT, SEED)
    console.print(table_of(rows))
    console.print(f"text found again after it was masked: {sum(row['again'] for row in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
