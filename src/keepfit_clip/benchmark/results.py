"""What came of one model on one data set, as two files: scores as JSON, answers as arrays.

    OUT/results/MODEL/SET.json    scores, seconds, and the identity of what was measured
    OUT/results/MODEL/SET.npz     `labels`, `fold`, `groups`, and the probabilities of each method

The JSON is written last, so a set that has one is done. Nothing in them names an image.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keepfit_clip.errors import OutputError
from keepfit_clip.evaluate.metrics.classification import Answers
from keepfit_clip.files import parse_json, read_json, to_json, write_json, writing

__all__ = ["MethodResult", "ResultFiles", "SetResult"]


@dataclass(frozen=True)
class MethodResult:
    """What one method reached with so many shots.

    Args:
        method: its name.
        shots: what it learnt from; "" where it learns nothing.
        folds: metric -> value of each fold, None where it is not defined.
        interval: metric -> 95 % bootstrap interval of the mean over the folds.
        seconds: of learning and answering.
    """

    method: str
    shots: str
    folds: dict[str, list[float | None]]
    interval: dict[str, list[float]]
    seconds: float

    @property
    def name(self) -> str:
        """Method and shots."""
        return f"{self.method} {self.shots}".strip()

    def mean(self, metric: str, ddof: int = 1) -> tuple[float, float]:
        """Mean and standard deviation of a metric over the folds in which it is defined; NaN where it is in none."""
        values = np.array([value for value in self.folds.get(metric, ()) if value is not None])
        if not len(values):
            return math.nan, math.nan
        return float(values.mean()), float(values.std(ddof=ddof)) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class SetResult:
    """What one model reached on one data set.

    Args:
        identity: of what was measured; a result of another identity is not this one's.
        model, set: their names.
        images: how many were tested.
        classes: their names.
        ordinal: whether they are grades.
        mark: seen, unseen or unknown, see `keepfit_clip.benchmark.seen`.
        tested: hash of the tested images' contents in order: equal ones can be compared image by image.
        encoding_seconds: of computing features.
        encoded: images whose features were not in the cache.
        methods: of those that the model and the set allow.
        not_measured: method -> why it was not.
        not_used: rows of the set that could not be used: number and reason.
    """

    identity: dict[str, Any]
    model: str
    set: str
    images: int
    classes: list[str]
    ordinal: bool
    mark: str
    tested: str
    encoding_seconds: float
    encoded: int
    methods: list[MethodResult] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)
    not_used: list[dict] = field(default_factory=list)

    def method(self, method: str, shots: str) -> MethodResult | None:
        """What a method reached with so many shots, None where it was not measured."""
        return next((one for one in self.methods if (one.method, one.shots) == (method, shots)), None)


class ResultFiles:
    """The two files of a result.

    Args:
        results: folder of all results.
        model, set: slugs of their names.
    """

    def __init__(self, results: Path, model: str, set: str):
        self.scores = results / model / f"{set}.json"
        self.arrays = results / model / f"{set}.npz"

    def read(self, identity: Mapping[str, Any] | None = None) -> SetResult | None:
        """The result, None where there is none, or none of this identity, or a damaged one."""
        try:
            content = read_json(self.scores)
            result = SetResult(**{**content, "methods": [MethodResult(**one) for one in content["methods"]]})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        same = identity is None or result.identity == parse_json(to_json(identity))
        return result if same and self.arrays.is_file() else None

    def write(self, result: SetResult, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes both under temporary names and renames them.

        Raises:
            OutputError: they cannot be written, or no space is left.
        """
        temporary = self.arrays.with_name(f".{self.arrays.name}.partial")
        try:
            self.scores.parent.mkdir(parents=True, exist_ok=True)
            with writing(self.arrays), open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
            self.scores.unlink(missing_ok=True)  # a stop between the two leaves no scores of other answers
            os.replace(temporary, self.arrays)
        except OSError as error:
            raise OutputError(f"{self.arrays}: cannot be written ({error.strerror or error})") from error
        finally:
            temporary.unlink(missing_ok=True)
        write_json(self.scores, asdict(result))

    def answers(self, name: str) -> list[Answers]:
        """The answers of a method, fold by fold.

        Args:
            name: method and shots.
        """
        with np.load(self.arrays, allow_pickle=False) as arrays:
            labels, fold, probabilities = arrays["labels"], arrays["fold"], arrays[name]
            groups = arrays.get("groups")
        parts = [np.flatnonzero(fold == number) for number in np.unique(fold)]
        return [Answers(labels[p], probabilities[p], None if groups is None else groups[p]) for p in parts]
