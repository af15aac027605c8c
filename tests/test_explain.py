"""Where a model looks: maps have a meaning, words are those of the caption, outputs name no input."""

import inspect
import json
import re

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.cli.explain import explain
from keepfit_clip.errors import CategoryError, ConfigError, MissingExtraError
from keepfit_clip.explain.maps import (
    SCALE,
    STRENGTH,
    Explainer,
    Explanation,
    WordMap,
    grad_cam,
    heat_ends,
    heat_layer,
    heat_overlay,
    similarity_maps,
    tower_view,
    word_maps,
    words_of_tokens,
)
from keepfit_clip.explain.measured import CENTRE_GUESS, POINTING_GAME, Hits
from keepfit_clip.explain.report import write_explanations
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.loading import load_model
from keepfit_clip.images.reading import open_image

CATEGORIES = ["normal", "glaucoma", "cataract"]


@pytest.fixture(scope="module")
def loaded(exported):
    return load_model(exported)


@pytest.fixture(scope="module")
def convolutional():
    """A convolutional tower with ImageNet weights, whose places know nothing of where they are."""
    torch.manual_seed(0)
    name = "keepfit-v2-lite"
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained_image=True, pretrained_text=False)
    return LoadedModel(model.eval(), preprocess, None)


def square_at(row, column, size=224, cell=32):
    pixels = torch.zeros(1, 3, size, size)
    pixels[..., row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 2.0
    return pixels


@pytest.mark.parametrize("which", ["loaded", "convolutional"])
def test_places_are_projected_like_the_whole(which, request):
    tower = request.getfixturevalue(which).model.visual
    size = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        local, whole = tower.encode(pixels).local_features, tower(pixels)
    assert local.shape[0] == 2
    assert local.shape[3] == whole.shape[1]
    if which == "convolutional":  # it averages over its map, so the image is the mean of its places
        torch.testing.assert_close(local.mean(dim=(1, 2)), whole, atol=1e-4, rtol=1e-4)


def test_maps_change_where_the_picture_does(convolutional):
    tower = convolutional.model.visual
    classes = torch.nn.functional.normalize(torch.randn(3, tower.proj.weight.shape[0]), dim=1)
    empty = similarity_maps(tower.encode(torch.zeros(1, 3, 224, 224)), classes)
    middles = []
    for row, column in ((1, 1), (1, 5), (5, 1)):  # a place sees far, so only the middle of all change is asked for
        changed = ((similarity_maps(tower.encode(square_at(row, column)), classes) - empty) ** 2).sum(dim=1)[0]
        weights = changed / changed.sum()
        middles.append([float((weights.sum(dim=axis) * torch.arange(224)).sum()) for axis in (1, 0)])
    (top, left), (_, right), (bottom, _) = middles
    assert right - left > 50
    assert bottom - top > 50


@pytest.mark.parametrize("which", ["loaded", "convolutional"])
def test_grad_cam_is_a_map_for_each_class(which, request):
    tower = request.getfixturevalue(which).model.visual
    size = 64 if which == "loaded" else 224
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, size, size)
    classes = torch.nn.functional.normalize(torch.randn(3, tower.proj.weight.shape[0]), dim=1)
    maps = grad_cam(tower, pixels, classes)
    assert maps.shape == (3, size, size)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert np.isfinite(maps).all()
    assert not np.allclose(maps[0], maps[1])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tower.parameters())


def test_words_are_those_of_the_caption_and_the_decoder_stays_as_it_was(loaded):
    pixels = torch.randn(1, 3, 64, 64)
    before = loaded.model.generate(pixels)
    kind = loaded.model.text_decoder.config._attn_implementation
    text, words = word_maps(loaded, loaded.model.visual.encode(pixels))
    assert text == loaded.decode(before)[0]
    assert [word.word for word in words] == [w for w in text.split() if any(map(str.isalnum, w))]
    assert all(word.heat.shape == (64, 64) for word in words)
    assert loaded.model.text_decoder.config._attn_implementation == kind
    assert torch.equal(loaded.model.generate(pixels), before)


def test_attention_is_a_multiple_of_the_captions_mean(loaded):
    _, words = word_maps(loaded, loaded.model.visual.encode(torch.randn(1, 3, 64, 64)))
    heats = np.stack([word.heat for word in words])
    assert heats.min() > -0.5  # interpolation may overshoot a little
    assert heats.mean() == pytest.approx(1, abs=0.2)
    assert np.ptp(heats, axis=0).max() > 1e-3  # words differ


def test_a_word_has_the_tokens_of_its_letters():
    """Spaces around punctuation come and go while a caption is decoded; the end token belongs to no word."""
    so_far = ["cotton", "cotton -", "cotton-wool", "cotton-wool sp", "cotton-wool spots", "cotton-wool spots.",
              "cotton-wool spots."]  # fmt: skip
    assert words_of_tokens(so_far) == [("cotton-wool", [0, 2]), ("spots.", [3, 4])]
    assert words_of_tokens(["", "."]) == []
    assert words_of_tokens([]) == []


@pytest.mark.parametrize("categories", [CATEGORIES, ["glaucoma"], None])
def test_the_backbone_looks_once_and_once_more_for_each_category(loaded, pictures, monkeypatch, categories):
    sizes = sizes_looked_at(loaded, monkeypatch)
    found = Explainer(loaded, categories, "CFP")(open_image(next((pictures / "public").glob("*.png"))))
    assert found.words
    assert sizes == [64] * (1 + len(categories or ()))


def test_maps_of_convolutional_towers_are_made_of_an_enlarged_image(convolutional, monkeypatch):
    tower = convolutional.model.visual
    tokenizer = open_clip.get_tokenizer("keepfit-v2-lite")
    words = LoadedModel(convolutional.model, convolutional.preprocess, tokenizer)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8))
    sizes = sizes_looked_at(words, monkeypatch)
    found = Explainer(words, CATEGORIES, "CFP")(image, with_words=False)
    side = 224 * SCALE
    assert found.as_measured
    assert sizes == [224, side, side, side, side]  # once for the probabilities, once for similarity, then Grad-CAM
    assert found.picture.size == (side, side)
    assert found.similarity.shape == found.grad_cam.shape == (3, side, side)
    own_size = Explainer(words, CATEGORIES, "CFP", scale=1)(image, with_words=False)
    assert own_size.picture.size == (224, 224)
    assert np.array_equal(own_size.probabilities, found.probabilities)
    assert tower.finer_layer is tower.trunk.get_submodule("blocks.4")


def test_the_command_and_the_class_agree_on_the_scale():
    assert inspect.signature(explain).parameters["map_scale"].default == SCALE


def sizes_looked_at(model, monkeypatch):
    """The sides of the images that the backbone is given from now on."""
    trunk, sizes = model.model.visual.trunk, []
    look = trunk.forward_features
    monkeypatch.setattr(trunk, "forward_features", lambda image: sizes.append(image.shape[-1]) or look(image))
    return sizes


def test_an_explanation_agrees_with_the_classifier(loaded, pictures):
    image = open_image(next((pictures / "public").glob("*.png")))
    found = Explainer(loaded, CATEGORIES, "CFP")(image)
    assert found.categories == CATEGORIES
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert found.similarity.shape == found.grad_cam.shape == (3, 64, 64)
    assert found.picture.size == (64, 64)  # a ViT knows the places of its own size
    alone = Explainer(loaded, ["glaucoma"], "CFP")(image, with_grad_cam=False, with_words=False)
    assert np.isnan(alone.probabilities).all()
    assert alone.similarity.shape == (1, 64, 64)
    assert alone.grad_cam is None
    assert alone.caption is None
    words = Explainer(loaded, None)(image)
    assert words.categories == []
    assert words.words


def test_a_view_is_the_picture_and_an_overlay_keeps_its_size(loaded):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    view = tower_view(loaded, loaded.preprocess(picture))
    assert np.abs(np.asarray(view).astype(int) - np.asarray(picture)).max() <= 1
    heat = np.zeros((64, 64), np.float32)
    heat[10:20, 10:20] = 5
    changed = np.abs(np.asarray(heat_overlay(picture, heat)).astype(int) - np.asarray(picture)).sum(axis=2) > 3
    assert changed[10:20, 10:20].mean() > 0.9
    assert not changed[30:, 30:].any()
    assert np.array_equal(heat_overlay(picture, np.ones((64, 64))), picture)  # nothing stands out


def test_a_layer_over_its_picture_is_the_overlay():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    heat = rng.random((32, 32))
    layer = heat_layer(heat)
    alpha = layer.getchannel("A").point(lambda value: round(value * STRENGTH))
    layer.putalpha(alpha)
    over = Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")
    assert np.abs(np.asarray(over).astype(int) - np.asarray(heat_overlay(picture, heat))).max() <= 2
    low, high = heat_ends(heat)
    assert low == pytest.approx(np.quantile(heat, 0.1))
    assert high == heat.max()


def test_beside_a_map_that_is_no_better_than_a_guess_stands_that(tmp_path):
    heat = np.random.default_rng(0).random((1, 32, 32)).astype(np.float32)
    shown = Explanation(Image.new("RGB", (32, 32)), ["normal"], np.array([np.nan]), heat, torch.zeros(2), heat, "disc.",
                        [WordMap("disc.", heat[0])], as_measured=True)  # fmt: skip
    write_explanations(tmp_path / "out", [(1, shown)], "model")
    page = (tmp_path / "out" / "explain.html").read_text()
    kinds = re.findall(
        r'<b>([^<]*)</b>(<div class="weak">[^<]*)?', page[page.index("<figure") : page.index("</figure>")]
    )
    for (name, warning), kind in zip(kinds, ("similarity", "Grad-CAM", "attention"), strict=True):
        hits = POINTING_GAME[kind]
        assert name == ("word 1: disc." if kind == "attention" else f"normal: {kind}")
        assert bool(warning) != hits.better_than(CENTRE_GUESS)
        assert not warning or f"({hits.share:.0%} against {CENTRE_GUESS.share:.0%})" in warning
    assert f"a guess at the centre {CENTRE_GUESS.share:.0%}." in page


def test_better_than_a_guess_means_by_more_than_two_standard_errors():
    assert Hits(0.6, 0.03).better_than(Hits(0.44, 0.03))
    assert not Hits(0.5, 0.03).better_than(Hits(0.44, 0.03))


def test_what_cannot_be_explained(loaded, monkeypatch):
    with pytest.raises(CategoryError, match="stand twice"):
        Explainer(loaded, ["normal", "normal"])
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    with pytest.raises(MissingExtraError, match=r"pip install grad-cam"):
        Explainer(loaded, CATEGORIES)(Image.new("RGB", (64, 64)))
    monkeypatch.setattr(loaded.model, "text_decoder", None)
    with pytest.raises(ConfigError, match="name some"):
        Explainer(loaded, [])


def test_the_command_writes_overlays_and_a_page_that_name_no_input(exported, pictures, tmp_path):
    images = sorted((pictures / "public").glob("*.png"))[:2]
    (tmp_path / "broken.png").write_bytes(b"no image")
    words = ["explain", images[0], tmp_path / "broken.png", images[1], "--model", exported, "--categories",
             "glaucoma,normal", "--modality", "cfp", "--out", tmp_path / "out"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 1  # one of them cannot be read
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "explain.html", "explanations.json", "image-1", "image-3",
    ]  # fmt: skip
    names = {path.name for path in (tmp_path / "out" / "image-1").iterdir()}
    assert {"image.png", "similarity-01-glaucoma.png", "grad-cam-02-normal.png"} < names
    told = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert [entry["image"] for entry in told["images"]] == [1, 3]
    assert sum(told["images"][0]["categories"].values()) == pytest.approx(1, abs=1e-5)
    page = (tmp_path / "out" / "explain.html").read_text()
    assert page.count('<input type="radio"') == 2 * (
        1 + page.count('class="heat"') // 2
    )  # each map, and the image alone
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "nothing is known of how far they can be trusted" in page  # a ViT's maps were not measured
    everything = page + (tmp_path / "out" / "explanations.json").read_text() + " ".join(names)
    assert "Jane" not in everything
    assert str(exported.parent) not in everything
    nothing = CliRunner().invoke(
        app, ["explain", str(tmp_path / "broken.png"), "--model", str(exported), "--out", str(tmp_path / "no")]
    )
    assert "none of the images can be read" in str(nothing.exception)
    assert not (tmp_path / "no").exists()
