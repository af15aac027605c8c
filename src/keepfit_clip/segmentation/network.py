"""An image tower under the U-Net decoder of segmentation-models-pytorch (extra `segmentation`)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError, first_line
from keepfit_clip.model.image_tower import ImageTower

__all__ = ["SegmentationNetwork", "feature_pyramid", "set_input_size"]

_WIDTHS = (256, 128, 64, 32, 16)  # of the decoder's blocks, as in segmentation-models-pytorch's Unet
_LARGEST = 4096  # pixels
_STRIDES = (4, 8, 16, 32)  # to which maps of one size are brought


class SegmentationNetwork(nn.Module):
    """A tower, a decoder on its maps and a score for each class at each place.

    Args:
        tower: the image tower.
        classes: how many there are beside the background.
        frozen: the tower does not learn, and its batch statistics stay.

    Raises:
        ConfigError: the backbone does not give the maps of its layers.
    """

    def __init__(self, tower: ImageTower, classes: int, frozen: bool):
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        super().__init__()
        self.tower = tower.requires_grad_(not frozen).eval()
        self.frozen = frozen
        size = tower.image_size
        height, width = (size, size) if isinstance(size, int) else size
        with torch.no_grad():
            pixels = next(tower.parameters()).new_zeros(1, 3, height, width)
            channels = [part.shape[1] for part in feature_pyramid(tower, pixels)]
        self.decoder = UnetDecoder((3, *channels), _WIDTHS[-len(channels) :], n_blocks=len(channels))
        self.head = SegmentationHead(_WIDTHS[-1], classes + 1)
        initialize_decoder(self.decoder)
        initialize_head(self.head)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.image_mean, tower.image_std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.to(pixels.device)

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        """As torch has it, but for a frozen tower."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores (B, K + 1, h, w) before the softmax, of RGB pictures (B, h, w, 3) uint8 of the tower's input size."""
        pixels = (pictures.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pyramid = feature_pyramid(self.tower, pixels)
        return self.head(self.decoder([pixels, *pyramid]))


def set_input_size(tower: ImageTower, size: int) -> None:
    """Makes a tower take square images of another size: small lesions are lost where photographs are small.

    Args:
        tower: the image tower.
        size: pixels.

    Raises:
        ConfigError: its backbone takes no images of that size.
    """
    if not 32 <= size <= _LARGEST:
        raise ConfigError(f"--input-size {size}: it must be between 32 and {_LARGEST} pixels")
    try:
        tower.set_input_size(size)
        with torch.no_grad():
            feature_pyramid(tower, next(tower.parameters()).new_zeros(1, 3, size, size))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--input-size {size}: {type(tower.trunk).__name__} takes no such images ({first_line(error)[:120]})"
        ) from error


def feature_pyramid(tower: ImageTower, pixels: Tensor) -> list[Tensor]:
    """The maps (B, C, h, w) of a backbone's stages, fine ones first, at most five.

    A ViT's maps are all of one size: those after a quarter, a half, three quarters and all of its blocks are brought to
    strides of 4, 8, 16 and 32 pixels, the deepest to the coarsest, as in ViTDet (arXiv 2203.16527) but without weights.

    Args:
        tower: whose backbone it is.
        pixels: (B, 3, H, W).

    Raises:
        ConfigError: the backbone does not give them.
    """
    if not hasattr(tower.trunk, "forward_intermediates"):
        raise ConfigError(f"{type(tower.trunk).__name__} does not give the maps of its layers, which a decoder needs")
    maps = tower.trunk.forward_intermediates(pixels, output_fmt="NCHW", intermediates_only=True)
    if len({part.shape[-2:] for part in maps}) > 1 or len(maps) == 1:
        return maps[-len(_WIDTHS) :]
    height, width = pixels.shape[-2:]
    chosen = [maps[len(maps) * part // len(_STRIDES) - 1] for part in range(1, len(_STRIDES) + 1)]
    return [
        F.interpolate(
            part, size=(max(1, height // stride), max(1, width // stride)), mode="bilinear", align_corners=False
        )
        for part, stride in zip(chosen, _STRIDES, strict=True)
    ]
