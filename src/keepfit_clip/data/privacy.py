"""Looking for what identifies a patient in a caption: names, dates, record numbers and ways to reach somebody.

Patterns find the usual forms in English and Chinese reports, not every form there is: they lower a risk, they do not
remove it. Medical numbers ("20/40", "24-2", "300 microns") and eponyms ("Coats disease") are left alone.
"""

import regex

__all__ = ["find_identifiers", "redact"]

REDACTED = "[redacted]"
_SHORTEST_IDENTIFIER = 4  # characters; shorter ones stand in any text

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_YEAR = r"(?:19|20)\d\d"
# A word of a name: capitals inside a case-insensitive pattern need (?-i:...).
_NAME = r"(?-i:(?:(?:van|von|de|del|della|den|der|di|da|la|le|al|bin|ibn|ter|ten) )*\p{Lu}[\p{L}'\u2019.-]*)"
_NAMES = rf"{_NAME}(?:[ ,]+{_NAME}){{0,3}}"
_TITLE = r"(?-i:Mr|Mrs|Ms|Miss|Dr|Prof)\b\.?"  # DR and MS are diseases

_PATTERNS = {
    "a date": regex.compile(
        rf"\b{_YEAR}([-/.])\d{{1,2}}\1\d{{1,2}}\b|\b\d{{1,2}}([-/.])\d{{1,2}}\2(?:{_YEAR}|\d\d)\b(?!\.\d)|"
        rf"\b\d{{1,2}}(?:st|nd|rd|th)?(?: of)?[ -]{_MONTH}\.?,?[ -]{_YEAR}\b|"
        rf"\b{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? {_YEAR}\b|"
        rf"\b{_MONTH}\.?,? {_YEAR}\b|\b(?:dob|date of birth|born(?: on| in)?)\b[:\s]*(?=\d|{_MONTH})\S+|"
        rf"{_YEAR}\s*\u5e74(?:\s*\d{{1,2}}\s*\u6708)?(?:\s*\d{{1,2}}\s*\u65e5)?",
        regex.IGNORECASE,
    ),
    "a record number": regex.compile(
        r"\b(?:mrn|medical record(?: number| no\.?)?|patient (?:id|number|no\.?)|hospital (?:id|number|no\.?)|"
        r"case (?:id|number|no\.)|record (?:number|no\.?)|nhs(?: number| no\.?)?|accession(?: number| no\.?)?|ssn|id)"
        r"\s*[:#.]?\s*(?=[\w-]*\d)[\w-]{3,}|\b\d{7,}\b|\b\d{3}-\d{2}-\d{4}\b|"
        r"(?:\u4f4f\u9662\u53f7|\u75c5\u5386\u53f7|\u95e8\u8bca\u53f7|\u75c5\u6848\u53f7|\u8eab\u4efd\u8bc1\u53f7?)"
        r"\s*[:\uff1a]?\s*[\w-]+",
        regex.IGNORECASE,
    ),
    "a name": regex.compile(
        rf"\b{_TITLE} {_NAMES}|\b(?:doctor|professor|patient name|name|surname) ?[:=] ?{_NAMES}|"
        rf"\b(?:examined|reported|dictated|signed|referred|reviewed)(?: electronically)? by:? {_NAMES}|"
        rf"\bpatient:? {_NAME} {_NAMES}|"
        r"(?:\u59d3\u540d|\u60a3\u8005\u59d3\u540d|\u533b\u751f|\u533b\u5e08)\s*[:\uff1a]\s*[\u4e00-\u9fff]{2,4}",
        regex.IGNORECASE,
    ),
    "an address": regex.compile(
        r"[\w.+-]+@[\w-]+\.[\w.]+|https?://\S+|(?:\+\d{1,3}[ -]?)?\(?\d{3}\)?[ -]\d{3}[ -]\d{4}\b", regex.IGNORECASE
    ),
}


def find_identifiers(text: str, patient: str | None = None) -> list[str]:
    """What kinds of identifiers a text seems to hold: a date, a record number, a name, an address.

    Args:
        text: a caption.
        patient: what the patient is called in the source, if it is called anything.
    """
    return [kind for kind, pattern in _patterns(patient) if pattern.search(text)]


def redact(text: str, patient: str | None = None) -> str:
    """The text with every such place replaced by "[redacted]"."""
    for _, pattern in _patterns(patient):
        text = pattern.sub(REDACTED, text)
    return text


def _patterns(patient: str | None) -> list[tuple[str, regex.Pattern]]:
    patterns = list(_PATTERNS.items())
    if patient is not None and len(patient) >= _SHORTEST_IDENTIFIER:
        own = regex.compile(rf"(?<!\w){regex.escape(patient)}(?!\w)", regex.IGNORECASE)
        patterns.append(("the patient's identifier", own))
    return patterns
