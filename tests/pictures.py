"""Tiny made-up fundus pictures whose content is known, and the tables that describe them."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CONDITIONS = ("normal", "diabetic retinopathy", "glaucoma", "cataract")


def draw(condition: str, eye: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """A fundus: the disc on the nasal side, and one plain sign of the condition."""
    image = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(image)
    pen.ellipse([2, 2, size - 3, size - 3], fill=(190, 80, 30))
    x = size * (0.72 if eye == "right" else 0.28) + rng.uniform(-2, 2)
    y = size * 0.5 + rng.uniform(-2, 2)
    radius = size * (0.17 if condition == "glaucoma" else 0.09)
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(250, 230, 170))
    if condition == "diabetic retinopathy":
        for _ in range(14):
            a, b = rng.uniform(size * 0.2, size * 0.8, 2)
            pen.ellipse([a - 1.5, b - 1.5, a + 1.5, b + 1.5], fill=(70, 0, 0))
    if condition == "cataract":
        image = Image.blend(
            image.filter(ImageFilter.GaussianBlur(3)), Image.new("RGB", image.size, (170, 150, 130)), 0.6
        )
    return image


def caption(condition: str, eye: str) -> str:
    return f"Fundus photograph of the {eye} eye: {condition}."


def write_public(folder: Path, count: int = 16, name: str = "public.csv", seed: int = 0) -> Path:
    """Pictures and a FLAIR table; returns the table."""
    rows = []
    for condition, eye, image in _drawn(folder, count, "public", seed):
        rows.append({"image": image, "atributes": "[]", "categories": repr([condition])})
        del eye
    return write_table(folder / name, rows)


def write_elite(folder: Path, count: int = 16, name: str = "elite.csv", seed: int = 1) -> Path:
    """Pictures and a caption table; returns the table."""
    rows = [
        {
            "image": image,
            "caption": caption(condition, eye),
            "categories": repr([condition]),
            "modality": "CFP",
            "patient": f"Doe-{number // 2}",
            "eye": eye,
        }
        for number, (condition, eye, image) in enumerate(_drawn(folder, count, "elite", seed))
    ]
    return write_table(folder / name, rows)


def write_table(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _drawn(folder: Path, count: int, kind: str, seed: int):
    rng = np.random.default_rng(seed)
    (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        condition, eye = CONDITIONS[number % 4], ("left", "right")[number // 4 % 2]
        name = f"{kind}/Jane_Doe_1961-03-05_{number}.png"
        draw(condition, eye, rng).save(folder / name)
        yield condition, eye, name
