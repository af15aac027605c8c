"""Weights of other projects give the features they gave there, or are refused with what does not fit."""

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertConfig, BertModel
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.errors import CheckpointError, ConfigError, MissingWeightsError, OutputError
from keepfit_clip.folders.imports import import_dual_encoder, import_image_tower, import_weights
from keepfit_clip.folders.loading import load_model
from tests.encoders import SENTENCES, write_encoder

MODEL = "keepfit-v2-test"


class DualEncoder(nn.Module):
    """The layout that FLAIR's checkpoints tell: towers, normalised features, projections without bias."""

    def __init__(self, vocabulary, attention):
        super().__init__()
        vision = torchvision.models.resnet50()
        vision.fc = nn.Identity()
        text = BertModel(
            BertConfig(
                vocab_size=vocabulary, hidden_size=128, num_hidden_layers=4, num_attention_heads=2,
                intermediate_size=256, max_position_embeddings=128,
            )
        )  # fmt: skip
        self.vision_model = nn.ModuleDict(
            {"model": vision, "projection_head_vision": nn.ModuleDict({"projection": nn.Linear(2048, 64, bias=False)})}
        )
        self.text_model = nn.ModuleDict(
            {"model": text, "projection_head_text": nn.ModuleDict({"projection": nn.Linear(128, 64, bias=False)})}
        )
        if attention:
            self.attention = nn.ModuleDict({f"W_{part}": nn.Linear(64, 64, bias=False) for part in "qkvo"})
        self.logit_scale = nn.Parameter(torch.tensor(3.3))

    def image_features(self, images):
        head = self.vision_model["projection_head_vision"]["projection"]
        return normalize(head(normalize(self.vision_model["model"](images), dim=-1)), dim=-1)

    def text_features(self, ids):
        states = self.text_model["model"](ids, output_hidden_states=True).hidden_states
        pooled = torch.stack([states[i].mean(dim=1) for i in (1, 2, -1)]).mean(dim=0)
        head = self.text_model["projection_head_text"]["projection"]
        return normalize(head(normalize(pooled, dim=-1)), dim=-1)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A folder with a tokenizer, beside an encoder of another width."""
    return write_encoder(tmp_path_factory.mktemp("tokenizer") / "vocabulary", lowercase=False)


@pytest.fixture(scope="module")
def theirs(tokenizer_folder, tmp_path_factory):
    """A random dual encoder with attention, its features of before, and its file."""
    torch.manual_seed(3)
    model = DualEncoder(len(AutoTokenizer.from_pretrained(tokenizer_folder)), attention=True).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # of a trained network they are not the identity
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("theirs") / "weights.pth"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.fixture(scope="module")
def flair_folder(theirs, tokenizer_folder, tmp_path_factory):
    """A model folder of FLAIR's kind, from safetensors as the hub has them."""
    folder = tmp_path_factory.mktemp("flair")
    state = {key: value for key, value in theirs[0].state_dict().items() if not key.startswith("attention.")}
    save_file(state, folder / "model.safetensors")
    import_weights("flair", folder / "model.safetensors", folder / "model", tokenizer=str(tokenizer_folder))
    return folder / "model"


@pytest.mark.parametrize("origin", ["flair", "keepfit-v1"])
@torch.no_grad()
def test_features_are_those_of_the_original(theirs, tokenizer_folder, tmp_path, origin):
    model, path = theirs
    if origin == "flair":
        state = {key: value for key, value in torch.load(path).items() if not key.startswith("attention.")}
        path = tmp_path / "flair.pth"
        torch.save(state, path)
    found = import_dual_encoder(path, origin, tmp_path / "model", str(tokenizer_folder))
    assert found.fit
    assert found.taken + sum(found.left_out.values()) == len(torch.load(path))
    loaded = load_model(tmp_path / "model")
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(
        loaded.model.encode_image(images, normalize=True), model.image_features(images), rtol=1e-5, atol=1e-5
    )
    for sentence in SENTENCES[:3]:
        ids = AutoTokenizer.from_pretrained(tokenizer_folder)(sentence, return_tensors="pt").input_ids
        ours = loaded.model.encode_text(loaded.tokenizer([sentence]), normalize=True)
        torch.testing.assert_close(ours, model.text_features(ids), rtol=1e-5, atol=1e-5)
    assert loaded.model.logit_scale.item() == pytest.approx(3.3)
    if origin == "keepfit-v1":
        for ours, part in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            own = getattr(loaded.model.text_revision, ours).weight
            assert torch.equal(own, model.attention[f"W_{part}"].weight)
    with pytest.raises(ConfigError, match="no caption decoder"):
        loaded.model.generate(images)


def flairs_transform(image):
    """FLAIR's preprocess_image: the longest side to 512 with an antialiased bilinear filter, black at the end."""
    pixels = torch.from_numpy(np.float32(image) / 255).permute(2, 0, 1)[None]
    scale = max(pixels.shape[-2:]) / 512
    height, width = (int(side / scale) for side in pixels.shape[-2:])
    pixels = torchvision.transforms.Resize((height, width), antialias=True)(pixels)
    return nn.functional.pad(pixels, (0, 512 - width, 0, 512 - height))[0]


@pytest.mark.parametrize("size", [(704, 287), (90, 131), (512, 512), (224, 224)])
def test_a_folder_takes_images_as_flair_does(flair_folder, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = load_model(flair_folder).preprocess(image)
    torch.testing.assert_close(ours, flairs_transform(image), atol=1e-6, rtol=0)
    model = open_clip.create_model(f"local-dir:{flair_folder}")  # and so the card says it to others
    assert torch.equal(model.visual.image_transform()(image), ours)
    assert "image_transform()" in (flair_folder / "README.md").read_text()


@pytest.mark.parametrize(("stored", "used"), [(4.7, 4.6052), (-0.1, 0.0), (4.0, 4.0)])
def test_the_logit_scale_is_clamped_as_there(theirs, tokenizer_folder, tmp_path, stored, used):
    torch.save(torch.load(theirs[1]) | {"logit_scale": torch.tensor([stored])}, tmp_path / "scale.pth")
    found = import_weights("keepfit-v1", tmp_path / "scale.pth", tmp_path / "model", tokenizer=str(tokenizer_folder))
    assert any("clamped" in note for note in found.notes) == (stored != used)
    assert load_model(tmp_path / "model").model.logit_scale.item() == pytest.approx(used)


def test_an_option_that_does_nothing_for_a_kind_is_refused(theirs, tmp_path):
    with pytest.raises(ConfigError, match="--random-text, --text-tower: nothing to do with --from flair"):
        import_weights("flair", theirs[1], tmp_path / "model", text_tower="a", random_text=True)


def test_what_does_not_fit_is_named_and_refused_unless_told_otherwise(theirs, tokenizer_folder, tmp_path):
    state = torch.load(theirs[1])
    state["extra.weight"] = torch.zeros(1)
    state["vision_model.model.conv1.weight"] = torch.zeros(64, 4, 7, 7)
    del state["attention.W_k.weight"]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        import_dual_encoder(tmp_path / "odd.pth", "keepfit-v1", tmp_path / "model", str(tokenizer_folder))
    for words in (
        "lacks text_revision.key.weight",
        "unknown extra.weight",
        "visual.trunk.conv1.weight as (64, 4, 7, 7) instead of (64, 3, 7, 7)",
        "--partial",
    ):
        assert words in str(caught.value)
    assert not (tmp_path / "model").exists()
    found = import_dual_encoder(
        tmp_path / "odd.pth", "keepfit-v1", tmp_path / "model", str(tokenizer_folder), partial=True
    )
    assert len(found.fit.problems) == 3
    assert torch.isfinite(load_model(tmp_path / "model").model.visual(torch.rand(1, 3, 64, 64))).all()


def test_files_and_tokenizers_that_cannot_be_used(theirs, tokenizer_folder, tmp_path):
    def bring(path, tokenizer=tokenizer_folder, out="model"):
        import_dual_encoder(path, "flair", tmp_path / out, str(tokenizer))

    with pytest.raises(MissingWeightsError, match="no such file"):
        bring(tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(theirs[1].read_bytes()[:2000])
    with pytest.raises(MissingWeightsError, match="not readable weights"):
        bring(tmp_path / "cut.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no checkpoint of flair: it lacks .*word_embeddings"):
        bring(tmp_path / "other.pth")
    with pytest.raises(MissingWeightsError, match="could not be loaded"):
        bring(theirs[1], tmp_path / "no-tokenizer")
    large = write_encoder(tmp_path / "large", vocab_size=200)
    with pytest.raises(ConfigError, match="the one they were trained with"):
        bring(theirs[1], large)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(OutputError, match="holds something already"):
        bring(theirs[1], out="full")


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_but_weights_is_unpickled(tmp_path, capsys):
    torch.save({"model": {"a": torch.zeros(1)}, "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(MissingWeightsError, match="not readable weights"):
        import_image_tower(tmp_path / "evil.pth", "timm", tmp_path / "model", MODEL)
    assert "run" not in capsys.readouterr().out


@torch.no_grad()
def test_a_masked_autoencoder_becomes_an_image_tower(tmp_path):
    torch.manual_seed(5)
    encoder = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    state = {key.replace("fc_norm", "norm"): value for key, value in encoder.state_dict().items()}
    state |= {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(2)}
    torch.save({"model": state}, tmp_path / "retfound.pth")
    found = import_image_tower(tmp_path / "retfound.pth", "retfound", tmp_path / "model", MODEL)
    assert found.left_out == {"of a decoder or classifier": 2}
    assert found.taken == len(encoder.state_dict())
    model = load_model(tmp_path / "model").model
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.visual.trunk(images), encoder(images))


@pytest.mark.long
@torch.no_grad()
def test_an_open_clip_vit_becomes_an_image_tower(tmp_path):
    torch.manual_seed(6)
    clip = open_clip.CLIP(
        512,
        {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    found = import_image_tower(tmp_path / "clip.pt", "open-clip", tmp_path / "model", MODEL)
    assert "vit_base_patch16_clip_224" in found.notes[0]
    assert any("QuickGELU" in note for note in found.notes)
    loaded = load_model(tmp_path / "model")
    images = torch.rand(1, 3, 224, 224)
    ours = loaded.model.visual.trunk(images) @ clip.visual.proj
    torch.testing.assert_close(ours, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    assert list(loaded.preprocess.transforms[-1].mean) == list(open_clip.OPENAI_DATASET_MEAN)


def test_an_open_clip_checkpoint_with_a_timm_tower(tmp_path):
    trunk = timm.create_model("test_vit2", num_classes=0)
    state = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.zeros(2), "text.a": torch.zeros(1), "logit_scale": torch.zeros(())}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "clip.pt")
    (tmp_path / "open_clip_config.json").write_text('{"preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}')
    found = import_image_tower(tmp_path / "clip.pt", "open-clip", tmp_path / "model", MODEL, "test_vit2")
    assert found.taken == len(trunk.state_dict())
    loaded = load_model(tmp_path / "model")
    assert list(loaded.preprocess.transforms[-1].mean) == [0.1, 0.2, 0.3]
    assert torch.equal(loaded.model.visual.trunk.state_dict()["pos_embed"], trunk.state_dict()["pos_embed"])


def test_another_backbone_with_its_classifier_left_out(tmp_path):
    source = timm.create_model("test_efficientnet", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    out = tmp_path / "model"
    words = ["import", tmp_path / "timm.pth", "--from", "timm", "--out", out, "--model", MODEL, "--backbone",
             "test_efficientnet"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.exception
    assert "left out: of a decoder or classifier" in result.stdout
    trunk = load_model(out).model.visual.trunk
    assert torch.equal(trunk.conv_stem.weight, source.conv_stem.weight)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--from", "clip"], ConfigError, "none of flair"),
        (["--from", "timm", "--backbone", "resnet_of_dreams"], ConfigError, "timm has no backbone"),
        (["--from", "timm", "--model", "ViT-B-32"], ConfigError, "no KeepFIT model"),
        (["--from", "timm", "--model", MODEL], MissingWeightsError, "is no encoder for the image tower"),
        (["--from", "open-clip", "--model", MODEL], CheckpointError, "holds no image tower of open_clip"),
    ],
)
def test_imports_that_cannot_be_done(tmp_path, words, error, message):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pth")
    command = ["import", str(tmp_path / "w.pth"), "--out", str(tmp_path / "model"), *words]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
