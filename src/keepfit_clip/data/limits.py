"""What a sample may hold, said once: building, checking and training refuse the same.

A text is refused as a whole where it holds half of a character (a surrogate without its other half, which JSON can
write and UTF-8 cannot), or is longer than anything that a person wrote of an image.
"""

__all__ = [
    "MAX_IDS",
    "MAX_IMAGE_BYTES",
    "MAX_TEXT",
    "MAX_TEXT_BYTES",
    "in_mebibytes",
    "text_problem",
]

MAX_IDS = 16  # captions of an elite sample, categories of a public one: the ids that a batch holds of each
MAX_TEXT = 20_000  # characters of a caption, a category or an attribute
MAX_TEXT_BYTES = 4 << 20  # of a .json, .txt or .cls of a sample
MAX_IMAGE_BYTES = 256 << 20  # of an encoded image


def in_mebibytes(size: int) -> str:
    """A number of bytes for an error message."""
    return f"{size / (1 << 20):.0f} MiB"


def text_problem(text: str) -> str | None:
    """What makes a text unusable: it is empty, too long, or holds half of a character; None where nothing does."""
    if len(text) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters"
    if not text.strip():
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate)"
    return None
