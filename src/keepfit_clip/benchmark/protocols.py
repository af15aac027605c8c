"""Ways to measure: ours, and FLAIR's where its choices differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from keepfit_clip.errors import ConfigError
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.model.preprocess import image_transform

__all__ = ["PROTOCOLS", "Protocol", "protocol_named"]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark measures.

    Args:
        name: as it is asked for.
        cache_scale: see `keepfit_clip.transfer.protocol.TransferOptions`.
        ddof: what is taken off the number of folds in the standard deviation over them.
        preprocess: preprocessing values in place of each model's own.
        words: what differs, for the table.
    """

    name: str
    cache_scale: float | None = None
    ddof: int = 1
    preprocess: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    words: str = ""

    def image_transform(self, loaded: LoadedModel, crop: bool | None = None) -> Callable:
        """From a PIL image to the tensor (3, H, W) that a model takes, as this protocol resizes.

        Args:
            loaded: the model.
            crop: whether the black border of colour photographs is cut off; as the model was trained by default.
        """
        values = {**loaded.model.visual.preprocess, **self.preprocess}
        return image_transform(values if crop is None else {**values, "crop": crop})


# FLAIR's transfer code: Tip-Adapter's similarities times 100, numpy's std, images resized by their longer side.
PROTOCOLS = {
    one.name: one
    for one in (
        Protocol("ours", words="each model's own scale and resizing; ± is the standard deviation with n - 1"),
        Protocol(
            "flair",
            100.0,
            0,
            MappingProxyType({"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 0, "pad": "end"}),
            "FLAIR's choices: scale 100 in Tip-Adapter, bilinear resizing of the longer side, black at the bottom or "
            "right; ± is the standard deviation with n",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"--protocol {name}: {' or '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
