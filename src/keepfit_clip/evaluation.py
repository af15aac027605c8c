"""Running a model over images and tables: batches, predictions, scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keepfit_clip.data.images import open_image
from keepfit_clip.data.records import Record
from keepfit_clip.data.sources import read_records
from keepfit_clip.errors import CategoryError, ImageError, KeepFITError, TableError
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.loading import LoadedModel
from keepfit_clip.metrics import ClassificationScores, score_classification
from keepfit_clip.zero_shot import ZeroShotClassifier

__all__ = ["LabelledImage", "TableScores", "evaluate_table", "image_batches", "label_records"]

_BATCH = 32


@dataclass(frozen=True)
class LabelledImage:
    """An image with the class it belongs to.

    Args:
        path: of the image.
        label: index of its class.
        record: the row it comes from.
    """

    path: Path
    label: int
    record: Record


@dataclass
class TableScores:
    """What `evaluate_table` found.

    Args:
        classes: canonical names, in the order of the scores.
        images: number of images scored.
        scores: the metrics.
        labelled: the images scored, in the table's order.
        probabilities: (images, classes), of each of them.
        unused: row number -> why the row was not scored; reasons name nothing of the input.
        messages: the same in full, for the terminal only.
    """

    classes: list[str]
    images: int
    scores: ClassificationScores
    labelled: list[LabelledImage]
    probabilities: np.ndarray
    unused: dict[int, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


def image_batches(
    paths: Iterable[Path], preprocess, batch_size: int = _BATCH, on_error=None
) -> Iterator[tuple[list[int], Tensor]]:
    """Preprocessed images in batches.

    Args:
        paths: of the images.
        preprocess: from a PIL image to a tensor (3, H, W).
        batch_size: images in a batch.
        on_error: called with (index, ImageError) for an image that cannot be read; without it the first one raises.

    Yields:
        Indices of the images in the batch, and the batch (B, 3, H, W).
    """

    def readable():
        for index, path in enumerate(paths):
            try:
                yield index, preprocess(open_image(path))
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(index, error)

    images = readable()
    while batch := list(islice(images, batch_size)):
        yield [index for index, _ in batch], torch.stack([image for _, image in batch])


def label_records(
    records: Iterable[Record], classes: Sequence[str] | None, knowledge: Knowledge, on_unused=None
) -> tuple[list[str], list[LabelledImage]]:
    """Gives each record the one class that is true of it.

    Args:
        records: of a table.
        classes: the classes, in order; None takes every category of the table, sorted.
        knowledge: resolves names, so that synonyms match.
        on_unused: called with (record, reason) for records of no class or of several.

    Returns:
        Canonical class names and the labelled images.

    Raises:
        CategoryError: fewer than two classes, or no record belongs to any.
    """
    records = list(records)
    found = [[knowledge.canonical(c) for c in record.categories] for record in records]
    if classes is None:
        classes = sorted({category for categories in found for category in categories})
    canonical = list(dict.fromkeys(knowledge.canonical(c) for c in classes))
    if len(canonical) < 2:
        raise CategoryError(f"an evaluation needs at least two classes, got {canonical or 'none'}")
    labelled = []
    for record, categories in zip(records, found, strict=True):
        labels = [canonical.index(c) for c in dict.fromkeys(categories) if c in canonical]
        if len(labels) == 1:
            labelled.append(LabelledImage(record.image, labels[0], record))
        elif on_unused is not None:
            on_unused(record, "none of its categories is a class" if not labels else "several of its categories are")
    if not labelled:
        existing = sorted({category for categories in found for category in categories})
        raise CategoryError(f"no row belongs to exactly one of the classes {canonical}; the table has {existing[:20]}")
    return canonical, labelled


def evaluate_table(
    loaded: LoadedModel,
    table: str | Path,
    images: str | Path,
    classes: Sequence[str] | None = None,
    modality: str | None = None,
    knowledge: Knowledge | None = None,
    descriptions: bool = True,
    rows: Iterable[int] | None = None,
    progress=iter,
) -> TableScores:
    """Zero-shot classification of the images of a table.

    Args:
        loaded: the model.
        table, images: see `read_records`; a row that cannot be used is counted, not fatal.
        classes: see `label_records`.
        modality: of the images; by default what each row says. It words the texts an image is compared with.
        knowledge: names and findings; the shipped one by default.
        descriptions: see `ZeroShotClassifier`.
        rows: row numbers to use; all by default.
        progress: wraps the list of batches' paths.

    Raises:
        TableError, CategoryError: the table or the classes cannot be used at all.
    """
    knowledge = knowledge or Knowledge.load()
    unused: dict[int, str] = {}
    messages: list[str] = []

    def leave_out(row: int, reason: str, message: str) -> None:
        unused[row] = reason
        messages.append(message)

    chosen = None if rows is None else set(rows)

    def reject(error: TableError) -> None:
        if chosen is None or error.row in chosen:
            leave_out(error.row, error.reason, str(error))

    records = [r for r in read_records(table, images, on_reject=reject) if chosen is None or r.row in chosen]
    if not records:
        raise TableError(f"{table}: none of its rows can be used{': ' + messages[0] if messages else ''}")
    names, labelled = label_records(
        records, classes, knowledge, on_unused=lambda r, why: leave_out(r.row, why, f"{table}, row {r.row}: {why}")
    )
    modalities = [modality or item.record.modality for item in labelled]
    classifiers = {
        m: ZeroShotClassifier(loaded.model, loaded.tokenizer, names, m, knowledge, descriptions)
        for m in dict.fromkeys(modalities)
    }
    scored, probabilities = [], []
    batches = image_batches(
        progress([item.path for item in labelled]),
        loaded.preprocess,
        on_error=lambda i, e: leave_out(
            labelled[i].record.row, e.reason, f"{table}, row {labelled[i].record.row}: {e}"
        ),
    )
    for indices, batch in batches:
        scored += [labelled[i] for i in indices]
        probabilities.append(_predict(classifiers, [modalities[i] for i in indices], batch))
    if not scored:
        raise KeepFITError(f"{table}: none of its images can be read: {messages[-1]}")
    probabilities = np.concatenate(probabilities)
    scores = score_classification([item.label for item in scored], probabilities)
    return TableScores(names, len(scored), scores, scored, probabilities, unused, messages)


def _predict(
    classifiers: dict[str | None, ZeroShotClassifier], modalities: Sequence[str | None], batch: Tensor
) -> np.ndarray:
    """Probabilities (B, K) of images (B, 3, H, W), each by the classifier of its modality."""
    probabilities = np.empty((len(batch), len(next(iter(classifiers.values())).categories)), dtype=np.float32)
    for modality in dict.fromkeys(modalities):
        members = [i for i, other in enumerate(modalities) if other == modality]
        probabilities[members] = classifiers[modality].predict_proba(batch[members]).numpy()
    return probabilities
