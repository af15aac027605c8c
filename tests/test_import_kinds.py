"""Each kind of checkpoint gives the features of a module with its published names and forward pass."""

import open_clip
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertConfig, BertModel

from keepfit_clip.errors import CheckpointError, ConfigError, MissingWeightsError
from keepfit_clip.folders.imports import KINDS, import_weights
from keepfit_clip.folders.loading import load_model
from tests.encoders import SENTENCES, write_encoder
from tests.published import PATCH, SIDE, WIDTH, LoRA, Mirage, ViT, randomise

MODEL = "keepfit-v2-test"
NEAR = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(7)


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with a tokenizer."""
    return str(write_encoder(tmp_path_factory.mktemp("tokenizer") / "vocabulary", lowercase=False))


def tower(kind, content, tmp_path, backbone, **options):
    """The image tower of a kind's import, and what the import said."""
    torch.save(content, tmp_path / "weights.pth")
    out = tmp_path / "model"
    found = import_weights(kind, tmp_path / "weights.pth", out, model=MODEL, backbone=backbone, **options)
    return load_model(out).model.visual, found


def pooled(visual, images):
    return visual.pool(visual.feature_map(images))


@torch.no_grad()
def test_retfound_dinov2(images, tmp_path):
    theirs = randomise(ViT(scale=True))
    names = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3", "blocks.1.": "blocks.0.1."}
    state = {f"backbone.{key}": value for key, value in theirs.state_dict().items()}
    for timms, published in names.items():
        state = {key.replace(timms, published): value for key, value in state.items()}
    state |= {"backbone.mask_token": torch.zeros(1), "dino_head.mlp.0.weight": torch.zeros(2)}
    content = {"teacher": state, "iteration": 3, "optimizer": {"state": {}}}
    visual, found = tower("retfound-dinov2", content, tmp_path, "published_dinov2")
    torch.testing.assert_close(pooled(visual, images), theirs(images), **NEAR)
    assert found.left_out == {"of a decoder or classifier": 1, "of the heads of the self-distillation": 1}
    assert found.taken + sum(found.left_out.values()) == len(state)


@torch.no_grad()
def test_retfound_green(images, tmp_path):
    theirs = randomise(timm.create_model("published_registers", num_classes=0))
    theirs.global_pool = "avg"  # as its README does it: the norm stays before the mean
    visual, found = tower("retfound-green", theirs.state_dict(), tmp_path, "published_registers")
    torch.testing.assert_close(pooled(visual, images), theirs(images), **NEAR)
    assert found.fit
    assert not found.left_out


@torch.no_grad()
def test_urfound(images, tmp_path):
    theirs = randomise(ViT())
    decoder = {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(2)}
    state = theirs.state_dict() | decoder | {"bert_encoder.a": torch.zeros(1), "bert_mlp.weight": torch.zeros(1)}
    visual, found = tower("urfound", {"model": state}, tmp_path, "published_vit")
    mean = theirs.tokens(images)[:, 1:].mean(dim=1)  # as its fine-tuning pools them, before a norm
    torch.testing.assert_close(pooled(visual, images), theirs.norm(mean), **NEAR)
    assert found.left_out == {"of a decoder or classifier": 2, "of the text decoder": 2}


@torch.no_grad()
def test_mirage(tmp_path):
    theirs = randomise(Mirage())
    grey = torch.rand(2, 1, SIDE, SIDE).expand(-1, 3, -1, -1)
    others = ("output_adapters.bscan.a", "input_adapters.slo.pos_emb", "input_adapters.bscanlayermap.a")
    state = theirs.state_dict() | {key: torch.zeros(1) for key in others}
    visual, found = tower("mirage", {"model": state}, tmp_path, "published_vit")
    torch.testing.assert_close(pooled(visual, grey), theirs(grey), **NEAR)
    assert found.left_out == {"of the adapters of other inputs": 2, "of the decoders": 1}
    assert found.taken == len(theirs.state_dict())


@torch.no_grad()
def test_the_image_tower_of_keepfits_captioner(tmp_path):
    resnet = torchvision.models.resnet50().eval()
    theirs = nn.Sequential(*list(resnet.children())[:-2])
    state = {f"visual_extractor.model.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"encoder_decoder.logit.weight": torch.zeros(2)}
    visual, found = tower("keepfit-v1-ffa", {"state_dict": state}, tmp_path, "resnet50")
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(pooled(visual, images), theirs(images).mean(dim=(2, 3)), **NEAR)
    assert found.left_out == {"of the captioner, which is of another architecture": 1}


def bert(tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=256, max_position_embeddings=64,
    )  # fmt: skip
    return randomise(BertModel(config, add_pooling_layer=False))


def prefixed(prefix, module):
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


def check_texts(loaded, tokenizer, feature):
    """Features of single texts and of texts of different lengths beside each other."""
    texts = [SENTENCES[0], "drusen"]
    ours = loaded.model.encode_text(loaded.tokenizer(texts), normalize=True)
    for own, text in zip(ours, texts, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        torch.testing.assert_close(own, normalize(feature(ids), dim=-1)[0], **NEAR)


@torch.no_grad()
def test_retizero(images, vocabulary, tmp_path):
    vit, tokenizer = randomise(ViT()), AutoTokenizer.from_pretrained(vocabulary)
    for block in vit.blocks:
        block.attn["qkv"] = LoRA(block.attn["qkv"])
    text, heads = bert(tokenizer), [nn.Linear(WIDTH, 48, bias=False) for _ in range(2)]
    state = prefixed("vision_model.model.lora_vit.", vit) | prefixed("text_model.model.", text)
    state |= prefixed("vision_model.projection_head_vision.projection.", heads[0])
    state |= prefixed("text_model.projection_head_text.projection.", heads[1]) | {"logit_scale": torch.tensor(4.0)}
    torch.save(state, tmp_path / "weights.pth")
    out, options = tmp_path / "model", {"tokenizer": vocabulary, "backbone": "published_vit"}
    found = import_weights("retizero", tmp_path / "weights.pth", out, **options)
    loaded = load_model(out)
    theirs = normalize(heads[0](normalize(vit(images), dim=-1)), dim=-1)
    torch.testing.assert_close(loaded.model.encode_image(images, normalize=True), theirs, **NEAR)
    assert found.taken == len(state)

    def feature(ids):
        states = text(ids, output_hidden_states=True).hidden_states
        mean = torch.stack([states[i].mean(dim=1) for i in (1, 2, -1)]).mean(dim=0)
        return heads[1](normalize(mean, dim=-1))

    check_texts(loaded, tokenizer, feature)


def clip(**text):
    """CLIP with OpenAI's names and activation."""
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "patch_size": PATCH}
    sizes = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2, **text}
    return randomise(open_clip.CLIP(48, vision, sizes, quick_gelu=True))


@pytest.mark.parametrize("half", [False, True])
@torch.no_grad()
def test_eyeclip(images, tmp_path, half):
    theirs = clip()
    theirs.logit_scale.fill_(4.8)  # which it does not clamp
    if half:
        theirs.half().float()
    state = theirs.state_dict() | {"visual.decoder.mask_token": torch.zeros(1), "context_length": torch.tensor(77)}
    content = {key: value.half() if half and value.is_floating_point() else value for key, value in state.items()}
    torch.save({"epoch": 1, "model_state_dict": content}, tmp_path / "weights.pt")
    out = tmp_path / "model"
    found = import_weights("eyeclip", tmp_path / "weights.pt", out, backbone="published_clip")
    loaded = load_model(out)
    torch.testing.assert_close(loaded.model.encode_image(images), theirs.encode_image(images), **NEAR)
    texts = loaded.tokenizer(["a fundus photograph of drusen", "normal"])
    torch.testing.assert_close(loaded.model.encode_text(texts), theirs.encode_text(texts), **NEAR)
    assert loaded.model.logit_scale.item() == pytest.approx(4.8, abs=1e-3)
    assert found.left_out == {"of the masked autoencoder's decoder": 1, "sizes of the model": 1}
    loaded.model.lock_text_tower(unlocked_layers=1)
    free = {name for name, weight in loaded.model.text.named_parameters() if weight.requires_grad}
    assert "transformer.encoder.layers.1.mlp.fc1.weight" in free
    assert "transformer.encoder.layers.0.mlp.fc1.weight" not in free


@torch.no_grad()
def test_eyeclips_image_tower_alone(images, tmp_path):
    theirs = clip()
    state = theirs.state_dict() | {"visual.decoder.mask_token": torch.zeros(1)}
    visual, found = tower("eyeclip-image", {"model_state_dict": state}, tmp_path, "published_clip")
    torch.testing.assert_close(pooled(visual, images) @ theirs.visual.proj, theirs.encode_image(images), **NEAR)
    assert found.taken + sum(found.left_out.values()) == len(state)


@torch.no_grad()
def test_vilref(images, vocabulary, tmp_path):
    vision, tokenizer = clip().visual, AutoTokenizer.from_pretrained(vocabulary)
    text, projection = bert(tokenizer), torch.randn(WIDTH, 48)
    state = prefixed("visual.", vision) | prefixed("bert.", text)
    state |= {"text_projection": projection, "logit_scale": torch.tensor(5.0)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "name": "a"}, tmp_path / "weights.pt")
    out, options = tmp_path / "model", {"tokenizer": vocabulary, "backbone": "published_clip"}
    found = import_weights("vilref", tmp_path / "weights.pt", out, **options)
    loaded = load_model(out)
    torch.testing.assert_close(loaded.model.encode_image(images), vision(images), **NEAR)
    check_texts(loaded, tokenizer, lambda ids: text(ids).last_hidden_state[:, 0] @ projection)
    assert loaded.model.logit_scale.item() == pytest.approx(4.6052)
    assert found.taken == len(state)


@pytest.mark.parametrize("eye", ["left", "right"])
@torch.no_grad()
def test_ret_clip(images, vocabulary, tmp_path, eye):
    vision, tokenizer = clip().visual, AutoTokenizer.from_pretrained(vocabulary)
    text = bert(tokenizer)
    heads = {
        name: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 48)) for name in ("left", "right")
    }
    mappings = {name: nn.Linear(48, 48, bias=False) for name in heads}
    state = prefixed("visual.", vision) | prefixed("bert.", text) | prefixed("text_projection.", heads["left"])
    state |= {"global_feature_mapping.weight": torch.zeros(48, 96), "logit_scale": torch.tensor(1.0)}
    for scale, name in enumerate(heads, start=2):
        state |= prefixed(f"text_projection_{name}.", heads[name])
        state |= prefixed(f"{name}_feature_mapping.", mappings[name])
        state |= {f"logit_scale_{name}": torch.tensor(float(scale))}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    out, options = tmp_path / "model", {"tokenizer": vocabulary, "backbone": "published_clip"}
    found = import_weights(f"ret-clip-{eye}", tmp_path / "weights.pt", out, **options)
    loaded = load_model(out)
    torch.testing.assert_close(loaded.model.encode_image(images), mappings[eye](vision(images)), **NEAR)
    check_texts(loaded, tokenizer, lambda ids: heads[eye](text(ids).last_hidden_state[:, 0]))
    assert loaded.model.logit_scale.item() == {"left": 2.0, "right": 3.0}[eye]
    assert found.left_out == {"of the heads for the other eye and for both eyes": 12}
    assert found.taken + 12 == len(state)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.marker])
def test_a_file_of_another_kind_is_refused(kind, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"no checkpoint of {kind}: it lacks {KINDS[kind].marker}"):
        import_weights(kind, tmp_path / "weights.pth", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_missing_unknown_or_misshapen_is_named(tmp_path, vocabulary):
    state = {f"backbone.{key}": value for key, value in ViT(scale=True).state_dict().items()}
    del state["backbone.blocks.1.ls2.gamma"]
    state |= {"backbone.extra": torch.zeros(1), "backbone.blocks.0.mlp.fc1.weight": torch.zeros(3, WIDTH)}
    with pytest.raises(MissingWeightsError) as caught:
        tower("retfound-dinov2", {"teacher": state}, tmp_path, "published_dinov2")
    for words in ("lacks blocks.1.ls2.gamma", "unknown extra", "blocks.0.mlp.fc1.weight as (3, 128)", "--partial"):
        assert words in str(caught.value)
    _, found = tower("retfound-dinov2", {"teacher": state}, tmp_path, "published_dinov2", partial=True)
    assert len(found.fit.problems) == 3
    torch.save(clip().state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match="--tokenizer: eyeclip has CLIP's own"):
        import_weights("eyeclip", tmp_path / "clip.pt", tmp_path / "other", tokenizer=vocabulary)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_says_what_it_gives_and_where_it_is_published(name):
    kind = KINDS[name]
    assert kind.source.startswith("github.com/")
    assert (kind.gives == "image and text") == (kind.config == "keepfit-v1")
    chosen = kind.vision.get("timm_model_name")
    assert chosen is None or timm.is_model(chosen)
