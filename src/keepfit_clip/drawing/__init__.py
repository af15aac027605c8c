"""A retina to practise on: drawn pictures of three modalities whose content is known exactly."""

from keepfit_clip.drawing.dataset import DrawOptions, draw_dataset
from keepfit_clip.drawing.retina import CONDITIONS, KINDS, DrawnRetina, draw_number, draw_retina

__all__ = ["CONDITIONS", "KINDS", "DrawOptions", "DrawnRetina", "draw_dataset", "draw_number", "draw_retina"]
