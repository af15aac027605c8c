"""What the page asks of a model: everything about an image at once, then categories and heat maps without reading anew.

Images live in memory only.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from keepfit_clip.app.maps import HeatMap
from keepfit_clip.app.words import content_words, opening_word
from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError
from keepfit_clip.evaluate.features import FeatureCache, image_features
from keepfit_clip.evaluate.pairs import PairTable
from keepfit_clip.explain.maps import Explainer, Explanation
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import image_bytes, open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.modality import ModalityGuess, ModalityGuesser
from keepfit_clip.page.report import picture_uri
from keepfit_clip.transfer.classifiers import Features
from keepfit_clip.transfer.heads import Head

__all__ = ["MAPS", "MAX_IMAGES", "MAX_PIXELS", "Answer", "Gallery", "ImageAnswer", "Service"]

MAX_IMAGES = 16  # at a time
MAX_PIXELS = 50_000_000
MAPS = ("similarity", "Grad-CAM", "attention")
_MEANINGS = {
    "similarity": "how much more a place speaks for it than for all categories together (cosine)",
    "Grad-CAM": "share of the hottest place",
    "attention": "times the mean over the caption",
}
_NEAREST = 5
_LONGEST = 640  # pixels of a picture that is kept, more only for a larger tower
_MAP_SIZE = 32  # pixels of a word's map that is kept: the decoder's own grid is coarser


@dataclass(frozen=True, eq=False)  # each is one of its own
class ImageAnswer:
    """An image and what does not depend on the categories.

    Args:
        image: RGB, no larger than to show it and to look at it anew.
        features: (D,) L2-normalised.
        guess: of its modality.
        caption: what the model writes; None where it writes none.
        explanation: small maps of the caption's words, no categories; None where nobody will look at maps.
        nearest: of the gallery: picture, caption and cosine similarity.
        pooled: name of each of the model's heads -> (1, C), what the head is asked of.
        told: the modality that the file says, or None.
        chosen: the modality that somebody said of this image alone, or None.
        name: of its file, for the person who gave it; "" of a drawn one.
    """

    image: Image.Image
    features: Tensor
    guess: ModalityGuess
    caption: str | None
    explanation: Explanation | None
    nearest: list[tuple[str, str, float]]
    pooled: dict[str, np.ndarray] = field(default_factory=dict)
    told: str | None = None
    chosen: str | None = None
    name: str = ""

    def modality(self, of_all: str | None = None) -> tuple[str | None, str]:
        """The modality in force, None where it is unsure, and what says so: chosen, all, file, guess or unsure.

        Args:
            of_all: that somebody said of all images.
        """
        said = (self.chosen, "chosen"), (of_all, "all"), (self.told, "file"), (self.guess.modality, "guess")
        return next(((modality, by) for modality, by in said if modality), (None, "unsure"))


@dataclass(frozen=True)
class Answer:
    """What the model says of an image for a list of categories.

    Args:
        modality: whose words the texts were in; None words them for any.
        said_by: what says so, see `ImageAnswer.modality`.
        probabilities: category -> probability, the likeliest first; empty for fewer than two categories.
        heads: name of each head that was asked -> class -> calibrated probability, the likeliest first.
    """

    modality: str | None
    said_by: str
    probabilities: dict[str, float]
    heads: dict[str, dict[str, float]] = field(default_factory=dict)


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
    """Answers for the page, one at a time.

    Args:
        loaded: the model.
        knowledge: names and findings of conditions.
        gallery: images to compare with, or None.
        heads: what was learnt of data sets, by name; each can answer beside the categories.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        knowledge: Knowledge,
        gallery: Gallery | None = None,
        heads: Mapping[str, Head] | None = None,
    ):
        self.loaded, self.knowledge, self.gallery, self.heads = loaded, knowledge, gallery, dict(heads or {})
        self.has_captions = loaded.has_captions
        self._explainer = lru_cache(maxsize=32)(self._make_explainer)
        self._guesser = ModalityGuesser.of_model(loaded.model, loaded.tokenizer)
        # Maps change the model while they are made, and a folder has a thread of its own.
        self._turn = threading.RLock()

    def look(self, image: Image.Image, name: str = "", told: str | None = None, with_maps: bool = True) -> ImageAnswer:
        """Everything about an image that does not depend on the categories.

        Args:
            image: RGB.
            name: of its file.
            told: the modality that its file says.
            with_maps: False leaves out what is only looked at: maps of words, and the nearest of the gallery.
        """
        with self._turn:
            pixels = self.loaded.preprocess(image)[None]
            explanation, caption = None, None
            if self.has_captions and with_maps:  # the backbone's one look gives the caption's maps too
                explanation = self._words_of(image)
                caption = explanation.caption
                pooled, features = explanation.pooled[None], explanation.features[None]
            else:
                pooled, features = (part.cpu() for part in self.loaded.encode_batch(pixels))
            if self.has_captions and not with_maps:
                caption = self.loaded.caption(pixels[0])
            return ImageAnswer(
                self._shown(image),
                features[0],
                self._guesser(pixels, features)[0],
                caption,
                explanation,
                self.gallery.nearest(features[0]) if self.gallery and with_maps else [],
                {head: self._tuned[head](pixels) if head in self._tuned else pooled.numpy() for head in self.heads},
                told,
                name=name,
            )

    def _words_of(self, image: Image.Image) -> Explanation:
        explanation = Explainer(self.loaded, None)(image)
        explanation.words = [
            replace(word, heat=cv2.resize(word.heat, (_MAP_SIZE, _MAP_SIZE), interpolation=cv2.INTER_AREA))
            for word in explanation.words
        ]
        return explanation

    def _shown(self, image: Image.Image) -> Image.Image:
        size = self.loaded.model.visual.image_size
        longest = max(_LONGEST, *((size, size) if isinstance(size, int) else size))
        return ImageOps.contain(image, (longest, longest)) if max(image.size) > longest else image

    @cached_property
    def _tuned(self) -> dict[str, Callable[[Tensor], np.ndarray]]:
        """For each head with a tower of its own, its pooled features of preprocessed images."""
        return {name: head.pooled_of(self.loaded) for name, head in self.heads.items() if head.tower}

    def answer(
        self, image: ImageAnswer, categories: Sequence[str], of_all: str | None = None, heads: Sequence[str] = ()
    ) -> Answer:
        """Probabilities of categories, and what heads say.

        Args:
            image: the image.
            categories: names.
            of_all: the modality of all images, None where nobody said it.
            heads: names of those asked; one that is not there is left out.

        Raises:
            CategoryError: a category stands twice, maybe as a synonym.
            TextTooLongError: a category does not fit into the model's context.
        """
        modality, said_by = image.modality(of_all)
        asked = {name: self._answer_of(name, image, modality) for name in self.heads if name in heads}
        if len(categories) < 2:
            return Answer(modality, said_by, {}, asked)
        with self._turn:
            classes = self._explainer(tuple(categories), modality).classes
        values = classes.probabilities(image.features[None])[0].tolist()
        return Answer(modality, said_by, _ranked(categories, values), asked)

    def _answer_of(self, name: str, image: ImageAnswer, modality: str | None) -> dict[str, float]:
        head = self.heads[name]
        wording = np.array([head.wording(modality)])
        values = head.answer(Features(image.pooled[name], image.features[None].numpy(), wording))[0]
        return _ranked(head.facts.classes, values.tolist())

    def heat(
        self, image: ImageAnswer, kind: str, target: str, categories: Sequence[str], of_all: str | None
    ) -> HeatMap:
        """The heat map of a category or of a word.

        Args:
            image: the image.
            kind: one of `MAPS`; attention is of words, the others of categories.
            target: a category, or a word as `words` names it.
            categories: all of them.
            of_all: see `answer`.

        Raises:
            ConfigError: the target is not there.
        """
        if kind == "attention":
            words = dict(zip(self.words(image), image.explanation.words if image.explanation else (), strict=True))
            if target not in words:
                raise ConfigError(f"{target!r} is no word of the caption: choose one")
            picture = image.explanation.picture
            heat = np.maximum(cv2.resize(words[target].heat, picture.size, interpolation=cv2.INTER_CUBIC), 0)
            return HeatMap(picture, heat, _MEANINGS[kind], words[target].word)
        if target not in categories:
            raise ConfigError(f"{target!r} is none of the categories: choose one")
        with self._turn:
            explain = self._explainer(tuple(categories), image.modality(of_all)[0])
            explanation = explain(image.image, with_grad_cam=kind == "Grad-CAM", with_words=False)
        maps = explanation.grad_cam if kind == "Grad-CAM" else explanation.similarity
        return HeatMap(explanation.picture, maps[list(categories).index(target)], _MEANINGS[kind], target)

    def words(self, image: ImageAnswer) -> list[str]:
        """The caption's words, numbered, for one may stand there twice."""
        return [f"{n}. {word.word}" for n, word in enumerate(image.explanation.words, 1)] if image.explanation else []

    def words_to_choose(self, image: ImageAnswer, every: bool = False) -> tuple[list[str], str | None]:
        """Those of `words` that are no function words, or every one, and the one to open on; None without words."""
        words = self.words(image)
        if not words:
            return [], None
        spoken = [word.word for word in image.explanation.words]
        opening = words[opening_word(image.caption, spoken, self.knowledge)]
        return words if every else [words[place] for place in content_words(spoken)], opening

    def _make_explainer(self, categories: tuple[str, ...], modality: str | None) -> Explainer:
        return Explainer(self.loaded, categories, modality, self.knowledge)


def _ranked(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Name -> value, the largest first."""
    return dict(sorted(zip(names, values, strict=True), key=lambda pair: -pair[1]))
