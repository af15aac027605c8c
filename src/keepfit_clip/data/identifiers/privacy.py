"""Looking for what identifies a patient in a caption: names, dates, record numbers, places, ages over 89 and ways to
reach somebody.

Patterns find the usual forms in English, German, French, Spanish and Chinese reports, not every form there is: they
lower a risk, they do not remove it. `python benchmarks/identifiers.py` says how many they find. Medical numbers
("20/40", "24-2", "300 microns", "10-2-12 o'clock") and eponyms ("Coats disease") are left alone.
"""

import regex

from keepfit_clip.data.identifiers.names import name_spans
from keepfit_clip.data.identifiers.patterns import PATTERNS

__all__ = ["find_identifiers", "redact"]

REDACTED = "[redacted]"
_SHORTEST_IDENTIFIER = 4  # characters; shorter ones stand in any text


def find_identifiers(text: str, patient: str | None = None) -> list[str]:
    """What kinds of identifiers a text seems to hold: a name, a date, a record number, an address, a place, an age.

    Args:
        text: a caption.
        patient: what the patient is called in the source, if it is called anything.
    """
    return list(dict.fromkeys(kind for _, _, kind in _identifier_spans(text, patient)))


def redact(text: str, patient: str | None = None) -> str:
    """The text with every such span replaced by "[redacted]"."""
    parts, kept = [], 0
    for start, end, _ in sorted(_identifier_spans(text, patient)):
        if start >= kept:
            parts += [text[kept:start], REDACTED]
        kept = max(kept, end)
    return "".join([*parts, text[kept:]])


def _identifier_spans(text: str, patient: str | None) -> list[tuple[int, int, str]]:
    """Start, end and kind of everything found; spans may overlap."""
    spans = [(*match.span(), kind) for kind, pattern in PATTERNS.items() for match in pattern.finditer(text)]
    spans += [(start, end, "a name") for start, end in name_spans(text)]
    if patient is not None and len(patient) >= _SHORTEST_IDENTIFIER:
        own = regex.compile(rf"(?<!\w){regex.escape(patient)}(?!\w)", regex.IGNORECASE)
        spans += [(*match.span(), "the patient's identifier") for match in own.finditer(text)]
    return spans
