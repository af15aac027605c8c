"""What users of open_clip, PyTorch and scikit-learn expect of a model: precisions, exporters, adapters, programs."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import StandardScaler
from torch import nn
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.errors import ConfigError, TableError
from keepfit_clip.evaluate.sklearn import KeepFITFeatures
from keepfit_clip.explain.maps import Explainer
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.loading import load_model
from keepfit_clip.model.tokenization import decode_texts
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from tests.conftest import MODEL
from tests.programs import Program


@pytest.fixture(scope="module")
def images(pictures):
    return sorted(str(path) for path in pictures.rglob("*.png"))[:5] or sorted(map(str, pictures.rglob("*.jpg")))[:5]


# -- precisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16", "pure_bf16"])
def test_a_half_precision_model_takes_float_images_everywhere(exported, precision):
    name = f"local-dir:{exported}"
    tokenizer, pixels = open_clip.get_tokenizer(name), torch.rand(2, 3, 64, 64)
    answers, captions = [], []
    for chosen in ("fp32", precision):
        model, _, preprocess = open_clip.create_model_and_transforms(name, precision=chosen)
        model.eval()
        classifier = ZeroShotClassifier(model, tokenizer, ["normal", "glaucoma"], modality="CFP")
        answers.append(classifier.predict_proba(pixels))
        captions.append(model.generate(pixels, max_length=8))
    torch.testing.assert_close(answers[1], answers[0], atol=0.05, rtol=0)
    assert captions[1].shape[0] == 2
    assert model.visual.encode(pixels).local_features.dtype == model.visual.proj.weight.dtype
    from PIL import Image

    explained = Explainer(LoadedModel(model, preprocess, tokenizer), ["normal", "glaucoma"], "CFP")
    found = explained(Image.fromarray((pixels[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)), with_grad_cam=False)
    assert np.isfinite(found.similarity).all()


# -- exporters ---------------------------------------------------------------------------------------------------------


class _Text(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model.encode_text(ids, normalize=True)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_the_text_tower_goes_through_both_onnx_exporters(model, tokenizer, tmp_path, dynamo):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ids, file = tokenizer(["glaucoma", "macular hole"]), str(tmp_path / "text.onnx")
    torch.onnx.export(_Text(model), (ids,), file, input_names=["ids"], dynamo=dynamo, verbose=False)
    found = runtime.InferenceSession(file).run(None, {"ids": ids.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, model.encode_text(ids, normalize=True).numpy(), atol=1e-5)


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_the_decoder_reads_and_writes_with_the_text_towers_embeddings_of_now(model, tokenizer):
    pixels, text = torch.rand(1, 3, 64, 64), tokenizer(["a normal fundus"])[:, :8]
    before = model(pixels, text)["logits"]
    model.text.transformer.resize_token_embeddings(before.shape[-1] + 3)
    grown = model(pixels, text)["logits"]
    assert grown.shape[-1] == before.shape[-1] + 3
    torch.testing.assert_close(grown[..., :-3], before)
    assert model.generate(pixels, num_beams=2, max_length=6).shape == (1, 6)
    model.text.transformer.get_input_embeddings().weight.data.mul_(2)
    assert not torch.allclose(model(pixels, text)["logits"][..., :-3], before)


class _Adapter(nn.Module):
    """As PEFT wraps an embedding: the layer itself under `base_layer`, something added to it when it is called."""

    def __init__(self, base_layer: nn.Embedding):
        super().__init__()
        self.base_layer = base_layer
        self.delta = nn.Parameter(torch.zeros(base_layer.embedding_dim))

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, ids):
        return self.base_layer(ids) + self.delta


def test_an_adapter_on_the_embeddings_learns_through_the_decoder_too(model, tokenizer):
    pixels, text = torch.rand(1, 3, 64, 64), tokenizer(["a normal fundus"])[:, :8]
    before = model(pixels, text)["logits"]
    adapter = _Adapter(model.text.transformer.get_input_embeddings())
    model.text.transformer.set_input_embeddings(adapter)
    torch.testing.assert_close(model(pixels, text)["logits"], before)
    adapter.delta.data.fill_(0.1)
    states = model.text_decoder.hidden_states(text[:, :-1], model.visual.encode(pixels).tokens)
    expected = states @ (adapter.base_layer.weight + 0.1).T + model.text_decoder.bias
    torch.testing.assert_close(model(pixels, text)["logits"], expected)


# -- generation in CoCa's words ----------------------------------------------------------------------------------------


def test_a_caption_goes_on_from_a_prompt(model, tokenizer):
    pixels = torch.rand(2, 3, 64, 64)
    whole = model.generate(pixels[:1], max_length=10)
    beginning = whole[:, :4]
    assert torch.equal(model.generate(pixels[:1], beginning, max_length=10), whole)
    assert torch.equal(model.generate(pixels[:1], text=beginning, max_length=10, use_cache=False), whole)
    prompt = tokenizer(["left eye"])  # with its end token and padding, for all images
    words = prompt[0, : int(prompt[0].argmax())]
    for beams in (1, 3):
        written = model.generate(pixels, text=prompt, max_length=12, num_beams=beams)
        assert torch.equal(written[:, : len(words)], words.expand(2, -1))
    assert decode_texts(tokenizer, written, model.text.eos_id)[0].startswith("left eye")


def test_the_options_of_coca_mean_the_same_here(model):
    pixels = torch.rand(2, 3, 64, 64)
    greedy = model.generate(pixels, max_length=9)
    assert torch.equal(model.generate(pixels, seq_len=9), greedy)
    assert torch.equal(model.generate(pixels, max_seq_len=9), greedy)
    assert torch.equal(model.generate(pixels, max_new_tokens=8), greedy)
    beams = model.generate(pixels, seq_len=9, num_beams=6)
    assert torch.equal(model.generate(pixels, seq_len=9, generation_type="beam_search"), beams)
    torch.manual_seed(0)
    drawn = model.generate(pixels, seq_len=9, do_sample=True, top_k=5)
    torch.manual_seed(0)
    assert torch.equal(model.generate(pixels, seq_len=9, generation_type="top_k", top_k=5), drawn)
    model.text_decoder.bias.data[model.text.eos_id] = 100.0  # a model that wants to end at once
    assert model.generate(pixels, seq_len=9).shape == (2, 2)
    assert model.generate(pixels, seq_len=9, min_seq_len=5).shape == (2, 6)
    assert model.generate(pixels, seq_len=9, fixed_output_length=True).shape == (2, 9)
    assert model.generate(pixels, seq_len=9, num_beam_groups=1).shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 6, "num_beam_groups": 3}, "num_beam_groups"),
        ({"generation_type": "diverse"}, "beam_search, top_p, top_k"),
        ({"generation_type": "top_p"}, r"needs top_p=\.\.\."),
        ({"sot_token_id": 3}, "given as `text`"),
        ({"length": 3}, "no option length"),
        ({"seq_len": 9, "max_length": 9}, "give one of them"),
        ({"seq_len": 9, "min_seq_len": 12}, "min_length 12 is above max_length 9"),
        ({"fixed_output_length": True}, "needs seq_len"),
        ({"text": torch.zeros(3, 4, dtype=torch.long)}, r"for B = 2 images, not \(3, 4\)"),
        ({"text": torch.full((2, 4), 5)}, "begin with the begin token"),
        ({"text": torch.tensor([[49406, 5, 6], [49406, 5, 49407]])}, "several lengths"),
        ({"text": torch.tensor([[49406, 5, 6]]), "max_length": 3}, "leave no room in max_length 3"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name(model, options, message):
    with pytest.raises(ConfigError, match=message):
        model.generate(torch.rand(2, 3, 64, 64), **options)


# -- scikit-learn ------------------------------------------------------------------------------------------------------


def test_features_stand_in_a_column_transformer_by_any_name(exported, images):
    table = pd.DataFrame({"image": images, "age": range(len(images))}, index=range(10, 10 + len(images)))
    width = load_model(exported).model.visual.proj.in_features
    for column in ("image", ["image"]):
        columns = ColumnTransformer(
            [("eye", KeepFITFeatures(str(exported)), column), ("age", StandardScaler(), ["age"])]
        )
        assert columns.fit_transform(table).shape == (len(images), width + 1)
        assert list(columns.get_feature_names_out()[:2]) == ["eye__keepfit0", "eye__keepfit1"]
    frame = KeepFITFeatures(str(exported), projected=True).set_output(transform="pandas").fit_transform(table["image"])
    assert list(frame.columns) == [f"keepfit{number}" for number in range(32)]
    assert list(frame.index) == list(table.index)
    plain = KeepFITFeatures(str(exported), projected=True).fit_transform(images)
    np.testing.assert_allclose(frame.to_numpy(), plain)
    with pytest.raises(TableError, match="one column"):
        KeepFITFeatures(str(exported)).fit_transform(table)


# -- programs ----------------------------------------------------------------------------------------------------------


def test_run_lets_a_program_of_others_know_our_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keepfit-clip"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "theirs.py"
    script.write_text(
        "import sys, open_clip\n"
        "if __name__ == '__main__': print(sys.argv[1:], 'keepfit-v2' in open_clip.list_models())\n"
    )
    assert CliRunner().invoke(app, ["run", "--", str(script), "--flag", "1"]).output == "['--flag', '1'] True\n"
    monkeypatch.syspath_prepend(tmp_path)
    assert CliRunner().invoke(app, ["run", "-m", "theirs", "-x"]).output == "['-x'] True\n"
    ended = CliRunner().invoke(app, ["run", "--", "clip_benchmark", "--help"])
    assert ended.exit_code == 0
    assert "eval" in ended.output


@pytest.mark.parametrize("words", [[], ["--", "no-such-program"], ["-m", "no_such.module"], ["-m"], ["no_such.py"]])
def test_run_says_what_is_not_there(words):
    result = CliRunner().invoke(app, ["run", *words])
    assert isinstance(result.exception, ConfigError)


def _stock(shards, logs, name, *more):
    flags = ["--model", MODEL, "--train-data", f"{shards / 'public'}/{{000000..000002}}.tar",
             "--dataset-type", "webdataset", "--train-num-samples", "16", "--batch-size", "8", "--epochs", "1",
             "--workers", "1", "--warmup", "1", "--logs", str(logs), "--name", name, "--device", "cpu",
             *more]  # fmt: skip
    program = Program("keepfit_clip", ["run", "--", "-m", "open_clip_train.main", *flags])
    program.wait(300)
    return program


@pytest.mark.long
def test_open_clips_own_program_trains_our_model_on_our_shards(shards, tmp_path):
    result = _stock(shards, tmp_path, "stock")
    assert result.returncode == 0, result.output.read_text()[-2000:]
    log = (tmp_path / "stock" / "out.log").read_text()
    assert "Caption_loss" in log
    assert "Contrastive_loss" in log
    state = torch.load(tmp_path / "stock" / "checkpoints" / "epoch_1.pt", weights_only=True)["state_dict"]
    assert set(state) == set(open_clip.create_model(MODEL).state_dict())


def test_open_clips_own_loss_in_several_processes_is_refused_in_our_words():
    from argparse import Namespace

    with pytest.raises(ConfigError, match="keepfit-clip train"):
        open_clip.create_loss(Namespace(model=MODEL, distributed=True))


def test_the_model_card_does_not_promise_the_hubs_own_snippet(exported):
    card = (Path(exported) / "README.md").read_text()
    assert "library_name: keepfit_clip" in card
    assert "import keepfit_clip" in card
    assert json.loads((Path(exported) / "open_clip_config.json").read_text())
