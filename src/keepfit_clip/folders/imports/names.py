"""What the tensors of other projects' checkpoints are called here.

One function for each naming: it takes a state dict and gives it back under this library's names (those of a KeepFIT
model, or timm's of an image tower), without the tensors that nobody needs. A name that it does not know it leaves as it
is, so that the import can say so. It needs no torch but that of the tensors it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Renamed", "as_they_are", "flair", "open_clip_visual"]

# FLAIR, flair/modeling/model.py; KeepFIT v1, KeepFIT-CFP/keepfit/modeling/model.py adds the attention.
_FLAIR = {
    "vision_model.model.": "visual.trunk.",
    "vision_model.projection_head_vision.projection.": "visual.proj.",
    "text_model.model.": "text.transformer.",
    "text_model.projection_head_text.projection.": "text.proj.",
    "attention.W_q.": "text_revision.query.",
    "attention.W_k.": "text_revision.key.",
    "attention.W_v.": "text_revision.value.",
    "attention.W_o.": "text_revision.out.",
}
_OF_A_BERT = "of BERT's pooler and buffers, unused there too"
_UNUSED_BERT = {"text_model.model.pooler.": _OF_A_BERT, "text_model.model.embeddings.position_ids": _OF_A_BERT}


@dataclass(frozen=True)
class Renamed:
    """A state dict under this library's names.

    Args:
        tensors: those that are taken.
        left_out: why -> how many tensors of the file are not.
        vision: settings of the image tower (`VisionConfig`) that the tensors tell.
    """

    tensors: dict[str, Tensor]
    left_out: dict[str, int] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


def as_they_are(state: Mapping[str, Tensor]) -> Renamed:
    """timm's own names, with those of a masked autoencoder's decoder among them, which the image tower leaves out."""
    return Renamed(dict(state))


def flair(state: Mapping[str, Tensor]) -> Renamed:
    """FLAIR's names (github.com/jusiro/FLAIR) and KeepFIT v1's (github.com/lxirich/MM-Retinal)."""
    renamed = _rename(state, _FLAIR, _UNUSED_BERT)
    if "logit_scale" in renamed.tensors:
        renamed.tensors["logit_scale"] = renamed.tensors["logit_scale"].reshape(())
    return renamed


def open_clip_visual(state: Mapping[str, Tensor]) -> Renamed:
    """The image tower out of a checkpoint of open_clip, still under open_clip's names: timm knows them."""
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    others = len(state) - len(visual)
    return Renamed(visual, {"not of the image tower": others} if others else {})


def _rename(state: Mapping[str, Tensor], names: Mapping[str, str], unused: Mapping[str, str]) -> Renamed:
    """Other beginnings for the names, but for tensors that are not used.

    Args:
        state: under their names.
        names: beginning of their name -> of ours.
        unused: beginning of their name -> why such tensors are left out.
    """
    tensors, left_out = {}, {}
    for key, value in state.items():
        why = next((why for start, why in unused.items() if key.startswith(start)), None)
        if why is not None:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        start = next((start for start in names if key.startswith(start)), "")
        tensors[names.get(start, "") + key.removeprefix(start)] = value
    return Renamed(tensors, left_out)
