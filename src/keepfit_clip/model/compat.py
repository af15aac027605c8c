"""What differs between the versions of libraries that this one works with."""

from dataclasses import fields

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

__all__ = ["CACHE", "set_activation_checkpointing"]

# What transformers calls the keys and values a generation keeps, as an argument and in outputs; "cache" since 5.24.
CACHE = "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithCrossAttentions)} else "past_key_values"


def set_activation_checkpointing(module: nn.Module, enable: bool) -> None:
    """Switches a transformers model's recomputation of activations; the method has a new name since 5.21."""
    if hasattr(module, "activation_checkpointing_enable"):
        name, keyword = "activation_checkpointing", "activation_checkpointing_kwargs"
    else:
        name, keyword = "gradient_checkpointing", "gradient_checkpointing_kwargs"
    if enable:
        getattr(module, f"{name}_enable")(**{keyword: {"use_reentrant": False}})
    else:
        getattr(module, f"{name}_disable")()
