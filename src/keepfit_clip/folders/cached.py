"""Which models lie in the caches of this machine, and load without a network or a conversion."""

from dataclasses import dataclass
from pathlib import Path

from keepfit_clip.files import cache_folder
from keepfit_clip.folders.model_folder import CONFIG_NAME

__all__ = ["CachedModel", "cached_models"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class CachedModel:
    """A model in a cache.

    Args:
        name: that loads it.
        what: it is: a converted checkpoint and its kind, or a repository of the hub.
        size: of its files, in bytes.
    """

    name: str
    what: str
    size: int


def cached_models() -> list[CachedModel]:
    """Converted checkpoints in this library's cache, then models of open_clip's form in the hub's, each by name."""
    return [*_converted(), *_of_the_hub()]


def _converted() -> list[CachedModel]:
    folders = sorted(path.parent for path in (cache_folder() / "models").glob(f"*/{CONFIG_NAME}"))
    return [
        CachedModel(str(path), f"converted: {path.name.rpartition('-')[0]}", _size_of(path))
        for path in folders
        if not path.name.startswith(".")  # is being written
    ]


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _of_the_hub() -> list[CachedModel]:
    """Repositories of which one revision has a config of open_clip and weights: a config alone loads nothing."""
    from huggingface_hub import constants, scan_cache_dir

    if not Path(constants.HF_HUB_CACHE).is_dir():
        return []
    found = []
    for repository in scan_cache_dir(constants.HF_HUB_CACHE).repos:
        files = [{file.file_name for file in revision.files} for revision in repository.revisions]
        whole = any(CONFIG_NAME in names and any(name.endswith(_WEIGHTS) for name in names) for names in files)
        if repository.repo_type == "model" and whole:
            found.append(CachedModel(f"hf-hub:{repository.repo_id}", "of the hub", repository.size_on_disk))
    return sorted(found, key=lambda model: model.name)
