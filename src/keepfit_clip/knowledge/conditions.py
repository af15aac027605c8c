"""What is known of each retinal condition or sign: its names, how it looks in each modality, and what follows from it.

The file (`knowledge.json` beside this module, or a user's own in JSON or YAML) is a list of conditions, described in
`knowledge.schema.json`:

    {"name", "kind", "synonyms", "abbreviations", "spellings", "labels", "parents", "codes", "source", "unreviewed",
     "findings": {"CFP": [...], ...}, "absent": {"CFP": [...], ...}, "languages": {"zh": {"names", ...}}}

A negation ("no X") is derived from X and needs no entry.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from keepfit_clip.errors import CategoryError, KnowledgeError
from keepfit_clip.knowledge.files import problem_report, read_knowledge_file, shipped_entries
from keepfit_clip.knowledge.terms import normal_form, readings, tidied, without_non

__all__ = ["MODALITIES", "Code", "Condition", "Knowledge", "Term", "Wording", "modality_named"]

MODALITIES = ("CFP", "FFA", "OCT")
NORMAL, ANY_DISEASE = "normal", "retinal disease"
_NO_DISEASE = {
    NORMAL, "normal macula", "normal optic disc", "normal retinal vessels",
    "intraocular lens", "scleral buckle", "gas-filled eye", "silicone oil-filled eye",
    "tessellated fundus", "large optic cup", "myopia", "posterior vitreous detachment",
}  # fmt: skip
_GRADED_APART = {"diabetic macular edema": "diabetic retinopathy"}  # tables grade the two, each for itself
# What is normal -> what is there where it is not.
OPPOSITES = {
    NORMAL: ANY_DISEASE, "normal macula": "maculopathy", "normal optic disc": "abnormal optic disc",
    "normal retinal vessels": "retinal vascular abnormality",
}  # fmt: skip
# "non-referable" denies; "non-arteritic" tells which kind it is.
_GRADES = ("referable", "clinically", "significant", "sight", "vision", "high", "center", "advanced", "severe")
_DEEPEST = 40  # levels of parents


def modality_named(name: str | None) -> str | None:
    """A modality as it is written here, CFP for "cfp"; None stays None.

    Raises:
        CategoryError: it is none.
    """
    if name is None or name.upper() in MODALITIES:
        return name and name.upper()
    raise CategoryError(f"the modality {name!r} is none of {', '.join(MODALITIES)}")


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
class Wording:
    """What a condition is called and how it looks, in a language other than English.

    Args:
        names: the usual name first; texts use them.
        spellings: other forms, narrower ones too; recognised, never used in a text.
        findings: modality -> visible findings.
        absent: modality -> what is seen where it is not.
    """

    names: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    findings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """One condition or sign.

    Args:
        name: canonical name.
        kind: "condition", a disease or state of the eye; "sign", something visible; "quality" of an image; or "phase"
            of an angiogram.
        synonyms: other names, spelled out.
        abbreviations: as clinicians write them; recognised, never used in a text.
        spellings: other ways tables write it; recognised, never used in a text.
        labels: words that mean it as a whole label only, not inside a sentence ("abnormal").
        parents: canonical names of broader conditions; of a sign, also what it is a sign of.
        codes: what classifications call it.
        source: the medical source of the findings.
        findings: modality -> visible findings, each a phrase that fits behind "showing".
        absent: modality -> what is seen where the condition is not, as such phrases.
        unreviewed: what a clinician has still to look at; empty where nothing is open.
        languages: language -> its names and findings in it.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    abbreviations: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    codes: tuple[Code, ...] = ()
    source: str = ""
    findings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unreviewed: str = ""
    languages: dict[str, Wording] = field(default_factory=dict)
    kind: str = "condition"

    @classmethod
    def from_entry(cls, entry: dict) -> "Condition":
        """The condition that an entry of a file of the present schema describes."""
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        fields["codes"] = tuple(Code(**code) for code in entry.get("codes", ()))
        for key in ("findings", "absent"):
            fields[key] = _by_modality(entry.get(key, {}))
        fields["languages"] = {
            language: Wording(
                tuple(wording.get("names", ())),
                tuple(wording.get("spellings", ())),
                _by_modality(wording.get("findings", {})),
                _by_modality(wording.get("absent", {})),
            )
            for language, wording in entry.get("languages", {}).items()
        }
        return cls(**fields)

    @property
    def terms(self) -> tuple[str, ...]:
        """Everything it is recognised by, in a sentence too."""
        foreign = (name for wording in self.languages.values() for name in (*wording.names, *wording.spellings))
        return (self.name, *self.synonyms, *self.abbreviations, *self.spellings, *foreign)

    @property
    def is_disease(self) -> bool:
        """Whether it tells of an ill eye: false of what is normal, of phases, of image quality and of implants."""
        return self.kind in ("condition", "sign") and self.name not in _NO_DISEASE


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
            return [self.name, f"absence of {self.condition.name}"]
        return [self.name, *(self.condition.synonyms if self.condition else ())]

    def findings(self, modality: str | None) -> list[str]:
        """What can be seen of it in a modality, or instead of it where it is denied; empty for unknown words."""
        if self.condition is None:
            return []
        return list((self.condition.absent if self.denies else self.condition.findings).get(modality, ()))


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
            raise KnowledgeError(problem_report(name, problems))

    def _take(self, conditions: Iterable[Condition]) -> Iterator[str]:
        for condition in conditions:
            if condition.name in self.conditions:
                yield f"{condition.name!r} stands there twice"
            self.conditions[condition.name] = condition
            for term in (*condition.terms, *condition.labels):
                other = self._by_term.setdefault(normal_form(term), condition.name)
                if other != condition.name:
                    yield f"{term!r} names both {other!r} and {condition.name!r}"

    def _parent_problems(self) -> Iterator[str]:
        for condition in self.conditions.values():
            unknown = [parent for parent in condition.parents if parent not in self.conditions]
            if not normal_form(condition.name):
                yield f"{condition.name!r} has no letter"
            elif unknown:
                yield f"{condition.name!r} has the unknown parent {unknown[0]!r}"
            elif condition.name in self.ancestors(condition.name):
                yield f"{condition.name!r} is among its own parents"
            elif len(self._levels(condition.name)) > _DEEPEST:
                yield f"{condition.name!r} has more than {_DEEPEST} levels of parents"

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Knowledge":
        """Reads a knowledge file, JSON or YAML; None is the one that ships with the library.

        Raises:
            KnowledgeError: the file is missing, cannot be parsed, or breaks the schema.
        """
        if path is None:
            return _shipped()
        content = read_knowledge_file(path)
        conditions = dict(_shipped().conditions) if content.get("extends") else {}
        own = [Condition.from_entry(entry) for entry in content["conditions"]]
        return cls([*(c for n, c in conditions.items() if n not in {o.name for o in own}), *own], name=str(path))

    # ---- names

    def look_up(self, word: str) -> Term:
        """What a name, synonym, abbreviation, spelling or label stands for.

        Case, hyphens, plurals, British spelling and typographic characters do not matter; brackets and numbers around
        a name may be left out; "no X", "non-X", "X negative" and the like deny X, unless the whole is a name itself.
        The name of what is found is found again: `look_up(look_up(word).name)` is the same term.
        """
        return _look_up(self, word)

    def _find(self, word: str) -> Term:
        for text, denied in readings(word):
            name = self._by_term.get(normal_form(text)) or self._by_term.get(self._spelled_out(text))
            if name is not None:
                return self._denial(name) if denied else Term(name, self.conditions[name])
        return self._without_non(word) or Term(tidied(word))

    def _spelled_out(self, text: str) -> str:
        """The form of a text with the names of its abbreviations in their places: "non-center-involving DME"."""
        words = normal_form(text).split()
        if len(words) < 2:
            return ""
        names = [self._by_term.get(word, "") for word in words]
        pairs = zip(words, names, strict=True)
        return normal_form(" ".join(name if name and self._abbreviates(word, name) else word for word, name in pairs))

    def _abbreviates(self, word: str, name: str) -> bool:
        return any(normal_form(short) == word for short in self.conditions[name].abbreviations)

    def _without_non(self, word: str) -> Term | None:
        """ "non-glaucoma" denies; "non-arteritic AION" is an AION, since only its kind is denied."""
        parts = without_non(word)
        if parts is None:
            return None
        whole, rest = (
            self._by_term.get(normal_form(part)) or self._by_term.get(self._spelled_out(part)) for part in parts
        )
        if rest is not None and not parts[0].startswith(_GRADES):
            return Term(rest, self.conditions[rest])
        return None if whole is None else self._denial(whole)

    def _denial(self, name: str) -> Term:
        opposite = OPPOSITES.get(name)  # "not normal"
        if opposite in self.conditions:
            return Term(opposite, self.conditions[opposite])
        whole = self._by_term.get(normal_form(f"no {name}"))  # "no retinal disease" is a name of "normal"
        if whole is not None:
            return Term(whole, self.conditions[whole])
        return Term(f"no {name}", self.conditions[name], denies=True)

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
        """What can be seen of a category in a modality, see `Term.findings`."""
        return self.look_up(term).findings(modality)

    def similar(self, term: str, count: int = 5) -> list[str]:
        """Known terms that are written like an unknown one."""
        return difflib.get_close_matches(normal_form(term), self._by_term, count, cutoff=0.6)

    # ---- relations

    def ancestors(self, name: str) -> list[str]:
        """Canonical names of what a condition is a form or sign of, the nearest first."""
        return [broader for level in self._levels(name) for broader in level]

    def _levels(self, name: str) -> list[tuple[str, ...]]:
        """The broader conditions, level by level."""
        levels: list[tuple[str, ...]] = []
        seen: set[str] = set()
        level = self._parents_of(name)
        while level:
            levels.append(level)
            seen.update(level)
            above = (parent for broader in level for parent in self._parents_of(broader))
            level = tuple(dict.fromkeys(parent for parent in above if parent not in seen))
        return levels

    def _parents_of(self, name: str) -> tuple[str, ...]:
        return self.conditions[name].parents if name in self.conditions else ()

    def children(self, name: str) -> list[str]:
        """Canonical names of the conditions that have this among their parents."""
        return [other.name for other in self.conditions.values() if name in other.parents]

    def implied(self, categories: Iterable[str]) -> set[str]:
        """All that is true of an image, as canonical names, if these categories are.

        From a condition follow those it is a form or sign of, and from any disease "retinal disease"; from "normal"
        that no disease is there, whichever; from the absence of a condition the absence of its forms. A category that
        is not known follows from itself.

        Args:
            categories: any names of what was seen, negations among them.
        """
        categories = list(categories)
        seen = set(self.image_codes(categories)) | {self.look_up(category).name for category in categories}
        every = [*self.conditions, *(self._denial(name).name for name in self.conditions)]
        implied = {name for name in every if not seen.isdisjoint(self.text_codes(name))}
        contradicted = {self._denial(name).name for name in seen if name in self.conditions}
        contradicted |= {denied for name in seen if (denied := self.denied(name)) is not None}
        return seen | (implied - contradicted)

    def excluded(self, categories: Iterable[str]) -> set[str]:
        """All that cannot be true of an image, as canonical names, if these categories are: see `implied`."""
        categories = list(categories)
        implied = self.implied(categories)
        diseased = any(name in self.conditions and self.conditions[name].is_disease for name in implied)
        denials = {name: self._denial(name).name for name in self.conditions if self.conditions[name].is_disease}
        excluded = {name for name, denial in denials.items() if denial in implied}
        excluded |= {denial for name, denial in denials.items() if name in implied}
        excluded |= {normal for normal, opposite in OPPOSITES.items() if opposite in implied}
        excluded |= {NORMAL} if diseased else set()
        return excluded - {self.look_up(category).name for category in categories}

    def contradiction(self, categories: Iterable[str]) -> tuple[str, str] | None:
        """Two of the categories that cannot both be true, or None.

        That is normal and a disease; a normal part and what it excludes, or a form of that; a condition, or a form of
        it, and its absence. Macular edema of diabetes is graded apart from retinopathy, which may be denied beside it.
        """
        terms = [term for category in categories if (term := self.look_up(category)).condition is not None]
        denied = {term.condition.name: term.name for term in terms if term.denies}
        present = [term.condition for term in terms if not term.denies]
        normal = {OPPOSITES[condition.name]: condition.name for condition in present if condition.name in OPPOSITES}
        for condition in present:
            if NORMAL in normal.values() and condition.is_disease:
                return NORMAL, condition.name
            above = (condition.name, *self.ancestors(condition.name))
            apart = [of for edema, of in _GRADED_APART.items() if edema in above]
            for name in above:
                if name in denied and name not in apart:
                    return condition.name, denied[name]
                if name in normal and condition.name not in OPPOSITES:
                    return normal[name], condition.name
        return None

    def follows(self, category: str, categories: Iterable[str]) -> bool:
        """Whether a category is true of an image of which some are known to be."""
        return not set(self.text_codes(category)).isdisjoint(self.image_codes(categories))

    def image_codes(self, categories: Iterable[str]) -> list[str]:
        """A few names that tell what is true of an image, what was seen first.

        A text is true of it where `image_codes` and `text_codes` share one: so a batch finds all that follows without
        this file.
        """
        terms = [self.look_up(category) for category in categories]
        codes = dict.fromkeys(term.name for term in terms)
        present = [term.condition for term in terms if term.condition is not None and not term.denies]
        for condition in present:
            codes.update(dict.fromkeys(self.ancestors(condition.name)))
        if any(condition.is_disease for condition in present):
            codes[ANY_DISEASE] = None
        if NORMAL in codes:
            codes.update(dict.fromkeys(name for name in OPPOSITES if name in self.conditions))
        # What is seen counts more than what would follow: of "no retinopathy" with macular edema neither the
        # retinopathy nor the absence of the edema.
        for denied in [term.condition.name for term in terms if term.denies]:
            if any(denied in self.ancestors(condition.name) for condition in present):
                codes.pop(denied, None)
                codes.pop(f"no {denied}", None)
        return list(codes)

    def text_codes(self, category: str) -> list[str]:
        """Names of what makes a text true that names one category; the first is the category itself."""
        term = self.look_up(category)
        if not term.denies:
            return [term.name]
        broader = self.ancestors(term.condition.name)
        denied = [term.name, *(f"no {name}" for name in broader)]
        if not term.condition.is_disease:
            return denied
        normal = [normal for normal, opposite in OPPOSITES.items() if opposite in (term.condition.name, *broader)]
        return list(dict.fromkeys([*denied, NORMAL, *normal]))

    def around(self, terms: Iterable[str]) -> "Knowledge":
        """What is known of some conditions, of what they are forms of and of their own forms.

        Args:
            terms: any names of theirs; a negation stands for what it denies.
        """
        wanted = {self.denied(term) or self.canonical(term) for term in terms}
        wanted |= {ancestor for name in wanted for ancestor in self.ancestors(name)}
        kept = {n for n in self.conditions if n in wanted or wanted.intersection(self.ancestors(n))}
        kept |= {ancestor for name in kept for ancestor in self.ancestors(name)}
        return Knowledge(condition for name, condition in self.conditions.items() if name in kept)


@lru_cache(maxsize=1 << 14)
def _look_up(knowledge: Knowledge, word: str) -> Term:
    """A data set has few words, and each comes up for each of its images."""
    return knowledge._find(word)


@lru_cache(maxsize=1)
def _shipped() -> Knowledge:
    return Knowledge(map(Condition.from_entry, shipped_entries()), name="knowledge.json")


def _by_modality(texts: dict) -> dict[str, tuple[str, ...]]:
    return {modality: tuple(phrases) for modality, phrases in texts.items()}
