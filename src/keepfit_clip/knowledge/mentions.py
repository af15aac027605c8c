"""Which conditions and signs a report names: whether it states, denies or doubts them, and of which eye.

Terms are those of the knowledge file, the longest first. What is said of them is read as ConText does (Harkema et al.,
J Biomed Inform 2009): phrases such as "no", "cannot exclude" or "history of" change what follows, or what stands before
them, up to a word that turns the sentence. The phrases are data: `report_language.json`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from keepfit_clip.knowledge.chinese import chinese_mentions, has_chinese
from keepfit_clip.knowledge.conditions import NORMAL, Knowledge
from keepfit_clip.knowledge.report_language import ReportLanguage, report_language, report_sentences
from keepfit_clip.knowledge.report_pieces import Piece, Pieces, term_index

__all__ = ["STATUSES", "Mention", "find_mentions", "stated"]

STATUSES = ("present", "absent", "uncertain", "historical", "family", "hypothetical")
_YEAR = re.compile(r"(?:19|20)\d\d$")
_WORDS_BETWEEN = 3  # of a list's members, that may describe them


class Mention(NamedTuple):
    """A condition or sign that a text names.

    Args:
        name: canonical name.
        status: one of `STATUSES`: "historical" was there once, "family" is of a relative, "hypothetical" of a plan,
            a risk or a question.
        eye: right, left, both, or None where the text does not say.
    """

    name: str
    status: str = "present"
    eye: str | None = None


def find_mentions(text: str, knowledge: Knowledge) -> set[Mention]:
    """All that a text names, in English or Chinese.

    Args:
        text: a caption or report, in any case.
        knowledge: the terms.
    """
    if has_chinese(text):
        return {Mention(*found) for found in chinese_mentions(text, knowledge)}
    language, eye, mentions = report_language(), None, set()
    index = term_index(knowledge)
    for sentence in report_sentences(text, language):
        reader = _Sentence(Pieces(sentence, index, language, text != text.lower()), language, eye)
        mentions.update(reader.mentions())
        eye = reader.eye
    return mentions


def stated(text: str, knowledge: Knowledge) -> set[str]:
    """Canonical names of what a text says of the image itself: what is there and, behind "no", what is not."""
    mentions = find_mentions(text, knowledge)
    names = {knowledge.canonical(f"no {m.name}") for m in mentions if m.status == "absent"}
    return names | {mention.name for mention in mentions if mention.status == "present"}


# ---- one sentence


class _Sentence:
    """Reads one sentence.

    Args:
        pieces: of it.
        language: the rules.
        eye: the one that the text was speaking of before.

    Attributes:
        eye: the one that the text speaks of behind it.
    """

    def __init__(self, pieces: Pieces, language: ReportLanguage, eye: str | None):
        self.tokens, self.small, self.items, self.phases = pieces.tokens, pieces.small, pieces.all, pieces.phases
        self.language, self.eye = language, eye

    def mentions(self) -> Iterator[Mention]:
        """What it names."""
        self._read_rules()
        self._read_years()
        self._read_eyes()
        terms = [item for item in self.items if item.kind == "term"]
        ill = {item.eye for item in terms if item.status == "present" and item.value != NORMAL}
        for item in terms:
            if item.value != NORMAL or item.eye not in ill:  # "normal except for drusen" is not normal
                yield Mention(item.value, item.status, item.eye)

    # -- what is said

    def _read_rules(self) -> None:
        for number, item in enumerate(self.items):
            if item.kind != "rule":
                continue
            status, reach = item.value
            if reach in ("next", "question"):
                directly = self._next(number, most=2 if reach == "next" else 0)
                reached = directly or (self._back(number, chain=False) if reach == "question" else [])
            elif reach == "both":
                reached = [*self._back(number, chain=False), *self._next(number)]
            elif reach == "forward":
                reached = self._forward(number, status) or self._value(number, status)
            elif reach == "back":
                reached = self._back(number)
            elif reach == "back first":
                reached = self._back(number) or self._forward(number, status) or self._back(number, over_comma=True)
            else:
                near = self._forward(number, status)
                reached = near if near and not self._ends_clause(number) else self._back(number)
            for term in reached:
                if term.settled or (status == "absent" and term.value in self.phases):
                    continue
                if status == "present" and term.status == "uncertain":
                    term.status = status
                is_answered = term.status in ("uncertain", "historical") and status == "absent" and "back" in reach
                if term.status == "present" or is_answered:
                    term.status = status

    def _value(self, number: int, status: str) -> list[Piece]:
        """The term of "Drusen: no"."""
        is_value = number and self.items[number - 1].kind == "colon" and self._ends_clause(number)
        return self._back(number) if is_value and status == "absent" else []

    def _next(self, number: int, most: int = 20) -> list[Piece]:
        """The term right behind a phrase, with at most some words between."""
        for count, item in enumerate(self.items[number + 1 :]):
            if item.kind == "term":
                return [item]
            if item.kind not in ("word", "eye") or count >= most:
                break
        return []

    def _ends_clause(self, number: int) -> bool:
        following = self.items[number + 1 : number + 2]
        return (
            not following
            or following[0].kind in ("comma", "colon", "turns", "rule")
            or self.tokens[following[0].start] == ")"
        )

    def _forward(self, number: int, status: str) -> list[Piece]:
        """The terms behind a phrase that it speaks of."""
        reached: list[Piece] = []
        for position in range(number + 1, len(self.items)):
            item = self.items[position]
            if item.kind == "term":
                reached.append(item)
            elif self._stops(position, status, bool(reached)):
                break
        return reached

    def _stops(self, position: int, status: str, reached: bool) -> bool:
        """Whether what a phrase says ends at a piece, which is no term.

        Args:
            position: of the piece.
            status: that the phrase gives.
            reached: whether it has given it to a term yet.
        """
        kind = self.items[position].kind
        if kind == "rule":  # "versus" stands in a list; "brother with" holds a phrase before its first term
            inside = self.items[position].value.reach == "both" or (status == "family" and not reached)
            return not inside or (not reached and self.items[position].value.status == status)
        if kind == "comma":
            goes_on = reached and self._list_goes_on(position, status)
            return not goes_on and (reached or status not in ("family", "hypothetical"))
        if kind == "with":
            return reached and status in ("absent", "uncertain")
        return kind == "turns" or (reached and kind in ("present", "beside"))

    def _list_goes_on(self, comma: int, status: str) -> bool:
        """Whether a list that a phrase opened goes on behind a comma: "no A, B or C", but not "no A, B is seen"."""
        words, members, named, position = 0, 0, False, comma + 1
        while position < len(self.items):
            kind = self.items[position].kind
            if kind == "term":
                members, words = members + 1, 0
            elif kind == "conjunctions":
                is_or = self.small[self.items[position].start] in ("or", "nor")
                if members or position == comma + 1 or (is_or and (words or named)):
                    return self._term_follows(position, is_or)
            elif kind == "comma":
                if not members and not words:
                    return False
                words, named = 0, True
            elif kind == "word":
                words += 1
                if words > _WORDS_BETWEEN:
                    return False
            else:
                return False
            position += 1
        plain = all(item.kind in ("term", "comma") for item in self.items[comma:])
        listed = status != "uncertain" or any(item.kind == "colon" for item in self.items[:comma])
        return listed and members > 0 and plain

    def _term_follows(self, position: int, is_or: bool) -> bool:
        """Whether a list's last member follows, and no new clause: "or C is seen", not "and C is seen"."""
        seen = False
        for item in self.items[position + 1 :]:
            if item.kind == "term":
                seen = True
            elif item.kind == "word" and not seen:
                continue
            else:
                is_clause = item.kind == "with" and self.small[item.start] in ("is", "are", "was", "were")
                return seen and (is_or or not is_clause)
        return seen

    def _back(self, number: int, chain: bool = True, over_comma: bool = False) -> list[Piece]:
        """The terms before a phrase that it speaks of: the nearest, and the list it ends.

        Args:
            number: of the phrase.
            chain: whether it may speak of a list.
            over_comma: whether a comma may stand before the phrase: "macular hole, closed".
        """
        reached: list[Piece] = []
        gap: list[Piece] = []
        is_clause = False  # "A, and B is probable" says nothing of A; "A, B, and C" is a list
        for item in reversed(self.items[:number]):
            if item.kind == "term":
                if reached and not self._is_list(gap, len(reached) == 1):
                    break
                is_clause = len(reached) == 1 and {"comma", "conjunctions"} <= {i.kind for i in gap}
                reached.append(item)
                gap = []
                if not chain:
                    break
                continue
            if item.kind in ("turns", "rule") or (item.kind == "comma" and not reached and not over_comma):
                break
            if not reached and item.kind == "present":
                break
            gap.append(item)
        return reached[:1] if is_clause else reached

    def _is_list(self, gap: Sequence[Piece], last: bool) -> bool:
        """Whether what stands between two terms makes them members of one list."""
        kinds = [item.kind for item in gap]
        if not set(kinds) <= {"conjunctions", "comma", "word"} or kinds.count("word") > _WORDS_BETWEEN:
            return False
        return "conjunctions" in kinds or (not last and "comma" in kinds)

    def _read_years(self) -> None:
        """A year behind a term, but for "since", makes it historical."""
        term = None
        for item in self.items:
            if item.kind == "term":
                term = item
            elif item.kind not in ("word", "between"):
                term = None
            elif term and _YEAR.match(self.small[item.start]):
                if self.small[item.start - 1] in ("in", "(") and term.status == "present":
                    term.status = "historical"
                term = None

    # -- which eye

    def _read_eyes(self) -> None:
        """An eye at the head of a clause holds from there on; one behind a finding is of that finding."""
        waiting: list[Piece] = []  # the terms of the clause so far, which may yet get an eye
        gap: list[Piece] = []
        for number, item in enumerate(self.items):
            if item.kind == "term":
                if waiting and any(i.kind == "comma" for i in gap) and not self._is_one_list(number):
                    waiting = []
                item.eye = self.eye
                waiting.append(item)
                gap = []
            elif item.kind == "eye":
                if waiting and not self._heads(number):
                    for term in waiting:
                        term.eye = item.value
                    waiting = []
                else:
                    self.eye, waiting = item.value, []
            else:
                gap.append(item)

    def _is_one_list(self, number: int) -> bool:
        """Whether a term behind a comma goes on with a list that ends in "and C"."""
        return self.items[number - 1].kind == "comma" and self._list_goes_on(number - 1, "uncertain")

    def _heads(self, number: int) -> bool:
        """Whether an eye stands at the head of a clause, with something said of it.

        Behind "in" or "of" it does not; behind a comma it does, and also without one where the sentence began with an
        eye: "OD CRVO OS BRVO".
        """
        before = number - 1
        while (
            before >= 0 and self.items[before].kind == "word" and self.tokens[self.items[before].start].lower() == "the"
        ):
            before -= 1
        kind = self.items[before].kind if before >= 0 else "comma"
        if kind == "between":
            return False
        following = self.items[number + 1 :]
        until = next((i for i, item in enumerate(following) if item.kind in ("eye", "comma")), len(following))
        if kind in ("comma", "colon", "turns"):
            return any(item.kind == "term" for item in following)
        first = next(item.kind for item in self.items if item.kind in ("eye", "term"))
        return first == "eye" and any(item.kind == "term" for item in following[:until])
