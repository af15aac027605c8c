"""What the page asks of a model: everything about an image at once, then categories and heat maps without reading anew.

Images live in memory only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import torch
from PIL import Image, ImageOps
from torch import Tensor

from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError
from keepfit_clip.evaluate.features import FeatureCache, image_features
from keepfit_clip.evaluate.pairs import PairTable
from keepfit_clip.explain.maps import Explainer, Explanation, heat_overlay
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import image_bytes, open_image
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.templates import modality_text
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.model.zero_shot import ClassTexts
from keepfit_clip.page.cells import csv_text
from keepfit_clip.page.report import picture_uri
from keepfit_clip.predict.answers import Predictor
from keepfit_clip.transfer.heads import Head

__all__ = ["MAPS", "MAX_IMAGES", "MAX_PIXELS", "Answer", "Gallery", "ImageAnswer", "Service"]

MAX_IMAGES = 16  # at a time
MAX_PIXELS = 50_000_000
MAPS = ("similarity", "Grad-CAM", "attention")
_NEAREST = 5
_LONGEST = 640  # pixels of a picture that is kept, more only for a larger tower
_MAP_SIZE = 32  # pixels of a word's map that is kept: the decoder's own grid is coarser


@dataclass
class ImageAnswer:
    """An image and what does not depend on the categories.

    Args:
        image: RGB, no larger than to show it and to look at it anew.
        features: (D,) L2-normalised.
        modality: CFP, FFA or OCT, the likeliest.
        sureness: its probability.
        explanation: caption and small maps of its words, no categories; None where the model writes no captions.
        nearest: of the gallery: picture, caption and cosine similarity.
        heads: name of each of the model's heads -> class -> probability, the likeliest first.
    """

    image: Image.Image
    features: Tensor
    modality: str
    sureness: float
    explanation: Explanation | None
    nearest: list[tuple[str, str, float]]
    heads: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the model says of an image for a list of categories.

    Args:
        modality: whose words the texts were in.
        probabilities: category -> probability, the likeliest first; empty for fewer than two categories.
    """

    modality: str
    probabilities: dict[str, float]


class Gallery:
    """Images to compare with, and their captions.

    Args:
        loaded: the model.
        pairs: images with captions or categories.
        cache: where features are kept.
        progress: wraps the list of images that have to be encoded.

    Raises:
        KeepFITError: none of the images can be read.
    """

    def __init__(self, loaded: LoadedModel, pairs: PairTable, cache: FeatureCache | None, progress: Callable = iter):
        encoded = image_features(loaded, pairs.records, cache, progress)
        self.records = [pairs.records[number] for number in encoded.kept]
        self.captions = [pairs.captions[number] for number in encoded.kept]
        self.features = torch.from_numpy(encoded.projected)

    def nearest(self, features: Tensor, count: int = _NEAREST) -> list[tuple[str, str, float]]:
        """Pictures (data URIs), captions and similarities of the images nearest to features (D,)."""
        similarity = self.features @ features
        best = similarity.topk(min(count, len(similarity)))
        return [
            (self._picture(self.records[number]), self._text(number), value)
            for value, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _text(self, number: int) -> str:
        captions = self.captions[number]
        return captions[0] if captions else ", ".join(self.records[number].categories)

    @staticmethod
    def _picture(record: Record) -> str:
        return picture_uri(open_image(image_bytes(record.image)), longest=200)


class Service:
    """Answers for the page.

    Args:
        loaded: the model.
        knowledge: names and findings of conditions.
        gallery: images to compare with, or None.
        heads: what was learnt of data sets, by name; each answers beside the categories.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        knowledge: Knowledge,
        gallery: Gallery | None = None,
        heads: Mapping[str, Head] | None = None,
    ):
        self.loaded, self.knowledge, self.gallery = loaded, knowledge, gallery
        self.heads = {name: Predictor(loaded, head=head) for name, head in (heads or {}).items()}
        self.has_captions = loaded.has_captions
        self._explainer = lru_cache(maxsize=32)(self._make_explainer)
        texts = [[modality_text(modality)] for modality in MODALITIES]
        self._modalities = ClassTexts(loaded.model, Tokenizer.of_model(loaded.model, loaded.tokenizer), texts)

    def look(self, image: Image.Image) -> ImageAnswer:
        """Everything about an image that does not depend on the categories."""
        explanation = None
        if not self.has_captions:
            pixels = self.loaded.preprocess(image)[None].to(self.loaded.device)
            with torch.no_grad():
                features = self.loaded.model.encode_image(pixels, normalize=True).float().cpu()[0]
        else:
            explanation = Explainer(self.loaded, None)(image)
            features = explanation.features
            explanation.words = [
                replace(word, heat=cv2.resize(word.heat, (_MAP_SIZE, _MAP_SIZE), interpolation=cv2.INTER_AREA))
                for word in explanation.words
            ]
        sureness = self._modalities.probabilities(features[None])[0]
        best = int(sureness.argmax())
        nearest = self.gallery.nearest(features) if self.gallery else []
        longest = max(_LONGEST, *self._tower_size())
        shown = ImageOps.contain(image, (longest, longest)) if max(image.size) > longest else image
        modality = MODALITIES[best]
        heads = self._answers_of_heads(image, modality) if self.heads else {}
        return ImageAnswer(shown, features, modality, float(sureness[best]), explanation, nearest, heads)

    def _answers_of_heads(self, image: Image.Image, modality: str) -> dict[str, dict[str, float]]:
        pixels = self.loaded.preprocess(image)[None]
        answers = {}
        for name, predictor in self.heads.items():
            (answer,) = predictor.ask(pixels, [modality])
            if answer is not None:
                values = zip(predictor.classes, answer.probabilities.tolist(), strict=True)
                answers[name] = dict(sorted(values, key=lambda pair: -pair[1]))
        return answers

    def _tower_size(self) -> tuple[int, int]:
        size = self.loaded.model.visual.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def answer(self, image: ImageAnswer, categories: Sequence[str], modality: str | None = None) -> Answer:
        """Probabilities of categories.

        Args:
            image: the image.
            categories: names.
            modality: None takes the likeliest.

        Raises:
            CategoryError: a category stands twice, maybe as a synonym.
            TextTooLongError: a category does not fit into the model's context.
        """
        modality = modality or image.modality
        if len(categories) < 2:
            return Answer(modality, {})
        values = self._explainer(tuple(categories), modality).classes.probabilities(image.features[None])[0].tolist()
        ranked = sorted(zip(categories, values, strict=True), key=lambda pair: -pair[1])
        return Answer(modality, dict(ranked))

    def heat(
        self, image: ImageAnswer, kind: str, target: str, categories: Sequence[str], modality: str | None
    ) -> Image.Image:
        """The image under the heat map of a category or of a word.

        Args:
            image: the image.
            kind: one of `MAPS`; attention is of words, the others of categories.
            target: a category, or a word as `words` names it.
            categories: all of them.
            modality: None takes the likeliest.

        Raises:
            ConfigError: the target is not there.
        """
        if kind == "attention":
            words = dict(zip(self.words(image), image.explanation.words if image.explanation else (), strict=True))
            if target not in words:
                raise ConfigError(f"{target!r} is no word of the caption: choose one")
            picture = image.explanation.picture
            return heat_overlay(picture, cv2.resize(words[target].heat, picture.size, interpolation=cv2.INTER_CUBIC))
        if target not in categories:
            raise ConfigError(f"{target!r} is none of the categories: choose one")
        explain = self._explainer(tuple(categories), modality or image.modality)
        explanation = explain(image.image, with_grad_cam=kind == "Grad-CAM", with_words=False)
        maps = explanation.grad_cam if kind == "Grad-CAM" else explanation.similarity
        return heat_overlay(explanation.picture, maps[list(categories).index(target)])

    def words(self, image: ImageAnswer) -> list[str]:
        """The caption's words, numbered, for one may stand there twice."""
        return [f"{n}. {word.word}" for n, word in enumerate(image.explanation.words, 1)] if image.explanation else []

    def table(self, images: Sequence[ImageAnswer], categories: Sequence[str], modality: str | None) -> str:
        """CSV of all images: number, modality, probabilities and caption."""
        rows = []
        for number, image in enumerate(images, start=1):
            answer = self.answer(image, categories, modality)
            values = [f"{answer.probabilities[c]:.6f}" if answer.probabilities else "" for c in categories]
            rows.append([number, answer.modality, *values, image.explanation.caption if image.explanation else ""])
        return csv_text(["image", "modality", *categories, "caption"], rows)

    def _make_explainer(self, categories: tuple[str, ...], modality: str) -> Explainer:
        return Explainer(self.loaded, categories, modality, self.knowledge)
