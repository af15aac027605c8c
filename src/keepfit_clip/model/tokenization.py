"""Tokens for the towers: padded to the longest text only, and never cut in silence."""

import re
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from keepfit_clip.errors import ConfigError, TextTooLongError
from keepfit_clip.model.text_tower import text_attention_mask

__all__ = ["Tokenizer", "decode_texts", "too_long_text"]

_MULTIPLE = 8


class Tokenizer:
    """An open_clip tokenizer with what a KeepFIT model knows about it.

    Args:
        tokenizer: from `open_clip.get_tokenizer`.
        context_length: longest text, tokens.
        pad_id, eos_id: special tokens.
    """

    def __init__(self, tokenizer: Callable, context_length: int, pad_id: int, eos_id: int):
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.pad_id, self.eos_id = pad_id, eos_id

    @classmethod
    def of_model(cls, model: nn.Module, tokenizer: "Callable | Tokenizer | None") -> "Tokenizer":
        """The tokenizer with the context and special tokens of a KeepFIT model; one that has them stays itself.

        Raises:
            ConfigError: the model has no text tower, and so no tokenizer.
        """
        if tokenizer is None:
            raise ConfigError(
                "this model has no text tower, so it can be compared with no category and no text: take a method that "
                "learns from images alone (transfer --method linear-probe or finetune)"
            )
        if isinstance(tokenizer, cls):
            return tokenizer
        text = model.text
        return cls(tokenizer, text.context_length, text.pad_id, text.eos_id)

    def __call__(self, texts: Sequence[str], on_too_long: Callable[[int], None] | None = None) -> Tensor:
        """Token ids (B, L), L the longest text's length rounded up to a multiple of 8.

        Args:
            texts: B texts.
            on_too_long: called with the number of texts that had to be cut to the context; without it such a text
                is an error.

        Raises:
            TextTooLongError: a text is longer than the context.
        """
        ids = self.tokenizer(list(texts), context_length=self.context_length + 1)
        lengths = text_attention_mask(ids, self.pad_id, self.eos_id).sum(dim=1)
        too_long = (lengths > self.context_length).nonzero().squeeze(1)
        if len(too_long):
            if on_too_long is None:
                raise TextTooLongError(too_long_text(texts[int(too_long[0])], self.context_length))
            on_too_long(len(too_long))
            ids[too_long, self.context_length - 1] = self.eos_id
            ids[:, self.context_length :] = self.pad_id
        longest = min(int(lengths.max()), self.context_length)
        padded = min(-(-longest // _MULTIPLE) * _MULTIPLE, self.context_length)
        return ids[:, :padded].contiguous()

    def decode(self, ids: Tensor) -> list[str]:
        """See `decode_texts`."""
        return decode_texts(self.tokenizer, ids, self.eos_id)


def too_long_text(text: str, context_length: int) -> str:
    """The error for a text that does not fit."""
    return f"a text is longer than the model's context of {context_length} tokens: shorten it: {text[:80]!r}..."


def decode_texts(tokenizer: Callable, ids: Tensor, eos_id: int) -> list[str]:
    """Texts of generated ids (B, L): what stands between the begin and the end token.

    Args:
        tokenizer: from `open_clip.get_tokenizer`.
        ids: (B, L), begin token first.
        eos_id: the end token.
    """
    texts = []
    for row in ids[:, 1:].tolist():
        words = row[: row.index(eos_id)] if eos_id in row else row
        if hasattr(tokenizer, "tokenizer"):  # open_clip's HFTokenizer around a transformers one
            texts.append(_close_up(tokenizer.tokenizer.decode(words, skip_special_tokens=True)))
        else:
            texts.append(tokenizer.decode(words).strip())
    return texts


def _close_up(text: str) -> str:
    """Takes out the spaces that WordPiece puts around punctuation: "b - scan : 0 . 8" becomes "b-scan: 0.8"."""
    text = re.sub(r"\s+([.,:;!?%)\]])", r"\1", text.strip())
    text = re.sub(r"(?<=\d\.)\s+(?=\d)", "", text)  # decimals are commoner than sentences that begin with a number
    return re.sub(r"(?<=\w)\s+([-/])\s+(?=\w)|(?<=[(\[])\s+", r"\1", text)
