"""Sentences as tokens: new words in the vocabulary, and whole words masked.

BERT's vocabulary knows "microaneurysms" only in pieces. New words enter the WordPiece vocabulary itself, not the list
of added tokens, which would be matched inside other words too. A new embedding starts as the mean of the pieces'.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerBase

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.pretrained import load_pretrained

__all__ = ["WholeWordMasking", "add_embeddings", "add_words", "frequent_words", "require_word_pieces", "tokenize"]

_SHORTEST = 4  # letters; shorter ones are rarely words
_FILE = "tokenizer.json"
_TOKENS = Features({"input_ids": List(Value("int32")), "words": List(Value("int32"))})


def require_word_pieces(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ConfigError unless a tokenizer is a WordPiece one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend else "not a fast one"
    if kind != "WordPiece":
        raise ConfigError(f"--new-tokens needs a WordPiece tokenizer, and the encoder's is {kind}: leave it out")


def frequent_words(
    sentences: Iterable[str], tokenizer: PreTrainedTokenizerBase, count: int, min_count: int
) -> list[str]:
    """The words of a corpus that are worth a token of their own: those that save the most tokens.

    Args:
        sentences: the corpus.
        tokenizer: a WordPiece tokenizer; words are counted in its own form (lower case and without accents, if it
            is made so).
        count: at most this many.
        min_count: times a word occurs at least.

    Returns:
        Alphabetic words of four letters or more that the tokenizer breaks up, the most useful first.

    Raises:
        ConfigError: the tokenizer is of another kind.
    """
    pieces = _Pieces(tokenizer)
    counted: Counter[str] = Counter()
    for sentence in sentences:
        counted.update(word for word in pieces.words(sentence) if len(word) >= _SHORTEST and word.isalpha())
    saved = {word: times * (len(pieces.of(word)) - 1) for word, times in counted.items() if times >= min_count}
    useful = sorted((word for word in saved if saved[word]), key=lambda word: (-saved[word], word))
    return useful[:count]


def add_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer whose vocabulary has these words at its end; nothing else differs.

    Args:
        tokenizer: a WordPiece tokenizer, left as it is.
        words: as `frequent_words` gives them.

    Raises:
        ConfigError: the tokenizer is of another kind.
    """
    first = _Pieces(tokenizer).next_id
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / _FILE
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"]["vocab"].update({word: first + number for number, word in enumerate(words)})
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return load_pretrained(AutoTokenizer, folder)


@torch.no_grad()
def add_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> None:
    """Gives a masked-language model rows for new words: the mean of the rows of each word's pieces.

    Args:
        model: changed in place: its word embeddings, output weights and output bias.
        tokenizer: the one from before `add_words`.
        words: the same as given there.
    """
    pieces = _Pieces(tokenizer)
    total = pieces.next_id + len(words)
    if model.get_input_embeddings().num_embeddings < total:  # some have spare rows
        model.resize_token_embeddings(total, mean_resizing=False)
    output = model.get_output_embeddings()
    tables = {id(table): table for table in (model.get_input_embeddings().weight, output.weight, output.bias)}
    tables.pop(id(None), None)
    for number, word in enumerate(words, start=pieces.next_id):
        for table in tables.values():  # (V, C), and (V,) for the bias
            table[number] = table[pieces.of(word)].mean(dim=0)


def tokenize(sentences: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, file: Path) -> Dataset:
    """Stores sentences as tokens.

    Args:
        sentences: of one column, `text`.
        tokenizer: a fast one.
        max_length: tokens in a row; a longer sentence becomes several.
        file: to store them in.

    Returns:
        `input_ids`, and in `words` the number of each token's word in the sentence, or -1 for a special token.
    """

    def encode(batch: dict) -> dict:
        encoded = tokenizer(batch["text"], max_length=max_length, truncation=True, return_overflowing_tokens=True)
        ids = encoded["input_ids"]
        words = [[-1 if word is None else word for word in encoded.word_ids(row)] for row in range(len(ids))]
        return {"input_ids": ids, "words": words}

    return sentences.map(
        encode, batched=True, remove_columns=sentences.column_names, features=_TOKENS, cache_file_name=str(file)
    )


class WholeWordMasking(DataCollatorForLanguageModeling):
    """Makes batches with whole words masked, by transformers' collator.

    Left to itself that one takes for a word whatever stands in the text without a gap, such as "drusen." with its stop.

    Args:
        tokenizer: a fast one with a mask token.
        mask_probability: share of the words to mask.
        seed: of the masks; None draws them from torch's own generator, as training does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_probability: float, seed: int | None = None):
        super().__init__(
            tokenizer,
            whole_word_mask=True,
            mlm_probability=mask_probability,
            mask_replace_prob=1.0,
            random_replace_prob=0.0,
            seed=seed,
        )

    def torch_call(self, examples: list[dict]) -> dict[str, Tensor]:
        """A batch of rows of `tokenize`, of different lengths: input_ids, attention_mask and labels, each (B, L)."""
        if self.seed is not None and self.generator is None:
            self.create_rng()
        ids = _padded([example["input_ids"] for example in examples], self.tokenizer.pad_token_id)
        words = _padded([example["words"] for example in examples], -1)
        attention_mask = _padded([[1] * len(example["words"]) for example in examples], 0)
        offsets = words.unsqueeze(-1).expand(-1, -1, 2)  # (B, L, 2): no gap but the one between two words
        masked, labels = self.torch_mask_tokens(ids, special_tokens_mask=words < 0, offset_mapping=offsets)
        return {"input_ids": masked, "attention_mask": attention_mask, "labels": labels}


def _padded(rows: list[list[int]], value: int) -> Tensor:
    """Rows of different lengths as one tensor (B, L)."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


class _Pieces:
    """What a WordPiece tokenizer makes of words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        require_word_pieces(tokenizer)
        self.backend = tokenizer.backend_tokenizer
        self.next_id = max(tokenizer.get_vocab().values()) + 1

    def words(self, sentence: str) -> list[str]:
        """The words of a sentence as the tokenizer normalises them."""
        normalizer = self.backend.normalizer
        text = normalizer.normalize_str(sentence) if normalizer else sentence
        return [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]

    def of(self, word: str) -> list[int]:
        """Ids of the pieces of a word."""
        return [piece.id for piece in self.backend.model.tokenize(word)]
