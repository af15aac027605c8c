"""What differs between the versions of libraries that this one works with."""

from torch import nn

__all__ = ["set_activation_checkpointing"]


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
