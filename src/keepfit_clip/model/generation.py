"""What `KeepFIT.generate` may be asked for, in transformers' words or in those of open_clip's `CoCa.generate`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.text_tower import TextTower

__all__ = ["generation_options", "prompt_tokens"]

_KINDS = ("beam_search", "top_p", "top_k")
_COCA_BEAMS = 6  # CoCa's own default
_ONLY_COCA = {
    "num_beam_groups": "diverse beam search is gone from transformers: leave it out",
    "pad_token_id": "the model's own stand in its config",
    "eos_token_id": "the model's own stand in its config",
    "sot_token_id": "the model's own stand in its config; a beginning of your own is given as `text`",
}
_OURS = ("stopping_criteria", "logits_processor", "streamer", "generation_config")  # not fields of GenerationConfig


def generation_options(asked: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Options for transformers' generation, and the length that the result is padded to, 0 for none.

    Args:
        asked: options of transformers' or of CoCa's `generate`; None stands for not given.

    Raises:
        ConfigError: an option that is of neither, or that cannot mean here what it means there; says what to give.
    """
    options = {name: value for name, value in asked.items() if value is not None}
    for name, why in _ONLY_COCA.items():
        if name == "num_beam_groups" and options.get(name, 1) == 1:
            options.pop(name, None)
        elif name in options:
            raise ConfigError(f"generate has no option {name}: {why}")
    kind = options.pop("generation_type", None)
    if kind is not None:
        options = {**_of_kind(kind, options), **options}
    for coca, own in (("seq_len", "max_length"), ("min_seq_len", "min_length")):
        if coca in options:
            if own in options:
                raise ConfigError(f"generate: {coca} is CoCa's name of {own}; give one of them")
            options[own] = options.pop(coca)
    if "max_seq_len" in options:  # CoCa's window on what was written; here nothing longer is written
        longest = options.pop("max_seq_len")
        options["max_length"] = min(longest, options.get("max_length", longest))
    fixed = options.pop("fixed_output_length", False)
    if fixed and "max_length" not in options:
        raise ConfigError("generate: fixed_output_length needs seq_len (or max_length)")
    unknown = sorted(set(options) - set(GenerationConfig().to_dict()) - set(_OURS))
    if unknown:
        raise ConfigError(
            f"generate has no option {', '.join(unknown)}; it takes those of transformers' GenerationConfig"
        )
    if options.get("min_length", 0) > options.get("max_length", options.get("min_length", 0)):
        raise ConfigError(f"generate: min_length {options['min_length']} is above max_length {options['max_length']}")
    return options, options["max_length"] if fixed else 0


def _of_kind(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if kind not in _KINDS:
        raise ConfigError(f"generate: generation_type is {kind!r}; it can be {', '.join(_KINDS)}")
    if kind == "beam_search":
        return {} if "num_beams" in options else {"num_beams": _COCA_BEAMS}
    if kind not in options:
        raise ConfigError(f"generate: generation_type {kind!r} needs {kind}=...")
    return {"do_sample": True}


def prompt_tokens(text: Tensor, batch: int, tower: TextTower) -> Tensor:
    """The tokens (B, P) that captions go on from, without the end and padding tokens behind them.

    Args:
        text: token ids (B, L) or (1, L), begin token first.
        batch: B.
        tower: knows the special tokens.

    Raises:
        ConfigError: another number of texts than images, texts of several lengths, or no begin token.
    """
    if text.ndim != 2 or len(text) not in (1, batch):
        raise ConfigError(f"generate: text must be token ids (B, P) for B = {batch} images, not {tuple(text.shape)}")
    if (text[:, 0] != tower.bos_id).any():
        raise ConfigError(
            f"generate: text must begin with the begin token ({tower.bos_id}), as the tokenizer writes it"
        )
    words = tower.attention_mask(text) & text.ne(tower.eos_id)
    lengths = words.sum(dim=1)
    if (lengths != lengths[0]).any():
        raise ConfigError("generate: the texts have several lengths; give those of one length together")
    return text[:, : int(lengths[0])].expand(batch, -1).to(torch.long)
