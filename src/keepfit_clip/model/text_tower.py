"""The text tower: a Hugging Face encoder, pooled over its real tokens and projected to the joint space."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from keepfit_clip.errors import ConfigError, MissingWeightsError, first_line
from keepfit_clip.model.compat import set_activation_checkpointing
from keepfit_clip.model.config import ModelConfig, TextConfig
from keepfit_clip.model.pretrained import allow_source, load_pretrained, resolve_source, unreachable

__all__ = ["TextTower", "text_attention_mask", "with_text_tower"]

_ENCODER_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps")  # fmt: skip


class TextTower(nn.Module):
    """An encoder, one feature of its tokens (a masked mean, or the state of one token) and a projection.

    Args:
        config: which encoder, its dimensions, where its weights come from.
        embed_dim: width of the joint space.

    Raises:
        ConfigError: transformers cannot build the encoder, or the weights are of other dimensions.
        MissingWeightsError: pretrained weights were asked for and are out of reach.
    """

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        self.pad_id, self.bos_id, self.eos_id = config.pad_id, config.bos_id, config.eos_id
        self.context_length = config.context_length
        self.pooler = config.pooler
        self.normalize_trunk = config.normalize_trunk
        self.transformer = _create_encoder(config)
        self.vocab_size: int = self.transformer.config.vocab_size
        self.width: int = self.transformer.config.hidden_size
        self.proj = _projection(config.projection, self.width, embed_dim)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The word embeddings (V, C), which the caption decoder shares."""
        return self.transformer.get_input_embeddings()

    def attention_mask(self, text: Tensor) -> Tensor:
        """Which of the tokens (B, L) are text: (B, L) bool."""
        return text_attention_mask(text, self.pad_id, self.eos_id)

    def forward(self, text: Tensor) -> Tensor:
        """Features (B, D), not normalised, of token ids (B, L). Padding and batch neighbours change nothing."""
        mask = self.attention_mask(text)
        states = self.transformer(
            input_ids=text, attention_mask=mask.long(), output_hidden_states=self.pooler == "flair"
        )
        pooled = self._pool(text, mask, states)  # (B, C)
        if self.normalize_trunk:
            pooled = F.normalize(pooled, dim=-1)
        return self.proj(pooled)

    def _pool(self, text: Tensor, mask: Tensor, states) -> Tensor:
        last = states.last_hidden_state
        if self.pooler == "flair":
            return torch.stack([_masked_mean(states.hidden_states[i], mask) for i in (1, 2, -1)]).mean(dim=0)
        if self.pooler == "cls":
            return last[:, 0]
        if self.pooler == "eos":
            return last[torch.arange(len(text), device=text.device), text.eq(self.eos_id).int().argmax(dim=1)]
        return _masked_mean(last, mask)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the encoder's activations in the backward pass."""
        set_activation_checkpointing(self.transformer, enable)

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the encoder, word embeddings included; the projection goes on learning.

        Args:
            unlocked_layers: leave this many of the last layers free.
            freeze_layer_norm: freeze the LayerNorms of frozen layers too.
        """
        encoder = self.transformer.encoder
        layers = list(encoder.layers if hasattr(encoder, "layers") else encoder.layer)  # CLIP's and BERT's word for it
        free = {id(p) for layer in layers[len(layers) - unlocked_layers :] for p in layer.parameters()}
        for name, parameter in self.transformer.named_parameters():
            is_layer_norm = "LayerNorm" in name.split(".") or "layer_norm" in name
            if id(parameter) not in free and (freeze_layer_norm or not is_layer_norm):
                parameter.requires_grad = False


def text_attention_mask(text: Tensor, pad_id: int, eos_id: int) -> Tensor:
    """Which tokens are text and not padding.

    A token counts if it is not the padding id or stands before the last end token: open_clip's BPE pads with 0,
    which is also a word.

    Args:
        text: token ids (B, L), padded on the right.
        pad_id, eos_id: ids of the padding and the end token.

    Returns:
        (B, L) bool.
    """
    ends = text.eq(eos_id).long()  # ONNX sums no truth values
    before_end = ends.flip(1).cumsum(1).flip(1) > 0
    return text.ne(pad_id) | before_end


def with_text_tower(config: ModelConfig, folder: Path) -> ModelConfig:
    """A model config whose text tower is the Hugging Face encoder in a folder.

    Raises:
        MissingWeightsError: the folder holds no encoder or no tokenizer.
    """
    if not (folder / "config.json").is_file():
        raise MissingWeightsError(
            f"{folder} holds no text tower (config.json): make one with keepfit-clip pretrain-text"
        )
    try:
        encoder, tokenizer = load_pretrained(AutoConfig, folder), load_pretrained(AutoTokenizer, folder)
    except (OSError, ValueError) as error:
        raise MissingWeightsError(f"{folder}: the text tower cannot be read ({first_line(error)})") from error
    allow_source(folder.resolve())
    dimensions = {key: getattr(encoder, key) for key in _ENCODER_KEYS if hasattr(encoder, key)}
    return config.with_text(
        hf_model_config={"model_type": encoder.model_type, **dimensions},
        hf_model_name=str(folder.resolve()),
        hf_tokenizer_name=str(folder.resolve()),
        pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.cls_token_id,
        eos_id=tokenizer.sep_token_id,
    )


def _masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens (B, L, C) where the mask (B, L) is true: (B, C)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _projection(kind: str, width: int, embed_dim: int) -> nn.Module:
    """To the joint space (embed_dim): 'linear' or 'mlp', as `TextConfig` has it."""
    last = nn.Linear(width, embed_dim, bias=kind == "mlp")
    nn.init.normal_(last.weight, std=width**-0.5)
    if kind == "linear":
        return last
    first = nn.Linear(width, width)
    nn.init.normal_(first.weight, std=width**-0.5)
    return nn.Sequential(first, nn.ReLU(), last)


def _create_encoder(config: TextConfig) -> nn.Module:
    settings = dict(config.hf_model_config)
    try:
        encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        pretrained = config.hf_model_pretrained and config.hf_model_name
        encoder = None if pretrained else AutoModel.from_config(encoder_config)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"transformers cannot build text_cfg.hf_model_config: {error}") from error
    if encoder is None:
        encoder = _load_encoder(config, encoder_config)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # unused here, and an unused parameter has no gradient
    return encoder


def _load_encoder(config: TextConfig, encoder_config) -> nn.Module:
    source = resolve_source(config.hf_model_name)
    try:
        stored = load_pretrained(AutoConfig, source)
    except (OSError, ValueError) as error:
        raise unreachable(config.hf_model_name, error) from error
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        ours, theirs = getattr(encoder_config, key, None), getattr(stored, key, None)
        if ours != theirs:
            name = Path(config.hf_model_name).name
            raise ConfigError(f"text weights {name!r} have {key} {theirs}, but text_cfg.hf_model_config says {ours}")
    try:
        return load_pretrained(AutoModel, source, config=encoder_config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreachable(config.hf_model_name, error) from error
