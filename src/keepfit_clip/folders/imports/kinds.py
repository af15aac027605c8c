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
    "retfound": Kind(
        what="RETFound, masked autoencoder",
        gives=IMAGE,
        config="keepfit-v2-vit-l-16",
        names=names.as_they_are,
        source="github.com/rmaphoh/RETFound: models_vit.py",
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
