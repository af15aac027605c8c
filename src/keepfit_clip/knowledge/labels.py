"""What the labels of a data set mean: by its own map, by name, or by what a whole sentence mentions.

Maps of the usual sets ship in `label_maps`, one small file each; `--labels NAME` of build, evaluate and transfer takes
one, or a file of the same form:

    {"title", "source", "modality", "labels": {"DR": ["diabetic retinopathy"], "OTHER": [], ...}, "unverified": [...]}
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import jsonschema

from keepfit_clip.errors import CategoryError
from keepfit_clip.files import read_shipped
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.mentions import find_mentions, stated
from keepfit_clip.knowledge.terms import normal_form

__all__ = ["LabelMap", "Repair", "is_number", "label_map_names", "read_label", "read_label_map", "repair_of"]

_FOLDER = Path(__file__).parent / "label_maps"
_SCHEMA = {
    "type": "object",
    "required": ["labels"],
    "additionalProperties": False,
    "properties": {
        "title": {"type": "string"},
        "source": {"type": "string"},
        "modality": {"enum": [*MODALITIES, None]},
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string", "pattern": "\\S"}},
        },
        "unverified": {"type": "array", "items": {"type": "string"}},
    },
}
_SENTENCE = 4  # words of a label that is read as a sentence; a shorter one with its marks is one too
_MARKS = re.compile(r"[,/;]|\.$|\b(?:od|os|ou|with|without|and)\b", re.IGNORECASE)
_DOUBTED = re.compile(r"^\s*(?:\?|suspected|suspicious|possible|probable|likely|query|rule out|r/o)", re.IGNORECASE)
_PROSE = 6  # words from which on a sentence that names nothing that is known tells a story, and is no name
# An age, or how well the patient sees: "43-year-old female", "re 20/50 le 20/40".
_OF_THE_PATIENT = re.compile(
    r"\b\d+[- ]?(?:year|yr|month|week|day)s?\b.{0,3}\bold\b|\by/?o\b|\b\d{1,2}/\d{1,3}\b|\bvisual acuit", re.IGNORECASE
)


@dataclass(frozen=True)
class LabelMap:
    """What the literal labels of one data set mean.

    Args:
        title: of the set.
        labels: label -> canonical categories, none for a label that says nothing to be seen.
        modality: of the set's images, or None.
        source: where the meaning is documented.
        unverified: labels whose meaning is not documented.
    """

    title: str
    labels: dict[str, tuple[str, ...]]
    modality: str | None = None
    source: str = ""
    unverified: tuple[str, ...] = ()
    _by_form: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        self._by_form.update({_label_form(label): meaning for label, meaning in self.labels.items()})

    def meaning(self, label: str) -> tuple[str, ...] | None:
        """The categories that a label stands for; None where the map does not know it."""
        return self._by_form.get(_label_form(label))

    def meaning_in(self, column: str, label: str) -> tuple[str, ...] | None:
        """What a label of a column stands for: a number of one that the map names ("macula 2") means that alone."""
        if not is_number(label):
            inside = self.meaning(f"{column} {label}")
            return self.meaning(label) if inside is None else inside
        of_column = f"{normal_form(column)} "
        if any(form.startswith(of_column) and is_number(form[len(of_column) :]) for form in self._by_form):
            return None if label.strip().startswith("-") else self.meaning(f"{column} {label}")
        return self.meaning(label)


def is_number(label: str) -> bool:
    """Whether a label is a number, which says nothing by itself."""
    return re.fullmatch(r"\s*[-+]?\d+(?:\.\d+)?\s*", label) is not None


def _label_form(label: str) -> str:
    """`normal_form`, but a number is itself: -1 is no grade 1."""
    return label.strip() if is_number(label) else normal_form(label)


def label_map_names() -> list[str]:
    """Names of the maps that ship with the library."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@lru_cache(maxsize=64)
def read_label_map(name: str) -> LabelMap:
    """A shipped label map by its name, or one's own by its path.

    Raises:
        CategoryError: there is none, or it does not say what it should.
    """
    content, path = read_shipped(_FOLDER, name, "label map", CategoryError)
    problem = next(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(content), None)
    if problem is not None:
        where = ".".join(map(str, problem.absolute_path)) or "the file"
        raise CategoryError(f"{path}: {where}: {problem.message[:160]}")
    return LabelMap(
        content.get("title", path.stem),
        {label: tuple(categories) for label, categories in content["labels"].items()},
        content.get("modality"),
        content.get("source", ""),
        tuple(content.get("unverified", ())),
    )


def read_label(label: str, knowledge: Knowledge, label_map: LabelMap | None = None) -> list[str]:
    """The categories that a label of a table stands for, as canonical names.

    A label that the map has means what the map says; one that the knowledge has is that condition, or its denial. A
    whole sentence, or several names with commas or slashes between them, stands for what it states; where it states
    nothing that is known it stands for nothing if it tells of the patient only ("66-year-old female") or is a long
    story, else for itself.
    """
    meaning = label_map.meaning(label) if label_map else None
    if meaning is not None:
        return [knowledge.canonical(category) for category in meaning]
    return list(_read_label(label, knowledge))


@lru_cache(maxsize=1 << 14)
def _read_label(label: str, knowledge: Knowledge) -> tuple[str, ...]:
    term = knowledge.look_up(label)
    if term.condition is not None or not term.name:
        return (term.name,) if term.name else ()
    words, of_the_patient = len(label.split()), _OF_THE_PATIENT.search(label)
    if _DOUBTED.match(label) and find_mentions(label, knowledge):
        return tuple(sorted(stated(label, knowledge)))
    if words >= _SENTENCE or of_the_patient or _MARKS.search(label.strip()):
        names = sorted(stated(label, knowledge))
        if names or of_the_patient or words >= _PROSE:
            return tuple(names)
    return (term.name,)


# ---- tables that are wrong themselves


@dataclass(frozen=True)
class Repair:
    """What is wrong in a published table, and the right labels.

    Args:
        title: of the table.
        why: one line for the person who reads it.
        labels: label -> labels in its place.
        together: labels that stand together -> labels in their place.
    """

    title: str
    why: str
    labels: dict[str, tuple[str, ...]]
    together: dict[frozenset[str], tuple[str, ...]]

    def apply(self, labels: Iterable[str]) -> tuple[str, ...]:
        """The right labels of an image; those that nothing is known against stay."""
        labels = tuple(labels)
        whole = self.together.get(frozenset(normal_form(label) for label in labels))
        if whole is not None:
            return whole
        return tuple(right for label in labels for right in self.labels.get(normal_form(label), (label,)))


def repair_of(table: str | Path) -> Repair | None:
    """What is known to be wrong in a table, by its file name (such as 31_JICHI.csv)."""
    return _repairs().get(Path(str(table)).stem.casefold())


@lru_cache(maxsize=1)
def _repairs() -> dict[str, Repair]:
    content = json.loads(Path(__file__).with_name("table_repairs.json").read_text(encoding="utf-8"))
    return {
        table.casefold(): Repair(
            entry["title"],
            entry["why"],
            {normal_form(label): tuple(right) for label, right in entry.get("labels", {}).items()},
            {frozenset(map(normal_form, e["labels"])): tuple(e["are"]) for e in entry.get("together", ())},
        )
        for table, entry in content["tables"].items()
    }
