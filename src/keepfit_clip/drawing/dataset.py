"""A folder of drawn pictures with the tables that describe them.

images/000000.png              the pictures
masks/000000-hard-exudates.png where lesions are, one file per kind
retina.csv                     every picture: image, caption, categories, modality, patient, eye
elite.csv                      a part of them, the same columns
public.csv                     the others, by condition alone, in FLAIR's columns and the modality
sheet.jpg                      a contact sheet: a row for every kind
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from keepfit_clip.drawing.retina import KINDS, DrawnRetina, draw_number
from keepfit_clip.errors import ConfigError
from keepfit_clip.files import new_folder, require_free

__all__ = ["DrawOptions", "draw_dataset"]

_SHEET_COLUMNS, _SHEET_CELL, _SHEET_MARGIN = 6, 128, 16
_GOLDEN = 0.6180339887  # spreads the elite pictures evenly over the kinds


@dataclass(frozen=True)
class DrawOptions:
    """What to draw.

    Args:
        count: number of pictures.
        size: width and height, pixels.
        seed: of everything.
        elite: share of the pictures that goes to elite.csv with captions; the others go to public.csv.
        kinds: (modality, condition) pairs, drawn in turn.
    """

    count: int
    size: int = 128
    seed: int = 0
    elite: float = 0.1
    kinds: tuple[tuple[str, str], ...] = KINDS

    def __post_init__(self):
        if self.count < 1:
            raise ConfigError(f"the number of pictures is {self.count}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"the seed is {self.seed}; it must not be negative")
        if not 0 <= self.elite <= 1:
            raise ConfigError(f"the elite share is {self.elite}; it must be between 0 and 1")

    def is_elite(self, number: int) -> bool:
        """Whether a picture is described by a caption; the share holds within every kind."""
        turn, kind = divmod(number, len(self.kinds))
        return (turn * self.elite + kind * _GOLDEN) % 1 < self.elite


def draw_dataset(
    out: str | Path, options: DrawOptions, progress: Callable[[Sequence[int]], Iterable[int]] = iter
) -> None:
    """Draws pictures, masks and tables into a new folder.

    Args:
        out: folder to make; it appears only when complete.
        options: what to draw.
        progress: wraps the numbers of the pictures.

    Raises:
        OutputError: `out` holds something already, cannot be made, or no space is left.
        ConfigError: a size below 32 or above 4096 pixels.
    """
    require_free(out)
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        rows = [_draw_one(folder, options, number) for number in progress(range(options.count))]
        _write_tables(folder, rows, options)
        _write_sheet(folder, rows, options)


def _draw_one(folder: Path, options: DrawOptions, number: int) -> dict:
    """Writes a picture and its masks and returns its row."""
    retina = draw_number(number, options.seed, options.size, options.kinds)
    name = f"{number:06d}"
    retina.image.save(folder / "images" / f"{name}.png", compress_level=1)
    for lesion, mask in retina.masks.items():
        Image.fromarray(mask).save(folder / "masks" / f"{name}-{lesion.replace(' ', '-')}.png")
    return _row(f"images/{name}.png", number, retina)


def _row(image: str, number: int, retina: DrawnRetina) -> dict:
    return {
        "image": image,
        "caption": retina.caption,
        "categories": repr(list(retina.categories)),
        "modality": retina.modality,
        "patient": str(number),  # every picture is a patient of its own
        "eye": retina.eye,
    }


def _write_tables(folder: Path, rows: list[dict], options: DrawOptions) -> None:
    elite = [row for number, row in enumerate(rows) if options.is_elite(number)]
    public = [
        {
            "image": row["image"],
            "atributes": "[]",
            "categories": repr([options.kinds[number % len(options.kinds)][1]]),
            "modality": row["modality"],
        }
        for number, row in enumerate(rows)
        if not options.is_elite(number)
    ]
    for name, table in (("retina", rows), ("elite", elite), ("public", public)):
        if table:
            with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)


def _write_sheet(folder: Path, rows: list[dict], options: DrawOptions) -> None:
    """The first pictures of every kind, side by side under its name."""
    kinds = options.kinds[: len(rows)]
    columns = min(_SHEET_COLUMNS, -(-len(rows) // len(kinds)))
    height = _SHEET_CELL + _SHEET_MARGIN
    sheet = Image.new("RGB", (columns * _SHEET_CELL, len(kinds) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for line, kind in enumerate(kinds):
        pen.text((4, line * height + 2), " - ".join(kind), fill="black")
        for column, row in enumerate(rows[line :: len(options.kinds)][:columns]):
            with Image.open(folder / row["image"]) as picture:
                cell = picture.resize((_SHEET_CELL, _SHEET_CELL), Image.Resampling.BICUBIC)
            sheet.paste(cell, (column * _SHEET_CELL, line * height + _SHEET_MARGIN))
    sheet.save(folder / "sheet.jpg", quality=75)
