"""The image transform of a tower, from its preprocessing values."""

from collections.abc import Callable
from dataclasses import asdict

import open_clip
from open_clip.transform import PreprocessCfg
from PIL import Image
from torchvision.transforms import Compose

from keepfit_clip.model.config import ModelConfig

__all__ = ["default_preprocess", "letterbox", "resolve_preprocess"]


def default_preprocess() -> dict:
    """open_clip's preprocessing values where nobody chose any."""
    return asdict(PreprocessCfg())


def resolve_preprocess(config: ModelConfig, stored: dict | None = None, **chosen) -> dict:
    """The preprocessing values in force for a model config.

    Args:
        config: of the model.
        stored: values saved beside it (`preprocess_cfg` of a model folder).
        **chosen: a user's own values; None means not chosen.
    """
    chosen = {key: value for key, value in chosen.items() if value is not None}
    own = config.keepfit.preprocess
    return {**default_preprocess(), **own, **(stored or {}), "size": config.vision.image_size, **chosen}


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
