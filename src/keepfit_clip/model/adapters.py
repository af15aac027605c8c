"""Models that are none of ours under the surface of ours, so that they are measured by the same code.

`OpenCLIPModel` holds any model of open_clip, `ImageOnlyModel` an image tower that came without texts. Both have
`visual.encode`, `logit_scale` and `text_decoder` (None) as `KeepFIT` has; what a model does not have, no text tower or
no map of places, is an error that says so when it is asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError, TextTooLongError
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.model.preprocess import image_transform
from keepfit_clip.model.tokenization import Tokenizer, too_long_text

__all__ = ["FullContextTokenizer", "ImageOnlyModel", "OpenCLIPModel", "WholeEncoding"]


@dataclass(frozen=True)
class WholeEncoding:
    """What a tower tells of images as wholes; nothing is known of their places.

    Args:
        pooled: (B, C), before the projection where the tower tells that.
        features: (B, D), projected and not normalised.
    """

    pooled: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def grid(self) -> Tensor:
        """Never there.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("only models of this library tell which place of an image speaks for what")

    tokens = local_features = grid


class _Tower(nn.Module):
    """The image tower of an open_clip model, whose projection is a step of its own where it can be told apart.

    Args:
        visual: the tower.
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.projection = None
        if isinstance(visual, VisionTransformer) and visual.proj is not None:
            self.projection, visual.proj = visual.proj, None  # applied here, behind what it gives without
        self.image_size = visual.image_size
        self.preprocess = visual.preprocess_cfg

    def encode(self, image: Tensor) -> WholeEncoding:
        """Pooled and projected features of images (B, 3, H, W)."""
        if isinstance(self.visual, TimmModel):
            pooled = self.visual.trunk(image)
            features = self.visual.head(pooled)
            return WholeEncoding(pooled if pooled.ndim == 2 else features, features)
        pooled = self.visual(image)
        if isinstance(pooled, tuple):  # CoCa's towers give tokens too
            pooled = pooled[0]
        return WholeEncoding(pooled, pooled if self.projection is None else pooled @ self.projection)

    def image_transform(self, crop: bool | None = None) -> Callable[[Image.Image], Tensor]:
        """From a PIL image to the tensor (3, H, W) that the tower takes; with `crop`, without a photograph's border."""
        return image_transform({**self.preprocess, "crop": bool(crop)})

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D), not normalised."""
        return self.encode(image).features


class OpenCLIPModel(nn.Module):
    """A model of open_clip that compares images with texts.

    Args:
        original: from `open_clip.create_model`.
    """

    text_decoder = None  # open_clip's own captioning does not work with transformers 5

    def __init__(self, original: nn.Module):
        super().__init__()
        self.visual = _Tower(original.visual)
        self.original = original
        self.original.visual = None  # it stands above

    @property
    def logit_scale(self) -> Tensor:
        """(), the logarithm of the factor of similarities."""
        return self.original.logit_scale

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Features (B, D) of images (B, 3, H, W)."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Features (B, D) of token ids (B, L)."""
        return self.original.encode_text(text, normalize=normalize)


class ImageOnlyModel(nn.Module):
    """An image tower without texts: it can be probed, not asked.

    Args:
        tower: whose features are compared as they are.
    """

    text_decoder = None

    def __init__(self, tower: ImageTower):
        super().__init__()
        self.visual = tower
        self.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Features (B, C) of images (B, 3, H, W)."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features


class FullContextTokenizer(Tokenizer):
    """The tokenizer of an open_clip model that is none of ours: texts are padded to the whole context.

    Args:
        tokenizer: from `open_clip.get_tokenizer`.
        context_length: of the model.
    """

    def __init__(self, tokenizer: Callable, context_length: int):
        pad = int(tokenizer(["a"], context_length=context_length)[0, -1])
        super().__init__(tokenizer, context_length, pad, pad)

    def __call__(self, texts: Sequence[str], on_too_long: Callable[[int], None] | None = None) -> Tensor:
        """Token ids (B, context_length); see `Tokenizer`."""
        texts = list(texts)
        beyond = self.tokenizer(texts, context_length=2 * self.context_length)[:, self.context_length :]
        too_long = beyond.ne(self.pad_id).any(dim=1).nonzero().squeeze(1)
        if len(too_long) and on_too_long is None:
            raise TextTooLongError(too_long_text(texts[int(too_long[0])], self.context_length))
        if len(too_long):
            on_too_long(len(too_long))
        return self.tokenizer(texts, context_length=self.context_length)
