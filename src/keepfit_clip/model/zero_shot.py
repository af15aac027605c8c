"""Zero-shot classification: a class is the average of the embeddings of everything that can be said of it."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import CategoryError, KeepFITWarning
from keepfit_clip.finite import require_finite
from keepfit_clip.knowledge.conditions import Knowledge, modality_named
from keepfit_clip.knowledge.templates import classes_texts
from keepfit_clip.model.inputs import batch_of
from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["ClassTexts", "ZeroShotClassifier"]

_TEXTS = 32  # through the text tower at a time
_IMAGES = 32


class ClassTexts:
    """Classes as a model knows them by their texts.

    Args:
        model: a KeepFIT model in eval mode.
        tokenizer: its own.
        texts: of each class, one or more.
        on_too_long: see `Tokenizer`.

    Attributes:
        features: (K, D) float32, of each class the mean over its texts' features, L2-normalised.

    Raises:
        TextTooLongError: a text does not fit into the model's context, and `on_too_long` is not given.
        NonFiniteError: the model gives no finite features.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        texts: Sequence[Sequence[str]],
        on_too_long: Callable[[int], None] | None = None,
    ):
        self._model = model
        features = _encode(model, tokenizer, [text for of_class in texts for text in of_class], on_too_long)
        require_finite(features, "text features")
        parts = features.split([len(of_class) for of_class in texts])
        self.features = F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Scaled cosine similarities (N, K) of L2-normalised image features (N, D), on their device, in float32."""
        scale = self._model.logit_scale.exp().float().to(features.device)
        with torch.autocast(features.device.type, enabled=False):  # which would round them to a few hundred values
            return scale * features.float() @ self.features.to(features.device).T

    def probabilities(self, features: Tensor) -> Tensor:
        """(N, K), each row sums to 1, of L2-normalised image features (N, D)."""
        return self.logits(features).softmax(dim=-1)


@torch.no_grad()
def _encode(model: nn.Module, tokenizer: Tokenizer, texts: list[str], on_too_long) -> Tensor:
    """L2-normalised features (T, D), float32."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # like lengths need little padding
    features = [None] * len(texts)
    for start in range(0, len(texts), _TEXTS):
        numbers = order[start : start + _TEXTS]
        ids = tokenizer([texts[number] for number in numbers], on_too_long).to(model.logit_scale.device)
        for number, row in zip(numbers, model.encode_text(ids, normalize=True).float(), strict=True):
            features[number] = row
    return torch.stack(features)


class ZeroShotClassifier:
    """Classifies images by texts, without training.

    Warns with `KeepFITWarning` of categories that the knowledge does not know.

    Args:
        model: a KeepFIT model in eval mode, or one under its surface.
        tokenizer: from `open_clip.get_tokenizer`, or a `Tokenizer`.
        categories: names of the classes, at least two, in the order of the output.
        modality: CFP, FFA, OCT, in any case of letters, or None; it words the texts and picks the findings.
        knowledge: names and findings of the classes; the shipped one by default.
        descriptions: False compares with the canonical name alone.
        findings: compares with what is visible of the classes too, where each has some.

    Raises:
        CategoryError: fewer than two categories, or one of them twice (synonyms count as the same).
        ConfigError: the model has no text tower.
        TextTooLongError: a category does not fit into the model's context.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable,
        categories: Sequence[str],
        modality: str | None = None,
        knowledge: Knowledge | None = None,
        descriptions: bool = True,
        findings: bool = False,
    ):
        knowledge = knowledge or Knowledge.load()
        modality = modality_named(modality)
        self.categories = [category.strip() for category in categories if category.strip()]
        terms = [knowledge.look_up(category) for category in self.categories]
        self.canonical = [term.name for term in terms]
        if len(self.categories) < 2:
            raise CategoryError(f"zero-shot needs at least two categories, got {self.categories}")
        twice = {name for name in self.canonical if self.canonical.count(name) > 1}
        if twice:
            raise CategoryError(f"these categories stand twice, maybe as synonyms: {sorted(twice)}")
        self.modality = modality
        self.unknown = [c for c, term in zip(self.categories, terms, strict=True) if term.condition is None]
        if self.unknown:
            warnings.warn(
                f"not in the knowledge file, so judged by the name alone: {', '.join(self.unknown)} (`keepfit-clip "
                "knowledge lookup NAME` shows what is near)",
                KeepFITWarning,
                stacklevel=2,
            )
        self.model = model
        self.tokenizer = Tokenizer.of_model(model, tokenizer)
        texts = classes_texts(self.categories, modality, knowledge, descriptions, findings)
        self.classes = ClassTexts(model, self.tokenizer, texts)

    def __repr__(self) -> str:
        return f"ZeroShotClassifier({', '.join(self.categories)}; {self.modality or 'any modality'})"

    @property
    def class_features(self) -> Tensor:
        """See `ClassTexts.features`."""
        return self.classes.features

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Scaled cosine similarities (B, K) of preprocessed images (B, 3, H, W)."""
        images = images.to(self.model.logit_scale.device)
        return self.classes.logits(self.model.encode_image(images, normalize=True))

    def predict_proba(self, images: Any) -> Tensor:
        """Probabilities (B, K), on the CPU; each row sums to 1.

        Args:
            images: preprocessed (B, 3, H, W), or pictures, paths and arrays, see `batch_of`.

        Raises:
            ImageError: an image cannot be read.
            NonFiniteError: the model gives none for an image.
        """
        batch, _ = batch_of(images, self.model.visual.image_transform())
        probabilities = torch.cat([self.logits(part).softmax(dim=-1).cpu() for part in batch.split(_IMAGES)])
        require_finite(probabilities, "images' probabilities")
        return probabilities

    def predict(self, images: Any) -> list[str]:
        """The most likely category of each image; see `predict_proba`."""
        return [self.categories[i] for i in self.predict_proba(images).argmax(dim=1)]
