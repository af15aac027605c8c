"""Where a model looks: for a category a text-to-patch similarity map and Grad-CAM, for a generated word the attention.

- similarity: each place of the last map, taken for the whole image, against the category's texts, less what all
  categories share; where the backbone averages over the map this is CAM (Zhou et al., CVPR 2016).
- grad_cam: Grad-CAM (arXiv 1610.02391) by the library grad-cam (extra `explain`); of convolutional backbones at the
  feature level before the last, in the form that weighs each place by its own gradient (LayerCAM, IEEE TIP 2021).
- words: the decoder's cross-attention while it wrote a word, averaged over layers and heads, as a multiple of its mean
  over the whole caption: most of the attention goes to the same few places for every word and says nothing of any.

How far each can be trusted is measured on drawn retinas, where the lesion's place is known: docs/RESULTS.md.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError
from keepfit_clip.extras import require_extra
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.decoder import CaptionDecoder
from keepfit_clip.model.image_tower import ImageEncoding, ImageTower
from keepfit_clip.model.preprocess import to_levels
from keepfit_clip.model.ready import ReadyModel
from keepfit_clip.model.zero_shot import ZeroShotClassifier

__all__ = [
    "SCALE",
    "STRENGTH",
    "Explainer",
    "Explanation",
    "WordMap",
    "colour_ramp",
    "grad_cam",
    "heat_ends",
    "heat_layer",
    "heat_overlay",
    "similarity_maps",
    "tower_view",
    "word_maps",
    "words_of_tokens",
]

SCALE = 2  # see `Explainer`
STRENGTH = 0.55  # of the heat where it is hottest


@dataclass(frozen=True)
class WordMap:
    """A generated word and where the decoder looked.

    Args:
        word: as it stands in the caption.
        heat: (H, W) float32, the attention of its tokens as a multiple of the caption's mean.
    """

    word: str
    heat: np.ndarray


@dataclass
class Explanation:
    """What a model says of an image, and where it looks for it.

    Args:
        picture: the image as the tower sees it, (H, W): enlarged, see `Explainer`.
        categories: names, in the order of the maps.
        probabilities: (K,), zero-shot; of a single category NaN.
        similarity: (K, H, W) float32; higher speaks more for the category.
        features: (D,) float32 on the CPU, of the image, L2-normalised.
        grad_cam: (K, H, W) float32 from 0 to 1, or None where it was not asked for.
        caption: the generated caption, or None without a decoder.
        words: its words with their maps.
        as_measured: whether the maps are of the kind whose hits are measured (`explain.measured`): of a convolutional
            tower, of the image enlarged as it is by default.
        pooled: (C,) float32 on the CPU, the backbone's features of the image.
    """

    picture: Image.Image
    categories: list[str]
    probabilities: np.ndarray
    similarity: np.ndarray
    features: Tensor
    grad_cam: np.ndarray | None = None
    caption: str | None = None
    words: list[WordMap] = field(default_factory=list)
    as_measured: bool = False
    pooled: Tensor | None = None


class Explainer:
    """Explains images by one list of categories.

    Args:
        loaded: the model.
        categories: names; of a single one nothing can be said of its probability. None or empty: words only.
        modality: CFP, FFA, OCT or None; words the texts.
        knowledge: names and findings of the categories.
        descriptions: see `ZeroShotClassifier`.
        scale: maps of categories are made of the image in so many times the tower's height and width, where its
            backbone takes such; probabilities and the caption are of its own size.

    Raises:
        ConfigError: no category and no decoder, so that there is nothing to explain; or a model of another library.
        CategoryError: a category stands twice.
    """

    def __init__(
        self,
        loaded: ReadyModel,
        categories: Sequence[str] | None,
        modality: str | None = None,
        knowledge: Knowledge | None = None,
        descriptions: bool = True,
        scale: int = SCALE,
    ):
        self.loaded = loaded
        if not isinstance(loaded.model.visual, ImageTower):
            raise ConfigError("only models of this library tell which place of an image speaks for what")
        self.scale = scale if loaded.model.visual.takes_any_size else 1
        self._enlarge = loaded.model.visual.image_transform(loaded.crop, self.scale)
        self.categories = list(categories or ())
        if not self.categories and loaded.model.text_decoder is None:
            raise ConfigError("a model without a caption decoder can explain categories only: name some")
        self.classes = None
        if self.categories:
            # A classifier wants two; of one category alone its denial is the other, which has no map of its own.
            asked = self.categories if len(self.categories) > 1 else [*self.categories, f"no {self.categories[0]}"]
            classifier = ZeroShotClassifier(loaded.model, loaded.tokenizer, asked, modality, knowledge, descriptions)
            self.categories = classifier.categories[: len(self.categories)]
            self.classes = classifier.classes  # of a single category with its denial

    def __call__(self, image: Image.Image, with_grad_cam: bool = True, with_words: bool = True) -> Explanation:
        """Explains an RGB image: the backbone looks at it once, once more enlarged, and once for each Grad-CAM.

        Raises:
            MissingExtraError: the library grad-cam is not installed.
            ConfigError: the backbone does not tell which place a token stands for.
        """
        loaded, count, visual = self.loaded, len(self.categories), self.loaded.model.visual
        pixels = loaded.preprocess(image)[None].to(loaded.device)
        enlarged = pixels if self.scale == 1 else self._enlarge(image)[None].to(loaded.device)
        with torch.no_grad():
            encoding = visual.encode(pixels)
            features = F.normalize(encoding.features, dim=-1).float()
        size = tuple(enlarged.shape[-2:])
        explanation = Explanation(
            tower_view(loaded, enlarged[0]),
            self.categories,
            np.full(count, np.nan),
            np.zeros((0, *size), np.float32),
            features[0].cpu(),
            as_measured=self.scale == SCALE and visual.finer_layer is not None,
            pooled=encoding.pooled[0].float().cpu(),
        )
        if count:
            with torch.no_grad():
                finer = encoding if self.scale == 1 else visual.encode(enlarged)
            explanation.similarity = similarity_maps(finer, self.classes.features)[0, :count].cpu().numpy()
            if count > 1:
                explanation.probabilities = self.classes.probabilities(features)[0].cpu().numpy()
            if with_grad_cam:
                explanation.grad_cam = grad_cam(visual, enlarged, self.classes.features, count)
        if with_words and loaded.model.text_decoder is not None:
            explanation.caption, explanation.words = word_maps(loaded, encoding, size)
        return explanation


def similarity_maps(encoding: ImageEncoding, class_features: Tensor) -> Tensor:
    """Text-to-patch similarity at the size of the images.

    Args:
        encoding: of B images of H x W pixels.
        class_features: (K, D), L2-normalised.

    Returns:
        (B, K, H, W) float32: how much more each place speaks for a class than for the mean of all classes.
    """
    with torch.no_grad():
        local = encoding.local_features.float()  # (B, h, w, D)
        own = class_features - class_features.mean(dim=0) if len(class_features) > 1 else class_features
        maps = torch.einsum("bhwd,kd->bkhw", local, own)
        return F.interpolate(maps, size=encoding.image_size, mode="bicubic", align_corners=False)


def grad_cam(tower: ImageTower, pixels: Tensor, class_features: Tensor, count: int | None = None) -> np.ndarray:
    """Grad-CAM of the similarity with each class, less the mean over all classes.

    Args:
        tower: the image tower.
        pixels: (1, 3, H, W).
        class_features: (K, D), L2-normalised.
        count: how many of them, from the first, get a map; all by default. Each is a pass of the backbone.

    Returns:
        (count, H, W) float32 from 0 to 1.

    Raises:
        MissingExtraError: the library grad-cam is not installed.
    """
    require_extra("explain")
    from pytorch_grad_cam import GradCAM, LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    own = class_features - class_features.mean(dim=0) if len(class_features) > 1 else class_features
    network = _Similarities(tower, own)
    method = GradCAM if tower.finer_layer is None else LayerCAM
    with (
        _frozen(tower),
        torch.enable_grad(),
        method(network, [network.caught], lambda values: tower.grid(values).permute(0, 3, 1, 2)) as library,
    ):
        pixels = pixels.clone().requires_grad_()  # gradients flow although no weight asks for one
        maps = [library(pixels, [ClassifierOutputTarget(number)])[0] for number in range(len(own))[:count]]
    return np.stack(maps).astype(np.float32)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Lets no weight gather gradients."""
    asked = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


class _Map(nn.Module):
    """The backbone's last map, as a module whose output Grad-CAM can catch."""

    def __init__(self, tower: ImageTower):
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower.feature_map(pixels)


class _Similarities(nn.Module):
    """Cosine similarities (B, K) with classes; `caught` is the module whose output Grad-CAM looks at."""

    def __init__(self, tower: ImageTower, classes: Tensor):
        super().__init__()
        self.map = _Map(tower)
        self.classes = classes
        # A class token gathers from the places in the last block: behind it they have no gradient.
        has_tokens = hasattr(tower.trunk, "num_prefix_tokens") and hasattr(tower.trunk, "blocks")
        self.caught = tower.trunk.blocks[-1].norm1 if has_tokens else self.map
        if tower.finer_layer is not None:
            self.caught = tower.finer_layer

    def forward(self, pixels: Tensor) -> Tensor:
        tower = self.map.tower
        return F.normalize(tower.project(tower.pool(self.map(pixels))), dim=-1) @ self.classes.T


def word_maps(
    loaded: ReadyModel, encoding: ImageEncoding, size: tuple[int, int] | None = None, **options
) -> tuple[str, list[WordMap]]:
    """Writes a caption and tells where the decoder looked for each of its words.

    Args:
        loaded: the model.
        encoding: of one image.
        size: height and width of the maps; the image's by default.
        **options: transformers' generation options.

    Returns:
        The caption, and its words with the attention of their tokens (punctuation aside), averaged over layers, heads
        and tokens, as a multiple of the caption's mean.

    Raises:
        ConfigError: the model has no decoder, or the backbone does not tell its grid.
    """
    decoder = loaded.model.text_decoder
    ids = loaded.model.generate(encoding, **options)  # (1, L), begin token first
    with torch.no_grad(), _attention_shown(decoder):
        height, width = encoding.grid.shape[1:3]
        shown = decoder(ids[:, :-1], decoder.project_tokens(encoding.tokens), output_attentions=True, use_cache=False)
    attention = torch.stack(shown.cross_attentions).float().mean(dim=(0, 2))[0]  # (L-1, N): of the next token each
    attention = attention / attention.mean(dim=0)
    maps = F.interpolate(
        attention.view(-1, 1, height, width), size=size or encoding.image_size, mode="bicubic", align_corners=False
    )
    maps = maps[:, 0].cpu().numpy()
    so_far = [loaded.decode(ids[:, : index + 2])[0] for index in range(ids.shape[1] - 1)]
    words = [WordMap(word, maps[indices].mean(axis=0)) for word, indices in words_of_tokens(so_far)]
    return loaded.decode(ids)[0], words


def words_of_tokens(so_far: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The words of a text and the numbers of the tokens they are made of; the end token and punctuation are of none.

    Args:
        so_far: what the first token decodes to, the first two, and so on. Spaces around punctuation may come and go
            from one to the next, so places are counted in letters and digits.
    """
    words = so_far[-1].split() if so_far else []
    ends = np.cumsum([_letters(word) for word in words])
    members: dict[int, list[int]] = {}
    before = 0
    for index, text in enumerate(so_far):
        letters = _letters(text)
        if letters > before:
            members.setdefault(int(np.searchsorted(ends, letters)), []).append(index)
        before = letters
    return [(word, members[number]) for number, word in enumerate(words) if number in members]


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


@contextmanager
def _attention_shown(decoder: CaptionDecoder) -> Iterator[None]:
    """Lets a decoder give its attention, which the fast kernels do not."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def tower_view(loaded: ReadyModel, pixels: Tensor) -> Image.Image:
    """A preprocessed image (3, H, W) as a picture."""
    image = to_levels(loaded.model.visual.preprocess_cfg, pixels).permute(1, 2, 0)
    return Image.fromarray((image.numpy() * 255 + 0.5).astype(np.uint8))


def heat_overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A picture under its heat map.

    Args:
        picture: RGB, (H, W).
        heat: (H, W), any scale; the coolest tenth stays clear, the hottest place is red.
    """
    scaled = _scaled(heat)
    strength = STRENGTH * scaled[:, :, None]
    mixed = np.asarray(picture) * (1 - strength) + _colours(scaled) * strength
    return Image.fromarray(np.clip(mixed + 0.5, 0, 255).astype(np.uint8))


def heat_layer(heat: np.ndarray) -> Image.Image:
    """A heat map alone, RGBA, to lie over the picture with an opacity of `STRENGTH`: then it is `heat_overlay`.

    Args:
        heat: as `heat_overlay` takes it.
    """
    scaled = _scaled(heat)
    return Image.fromarray(np.dstack([_colours(scaled), (scaled * 255 + 0.5).astype(np.uint8)]))


def heat_ends(heat: np.ndarray) -> tuple[float, float]:
    """The values of a heat map that are coloured: up to the first it is clear, at the second it is red."""
    return float(np.percentile(heat, 10)), float(heat.max())


def colour_ramp(count: int = 9) -> list[tuple[int, int, int]]:
    """So many RGB colours of heat maps, from cool to hot."""
    return [tuple(map(int, colour)) for colour in _colours(np.linspace(0, 1, count)[None])[0]]


def _scaled(heat: np.ndarray) -> np.ndarray:
    cool, hot = heat_ends(heat)
    return np.clip((heat - cool) / max(hot - cool, 1e-12), 0, 1)


def _colours(scaled: np.ndarray) -> np.ndarray:
    return cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
