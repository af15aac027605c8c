"""Which conditions and signs a Chinese report names: words are not divided, so names are looked for as they stand."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from keepfit_clip.knowledge.conditions import Knowledge

__all__ = ["chinese_mentions", "has_chinese"]

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_JOINS = re.compile(r"[及和与或伴、，,]")


def has_chinese(text: str) -> bool:
    """Whether a text holds Chinese characters."""
    return _CHINESE.search(text) is not None


def chinese_mentions(text: str, knowledge: Knowledge) -> Iterator[tuple[str, str, str | None]]:
    """Name, status and eye of what a text names, see `keepfit_clip.knowledge.mentions`."""
    rules, names = _rules(), _names(knowledge)
    eye = None
    for clause in re.split(rules["clause"], text):
        status, carried = "present", False
        for part in re.split(rules["part"], clause):
            eyes = [
                (part.find(word), which) for which, words in rules["eyes"].items() for word in words if word in part
            ]
            eye = min(eyes)[1] if eyes else eye
            found = list(_terms(part, names))
            before = part[: found[0][0]] if found else part
            opened = _opened(before, rules["before"])
            if opened:
                status, carried = opened, opened == "absent"
            elif not (carried and found and found[0][0] == 0):  # "未见出血、渗出": the denial goes on
                status, carried = "present", False
            for number, (start, end, name) in enumerate(found):
                between = part[found[number - 1][1] : start] if number else ""
                if number and (again := _opened(between, rules["before"])):
                    status = again
                elif number and between and not _JOINS.fullmatch(between):
                    status = "present"
                behind = part[end : found[number + 1][0]] if number + 1 < len(found) else part[end:]
                closed = _closed(behind, rules["behind"])
                yield name, status if (closed, status) == ("family", "absent") else closed or status, eye


def _opened(text: str, rules: dict[str, list[str]]) -> str | None:
    """The status that words before a name give it; of words that hold each other the longer counts."""
    found = [
        (text.rfind(word) + len(word), len(word), status)
        for status, words in rules.items()
        for word in words
        if word in text
    ]
    return max(found)[2] if found else None


def _closed(text: str, rules: dict[str, list[str]]) -> str | None:
    found = [
        (-text.find(word), len(word), status) for status, words in rules.items() for word in words if word in text[:8]
    ]
    return max(found)[2] if found else None


def _terms(part: str, names: list[tuple[str, str]]) -> Iterator[tuple[int, int, str]]:
    """Start, end and canonical name of what a part names, the longest where names hold each other."""
    taken = [False] * len(part)
    found = []
    for word, name in names:
        start = part.find(word)
        while start >= 0:
            if not any(taken[start : start + len(word)]):
                taken[start : start + len(word)] = [True] * len(word)
                found.append((start, start + len(word), name))
            start = part.find(word, start + 1)
    return iter(sorted(found))


@lru_cache(maxsize=8)
def _names(knowledge: Knowledge) -> list[tuple[str, str]]:
    """Chinese name and canonical name of each condition, the longest first."""
    names: dict[str, str] = {}
    for condition in knowledge.conditions.values():
        wording = condition.languages.get("zh")
        for word in (*wording.names, *wording.spellings) if wording else ():
            names[word] = condition.name
        names.update((word, condition.name) for word in condition.abbreviations if word.isupper())
    return sorted(names.items(), key=lambda entry: len(entry[0]), reverse=True)


@lru_cache(maxsize=1)
def _rules() -> dict:
    return json.loads(Path(__file__).with_name("report_language.json").read_text(encoding="utf-8"))["zh"]
