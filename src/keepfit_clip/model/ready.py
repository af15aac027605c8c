"""A model ready for use: the network, what its images go through, and its words."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from keepfit_clip.model.tokenization import Tokenizer

__all__ = ["ReadyModel"]


@dataclass(repr=False)
class ReadyModel:
    """A model, in eval mode, with what belongs to it.

    Args:
        model: a `KeepFIT`, or another model under its surface (`keepfit_clip.model.adapters`).
        preprocess: from a PIL image to a tensor (3, H, W).
        tokenizer: from `open_clip.get_tokenizer`, or a `Tokenizer`; None where the model has no text tower.
        crop: whether `preprocess` cuts the black border of colour photographs off; None as the model was trained.
    """

    model: nn.Module
    preprocess: Callable
    tokenizer: Callable | None
    crop: bool | None = field(default=None, kw_only=True)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    @property
    def has_text(self) -> bool:
        """Whether it compares images with texts."""
        return self.tokenizer is not None

    @property
    def has_captions(self) -> bool:
        """Whether it writes captions."""
        return self.model.text_decoder is not None

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Texts of generated token ids (B, L)."""
        return Tokenizer.of_model(self.model, self.tokenizer).decode(ids)
