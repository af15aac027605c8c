"""What a drawn picture holds: the record that painters fill in, and the caption that says it."""

from dataclasses import dataclass, field

import numpy as np

__all__ = ["LESIONS", "Content", "describe"]

# What is counted in captions: plural -> singular.
LESIONS = {
    "microaneurysms": "microaneurysm",
    "hemorrhages": "hemorrhage",
    "flame hemorrhages": "flame hemorrhage",
    "hard exudates": "hard exudate",
    "cotton-wool spots": "cotton-wool spot",
    "drusen": "druse",
    "patches of chorioretinal atrophy": "patch of chorioretinal atrophy",
    "unfilled areas": "unfilled area",
    "focal leaks": "focal leak",
    "ink-blot leaks": "ink-blot leak",
    "intraretinal cysts": "intraretinal cyst",
}


@dataclass
class Content:
    """The content of one picture of a right eye.

    Args:
        condition: canonical name.
        severity: the grade that goes before the condition in the caption, or "".
        place: where lesions are: "in the superonasal quadrant", "nasal to the fovea"; "" where that says nothing.
        lesions: one of LESIONS -> how many there are.
        remarks: further phrases about what can be seen.
        masks: kind of lesion -> where it is, (size, size) bool. Not everything that is masked is counted.
        also: what is seen of another condition of the same eye.
    """

    condition: str
    severity: str = ""
    place: str = ""
    lesions: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    also: "Content | None" = None

    def mark(self, lesion: str, count: int, alpha: np.ndarray, threshold: float = 0.3) -> None:
        """Notes the lesions of one kind and where they are."""
        if count:
            self.lesions[lesion] = count
            self.masks[lesion] = alpha > threshold


def describe(content: Content) -> str:
    """The conditions and everything seen of them, as they stand in a caption behind "... of the left eye:"."""
    name = "normal retina" if content.condition == "normal" else content.condition
    lesions = [f"{n} {lesion if n > 1 else LESIONS[lesion]}" for lesion, n in content.lesions.items()]
    if content.place:
        parts = [f"{_listed(lesions)} {content.place}"] if lesions else []
        remarks = content.remarks if lesions else [f"{content.remarks[0]} {content.place}", *content.remarks[1:]]
    else:
        parts, remarks = lesions, content.remarks
    text = f"{content.severity} {name} with {_listed([*parts, *remarks])}".strip()
    return f"{text}; {describe(content.also)}" if content.also else text


def _listed(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
