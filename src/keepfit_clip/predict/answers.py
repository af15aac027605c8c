"""What a model says of images: probabilities, how sure it is, the modality, a caption, features.

predictor = Predictor(loaded, categories=["normal", "glaucoma"])
for number, answer in predictor.answers(records): ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError, ImageError
from keepfit_clip.finite import NOT_FINITE
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import image_name, open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.modality import ModalityGuesser
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from keepfit_clip.transfer.classifiers import Features
from keepfit_clip.transfer.heads import Head

__all__ = ["Answer", "Predictor"]


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    Args:
        probabilities: (K,) of the classes; None where none were asked for.
        modality: CFP, FFA, OCT, as it was given, or else as `ModalityGuesser` takes it; None where that is unsure.
        caption: what it writes; None where it was not asked for.
        features: (D,) L2-normalised; None where they were not asked for.
    """

    probabilities: np.ndarray | None
    modality: str | None
    caption: str | None = None
    features: np.ndarray | None = None


@dataclass
class Predictor:
    """A model with what it is asked.

    Args:
        loaded: the model.
        categories: names of classes to compare with; empty asks for none.
        head: what was learnt of a data set, in place of categories.
        modality: of all images, where their records do not tell.
        captions, features: whether these are wanted.
        descriptions, findings, knowledge: see `ZeroShotClassifier`.
        generation: options of `KeepFIT.generate`.

    Raises:
        ConfigError: nothing is asked for, categories and head at once, or what this model cannot do.
        CategoryError: the categories cannot be compared with.
    """

    loaded: LoadedModel
    categories: Sequence[str] = ()
    head: Head | None = None
    modality: str | None = None
    captions: bool = False
    features: bool = False
    descriptions: bool = True
    findings: bool = False
    knowledge: Knowledge | None = None
    generation: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.categories and self.head:
            raise ConfigError("--categories and --head are two answers to one question: give one of them")
        if not (self.categories or self.head or self.captions or self.features):
            raise ConfigError("nothing is asked of the images: give --categories, --head, --caption or --features")
        if self.captions:
            self.loaded.require_captions()
        if self.categories:
            self.categories = self._classifier(self.modality).categories

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return list(self.head.facts.classes if self.head else self.categories)

    @property
    def several(self) -> bool:
        """Whether an image may have several of the classes."""
        return self.head is not None and self.head.facts.several

    def answers(
        self, records: Sequence[Record], batch_size: int = 32, workers: int = 0
    ) -> Iterator[tuple[int, Answer | ImageError]]:
        """The answer for each image, or what is wrong with it, in their order.

        Args:
            records: whose images they are.
            batch_size: images in a batch.
            workers: processes that read images meanwhile; 0 reads them here.

        Yields:
            Number of the record and its answer.
        """
        images = DataLoader(
            _Images(records, self.loaded.preprocess), batch_size, num_workers=workers, collate_fn=_in_batches
        )
        for numbers, batch, wrong in images:
            answered = dict(wrong)
            if numbers:
                modalities = [records[number].modality or self.modality for number in numbers]
                for number, answer in zip(numbers, self.ask(batch, modalities), strict=True):
                    answered[number] = answer or ImageError(image_name(records[number].image), NOT_FINITE)
            yield from sorted(answered.items())

    def ask(self, batch: Tensor, modalities: Sequence[str | None]) -> list[Answer | None]:
        """The answers for preprocessed images (B, 3, H, W); None where one is not finite."""
        loaded = self.loaded
        with torch.inference_mode():
            encoding = loaded.model.visual.encode(batch.to(loaded.device))
            projected = torch.nn.functional.normalize(encoding.features.float(), dim=-1).cpu()
        captions: list[str | None] = [None] * len(batch)
        if self.captions:
            captions = loaded.decode(loaded.model.generate(encoding, **self.generation))
        taken = self._taken(batch, projected, modalities)
        if self.head:
            pooled = self._pooled(batch) if self.head.tower else encoding.pooled.float().cpu().numpy()
            wording = np.array([self.head.wording(modality) for modality in taken])
            probabilities = self.head.answer(Features(pooled, projected.numpy(), wording))
        else:
            probabilities = self._compared(projected, modalities) if self.categories else None
        finite = torch.isfinite(projected).all(dim=1).numpy()
        if probabilities is not None:
            finite &= np.isfinite(probabilities).all(axis=1)
        return [
            Answer(
                None if probabilities is None else probabilities[i],
                taken[i],
                captions[i],
                projected[i].numpy() if self.features else None,
            )
            if finite[i]
            else None
            for i in range(len(batch))
        ]

    def _compared(self, projected: Tensor, modalities: Sequence[str | None]) -> np.ndarray:
        """(B, K), each image by the texts of its modality."""
        probabilities = np.empty((len(projected), len(self.categories)), np.float32)
        for modality in dict.fromkeys(modalities):
            rows = [row for row, other in enumerate(modalities) if other == modality]
            probabilities[rows] = self._classifier(modality).classes.probabilities(projected[rows]).cpu().numpy()
        return probabilities

    def _taken(self, batch: Tensor, projected: Tensor, modalities: Sequence[str | None]) -> list[str | None]:
        """The modalities that were given, and guesses for those that were not."""
        taken = list(modalities)
        unknown = [row for row, modality in enumerate(modalities) if modality is None]
        if unknown:
            for row, guess in zip(unknown, self._guesser(batch[unknown], projected[unknown]), strict=True):
                taken[row] = guess.modality
        return taken

    @cached_property
    def _guesser(self) -> ModalityGuesser:
        return ModalityGuesser.of_model(self.loaded.model, self.loaded.tokenizer)

    @cached_property
    def _pooled(self):
        return self.head.pooled_of(self.loaded)

    @cached_property
    def _classifier(self):
        @cache  # of the few modalities there are
        def make(modality: str | None) -> ZeroShotClassifier:
            return ZeroShotClassifier(
                self.loaded.model,
                self.loaded.tokenizer,
                self.categories,
                modality,
                self.knowledge,
                self.descriptions,
                self.findings,
            )

        return make


class _Images(Dataset):
    """Each image preprocessed, or what is wrong with it."""

    def __init__(self, records: Sequence[Record], preprocess):
        self.records, self.preprocess = records, preprocess

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[int, Tensor | ImageError]:
        try:
            return number, self.preprocess(open_image(self.records[number].image, blank=False))
        except ImageError as error:
            return number, error


def _in_batches(items: Sequence[tuple]) -> tuple[list[int], Tensor | None, dict[int, ImageError]]:
    """Numbers and images (B, 3, H, W) of those that could be read, and the errors of the others."""
    wrong = {number: item for number, item in items if isinstance(item, ImageError)}
    images = [(number, item) for number, item in items if number not in wrong]
    batch = torch.stack([image for _, image in images]) if images else None
    return [number for number, _ in images], batch, wrong
