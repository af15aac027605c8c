"""What follows from what is known of an image: a text that is true of it is no negative of it.

From a condition follow those it is a form of, and from any disease "retinal disease"; from "normal" that a condition is
not there, whichever; from the absence of a condition the absence of its forms. As sets of a few codes each: a text
follows from an image's categories where `image_codes` and `text_codes` share one.
"""

from collections.abc import Iterable

from keepfit_clip.knowledge.conditions import Condition, Knowledge

__all__ = ["follows", "image_codes", "text_codes"]

_NORMAL, _ANY = "normal", "retinal disease"
# What is said of a photograph or an angiogram and is no disease, beside what is a form of it.
_NO_DISEASE = {_NORMAL, _ANY, "good image quality", "ungradable image", "choroidal phase", "arterial phase",
               "arteriovenous phase", "venous phase", "recirculation phase", "late phase"}  # fmt: skip


def image_codes(categories: Iterable[str], knowledge: Knowledge) -> list[str]:
    """Codes of what is true of an image, what was seen first.

    Args:
        categories: any names of what was seen, negations among them.
        knowledge: names and parents.
    """
    terms = [knowledge.look_up(category) for category in categories]
    codes = dict.fromkeys(term.name for term in terms)
    present = [term.condition for term in terms if term.condition is not None and not term.denies]
    for condition in present:
        codes.update(dict.fromkeys(knowledge.ancestors(condition.name)))
    if any(_is_disease(condition, knowledge) for condition in present):
        codes[_ANY] = None
    return list(codes)


def text_codes(category: str, knowledge: Knowledge) -> list[str]:
    """Codes of what makes a text true that names one category; the first is the category itself."""
    term = knowledge.look_up(category)
    if not term.denies:
        return [term.name]
    broader = knowledge.ancestors(term.condition.name)
    denied = [term.name, *(f"no {name}" for name in broader)]
    return [*denied, _NORMAL] if _is_disease(term.condition, knowledge) else denied


def follows(category: str, categories: Iterable[str], knowledge: Knowledge) -> bool:
    """Whether a category is true of an image of which some are known to be."""
    return not set(text_codes(category, knowledge)).isdisjoint(image_codes(categories, knowledge))


def _is_disease(condition: Condition, knowledge: Knowledge) -> bool:
    return _NO_DISEASE.isdisjoint((condition.name, *(set(knowledge.ancestors(condition.name)) - {_ANY})))
