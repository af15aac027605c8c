"""What is said of one image in a shard: the JSON of a sample, typed and checked, and the key of the sample."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from keepfit_clip.data.records import Caption
from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.knowledge.templates import category_text

__all__ = ["DATA_SCHEMA", "KINDS", "MAX_IDS", "MAX_TEXT", "Description", "is_unicode", "json_text", "text_problem"]

DATA_SCHEMA = 1  # version of the JSON
KINDS = ("public", "elite")
MAX_IDS = 16  # captions of an elite sample, categories of a public one: the ids that a batch holds of each
MAX_TEXT = 20_000  # characters of a caption, a category or an attribute
_KEY_DIGITS = 20


@dataclass(frozen=True)
class Description:
    """One sample's JSON. Building, checking and training refuse the same.

    Args:
        kind: public (categories become texts) or elite (an expert's captions).
        modality: CFP, FFA, OCT or None.
        captions: an expert's, at least one of an elite sample.
        categories: canonical names where the knowledge file has them, at least one of a public sample.
        attributes: words about the image itself.
        dataset: name of the data set, or None.
        eye: left, right or None.
        group: running number of the patient or eye within the data set, or None; another tool's may be a text.

    Raises:
        ValueError: what is wrong with it, free of anything that stands in it.
    """

    kind: str
    modality: str | None = None
    captions: tuple[Caption, ...] = ()
    categories: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    dataset: str | None = None
    eye: str | None = None
    group: int | str | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError('its "kind" is neither public nor elite')
        if self.modality not in (None, *MODALITIES):
            raise ValueError(f'its "modality" is none of {", ".join(MODALITIES)}')
        if self.eye not in (None, "left", "right"):
            raise ValueError('its "eye" is neither left nor right')
        _check_texts('a text of its "categories"', self.categories)
        _check_texts('a text of its "attributes"', self.attributes)
        _check_texts('a text of its "captions"', [caption.text for caption in self.captions])
        _check_texts('a language of its "captions"', [caption.lang for caption in self.captions])
        _check_texts('its "dataset"', [self.dataset] if self.dataset not in (None, "") else [])
        _check_texts('its "group"', [] if isinstance(self.group, int | None) else [self.group])
        for name, values in (("captions", self.captions), ("categories", self.categories)):
            if len(values) > MAX_IDS:
                raise ValueError(f'it has {len(values)} "{name}"; at most {MAX_IDS} are supported')
        needed = "captions" if self.is_elite else "categories"
        if not getattr(self, needed):
            raise ValueError(f'it has no "{needed}", which {self.kind} samples need')

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """The description in a sample's JSON; what another tool left out is nothing, what it added is passed over.

        Raises:
            ValueError: it is no JSON in UTF-8, or nothing that can be trained on; says what.
            RecursionError: it is nested too deeply.
        """
        stored = json.loads(json_text(content))
        if not isinstance(stored, dict):
            raise ValueError('its "kind" is neither public nor elite')
        captions, group = stored.get("captions", []), stored.get("group")
        if not isinstance(captions, list) or not all(isinstance(caption, dict) for caption in captions):
            raise ValueError('its "captions" are not a list of {"lang", "text"}')
        return cls(
            kind=stored.get("kind"),
            modality=stored.get("modality"),
            captions=tuple(Caption(caption.get("text"), caption.get("lang", "en")) for caption in captions),
            categories=_texts(stored, "categories"),
            attributes=_texts(stored, "attributes"),
            dataset=stored.get("dataset"),
            eye=stored.get("eye"),
            group=None if group in ("", [], {}) else group,
        )

    def to_dict(self) -> dict[str, Any]:
        """What the JSON of schema 1 holds."""
        return {
            "schema": DATA_SCHEMA,
            "kind": self.kind,
            "modality": self.modality,
            "captions": [{"lang": caption.lang, "text": caption.text} for caption in self.captions],
            "categories": list(self.categories),
            "attributes": list(self.attributes),
            "dataset": self.dataset,
            "eye": self.eye,
            "group": self.group,
        }

    def to_json(self) -> bytes:
        """The JSON, always in the same bytes."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True).encode()

    def key(self, image: bytes) -> str:
        """The key of the sample: a hash of the encoded image and of what is said of it."""
        return hashlib.sha256(image + self.to_json()).hexdigest()[:_KEY_DIGITS]

    @property
    def is_elite(self) -> bool:
        """Whether an expert wrote of the image."""
        return self.kind == "elite"

    @property
    def text(self) -> str:
        """The ready text: the first caption, an English one where there is one, or the categories."""
        if self.captions:
            return next((c for c in self.captions if c.lang == "en"), self.captions[0]).text
        return category_text(self.categories, self.modality, self.attributes)

    def captions_in(self, languages: Sequence[str]) -> list[str]:
        """The captions in one of the languages."""
        return [caption.text for caption in self.captions if caption.lang in languages]

    @property
    def patient(self) -> tuple[str | None, int | str] | None:
        """What tells the patient or eye from those of other samples; None where nobody says."""
        return None if self.group is None else (self.dataset, self.group)


def json_text(content: bytes) -> str:
    """The text of a JSON file, strictly UTF-8; Python's own reading of bytes lets halves of characters in.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return content.removeprefix(b"\xef\xbb\xbf").decode()


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
    """Whether a text can be written in UTF-8; JSON can also write half of a character, a lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(stored: dict, name: str) -> tuple[str, ...]:
    values = stored.get(name, [])
    if not isinstance(values, list):
        raise ValueError(f'a text of its "{name}" is not a text')
    return tuple(values)


def _check_texts(what: str, values: Sequence) -> None:
    for value in values:
        problem = text_problem(value) if isinstance(value, str) else "is not a text"
        if problem is not None:
            raise ValueError(f"{what} {problem}")
