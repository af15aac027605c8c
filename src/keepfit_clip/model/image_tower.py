"""The image tower: any timm backbone, giving one projected global feature and the token map for the decoder."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters
from timm.utils import freeze
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError, MissingWeightsError
from keepfit_clip.model.config import OWN_PREPROCESS_KEYS, ModelConfig, VisionConfig
from keepfit_clip.model.preprocess import image_transform
from keepfit_clip.model.pretrained import PYPI_PREFIX, resolve_source, unreachable
from keepfit_clip.model.state_dicts import Fit, fit_of

__all__ = ["ImageEncoding", "ImageTower", "backbone_values", "place_features", "with_backbone"]

_POSITION_DIM = 16
_NOT_BACKBONE = ("decoder_", "mask_token", "head.", "fc.", "classifier.")


class ImageTower(nn.Module):
    """A timm backbone, a linear projection to the joint space and the map of image tokens.

    Args:
        config: what backbone, at what size.
        embed_dim: width of the joint space; None for a tower on its own, whose features are the pooled ones.
        preprocess: the tower's own preprocessing values (mean, std, resize_mode, ...), each of which stands until a
            user asks for another one; with `crop` and `pad`, which open_clip does not know (`image_transform` does).
        default_preprocess: the values that arrive where nobody chose any; there the tower's own stand.

    Raises:
        ConfigError: timm does not know the backbone, or it gives neither a feature map nor tokens.
        MissingWeightsError: pretrained weights were asked for and are out of reach.
    """

    def __init__(self, config: VisionConfig, embed_dim: int | None, preprocess: dict, default_preprocess: dict):
        super().__init__()
        self.config = config
        self._own_preprocess, self._default_preprocess = dict(preprocess), dict(default_preprocess)
        taken = [key for key in OWN_PREPROCESS_KEYS if key in self._own_preprocess]
        self._not_of_open_clip = {key: self._own_preprocess.pop(key) for key in taken}
        self.preprocess_cfg = {"size": config.image_size}
        self.normalize_trunk = config.normalize_trunk
        self.trunk = _create_trunk(config)
        self._convolutional = _is_convolutional(self.trunk)
        if self._convolutional:  # a third faster on a CPU, and on a GPU in half precision
            self.trunk.to(memory_format=torch.channels_last)
        self.set_input_size(config.image_size)
        width: int = self.trunk.num_features
        self.token_dim = width + _POSITION_DIM
        pooled_dim: int = getattr(self.trunk, "head_hidden_size", None) or width  # MobileNets widen after pooling
        self.proj = nn.Identity()
        if embed_dim is not None:
            self.proj = nn.Linear(pooled_dim, embed_dim, bias=False)
            nn.init.normal_(self.proj.weight, std=pooled_dim**-0.5)
        self.register_load_state_dict_pre_hook(_resample_position_embedding)

    @property
    def preprocess_cfg(self) -> dict:
        """The values of open_clip's `PreprocessCfg` in force."""
        return self._preprocess_cfg

    @preprocess_cfg.setter
    def preprocess_cfg(self, values: dict) -> None:
        # create_model fills what nobody chose with OpenAI's defaults: there the tower's own value stands.
        default = self._default_preprocess
        chosen = {k: v for k, v in values.items() if k == "size" or _plain(v) != _plain(default.get(k))}
        self._preprocess_cfg = {**default, **self._own_preprocess, **chosen}
        self.image_mean, self.image_std = (self._preprocess_cfg.get(k) for k in ("mean", "std"))

    @property
    def preprocess(self) -> dict:
        """All values in force: open_clip's, and those that it does not know (`OWN_PREPROCESS_KEYS`)."""
        return {**self.preprocess_cfg, **self._not_of_open_clip}

    def image_transform(self, crop: bool | None = None, scale: int = 1) -> Callable[[Image.Image], Tensor]:
        """From a PIL image to the tensor (3, H, W) that the tower takes, with its crop and its padding.

        Args:
            crop: whether the black border of colour photographs is cut off; as the tower was trained by default.
            scale: so many times the tower's height and width, see `takes_any_size`.
        """
        values = self.preprocess if crop is None else {**self.preprocess, "crop": crop}
        size = values["size"]
        larger = size * scale if isinstance(size, int) else [side * scale for side in size]
        return image_transform({**values, "size": larger})

    def forward(self, image: Tensor) -> Tensor:
        """Global features (B, D), not normalised, of images (B, 3, H, W)."""
        return self.encode(image).features

    def encode(self, image: Tensor) -> "ImageEncoding":
        """What the tower tells of images (B, 3, H, W), normalised with its mean and std: one pass of the backbone."""
        return ImageEncoding(self, self.feature_map(image), tuple(image.shape[-2:]))

    def feature_map(self, image: Tensor) -> Tensor:
        """The backbone's last map of images (B, 3, H, W), which are brought to its dtype, as it gives it.

        Convolutions stay out of a CPU's autocast: there they are slower in bfloat16 than in float32.
        """
        image = image.to(next(self.trunk.parameters()).dtype)
        with torch.autocast("cpu", enabled=False) if self._convolutional and image.is_cpu else nullcontext():
            return self.trunk.forward_features(image)

    def pool(self, feature_map: Tensor) -> Tensor:
        """Pooled features (B, C) of the backbone's last map, as it gives it."""
        return self.trunk.forward_head(feature_map, pre_logits=True)

    def project(self, pooled: Tensor) -> Tensor:
        """Features (..., D) of the joint space, not normalised, of pooled ones (..., C)."""
        return self.proj(F.normalize(pooled, dim=-1) if self.normalize_trunk else pooled)

    def grid(self, feature_map: Tensor) -> Tensor:
        """A backbone's last map, or a map of the same form, as (B, h, w, C), without class and register tokens.

        Raises:
            ConfigError: the backbone does not tell its grid.
        """
        if feature_map.ndim == 4:
            return feature_map if self.channels_last else feature_map.permute(0, 2, 3, 1)
        height, width = self.token_grid
        if not height:
            raise ConfigError(f"{type(self.trunk).__name__} does not tell which place a token stands for")
        return feature_map[:, self.prefix_tokens :].unflatten(1, (height, width))

    @property
    def channels_last(self) -> bool:
        """Whether the backbone's maps are (B, h, w, C)."""
        return getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"

    @property
    def takes_any_size(self) -> bool:
        """Whether the backbone takes images of other sizes than its own: one without places that it has learnt."""
        return not hasattr(self.trunk, "set_input_size") and not hasattr(self.trunk, "patch_embed")

    @property
    def finer_layer(self) -> nn.Module | None:
        """The layer that ends the feature level before the last; None where timm does not tell it."""
        levels = getattr(self.trunk, "feature_info", None) or ()
        if len(levels) < 2 or (hasattr(self.trunk, "blocks") and hasattr(self.trunk, "num_prefix_tokens")):
            return None
        return self.trunk.get_submodule(levels[-2]["module"])

    @property
    def token_grid(self) -> tuple[int, int]:
        """Height and width of the grid that tokens stand for; 0 where the backbone does not tell it."""
        return getattr(getattr(self.trunk, "patch_embed", None), "grid_size", None) or (0, 0)

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens before those of places."""
        return getattr(self.trunk, "num_prefix_tokens", 0)

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Makes the backbone take images of `image_size` pixels (ViTs resample their position embedding)."""
        self.image_size = image_size
        if hasattr(self.trunk, "set_input_size"):
            self.trunk.set_input_size(img_size=image_size)

    def load_backbone(self, state: Mapping[str, Tensor], name: str | Path, partial: bool = False) -> tuple[int, Fit]:
        """Loads an encoder with timm's names into the backbone: RETFound's or another masked autoencoder's, or a ViT.

        Args:
            state: its tensors.
            name: where they come from, for the error.
            partial: take what fits and leave the rest of the backbone as it is.

        Returns:
            How many tensors of a decoder or a classifier were left out, and what did not fit.

        Raises:
            MissingWeightsError: they are not of this architecture; names what does not fit.
        """
        own = self.trunk.state_dict()
        kept = {key: value for key, value in state.items() if not key.startswith(_NOT_BACKBONE)}
        left_out = len(state) - len(kept)
        if "fc_norm.weight" in own and "norm.weight" in kept and "fc_norm.weight" not in kept:
            # timm's names where the norm comes after pooling; both stand between the last block and the projection
            kept |= {f"fc_norm.{part}": kept.pop(f"norm.{part}") for part in ("weight", "bias")}
        kept = {f"trunk.{key}": value for key, value in kept.items()}
        _resample_position_embedding(self, kept, "")
        kept = {key.removeprefix("trunk."): value for key, value in kept.items()}
        fit = fit_of(own, kept)
        if not fit and not partial:
            raise MissingWeightsError(f"{name} is no encoder for the image tower {type(self.trunk).__name__}: {fit}")
        self.trunk.load_state_dict(own | fit.of(kept))
        return left_out, fit

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the backbone's activations in the backward pass."""
        self.trunk.set_grad_checkpointing(enable)

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes the backbone (LiT, arXiv 2111.07991); the projection goes on learning.

        Args:
            unlocked_groups: leave this many of timm's last layer groups free.
            freeze_bn_stats: freeze the running statistics of frozen BatchNorms too.
        """
        groups = group_parameters(self.trunk, self.trunk.group_matcher())
        last_locked = max(groups) - unlocked_groups
        frozen = {name for group, names in groups.items() if group <= last_locked for name in names}
        for name, parameter in self.trunk.named_parameters():
            if name in frozen:
                parameter.requires_grad = False
        if freeze_bn_stats:
            modules = {name.rpartition(".")[0] for name in frozen}
            batch_norms = [n for n, m in self.trunk.named_modules() if n in modules and _is_batch_norm(m)]
            if batch_norms:
                freeze(self.trunk, batch_norms, include_bn_running_stats=True)


class ImageEncoding:
    """What one pass of a tower's backbone tells of images; each part is made when it is first asked for.

    Args:
        tower: whose backbone gave the map.
        feature_map: the backbone's last map, as it gives it.
        image_size: height and width of the images.
    """

    def __init__(self, tower: ImageTower, feature_map: Tensor, image_size: tuple[int, int]):
        self.tower, self.feature_map, self.image_size = tower, feature_map, image_size

    def __len__(self) -> int:
        return len(self.feature_map)

    @cached_property
    def pooled(self) -> Tensor:
        """(B, C), not normalised."""
        return self.tower.pool(self.feature_map)

    @cached_property
    def features(self) -> Tensor:
        """(B, D), the global features, projected and not normalised."""
        return self.tower.project(self.pooled)

    @cached_property
    def grid(self) -> Tensor:
        """(B, h, w, C), the map without class and register tokens.

        Raises:
            ConfigError: the backbone does not tell its grid.
        """
        return self.tower.grid(self.feature_map)

    @cached_property
    def tokens(self) -> Tensor:
        """(B, N, C + 16), the cells of the map, each ending in where it lies (`place_features`; zeros where a backbone
        does not tell its grid).

        Raises:
            ConfigError: the backbone gives neither a map nor tokens.
        """
        feature_map = self.feature_map
        if feature_map.ndim == 3:  # (B, prefix + N, C): class and register tokens are no place in the image
            tokens = feature_map[:, self.tower.prefix_tokens :]
            height, width = self.tower.token_grid
        elif feature_map.ndim == 4:
            height, width = self.grid.shape[1:3]
            tokens = self.grid.flatten(1, 2)
        else:
            raise ConfigError(f"{type(self.tower.trunk).__name__} gives neither a feature map nor tokens")
        batch, count, _ = tokens.shape
        positions = tokens.new_zeros(count, _POSITION_DIM)
        if height * width == count:
            positions = place_features(height, width).flatten(0, 1).to(tokens)
        return torch.cat([tokens, positions.expand(batch, -1, -1)], dim=2)

    @cached_property
    def local_features(self) -> Tensor:
        """(B, h, w, D), what each place would give if it were the whole image: projected, not normalised.

        Where the backbone averages over the map, their mean is the image's own.

        Raises:
            ConfigError: the backbone does not tell its grid.
        """
        batch, height, width, channels = self.grid.shape
        flat = self.grid.reshape(-1, channels)
        if hasattr(self.tower.trunk, "num_prefix_tokens"):  # where a class token is pooled, the place stands for it
            head_input = flat[:, None].expand(-1, self.tower.prefix_tokens + 1, -1)
        elif self.tower.channels_last:
            head_input = flat[:, None, None]
        else:
            head_input = flat[:, :, None, None]
        return self.tower.project(self.tower.pool(head_input)).view(batch, height, width, -1)


def place_features(height: int, width: int) -> Tensor:
    """Where each cell of a map lies in the image: sines and cosines of x and y, (height, width, 16), whatever its size.

    The lowest frequency goes through half a turn over the image, each further one through twice as much.
    """
    turns = torch.pi * 2.0 ** torch.arange(_POSITION_DIM // 4)  # (F,)
    waves = []
    for cells in (height, width):
        angles = ((torch.arange(cells) + 0.5) / cells)[:, None] * turns  # (cells, F)
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    down, across = waves
    return torch.cat([down[:, None].expand(-1, width, -1), across[None].expand(height, -1, -1)], dim=2)


def backbone_values(name: str) -> tuple[int, dict]:
    """What timm knows of a backbone: the side of its input in pixels, and its preprocessing values.

    Raises:
        ConfigError: timm has no such backbone.
    """
    base, _, tag = name.partition(".")
    known = None
    if timm.is_model(base):
        known = timm.get_pretrained_cfg(base, allow_unregistered=False) if not tag else timm.get_pretrained_cfg(name)
    if known is None:
        raise ConfigError(f"timm has no backbone {name!r} (see timm.list_models() and timm.list_pretrained())")
    interpolation = known.interpolation if known.interpolation in ("bicubic", "bilinear") else "bicubic"
    values = {"mean": list(known.mean), "std": list(known.std), "interpolation": interpolation, "resize_mode": "squash"}
    return known.input_size[-1], values


def with_backbone(config: ModelConfig, name: str) -> ModelConfig:
    """A model config whose image tower is another backbone, with the size and normalisation timm knows for it.

    Raises:
        ConfigError: timm has no such backbone.
    """
    size, values = backbone_values(name)
    vision = VisionConfig(timm_model_name=name, image_size=size)
    return replace(config, vision=vision).with_preprocess(mean=values["mean"], std=values["std"])


def _plain(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _is_convolutional(trunk: nn.Module) -> bool:
    """Whether most of a backbone's weights are those of convolutions."""
    in_convolutions = sum(m.weight.numel() for m in trunk.modules() if isinstance(m, nn.Conv2d))
    return 2 * in_convolutions > sum(p.numel() for p in trunk.parameters())


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _create_trunk(config: VisionConfig) -> nn.Module:
    """The backbone without a classifier, with pretrained weights where the config asks for them."""
    options = {"num_classes": 0}
    if config.timm_pool:
        options["global_pool"] = config.timm_pool
    if config.norm_before_pool:
        options["fc_norm"] = False
    if config.patch_dropout:
        options["patch_drop_rate"] = config.patch_dropout
    from_wheel = config.pretrained_weights.startswith(PYPI_PREFIX)
    from_hub = config.timm_model_pretrained and not from_wheel
    try:
        trunk = timm.create_model(config.timm_model_name, pretrained=from_hub, **options)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"timm cannot build {config.timm_model_name!r}: {error}") from error
    except OSError as error:
        raise unreachable(config.timm_model_name, error, part="image") from error
    if config.timm_model_pretrained and from_wheel:
        _load_in_order(trunk, resolve_source(config.pretrained_weights))
    return trunk


def _load_in_order(trunk: nn.Module, path: str) -> None:
    """Loads a checkpoint of the same tensors in the same order under other names, its classifier left out.

    Raises:
        MissingWeightsError: a tensor's shape is not the one that stands at its place.
    """
    source = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = trunk.state_dict()
    source = source[: len(own)]  # the classifier comes last
    shapes = [tuple(t.shape) for t in source]
    if shapes != [tuple(t.shape) for t in own.values()]:
        raise MissingWeightsError(f"{path} does not hold the tensors of {type(trunk).__name__}")
    trunk.load_state_dict(dict(zip(own, source, strict=True)))


def _resample_position_embedding(tower: ImageTower, state_dict: dict, prefix: str, *_) -> None:
    """Lets a ViT checkpoint of one image size load into a tower of another (open_clip's force_image_size)."""
    key = f"{prefix}trunk.pos_embed"
    own = getattr(tower.trunk, "pos_embed", None)
    stored = state_dict.get(key)
    if own is None or stored is None or stored.ndim != 3 or stored.shape[1] == own.shape[1]:
        return
    prefix_tokens = 0 if getattr(tower.trunk, "no_embed_class", False) else tower.trunk.num_prefix_tokens
    state_dict[key] = resample_abs_pos_embed(
        stored, new_size=list(tower.trunk.patch_embed.grid_size), num_prefix_tokens=prefix_tokens
    )
