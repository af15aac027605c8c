"""What the methods learn: classifiers of a few tensors over a model's features, which can be kept."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

__all__ = [
    "CLASSIFIERS",
    "AdapterClassifier",
    "CacheClassifier",
    "Classifier",
    "Features",
    "LinearClassifier",
    "TextClassifier",
    "TextProbeClassifier",
]

_RATIO = 0.2  # of what CLIP-Adapter learns in the feature
_ALPHA, _BETA = 1.0, 5.0  # of Tip-Adapter: weight and sharpness of the cache


@dataclass(frozen=True)
class Features:
    """Features of N images: `pooled` (N, C) and `projected` (N, D), L2-normalised.

    `wording` (N,) says in which words each is compared with the classes, by its number; None is the first for all.
    """

    pooled: np.ndarray
    projected: np.ndarray
    wording: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> "Features":
        return Features(self.pooled[rows], self.projected[rows], None if self.wording is None else self.wording[rows])

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Projected features (N, D) and wordings (N,)."""
        wording = np.zeros(len(self.projected), dtype=int) if self.wording is None else self.wording
        return torch.from_numpy(self.projected), torch.from_numpy(wording)


@dataclass(frozen=True)
class Classifier:
    """Tensors that classify features; the names of the fields are those in a file."""

    kind: ClassVar[str] = ""

    @torch.no_grad()
    def logits_of(self, features: Features) -> np.ndarray:
        """(N, K), from which `answer` comes."""
        return self.logits(*features.tensors).numpy()

    def logits(self, projected: Tensor, wording: Tensor) -> Tensor:
        """(N, K) of projected features (N, D) and their wordings (N,)."""
        raise NotImplementedError

    def program_logits(self, pooled: Tensor, projected: Tensor) -> Tensor:
        """The same (B, K) of pooled (B, C) and projected (B, D) features in the first wording, for exporters."""
        return self.logits(projected, torch.zeros(projected.shape[0], dtype=torch.long))

    def answer(self, features: Features) -> np.ndarray:
        """Probabilities (N, K); each row sums to 1 where an image has one class."""
        logits = self.logits_of(features)
        return expit(logits) if self.several else softmax(logits, axis=1)

    @property
    def several(self) -> bool:
        """Whether an image may have several of the classes."""
        return False

    def state(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {field.name: getattr(self, field.name).detach().contiguous() for field in fields(self)}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The classifier of such tensors; a KeyError where one is missing."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class TextClassifier(Classifier):
    """The similarity with the classes' texts.

    Args:
        classes: (M, K, D), L2-normalised, in M wordings.
        scale: (), the factor of similarities.
        absent: (M, K, D) of what is said where a class is absent, for images that may have several; else (0,).
    """

    kind = "zero-shot"
    classes: Tensor
    scale: Tensor
    absent: Tensor

    def logits(self, projected: Tensor, wording: Tensor) -> Tensor:
        """See `Classifier`."""
        classes = self.classes - self.absent if self.several else self.classes
        return self.scale * _similarity(projected, wording, classes)

    @property
    def several(self) -> bool:
        """See `Classifier`."""
        return bool(self.absent.numel())


@dataclass(frozen=True)
class LinearClassifier(Classifier):
    """A linear layer over the backbone's features.

    Args:
        weight: (K, C).
        bias: (K,).
        one_vs_rest: () bool, whether each class is a question of its own.
    """

    kind = "linear"
    weight: Tensor
    bias: Tensor
    one_vs_rest: Tensor

    def program_logits(self, pooled: Tensor, projected: Tensor) -> Tensor:
        """See `Classifier`."""
        return F.linear(pooled, self.weight.to(pooled.dtype), self.bias.to(pooled.dtype))

    def logits_of(self, features: Features) -> np.ndarray:
        """See `Classifier`."""
        return np.float64(features.pooled) @ self.weight.double().numpy().T + self.bias.double().numpy()

    @property
    def several(self) -> bool:
        """See `Classifier`."""
        return bool(self.one_vs_rest)


@dataclass(frozen=True)
class AdapterClassifier(Classifier):
    """A learnt residual bottleneck, and the classes' texts (CLIP-Adapter, arXiv 2110.04544).

    Args:
        down, up: (D / 4, D) and (D, D / 4).
        classes: (M, K, D).
        scale: (), the factor of similarities.
    """

    kind = "clip-adapter"
    down: Tensor
    up: Tensor
    classes: Tensor
    scale: Tensor

    def logits(self, projected: Tensor, wording: Tensor) -> Tensor:
        """See `Classifier`."""
        adapted = F.relu(F.linear(F.relu(F.linear(projected, self.down)), self.up))
        mixed = F.normalize(_RATIO * adapted + (1 - _RATIO) * projected, dim=-1)
        return self.scale * _similarity(mixed, wording, self.classes)


@dataclass(frozen=True)
class TextProbeClassifier(Classifier):
    """A linear layer over projected features whose weights are learnt vectors plus so much of the classes' texts.

    Args:
        weight: (K, D).
        share: (K,), how much of each class's text.
        classes: (M, K, D).
    """

    kind = "text-probe"
    weight: Tensor
    share: Tensor
    classes: Tensor

    def logits(self, projected: Tensor, wording: Tensor) -> Tensor:
        """See `Classifier`."""
        return projected @ self.weight.T + self.share * _similarity(projected, wording, self.classes)


@dataclass(frozen=True)
class CacheClassifier(Classifier):
    """The training images beside the classes' texts (Tip-Adapter, arXiv 2207.09519).

    Args:
        keys: (T, D), features of the training images.
        values: (T, K), their classes as 0 and 1.
        classes: (M, K, D).
        scale: (), the factor of similarities.
    """

    kind = "tip-adapter"
    keys: Tensor
    values: Tensor
    classes: Tensor
    scale: Tensor

    def logits(self, projected: Tensor, wording: Tensor) -> Tensor:
        """See `Classifier`."""
        affinity = torch.exp(_BETA * (projected @ self.keys.T - 1))  # (N, T)
        return self.scale * _similarity(projected, wording, self.classes) + _ALPHA * affinity @ self.values


CLASSIFIERS = {
    one.kind: one for one in (TextClassifier, LinearClassifier, TextProbeClassifier, AdapterClassifier, CacheClassifier)
}


def _similarity(features: Tensor, wording: Tensor, classes: Tensor) -> Tensor:
    """Products (N, K) of features (N, D) with the classes (M, K, D) in each image's own wording (N,)."""
    return torch.einsum("nd,mkd->nmk", features, classes)[torch.arange(features.shape[0]), wording]
