"""Stage 1: a text tower learns from a corpus, beside a head on the frozen start, and stage 2 takes it."""

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertTokenizerFast

from keepfit_clip.errors import ConfigError, CorpusError, MissingWeightsError, OutputError
from keepfit_clip.export import export_model
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.loading import load_model
from keepfit_clip.training import text as stage1
from keepfit_clip.training.main import main as train
from keepfit_clip.training.text import TextPretraining, pretrain_text, read_corpus
from tests.conftest import train_flags

SENTENCES = [
    f"{place} {sign} suggest {disease} in this fundus photograph"
    for place in ("scattered", "central", "peripheral", "dense")
    for sign in ("microaneurysms", "exudates", "drusen", "hemorrhages")
    for disease in ("diabetic retinopathy", "macular degeneration")
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny random BERT and a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES))
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train([str(folder / "corpus.txt")], vocab_size=120, min_frequency=1, show_progress=False)
    pieces.save_model(str(folder))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    return folder


SETTINGS = {"epochs": 15, "batch_size": 8, "lr": 3e-3, "head_lr": 3e-3, "held_out": 0.2}


@pytest.fixture(scope="module")
def tower(encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage1") / "tower"
    scores = pretrain_text(SENTENCES, TextPretraining(init=str(encoder), **SETTINGS), out)
    return out, scores


def test_training_beats_the_head_on_the_frozen_start_on_the_same_masks(tower):
    _, scores = tower
    assert scores["frozen"].tokens == scores["trained"].tokens > 20
    assert scores["trained"].perplexity < 0.8 * scores["frozen"].perplexity
    assert 0 <= scores["trained"].accuracy <= 1


def test_result_is_a_hugging_face_folder_with_a_report_and_nothing_else_is_left(tower, encoder):
    out, _ = tower
    assert AutoModel.from_pretrained(out).config.hidden_size == 32
    report = json.loads((out / "textual_pretraining.json").read_text())
    assert report["held_out_documents"] == 6
    assert str(encoder.parent) not in json.dumps(report)
    assert [p.name for p in out.parent.iterdir()] == ["tower"]


def test_whole_words_are_masked(encoder):
    settings = TextPretraining(init=str(encoder), mask_probability=0.5, max_length=64)
    tokenizer = BertTokenizerFast.from_pretrained(encoder)
    examples = stage1._tokenize(["unseenword microaneurysms", "drusen"], tokenizer, settings)
    collated = stage1._collator(tokenizer, settings, seed=0)([dict(e) for e in examples] * 20)
    pieces = len(examples[0]["input_ids"]) - 2
    assert pieces > 4  # several pieces to a word
    masked = collated["labels"][::2, 1 : pieces + 1] != -100
    words = torch.tensor([0 if end <= len("unseenword") else 1 for _, end in examples[0]["offset_mapping"][1:-1]])
    for word in (0, 1):
        share = masked[:, words == word].float().mean(dim=1)
        assert set(share.tolist()) <= {0.0, 1.0}
        assert 0 < share.mean() < 1


def test_interrupted_pretraining_goes_on(encoder, tmp_path, monkeypatch):
    settings = TextPretraining(init=str(encoder), **{**SETTINGS, "epochs": 2})
    real = stage1._train

    def interrupted(model, tokenizer, examples, settings, folder, callback):
        real(model, tokenizer, examples, settings, folder, callback)
        if folder.name == "trained":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage1, "_train", interrupted)
        pretrain_text(SENTENCES, settings, tmp_path / "tower")
    assert not (tmp_path / "tower").exists()
    pretrain_text(SENTENCES, settings, tmp_path / "tower")
    pretrain_text(SENTENCES, settings, tmp_path / "straight")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("tower", "straight"))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key])


def test_stage_2_starts_from_the_tower_and_the_export_needs_it_no_more(tower, shards, tmp_path):
    out, _ = tower
    flags = train_flags(shards, tmp_path, "run", text_tower=out, epochs=1, train_num_samples=8, lr=0)
    train(flags)
    export_model(tmp_path / "run", tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert str(out).encode() not in path.read_bytes(), path
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded = load_model(tmp_path / "model")
    trained = load_file(out / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(loaded.model.text.word_embeddings.weight, trained)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")(["drusen"])
    assert tokens[0, 0] == loaded.model.text.bos_id == BertTokenizerFast.from_pretrained(out).cls_token_id
    with pytest.raises(ConfigError, match="drop one"):
        train(train_flags(shards, tmp_path, "both", text_tower=out, model=f"local-dir:{tmp_path / 'model'}"))


def test_corpus_is_read_line_by_line_mended_and_without_duplicates(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["schÃ¶n  drusen", "schön drusen", *map(str, range(30))]))
    documents = read_corpus([tmp_path / "a.txt"])
    assert documents[0] == "schön drusen"
    assert len(documents) == 31
    assert len(read_corpus([tmp_path / "a.txt"], Knowledge.load())) > 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b"\xff\xfe\x00\x81", "not a text file"),
        (b"one\ntwo", "at least 20"),
    ],
)
def test_bad_corpora(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read_corpus([tmp_path / "a.txt"])


def test_bad_start_and_full_folder(encoder, tmp_path):
    with pytest.raises(MissingWeightsError, match="no/such"):
        pretrain_text(SENTENCES, TextPretraining(init="no/such"), tmp_path / "out")
    with pytest.raises(OutputError, match="holds something already"):
        pretrain_text(SENTENCES, TextPretraining(init=str(encoder)), encoder)


def test_a_run_goes_on_after_the_tower_is_gone_and_the_run_folder_moved(tower, shards, tmp_path):
    out = tmp_path / "tower"
    shutil.copytree(tower[0], out)
    train(train_flags(shards, tmp_path, "run", text_tower=out, epochs=1, train_num_samples=8))
    shutil.rmtree(out)
    (tmp_path / "run").rename(tmp_path / "moved")
    train(train_flags(shards, tmp_path, "moved", text_tower=out, epochs=2, train_num_samples=8, resume="latest"))
    assert (tmp_path / "moved" / "checkpoints" / "epoch_2.pt").exists()


def test_a_tower_with_weights_of_the_older_format_is_taken(tower, shards, tmp_path):
    out = tmp_path / "tower"
    shutil.copytree(tower[0], out)
    torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
    (out / "model.safetensors").unlink()
    train(train_flags(shards, tmp_path, "run", text_tower=out, epochs=1, train_num_samples=8))
