"""How many captions with an identifier are stopped, and how many without one, on the invented captions of the tests.

    python benchmarks/identifiers.py

Half of the captions (drawn with a seed) was looked at while the patterns were written, the other half was not. A
caption counts as redacted whole if nothing of its identifiers is left; it may lose the label of a number as well.
"""

import json
from collections import Counter
from pathlib import Path

import regex
from rich.console import Console
from rich.table import Table

from keepfit_clip.data.identifiers.privacy import REDACTED, find_identifiers, redact

CAPTIONS = Path(__file__).parents[1] / "tests" / "identifier_captions.json"
MARKED = regex.compile(r"\[\[(.+?)\]\]")  # an identifier inside a caption


def plain(marked: str) -> str:
    """The caption without the marks."""
    return MARKED.sub(r"\1", marked)


def is_redacted_whole(marked: str) -> bool:
    """Whether redacting leaves only words from outside the marked places."""
    outside = " ".join(MARKED.sub(" ", marked).split())
    left = " ".join(redact(plain(marked)).replace(REDACTED, " ").split())
    words = regex.compile(r"\w+")
    return not Counter(words.findall(left)) - Counter(words.findall(outside))


def main() -> None:
    """Prints both figures for both halves."""
    captions = json.loads(CAPTIONS.read_text(encoding="utf-8"))
    table = Table("half", "with identifiers", "found", "redacted whole", "without", "false alarms")
    for half in ("tuning", "held-out"):
        private, others = ([row for row in captions[key] if row["half"] == half] for key in ("with", "without"))
        found = sum(bool(find_identifiers(plain(row["text"]))) for row in private)
        whole = sum(is_redacted_whole(row["text"]) for row in private)
        false = sum(bool(find_identifiers(row["text"])) for row in others)
        table.add_row(
            half, str(len(private)), f"{found / len(private):.2f}", f"{whole / len(private):.2f}",
            str(len(others)), f"{false / len(others):.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
