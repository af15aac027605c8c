"""The checkpoints of other projects that `keepfit-clip import --from KIND` knows: one table.

It is read for the help of the command line, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepfit_clip.errors import CheckpointError, ConfigError
from keepfit_clip.folders.imports import names
from keepfit_clip.folders.imports.names import Renamed

if TYPE_CHECKING:
    from torch import Tensor

    from keepfit_clip.folders.imports.result import Imported

__all__ = ["BOTH", "IMAGE", "KINDS", "LARGEST_LOGIT_SCALE", "Kind", "import_weights"]

IMAGE = "image"  # an image tower alone, to train a model around
BOTH = "image and text"  # a whole dual encoder: the features are the original's

LARGEST_LOGIT_SCALE = 4.6052  # ln(100) as FLAIR, KeepFIT v1, RetiZero, RET-CLIP and ViLReF round it
_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
_OF_FLAIR = {"interpolation": "bilinear", "pad": "end"}  # beside /255, no mean, longest side to 512, a black border
_NO_NORM = {"mean": [0.0] * 3, "std": [1.0] * 3}
_HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
_MEAN_OF_NORMED = {"timm_pool": "avg", "norm_before_pool": True}
_CHINESE_CLIP = {
    "gives": BOTH,
    "config": "keepfit-v1",
    "vision": {"timm_model_name": "vit_base_patch16_clip_quickgelu_224", "image_size": 224},
    "text": {"pooler": "cls", "normalize_trunk": False, "context_length": 52},
    "preprocess": {**_OPENAI, "resize_mode": "squash", "interpolation": "bicubic"},
    "tokenizer": "hfl/chinese-roberta-wwm-ext",
    "clamps": True,
}


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Args:
        what: whose weights, in a few words.
        gives: `IMAGE` or `BOTH`.
        config: the registered config that the folder is built from.
        names: gives a state dict this library's names.
        source: where its names and shapes are published.
        marker: a tensor of every such file, under its own name; '' where none is sure.
        vision: settings of the image tower in the place of the config's.
        text: settings of the text tower in the place of the config's.
        preprocess: preprocessing values in the place of the config's.
        tokenizer: hub name of the text tower's tokenizer; '' for CLIP's own.
        revision: the attention of the text revision that the weights hold; '' where they hold none.
        clamps: whether the original clamps its logit scale to `LARGEST_LOGIT_SCALE`.
    """

    what: str
    gives: str
    config: str
    names: Callable[[Mapping[str, Tensor]], Renamed]
    source: str
    marker: str = ""
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    revision: str = ""
    clamps: bool = False

    def require_marker(self, state: Mapping[str, Tensor], kind: str, file: str | Path) -> None:
        """Raises CheckpointError where a file is plainly of another kind."""
        if self.marker and self.marker not in state:
            raise CheckpointError(f"{file} is no checkpoint of {kind}: it lacks {self.marker}")


KINDS: dict[str, Kind] = {
    "flair": Kind(
        what="FLAIR",
        gives=BOTH,
        config="keepfit-v1",
        names=names.flair,
        source="github.com/jusiro/FLAIR: flair/modeling/model.py",
        marker="text_model.model.embeddings.word_embeddings.weight",
        text={"context_length": 77},
        preprocess=_OF_FLAIR,
        tokenizer=_CLINICAL_BERT,
        clamps=True,
    ),
    "keepfit-v1": Kind(
        what="KeepFIT v1",
        gives=BOTH,
        config="keepfit-v1",
        names=names.flair,
        source="github.com/lxirich/MM-Retinal: KeepFIT/KeepFIT-CFP/keepfit/modeling/model.py",
        marker="text_model.model.embeddings.word_embeddings.weight",
        preprocess=_OF_FLAIR,
        tokenizer=_CLINICAL_BERT,
        revision="dot",
        clamps=True,
    ),
    "retizero": Kind(
        what="RetiZero",
        gives=BOTH,
        config="keepfit-v1",
        names=names.retizero,
        source="github.com/LooKing9218/RetiZero: clip_modules/modeling/model.py",
        marker="text_model.model.embeddings.word_embeddings.weight",
        vision={"timm_model_name": "vit_large_patch16_224", "image_size": 224, "normalize_trunk": True},
        text={"context_length": 77},
        preprocess={**_IMAGENET, "resize_mode": "squash", "interpolation": "bilinear"},
        tokenizer=_CLINICAL_BERT,
        clamps=True,
    ),
    "eyeclip": Kind(
        what="EyeCLIP",
        gives=BOTH,
        config="keepfit-v1",
        names=names.eyeclip,
        source="github.com/Michi-3000/EyeCLIP: eyeclip/model.py",
        marker="token_embedding.weight",
        vision={"timm_model_name": "vit_base_patch32_clip_quickgelu_224", "image_size": 224},
        text={"pooler": "eos", "normalize_trunk": False},
        preprocess={**_OPENAI, "resize_mode": "shortest", "interpolation": "bicubic"},
    ),
    "ret-clip-left": Kind(
        what="RET-CLIP with its heads for left eyes",
        names=names.ret_clip_left,
        marker="left_feature_mapping.weight",
        source="github.com/sStonemason/RET-CLIP: RET_CLIP/clip/model.py",
        **{**_CHINESE_CLIP, "text": {**_CHINESE_CLIP["text"], "projection": "mlp"}},
    ),
    "ret-clip-right": Kind(
        what="RET-CLIP with its heads for right eyes",
        names=names.ret_clip_right,
        marker="right_feature_mapping.weight",
        source="github.com/sStonemason/RET-CLIP: RET_CLIP/clip/model.py",
        **{**_CHINESE_CLIP, "text": {**_CHINESE_CLIP["text"], "projection": "mlp"}},
    ),
    "vilref": Kind(
        what="ViLReF with a ViT",
        names=names.vilref,
        marker="visual.class_embedding",
        source="github.com/T6Yang/ViLReF: ViLReF/clip/model.py",
        **_CHINESE_CLIP,
    ),
    "retfound": Kind(
        what="RETFound, masked autoencoder",
        gives=IMAGE,
        config="keepfit-v2-vit-l-16",
        names=names.as_they_are,
        source="github.com/rmaphoh/RETFound: models_vit.py",
    ),
    "retfound-dinov2": Kind(
        what="RETFound, DINOv2",
        gives=IMAGE,
        config="keepfit-v2-vit-l-16",
        names=names.dinov2,
        source="github.com/rmaphoh/RETFound: main_finetune.py, models_vit.py",
        marker="backbone.cls_token",
        vision={"timm_model_name": "vit_large_patch14_dinov2", "image_size": 224},
    ),
    "retfound-green": Kind(
        what="RETFound-Green",
        gives=IMAGE,
        config="keepfit-v2-vit-b-16",
        names=names.as_they_are,
        source="github.com/justinengelmann/RETFound_Green: README.md",
        marker="reg_token",
        vision={"timm_model_name": "vit_small_patch14_reg4_dinov2", "image_size": 392, **_MEAN_OF_NORMED},
        preprocess={**_HALF, "resize_mode": "squash", "interpolation": "bilinear"},
    ),
    "mirage": Kind(
        what="MIRAGE's encoder for B-scans",
        gives=IMAGE,
        config="keepfit-v2-vit-b-16",
        names=names.mirage,
        source="github.com/j-morano/MIRAGE: mirage/model.py, mirage/input_adapters.py, mirage_wrapper.py",
        marker="input_adapters.bscan.proj.weight",
        vision=_MEAN_OF_NORMED,
        preprocess={**_NO_NORM, "resize_mode": "squash", "interpolation": "bilinear"},
    ),
    "urfound": Kind(
        what="UrFound",
        gives=IMAGE,
        config="keepfit-v2-vit-b-16",
        names=names.urfound,
        source="github.com/yukkai/UrFound: util/model_urfound.py, finetune/models_vit.py",
        marker="pos_embed",
        vision={"timm_pool": "avg"},
    ),
    "eyeclip-image": Kind(
        what="EyeCLIP's image tower",
        gives=IMAGE,
        config="keepfit-v2-vit-b-16",
        names=names.eyeclip_visual,
        source="github.com/Michi-3000/EyeCLIP: eyeclip/model.py",
        marker="visual.class_embedding",
        vision={"timm_model_name": "vit_base_patch32_clip_quickgelu_224", "image_size": 224},
        preprocess={**_OPENAI, "resize_mode": "shortest", "interpolation": "bicubic"},
    ),
    "keepfit-v1-ffa": Kind(
        what="the image tower of KeepFIT v1's captioner of angiograms",
        gives=IMAGE,
        config="keepfit-v2",
        names=names.keepfit_ffa,
        source="github.com/lxirich/MM-Retinal: KeepFIT/KeepFIT-FFA/modules/visual_extractor.py",
        marker="visual_extractor.model.0.weight",
        vision={"image_size": 224},
        preprocess={**_IMAGENET, "resize_mode": "squash", "interpolation": "bilinear"},
    ),
    "open-clip": Kind(
        what="CLIP, BiomedCLIP and other checkpoints of open_clip",
        gives=IMAGE,
        config="keepfit-v2-vit-b-16",
        names=names.open_clip_visual,
        source="github.com/mlfoundations/open_clip: src/open_clip/model.py",
    ),
    "timm": Kind(
        what="any backbone of timm",
        gives=IMAGE,
        config="keepfit-v2-vit-b-16",
        names=names.as_they_are,
        source="github.com/huggingface/pytorch-image-models",
    ),
}


def import_weights(kind: str, file: str | Path, out: str | Path, **options: Any) -> Imported:
    """Makes a model folder of a checkpoint of another project.

    Args:
        kind: its name in `KINDS`.
        file: the checkpoint.
        out: folder to make.
        **options: those of `import_dual_encoder` or `import_image_tower`, whichever makes folders of the kind; what is
            None is not chosen.

    Raises:
        ConfigError: there is no such kind, or an option that its folders do not have; and what cannot be built.
        MissingWeightsError, CheckpointError, OutputError: as they raise.
    """
    if kind not in KINDS:
        raise ConfigError(f"--from {kind!r} is none of {', '.join(KINDS)}")
    chosen = {name: value for name, value in options.items() if value is not None}
    if KINDS[kind].gives == BOTH:
        from keepfit_clip.folders.imports.dual_encoders import import_dual_encoder as make
    else:
        from keepfit_clip.folders.imports.image_towers import import_image_tower as make
    foreign = sorted(set(chosen) - set(signature(make).parameters))
    if foreign:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ConfigError(f"{flags}: nothing to do with --from {kind}, which gives {KINDS[kind].gives}")
    return make(file, kind, out, **chosen)
