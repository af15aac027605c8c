"""What `keepfit-clip explain` leaves: overlays as PNG, a page, and the figures as JSON. Nothing names an input file."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from keepfit_clip.explain.maps import Explanation, heat_overlay
from keepfit_clip.files import new_folder, write_json, write_text
from keepfit_clip.page.report import Section, picture_uri, render_report

__all__ = ["PAGE", "write_explanations"]

PAGE, FIGURES = "explain.html", "explanations.json"
_SUBTITLE = (
    "Warm places speak for a category, or are where the decoder looked more than for the rest of the caption while it "
    "wrote a word; each map has its own scale. A map is no proof: how often such maps hit a known lesion is measured "
    "in the documentation."
)


def write_explanations(out: Path, explanations: Iterable[tuple[int, Explanation]], model: str) -> None:
    """Makes a folder of `explain.html`, `explanations.json` and a folder of overlays for each image.

    Args:
        out: folder to make.
        explanations: number of an image and its explanation; images are called by their number.
        model: name of the model, without the path it lies under.
    """
    sections, figures = [], []
    with new_folder(out) as folder:
        for number, explanation in explanations:
            image_folder = folder / f"image-{number}"
            image_folder.mkdir()
            explanation.picture.save(image_folder / "image.png")
            sections.append(_section(number, explanation, image_folder))
            figures.append(_as_json(number, explanation))
        write_json(folder / FIGURES, {"model": model, "images": figures})
        write_text(folder / PAGE, render_report("Where the model looks", _SUBTITLE, [], sections))


def _section(number: int, explanation: Explanation, folder: Path) -> Section:
    """Writes the overlays of an image and gives its part of the page."""
    sheet = [(picture_uri(explanation.picture), "the image as the model sees it")]

    def add(heat: np.ndarray, file: str, line: str) -> None:
        overlay = heat_overlay(explanation.picture, heat)
        overlay.save(folder / f"{file}.png")
        sheet.append((picture_uri(overlay), line))

    for index, name in enumerate(explanation.categories):
        known = not np.isnan(explanation.probabilities[index])
        chance = f", probability {explanation.probabilities[index]:.3f}" if known else ""
        add(explanation.similarity[index], f"similarity-{index + 1:02d}-{_slug(name)}", f"{name}: similarity{chance}")
        if explanation.grad_cam is not None:
            add(explanation.grad_cam[index], f"grad-cam-{index + 1:02d}-{_slug(name)}", f"{name}: Grad-CAM")
    for index, word in enumerate(explanation.words, start=1):
        add(word.heat, f"word-{index:02d}-{_slug(word.word)}", f"word {index}: {word.word}")
    return Section(f"Image {number}", f"Caption: {explanation.caption}" if explanation.caption else "", sheet=sheet)


def _as_json(number: int, explanation: Explanation) -> dict:
    probabilities = [None if np.isnan(value) else float(value) for value in explanation.probabilities]
    return {
        "image": number,
        "categories": dict(zip(explanation.categories, probabilities, strict=True)),
        "caption": explanation.caption,
        "words": [word.word for word in explanation.words],
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")[:60] or "other"
