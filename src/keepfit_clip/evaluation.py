"""Running a model over images and tables: batches, predictions, scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keepfit_clip.data.downstream import ClassFile, read_downstream
from keepfit_clip.data.images import open_image
from keepfit_clip.data.records import Record
from keepfit_clip.data.sources import SourceOptions
from keepfit_clip.errors import ConfigError, ImageError, KeepFITError
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.loading import LoadedModel
from keepfit_clip.metrics import ClassificationScores, score_classification
from keepfit_clip.zero_shot import ZeroShotClassifier

__all__ = ["TableScores", "evaluate_table", "image_batches"]

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
        unused: row number -> why the row was not scored; reasons name nothing of the input.
        messages: the same in full, for the terminal only.
    """

    classes: list[str]
    scores: ClassificationScores
    records: list[Record]
    labels: np.ndarray
    probabilities: np.ndarray
    unused: dict[int, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of images scored."""
        return len(self.records)


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


def evaluate_table(
    loaded: LoadedModel,
    table: str | Path,
    images: str | Path,
    classes: ClassFile | Sequence[str] | None = None,
    modality: str | None = None,
    knowledge: Knowledge | None = None,
    descriptions: bool = True,
    rows: Iterable[int] | None = None,
    progress=iter,
    options: SourceOptions | None = None,
) -> TableScores:
    """Zero-shot classification of the images of a table, one pass and nothing kept; see `transfer` for more.

    Args:
        loaded: the model.
        table, images: see `read_records`; a row that cannot be used is counted, not fatal.
        classes: see `read_downstream`; one may be without images.
        modality: of the images; by default what class file or row says. It words the texts an image is compared with.
        knowledge: names and findings; the shipped one by default.
        descriptions: see `ZeroShotClassifier`.
        rows: row numbers to use; all by default.
        progress: wraps the list of batches' paths.
        options: names of columns and the like.

    Raises:
        TableError, CategoryError: the table or the classes cannot be used at all.
        ConfigError: images may have several of the classes, or these have no names.
    """
    knowledge = knowledge or Knowledge.load()
    found = read_downstream(table, images, classes, knowledge, options, rows, empty_classes=True)
    if found.spec.multi_label or not found.spec.named:
        raise ConfigError(f"{found.spec.title}: zero-shot needs one named class for each image; see `transfer`")
    modalities = [modality or found.spec.modality or record.modality for record in found.records]
    classifiers = {
        m: ZeroShotClassifier(loaded.model, loaded.tokenizer, found.classes, m, knowledge, descriptions)
        for m in dict.fromkeys(modalities)
    }
    bad: list[ImageError] = []

    def leave_out(number: int, error: ImageError) -> None:
        row = found.records[number].row
        found.unused[row] = error.reason
        found.messages.append(f"{table}, row {row}: {error}")
        bad.append(error)

    scored, probabilities = [], []
    paths = progress([record.image for record in found.records])
    for numbers, batch in image_batches(paths, loaded.preprocess, on_error=leave_out):
        scored += numbers
        probabilities.append(_predict(classifiers, [modalities[n] for n in numbers], batch))
    if not scored:
        raise KeepFITError(f"{table}: none of its images can be read: {bad[-1]}")
    probabilities = np.concatenate(probabilities)
    labels = found.labels[scored]
    return TableScores(
        found.classes,
        score_classification(labels, probabilities),
        [found.records[number] for number in scored],
        labels,
        probabilities,
        found.unused,
        found.messages,
    )


def _predict(
    classifiers: dict[str | None, ZeroShotClassifier], modalities: Sequence[str | None], batch: Tensor
) -> np.ndarray:
    """Probabilities (B, K) of images (B, 3, H, W), each by the classifier of its modality."""
    probabilities = np.empty((len(batch), len(next(iter(classifiers.values())).categories)), dtype=np.float32)
    for modality in dict.fromkeys(modalities):
        members = [i for i, other in enumerate(modalities) if other == modality]
        probabilities[members] = classifiers[modality].predict_proba(batch[members]).numpy()
    return probabilities
