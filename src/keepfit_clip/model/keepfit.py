"""KeepFIT: an image tower, a text tower, a caption decoder and the text revision, under open_clip's model contract."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError
from keepfit_clip.finite import require_finite
from keepfit_clip.model.compat import set_activation_checkpointing
from keepfit_clip.model.config import DecoderConfig, ModelConfig
from keepfit_clip.model.decoder import CaptionDecoder
from keepfit_clip.model.generation import generation_options, prompt_tokens
from keepfit_clip.model.image_tower import ImageEncoding, ImageTower
from keepfit_clip.model.revision import TextRevision
from keepfit_clip.model.text_tower import TextTower

__all__ = ["KeepFIT"]

_OF_THE_BATCH = ("is_elite", "modality", "text_id", "category_ids", "image_codes", "text_codes", "sample_key")


class KeepFIT(nn.Module):
    """KeepFIT V2 (arXiv 2501.15798), or v1 where the config has no decoder.

    `open_clip.create_model` builds it of a config that carries `keepfit_cfg`.

    Args:
        config: dimensions and options of every part.
        default_preprocess: open_clip's preprocessing values where nobody chose any.

    Raises:
        ConfigError: settings that do not fit each other.
    """

    def __init__(self, config: ModelConfig, default_preprocess: dict | None = None):
        super().__init__()
        self.visual = ImageTower(config.vision, config.embed_dim, config.keepfit.preprocess, default_preprocess or {})
        self.text = TextTower(config.text, config.embed_dim)
        self.text_revision = TextRevision(config.embed_dim, config.keepfit.revision)
        self.text_decoder = _build_decoder(config.decoder, self.text, self.visual.token_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.init_logit_scale)))
        self.logit_bias = None
        self.context_length = self.text.context_length
        self.caption_public = False  # whether the caption loss also reads public texts; training sets it

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Features (B, D) of images (B, 3, H, W)."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Features (B, D) of token ids (B, L)."""
        features = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor | None = None, text: Tensor | Mapping | None = None) -> dict[str, Tensor]:
        """Everything a loss needs.

        Args:
            image: (B, 3, H, W).
            text: token ids (B, L), or a training batch (`keepfit_clip.data.stream.batch`).

        Returns:
            `image_features` and `text_features` (B, D), L2-normalised, for what was given, and `logit_scale` ().
            With image and token ids and a decoder also `logits` (B, L-1, V) and `labels` (B, L-1), as open_clip's
            `CoCaLoss` takes them. With a training batch only tensors with the batch first, see `_forward_batch`.
        """
        output: dict[str, Tensor] = {"logit_scale": self.logit_scale.exp()}
        image_tokens = None
        if image is not None:
            encoding = self.visual.encode(image)
            output["image_features"] = F.normalize(encoding.features, dim=-1)
            image_tokens = encoding.tokens if self.text_decoder is not None else None
        if text is None:
            return output
        if isinstance(text, Mapping):
            return self._forward_batch(output, image_tokens, text)
        output["text_features"] = self.encode_text(text, normalize=True)
        if self.text_decoder is not None and image_tokens is not None:
            states = self.text_decoder.hidden_states(text[:, :-1], image_tokens)
            output["logits"] = self.text_decoder.logits(states)
            output["labels"] = text[:, 1:]
        return output

    def _forward_batch(self, output: dict[str, Tensor], image_tokens: Tensor, batch: Mapping) -> dict[str, Tensor]:
        """Adds, for `HybridLoss`: text features, ids, the revision's projections and the caption NLL per sample."""
        ids = batch["input_ids"]
        output["text_features"] = self.encode_text(ids, normalize=True)
        output.update({key: batch[key] for key in _OF_THE_BATCH if key in batch})
        output.update(self.text_revision(output["image_features"], output["text_features"]))
        if self.text_decoder is not None:
            output["caption_nll_sum"], output["caption_tokens"] = self._caption_nll(batch, image_tokens)
        return output

    def _caption_nll(self, batch: Mapping, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Caption NLL (B,) and token counts (B,), zero for samples that are not captioned."""
        ids = batch["input_ids"]
        wanted = torch.ones_like(batch["is_elite"]) if self.caption_public else batch["is_elite"]
        rows = wanted.nonzero().squeeze(1)
        if not len(rows):  # the decoder must take part in every step: DDP waits for its gradients
            rows = torch.zeros(1, dtype=torch.long, device=ids.device)
        chosen, mask = ids[rows], self.text.attention_mask(ids[rows])
        nll, tokens = self.text_decoder.caption_nll(chosen, mask, image_tokens[rows])
        kept = wanted[rows]
        nll_sum = nll.new_zeros(len(ids)).index_copy(0, rows, nll * kept)
        return nll_sum, tokens.new_zeros(len(ids)).index_copy(0, rows, tokens * kept)

    def generate(
        self, image: Tensor | ImageEncoding, text: Tensor | None = None, *, use_cache: bool = True, **options: Any
    ) -> Tensor:
        """Writes a caption for each image.

        Args:
            image: (B, 3, H, W), or what the image tower's `encode` gave of it.
            text: (B, P) token ids each caption goes on from, begin token first, all of one length; end and padding
                tokens behind them, as a tokenizer writes them, do not count. None writes freely.
            use_cache: keep the decoder's keys and values; the captions are the same without.
            **options: transformers' generation options (num_beams, do_sample, temperature, top_k, top_p, max_length,
                ...); greedy by default. Those of open_clip's `CoCa.generate` mean what they mean there: seq_len,
                max_seq_len, min_seq_len, generation_type ("beam_search", "top_p", "top_k"), sot_token_id,
                fixed_output_length.

        Returns:
            Token ids (B, L), begin token first, padded after the end token; L is seq_len with fixed_output_length.

        Raises:
            ConfigError: the model has no caption decoder, an option that does not exist here, or a length that does
                not fit its context.
        """
        if self.text_decoder is None:
            raise ConfigError("this model has no caption decoder (its multimodal_cfg is empty)")
        options, fixed_length = generation_options(options)
        prompt = None if text is None else prompt_tokens(text, len(image), self.text)
        was_training = self.training
        self.eval()  # as open_clip's CoCa does: a model fresh from create_model is in training mode
        try:
            with torch.no_grad():
                image_tokens = (image if isinstance(image, ImageEncoding) else self.visual.encode(image)).tokens
            require_finite(image_tokens, "images' tokens")
            ids = self.text_decoder.generate_captions(image_tokens, prompt, use_cache=use_cache, **options)
        finally:
            self.train(was_training)
        return F.pad(ids, (0, max(0, fixed_length - ids.shape[1])), value=self.text.pad_id) if fixed_length else ids

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations of all towers in the backward pass: less memory, more time."""
        self.visual.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)
        if self.text_decoder is not None:
            set_activation_checkpointing(self.text_decoder, enable)

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes the image backbone, see `ImageTower.lock`."""
        self.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the text encoder, see `TextTower.lock`."""
        self.text.lock(unlocked_layers, freeze_layer_norm)


def _build_decoder(config: DecoderConfig | None, text: TextTower, token_dim: int) -> CaptionDecoder | None:
    if config is None:
        return None
    if config.context_length < text.context_length:
        raise ConfigError(
            f"multimodal_cfg.context_length {config.context_length} is shorter than text_cfg.context_length "
            f"{text.context_length}: the decoder could not write every caption"
        )
    return CaptionDecoder(
        config,
        text,
        token_dim,
        pad_id=text.pad_id,
        bos_id=text.bos_id,
        eos_id=text.eos_id,
    )
