"""Whole dual encoders of other projects: model folders of the same image and text features."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import open_clip
from torch import Tensor

from keepfit_clip.errors import CheckpointError, ConfigError
from keepfit_clip.files import require_free
from keepfit_clip.folders.imports.building import build, load_tokenizer, with_tower
from keepfit_clip.folders.imports.kinds import KINDS, LARGEST_LOGIT_SCALE, Kind
from keepfit_clip.folders.imports.result import Imported
from keepfit_clip.folders.imports.text_encoders import bert_settings, clip_settings
from keepfit_clip.folders.model_folder import write_model
from keepfit_clip.model.config import ModelConfig, RevisionConfig
from keepfit_clip.model.preprocess import resolve_preprocess
from keepfit_clip.model.pretrained import allow_source
from keepfit_clip.model.state_dicts import fit_of, read_weights

__all__ = ["import_dual_encoder"]


def import_dual_encoder(
    file: str | Path,
    origin: str,
    out: str | Path,
    tokenizer: str | None = None,
    partial: bool = False,
    backbone: str | None = None,
) -> Imported:
    """Makes a folder of a whole model's weights, which gives the original's features.

    Width, depth and vocabulary of the text encoder are read off the weights; the number of attention heads, which they
    do not tell, is the tokenizer's own config's, or one per 64 channels as in BERT.

    Args:
        file: the state dict.
        origin: a kind of `KINDS` that gives both towers.
        out: folder to make.
        tokenizer: hub name or folder; by default the kind's own.
        partial: take what fits.
        backbone: timm's name of the image tower in the place of the kind's.

    Raises:
        MissingWeightsError: the file or the tokenizer cannot be read.
        CheckpointError: the weights do not fit; names what.
        ConfigError: the tokenizer is not that of the weights, or timm has no such backbone.
        OutputError: `out` holds something already.
    """
    out, kind = require_free(out), KINDS[origin]
    state = {key: value.float() if value.is_floating_point() else value for key, value in read_weights(file).items()}
    kind.require_marker(state, origin, file)
    renamed = kind.names(state)
    tensors = renamed.tensors
    config = _config(kind, renamed.vision, backbone)
    loaded_tokenizer, text = _text(kind, origin, tensors, tokenizer)
    config = config.with_text(**text, **_within(kind.text, text))
    if "visual.proj.weight" in tensors:
        config = replace(config, embed_dim=len(tensors["visual.proj.weight"]))
    notes = _clamp_logit_scale(tensors) if kind.clamps else []
    model = build(config)
    own = model.state_dict()
    expected = {k: v for k, v in own.items() if kind.revision or not k.startswith("text_revision.")}
    fit = fit_of(expected, tensors)
    if not fit and not partial:
        raise CheckpointError(f"{file} does not fit as a checkpoint of {origin}: {fit}. --partial takes what fits")
    model.load_state_dict(own | fit.of(tensors))
    history = {"weights": f"imported from a checkpoint of {origin}"}
    write_model(out, config, resolve_preprocess(config), loaded_tokenizer, model.state_dict(), history)
    heads = config.text.hf_model_config["num_attention_heads"]
    notes += [f"the text encoder has {heads} attention heads, which the weights do not tell"]
    if not kind.revision:
        notes.append(f"{kind.what} has no text revision: its projections are initialised anew")
    taken = len(state) - sum(renamed.left_out.values()) - len(fit.unknown) - len(fit.misshapen)
    return Imported(taken, renamed.left_out, fit, notes)


def _config(kind: Kind, told: Mapping, backbone: str | None) -> ModelConfig:
    """The kind's config, its text tower still that of the registered one."""
    config = with_tower(ModelConfig.named(kind.config), kind, told, backbone)
    if kind.revision:  # the attention that its weights were trained with
        config = config.with_revision(RevisionConfig(attention=kind.revision))
    return config


def _clamp_logit_scale(tensors: dict[str, Tensor]) -> list[str]:
    """Clamps the logit scale, as the original does at each use; a note where that changes it."""
    stored = tensors.get("logit_scale")
    if stored is None:
        return []
    tensors["logit_scale"] = stored.clamp(0, LARGEST_LOGIT_SCALE)
    if bool((tensors["logit_scale"] == stored).all()):
        return []
    return [f"logit_scale {stored.item():.4f} is clamped to {tensors['logit_scale'].item():.4f}, as there"]


def _text(kind: Kind, origin: str, tensors: Mapping[str, Tensor], tokenizer: str | None):
    """The tokenizer of a kind's texts, or the user's, and the `text_cfg` that the tensors tell."""
    if not kind.tokenizer:
        if tokenizer:
            raise ConfigError(f"--tokenizer: {origin} has CLIP's own, which is built in: leave it out")
        return open_clip.SimpleTokenizer(), clip_settings(tensors)
    name = tokenizer or kind.tokenizer
    allow_source(name)
    loaded = load_tokenizer(name)
    return loaded, bert_settings(tensors, name, loaded)


def _within(settings: Mapping, text: Mapping) -> dict:
    """The kind's settings of the text tower; a text is never longer than the encoder's positions."""
    longest = min(settings.get("context_length", 256), text["hf_model_config"]["max_position_embeddings"])
    return {**settings, "context_length": longest}
