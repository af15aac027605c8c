"""From a category to a text: FLAIR's prompts (arXiv 2308.07898), per modality, with names or visible findings."""

import random
import re
from collections.abc import Sequence

from keepfit_clip.knowledge.conditions import Knowledge, Term

__all__ = ["category_text", "class_texts", "classes_texts", "draw_text", "mentions_place", "modality_text"]

# Modality -> (article, noun)
_IMAGES = {
    "CFP": ("a", "fundus photograph"),
    "FFA": ("a", "fluorescein angiogram"),
    "OCT": ("an", "optical coherence tomography scan"),
    None: ("a", "retinal image"),
}

_LOCATION = re.compile(
    r"\b(left|right|od|os|ou|oi|nasal\w*|temporal\w*|superior\w*|inferior\w*|supero\w*|infero\w*|upper|lower|"
    r"quadrants?|o'?clock|hemifield|above|below|bilateral\w*|unilateral\w*)\b",
    re.IGNORECASE,
)


def mentions_place(text: str) -> bool:
    """Whether a text speaks of a side or place, so that the image must not be mirrored."""
    return _LOCATION.search(text) is not None


def category_text(names: Sequence[str], modality: str | None, attributes: Sequence[str] = ()) -> str:
    """The plain text of an image: "A [attributes] fundus photograph of [names]".

    Args:
        names: names of what the image shows, at least one.
        modality: CFP, FFA, OCT or None.
        attributes: words of the image itself, such as its quality.
    """
    return f"{_image_of(modality, attributes)} of {_listed(names)}"


def modality_text(modality: str | None) -> str:
    """What an image of a modality is, and no more: "A fundus photograph"."""
    return _image_of(modality)


def draw_text(
    categories: Sequence[str],
    modality: str | None,
    knowledge: Knowledge,
    rng: random.Random,
    attributes: Sequence[str] = (),
    eye: str | None = None,
) -> tuple[str, str]:
    """Draws a text for an image: one of its categories, by name, as a statement or by a visible finding.

    Args:
        categories: canonical names of what is true of the image, at least one.
        modality: CFP, FFA, OCT or None.
        knowledge: where names and findings come from.
        rng: decides.
        attributes: words of the image itself, used half of the time.
        eye: left, right or None; named a quarter of the time, because an image whose eye is named is not mirrored.

    Returns:
        The text and the category it speaks of.
    """
    category = rng.choice(list(categories))
    used_attributes = list(attributes) if rng.random() < 0.5 else []
    if eye is not None and rng.random() < 0.25:
        used_attributes.append(f"{eye} eye")
    term = knowledge.look_up(category)
    findings = term.findings(modality)
    if findings and rng.random() < 0.5:
        return f"{_image_of(modality, used_attributes)} showing {rng.choice(findings)}", category
    if rng.random() < 0.5:
        return f"{_image_of(modality, used_attributes)}: {term.statement}", category
    return category_text([rng.choice(term.names)], modality, used_attributes), category


def class_texts(category: str, modality: str | None, knowledge: Knowledge, descriptions: bool = True) -> list[str]:
    """Every text a zero-shot class stands for; their embeddings are averaged.

    Args:
        category: any name of the class.
        modality: CFP, FFA, OCT or None.
        knowledge: where names and findings come from.
        descriptions: False gives the canonical name alone.
    """
    term = knowledge.look_up(category)
    if not descriptions:
        return [category_text([term.name], modality)]
    named, seen = _texts_of(term, modality)
    return named + seen


def classes_texts(
    categories: Sequence[str], modality: str | None, knowledge: Knowledge, descriptions: bool = True
) -> list[list[str]]:
    """`class_texts` of classes that are compared with each other: on equal terms.

    Visible findings count only where each class has some: a class that has none, such as a denial, would be judged by
    its name alone beside others that are judged by how they look.
    """
    terms = [knowledge.look_up(category) for category in categories]
    if descriptions and not all(term.findings(modality) for term in terms):
        return [_texts_of(term, modality)[0] for term in terms]
    return [class_texts(category, modality, knowledge, descriptions) for category in categories]


def _texts_of(term: Term, modality: str | None) -> tuple[list[str], list[str]]:
    """What names a category, and what tells how it looks."""
    image = _image_of(modality)
    named = [category_text([name], modality) for name in term.names]
    return [*named, f"{image}: {term.statement}"], [f"{image} showing {seen}" for seen in term.findings(modality)]


def _image_of(modality: str | None, attributes: Sequence[str] = ()) -> str:
    article, noun = _IMAGES[modality]
    if attributes:
        noun = f"{', '.join(attributes)} {noun}"
        article = "an" if noun[0].lower() in "aeio" else "a"
    return f"{article.capitalize()} {noun}"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
