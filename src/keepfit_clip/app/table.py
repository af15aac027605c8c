"""The table of images: its rows, as the page shows them, and as CSV."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from keepfit_clip.app.service import Answer, ImageAnswer
from keepfit_clip.page.cells import csv_text

__all__ = ["Batch", "Row", "as_csv"]


@dataclass(frozen=True, eq=False)  # each is one of its own
class Row:
    """A row: what was said of an image, or why nothing was.

    Args:
        number: of the image, as the page counts.
        name: of its file.
        answer: None where there is none.
        caption: None where the model writes none.
        problem: why there is no answer.
    """

    number: int
    name: str
    answer: Answer | None = None
    caption: str | None = None
    problem: str = ""

    @classmethod
    def of_image(cls, number: int, image: ImageAnswer, answer: Answer) -> "Row":
        """With what was said."""
        return cls(number, image.name, answer, image.caption)

    @property
    def likeliest(self) -> tuple[str, float] | None:
        """The likeliest category and its probability."""
        return next(iter(self.answer.probabilities.items()), None) if self.answer else None


@dataclass(eq=False)
class Batch:
    """A folder that is asked image by image.

    Args:
        total: images to ask.
        rows: of those that were asked.
        stopped: whether somebody wants no more; looked at before each image.
    """

    total: int
    rows: list[Row] = field(default_factory=list)
    stopped: bool = False

    @property
    def wrong(self) -> int:
        """How many have no answer."""
        return sum(bool(row.problem) for row in self.rows)


def as_csv(rows: Sequence[Row], categories: Sequence[str], names: bool) -> str:
    """The rows as CSV: number, file, modality and what says so, probabilities, those of heads, caption, problem.

    Args:
        rows: of one list of categories and heads.
        categories: in the order of the columns.
        names: whether the files' names are among it.
    """
    answered = [row.answer for row in rows if row.answer]
    heads = {name: sorted(answers) for name, answers in answered[0].heads.items()} if answered else {}
    learnt = [(name, label) for name, labels in heads.items() for label in labels]
    header = ["image", *(["file"] if names else []), "modality", "modality said by", *categories,
              *(f"{name}: {label}" for name, label in learnt), "caption", "problem"]  # fmt: skip
    cells = [
        [
            row.number,
            *([row.name] if names else []),
            *((row.answer.modality or "", row.answer.said_by) if row.answer else ("", "")),
            *(_figure(row.answer.probabilities.get(name) if row.answer else None) for name in categories),
            *(_figure(row.answer.heads[name][label] if row.answer else None) for name, label in learnt),
            row.caption or "",
            row.problem,
        ]
        for row in rows
    ]
    return csv_text(header, cells)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
