"""Which conditions and lesions a caption names, and which it denies.

Terms are those of the knowledge file, the longest first. A denial is found as NegEx does (Chapman et al., J Biomed
Inform 2001): words such as "no" and "without" deny what follows in their clause, "is absent" and "not seen" what stands
before.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from keepfit_clip.knowledge.conditions import Knowledge

__all__ = ["Mention", "find_mentions"]

_WORD = re.compile(r"[^\W_]+")
_CLAUSE_END = re.compile(r"[.;:!?\n]")
_DENYING = {"no", "without", "absence", "neither", "nor", "not", "never", "absent", "free", "negative"}
_TURNING = {"but", "however", "although", "though", "except", "yet", "with"}
_PRESENT = {"present", "seen", "visible", "found", "detected", "evident", "identified", "noted", "observed"}
_VERBS = {"is", "are", "was", "were"}
_SHORTEST = 3  # letters of an abbreviation that may be written small
_ADJECTIVES = {"normal", "healthy"}  # of the whole eye only where no noun follows: not in "a normal foveal reflex"


class Mention(NamedTuple):
    """A condition or lesion, by its canonical name, that a text states to be there or not."""

    name: str
    present: bool


class _Term(NamedTuple):
    words: int  # how many it takes
    name: str


def find_mentions(text: str, knowledge: Knowledge) -> set[Mention]:
    """All that a text names.

    Args:
        text: a caption, in any case.
        knowledge: the terms.
    """
    index = _index(knowledge)
    return {mention for clause in _clauses(text) for mention in _in_clause(clause, index)}


def _clauses(text: str) -> Iterator[list[str]]:
    """The words of each clause, as written."""
    for part in _CLAUSE_END.split(text):
        words = _WORD.findall(part)
        if words:
            yield words


def _in_clause(words: Sequence[str], index: dict[str, list[tuple[tuple[str, ...], str]]]) -> Iterator[Mention]:
    small = [word.casefold() for word in words]
    waiting: list[str] = []  # named since the last verb that states or denies
    denied: set[str] = set()
    denying = False
    position = 0
    while position < len(words):
        term = _term_at(words, small, position, index)
        if term is not None:
            waiting.append(term.name)
            if denying:
                denied.add(term.name)
            position += term.words
            continue
        word, before = small[position], small[position - 1] if position else ""
        after = small[position + 1] if position + 1 < len(words) else ""
        if (
            (word == "absent" and before in _VERBS)
            or (word == "not" and after in _PRESENT)
            or (word, after) == ("ruled", "out")
        ):
            denied.update(waiting)
            yield from (Mention(name, False) for name in waiting)
            waiting.clear()
            position += 2 if word != "absent" else 1
            continue
        if word in _PRESENT:
            yield from (Mention(name, name not in denied) for name in waiting)
            waiting.clear()
            denying = False
        elif word in _TURNING:
            denying = False
        elif word in _DENYING:
            denying = True
        position += 1
    yield from (Mention(name, name not in denied) for name in waiting)


def _term_at(words: Sequence[str], small: Sequence[str], position: int, index) -> _Term | None:
    """The longest term that begins at a word."""
    for term, name in index.get(small[position], ()):
        if tuple(small[position : position + len(term)]) == term:
            is_short = len(term) == 1 and len(term[0]) < _SHORTEST and not words[position].isupper()
            is_part = term[0] in _ADJECTIVES and len(term) == 1 and position + 1 < len(words)
            if not (is_short or is_part):
                return _Term(len(term), name)
    return None


@lru_cache(maxsize=8)
def _index(knowledge: Knowledge) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First word -> the terms that begin with it, the longest first, and their canonical names."""
    index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for condition in knowledge.conditions.values():
        for term in condition.terms:
            words = tuple(word.casefold() for word in _WORD.findall(term))
            if words:
                index.setdefault(words[0], []).append((words, condition.name))
    for terms in index.values():
        terms.sort(key=lambda entry: len(entry[0]), reverse=True)
    return index
