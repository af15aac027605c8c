"""What the tensors of other projects' checkpoints are called here.

One function for each naming: it takes a state dict and gives it back under this library's names (those of a KeepFIT
model, or timm's of an image tower), without the tensors that nobody needs. A name that it does not know it leaves as it
is, so that the import can say so. It needs no torch but that of the tensors it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Renamed",
    "as_they_are",
    "dinov2",
    "eyeclip",
    "eyeclip_visual",
    "flair",
    "keepfit_ffa",
    "mirage",
    "open_clip_visual",
    "ret_clip_left",
    "ret_clip_right",
    "retizero",
    "urfound",
    "vilref",
]

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
# OpenAI's CLIP, as EyeCLIP (eyeclip/model.py), RET-CLIP and ViLReF (clip/model.py) have it -> timm's.
_CLIP_VISUAL = {
    "visual.class_embedding": "visual.trunk.cls_token",
    "visual.positional_embedding": "visual.trunk.pos_embed",
    "visual.conv1.": "visual.trunk.patch_embed.proj.",
    "visual.ln_pre.": "visual.trunk.norm_pre.",
    "visual.transformer.resblocks.": "visual.trunk.blocks.",
    "visual.ln_post.": "visual.trunk.norm.",
    "visual.proj": "visual.proj.weight",
}
_CLIP_BLOCK = {
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
# CLIP's text transformer -> transformers'.
_CLIP_TEXT = {
    "token_embedding.": "text.transformer.embeddings.token_embedding.",
    "positional_embedding": "text.transformer.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text.transformer.encoder.layers.",
    "ln_final.": "text.transformer.final_layer_norm.",
    "text_projection": "text.proj.weight",
}
_CLIP_TEXT_BLOCK = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
_UNUSED_CLIP = {
    "visual.decoder.": "of the masked autoencoder's decoder",
    "input_resolution": "sizes of the model",
    "context_length": "sizes of the model",
    "vocab_size": "sizes of the model",
}
_UNUSED_CHINESE = {"bert.pooler.": _OF_A_BERT, "bert.embeddings.position_ids": _OF_A_BERT}
_MIRAGE_LARGE = 1024  # width
_OTHER_HEADS = "of the heads for the other eye and for both eyes"


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
    """The image tower out of a checkpoint of open_clip, still under open_clip's names: timm knows them.

    Where it is a backbone of timm (`visual.trunk`), what stands behind that is a projection.
    """
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    kept = {key: value for key, value in visual.items() if key.startswith("visual.trunk.")} or visual
    counts = {"not of the image tower": len(state) - len(visual), "of the projection": len(visual) - len(kept)}
    return Renamed(kept, {why: count for why, count in counts.items() if count})


def dinov2(state: Mapping[str, Tensor]) -> Renamed:
    """RETFound's DINOv2 (github.com/rmaphoh/RETFound, main_finetune.py): the teacher's backbone.

    Blocks that were trained in chunks (`blocks.CHUNK.NUMBER.`, facebookresearch/dinov2) are counted through.
    """
    heads = "of the heads of the self-distillation"
    renamed = _rename(state, {"backbone.": ""}, {"dino_head.": heads, "ibot_head.": heads})
    swaps = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}
    tensors = {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", _swapped(key, swaps)): value
        for key, value in renamed.tensors.items()
    }
    return Renamed(tensors, renamed.left_out)


def urfound(state: Mapping[str, Tensor]) -> Renamed:
    """UrFound (github.com/yukkai/UrFound, util/model_urfound.py): a masked autoencoder with timm's names."""
    text = "of the text decoder"
    return _rename(state, {}, {"bert_encoder.": text, "bert_mlp.": text})


def mirage(state: Mapping[str, Tensor]) -> Renamed:
    """MIRAGE's encoder for B-scans (github.com/j-morano/MIRAGE, mirage/model.py, mirage/input_adapters.py).

    Its images have one channel: a third of the patch embedding for each colour gives the same of a grey image. Its one
    global token has no position; the last norm is that of its classification wrapper (mirage_wrapper.py), untrained.
    """
    names = {
        "input_adapters.bscan.pos_emb": "pos_embed",
        "input_adapters.bscan.proj.": "patch_embed.proj.",
        "encoder.": "blocks.",
        "global_tokens": "cls_token",
    }
    unused = {
        "output_adapters.": "of the decoders",
        "input_adapters.slo.": "of the adapters of other inputs",
        "input_adapters.bscanlayermap.": "of the adapters of other inputs",
    }
    renamed = _rename(state, names, unused)
    tensors, vision = renamed.tensors, {}
    patches, places = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if patches is not None and patches.shape[1] == 1:
        tensors["patch_embed.proj.weight"] = (patches / 3).repeat(1, 3, 1, 1)
        large = len(patches) == _MIRAGE_LARGE
        vision["timm_model_name"] = f"vit_{'large' if large else 'base'}_patch32_224"
    if places is not None and places.ndim == 4:  # (1, C, h, w)
        flat = places.flatten(2).transpose(1, 2)
        tensors["pos_embed"] = _joined([flat.new_zeros(1, 1, flat.shape[2]), flat])
        tensors["norm.weight"], tensors["norm.bias"] = flat.new_ones(flat.shape[2]), flat.new_zeros(flat.shape[2])
        if patches is not None:
            vision["image_size"] = places.shape[-1] * patches.shape[-1]
    return Renamed(tensors, renamed.left_out, vision)


def keepfit_ffa(state: Mapping[str, Tensor]) -> Renamed:
    """The ResNet of KeepFIT v1's captioner of angiograms (github.com/lxirich/MM-Retinal, KeepFIT-FFA/modules).

    There it is a sequence of torchvision's parts. The captioner behind it is a transformer of another architecture.
    """
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    names = {f"visual_extractor.model.{number}.": f"{part}." for number, part in enumerate(parts)}
    return _rename(state, names, {"encoder_decoder.": "of the captioner, which is of another architecture"})


def retizero(state: Mapping[str, Tensor]) -> Renamed:
    """RetiZero's names (github.com/LooKing9218/RetiZero, clip_modules/modeling): FLAIR's, and LoRA on qkv.

    What LoRA adds to queries and values is merged into the weights; there it is added with no scale.
    """
    merged = dict(state)
    for key in [key for key in state if key.endswith(".attn.qkv.qkv.weight")]:
        block, weight = key.removesuffix("qkv.weight"), merged.pop(key).clone()
        width = weight.shape[1]
        for part, rows in (("q", slice(0, width)), ("v", slice(2 * width, None))):
            down, up = (merged.pop(f"{block}linear_{side}_{part}.weight", None) for side in "ab")
            if down is not None and up is not None:
                weight[rows] += up @ down
        merged[f"{block}weight"] = weight
    merged = {key.replace(".attn.qkv.qkv.", ".attn.qkv."): value for key, value in merged.items()}
    return flair({key.replace("vision_model.model.lora_vit.", "vision_model.model."): v for key, v in merged.items()})


def eyeclip(state: Mapping[str, Tensor]) -> Renamed:
    """EyeCLIP's names (github.com/Michi-3000/EyeCLIP, eyeclip/model.py): OpenAI's CLIP and a decoder of images."""
    renamed = _clip(state, _CLIP_TEXT, _UNUSED_CLIP)
    tensors = {}
    for key, value in renamed.tensors.items():
        if key.startswith("text.transformer.encoder."):
            key = _swapped(key, _CLIP_TEXT_BLOCK)
        if ".attn.in_proj_" in key:
            start, kind = key.split(".attn.in_proj_")
            parts = zip("qkv", value.chunk(3), strict=True)
            tensors |= {f"{start}.self_attn.{part}_proj.{kind}": piece for part, piece in parts}
        else:
            tensors[key] = value
    if "text.proj.weight" in tensors:
        tensors["text.proj.weight"] = tensors["text.proj.weight"].T
    return Renamed(tensors, renamed.left_out)


def eyeclip_visual(state: Mapping[str, Tensor]) -> Renamed:
    """EyeCLIP's image tower alone, under timm's names."""
    renamed = eyeclip({key: value for key, value in state.items() if key.startswith("visual.")})
    trunk = {k.removeprefix("visual.trunk."): v for k, v in renamed.tensors.items() if k != "visual.proj.weight"}
    others = {"not of the image tower": len(state) - len(trunk) - sum(renamed.left_out.values())}
    return Renamed(trunk, renamed.left_out | {why: count for why, count in others.items() if count})


def vilref(state: Mapping[str, Tensor]) -> Renamed:
    """ViLReF's names (github.com/T6Yang/ViLReF, ViLReF/clip/model.py): those of Chinese-CLIP, with a ViT."""
    renamed = _clip(state, {"bert.": "text.transformer.", "text_projection": "text.proj.weight"}, _UNUSED_CHINESE)
    if "text.proj.weight" in renamed.tensors:
        renamed.tensors["text.proj.weight"] = renamed.tensors["text.proj.weight"].T
    return renamed


def ret_clip_left(state: Mapping[str, Tensor]) -> Renamed:
    """RET-CLIP's names with its heads for left eyes."""
    return _ret_clip(state, "left", "right")


def ret_clip_right(state: Mapping[str, Tensor]) -> Renamed:
    """RET-CLIP's names with its heads for right eyes."""
    return _ret_clip(state, "right", "left")


def _ret_clip(state: Mapping[str, Tensor], eye: str, other: str) -> Renamed:
    """RET-CLIP's names (github.com/sStonemason/RET-CLIP, RET_CLIP/clip/model.py), with the heads for one eye.

    An image's feature is a matrix of the eye times CLIP's projection; both are one here.
    """
    unused = [f"{other}_feature_mapping.", f"text_projection_{other}.", f"logit_scale_{other}"]
    unused += ["global_feature_mapping.", "text_projection.", "logit_scale"]
    eyes_own = {f"{eye}_feature_mapping.": "mapping.", f"logit_scale_{eye}": "logit_scale"}
    text = {"bert.": "text.transformer.", f"text_projection_{eye}.": "text.proj."}
    renamed = _clip(state, text | eyes_own, _UNUSED_CHINESE | dict.fromkeys(unused, _OTHER_HEADS))
    mapping = renamed.tensors.get("mapping.weight")
    if mapping is not None and "visual.proj.weight" in renamed.tensors:
        del renamed.tensors["mapping.weight"]
        renamed.tensors["visual.proj.weight"] = mapping @ renamed.tensors["visual.proj.weight"]
    return renamed


def _clip(state: Mapping[str, Tensor], text: Mapping[str, str], unused: Mapping[str, str]) -> Renamed:
    """A CLIP's names: its image tower under timm's, its text tower under other beginnings."""
    renamed = _rename(state, _CLIP_VISUAL | text, unused)
    tensors = {}
    for key, value in renamed.tensors.items():
        if key.startswith("visual.trunk.blocks."):
            key = _swapped(key, _CLIP_BLOCK)
        if key == "visual.trunk.cls_token":
            value = value[None, None]
        elif key == "visual.trunk.pos_embed":
            value = value[None]
        elif key == "visual.proj.weight":
            value = value.T
        tensors[key] = value.reshape(()) if key == "logit_scale" else value
    return Renamed(tensors, renamed.left_out)


def _swapped(key: str, swaps: Mapping[str, str]) -> str:
    """A name with parts of it replaced."""
    for theirs, ours in swaps.items():
        key = key.replace(theirs, ours)
    return key


def _joined(tokens: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(tokens, dim=1)


def _rename(state: Mapping[str, Tensor], names: Mapping[str, str], unused: Mapping[str, str]) -> Renamed:
    """Other beginnings for the names, but for tensors that are not used; the longest beginning counts.

    Args:
        state: under their names.
        names: beginning of their name -> of ours.
        unused: beginning of their name -> why such tensors are left out.
    """
    starts = sorted({*names, *unused}, key=len, reverse=True)
    tensors, left_out = {}, {}
    for key, value in state.items():
        start = next((start for start in starts if key.startswith(start)), "")
        if start in unused:
            left_out[unused[start]] = left_out.get(unused[start], 0) + 1
        else:
            tensors[names.get(start, "") + key.removeprefix(start)] = value
    return Renamed(tensors, left_out)
