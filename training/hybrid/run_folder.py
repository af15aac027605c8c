"""The model part of a run folder: resolved config, tokenizer and the stage-1 text tower, written before training.

`RUN/model` is a `local-dir:` without weights. It is how a new text tower reaches open_clip_train's main, and what
export and resume read.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import open_clip
from transformers import AutoTokenizer

from keepfit_clip.errors import ConfigError
from keepfit_clip.files import WorkFolder, new_folder, read_json, to_json, write_json, write_text, writing
from keepfit_clip.folders.export import RUN_MODEL, RUN_SETTINGS
from keepfit_clip.folders.model_folder import FolderConfig, read_model_config, write_config, write_model_folder
from keepfit_clip.folders.training_record import record_of_model
from keepfit_clip.model.config import TEXT_SOURCES, ModelConfig
from keepfit_clip.model.preprocess import resolve_preprocess
from keepfit_clip.model.pretrained import load_pretrained
from keepfit_clip.model.text_tower import with_text_tower
from keepfit_clip.page.provenance import date_and_time, provenance
from keepfit_clip.training.hybrid.logs import DEBUG_LOG, without_folders
from keepfit_clip.training.hybrid.loss_log import LOSSES_NAME
from keepfit_clip.training.hybrid.settings import HybridPretraining
from keepfit_clip.training.hybrid.upstream import world_info_from_env

__all__ = [
    "RECORD_NAME",
    "RESULTS_NAME",
    "SETTINGS_NAME",
    "begin_anew",
    "begin_record",
    "differing_settings",
    "end_record",
    "has_weights",
    "only_run_in",
    "prepare_run",
    "resolve_model_config",
    "write_settings",
]

SETTINGS_NAME = RUN_SETTINGS
RECORD_NAME = "record.jsonl"  # a line for each beginning and each end
RESULTS_NAME = "results.jsonl"  # of evaluations, beside the checkpoints
DATA_FLAGS = ("public_data", "elite_data", "val_data")
_LOCAL = "local-dir:"
_LOG_NAME = "out.log"  # of open_clip_train
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth")  # what open_clip looks for
_ORPHANS_LIVE = 10  # seconds; data workers notice only after a while that their process was killed


@contextmanager
def only_run_in(run: Path) -> Iterator[None]:
    """Keeps a second run out of a run folder while the block lasts, and removes what a killed one left half written.

    Raises:
        ConfigError: another run is at work there.
    """
    _, rank, _ = world_info_from_env()
    if rank != 0:
        yield
        return
    folder = WorkFolder(run, ".run.lock")
    busy = ConfigError(f"another run is at work in {run}: wait for it, or choose another --name")
    with folder.alone(busy, wait=_ORPHANS_LIVE):
        folder.remove_leftovers("checkpoints/*.partial", "checkpoints/tmp.pt")
        yield


def begin_anew(run: Path) -> None:
    """Takes away what an attempt left that ended before its first step, such as for data that are not there.

    Raises:
        ConfigError: the folder holds a run that learnt something.
    """
    if (run / LOSSES_NAME).exists() or any(path.is_file() for path in run.glob("checkpoints/*")):
        raise ConfigError(f"{run} holds a run already: go on with --resume latest, or choose another --name")
    if (run / _LOG_NAME).exists():
        if world_info_from_env()[2] == 1:  # else another rank may be reading it
            shutil.rmtree(run / RUN_MODEL, ignore_errors=True)
        for name in (_LOG_NAME, DEBUG_LOG, SETTINGS_NAME, RECORD_NAME, "params.txt"):
            (run / name).unlink(missing_ok=True)


def prepare_run(settings: HybridPretraining, upstream: argparse.Namespace) -> tuple[str, FolderConfig]:
    """Writes `RUN/model`, or checks that it is the same where the run goes on.

    Every rank may call this at once: a lock lets the first one write.

    Args:
        settings: ours.
        upstream: open_clip_train's parsed flags, of which the `force_*` and `image_*` ones change the config.

    Returns:
        The name to give to `open_clip.create_model`, and the folder's config.

    Raises:
        ConfigError: no KeepFIT model, or the run folder holds another config.
    """
    folder = settings.run / RUN_MODEL
    run = WorkFolder(settings.run, ".model.lock")
    with run.alone():
        run.remove_leftovers(f".{RUN_MODEL}.*.partial")
        tower = folder / "text_tower"
        if upstream.resume and tower.is_dir():
            settings = replace(settings, text_tower=str(tower))  # its own copy, wherever the flag points now
        wanted = resolve_model_config(settings, upstream)
        if settings.text_tower:  # the copy in the run folder
            wanted = replace(wanted, model=wanted.model.with_text(**dict.fromkeys(TEXT_SOURCES, str(tower.resolve()))))
        if not folder.exists():
            _write(folder, settings, wanted)
        stored = read_model_config(folder)
        # No flag chooses it: a run that was started before there was a choice goes on as it was.
        wanted = replace(wanted, model=wanted.model.with_revision(stored.model.keepfit.revision))
        resize_mode = stored.model.keepfit.preprocess.get("resize_mode")
        if resize_mode and upstream.image_resize_mode is None:
            wanted = replace(wanted, model=wanted.model.with_preprocess(resize_mode=resize_mode))
        differing = differing_settings(stored.model.to_dict(), wanted.model.to_dict())
        if differing:
            raise ConfigError(
                f"{folder.parent} was started with another model config ({', '.join(differing)}): "
                "go on with the same flags, or choose another --name"
            )
        if stored.model.text != wanted.model.text:  # the run folder was moved
            stored = replace(stored, model=wanted.model)
            write_config(folder, stored.model, stored.preprocess)
    weights_at_start = settings.pretrained or has_weights(settings.model)
    return (settings.model if weights_at_start else f"{_LOCAL}{folder}"), stored


def resolve_model_config(settings: HybridPretraining, upstream: argparse.Namespace) -> FolderConfig:
    """The model config and the preprocessing values that a run's flags ask for."""
    if settings.model.startswith(_LOCAL):
        stored = read_model_config(settings.model.removeprefix(_LOCAL))
    else:
        stored = FolderConfig(ModelConfig.named(settings.model), {})
    config = stored.model
    if settings.text_tower:
        if settings.pretrained or has_weights(settings.model):
            raise ConfigError("--text-tower would be overwritten by the weights the model starts from: drop one")
        config = with_text_tower(config, Path(settings.text_tower))
    if settings.random_text:
        config = config.with_text(hf_model_name="")
    if settings.without_decoder and not (settings.pretrained or has_weights(settings.model)):
        config = replace(config, decoder=None)
    elif config.decoder is None and settings.preset == "v2" and settings.caption_weight:
        raise ConfigError(
            f"--model {settings.model} has no caption decoder: choose --preset contrastive or v1, or a V2 model"
        )
    size = upstream.force_image_size
    if size:
        config = config.with_image_size(size[0] if len(size) == 1 else list(size))
    if upstream.force_context_length:
        config = config.with_text(context_length=upstream.force_context_length)
    if settings.crop:
        config = config.with_preprocess(crop=True)
    preprocess_cfg = resolve_preprocess(
        config,
        stored.preprocess,
        mean=upstream.image_mean,
        std=upstream.image_std,
        interpolation=upstream.image_interpolation,
        resize_mode=upstream.image_resize_mode,
    )
    # The values in force become the tower's own, so that an export means the same wherever it is loaded.
    own = {key: value for key, value in preprocess_cfg.items() if key not in ("size", "mode")}
    return FolderConfig(config.with_preprocess(**own), preprocess_cfg)


def _write(folder: Path, settings: HybridPretraining, config: FolderConfig) -> None:
    tower = Path(settings.text_tower) if settings.text_tower else None
    if tower is not None:
        tokenizer = load_pretrained(AutoTokenizer, tower)
    else:
        tokenizer = open_clip.get_tokenizer(settings.model)
    with new_folder(folder) as partial:
        write_model_folder(partial, config.model, config.preprocess, tokenizer, tower)


def has_weights(model: str) -> bool:
    """Whether a model name stands for trained weights."""
    if model.startswith(_LOCAL):
        folder = Path(model.removeprefix(_LOCAL))
        return any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern))
    return model.startswith("hf-hub:")


def write_settings(run: Path, flags: dict) -> None:
    """Keeps every flag of a run, ours and open_clip's, as `RUN/settings.json`, for reports.

    Of files and folders stand only the names there; of local shards also what their manifests count and
    a hash of them, and of weights that the run begins with what these were trained with.
    """
    plain = (str, int, float, bool, list, tuple, type(None))
    settings = {
        name: without_folders(value if isinstance(value, plain) else str(value))
        for name, value in sorted(flags.items())
    }
    data = {name: [_counts(location) for location in (flags.get(name) or "").split("::")] for name in DATA_FLAGS}
    before = _trained_before(flags.get("model") or "", flags.get("pretrained"))
    write_json(run / SETTINGS_NAME, {**settings, "manifests": data, "trained_before": before})


def _trained_before(model: str, pretrained: str | None) -> dict | str | None:
    """What the weights that a run begins with saw, as `record_of_run` takes it."""
    if not (pretrained or has_weights(model)):
        return None
    record = None if pretrained else record_of_model(model)
    return record.to_json() if record else "unknown"


def _counts(location: str) -> dict | None:
    """What a manifest counts, or None where none that can be read is at hand."""
    try:
        manifest = read_json(Path(location) / "manifest.json")
    except (OSError, ValueError):
        return None
    if not location or not isinstance(manifest, dict):
        return None
    counts = {name: manifest.get(name) for name in ("samples", "modalities", "categories")}
    return {**counts, "rejected": len(manifest.get("rejected", [])), "sha256": _hash_of_shards(manifest)}


def _hash_of_shards(manifest: dict) -> str | None:
    """One hash of all that the shards hold; None where the manifest does not tell the hash of each."""
    shards = manifest.get("shards")
    if not isinstance(shards, dict) or not all(isinstance(one, dict) and one.get("sha256") for one in shards.values()):
        return None
    lines = "".join(f"{name} {one['sha256']}\n" for name, one in sorted(shards.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def begin_record(run: Path, words: Sequence[str], goes_on: bool) -> None:
    """Writes down that an attempt at a run begins: when, with which versions, on what, by which command.

    Args:
        run: its folder.
        words: of the command line; of files and folders only the names are kept.
        goes_on: whether earlier attempts stay in the record.
    """
    file = run / RECORD_NAME
    before = file.read_text(encoding="utf-8", errors="replace") if goes_on and file.exists() else ""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    line = {"event": "begin", **provenance(), "command": [without_folders(part) for part in parts]}
    write_text(file, f"{before}{to_json(line)}\n")


def end_record(run: Path) -> None:
    """Writes down that the attempt came to its end."""
    with writing(run), open(run / RECORD_NAME, "a", encoding="utf-8") as file:
        file.write(to_json({"event": "end", "date": date_and_time()}) + "\n")


def differing_settings(stored: dict, wanted: dict, prefix: str = "") -> list[str]:
    """What differs between two dicts of settings, with both values; where weights once came from is nothing.

    Args:
        stored: what was.
        wanted: what is.
        prefix: goes before each dotted name.
    """
    differing = []
    for key in sorted({*stored, *wanted} - {*TEXT_SOURCES}):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            differing += differing_settings(old, new, f"{prefix}{key}.")
        elif json.dumps(old) != json.dumps(new):
            differing.append(f"{prefix}{key} was {json.dumps(old)} and is {json.dumps(new)}")
    return differing
