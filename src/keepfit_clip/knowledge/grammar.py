"""English around the name of a condition: its number, its article, and what states or denies it."""

import re

__all__ = ["article", "in_image", "is_plural", "listed", "statement"]

_PLURALS = {"drusen", "foci", "nevi"}
_NOT_PLURAL = ("ss", "us", "is", "as", "os")
_SINGULAR_NAMES = {"lens", "diabetes", "rubeosis", "series"}
# The head of a name stands before these.
_TAIL = re.compile(r"\s(?:of|in|due to|with|without|on|after|from|at|by|before|under|secondary to|that|requiring)\s.*$")
_WHOLE = re.compile(r"^(?:normal|healthy|unremarkable|abnormal|diseased)\b")
_COUNTED = ("eye", "suspect", "cup", "buckle", "state", "fundus", "lens")  # that need an article
_OF_THE_EYE = ("retina", "fundus", "macula", "eye", "disc", "head", "vessels", "vasculature")


def is_plural(name: str) -> bool:
    """Whether a name of a condition is a plural: "hard exudates" is, "macular edema of the eyes" is not."""
    head = _TAIL.sub("", name).split()[-1].lower()
    return head in _PLURALS or (head.endswith("s") and not head.endswith(_NOT_PLURAL) and head not in _SINGULAR_NAMES)


def article(words: str) -> str:
    """The indefinite article that stands before words."""
    return "an" if words[:1].lower() in "aeio" or words.lower().startswith(("unre", "ungr", "unu")) else "a"


def listed(words: list[str] | tuple[str, ...], last_by: str = "and") -> str:
    """Words with commas, and an "and" or "or" before the last."""
    *first, last = words
    return f"{', '.join(first)} {last_by} {last}" if first else last


def statement(name: str) -> str:
    """A category as a report states it: "glaucoma is present", "the macula is normal"."""
    if denied := _denied(name):
        if denied.endswith(" phase"):
            return f"the {denied} is not shown"
        quality = _quality(denied)
        return f"the image is not {quality}" if quality and " " not in quality else f"{denied} {_be(denied)} absent"
    if quality := _quality(name):
        word = quality.removesuffix(" image quality").removesuffix(" quality")
        return f"the image is {word}" if word == quality else f"the image quality is {word}"
    if name.endswith(" phase"):
        return f"the {name} is shown"
    if name in ("normal", "abnormal", "within normal limits"):
        return f"the retina is {name}"
    word, _, rest = name.partition(" ")
    if word in ("normal", "healthy", "unremarkable", "abnormal") and rest.split()[-1] in _OF_THE_EYE:
        return f"the {rest} {_be(rest)} {word}"
    return f"{name} {_be(name)} present"


def in_image(names: list[str] | tuple[str, ...], image: str) -> str:
    """An image of what it shows: "a fundus photograph of glaucoma and cataract, without drusen".

    Args:
        names: of what is there or, behind "no", is not; at least one.
        image: such as "color fundus photograph", without an article.
    """
    adjectives = [quality for name in names if (quality := _quality(name)) and " " not in quality]
    shown = [_shown(name) for name in names if not (_denied(name) or name.endswith(" phase") or _quality(name))]
    shown += [quality for name in names if (quality := _quality(name)) and " " in quality]
    phases = [f"the {name}" for name in names if name.endswith(" phase") and not _denied(name)]
    denied = [word for name in names if (word := _denied(name))]
    unlike = [quality for word in denied if (quality := _quality(word)) and " " not in quality]
    denied = [word for word in denied if _quality(word) not in unlike]
    image = " ".join([*adjectives, image])
    text = f"{article(image)} {image}"
    text += f" of {listed(shown)}" if shown else ""
    text += f" that is not {listed(unlike, 'or')}" if unlike else ""
    text += f" in {listed(phases)}" if phases else ""
    text += f"{',' if shown else ''} without {listed(denied, 'or')}" if denied else ""
    return text[0].upper() + text[1:]


def _shown(name: str) -> str:
    """A name behind "of"."""
    if name in ("normal", "abnormal", "within normal limits"):
        return "a retina within normal limits" if name.startswith("within") else f"{article(name)} {name} retina"
    if _WHOLE.match(name) and not is_plural(name) and name.split()[-1] in _OF_THE_EYE[:-1]:
        return f"{article(name)} {name}"
    if not is_plural(name) and name.split()[-1] in _COUNTED:
        return f"{article(name)} {name}"
    return name


def _denied(name: str) -> str:
    """What a category denies: "glaucoma" of "no glaucoma" and of "absence of glaucoma"; "" for anything else."""
    match = re.match(r"(?:no|absence of) (.+)", name)
    return match[1] if match else ""


def _quality(name: str) -> str:
    """What a name says of an image: "noisy" of "noisy image", "good image quality" itself; "" where it does not."""
    if _denied(name):
        return ""
    if name.endswith(" image") and not _WHOLE.match(name):
        return name.removesuffix(" image")
    return name if name.endswith("image quality") else ""


def _be(name: str) -> str:
    return "are" if is_plural(name) else "is"
