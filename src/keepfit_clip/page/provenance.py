"""How a result came to be: when, with which versions, on what hardware. Nothing names a machine or a person."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone

from keepfit_clip._version import __version__

__all__ = ["date_and_time", "hardware", "in_words", "provenance", "versions"]

_LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers", "numpy", "scikit-learn")


def provenance() -> dict:
    """{"date", "versions", "hardware"} of what is made now."""
    return {"date": date_and_time(), "versions": versions(), "hardware": hardware()}


def date_and_time() -> str:
    """Now, in UTC, as ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def in_words(versions: Mapping[str, str]) -> str:
    """Names and versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def versions() -> dict[str, str]:
    """Python, this library and those that figures depend on, where they are installed."""
    found = {"python": platform.python_version(), "keepfit-clip": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Processors and accelerators in a line."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    gpus = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join([f"{cores} CPU cores ({platform.machine()})", *gpus])
