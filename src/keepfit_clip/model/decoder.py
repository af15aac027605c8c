"""The caption decoder: writes a text about the image tokens, one token after the other.

CoCa-like (arXiv 2205.01917), with two differences: its word embeddings are the text tower's own, so that what textual
pretraining learnt reaches the captions, and it never sees the text tower's bidirectional states, which would tell it
the words it is to predict.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, DynamicCache, EncoderDecoderCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.modeling_utils import PreTrainedModel

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.compat import CACHE
from keepfit_clip.model.config import DecoderConfig

__all__ = ["CaptionDecoder", "token_nll"]

# Rows of logits that exist at a time. torch.nn.functional.linear_cross_entropy does the same but is 9 times slower on
# CPU in bfloat16 (torch 2.15), so the logits are recomputed chunk by chunk here.
_CHUNK = 256


class CaptionDecoder(PreTrainedModel, GenerationMixin):
    """BERT blocks with causal self-attention and cross-attention to the image tokens, tied to shared word embeddings.

    Args:
        config: its own size.
        text_tower: owns the `word_embeddings` (V, C) that are used for input and output. They are asked for each time:
            transformers' resize_token_embeddings and adapters put others in their place.
        token_dim: width of the image tokens.
        pad_id, bos_id, eos_id: special tokens.

    Raises:
        ConfigError: the width does not divide by the heads.
    """

    config_class = BertConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self,
        config: DecoderConfig,
        text_tower: nn.Module,
        token_dim: int,
        pad_id: int = 0,
        bos_id: int = 101,
        eos_id: int = 102,
    ):
        vocab_size, width = text_tower.word_embeddings.weight.shape
        if width % config.heads:
            raise ConfigError(f"multimodal_cfg.heads {config.heads} does not divide the text tower's width {width}")
        super().__init__(
            BertConfig(
                vocab_size=vocab_size,
                hidden_size=width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=int(width * config.mlp_ratio),
                max_position_embeddings=config.context_length,
                type_vocab_size=1,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                is_decoder=True,
                add_cross_attention=True,
                pad_token_id=pad_id,
                bos_token_id=bos_id,
                eos_token_id=eos_id,
            )
        )
        self.generation_config = GenerationConfig(pad_token_id=pad_id, bos_token_id=bos_id, eos_token_id=eos_id)
        self.image_proj = nn.Linear(token_dim, width)
        self.image_norm = nn.LayerNorm(width)
        self.bert = BertModel(self.config, add_pooling_layer=False)
        self.bert.embeddings.word_embeddings = None  # the shared ones are passed in as inputs_embeds
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        # Not registered: the embeddings are the text tower's, and a state dict holds them once.
        self.__dict__["_text_tower"] = text_tower
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The shared word embeddings (V, C)."""
        return self._text_tower.word_embeddings

    def _output_layer(self) -> tuple[Tensor, Tensor]:
        """Weight (V, C) and bias (V,) of the tied output layer; words that came later have a bias of 0."""
        weight = effective_weight(self.get_input_embeddings())
        new = len(weight) - len(self.bias)
        return weight, F.pad(self.bias, (0, new)) if new else self.bias

    def project_tokens(self, image_tokens: Tensor) -> Tensor:
        """Image tokens (B, N, C_image) as the cross-attention takes them: (B, N, C)."""
        return self.image_norm(self.image_proj(image_tokens))

    def hidden_states(self, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
        """States (B, L, C) before the output layer; state t has seen the tokens up to t only.

        Args:
            input_ids: (B, L).
            image_tokens: (B, N, C_image) as the image tower gives them.
        """
        states = self.bert(
            inputs_embeds=self.get_input_embeddings()(input_ids),
            encoder_hidden_states=self.project_tokens(image_tokens),
            use_cache=False,
        ).last_hidden_state
        return self.transform(states)

    def logits(self, states: Tensor) -> Tensor:
        """Token logits (..., V) of states (..., C): the tied output layer."""
        return F.linear(states, *self._output_layer())

    def caption_nll(self, text: Tensor, mask: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of captions under teacher forcing, without the full logits.

        Args:
            text: token ids (B, L).
            mask: (B, L) bool, true where `text` is text.
            image_tokens: (B, N, C_image).

        Returns:
            Sum of the NLL in nats per caption (B,) in float32, and number of predicted tokens (B,).
        """
        states = self.hidden_states(text[:, :-1], image_tokens)  # (B, L-1, C)
        counted = mask[:, 1:]
        nll = token_nll(states, *self._output_layer(), text[:, 1:])  # (B, L-1)
        return (nll * counted).sum(dim=1), counted.sum(dim=1)

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        **options,
    ) -> CausalLMOutputWithCrossAttentions:
        """One step as transformers' generation calls it; `encoder_hidden_states` are projected tokens (B, N, C)."""
        output = self.bert(
            inputs_embeds=self.get_input_embeddings()(input_ids),
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            use_cache=use_cache,
            output_attentions=output_attentions,
            **{CACHE: options.get(CACHE)},
        )
        return CausalLMOutputWithCrossAttentions(
            logits=self.logits(self.transform(output.last_hidden_state)),
            cross_attentions=output.cross_attentions,
            **{CACHE: output.get(CACHE)},
        )

    @torch.no_grad()
    def generate_captions(
        self, image_tokens: Tensor, prompt: Tensor | None = None, use_cache: bool = True, **options
    ) -> Tensor:
        """Token ids (B, L) of generated captions, begin token included, padded after the end token.

        Args:
            image_tokens: (B, N, C_image).
            prompt: (B, P) begin token and words that each caption goes on from, all of one length.
            use_cache: keep keys and values of self- and cross-attention; the result is the same without.
            **options: any of transformers' `GenerationConfig` (num_beams, do_sample, temperature, top_p, ...).

        Raises:
            ConfigError: max_length is beyond the context, or no longer than the prompt.
        """
        start = prompt
        if prompt is None:
            start = torch.full((len(image_tokens), 1), self.config.bos_token_id, device=image_tokens.device)
        longest = self.config.max_position_embeddings
        if "max_new_tokens" in options:
            options["max_length"] = start.shape[1] + options.pop("max_new_tokens")
        if options.setdefault("max_length", longest) > longest:
            raise ConfigError(f"max_length {options['max_length']} is beyond the decoder's context of {longest} tokens")
        if start.shape[1] >= options["max_length"]:
            raise ConfigError(
                f"the prompt's {start.shape[1]} tokens leave no room in max_length {options['max_length']}"
            )
        if use_cache:  # transformers itself would make a cache without room for the cross-attention
            options[CACHE] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.config.vocab_size = len(effective_weight(self.get_input_embeddings()))  # beam search reads it
        image_states = self.project_tokens(image_tokens)
        return self.generate(start, encoder_hidden_states=image_states, use_cache=use_cache, **options)


def effective_weight(embeddings: nn.Module) -> Tensor:
    """What an embedding layer holds (V, C), with what an adapter around it adds.

    PEFT keeps the layer itself under `base_layer` and computes the sum only when it is called.
    """
    if not hasattr(embeddings, "base_layer"):
        return embeddings.weight
    words = torch.arange(len(embeddings.base_layer.weight), device=embeddings.base_layer.weight.device)
    return embeddings(words)


def token_nll(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Per-token negative log-likelihood of a linear output layer, never holding the float32 logits of all tokens.

    Args:
        states: (..., C).
        weight: (V, C).
        bias: (V,).
        targets: (...) token ids.

    Returns:
        (...) float32, nats.
    """
    chunks = zip(states.flatten(0, -2).split(_CHUNK), targets.flatten().split(_CHUNK), strict=True)
    nll = [checkpoint(_chunk_nll, states, weight, bias, targets, use_reentrant=False) for states, targets in chunks]
    return torch.cat(nll).view(targets.shape)


def _chunk_nll(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(states, weight, bias).float(), targets, reduction="none")
