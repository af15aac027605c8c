"""Image towers of other projects: model folders to train, which start from them.

The text tower is pretrained as ever; what has no weights yet (projections, decoder) is initialised with one fixed seed.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import open_clip
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from keepfit_clip.errors import CheckpointError, ConfigError, MissingWeightsError
from keepfit_clip.files import read_json, require_free
from keepfit_clip.folders.imports.building import build, load_tokenizer, with_tower
from keepfit_clip.folders.imports.kinds import KINDS
from keepfit_clip.folders.imports.names import Renamed
from keepfit_clip.folders.imports.result import Imported
from keepfit_clip.folders.model_folder import CONFIG_NAME, write_model
from keepfit_clip.model.config import ModelConfig, check_preprocess_config
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.model.preprocess import default_preprocess, resolve_preprocess
from keepfit_clip.model.state_dicts import Fit, read_weights
from keepfit_clip.model.text_tower import with_text_tower

__all__ = ["import_image_tower", "read_image_tower"]

_CLIP_BACKBONES = {  # width and patch size of open_clip's own ViTs -> timm's name
    (768, 32): "vit_base_patch32_clip_224",
    (768, 16): "vit_base_patch16_clip_224",
    (1024, 14): "vit_large_patch14_clip_224",
    (1280, 14): "vit_huge_patch14_clip_224",
}
_TIMM_BACKBONE = "vit_base_patch16_224"  # BiomedCLIP's


def import_image_tower(
    file: str | Path,
    origin: str,
    out: str | Path,
    model: str | None = None,
    backbone: str | None = None,
    text_tower: str | Path | None = None,
    random_text: bool = False,
    partial: bool = False,
) -> Imported:
    """Makes a model folder whose image tower starts from the weights of another project.

    Args:
        file: RETFound's checkpoint, open_clip's, one with timm's names, or another kind's.
        origin: a kind of `KINDS` that gives an image tower.
        out: folder to make.
        model: the config; by default the kind's.
        backbone: timm's name of the image tower instead of the config's; open_clip's own ViTs are recognised.
        text_tower: a Hugging Face folder instead of the config's encoder.
        random_text: start from a text tower without pretrained weights.
        partial: take what fits.

    Raises:
        MissingWeightsError: the file or the text tower cannot be read, or the weights do not fit; names what.
        CheckpointError: the file is of another kind.
        ConfigError: no such config or backbone.
        OutputError: `out` holds something already.
    """
    out, notes = require_free(out), []
    whole = read_weights(file)
    renamed, config = _renamed(whole, file, origin, model, backbone, notes)
    if text_tower is not None:
        config = with_text_tower(config, Path(text_tower))
    tokenizer_name = config.text.hf_tokenizer_name
    tokenizer = load_tokenizer(tokenizer_name) if tokenizer_name else open_clip.SimpleTokenizer()
    pretrained = bool(config.text.hf_model_name) and not random_text
    built = build(config.with_text(hf_model_pretrained=pretrained))
    not_backbone, fit = _load(built.visual, renamed.tensors, file, origin, partial)
    history = {"weights": f"image tower imported from {origin}; nothing trained together yet"}
    write_model(out, config, resolve_preprocess(config), tokenizer, built.state_dict(), history)
    anew = "projections" if built.text_decoder is None else "projections and the caption decoder"
    notes.append(f"the text tower is {'' if pretrained else 'not '}pretrained; the {anew} are initialised anew")
    left_out = {"of a decoder or classifier": not_backbone} if not_backbone else {}
    left_out |= renamed.left_out
    taken = len(whole) - sum(left_out.values()) - len(fit.unknown) - len(fit.misshapen)
    return Imported(taken, left_out, fit, notes)


def read_image_tower(file: str | Path, origin: str) -> ImageTower:
    """An image tower on its own, with the weights of another project.

    Args:
        file: the checkpoint.
        origin: a kind of `KINDS` that gives an image tower.

    Raises:
        MissingWeightsError: the file cannot be read, or the weights do not fit.
        CheckpointError: the file is of another kind.
    """
    renamed, config = _renamed(read_weights(file), file, origin, None, None, [])
    tower = ImageTower(config.vision, None, config.keepfit.preprocess, default_preprocess())
    _load(tower, renamed.tensors, file, origin, partial=False)
    return tower


def _renamed(
    whole: dict[str, Tensor], file: str | Path, origin: str, model: str | None, backbone: str | None, notes: list[str]
) -> tuple[Renamed, ModelConfig]:
    """The tensors of a file under this library's names, and the config that is built for them."""
    kind = KINDS[origin]
    kind.require_marker(whole, origin, file)
    renamed = kind.names(whole)
    if origin == "open-clip":
        backbone = _open_clip_backbone(file, renamed.tensors, backbone, notes)
    config = with_tower(ModelConfig.named(model or kind.config), kind, renamed.vision, backbone)
    if origin == "open-clip":
        config = config.with_preprocess(**_clip_normalisation(Path(file), notes))
    return renamed, config


def _load(
    tower: ImageTower, tensors: dict[str, Tensor], file: str | Path, origin: str, partial: bool
) -> tuple[int, Fit]:
    """Puts the tensors into a tower: how many were left out, and what did not fit."""
    if origin == "open-clip":
        tensors = _with_timms_names(tower.trunk, tensors)
    try:
        return tower.load_backbone(tensors, file, partial)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{error}. --partial takes what fits") from error


def _open_clip_backbone(file: str | Path, state: Mapping[str, Tensor], backbone: str | None, notes: list[str]) -> str:
    """timm's name of the image tower of an open_clip checkpoint: the user's, or what its tensors tell."""
    if not state:
        raise CheckpointError(f"{file} holds no image tower of open_clip (visual.*)")
    backbone = backbone or _clip_backbone(file, state)
    notes.append(f"the image tower is taken to be timm's {backbone}")
    if "visual.class_embedding" in state and "quickgelu" not in backbone:
        notes.append("OpenAI's own weights need QuickGELU: for them give --backbone vit_..._clip_quickgelu_224")
    return backbone


def _clip_backbone(file: str | Path, state: Mapping[str, Tensor]) -> str:
    """timm's name of the image tower of an open_clip checkpoint, as far as its tensors tell."""
    if any(key.startswith("visual.trunk.") for key in state):
        return _TIMM_BACKBONE
    patches = state.get("visual.conv1.weight")
    backbone = None
    if "visual.class_embedding" in state and patches is not None:
        backbone = _CLIP_BACKBONES.get((patches.shape[0], patches.shape[-1]))
    if backbone is None:
        raise ConfigError(f"{file}: the image tower is not one this library recognises: give timm's name as --backbone")
    return backbone


def _clip_normalisation(file: Path, notes: list[str]) -> dict:
    """Mean and standard deviation of the images: those of the config beside the file, or OpenAI's."""
    beside = file.parent / CONFIG_NAME
    stored = {}
    if beside.is_file():
        try:
            stored = read_json(beside).get("preprocess_cfg", {})
            check_preprocess_config({key: stored[key] for key in ("mean", "std") if key in stored})
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{beside}: not a config of open_clip ({error})") from error
    if not {"mean", "std"} <= stored.keys():
        notes.append(f"no {CONFIG_NAME} beside the file says otherwise: images are normalised with OpenAI's values")
    mean, std = stored.get("mean", OPENAI_DATASET_MEAN), stored.get("std", OPENAI_DATASET_STD)
    return {"mean": list(mean), "std": list(std)}


def _with_timms_names(trunk: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of an open_clip checkpoint under timm's names; timm itself knows those of CLIP."""
    if any(key.startswith("visual.trunk.") for key in state):
        return {k.removeprefix("visual.trunk."): v for k, v in state.items() if k.startswith("visual.trunk.")}
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        raise ConfigError(f"timm cannot read open_clip's weights into {type(trunk).__name__}: give another --backbone")
    named = convert(state, trunk)
    if "visual.proj" in state:
        named.pop("head.bias", None)  # which timm makes up for the projection
    return named
