"""What became of the rows of a shard, and of all shards of a build."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import Self

from keepfit_clip.data.description import Description
from keepfit_clip.data.records import LeftOut
from keepfit_clip.errors import OutputError
from keepfit_clip.files import write_json
from keepfit_clip.knowledge.conditions import Knowledge

__all__ = ["ShardReport", "ShardResult", "reading_leftovers"]

_COUNTERS = ("categories", "modalities", "unresolved")


@dataclass
class _Counts:
    samples: int = 0
    categories: Counter = field(default_factory=Counter)
    modalities: Counter = field(default_factory=Counter)
    unresolved: Counter = field(default_factory=Counter)
    left_out: list[LeftOut] = field(default_factory=list)
    redacted: int = 0
    corrected: int = 0
    silent: int = 0
    burnt_in_text: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            OutputError: it is damaged.
        """
        with reading_leftovers(path):
            stored = json.loads(path.read_text(encoding="utf-8"))
            stored |= {name: Counter(stored[name]) for name in _COUNTERS}
            return cls(**{**stored, "left_out": [LeftOut(*entry) for entry in stored["left_out"]]})

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, self.__dict__)


@dataclass
class ShardResult(_Counts):
    """What became of the rows of a shard.

    Args:
        samples: written.
        categories, modalities: counts over the samples.
        unresolved: counts of categories that the knowledge file does not know (kept as written).
        left_out: the rows that are not in it.
        redacted: samples in whose captions something was blacked out.
        silent: labels that stand for nothing to be seen: they tell of the patient, or a story.
        corrected: samples in whose captions a mistranslation was replaced.
        burnt_in_text: rows in it whose pictures have text at their edges, or had it before it was masked.
        sha256: of the tar, None where no sample was left for it.
    """

    sha256: str | None = None

    def count(self, description: Description, knowledge: Knowledge) -> None:
        """Counts a sample."""
        self.samples += 1
        self.modalities[description.modality or "unknown"] += 1
        self.categories.update(description.categories)
        self.unresolved.update(c for c in description.categories if knowledge.resolve(c) is None)


@dataclass
class ShardReport(_Counts):
    """What was built: the sum of the results of its shards.

    Args:
        samples, categories, modalities, unresolved, left_out, redacted, corrected, silent, burnt_in_text: see
            `ShardResult`.
        shards: name -> {"sha256", "samples"} of each tar; with a split the name begins with its part.
        told: which columns were taken for what, for the terminal only.
    """

    shards: dict[str, dict] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def add(self, name: str, result: ShardResult) -> None:
        """Counts a shard in."""
        self.samples += result.samples
        self.redacted += result.redacted
        self.corrected += result.corrected
        self.silent += result.silent
        self.left_out += result.left_out
        self.burnt_in_text += result.burnt_in_text
        for counter in _COUNTERS:
            getattr(self, counter).update(getattr(result, counter))
        if result.samples:
            self.shards[name] = {"sha256": result.sha256, "samples": result.samples}


@contextmanager
def reading_leftovers(path: Path) -> Iterator[None]:
    """Turns damage in what a stopped build left into an error that says how to get rid of it.

    Raises:
        OutputError: the file at `path`, which the block reads, is damaged.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, sqlite3.DatabaseError) as error:
        full = isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error)
        what = (
            "no space is left on the disk" if full else "damaged; throw what the stopped build did away with --restart"
        )
        raise OutputError(f"{path}: {what}") from error
