"""The image transform of a tower, from its preprocessing values: open_clip's, and what only this library knows."""

from collections.abc import Callable
from dataclasses import asdict

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode
from torchvision.transforms.functional import get_image_size, resize

from keepfit_clip.images.field_of_view import crop_colour
from keepfit_clip.model.config import PADDED_AT_END, ModelConfig

__all__ = [
    "default_preprocess",
    "fitted_size",
    "image_transform",
    "is_padded_at_end",
    "of_open_clip",
    "resolve_preprocess",
    "to_input_size",
    "to_levels",
]


def default_preprocess() -> dict:
    """open_clip's preprocessing values where nobody chose any."""
    return asdict(PreprocessCfg())


def resolve_preprocess(config: ModelConfig, stored: dict | None = None, **chosen) -> dict:
    """The preprocessing values in force for a model config: open_clip's, and `crop` and `pad` where the tower has them.

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


def image_transform(preprocess_cfg: dict) -> Callable[[Image.Image], Tensor]:
    """From a PIL image to the tensor (3, H, W) that the tower takes, for use; training has its own faster way."""
    mean_and_std = {name: preprocess_cfg[name] for name in ("mean", "std")}
    transform = open_clip.image_transform(preprocess_cfg["size"], is_train=False, **mean_and_std)
    to_tensor, normalise = transform.transforms[-2:]
    if is_padded_at_end(preprocess_cfg):  # as there: made a tensor first, whose values are not rounded again
        steps = [_to_rgb, to_tensor, _PadAtEnd(preprocess_cfg)]
        return Compose([*([crop_colour] if preprocess_cfg.get("crop", False) else []), *steps, normalise])
    return Compose([to_input_size(preprocess_cfg), to_tensor, normalise])


def to_input_size(preprocess_cfg: dict) -> Callable[[Image.Image], Image.Image]:
    """What is done to an image of a training batch before it becomes a tensor: the crop, the way to the size, RGB."""
    if is_padded_at_end(preprocess_cfg):
        steps = [_to_rgb, _PadAtEnd(preprocess_cfg)]
    else:
        transform = open_clip.image_transform(
            preprocess_cfg["size"],
            is_train=False,
            resize_mode=preprocess_cfg["resize_mode"],
            interpolation=preprocess_cfg["interpolation"],
            fill_color=preprocess_cfg["fill_color"],
        )
        steps = transform.transforms[:-2]  # the last two make a tensor and normalise it
    return Compose([crop_colour, *steps] if preprocess_cfg.get("crop", False) else steps)


def to_levels(preprocess_cfg: dict, images: Tensor) -> Tensor:
    """The levels from 0 to 1 of preprocessed images (..., 3, H, W), as they were before they were normalised."""
    mean, std = (torch.tensor(preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (images.cpu().float() * std + mean).clamp(0, 1)


def is_padded_at_end(preprocess_cfg: dict) -> bool:
    """Whether the border of a framed image is at the bottom or the right alone (`pad`), and not on both sides."""
    return preprocess_cfg["resize_mode"] == "longest" and preprocess_cfg.get("pad") == PADDED_AT_END


def fitted_size(height: int, width: int, target: tuple[int, int], at_end: bool) -> tuple[int, int]:
    """Height and width of an image that is fitted into a target, its proportions kept.

    Args:
        height, width: of the image.
        target: height and width to fit into.
        at_end: round down, as FLAIR does, which pads at the end; else to the nearest.
    """
    ratio = max(height / target[0], width / target[1])
    brought = int if at_end else round
    return max(1, brought(height / ratio)), max(1, brought(width / ratio))


class _PadAtEnd:
    """Fits an image into the size and fills the bottom or the right, as FLAIR and KeepFIT v1 do.

    FLAIR resizes a float tensor with torchvision's antialiased bilinear filter (github.com/jusiro/FLAIR,
    flair/modeling/model.py: `preprocess_image`; the same in flair/pretraining/data/transforms.py: `ImageScaling`).
    An image becomes an image, whose levels are rounded, and a tensor (3, h, w) from 0 to 1 a tensor.
    """

    def __init__(self, preprocess_cfg: dict):
        size, fill = preprocess_cfg["size"], preprocess_cfg["fill_color"]
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.fill = (fill,) * 3 if isinstance(fill, int) else tuple(fill)
        bilinear = preprocess_cfg["interpolation"] == "bilinear"
        self.interpolation = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC

    def __call__(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        width, height = get_image_size(image)
        fitted = fitted_size(height, width, (self.height, self.width), at_end=True)
        resized = resize(image, fitted, self.interpolation, antialias=True)
        if isinstance(image, Image.Image):
            framed = Image.new("RGB", (self.width, self.height), self.fill)
            framed.paste(resized, (0, 0))
        else:
            framed = (image.new_tensor(self.fill) / 255)[:, None, None].repeat(1, self.height, self.width)
            framed[:, : fitted[0], : fitted[1]] = resized
        return framed


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
