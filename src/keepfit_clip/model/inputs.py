"""What people hand to a model in Python, as a batch: pictures, paths, arrays, tensors, and lists of them."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from keepfit_clip.errors import ImageError
from keepfit_clip.images.depth import to_8_bit
from keepfit_clip.images.reading import as_rgb, open_image

__all__ = ["batch_of", "picture_of"]

_FORMS = "a PIL image, a path, an array (H, W) or (H, W, 3), or a preprocessed tensor"


def batch_of(images: Any, preprocess: Callable) -> tuple[Tensor, bool]:
    """Preprocessed images, and whether a single one was given.

    Args:
        images: what `picture_of` takes, a tensor (3, H, W) of floats that is preprocessed already, or a list of
            such; also tensors (B, 3, H, W) and arrays (B, H, W, 3) of many.
        preprocess: from a PIL image to a tensor (3, H, W).

    Returns:
        (B, 3, H, W) float, and True where `images` was no list.

    Raises:
        ImageError: one of them is none of these, or cannot be read.
    """
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4:
        images = list(images)
    single = not _is_list(images)
    members = [images] if single else list(images)
    if not members:
        raise ImageError("the images", "there are none: the list is empty")
    batch = [_prepared(image, number, preprocess) for number, image in enumerate(members, start=1)]
    sizes = {tuple(image.shape) for image in batch}
    if len(sizes) > 1:
        raise ImageError("the images", f"preprocessed tensors of different sizes: {sorted(sizes)}")
    return torch.stack(batch), single


def picture_of(image: Any, name: str = "the image") -> Image.Image:
    """An image as upright RGB.

    Args:
        image: a PIL image, a path, or an array (H, W) or (H, W, 3): of whole numbers, or of floats from 0 to 1.
        name: what to call it in the error.

    Raises:
        ImageError: it is none of these, or cannot be read.
    """
    if isinstance(image, Image.Image):
        return as_rgb(image)
    if isinstance(image, (str, PathLike)):
        return open_image(Path(image), blank=False)
    if isinstance(image, np.ndarray):
        return _picture_of_array(image, name)
    raise ImageError(name, f"of type {type(image).__name__}, which is none of: {_FORMS}")


def _picture_of_array(values: np.ndarray, name: str) -> Image.Image:
    of_floats = values.dtype.kind == "f"
    shaped = values.size and (values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3))
    outside = shaped and of_floats and not (values.min() >= 0 and values.max() <= 1)  # true of NaN too
    if not shaped or values.dtype.kind not in "uif" or outside:
        raise ImageError(
            name,
            f"an array of {values.dtype} and shape {values.shape}: give (H, W) or (H, W, 3) of whole numbers, or of "
            "floats from 0 to 1",
        )
    if of_floats:
        values = (255 * values + 0.5).astype(np.uint8)
    return Image.fromarray(values if values.dtype == np.uint8 else to_8_bit(values)).convert("RGB")


def _prepared(image: Any, number: int, preprocess: Callable) -> Tensor:
    if not isinstance(image, Tensor):
        return preprocess(picture_of(image, f"image {number}"))
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ImageError(
            f"image {number}",
            f"a tensor of {image.dtype} and shape {tuple(image.shape)}: tensors are preprocessed images (3, H, W) of "
            "floats; give pictures as PIL images or arrays",
        )
    return image


def _is_list(images: Any) -> bool:
    if isinstance(images, (str, PathLike, Image.Image, Tensor, np.ndarray)):
        return False
    return isinstance(images, Sequence) or hasattr(images, "__iter__")
