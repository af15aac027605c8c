"""Weights that people have, as model folders that `open_clip.create_model('local-dir:DIR')` loads.

`flair` and `keepfit-v1` are whole models and become a keepfit-v1 model of the same features. `retfound`, `open-clip`
and `timm` are image towers that a model of another config starts from; its text tower is pretrained as ever, what has
no weights yet (projections, decoder) is initialised with one fixed seed.

The names of FLAIR's and KeepFIT v1's tensors are those of their published checkpoints.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from keepfit_clip.errors import CheckpointError, ConfigError, MissingWeightsError
from keepfit_clip.files import read_json, require_free
from keepfit_clip.folders.model_folder import CONFIG_NAME, write_model
from keepfit_clip.model.config import ModelConfig, RevisionConfig, check_preprocess_config
from keepfit_clip.model.image_tower import with_backbone
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.preprocess import default_preprocess, resolve_preprocess
from keepfit_clip.model.pretrained import allow_source, load_pretrained, resolve_source, unreachable
from keepfit_clip.model.state_dicts import Fit, fit_of, read_weights
from keepfit_clip.model.text_tower import with_text_tower

__all__ = ["DUAL_ENCODERS", "IMAGE_TOWERS", "Imported", "import_dual_encoder", "import_image_tower"]

DUAL_ENCODERS = ("flair", "keepfit-v1")
IMAGE_TOWERS = {"retfound": "keepfit-v2-vit-l-16", "open-clip": "keepfit-v2-vit-b-16", "timm": "keepfit-v2-vit-b-16"}

_PARTS = {
    "vision_model.model.": "visual.trunk.",
    "vision_model.projection_head_vision.projection.": "visual.proj.",
    "text_model.model.": "text.transformer.",
    "text_model.projection_head_text.projection.": "text.proj.",
    "attention.W_q.": "text_revision.query.",
    "attention.W_k.": "text_revision.key.",
    "attention.W_v.": "text_revision.value.",
    "attention.W_o.": "text_revision.out.",
    "logit_scale": "logit_scale",
}
_UNUSED = ("text_model.model.pooler.", "text_model.model.embeddings.position_ids")
_BERT = "text_model.model."
_BERT_HEAD_WIDTH = 64
_CLIP_BACKBONES = {  # width and patch size of open_clip's own ViTs -> timm's name
    (768, 32): "vit_base_patch32_clip_224",
    (768, 16): "vit_base_patch16_clip_224",
    (1024, 14): "vit_large_patch14_clip_224",
    (1280, 14): "vit_huge_patch14_clip_224",
}
_TIMM_BACKBONE = "vit_base_patch16_224"  # BiomedCLIP's


@dataclass
class Imported:
    """What an import did.

    Args:
        taken: tensors of the file that stand in the folder now.
        left_out: why -> how many tensors of the file are not needed.
        fit: what did not fit, where `partial` let it pass.
        notes: what had to be assumed, and what the folder holds beside the file's weights.
    """

    taken: int
    left_out: dict[str, int] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)
    notes: list[str] = field(default_factory=list)


def import_dual_encoder(
    file: str | Path,
    origin: str,
    out: str | Path,
    tokenizer: str = "emilyalsentzer/Bio_ClinicalBERT",
    partial: bool = False,
) -> Imported:
    """Makes a keepfit-v1 folder of FLAIR's or KeepFIT v1's weights.

    Width, depth and vocabulary of the text encoder are read off the weights; the number of attention heads, which they
    do not tell, is the tokenizer's own config's, or one per 64 channels as in BERT.

    Args:
        file: the state dict.
        origin: one of `DUAL_ENCODERS`.
        out: folder to make.
        tokenizer: hub name or folder.
        partial: take what fits.

    Raises:
        MissingWeightsError: the file or the tokenizer cannot be read.
        CheckpointError: the weights do not fit; names what.
        ConfigError: the tokenizer is not that of the weights.
        OutputError: `out` holds something already.
    """
    out = require_free(out)
    state = {key: value.float() if value.is_floating_point() else value for key, value in read_weights(file).items()}
    words = f"{_BERT}embeddings.word_embeddings.weight"
    if words not in state:
        raise CheckpointError(f"{file} is no checkpoint of {origin}: it lacks {words}")
    allow_source(tokenizer)
    loaded_tokenizer = _load_tokenizer(tokenizer)
    config = ModelConfig.named("keepfit-v1").with_text(**_text_settings(state, tokenizer, loaded_tokenizer))
    projection = state.get("vision_model.projection_head_vision.projection.weight")
    if projection is not None:
        config = replace(config, embed_dim=len(projection))
    if origin == "keepfit-v1":  # whose attention its weights were trained with
        config = config.with_revision(RevisionConfig(attention="dot"))
    model = _build(config)
    unused = {key for key in state if key.startswith(_UNUSED)}
    named = {_renamed(key): value for key, value in state.items() if key not in unused}
    named |= {"logit_scale": named["logit_scale"].reshape(())} if "logit_scale" in named else {}
    own = model.state_dict()
    of_the_file = {k: v for k, v in own.items() if origin != "flair" or not k.startswith("text_revision.")}
    fit = fit_of(of_the_file, named)
    if not fit and not partial:
        raise CheckpointError(f"{file} does not fit as a checkpoint of {origin}: {fit}. --partial takes what fits")
    model.load_state_dict(own | fit.of(named))
    history = {"weights": f"imported from a checkpoint of {origin}"}
    write_model(out, config, resolve_preprocess(config), loaded_tokenizer, model.state_dict(), history)
    heads = config.text.hf_model_config["num_attention_heads"]
    notes = [f"the text encoder has {heads} attention heads, which the weights do not tell"]
    if origin == "flair":
        notes.append("FLAIR has no text revision: its projections are initialised anew")
    left_out = {"of BERT's pooler and buffers, unused there too": len(unused)} if unused else {}
    return Imported(len(fit.of(named)), left_out, fit, notes)


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
        file: RETFound's checkpoint, open_clip's, or one with timm's names.
        origin: one of `IMAGE_TOWERS`.
        out: folder to make.
        model: the config; by default the origin's of `IMAGE_TOWERS`.
        backbone: timm's name of the image tower instead of the config's; open_clip's own ViTs are recognised.
        text_tower: a Hugging Face folder instead of the config's encoder.
        random_text: start from a text tower without pretrained weights.
        partial: take what fits.

    Raises:
        MissingWeightsError: the file or the text tower cannot be read, or the weights do not fit; names what.
        ConfigError: no such config or backbone.
        OutputError: `out` holds something already.
    """
    out = require_free(out)
    whole, notes = read_weights(file), []
    state = whole
    if origin == "open-clip":
        state = {key: value for key, value in whole.items() if key.startswith("visual.")}
        if not state:
            raise CheckpointError(f"{file} holds no image tower of open_clip (visual.*)")
        backbone = backbone or _clip_backbone(file, state)
        notes.append(f"the image tower is taken to be timm's {backbone}")
        if "visual.class_embedding" in state and "quickgelu" not in backbone:
            notes.append("OpenAI's own weights need QuickGELU: for them give --backbone vit_..._clip_quickgelu_224")
    config = ModelConfig.named(model or IMAGE_TOWERS[origin])
    if backbone and backbone != config.vision.timm_model_name:
        config = with_backbone(config, backbone)
    if text_tower is not None:
        config = with_text_tower(config, Path(text_tower))
    if origin == "open-clip":
        config = config.with_preprocess(**_clip_normalisation(Path(file), notes))
    tokenizer_name = config.text.hf_tokenizer_name
    tokenizer = _load_tokenizer(tokenizer_name) if tokenizer_name else open_clip.SimpleTokenizer()
    pretrained = bool(config.text.hf_model_name) and not random_text
    built = _build(config.with_text(hf_model_pretrained=pretrained))
    named = _with_timms_names(built.visual.trunk, state) if origin == "open-clip" else state
    try:
        not_backbone, fit = built.visual.load_backbone(named, file, partial)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{error}. --partial takes what fits") from error
    history = {"weights": f"image tower imported from {origin}; nothing trained together yet"}
    write_model(out, config, resolve_preprocess(config), tokenizer, built.state_dict(), history)
    anew = "projections" if built.text_decoder is None else "projections and the caption decoder"
    notes.append(f"the text tower is {'' if pretrained else 'not '}pretrained; the {anew} are initialised anew")
    counts = {"of a decoder or classifier": not_backbone, "not of the image tower": len(whole) - len(state)}
    left_out = {why: count for why, count in counts.items() if count}
    return Imported(len(named) - not_backbone - len(fit.unknown) - len(fit.misshapen), left_out, fit, notes)


def _renamed(key: str) -> str:
    for theirs, ours in _PARTS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def _load_tokenizer(name: str):
    source = resolve_source(name)
    try:
        return load_pretrained(AutoTokenizer, source)
    except (OSError, ValueError) as error:
        raise unreachable(name, error, "--tokenizer") from error


def _text_settings(state: Mapping[str, Tensor], name: str, tokenizer) -> dict:
    """The `text_cfg` that the tensors of a BERT tell, and its tokenizer."""
    vocabulary, width = state[f"{_BERT}embeddings.word_embeddings.weight"].shape
    layers = {key.split(".")[4] for key in state if key.startswith(f"{_BERT}encoder.layer.")}

    def rows(key: str, default: int) -> int:
        return len(state[f"{_BERT}{key}"]) if f"{_BERT}{key}" in state else default

    positions = rows("embeddings.position_embeddings.weight", 512)
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"the tokenizer {Path(name).name!r} has {len(tokenizer)} tokens and the weights have {vocabulary}: give "
            "the one they were trained with (--tokenizer)"
        )
    special = {"pad_id": tokenizer.pad_token_id, "bos_id": tokenizer.cls_token_id, "eos_id": tokenizer.sep_token_id}
    if None in special.values():
        raise ConfigError(f"the tokenizer {Path(name).name!r} has no [PAD], [CLS] or [SEP]: it is none of a BERT")
    return {
        "hf_model_name": "",
        "hf_tokenizer_name": name,
        "context_length": min(256, positions),
        "hf_model_config": {
            "model_type": "bert",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": _attention_heads(name, width),
            "intermediate_size": rows("encoder.layer.0.intermediate.dense.weight", 4 * width),
            "max_position_embeddings": positions,
            "type_vocab_size": rows("embeddings.token_type_embeddings.weight", 2),
        },
        **special,
    }


def _attention_heads(source: str, width: int) -> int:
    """The heads of the encoder that comes with the tokenizer, where it has the same width."""
    try:
        config = load_pretrained(AutoConfig, resolve_source(source))
    except (OSError, ValueError):
        config = None
    if getattr(config, "hidden_size", None) == width:
        return config.num_attention_heads
    return max(1, width // _BERT_HEAD_WIDTH)


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
    return convert(state, trunk)


def _build(config: ModelConfig) -> KeepFIT:
    """The model of a config; what no weights are for is the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KeepFIT(config, default_preprocess())
