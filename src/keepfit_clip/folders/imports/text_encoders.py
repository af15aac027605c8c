"""The `text_cfg` that the weights of a text encoder tell: its dimensions, and which tokens are special."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.pretrained import load_pretrained, resolve_source

__all__ = ["bert_settings", "clip_settings"]

_ENCODER = "text.transformer."
_HEAD_WIDTH = 64  # BERT's and CLIP's


def clip_settings(tensors: Mapping[str, Tensor]) -> dict:
    """The `text_cfg` of a CLIP's text transformer, whose tokens are CLIP's own.

    Args:
        tensors: under this library's names.
    """
    vocabulary, width = tensors[f"{_ENCODER}embeddings.token_embedding.weight"].shape
    layers = {key.split(".")[4] for key in tensors if key.startswith(f"{_ENCODER}encoder.layers.")}
    return {
        "hf_model_name": "",
        "hf_tokenizer_name": "",
        "hf_model_config": {
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": max(1, width // _HEAD_WIDTH),
            "intermediate_size": 4 * width,
            "max_position_embeddings": _rows(tensors, "embeddings.position_embedding.weight", 77),
            "hidden_act": "quick_gelu",
        },
        "pad_id": 0,
        "bos_id": vocabulary - 2,
        "eos_id": vocabulary - 1,
    }


def bert_settings(tensors: Mapping[str, Tensor], name: str, tokenizer) -> dict:
    """The `text_cfg` of a BERT.

    Args:
        tensors: under this library's names.
        name: of the tokenizer: a hub name or a folder.
        tokenizer: itself.

    Raises:
        ConfigError: the tokenizer is not that of the weights.
    """
    vocabulary, width = tensors[f"{_ENCODER}embeddings.word_embeddings.weight"].shape
    layers = {key.split(".")[4] for key in tensors if key.startswith(f"{_ENCODER}encoder.layer.")}

    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"the tokenizer {Path(name).name!r} has {len(tokenizer)} tokens and the weights have {vocabulary}: give "
            "the one they were trained with (--tokenizer)"
        )
    special = {"pad_id": tokenizer.pad_token_id, "bos_id": tokenizer.cls_token_id, "eos_id": tokenizer.sep_token_id}
    if None in special.values():
        raise ConfigError(f"the tokenizer {Path(name).name!r} has no [PAD], [CLS] or [SEP]: it is none of a BERT")
    return {
        "hf_model_name": "",
        "hf_tokenizer_name": name,
        "hf_model_config": {
            "model_type": "bert",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": _attention_heads(name, width),
            "intermediate_size": _rows(tensors, "encoder.layer.0.intermediate.dense.weight", 4 * width),
            "max_position_embeddings": _rows(tensors, "embeddings.position_embeddings.weight", 512),
            "type_vocab_size": _rows(tensors, "embeddings.token_type_embeddings.weight", 2),
        },
        **special,
    }


def _attention_heads(source: str, width: int) -> int:
    """The heads of the encoder that comes with the tokenizer, where it has the same width."""
    try:
        config = load_pretrained(AutoConfig, resolve_source(source))
    except (OSError, ValueError):
        config = None
    if getattr(config, "hidden_size", None) == width:
        return config.num_attention_heads
    return max(1, width // _HEAD_WIDTH)


def _rows(tensors: Mapping[str, Tensor], key: str, default: int) -> int:
    return len(tensors[f"{_ENCODER}{key}"]) if f"{_ENCODER}{key}" in tensors else default
