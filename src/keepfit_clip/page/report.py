"""A self-contained HTML page of figures, charts, tables and pictures."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from keepfit_clip.images.reading import encode_jpeg, fit_within, open_image
from keepfit_clip.page.templates import render_template

__all__ = ["Card", "Figure", "Section", "picture_uri", "render_report"]


@dataclass(frozen=True)
class Figure:
    """A number at the head of the page: its name, its value as text, and what it has to be compared with."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Card:
    """A picture ("" for none) with facts (name, text) beside it, marked by whether the model was right."""

    image: str
    facts: list[tuple[str, str]]
    right: bool


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: of the part.
        text: a paragraph.
        chart: an SVG text, or several one after the other; it goes into the page as it is.
        header, rows: of a table.
        bars: names and counts, drawn as bars.
        cards: pictures with facts.
        sheet: pictures with a line each, close together.
        folded: only its title is seen until it is opened.
    """

    title: str
    text: str = ""
    chart: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    bars: list[tuple[str, int]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    sheet: list[tuple[str, str]] = field(default_factory=list)
    folded: bool = False


def render_report(title: str, subtitle: str, figures: list[Figure], sections: list[Section]) -> str:
    """The page as HTML; everything but charts is escaped."""
    values = {"title": title, "subtitle": subtitle, "figures": figures, "sections": sections}
    return render_template("report.html.j2", **values)


def picture_uri(picture: str | Path | bytes | Image.Image, quality: int = 90, longest: int | None = None) -> str:
    """An image, a file or its content or what was read of it, as a data URI without any metadata.

    Args:
        picture: where it is, or itself in RGB.
        quality: of the JPEG.
        longest: most pixels of its longer side.

    Raises:
        ImageError: it cannot be read.
    """
    image = picture if isinstance(picture, Image.Image) else open_image(picture)
    content = base64.b64encode(encode_jpeg(fit_within(image, longest), quality)).decode()
    return f"data:image/jpeg;base64,{content}"
