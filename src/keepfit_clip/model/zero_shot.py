"""Zero-shot classification: a class is the average of the embeddings of everything that can be said of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import CategoryError
from keepfit_clip.finite import require_finite
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.templates import class_texts
from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["ZeroShotClassifier"]

_TEXTS = 32  # through the text tower at a time


class ZeroShotClassifier:
    """Classifies images by texts, without training.

    Args:
        model: a KeepFIT model in eval mode.
        tokenizer: from `open_clip.get_tokenizer`, or a `Tokenizer`.
        categories: names of the classes, at least two, in the order of the output.
        modality: CFP, FFA, OCT or None; it words the texts and picks the findings.
        knowledge: names and findings of the classes; the shipped one by default.
        descriptions: False compares with the canonical name alone.

    Raises:
        CategoryError: fewer than two categories, or one of them twice (synonyms count as the same).
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
    ):
        knowledge = knowledge or Knowledge.load()
        if modality is not None and modality not in MODALITIES:
            raise CategoryError(f"the modality {modality!r} is none of {', '.join(MODALITIES)}")
        self.categories = [category.strip() for category in categories if category.strip()]
        self.canonical = [knowledge.canonical(category) for category in self.categories]
        if len(self.categories) < 2:
            raise CategoryError(f"zero-shot needs at least two categories, got {self.categories}")
        twice = {name for name in self.canonical if self.canonical.count(name) > 1}
        if twice:
            raise CategoryError(f"these categories stand twice, maybe as synonyms: {sorted(twice)}")
        self.unknown = [c for c in self.categories if knowledge.resolve(c) is None]
        self.model = model
        self.tokenizer = Tokenizer.of_model(model, tokenizer)
        texts = [class_texts(category, modality, knowledge, descriptions) for category in self.categories]
        features = self._encode([text for of_class in texts for text in of_class])
        require_finite(features, "text features")
        features = features.split([len(t) for t in texts])
        self.class_features = F.normalize(torch.stack([part.mean(dim=0) for part in features]), dim=-1)  # (K, D)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Tensor:
        """L2-normalised features (T, D), float32."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # like lengths need little padding
        features = [None] * len(texts)
        for start in range(0, len(texts), _TEXTS):
            numbers = order[start : start + _TEXTS]
            ids = self.tokenizer([texts[number] for number in numbers]).to(self.model.logit_scale.device)
            for number, row in zip(numbers, self.model.encode_text(ids, normalize=True).float(), strict=True):
                features[number] = row
        return torch.stack(features)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Scaled cosine similarities (B, K) of preprocessed images (B, 3, H, W)."""
        scale = self.model.logit_scale.exp().float()
        features = self.model.encode_image(images.to(scale.device), normalize=True).float()
        return scale * features @ self.class_features.T

    def predict_proba(self, images: Tensor) -> Tensor:
        """Probabilities (B, K) of preprocessed images (B, 3, H, W), on the CPU; each row sums to 1.

        Raises:
            NonFiniteError: the model gives none for an image.
        """
        probabilities = self.logits(images).softmax(dim=-1).cpu()
        require_finite(probabilities, "images' probabilities")
        return probabilities

    def predict(self, images: Tensor) -> list[str]:
        """The most likely category of each preprocessed image (B, 3, H, W)."""
        return [self.categories[i] for i in self.predict_proba(images).argmax(dim=1)]
