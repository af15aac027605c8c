"""The optimizer's groups: new layers learn faster than pretrained towers, and decay falls on weights alone.

A tower's own layers may learn the slower the nearer they are to its input (timm's layer decay); projections, caption
decoder and text revision, which no weights were pretrained for, have a rate of their own.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from timm.models import group_parameters
from torch import nn

__all__ = ["parameter_groups", "scaled_rates"]

# Names of a Hugging Face encoder's parameters, as timm's matchers say it.
_ENCODER = {"stem": r"^embeddings", "blocks": r"^(?:encoder|transformer)\.layer\.(\d+)"}
_EMBEDDINGS = (nn.Embedding,)


def parameter_groups(model: nn.Module, weight_decay: float, head_scale: float, layer_decay: float) -> list[dict]:
    """Groups for AdamW, each with `params`, `weight_decay` and `lr_scale`, the factor of the run's rate.

    Args:
        model: a KeepFIT model.
        weight_decay: of the weights; norms, biases, scales and embeddings have none.
        head_scale: factor of the rate for all that is not a tower.
        layer_decay: factor from each layer of a tower to the one below; the last one has the whole rate.
    """
    scales = {name: head_scale for name, _ in model.named_parameters()}
    for prefix, tower, matcher in _towers(model):
        scales |= _layer_scales(prefix, tower, matcher, layer_decay)
    kept = _without_decay(model)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or name in kept else weight_decay
        group = groups.setdefault((scales[name], decay), {"params": [], "weight_decay": decay})
        group["lr_scale"] = scales[name]
        group["params"].append(parameter)
    return list(groups.values())


def _towers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Prefix, module and matcher of layers of the two pretrained towers."""
    trunk = model.visual.trunk
    yield "visual.trunk.", trunk, trunk.group_matcher(coarse=False)
    yield "text.transformer.", model.text.transformer, _ENCODER


def _layer_scales(prefix: str, tower: nn.Module, matcher: Any, layer_decay: float) -> dict[str, float]:
    """Name of each parameter of a tower -> factor of its rate."""
    layers = group_parameters(tower, matcher, reverse=True)
    last = max(layers.values(), default=0)
    return {f"{prefix}{name}": layer_decay ** (last - layer) for name, layer in layers.items()}


def _without_decay(model: nn.Module) -> set[str]:
    """Names of the weights that are embeddings, or that timm keeps out of the decay."""
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _EMBEDDINGS)}
    trunk = model.visual.trunk
    own = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()
    return names | {f"visual.trunk.{name}" for name in own}


def scaled_rates(adjust: Callable[[int], float], groups: Iterable[dict]) -> Callable[[int], float]:
    """A schedule of open_clip_train, which gives all groups one rate, with each group's own factor of it."""

    def scaled(step: int) -> float:
        rate = adjust(step)
        for group in groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate

    return scaled
