"""The guess of an image's modality: from colour, shape and the likeness to texts, or none where it is unsure."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from keepfit_clip.drawing import draw_retina
from keepfit_clip.drawing.retina import KINDS
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.model.modality import ModalityGuess, ModalityGuesser, looks
from keepfit_clip.predict import Predictor


class Says:
    """Texts to which every image is as alike as it is told."""

    def __init__(self, *probabilities):
        self.row = torch.tensor(probabilities)

    def probabilities(self, features):
        return self.row.repeat(len(features), 1)


@pytest.fixture
def guess(model):
    """Guesses the modality of a picture, for texts that say what is given; None is a model without texts."""

    def of(picture, texts=None):
        batch = model.visual.image_transform()(picture)[None]
        return ModalityGuesser(model.visual, texts)(batch, torch.zeros(1, 4))[0]

    return of


def drawn(modality, condition, seed=0):
    return draw_retina(modality, condition, [seed, 5], 96).image


def test_drawn_retinas_are_known_whatever_the_texts_say(guess):
    contradicting = {"CFP": Says(0.01, 0.09, 0.9), "FFA": Says(0.1, 0.1, 0.8), "OCT": Says(0.9, 0.09, 0.01)}
    for modality, condition in KINDS:
        for texts in (None, contradicting[modality]):
            assert guess(drawn(modality, condition), texts).modality == modality, condition


def test_what_is_seen_does_not_depend_on_proportions_or_a_border():
    for modality, condition in KINDS[::3]:
        picture = drawn(modality, condition)
        variants = [picture, picture.resize((160, 64)), ImageOps.pad(picture, (200, 96)).resize((96, 96))]
        seen = torch.cat([looks(torch.from_numpy(np.array(v)).permute(2, 0, 1)[None] / 255) for v in variants])
        is_coloured, is_layered = modality == "CFP", modality == "OCT"
        assert ((seen[:, 0] > 0.5) == is_coloured).all()
        assert ((seen[:, 1] > 0.5) == is_layered).all()


def test_a_grey_photograph_is_no_angiogram_for_sure(guess):
    """Red-free photographs exist, and their vessels are dark."""
    photographs = [drawn("CFP", "normal", seed).convert("L").convert("RGB") for seed in range(4)]
    for grey in photographs:
        assert guess(grey, Says(0.05, 0.9, 0.05)).modality is None
        assert set(list(guess(grey).probabilities)[:2]) == {"CFP", "FFA"}
    angiogram = drawn("FFA", "normal")
    assert guess(angiogram, Says(0.9, 0.05, 0.05)).modality == "FFA"


def test_a_scan_in_false_colours_stays_a_scan(guess):
    grey = drawn("OCT", "normal").convert("L")
    coloured = ImageOps.colorize(grey, "black", "yellow", "green")
    assert guess(coloured, Says(0.1, 0.1, 0.8)).modality == "OCT"
    assert guess(coloured, Says(0.8, 0.1, 0.1)).modality != "FFA"


def test_of_a_picture_that_shows_nothing_nobody_is_sure(guess):
    black = Image.new("RGB", (64, 64))
    for texts in (None, Says(0.0, 0.02, 0.98)):
        assert guess(black, texts).modality is None


def test_a_model_whose_answer_is_no_number_is_not_asked(guess):
    assert guess(drawn("OCT", "normal"), Says(*[float("nan")] * 3)).modality == "OCT"


def test_it_is_unsure_below_the_margin():
    assert ModalityGuess({"CFP": 0.8, "OCT": 0.2, "FFA": 0.0}).modality == "CFP"
    assert ModalityGuess({"CFP": 0.7, "OCT": 0.25, "FFA": 0.05}).modality is None


def test_predictions_guess_only_where_no_modality_is_given(model, tokenizer):
    loaded = LoadedModel(model, model.visual.image_transform(), tokenizer)
    predictor = Predictor(loaded, features=True)
    batch = torch.stack([loaded.preprocess(drawn(modality, "normal")) for modality in MODALITIES])
    given = [answer.modality for answer in predictor.ask(batch, ["OCT", "CFP", "FFA"])]
    assert given == ["OCT", "CFP", "FFA"]
    assert "_guesser" not in vars(predictor)
    mixed = [answer.modality for answer in predictor.ask(batch, ["OCT", None, None])]
    assert mixed == ["OCT", "FFA", "OCT"]
