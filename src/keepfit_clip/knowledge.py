"""What is known of each retinal condition: its names and how it looks in each modality.

The file (`knowledge.json` beside this module, or a user's own) is a list of conditions:

    {"name", "synonyms", "abbreviations", "parent", "source", "findings": {"CFP": [...], "FFA": [...], "OCT": [...]}}

A negation ("no X") is derived from X and needs no entry.
"""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from keepfit_clip.errors import KnowledgeError

__all__ = ["MODALITIES", "Condition", "Knowledge"]

MODALITIES = ("CFP", "FFA", "OCT")
_SCHEMA = 1
_NEGATION = re.compile(r"^(?:no|without|absence of|absent)\s+(?P<term>.+)$")


@dataclass(frozen=True)
class Condition:
    """One condition or sign.

    Args:
        name: canonical name.
        synonyms: other names, spelled out.
        abbreviations: as clinicians write them; recognised, never used in a text.
        parent: canonical name of a broader condition, or None.
        source: the medical source of the findings.
        findings: modality -> visible findings, each a phrase that fits behind "showing".
    """

    name: str
    synonyms: tuple[str, ...] = ()
    abbreviations: tuple[str, ...] = ()
    parent: str | None = None
    source: str = ""
    findings: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Knowledge:
    """The conditions of a knowledge file, looked up by any of their names.

    Args:
        conditions: the conditions.
        name: what to call the collection in errors.

    Raises:
        KnowledgeError: one name for two conditions, or an unknown parent.
    """

    def __init__(self, conditions: list[Condition], name: str = "knowledge"):
        self.conditions = {condition.name: condition for condition in conditions}
        self._by_term: dict[str, str] = {}
        for condition in conditions:
            for term in (condition.name, *condition.synonyms, *condition.abbreviations):
                other = self._by_term.setdefault(_normal(term), condition.name)
                if other != condition.name:
                    raise KnowledgeError(f"{name}: {term!r} names both {other!r} and {condition.name!r}")
        for condition in conditions:
            if condition.parent is not None and condition.parent not in self.conditions:
                raise KnowledgeError(f"{name}: {condition.name!r} has the unknown parent {condition.parent!r}")

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Knowledge":
        """Reads a knowledge file; None is the one that ships with the library.

        Raises:
            KnowledgeError: the file is missing, not JSON, or breaks the schema.
        """
        if path is None:
            return _shipped()
        return cls(_read_conditions(Path(path)), name=str(path))

    def resolve(self, term: str) -> str | None:
        """Canonical name of a name, synonym or abbreviation; None if the term is not known.

        "no X" and the like give "no <canonical X>", unless the whole is a name itself.
        """
        normal = _normal(term)
        if normal in self._by_term:
            return self._by_term[normal]
        negation = _NEGATION.match(normal)
        if negation and negation["term"] in self._by_term:
            return f"no {self._by_term[negation['term']]}"
        return None

    def canonical(self, term: str) -> str:
        """The canonical name, or the term itself, tidied, where it is not known."""
        return self.resolve(term) or " ".join(term.split()).lower()

    def names(self, term: str) -> list[str]:
        """Every way to spell out a category, the canonical one first."""
        name = self.canonical(term)
        if name in self.conditions:
            return [name, *self.conditions[name].synonyms]
        denied = self.denied(name)
        return [name, f"absence of {denied}", f"absent {denied}"] if denied else [name]

    def denied(self, term: str) -> str | None:
        """The condition that a negation such as "no glaucoma" denies; None for anything else."""
        name = self.canonical(term)
        return name[3:] if name.startswith("no ") and name[3:] in self.conditions else None

    def findings(self, term: str, modality: str | None) -> list[str]:
        """What of a category can be seen in a modality; empty for negations and unknown terms."""
        condition = self.conditions.get(self.canonical(term))
        return list(condition.findings.get(modality, ())) if condition else []

    def sentences(self) -> list[str]:
        """The whole knowledge as plain sentences, for textual pretraining."""
        seen_in = {
            "CFP": "color fundus photography",
            "FFA": "fluorescein angiography",
            "OCT": "optical coherence tomography",
        }
        lines = []
        for condition in self.conditions.values():
            for synonym in (*condition.synonyms, *condition.abbreviations):
                lines.append(f"{condition.name} is also called {synonym}.")
            if condition.parent:
                lines.append(f"{condition.name} is a form of {condition.parent}.")
            for modality, findings in condition.findings.items():
                lines += [f"{condition.name} on {seen_in[modality]}: {finding}." for finding in findings]
        return lines


def _normal(term: str) -> str:
    return " ".join(re.sub(r"[-_\s]+", " ", term).casefold().split())


@lru_cache(maxsize=1)
def _shipped() -> Knowledge:
    path = Path(__file__).with_name("knowledge.json")
    return Knowledge(_read_conditions(path), name=path.name)


def _read_conditions(path: Path) -> list[Condition]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KnowledgeError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise KnowledgeError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise KnowledgeError(f'{path}: "schema" must be {_SCHEMA}')
    entries = content.get("conditions")
    if not isinstance(entries, list) or not entries:
        raise KnowledgeError(f'{path}: "conditions" must be a list of at least one condition')
    return [_condition(entry, f"{path}: condition {number}") for number, entry in enumerate(entries, start=1)]


def _condition(entry, where: str) -> Condition:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise KnowledgeError(f'{where} has no "name"')
    where = f"{where} ({entry['name']})"
    unknown = sorted(set(entry) - set(Condition.__dataclass_fields__))
    if unknown:
        raise KnowledgeError(f"{where}: unknown keys {unknown}")
    findings = entry.get("findings", {})
    if not isinstance(findings, dict) or set(findings) - set(MODALITIES):
        raise KnowledgeError(f'{where}: "findings" must map {", ".join(MODALITIES)} to lists')
    return Condition(
        name=entry["name"],
        synonyms=_strings(entry.get("synonyms", []), f'{where}: "synonyms"'),
        abbreviations=_strings(entry.get("abbreviations", []), f'{where}: "abbreviations"'),
        parent=entry.get("parent"),
        source=entry.get("source", ""),
        findings={modality: _strings(texts, f'{where}: "findings"') for modality, texts in findings.items()},
    )


def _strings(values, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
        raise KnowledgeError(f"{where} must be a list of texts")
    return tuple(values)
