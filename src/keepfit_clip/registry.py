"""Makes open_clip know the KeepFIT models. The only file of the library that touches open_clip's internals.

Three seams of `open_clip.factory`, checked at import:

- `add_model_config` reads our folder of JSON configs;
- `CoCa`, the class built for a config with `multimodal_cfg`, becomes a function that builds `KeepFIT` when the
  config carries `keepfit_cfg`, and the original class otherwise;
- `HFTokenizer` becomes a function that resolves our tokenizer names ('pypi:...') and turns an unreachable hub into
  one line, when the config says `"tokenizer_mode": "keepfit"`, and is the original class otherwise.
"""

from dataclasses import asdict
from pathlib import Path

import open_clip
from open_clip import factory
from open_clip.transform import PreprocessCfg

from keepfit_clip import model_configs
from keepfit_clip.errors import ConfigError

__all__ = ["CONFIG_MARKER", "default_preprocess", "is_keepfit_config", "list_keepfit_models", "register"]

CONFIG_MARKER = "keepfit_cfg"
_TOKENIZER_MARKER = "keepfit"
_SEAMS = ("CoCa", "HFTokenizer", "add_model_config", "get_model_config", "_MODEL_CONFIG_PATHS")


def is_keepfit_config(model_cfg: dict | None) -> bool:
    """Whether an open_clip model config builds a KeepFIT model."""
    return bool(model_cfg) and CONFIG_MARKER in model_cfg


def list_keepfit_models() -> list[str]:
    """Names that `open_clip.create_model` builds as KeepFIT, sorted."""
    return [name for name in open_clip.list_models() if is_keepfit_config(factory.get_model_config(name))]


def default_preprocess() -> dict:
    """open_clip's preprocessing values where nobody chose any."""
    return asdict(PreprocessCfg())


def register() -> None:
    """Registers configs and classes with open_clip; calling it again changes nothing.

    Raises:
        ConfigError: the installed open_clip lacks a seam this library builds on.
    """
    missing = [name for name in _SEAMS if not hasattr(factory, name)]
    if missing:
        raise ConfigError(
            f"open_clip {open_clip.__version__} has no factory.{', factory.'.join(missing)}; "
            "keepfit_clip works with open_clip_torch 3.3: pip install 'open_clip_torch>=3.3,<4'"
        )
    folder = Path(model_configs.__file__).parent
    if folder not in factory._MODEL_CONFIG_PATHS:
        open_clip.add_model_config(folder)
    for name, make_wrapper in (("CoCa", _wrap_coca), ("HFTokenizer", _wrap_tokenizer)):
        current = getattr(factory, name)
        if not hasattr(current, "keepfit_original"):
            wrapper = make_wrapper(current)
            wrapper.__name__, wrapper.keepfit_original = name, current
            setattr(factory, name, wrapper)


def _wrap_coca(original):
    def build(**model_cfg):
        if not is_keepfit_config(model_cfg):
            return original(**model_cfg)
        from keepfit_clip.model import KeepFIT  # transformers and timm load only when a model is built

        return KeepFIT(default_preprocess=default_preprocess(), **model_cfg)

    return build


def _wrap_tokenizer(original):
    def build(tokenizer_name, *args, tokenizer_mode=None, **kwargs):
        if tokenizer_mode != _TOKENIZER_MARKER:
            return original(tokenizer_name, *args, tokenizer_mode=tokenizer_mode, **kwargs)
        from keepfit_clip.weights import resolve_source, unreachable

        source = resolve_source(str(tokenizer_name))
        try:
            return original(source, *args, **kwargs)
        except (OSError, ValueError) as error:
            raise unreachable(str(tokenizer_name), error) from error

    return build
