"""What a reader of tables took for what: told once, so that a wrong guess is seen."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["ROLES", "SourceNotes"]

# What a column may be taken for, in the order in which it is told.
ROLES = (
    "image",
    "caption",
    "category",
    "attribute",
    "modality",
    "patient",
    "eye",
    "dataset",
    "volume",
    "visit",
    "slice",
)


@dataclass
class SourceNotes:
    """Which columns were taken for what, and which cells said nothing.

    Args:
        columns: role -> names of the columns taken for it.
        guessed: names of those that nobody named: they were found by their usual names.
        ignored: (role, column) -> cells that make no sense for it, and were passed over.
        half_characters: texts that held halves of characters.
        repaired: (table, what is wrong in it) -> rows whose labels were repaired.
        layout: title of the layout that was found or asked for, "" for none.
        classes: names of the folders that are taken for classes.
        missing: files that the layout expects and the folder lacks.
        filtered: rows that the layout leaves out, such as those of ungradable images.
        silent: labels that stand for nothing to be seen, by the data set's own map.
    """

    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    ignored: Counter = field(default_factory=Counter)
    half_characters: int = 0
    repaired: Counter = field(default_factory=Counter)
    silent: Counter = field(default_factory=Counter)
    layout: str = ""
    classes: list[str] = field(default_factory=list)
    filtered: int = 0
    missing: list[str] = field(default_factory=list)

    def take(self, role: str, columns: tuple[str, ...], guessed: bool) -> None:
        """Notes columns taken for a role."""
        self.columns[role] = tuple(dict.fromkeys((*self.columns.get(role, ()), *columns)))
        if guessed:
            self.guessed.update(columns)

    def lines(self) -> list[str]:
        """What is to be told: one line of the columns taken, one for each column whose cells made no sense."""
        taken = [
            f"{role} from {' and '.join(map(repr, self.columns[role]))}" for role in ROLES if self.columns.get(role)
        ]
        lines = [f"columns: {', '.join(taken)}"] if taken else []
        if self.classes:
            names = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            lines.append(
                f"read as a folder of classes: {names}; if these are no classes, `datasets find` looks for the data set"
            )
        if self.layout:
            left_out = f"; {self.filtered} rows left out, as it says" if self.filtered else ""
            lines.append(f"read as {self.layout}{left_out}")
        if self.missing:
            lines.append(f"read without {', '.join(self.missing)}, which are not there")
        for (role, column), count in self.ignored.items():
            lines.append(
                f"column {column!r} was taken for the {role}, and {count} of its cells make no sense as one: they were "
                f"passed over. Say what they mean with --label-name '{column}:VALUE=...', or switch the column off "
                f"with --{role}-column none"
            )
        if self.half_characters:
            lines.append(
                f"{self.half_characters} texts hold halves of characters, such as a cut emoji leaves; each half became "
                "'?'"
            )
        for (table, why), count in self.repaired.items():
            lines.append(f"{table}: labels of {count} rows repaired: {why} (--as-written keeps them)")
        if self.silent:
            told = ", ".join(f"{label} ({count})" for label, count in self.silent.most_common(10))
            lines.append(f"labels that say nothing to be seen: {told}")
        return lines
