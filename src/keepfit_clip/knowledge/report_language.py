"""How reports speak: the phrases of `report_language.json` that state, deny or doubt a finding, and a text's tokens."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["ReportLanguage", "Rule", "report_language", "report_sentences", "small_token"]

_TOKEN = re.compile(
    r"w/o\b|[srdh]/[poh]\b|r/o\b|d/d\b|[rl]/e\b|and/or\b|\(\s*[-+\u2212\u2013]\s*\)|[^\W_]+(?:'(?:s\b)?)?|[?:;,&/()\u2013\u2014.!\n]",
    re.IGNORECASE,
)


class Rule(NamedTuple):
    """What a phrase does: the status it gives, and to the terms of which side."""

    status: str | None  # None: a phrase that only looks like another
    reach: str  # forward, back, "forward first" or "back first" where both may be, both, next (term), question (mark)


@dataclass
class ReportLanguage:
    """report_language.json, each phrase as a tuple of small words."""

    rules: dict[tuple[str, ...], Rule]
    words: dict[str, set[tuple[str, ...]]]
    eyes: dict[tuple[str, ...], str]
    structures: dict[tuple[str, ...], str]
    rewrites: list[tuple[re.Pattern, str]]
    no_term: re.Pattern
    abbreviated: set[str]
    small_words: set[str]
    linking: set[str]
    capital_eyes: set[str]


@lru_cache(maxsize=1)
def report_language() -> ReportLanguage:
    """The file that ships with the library."""
    data = json.loads(Path(__file__).with_name("report_language.json").read_text(encoding="utf-8"))
    rules = {
        _phrase(phrase): Rule(rule["status"], rule.get("reach", ""))
        for rule in data["rules"]
        for phrase in rule["phrases"]
    }
    kinds = ("present", "turns", "with", "beside", "between", "conjunctions", "healthy", "whole")
    return ReportLanguage(
        rules,
        {kind: {_phrase(phrase) for phrase in data[kind]} for kind in kinds},
        {_phrase(phrase): eye for eye, phrases in data["eyes"].items() for phrase in phrases},
        {_phrase(phrase): name for name, phrases in data["structures"].items() for phrase in phrases},
        [(re.compile(pattern, re.IGNORECASE | re.MULTILINE), text) for pattern, text in data["rewrites"]],
        re.compile("|".join(data["no_term"]), re.IGNORECASE),
        set(data["abbreviated"]),
        set(data["small_words"]),
        set(data["linking"]),
        set(data["capital_eyes"]),
    )


def _phrase(text: str) -> tuple[str, ...]:
    return tuple(small_token(token) for token in _TOKEN.findall(text))


def small_token(token: str) -> str:
    """A token in small letters; signs in brackets as "(-)" and "(+)"."""
    if token[0] != "(":
        return token.lower()
    return re.sub(r"\s", "", token).replace("\u2212", "-").replace("\u2013", "-")


def report_sentences(text: str, language: ReportLanguage) -> Iterator[list[str]]:
    """The tokens of each sentence, as written; a dot inside a number or behind an abbreviation ends none."""
    text = language.no_term.sub(" ", text.translate({0x2019: "'", 0x2018: "'"}))
    for pattern, written in language.rewrites:
        text = pattern.sub(written, text)
    text = re.sub(r"(?<=\d)[.,](?=\d)", "", text)
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        ends = token in ";!\n" or (token == "." and not (tokens and tokens[-1].lower() in language.abbreviated))
        if ends and tokens:
            yield tokens
            tokens = []
        elif token not in ".;!\n":
            tokens.append(token)
    if tokens:
        yield tokens
