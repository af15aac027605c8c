"""Drawn fundus photographs under names that must never reach an output, and the tables that describe them."""

import csv
from pathlib import Path

from keepfit_clip.drawing import DrawnRetina, draw_retina

CONDITIONS = ("normal", "diabetic retinopathy", "glaucoma", "cataract")


def write_public(folder: Path, count: int = 16, name: str = "public.csv", seed: int = 0) -> Path:
    """Pictures and a FLAIR table; returns the table."""
    rows = [
        {"image": image, "atributes": "[]", "categories": repr([retina.condition])}
        for image, retina in _draw_all(folder, count, "public", seed)
    ]
    return write_table(folder / name, rows)


def write_elite(folder: Path, count: int = 16, name: str = "elite.csv", seed: int = 1) -> Path:
    """Pictures and a caption table, two pictures of each patient; returns the table."""
    rows = [
        {
            "image": image,
            "caption": retina.caption,
            "categories": repr(list(retina.categories)),
            "modality": "CFP",
            "patient": f"Doe-{number // 2}",
            "eye": retina.eye,
        }
        for number, (image, retina) in enumerate(_draw_all(folder, count, "elite", seed))
    ]
    return write_table(folder / name, rows)


def write_table(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _draw_all(folder: Path, count: int, kind: str, seed: int) -> list[tuple[str, DrawnRetina]]:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    drawn = []
    for number in range(count):
        eye = ("left", "right")[number // 4 % 2]
        retina = draw_retina("CFP", CONDITIONS[number % 4], [seed, number], 64, eye)
        name = f"{kind}/Jane_Doe_1961-03-05_{number}.png"
        retina.image.save(folder / name)
        drawn.append((name, retina))
    return drawn


def drawn(folder: Path, number: int = 0) -> str:
    """A file with one picture, under a name that must not be seen."""
    path = folder / f"Jane_Doe_{number}.png"
    draw_retina("CFP", ("glaucoma", "cataract")[number % 2], number, 96).image.save(path)
    return str(path)


def files_below(folder: Path) -> list[Path]:
    """The files anywhere in a folder that hold something."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.stat().st_size
        and path.name != "_remote_module_non_scriptable.py"  # torch's own, before 2.9
    ]
