"""What is known of each retinal condition or sign: its names and how it looks in each modality.

The file (`knowledge.json` beside this module, or a user's own in JSON or YAML) is a list of conditions, described in
`knowledge.schema.json`:

    {"name", "kind", "synonyms", "abbreviations", "spellings", "parent", "codes", "source",
     "findings": {"CFP": [...], ...}}

A negation ("no X") is derived from X and needs no entry.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import jsonschema
import yaml

from keepfit_clip.errors import KnowledgeError, first_line
from keepfit_clip.files import parse_json

__all__ = ["MODALITIES", "Code", "Condition", "Knowledge", "Term"]

MODALITIES = ("CFP", "FFA", "OCT")
_PROBLEMS_SHOWN = 10
_LARGEST_FILE = 16 << 20  # bytes
_NEGATION = re.compile(r"^(?:no|without|absence of|absent)\s+(?P<term>.+)$")


@dataclass(frozen=True)
class Code:
    """What a classification calls a condition.

    Args:
        system: ICD-10-CM or HPO (Human Phenotype Ontology).
        code: such as H35.81 or HP:0000608.
        title: the classification's own words for it.
    """

    system: str
    code: str
    title: str


@dataclass(frozen=True)
class Condition:
    """One condition or sign.

    Args:
        name: canonical name.
        kind: "condition", a disease or state of the eye, or "lesion", a visible sign.
        synonyms: other names, spelled out.
        abbreviations: as clinicians write them; recognised, never used in a text.
        spellings: other ways tables write it; recognised, never used in a text.
        parent: canonical name of a broader condition, or None.
        codes: what classifications call it.
        source: the medical source of the findings.
        findings: modality -> visible findings, each a phrase that fits behind "showing".
    """

    name: str
    synonyms: tuple[str, ...] = ()
    abbreviations: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    parent: str | None = None
    codes: tuple[Code, ...] = ()
    source: str = ""
    findings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = "condition"

    @property
    def terms(self) -> tuple[str, ...]:
        """Everything it is recognised by."""
        return (self.name, *self.synonyms, *self.abbreviations, *self.spellings)


@dataclass(frozen=True)
class Term:
    """What a word for a category stands for.

    Args:
        name: canonical name, or the word itself, tidied, where it is not known.
        condition: what it names, or what it denies; None where it is not known.
        denies: whether it is a negation such as "no glaucoma".
    """

    name: str
    condition: Condition | None = None
    denies: bool = False

    @property
    def names(self) -> list[str]:
        """Every way to spell it out, the canonical one first."""
        if self.denies:
            return [self.name, f"absence of {self.condition.name}", f"absent {self.condition.name}"]
        return [self.name, *(self.condition.synonyms if self.condition else ())]

    @property
    def statement(self) -> str:
        """The category as a report states it: "glaucoma is present"."""
        return f"{self.condition.name} is absent" if self.denies else f"{self.name} is present"

    def findings(self, modality: str | None) -> list[str]:
        """What of it can be seen in a modality; empty for negations and unknown words."""
        return [] if self.denies or self.condition is None else list(self.condition.findings.get(modality, ()))


class Knowledge:
    """The conditions of a knowledge file, looked up by any of their names.

    Args:
        conditions: the conditions.
        name: what to call the collection in errors.

    Raises:
        KnowledgeError: one name for two conditions, an unknown parent, or parents in a circle.
    """

    def __init__(self, conditions: Iterable[Condition], name: str = "knowledge"):
        self.conditions: dict[str, Condition] = {}
        self._by_term: dict[str, str] = {}
        problems = [*self._take(conditions), *self._parent_problems()]
        if problems:
            raise KnowledgeError(_report(name, problems))

    def _take(self, conditions: Iterable[Condition]) -> Iterable[str]:
        for condition in conditions:
            if condition.name in self.conditions:
                yield f"{condition.name!r} stands there twice"
            self.conditions[condition.name] = condition
            for term in condition.terms:
                other = self._by_term.setdefault(_normal(term), condition.name)
                if other != condition.name:
                    yield f"{term!r} names both {other!r} and {condition.name!r}"

    def _parent_problems(self) -> Iterable[str]:
        for condition in self.conditions.values():
            if condition.parent is not None and condition.parent not in self.conditions:
                yield f"{condition.name!r} has the unknown parent {condition.parent!r}"
            elif condition.name in self.ancestors(condition.name):
                yield f"{condition.name!r} is among its own parents"

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Knowledge":
        """Reads a knowledge file, JSON or YAML; None is the one that ships with the library.

        Raises:
            KnowledgeError: the file is missing, cannot be parsed, or breaks the schema.
        """
        if path is None:
            return _shipped()
        path = Path(path)
        content = _read(path)
        conditions = {}
        if content.get("extends"):
            conditions.update(_shipped().conditions)
        own = [_condition(entry) for entry in content["conditions"]]
        return cls([*(c for n, c in conditions.items() if n not in {o.name for o in own}), *own], name=str(path))

    def ancestors(self, name: str) -> list[str]:
        """Canonical names of what a condition is a form of, the nearest first."""
        names: list[str] = []
        condition = self.conditions.get(name)
        while condition is not None and condition.parent is not None and condition.parent not in names:
            names.append(condition.parent)
            condition = self.conditions.get(condition.parent)
        return names

    def children(self, name: str) -> list[str]:
        """Canonical names of the conditions whose parent this is."""
        return [other.name for other in self.conditions.values() if other.parent == name]

    def around(self, terms: Iterable[str]) -> "Knowledge":
        """What is known of some conditions, of what they are forms of and of their own forms.

        Args:
            terms: any names of theirs; a negation stands for what it denies.
        """
        wanted = {self.denied(term) or self.canonical(term) for term in terms}
        wanted |= {ancestor for name in wanted for ancestor in self.ancestors(name)}
        kept = [c for c in self.conditions.values() if c.name in wanted or wanted.intersection(self.ancestors(c.name))]
        return Knowledge(kept)

    def similar(self, term: str, count: int = 5) -> list[str]:
        """Known terms that are written like an unknown one."""
        return difflib.get_close_matches(_normal(term), self._by_term, count, cutoff=0.6)

    def look_up(self, word: str) -> Term:
        """What a name, synonym, abbreviation or spelling stands for.

        "no X" and the like deny X, unless the whole is a name itself.
        """
        normal = _normal(word)
        negation = None if normal in self._by_term else _NEGATION.match(normal)
        name = self._by_term.get(negation["term"] if negation else normal)
        if name is None:
            return Term(" ".join(word.split()).lower())
        return Term(f"no {name}" if negation else name, self.conditions[name], denies=bool(negation))

    def resolve(self, term: str) -> str | None:
        """Canonical name of a name, synonym or abbreviation; None if the term is not known."""
        match = self.look_up(term)
        return match.name if match.condition else None

    def canonical(self, term: str) -> str:
        """The canonical name, or the term itself, tidied, where it is not known."""
        return self.look_up(term).name

    def names(self, term: str) -> list[str]:
        """Every way to spell out a category, the canonical one first."""
        return self.look_up(term).names

    def denied(self, term: str) -> str | None:
        """The condition that a negation such as "no glaucoma" denies; None for anything else."""
        match = self.look_up(term)
        return match.condition.name if match.denies else None

    def findings(self, term: str, modality: str | None) -> list[str]:
        """What of a category can be seen in a modality; empty for negations and unknown terms."""
        return self.look_up(term).findings(modality)

    def sentences(self) -> list[str]:
        """The whole knowledge as plain sentences, for textual pretraining."""
        return [sentence for name in self.conditions for sentence in self.sentences_of(name)]

    def sentences_of(self, name: str) -> list[str]:
        """What is known of one condition, by its canonical name, as plain sentences."""
        modality_names = {
            "CFP": "color fundus photography",
            "FFA": "fluorescein angiography",
            "OCT": "optical coherence tomography",
        }
        condition = self.conditions[name]
        lines = [f"{name} is also called {synonym}." for synonym in (*condition.synonyms, *condition.abbreviations)]
        if condition.parent:
            lines.append(f"{name} is a form of {condition.parent}.")
        for modality, findings in condition.findings.items():
            lines += [f"{name} on {modality_names[modality]}: {finding}." for finding in findings]
        return lines


def _normal(term: str) -> str:
    return " ".join(re.sub(r"[-_\s]+", " ", term).casefold().strip(" .,;:").split())


@lru_cache(maxsize=1)
def _shipped() -> Knowledge:
    path = Path(__file__).with_name("knowledge.json")  # checked against the schema by the tests, not at each start
    entries = json.loads(path.read_text(encoding="utf-8"))["conditions"]
    return Knowledge([_condition(entry) for entry in entries], name=path.name)


def _read(path: Path) -> dict:
    """The content of a file, checked against the schema."""
    try:
        text = _read_bounded(path)
        content = _parse_yaml(text) if path.suffix.lower() in (".yaml", ".yml") else parse_json(text)
    except OSError as error:
        raise KnowledgeError(f"{path}: cannot be read ({first_line(error)})") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise KnowledgeError(f"{path}: neither JSON nor YAML ({' '.join(str(error).split())})") from error
    schema = json.loads(Path(__file__).with_name("knowledge.schema.json").read_text(encoding="utf-8"))
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(content), key=lambda e: list(map(str, e.path)))
    if errors:
        raise KnowledgeError(_report(str(path), [_problem(error, content) for error in errors]))
    return content


def _read_bounded(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE >> 20} MiB")
    return content.decode("utf-8-sig")


class _NoAliases(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for gigabytes once somebody walks through what they name."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"an alias (*NAME) in line {mark.line + 1}: write out what it stands for")
        return super().compose_node(parent, index)


def _parse_yaml(text: str):
    return yaml.load(text, Loader=_NoAliases)


def _problem(error: jsonschema.ValidationError, content) -> str:
    """A breach of the schema, with the name of its entry and the path in it."""
    path = list(error.absolute_path)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "the file"
    if path[:1] == ["conditions"] and len(path) > 1:
        entry = content["conditions"][path[1]]
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            where += f" ({entry['name']})"
    message = error.message if len(error.message) < 160 else f"{error.message[:160]}..."
    return f"{where}: {message}"


def _report(name: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:_PROBLEMS_SHOWN])
    more = f"; and {len(problems) - _PROBLEMS_SHOWN} more" if len(problems) > _PROBLEMS_SHOWN else ""
    return f"{name}: {shown}{more}"


def _condition(entry: dict) -> Condition:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    fields["codes"] = tuple(Code(**code) for code in entry.get("codes", ()))
    fields["findings"] = {modality: tuple(texts) for modality, texts in entry.get("findings", {}).items()}
    return Condition(**fields)
