"""The image transform of a tower, from its preprocessing values."""

from collections.abc import Callable
from dataclasses import asdict

import open_clip
from open_clip.transform import PreprocessCfg
from PIL import Image
from torchvision.transforms import Compose

__all__ = ["default_preprocess", "letterbox", "resolve_preprocess"]


def default_preprocess() -> dict:
    """open_clip's preprocessing values where nobody chose any."""
    return asdict(PreprocessCfg())


def resolve_preprocess(model_cfg: dict, stored: dict | None = None, **chosen) -> dict:
    """The preprocessing values in force for a model config.

    Args:
        model_cfg: an open_clip model config of ours.
        stored: values saved beside it (`preprocess_cfg` of a model folder).
        **chosen: a user's own values; None means not chosen.
    """
    values = {**default_preprocess(), **model_cfg["keepfit_cfg"].get("preprocess", {}), **(stored or {})}
    values["size"] = model_cfg["vision_cfg"].get("image_size", values["size"])
    return {**values, **{key: value for key, value in chosen.items() if value is not None}}


def letterbox(preprocess_cfg: dict) -> Callable[[Image.Image], Image.Image]:
    """What open_clip's evaluation transform does to an image before it becomes a tensor: size, pad, RGB."""
    transform = open_clip.image_transform(
        preprocess_cfg["size"],
        is_train=False,
        resize_mode=preprocess_cfg["resize_mode"],
        interpolation=preprocess_cfg["interpolation"],
        fill_color=preprocess_cfg["fill_color"],
    )
    return Compose(transform.transforms[:-2])  # the last two make a tensor and normalise it
