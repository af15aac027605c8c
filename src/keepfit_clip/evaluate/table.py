"""Running a model over images and tables: batches, predictions, scores."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keepfit_clip.data.downstream import ClassFile, read_downstream
from keepfit_clip.data.records import LeftOut, Record
from keepfit_clip.data.sources import SourceNotes, SourceOptions
from keepfit_clip.errors import (
    CategoryError,
    ConfigError,
    ImageError,
    KeepFITError,
    MissingClassesError,
    NonFiniteError,
)
from keepfit_clip.evaluate.metrics.classification import ClassificationScores, score_classification
from keepfit_clip.finite import NOT_FINITE, finite_rows
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import image_name, open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.zero_shot import ZeroShotClassifier

__all__ = ["FIGURE_TITLES", "TableScores", "evaluate_table", "image_batches"]

FIGURE_TITLES = {"aca": "ACA", "auc": "AUC", "kappa": "quadratic kappa"}

_BATCH = 32


@dataclass
class TableScores:
    """What `evaluate_table` found.

    Args:
        classes: their names, in the order of the scores.
        scores: the metrics.
        records: the images scored, in the table's order.
        labels: (images,) class number of each.
        probabilities: (images, classes), of each of them.
        left_out: rows that were not scored.
        ordinal: whether the classes are grades in rising order.
        notes: which columns of the table were taken for what.
    """

    classes: list[str]
    scores: ClassificationScores
    records: list[Record]
    labels: np.ndarray
    probabilities: np.ndarray
    left_out: list[LeftOut] = field(default_factory=list)
    ordinal: bool = False
    notes: SourceNotes = field(default_factory=SourceNotes)

    @property
    def images(self) -> int:
        """Number of images scored."""
        return len(self.records)

    @property
    def classes_scored(self) -> list[str]:
        """The classes that have images; the scores are means over these."""
        return [self.classes[number] for number in np.unique(self.labels)]

    @property
    def complete(self) -> bool:
        """Whether every class has images, so that means over classes are means over all of them."""
        return len(self.classes_scored) == len(self.classes)

    @property
    def figures(self) -> dict[str, float]:
        """Name -> value of the scores that say something here: kappa of grades only, AUC of two classes or more."""
        names = ("aca", "auc", "kappa") if self.ordinal else ("aca", "auc")
        values = {name: getattr(self.scores, name) for name in names}
        return {name: value for name, value in values.items() if math.isfinite(value)}


def image_batches(
    paths: Iterable[Path], preprocess, batch_size: int = _BATCH, on_error=None
) -> Iterator[tuple[list[int], Tensor]]:
    """Preprocessed images in batches.

    Args:
        paths: of the images.
        preprocess: from a PIL image to a tensor (3, H, W).
        batch_size: images in a batch.
        on_error: called with (index, ImageError) for an image that cannot be read or shows
            nothing; without it the first one raises.

    Yields:
        Indices of the images in the batch, and the batch (B, 3, H, W).
    """

    def readable():
        for index, path in enumerate(paths):
            try:
                yield index, preprocess(open_image(path, blank=False))
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(index, error)

    images = readable()
    while batch := list(islice(images, batch_size)):
        yield [index for index, _ in batch], torch.stack([image for _, image in batch])


def evaluate_table(
    loaded: LoadedModel,
    table: str | Path,
    images: str | Path | None,
    classes: ClassFile | Sequence[str] | None = None,
    modality: str | None = None,
    knowledge: Knowledge | None = None,
    descriptions: bool = True,
    rows: Iterable[int] | None = None,
    progress=iter,
    options: SourceOptions | None = None,
    allow_missing_classes: bool = False,
    findings: bool = False,
) -> TableScores:
    """Zero-shot classification of the images of a table, one pass and nothing kept; see `transfer` for more.

    Args:
        loaded: the model.
        table, images: see `read_records`; a row that cannot be used is counted, not fatal.
        classes: see `read_downstream`.
        modality: of the images; by default what class file or row says. It words the texts an image is compared with.
        knowledge: names and findings; the shipped one by default.
        descriptions: see `ZeroShotClassifier`.
        rows: row numbers to use; all by default.
        progress: wraps the list of batches' paths.
        options: names of columns and the like.
        findings: see `ZeroShotClassifier`.
        allow_missing_classes: whether a class may be without images; the scores then say nothing of it.

    Raises:
        TableError, CategoryError: the table or the classes cannot be used at all, or a class has no image.
        NonFiniteError: the model gives no finite answer for any image.
        ConfigError: images may have several of the classes, or these have no names.
    """
    knowledge = knowledge or Knowledge.load()
    try:
        downstream = read_downstream(table, images, classes, knowledge, options, rows, allow_missing_classes)
    except MissingClassesError as error:
        raise MissingClassesError(f"{error}, or go on without them (--allow-missing-classes)") from error
    if downstream.spec.multi_label or not downstream.spec.named:
        raise ConfigError(f"{downstream.spec.title}: zero-shot needs one named class for each image; see `transfer`")
    modalities = [modality or downstream.spec.modality or record.modality for record in downstream.records]
    classifiers = {
        m: ZeroShotClassifier(loaded.model, loaded.tokenizer, downstream.classes, m, knowledge, descriptions, findings)
        for m in dict.fromkeys(modalities)
    }
    paths = [record.image for record in downstream.records]
    scored, probabilities, bad = _answer(paths, modalities, classifiers, loaded.preprocess, progress)
    for number, error in bad.items():
        row = downstream.records[number].row
        downstream.left_out.append(LeftOut(row, error.reason, f"{table}, row {row}: {error}"))
    if not scored:
        if all(error.reason == NOT_FINITE for error in bad.values()):
            raise NonFiniteError(f"{table}: the model's answers are finite for none of its images: look at its weights")
        raise KeepFITError(f"{table}: none of its images can be read: {list(bad.values())[-1]}")
    labels = downstream.labels[scored]
    missing = [name for number, name in enumerate(downstream.classes) if number not in labels]
    if missing and not allow_missing_classes:
        raise CategoryError(
            f"{table}: no image of {', '.join(missing)} can be used ({downstream.left_out[-1].message}); "
            "--allow-missing-classes goes on without"
        )
    return TableScores(
        downstream.classes,
        score_classification(labels, probabilities),
        [downstream.records[number] for number in scored],
        labels,
        probabilities,
        downstream.left_out,
        downstream.spec.ordinal,
        downstream.notes,
    )


def _answer(
    paths: Sequence,
    modalities: Sequence[str | None],
    classifiers: dict[str | None, ZeroShotClassifier],
    preprocess,
    progress,
) -> tuple[list[int], np.ndarray, dict[int, ImageError]]:
    """Numbers of the images that have an answer, their probabilities (N, K), and what is wrong with the others."""
    bad: dict[int, ImageError] = {}
    answered, probabilities = [], [np.empty((0, len(next(iter(classifiers.values())).categories)), np.float32)]
    for numbers, batch in image_batches(progress(paths), preprocess, on_error=bad.__setitem__):
        answers = _predict(classifiers, [modalities[number] for number in numbers], batch)
        finite = finite_rows(answers)
        for number in np.array(numbers)[~finite].tolist():
            bad[number] = ImageError(image_name(paths[number]), NOT_FINITE)
        answered += np.array(numbers)[finite].tolist()
        probabilities.append(answers[finite])
    return answered, np.concatenate(probabilities), bad


def _predict(
    classifiers: dict[str | None, ZeroShotClassifier], modalities: Sequence[str | None], batch: Tensor
) -> np.ndarray:
    """Probabilities (B, K) of images (B, 3, H, W), each by the classifier of its modality."""
    probabilities = np.empty((len(batch), len(next(iter(classifiers.values())).categories)), dtype=np.float32)
    for modality in dict.fromkeys(modalities):
        members = [i for i, other in enumerate(modalities) if other == modality]
        probabilities[members] = classifiers[modality].logits(batch[members]).softmax(dim=-1).cpu().numpy()
    return probabilities
