"""How a word for a condition may be written: one form for all spellings of it, and what a label says around it."""

import re
import unicodedata
from collections.abc import Iterator

__all__ = ["normal_form", "one_of", "readings", "singular", "tidied", "without_non"]

_QUOTES = str.maketrans("\u2018\u2019\u201b\u02bc\u0060\u00b4\u201c\u201d\u2032", "''''''\"\"'")
_DASHES = re.compile(r"[-\u2010-\u2015\u2212_\s/]+")
# British -> American, inside a word; both the knowledge's names and what is looked up go through it.
_BRITISH = [
    (re.compile(pattern), american)
    for pattern, american in (
        (r"haem", "hem"),
        (r"oedem", "edem"),
        (r"\bfibre", "fiber"),
        (r"\bdisk", "disc"),
        (r"naev", "nev"),
        (r"tumour", "tumor"),
        (r"colour", "color"),
        (r"calibre", "caliber"),
        (r"\bcentre", "center"),
        (r"\bgrey", "gray"),
        (r"anaem", "anem"),
        (r"leuc(?=o[ck])", "leuk"),
        (r"choroideraem", "choroiderem"),
        (r"(?<=organ|neova|ascul)is(?=ation|ed\b)", "iz"),
        (r"(ascular|organ|igment|pac|calc|myelin|hyalin|rystall)is(?=ation|ed\b|ing\b)", r"\1iz"),
    )
]
_SINGULARS = {
    "nevi": "nevus", "foci": "focus", "foveae": "fovea", "maculae": "macula", "druse": "drusen", "bullae": "bulla",
    "striae": "stria", "metastases": "metastasis", "colobomata": "coloboma", "stigmata": "stigma", "loci": "locus",
}  # fmt: skip
_NOT_PLURAL = ("ss", "us", "is")
_PUNCTUATION = " .,;:'\""

_SIGN = r"(?:any|apparent|visible|obvious|definite|clear|evident|signs?|evidence|findings?|features|presence)"
_SIGNS = rf"(?:{_SIGN}\s+(?:of\s+)?)*"
_BEFORE_DENIED = re.compile(rf"^(?:no|not|without|w/o|w o|absence of|absent|free of|negative for|nil)\s+{_SIGNS}(.+)$")
_BEHIND_DENIED = re.compile(
    r"^(.+?)(?:\s*[:=]\s*(?:no|none|nil|absent|negative|-)|\s+(?:is|are)?\s*(?:negative|absent)|\s*\(-\))$"
)
_SIGNED = re.compile(r"^(.*\w)\s*(\(\s*[-+\u2013\u2212]\s*\)|[-+\u2013\u2212])$", re.DOTALL)
_DOUBT = re.compile(r"\?|suspect(?:ed)?|suspicious|possible|probable|likely|questionable|rule out|r/o")
_GONE = re.compile(r"no|none|nil|absent|negative|resolved|regressed|removed|closed|not present|ruled out|excluded")
_SEVERAL = re.compile(r"\b([A-Z]{2,})s\b")
_NON = re.compile(r"^non\s*([a-z].*)$")
_GLUED_DENIED = re.compile(r"^(?:No|Non|NO)[-_]?([A-Z]\w.*)$")
_BEFORE_STATED = re.compile(r"^(?:presence of|signs? of|evidence of|features of|findings of|positive for)\s+(.+)$")
_BEHIND_STATED = re.compile(
    r"^(.+?)(?:\s*[:=]\s*(?:yes|present|positive|\+)|\s+(?:is|are)?\s*(?:positive|present)|\s*\(\+\))$"
)
_NUMBER = re.compile(r"^\s*\d+(?:\.\d+)*[.)\s:_-]+(?=\D)")
_BRACKETS = re.compile(r"\s*[(\[]([^()\[\]]*)[)\]]\s*")


def tidied(text: str) -> str:
    """A text in small letters, with compatible characters for typographic ones and single spaces."""
    for _ in range(2):  # folding may give what folds again
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.translate(_QUOTES).split())


def normal_form(text: str) -> str:
    """The same text for every way to write it.

    Letters small and without accents, hyphens and the like as spaces, American spelling, each word in the singular.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", tidied(text)) if not unicodedata.combining(c))
    text = re.sub(r"'s\b", "", _DASHES.sub(" ", text))
    for british, american in _BRITISH:
        text = british.sub(american, text)
    words = (word.strip(_PUNCTUATION) for word in text.split())
    return " ".join(singular(word).strip(_PUNCTUATION) for word in words if word)


def singular(word: str) -> str:
    """The singular of a word in small letters; a word that is none, such as "lens", loses its s everywhere alike."""
    if word in _SINGULARS:
        return _SINGULARS[word]
    if len(word) < 5 or not word.endswith("s") or word.endswith(_NOT_PLURAL):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-2] if word.endswith(("sses", "ches", "shes", "xes")) else word[:-1]


def readings(label: str) -> Iterator[tuple[str, bool]]:
    """What a label may mean, the most literal first: a name, and whether it is denied.

    Undone are signs ("DR-"), brackets ("central serous retinopathy (csr)"), numbers in front ("0.0.Normal"), and words
    that state or deny ("presence of X", "no signs of X", "NoX", "X negative"). A doubt in brackets leaves nothing: "DR
    (suspected)" is not read. For "non-X" see `without_non`.
    """
    label = one_of(label)
    if sign := _SIGNED.match(label.strip()):
        yield sign[1], sign[2].strip("() ") != "+"
        return
    inside = [content.strip() for content in _BRACKETS.findall(label)]
    plain = _BRACKETS.sub(" ", label).strip()
    if any(_DOUBT.fullmatch(tidied(content)) for content in inside):
        yield label, False
        return
    if any(_GONE.fullmatch(tidied(content)) for content in inside):
        yield plain, True
        return
    forms = [label, _NUMBER.sub("", label)]
    if plain:
        forms += [form for content in inside for form in (f"{content} {plain}", f"{plain} {content}")]
        forms += [plain, _NUMBER.sub("", plain)]
    forms = list(dict.fromkeys(form for form in (*forms, *inside) if form))
    yield from ((form, False) for form in forms)
    for form in forms:
        small = _DASHES.sub(" ", tidied(form)).strip(" .,;")
        for pattern, text, denied in (
            (_BEFORE_DENIED, small, True),
            (_BEHIND_DENIED, tidied(form), True),
            (_GLUED_DENIED, form.strip(), True),
            (_BEFORE_STATED, small, False),
            (_BEHIND_STATED, tidied(form), False),
        ):
            if match := pattern.match(text):
                yield match[1], denied


def one_of(text: str) -> str:
    """A text with its abbreviations in the singular: "PEDs" as "PED"."""
    return _SEVERAL.sub(r"\1", text)


def without_non(label: str) -> tuple[str, str] | None:
    """Of "non-arteritic AION" what is denied, "arteritic aion", and what is left of that, "aion"; else None."""
    match = _NON.match(_DASHES.sub(" ", tidied(label)).strip(" .,;"))
    return (match[1], match[1].partition(" ")[2]) if match else None
