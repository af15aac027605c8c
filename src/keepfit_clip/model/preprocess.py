"""The image transform of a tower, from its preprocessing values."""

from collections.abc import Callable
from dataclasses import asdict

import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose

from keepfit_clip.images.field_of_view import crop_colour
from keepfit_clip.model.config import ModelConfig

__all__ = ["default_preprocess", "of_open_clip", "preprocess_of", "resolve_preprocess", "to_input_size", "with_crop"]


def default_preprocess() -> dict:
    """open_clip's preprocessing values where nobody chose any."""
    return asdict(PreprocessCfg())


def resolve_preprocess(config: ModelConfig, stored: dict | None = None, **chosen) -> dict:
    """The preprocessing values in force for a model config: open_clip's, and `crop` where the border is cut off.

    Args:
        config: of the model.
        stored: values saved beside it (`preprocess_cfg` of a model folder).
        **chosen: a user's own values; None means not chosen.
    """
    chosen = {key: value for key, value in chosen.items() if value is not None}
    own = config.keepfit.preprocess
    return {**default_preprocess(), **own, **(stored or {}), "size": config.vision.image_size, **chosen}


def of_open_clip(preprocess_cfg: dict) -> dict:
    """Those of the values in force that open_clip knows."""
    return merge_preprocess_dict({}, preprocess_cfg)


def to_input_size(preprocess_cfg: dict) -> Callable[[Image.Image], Image.Image]:
    """What is done to an image before it becomes a tensor: the crop, then open_clip's way to the size, and RGB."""
    transform = open_clip.image_transform(
        preprocess_cfg["size"],
        is_train=False,
        resize_mode=preprocess_cfg["resize_mode"],
        interpolation=preprocess_cfg["interpolation"],
        fill_color=preprocess_cfg["fill_color"],
    )
    sized = Compose(transform.transforms[:-2])  # the last two make a tensor and normalise it
    return with_crop(sized, preprocess_cfg.get("crop", False))


def preprocess_of(model: nn.Module, crop: bool | None = None) -> Callable[[Image.Image], Tensor]:
    """From a PIL image to the tensor (3, H, W) that a model's image tower takes.

    Args:
        model: a KeepFIT, or another under its surface.
        crop: whether the black border of colour photographs is cut off; as the tower says by default.
    """
    values = PreprocessCfg(**model.visual.preprocess_cfg)
    return with_crop(image_transform_v2(values, is_train=False), model.visual.crop if crop is None else crop)


def with_crop(transform: Callable, crop: bool) -> Callable:
    """A transform of images, after the black border of colour photographs is cut off where that is asked for."""
    return Compose([crop_colour, transform]) if crop else transform
