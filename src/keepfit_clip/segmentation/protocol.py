"""The protocol: a decoder on a model's tower and the same on a control, fold by fold, over the same images."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold

from keepfit_clip.errors import CategoryError, ConfigError
from keepfit_clip.extras import require_extra
from keepfit_clip.files import writing
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.segmentation.control import CONTROLS, Control
from keepfit_clip.segmentation.prepared import Prepared
from keepfit_clip.segmentation.scores import METRICS, Score, count_pixels, draw_weights, score_folds
from keepfit_clip.segmentation.training import TrainingOptions, answers, train_fold

__all__ = ["Outcome", "Segmentation", "SegmentationOptions", "run_segmentation"]


@dataclass(frozen=True)
class SegmentationOptions:
    """What is measured.

    Args:
        training: how each fold's decoder is trained.
        control: one of CONTROLS.
        folds: number of parts, each of which is tested once.
        seed: of folds, first weights and order.
        resamples: of the bootstrap.
        overlays: how many images are shown.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    control: str = "imagenet"
    folds: int = 5
    seed: int = 0
    resamples: int = 1000
    overlays: int = 6

    def __post_init__(self):
        if self.folds < 2:
            raise ConfigError(f"--folds {self.folds}: at least two are needed")
        if self.control not in CONTROLS:
            raise ConfigError(f"--control {self.control}: {', '.join(CONTROLS)}")
        if self.overlays < 0:
            raise ConfigError(f"--overlays {self.overlays}: 0 or more")


@dataclass
class Outcome:
    """What a tower reached.

    Args:
        name: of the tower, for tables.
        counts: (N, K, 3), see `count_pixels`, of each image when it was tested.
        shown: row -> label map (H, W) of the images that are shown.
    """

    name: str
    counts: np.ndarray
    shown: dict[int, np.ndarray]


@dataclass
class Segmentation:
    """The outcomes of a run.

    Args:
        prepared: the set.
        options: what was measured.
        folds: rows that each fold tests.
        outcomes: of the model, and of the control where there is one.
        note: on the control.
    """

    prepared: Prepared
    options: SegmentationOptions
    folds: list[np.ndarray]
    outcomes: list[Outcome]
    note: str = ""

    def scores(self, metric: str, outcome: Outcome) -> list[Score]:
        """A metric of METRICS: of each class, and the mean over the classes as the last one."""
        return score_folds(METRICS[metric](outcome.counts), self.folds, self._weights)

    def difference(self, metric: str) -> list[Score]:
        """The model's scores less the control's, paired by image."""
        model, control = (METRICS[metric](outcome.counts) for outcome in self.outcomes)
        return score_folds(model, self.folds, self._weights, control)

    @cached_property
    def _weights(self) -> np.ndarray:
        options = self.options
        return draw_weights(
            self.folds, self.prepared.groups, len(self.prepared.images), options.resamples, options.seed
        )


def run_segmentation(
    tower: ImageTower,
    control: Control | None,
    prepared: Prepared,
    options: SegmentationOptions,
    kept: Path | None = None,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Segmentation:
    """Trains and tests each fold, with the model's tower and with the control's.

    Args:
        tower: the model's.
        control: what it is compared with.
        prepared: the set.
        options: what is measured.
        kept: folder where answers of finished folds are kept, so that an interrupted run does not train them again.
        on_step: called with the part at work, the steps that are done, and of how many.

    Raises:
        MissingExtraError: segmentation-models-pytorch is not installed.
        CategoryError: there are fewer images, or patients, than folds.
    """
    require_extra("segmentation")
    parts = _folds(prepared, options)
    towers = [("model", tower)] + ([(control.name, control.tower)] if control else [])
    shown = _shown(prepared.presence, options.overlays)
    outcomes = []
    for name, own in towers:
        outcome = Outcome(name, np.zeros((*prepared.presence.shape, 3), dtype=np.int64), {})
        for number, (train, test) in enumerate(parts):
            step = f"{name}, fold {number + 1} of {len(parts)}"
            fold = _Fold(own, prepared, train, test, options, options.seed + number, shown)
            counts, maps = fold.answered(kept, name, lambda done, total, step=step: on_step(step, done, total))
            outcome.counts[test] = counts
            outcome.shown |= maps
        outcomes.append(outcome)
    return Segmentation(prepared, options, [test for _, test in parts], outcomes, control.note if control else "")


def _folds(prepared: Prepared, options: SegmentationOptions) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and to test, for each fold: patients at random."""
    count = len(prepared.images)
    groups = np.arange(count) if prepared.groups is None else prepared.groups
    there = len(np.unique(groups))
    if there < options.folds:
        what = "images" if prepared.groups is None else "patients (near copies counted once)"
        raise CategoryError(
            f"there are {there} {what}, which is fewer than the {options.folds} folds: use fewer --folds"
        )
    return list(GroupKFold(options.folds, shuffle=True, random_state=options.seed).split(groups, groups=groups))


def _shown(presence: np.ndarray, count: int) -> list[int]:
    """Rows of images to show, spread over those that have a class."""
    there = np.flatnonzero(presence.any(axis=1))
    return sorted(there[np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int)].tolist())


@dataclass
class _Fold:
    """One training and its test; see `train_fold` for the parts."""

    tower: ImageTower
    prepared: Prepared
    train: np.ndarray
    test: np.ndarray
    options: SegmentationOptions
    seed: int
    shown: Sequence[int]

    def answered(self, kept: Path | None, name: str, on_step: Callable) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Counts (n, K, 3) of the test images, and label maps of those to show; from `kept` where they stand there."""
        path = None if kept is None else kept / f"segment-{self._identity(name)}.npz"
        if path is not None and path.exists():
            with np.load(path) as stored:
                maps = {int(key): stored[key] for key in stored.files if key != "counts"}
                return stored["counts"], maps
        counts, maps = self._run(on_step)
        if path is not None:
            partial = path.with_suffix(".partial.npz")
            with writing(path):
                np.savez_compressed(partial, counts=counts, **{str(row): labels for row, labels in maps.items()})
            os.replace(partial, path)
        return counts, maps

    def _run(self, on_step: Callable) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        training, prepared = self.options.training, self.prepared
        network = train_fold(self.tower, prepared, self.train, training, self.seed, on_step)
        counts, maps = [], {}
        labelled = answers(network, prepared, self.test, training.batch_size)
        for row, labels in zip(self.test.tolist(), labelled, strict=True):
            counts.append(count_pixels(labels, prepared.truths[row].mask, len(prepared.source.classes)))
            if row in self.shown:
                maps[row] = labels
        return np.stack(counts), maps

    def _identity(self, name: str) -> str:
        keys = self.prepared.keys
        content = [
            name,
            [keys[row] for row in self.train],
            [keys[row] for row in self.test],
            [int(row) for row in self.shown],
            self.prepared.source.classes,
            list(self.prepared.pixels.shape),
            asdict(self.options.training),
            self.seed,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
