"""Which modality an image is of, where nobody says so: colour, shape and the likeness to texts together, or "unsure".

guesser = ModalityGuesser.of_model(loaded.model, loaded.tokenizer)
guesser(batch, features)[0].modality      # "CFP", "FFA", "OCT", or None where it is unsure

Four things are seen of an image, each from 0 to 1: whether it is coloured, whether it lies in layers from one side to
the other as a B-scan does, whether it is a round field on black, and, if it is grey, whether what is fine in it is
bright, as vessels full of dye are. `_SEEN` says how often each is so of a modality; together with the model's own
answer, of which a part is always doubted, they give the probabilities (Bayes). A guess that does not lead the next by
`MARGIN` is none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.knowledge.templates import modality_text
from keepfit_clip.model.preprocess import to_levels
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.model.zero_shot import ClassTexts

__all__ = ["MARGIN", "ModalityGuess", "ModalityGuesser", "guess_by_looks", "looks"]

MARGIN = 0.5  # by which the likeliest modality has to lead the next
_SIZE = 128  # pixels of the side at which an image is looked at
_FINE = 64  # pixels of the side at which vessels are about as wide as one
_DARK = 12 / 255  # sensor noise in a black border stays below
_MIN_LIT = 0.03  # share of lit pixels that makes a row or column belong to the picture
# How often an image is coloured, layered, round, and bright where it is fine. Some photographs are grey (red-free) or
# cut square, and have bright lesions; a few angiograms are tinted, and a few B-scans drawn in false colours.
_SEEN = {"CFP": (0.9, 0.02, 0.8, 0.3), "FFA": (0.03, 0.02, 0.8, 0.98), "OCT": (0.05, 0.9, 0.15, 0.95)}
_DOUBT = 0.25  # of the model's own answer: so often, about, it is no better than any


@dataclass(frozen=True)
class ModalityGuess:
    """What an image is taken for.

    Args:
        probabilities: modality -> probability, the likeliest first.
    """

    probabilities: dict[str, float]

    @property
    def modality(self) -> str | None:
        """The likeliest; None where it does not lead the next by `MARGIN`."""
        (likeliest, most), (_, next_most), *_ = self.probabilities.items()
        return likeliest if most - next_most >= MARGIN else None


class ModalityGuesser:
    """Guesses the modality of images.

    Args:
        visual: the image tower, whose values of preprocessing are taken back before an image is looked at.
        texts: of the modalities, in the order of `MODALITIES`; None where the model knows no texts.
    """

    def __init__(self, visual: nn.Module, texts: ClassTexts | None):
        self._preprocess, self._texts = visual.preprocess, texts

    @classmethod
    def of_model(cls, model: nn.Module, tokenizer: Callable | None) -> "ModalityGuesser":
        """With the texts of a model that has a tokenizer."""
        texts = None
        if tokenizer is not None:
            wordings = [[modality_text(modality)] for modality in MODALITIES]
            texts = ClassTexts(model, Tokenizer.of_model(model, tokenizer), wordings)
        return cls(model.visual, texts)

    def __call__(self, images: Tensor, features: Tensor) -> list[ModalityGuess]:
        """The guess for each image.

        Args:
            images: (B, 3, H, W), preprocessed.
            features: (B, D), of them, L2-normalised.
        """
        seen = looks(to_levels(self._preprocess, images))  # (B, 4)
        likely = _likely(seen)
        if self._texts is not None:
            own = torch.nan_to_num(self._texts.probabilities(features.cpu()), nan=1 / len(MODALITIES))
            likely = likely + ((1 - _DOUBT) * own + _DOUBT / len(MODALITIES)).log()
        likely[seen.isnan().any(dim=1)] = 0  # nor can the model have seen anything
        return _guesses(likely)


def guess_by_looks(picture: Image.Image) -> str | None:
    """What an RGB picture is taken for by colour and shape alone, without a model; None where that is unsure."""
    plane = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    (guess,) = _guesses(torch.nan_to_num(_likely(looks(plane[None]))))
    return guess.modality


def _likely(seen: Tensor) -> Tensor:
    """Logarithm of how likely what is seen of pictures (B, 4) is in each modality (B, M)."""
    often = seen.new_tensor([_SEEN[modality] for modality in MODALITIES])  # (M, 4)
    return (seen[:, None] * often + (1 - seen[:, None]) * (1 - often)).log().sum(dim=-1)


def _guesses(likely: Tensor) -> list[ModalityGuess]:
    guesses = []
    for row in likely.softmax(dim=-1).tolist():
        ranked = sorted(zip(MODALITIES, row, strict=True), key=lambda pair: -pair[1])
        guesses.append(ModalityGuess(dict(ranked)))
    return guesses


def looks(pictures: Tensor) -> Tensor:
    """How coloured, layered, round and, if they are grey, bright in their details pictures are, each from 0 to 1.

    Args:
        pictures: (B, 3, H, W) from 0 to 1.

    Returns:
        (B, 4), NaN of one that is too dark. None of the four depends much on a picture's proportions, which a tower's
        input may have lost.
    """
    if max(pictures.shape[-2:]) > _SIZE:
        pictures = F.interpolate(pictures, size=(_SIZE, _SIZE), mode="area")
    return torch.tensor([_looks(picture) for picture in pictures]).view(len(pictures), 4)


def _looks(picture: Tensor) -> tuple[float, float, float, float]:
    """Of one picture (3, H, W)."""
    brightest = picture.amax(dim=0)
    lit = brightest > _DARK
    box = _box(lit)
    if box is None:
        return (math.nan,) * 4
    colour = (brightest - picture.amin(dim=0))[lit].sum() / brightest[lit].sum()
    grey, lit = picture.mean(dim=0)[box], lit[box]
    down, across = grey.mean(dim=1).var(), grey.mean(dim=0).var()  # of rows and of columns
    layers = down / (down + across).clamp(min=1e-9)
    from_centre = _from_centre(grey)
    corners, middle = lit[from_centre > 1.44], lit[from_centre < 0.8]
    roundness = torch.minimum(1 - corners.float().mean(), middle.float().mean())
    details = _brightness_of_details(F.adaptive_avg_pool2d(picture[1:2], _FINE)[0])
    coloured, bright = _soft(colour, 0.1, 0.01), _soft(details, 0.1, 0.02)
    bright = coloured / 2 + (1 - coloured) * bright  # among colours it tells nothing
    return coloured, _soft(layers, 0.85, 0.02), _soft(roundness, 0.85, 0.02), bright


def _from_centre(plane: Tensor) -> Tensor:
    """Squared distances (H, W) from the centre, 1 where an edge is nearest to it."""
    height, width = plane.shape
    return torch.linspace(-1, 1, height)[:, None].square() + torch.linspace(-1, 1, width).square()


def _brightness_of_details(green: Tensor) -> Tensor:
    """From -1 to 1: by how much fine details of a plane (H, W) are brighter, rather than darker, than what is around.

    Of its middle, where no edge of the field is taken for a detail: the white top-hat transform against the black one.
    """
    plane, middle = green[None, None], _from_centre(green) < 0.6
    bright = (plane - _widest(-_widest(-plane)))[0, 0, middle].mean()
    dark = (-_widest(-_widest(plane)) - plane)[0, 0, middle].mean()
    return (bright - dark) / (bright + dark).clamp(min=1e-9)


def _widest(planes: Tensor) -> Tensor:
    """The largest value of each pixel and those around it."""
    return F.max_pool2d(planes, 3, 1, 1)


def _box(lit: Tensor) -> tuple[slice, slice] | None:
    """Rows and columns of what is lit (H, W); None where that is too little to have a shape."""
    edges = []
    for axis in (1, 0):
        inside = (lit.float().mean(dim=axis) > _MIN_LIT).nonzero()
        if len(inside) < 8:
            return None
        edges.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return edges[0], edges[1]


def _soft(value: Tensor, middle: float, width: float) -> float:
    """From 0 to 1, around a middle as fast as the width says."""
    return float(torch.sigmoid((value - middle) / width))
