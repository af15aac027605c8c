"""What `keepfit-clip explain` leaves: overlays as PNG, a page, and the figures as JSON. Nothing names an input file."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from keepfit_clip.explain.maps import (
    STRENGTH,
    Explanation,
    colour_ramp,
    heat_ends,
    heat_layer,
    heat_overlay,
)
from keepfit_clip.explain.measured import CENTRE_GUESS, POINTING_GAME
from keepfit_clip.files import new_folder, write_json, write_text
from keepfit_clip.images.reading import fit_within
from keepfit_clip.page.provenance import in_words, provenance
from keepfit_clip.page.report import picture_uri
from keepfit_clip.page.templates import render_template

__all__ = ["PAGE", "write_explanations"]

PAGE, FIGURES = "explain.html", "explanations.json"
_LONGEST = 1024  # pixels of a picture on the page
_LONGEST_LAYER = 256  # of a heat map, which is smooth
_SUBTITLE = (
    "Choose a map: it lies over the picture. Warm places speak for a category, or are where the decoder looked more "
    "than for the rest of the caption while it wrote a word; each map has its own scale. A map is no proof."
)
_NOT_MEASURED = (
    "How often maps hit a lesion was measured for convolutional towers at twice their size. These maps are made "
    "otherwise (of another kind of tower, or at another size), so nothing is known of how far they can be trusted."
)
_UNITS = {
    "similarity": "similarity, more than the mean of all categories",
    "Grad-CAM": "Grad-CAM, of its own highest",
    "attention": "attention, times its mean over the caption",
}


@dataclass
class _Map:
    """A heat map on the page: what it is called, its kind, its colours and its scale."""

    name: str
    kind: str
    layer: str
    unit: str
    low: str
    high: str
    warning: str


@dataclass
class _Look:
    """An image on the page: its maps, and which of them each category (kind of map by number) and word has."""

    number: int
    picture: str
    width: int
    height: int
    caption: str | None
    first: int = -1
    maps: list[_Map] = field(default_factory=list)
    categories: list[dict] = field(default_factory=list)
    words: list[tuple[int, str]] = field(default_factory=list)


def write_explanations(
    out: Path, explanations: Iterable[tuple[int, Explanation]], model: str, about: Mapping[str, str] | None = None
) -> None:
    """Makes a folder of `explain.html`, `explanations.json` and a folder of overlays for each image.

    Args:
        out: folder to make.
        explanations: number of an image and its explanation; images are called by their number.
        model: name of the model, without the path it lies under.
        about: further facts of how the page was made.
    """
    looks, figures, as_measured = [], [], True
    with new_folder(out) as folder:
        for number, explanation in explanations:
            image_folder = folder / f"image-{number}"
            image_folder.mkdir()
            explanation.picture.save(image_folder / "image.png")
            looks.append(_look(number, explanation, image_folder))
            as_measured &= explanation.as_measured
            figures.append(_as_json(number, explanation))
        made = provenance()
        write_json(folder / FIGURES, {"model": model, "made": made, "images": figures})
        write_text(folder / PAGE, _page(looks, as_measured, {"model": model, **(about or {}), **_as_facts(made)}))


def _page(looks: list[_Look], as_measured: bool, facts: Mapping[str, str]) -> str:
    shown = {map_.kind for look in looks for map_ in look.maps}
    ramp = ", ".join(f"rgb{colour}" for colour in colour_ramp())
    return render_template(
        "explain.html.j2",
        title="Where the model looks",
        subtitle=_SUBTITLE,
        measured=_measured([kind for kind in _UNITS if kind in shown]) if as_measured else _NOT_MEASURED,
        looks=looks,
        most=max((len(look.maps) for look in looks), default=0),
        ramp=ramp,
        strength=STRENGTH,
        facts=list(facts.items()),
    )


def _measured(kinds: Sequence[str]) -> str:
    """How far maps of some kinds can be trusted, by drawn lesions whose places are known."""
    hits = ", ".join(f"{kind} {POINTING_GAME[kind].share:.0%}" for kind in kinds)
    return (
        "On drawn retinas, whose lesions are known, the hottest point of a map was on a lesion this often, with a "
        f"model trained on drawings: {hits}; a guess at the centre {CENTRE_GUESS.share:.0%}."
    )


def _warning(kind: str) -> str:
    """What stands beside a map of a kind that is no better than a guess."""
    if POINTING_GAME[kind].better_than(CENTRE_GUESS):
        return ""
    return (
        f"No better than a guess at the centre on drawn lesions ({POINTING_GAME[kind].share:.0%} against "
        f"{CENTRE_GUESS.share:.0%}): do not read a place out of it."
    )


def _as_facts(made: dict) -> dict[str, str]:
    return {"made": made["date"], "versions": in_words(made["versions"]), "hardware": made["hardware"]}


def _look(number: int, explanation: Explanation, folder: Path) -> _Look:
    """Writes the overlays of an image and gives its part of the page."""
    picture = fit_within(explanation.picture, _LONGEST)
    look = _Look(number, picture_uri(picture), *picture.size, explanation.caption)

    def add(heat: np.ndarray, kind: str, name: str, file: str) -> int:
        heat_overlay(explanation.picture, heat).save(folder / f"{file}.png")
        low, high = (f"{value:.3f}" for value in heat_ends(heat))
        look.maps.append(_Map(name, kind, _layer_uri(heat), _UNITS[kind], low, high, _warning(kind)))
        return len(look.maps) - 1

    kinds = {"similarity": explanation.similarity, "Grad-CAM": explanation.grad_cam}
    for index, name in enumerate(explanation.categories):
        picks = [
            (add(maps[index], kind, f"{name}: {kind}", f"{kind.lower()}-{index + 1:02d}-{_slug(name)}"), kind)
            for kind, maps in kinds.items()
            if maps is not None
        ]
        known = not np.isnan(explanation.probabilities[index])
        probability = float(explanation.probabilities[index]) if known else None
        look.categories.append({"name": name, "probability": probability, "picks": picks})
    look.categories.sort(key=lambda category: -(category["probability"] or 0))
    for index, word in enumerate(explanation.words, start=1):
        name = f"word {index}: {word.word}"
        look.words.append((add(word.heat, "attention", name, f"word-{index:02d}-{_slug(word.word)}"), word.word))
    if look.maps:
        look.first = look.categories[0]["picks"][0][0] if look.categories else 0
    return look


def _layer_uri(heat: np.ndarray) -> str:
    """A heat map's colours as a data URI, in few pixels."""
    layer = heat_layer(heat)
    layer.thumbnail((_LONGEST_LAYER, _LONGEST_LAYER), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    layer.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


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
