"""What a sample may hold, said once: building, checking and training refuse the same.

A text is refused as a whole where it holds half of a character (a surrogate without its other half, which JSON can
write and UTF-8 cannot), or is longer than anything that a person wrote of an image.
"""

from keepfit_clip.knowledge.conditions import MODALITIES

__all__ = [
    "MAX_IDS",
    "MAX_TEXT",
    "MAX_TEXT_BYTES",
    "check_description",
    "is_unicode",
    "json_text",
    "text_problem",
]

MAX_IDS = 16  # captions of an elite sample, categories of a public one: the ids that a batch holds of each
MAX_TEXT = 20_000  # characters of a caption, a category or an attribute
MAX_TEXT_BYTES = 4 << 20  # of a .json, .txt or .cls of a sample


def text_problem(text: str) -> str | None:
    """What makes a text unusable: it is empty, too long, or holds half of a character; None where nothing does."""
    if len(text) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters"
    if not text or text.isspace():
        return "is empty"
    if not is_unicode(text):
        return "holds half of a character (a lone surrogate)"
    return None


def is_unicode(text: str) -> bool:
    """Whether a text can be written in UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(content: bytes) -> str:
    """The text of a JSON file, strictly UTF-8; Python's own reading of bytes lets halves of characters in.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return content.removeprefix(b"\xef\xbb\xbf").decode()


def check_description(description) -> None:
    """Makes sure that the JSON of a sample can be trained on.

    Raises:
        ValueError: what is wrong with it, free of anything that stands in it.
    """
    if not isinstance(description, dict) or description.get("kind") not in ("public", "elite"):
        raise ValueError('its "kind" is neither public nor elite')
    if description.get("modality") not in (None, *MODALITIES):
        raise ValueError(f'its "modality" is none of {", ".join(MODALITIES)}')
    if description.get("eye") not in (None, "left", "right"):
        raise ValueError('its "eye" is neither left nor right')
    captions = description.get("captions", [])
    if not isinstance(captions, list) or not all(isinstance(caption, dict) for caption in captions):
        raise ValueError('its "captions" are not a list of {"lang", "text"}')
    _check_texts('a text of its "categories"', description.get("categories", []))
    _check_texts('a text of its "attributes"', description.get("attributes", []))
    _check_texts('a text of its "captions"', [caption.get("text") for caption in captions])
    _check_texts('a language of its "captions"', [caption.get("lang", "en") for caption in captions])
    _check_texts('its "dataset"', [value] if (value := description.get("dataset")) not in (None, "") else [])
    _check_texts('its "group"', [value] if not isinstance(value := description.get("group") or 0, int) else [])
    for name, values in (("captions", captions), ("categories", description.get("categories", []))):
        if len(values) > MAX_IDS:
            raise ValueError(f'it has {len(values)} "{name}"; at most {MAX_IDS} are supported')
    needed = "captions" if description["kind"] == "elite" else "categories"
    if not description.get(needed):
        raise ValueError(f'it has no "{needed}", which {description["kind"]} samples need')


def _check_texts(what: str, values) -> None:
    if not isinstance(values, list):
        raise ValueError(f"{what} is not a text")
    for value in values:
        problem = text_problem(value) if isinstance(value, str) else "is not a text"
        if problem is not None:
            raise ValueError(f"{what} {problem}")
