"""New words in a WordPiece vocabulary, and whole words masked."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from keepfit_clip.errors import ConfigError
from keepfit_clip.training.text_stage.vocabulary import (
    WholeWordMasking,
    add_embeddings,
    add_words,
    frequent_words,
    tokenize,
)
from tests.encoders import SENTENCES, write_encoder

WORDS = ["drusen", "retinopathy"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder whose vocabulary is little more than letters."""
    return write_encoder(tmp_path_factory.mktemp("encoder"), vocab_size=40)


@pytest.fixture(scope="module")
def start(encoder):
    return AutoTokenizer.from_pretrained(encoder)


def parts(tokenizer) -> dict:
    """Everything about a tokenizer but its vocabulary."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"].pop("vocab")
    return content


def test_words_that_save_most_tokens_come_first(start):
    sentences = [
        "Eye eye eye eye: DRUSEN drusen.",
        "drusen drusen; retinopathy retinopathy retinopathy",
        "30x30um edemas",
    ]
    assert len(start.tokenize("retinopathy")) > len(start.tokenize("drusen")) > 2
    assert frequent_words(sentences, start, 10, 1)[:2] == ["retinopathy", "drusen"]
    assert frequent_words(sentences, start, 1, 1) == ["retinopathy"]
    assert frequent_words(sentences, start, 10, 4) == ["drusen"]  # three letters are too few
    assert frequent_words(["drusen"] * 9, add_words(start, WORDS), 10, 1) == []  # it is a token already


def test_words_are_counted_as_the_tokenizer_sees_them(tmp_path):
    cased = AutoTokenizer.from_pretrained(write_encoder(tmp_path / "cased", vocab_size=60, lowercase=False))
    sentences = ["drusen drusen drusen", "Drusén"]
    assert frequent_words(sentences, cased, 10, 3) == ["drusen"]
    assert frequent_words(sentences, cased, 10, 4) == []


@pytest.mark.parametrize("lowercase", [True, False])
def test_new_words_are_whole_and_nothing_else_changes(tmp_path, lowercase):
    start = AutoTokenizer.from_pretrained(write_encoder(tmp_path / "start", vocab_size=60, lowercase=lowercase))
    before = parts(start)
    extended = add_words(start, WORDS)
    extended.save_pretrained(tmp_path / "extended")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "extended")
    assert parts(loaded) == before == parts(start)
    assert type(loaded) is type(start)
    assert loaded.special_tokens_map == start.special_tokens_map
    for number, word in enumerate(WORDS):
        assert loaded.tokenize(f"{word}, no {word}.").count(word) == 2
        assert loaded.convert_tokens_to_ids(word) == len(start) + number
    assert "drusen" not in loaded.tokenize("subdrusen")  # as an added token would be
    assert (loaded.tokenize("DRUSEN") == ["drusen"]) is lowercase
    other = "Central exudates suggest macular degeneration"
    assert loaded.tokenize(other) == start.tokenize(other)
    assert loaded("drusen").input_ids == [start.cls_token_id, len(start), start.sep_token_id]


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}, {"vocab_size": 200}])
def test_new_embeddings_are_the_mean_of_their_pieces(tmp_path, config):
    folder = write_encoder(tmp_path / "start", vocab_size=60, config=config)
    start, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    torch.nn.init.normal_(model.get_output_embeddings().bias)

    def tables() -> list[torch.Tensor]:
        return [model.get_input_embeddings().weight.detach(), *model.get_output_embeddings().state_dict().values()]

    before = [table.clone() for table in tables()]
    add_embeddings(model, start, WORDS)
    for old, new in zip(before, tables(), strict=True):
        assert len(new) == max(len(old), len(start) + 2) == model.config.vocab_size
        assert torch.equal(new[: len(start)], old[: len(start)])
        for number, word in enumerate(WORDS):
            pieces = start(word, add_special_tokens=False).input_ids
            torch.testing.assert_close(new[len(start) + number], old[pieces].mean(dim=0))
    model.save_pretrained(tmp_path / "extended")
    encoder = AutoModel.from_pretrained(tmp_path / "extended")
    assert torch.equal(encoder.get_input_embeddings().weight, tables()[0])


def test_other_tokenizers_are_refused():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES, vocab_size=300, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    with pytest.raises(ConfigError, match=r"WordPiece tokenizer, and the encoder's is BPE"):
        frequent_words(SENTENCES, tokenizer, 10, 1)
    with pytest.raises(ConfigError, match="leave it out"):
        add_words(tokenizer, WORDS)


def test_long_sentences_are_cut_and_nothing_is_lost(start, tmp_path):
    sentence = " ".join(SENTENCES[:3])
    rows = tokenize(Dataset.from_dict({"text": [sentence, "drusen"]}), start, 16, tmp_path / "tokens.arrow")
    assert all(len(row["input_ids"]) <= 16 for row in rows)
    special = {start.cls_token_id, start.sep_token_id}
    ids = [token for row in rows for token in row["input_ids"] if token not in special]
    assert ids == start(f"{sentence} drusen", add_special_tokens=False).input_ids
    assert all((word < 0) == (token in special) for row in rows for token, word in zip(*row.values(), strict=True))


def test_whole_words_are_masked_and_punctuation_is_a_word(start, tmp_path):
    texts = Dataset.from_dict({"text": ["unseenword microaneurysms.", "drusen"]})
    rows = list(tokenize(texts, start, 64, tmp_path / "tokens.arrow"))
    batch = WholeWordMasking(start, 0.5, seed=0)(rows * 50)
    words = torch.tensor(rows[0]["words"])
    assert words.unique().tolist() == [-1, 0, 1, 2]
    long, short = batch["labels"][::2] != -100, batch["labels"][1::2] != -100
    assert not long[:, words < 0].any()
    masked = torch.stack([long[:, words == word].float().mean(dim=1) for word in range(3)])
    assert set(masked.flatten().tolist()) == {0.0, 1.0}
    assert len(masked.unique(dim=1).T) == 8  # each word for itself
    length = len(rows[1]["input_ids"])
    assert not short[:, length:].any()
    assert batch["attention_mask"][1].tolist() == [1] * length + [0] * (len(words) - length)
    assert (batch["input_ids"][::2][long] == start.mask_token_id).all()
    assert torch.equal(batch["labels"], WholeWordMasking(start, 0.5, seed=0)(rows * 50)["labels"])
    assert not torch.equal(batch["labels"], WholeWordMasking(start, 0.5)(rows * 50)["labels"])
