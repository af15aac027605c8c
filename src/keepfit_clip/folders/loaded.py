"""What a loaded model does in a notebook: classify, caption, encode, explain.

model = keepfit_clip.load_model("runs/model")
model.classify("eye.jpg", ["normal", "glaucoma"], "CFP")      # {"normal": 0.91, "glaucoma": 0.09}
model.caption(["a.png", "b.png"])
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError
from keepfit_clip.explain.maps import Explainer, Explanation
from keepfit_clip.finite import require_finite
from keepfit_clip.model.inputs import batch_of, picture_of
from keepfit_clip.model.ready import ReadyModel
from keepfit_clip.model.zero_shot import ZeroShotClassifier

__all__ = ["LoadedModel"]

_BATCH = 32
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(repr=False)
class LoadedModel(ReadyModel):
    """A model ready for use.

    Args:
        model, preprocess, tokenizer: see `ReadyModel`.
        name: what to call it in tables and pages; no path of this machine.
        architecture: what tells it from another model of the same weights, such as its config.
    """

    name: str = "model"
    architecture: str = ""

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        size = self.model.visual.image_size
        side = size if isinstance(size, int) else "x".join(map(str, size))
        can = "texts, captions" if self.has_captions else "texts" if self.has_text else "images only"
        return f"LoadedModel({self.name!r}: {millions:.1f} M parameters, {side} px, {can}, on {self.device})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that an answer depends on: weights, architecture, preprocessing."""
        digest = hashlib.sha256(f"{self.architecture} {_ADDRESS.sub('', repr(self.preprocess))}".encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @cached_property
    def widths(self) -> tuple[int, int]:
        """C and D, the widths of the pooled and of the projected features."""
        size = self.model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pooled, projected = self.encode_batch(torch.zeros(1, 3, height, width))
        return pooled.shape[1], projected.shape[1]

    @torch.inference_mode()
    def encode_batch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (B, C) and L2-normalised projected (B, D) features of preprocessed images (B, 3, H, W), in float32."""
        encoding = self.model.visual.encode(batch.to(self.device))
        return encoding.pooled.float(), F.normalize(encoding.features.float(), dim=-1)

    def require_captions(self) -> None:
        """Makes sure that it writes captions.

        Raises:
            ConfigError: it does not.
        """
        if not self.has_captions:
            raise ConfigError(f"{self.name} writes no captions: it has no caption decoder (models named v2 have one)")

    def classify(
        self, images: Any, categories: Sequence[str], modality: str | None = None, **options: Any
    ) -> dict[str, float] | list[dict[str, float]]:
        """Zero-shot probabilities.

        Args:
            images: one or many, see `keepfit_clip.model.inputs.batch_of`.
            categories: names of the classes, at least two.
            modality: CFP, FFA or OCT; words the texts.
            **options: `descriptions` and `findings` of `ZeroShotClassifier`.

        Returns:
            Category -> probability, or a list of such for many images.

        Raises:
            ConfigError: the model has no text tower.
            CategoryError: fewer than two categories, or one twice.
            ImageError: an image cannot be read.
        """
        classifier = self._classifier(tuple(categories), modality, **options)
        batch, single = batch_of(images, self.preprocess)
        rows = classifier.predict_proba(batch).tolist()
        answers = [dict(zip(classifier.categories, row, strict=True)) for row in rows]
        return answers[0] if single else answers

    def caption(self, images: Any, **options: Any) -> str | list[str]:
        """Captions that the model writes.

        Args:
            images: one or many, see `keepfit_clip.model.inputs.batch_of`.
            **options: of `KeepFIT.generate`, such as num_beams.

        Raises:
            ConfigError: the model writes none.
            ImageError: an image cannot be read.
        """
        self.require_captions()
        batch, single = batch_of(images, self.preprocess)
        parts = (self.model.generate(part.to(self.device), **options) for part in batch.split(_BATCH))
        texts = [text for ids in parts for text in self.decode(ids)]
        return texts[0] if single else texts

    def encode(self, images: Any, pooled: bool = False) -> np.ndarray:
        """Features (N, D), L2-normalised, of the joint space; (D,) of a single image.

        Args:
            images: one or many, see `keepfit_clip.model.inputs.batch_of`.
            pooled: the backbone's own features (N, C) instead, as probes take them.

        Raises:
            ImageError: an image cannot be read.
            NonFiniteError: the model gives no finite features.
        """
        batch, single = batch_of(images, self.preprocess)
        features = torch.cat([self.encode_batch(part)[0 if pooled else 1] for part in batch.split(_BATCH)]).cpu()
        require_finite(features, "images' features")
        return features[0].numpy() if single else features.numpy()

    def explain(
        self, image: Any, categories: Sequence[str] | None = None, modality: str | None = None, grad_cam: bool = False
    ) -> Explanation:
        """Where the model looks in one image for each category, and for each word of its caption.

        Args:
            image: see `keepfit_clip.model.inputs.picture_of`.
            categories: names; None explains the caption alone.
            modality: CFP, FFA or OCT; words the texts.
            grad_cam: with Grad-CAM (extra explain).

        Raises:
            ConfigError: no category and no decoder, or a model of another library.
            ImageError: the image cannot be read.
        """
        return Explainer(self, categories, modality)(picture_of(image), with_grad_cam=grad_cam)

    @cached_property
    def _classifier(self):
        @lru_cache(maxsize=8)  # the same classes are asked of one image after the other
        def make(categories: tuple[str, ...], modality: str | None, **options: Any) -> ZeroShotClassifier:
            return ZeroShotClassifier(self.model, self.tokenizer, categories, modality, **options)

        return make
