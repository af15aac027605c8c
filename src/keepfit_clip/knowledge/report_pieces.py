"""A sentence of a report in pieces: terms of the knowledge, phrases of the report language, eyes and other words."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from keepfit_clip.knowledge.chinese import has_chinese
from keepfit_clip.knowledge.conditions import NORMAL, OPPOSITES, Knowledge
from keepfit_clip.knowledge.report_language import ReportLanguage, small_token
from keepfit_clip.knowledge.terms import normal_form, one_of, singular

__all__ = ["Piece", "Pieces", "TermEntry", "term_index"]

_LONG_ABBREVIATION = 4  # letters that may be written small in a text that has no capitals at all


@dataclass
class TermEntry:
    """A term in the index.

    Args:
        words: as `normal_form` has them.
        written: its words as the file has them, where one is in capitals: it is recognised in capitals only.
        name: canonical name.
        kind: of the condition.
        shared: whether its head stands behind another member of a list, as in "hard and soft drusen".
    """

    words: tuple[str, ...]
    written: tuple[str, ...]
    name: str
    kind: str
    shared: bool = False


@lru_cache(maxsize=8)
def term_index(knowledge: Knowledge) -> dict[str, list[TermEntry]]:
    """First word -> the terms that begin with it, the longest first."""
    index: dict[str, list[TermEntry]] = {}
    for condition in knowledge.conditions.values():
        for term in condition.terms:
            if not term.isascii() and has_chinese(term):
                continue
            words = tuple(normal_form(term).split())
            written = tuple(re.sub(r"[-_/\s]+", " ", term).split())
            if words:
                written = written if len(written) == len(words) else ()
                entry = TermEntry(words, written, condition.name, condition.kind)
                index.setdefault(words[0], []).append(entry)
    for entries in index.values():
        entries.sort(key=lambda entry: len(entry.words), reverse=True)
    return index


@dataclass
class Piece:
    """A piece of a sentence: a term, a rule's phrase, an eye, or a word of some kind."""

    kind: str
    value: object = None
    start: int = 0
    status: str = "present"
    eye: str | None = None
    others: Sequence[str] = ()  # more terms at the same place
    settled: bool = False  # what denies it is a part of it: "not normal"


class Pieces:
    """The pieces of one sentence.

    Args:
        tokens: as written.
        index: of the terms, see `term_index`.
        language: the rules.
        has_capitals: whether the text has any, so that an abbreviation in small letters is none.
    """

    def __init__(
        self, tokens: Sequence[str], index: dict[str, list[TermEntry]], language: ReportLanguage, has_capitals: bool
    ):
        self.tokens, self.language, self.index, self.has_capitals = tokens, language, index, has_capitals
        self.small = [small_token(token) for token in tokens]
        self.normal = [singular(normal_form(one_of(token))) or token for token in tokens]
        self.phases: set[str] = set()  # of an angiogram, among the terms: no report denies one
        self.all = list(self._items())

    def _items(self) -> Iterator[Piece]:
        position = 0
        while position < len(self.tokens):
            item, length = self._piece(position)
            item.start = position
            yield item
            yield from (Piece("term", name, position) for name in item.others)
            position += length

    def _piece(self, position: int) -> tuple[Piece, int]:
        term, length = self._term(position)
        rule = self._longest(position, self.language.rules)
        eye = self._longest(position, self.language.eyes)
        if term is not None and length >= max(len(rule or ()), len(eye or ())):
            structure, more = self._structure_behind(position + length) if term == NORMAL else (None, 0)
            return Piece("term", structure or term), length + more
        if eye and len(eye) >= len(rule or ()) and self._is_eye(position, eye):
            return Piece("eye", self.language.eyes[eye]), len(eye)
        if rule:
            found = self.language.rules[rule]
            return Piece("word" if found.status is None else "rule", found), len(rule)
        healthy = self._longest(position, self.language.words["healthy"])
        if healthy:
            names = self._subjects(position, len(healthy))
            settled = "not" in self.small[max(0, position - 2) : position]
            piece = Piece("term", names[0], others=names[1:], settled=settled) if names else Piece("word")
            return piece, len(healthy)
        for kind in ("turns", "present", "with", "beside", "between", "conjunctions"):
            phrase = self._longest(position, self.language.words[kind])
            if phrase:
                return Piece(kind), len(phrase)
        return Piece(
            {",": "comma", ":": "colon", "\u2014": "turns", "\u2013": "turns"}.get(self.tokens[position], "word")
        ), 1

    def _longest(self, position: int, phrases) -> tuple[str, ...] | None:
        for length in range(min(5, len(self.small) - position), 0, -1):
            phrase = tuple(self.small[position : position + length])
            if phrase in phrases:
                return phrase
        return None

    def _is_eye(self, position: int, eye: tuple[str, ...]) -> bool:
        return (
            eye[0] not in self.language.capital_eyes
            or len(eye) > 1
            or self.tokens[position].isupper()
            or not self.has_capitals
        )

    def _term(self, position: int) -> tuple[str | None, int]:
        """The longest term that begins at a token, and how many tokens it takes."""
        for entry in (
            *self.index.get(self.normal[position], ()),
            *self._shared_heads(position),
            *self._predicates(position),
        ):
            end = position + len(entry.words)
            if tuple(self.normal[position:end]) == entry.words and self._is_written(position, entry):
                self.phases.update([entry.name] if entry.kind == "phase" else [])
                alone = entry.name == NORMAL and len(entry.words) == 1
                return (None, 0) if alone else (entry.name, len(entry.words))
            if entry.shared:
                return entry.name, 1
        return None, 0

    def _shared_heads(self, position: int) -> Iterator[TermEntry]:
        """Of "hard and soft drusen", at "hard": the term that it makes with what stands behind the other member."""
        if self.small[position + 1 : position + 2] not in (["and"], ["or"], ["/"], ["&"], [","]):
            return
        for entry in self.index.get(self.normal[position], ()):
            head = entry.words[1:]
            start = position + 3
            if head and tuple(self.normal[start : start + len(head)]) == head:
                yield replace(entry, shared=True)

    def _predicates(self, position: int) -> Iterator[TermEntry]:
        """Of "the disc is pale", at "pale": the term "pale disc"."""
        before = position
        while before > 0 and self.small[before - 1] in self.language.linking:
            before -= 1
        if before == position:
            return
        for length in (2, 1):
            subject = tuple(self.normal[max(0, before - length) : before])
            for entry in self.index.get(self.normal[position], ()):
                if len(subject) == length and entry.words[1:] == subject:
                    yield replace(entry, shared=True)

    def _is_written(self, position: int, entry: TermEntry) -> bool:
        """Whether what is an abbreviation in a term is one in the text: in capitals."""
        for token, written in zip(self.tokens[position:], entry.written, strict=False):
            letters = written.rstrip("s")
            if letters.isupper() and len(letters) > 1 and one_of(token).lower() != letters.lower():
                return False
            if letters.isupper() and len(letters) > 1 and not token.rstrip("s'").isupper():
                is_word = token.lower() in self.language.small_words
                if self.has_capitals or is_word or len(letters) < _LONG_ABBREVIATION:
                    return False
        return True

    # -- what is healthy

    def _structure_behind(self, position: int) -> tuple[str | None, int]:
        """Of "no abnormality in the macula", the structure, and how many tokens it takes."""
        if self.small[position : position + 1] not in (["in"], ["of"]):
            return None, 0
        start = position + (2 if self.small[position + 1 : position + 2] == ["the"] else 1)
        structure = self._longest(start, self.language.structures)
        return (self.language.structures[structure], start - position + len(structure)) if structure else (None, 0)

    def _subjects(self, position: int, length: int) -> list[str]:
        """What a word such as "normal" calls healthy: the entries of structures, the whole eye, or nothing named."""
        denied = "not" in self.small[max(0, position - 2) : position]
        return (
            [OPPOSITES[name] for name in self._healthy(position, length)] if denied else self._healthy(position, length)
        )

    def _healthy(self, position: int, length: int) -> list[str]:
        following = self.small[position + length : position + length + 1]
        if self._longest(position + length, self.language.words["whole"]):
            return [NORMAL]
        before = position
        while before > 0 and (self.small[before - 1] in self.language.linking or self.small[before - 1] == ":"):
            before -= 1
        if (
            before == position
            and following
            and following[0] not in (",", "and", "but", ")", "or", "in", "ou", "od", "os")
        ):
            return []  # "a normal foveal reflex"
        names: list[str] = []
        while (name := self._structure_before(before)) is not None:
            names.append(name[0])
            before -= name[1]
            while before > 0 and self.small[before - 1] in ("the", "and", ",", "or"):
                before -= 1
        if names:
            return [NORMAL] if NORMAL in names else names
        alone = before == 0 or (before == position and self.small[before - 1] in (",", "of"))
        return [NORMAL] if alone else []

    def _structure_before(self, end: int) -> tuple[str, int] | None:
        """The entry of a structure whose words end at a token, and how many they are."""
        for length in (3, 2, 1):
            if length > end:
                continue
            normal, small = (tuple(words[end - length : end]) for words in (self.normal, self.small))
            if normal in self.language.structures:
                return self.language.structures[normal], length
            if small in self.language.words["whole"] or small in self.language.eyes:
                return NORMAL, length
        return None
