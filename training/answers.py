"""Right and wrong answers of a model on labelled images, with heat maps, as a section of a page."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from keepfit_clip.evaluate.table import TableScores
from keepfit_clip.explain.maps import Explainer, heat_overlay
from keepfit_clip.extras import EXTRAS
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import FileSlice, Frame, image_bytes, open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.page.report import Card, Section, picture_uri
from keepfit_clip.remote.opening import RemoteFile

__all__ = ["ClassifiedImage", "answers_section", "classified_images"]

_OF_EACH = 4  # right and wrong answers that are shown


@dataclass(frozen=True)
class ClassifiedImage:
    """A zero-shot answer.

    Args:
        image: where it is.
        modality: of it, or None.
        truth, predicted: classes.
        probability: of the predicted one.
    """

    image: Path | FileSlice | Frame | RemoteFile | bytes
    modality: str | None
    truth: str
    predicted: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether it is right."""
        return self.truth == self.predicted


def classified_images(result: TableScores, modality: str | None = None) -> list[ClassifiedImage]:
    """The answers of `evaluate_table`, with a modality instead of what the table says."""
    return [
        ClassifiedImage(
            record.image,
            modality or record.modality,
            result.classes[label],
            result.classes[int(row.argmax())],
            float(row.max()),
        )
        for record, label, row in zip(result.records, result.labels, result.probabilities, strict=True)
    ]


def answers_section(
    loaded: LoadedModel,
    answers: Sequence[ClassifiedImage],
    classes: Sequence[str],
    knowledge: Knowledge | None = None,
    descriptions: bool = True,
) -> Section:
    """Some right and some wrong answers with heat maps.

    Args:
        loaded: the model.
        answers: of it.
        classes: all that it chose from.
        knowledge: names and findings of the classes.
        descriptions: as the answers were given.
    """
    with_grad_cam = EXTRAS["explain"].installed
    rng = random.Random(0)
    parts = [[answer for answer in answers if answer.right == right] for right in (True, False)]
    chosen = [answer for part in parts for answer in rng.sample(part, min(_OF_EACH, len(part)))]
    explainers: dict[str | None, Explainer] = {}
    cards = []
    for answer in chosen:
        if answer.modality not in explainers:
            explainers[answer.modality] = Explainer(loaded, classes, answer.modality, knowledge, descriptions)
        explanation = explainers[answer.modality](open_image(image_bytes(answer.image)), with_grad_cam)
        shown = [list(classes).index(name) for name in dict.fromkeys((answer.predicted, answer.truth))]
        picture, similarity = explanation.picture, explanation.similarity
        pictures = [picture, *(heat_overlay(picture, similarity[number]) for number in shown)]
        if explanation.grad_cam is not None:
            pictures.append(heat_overlay(picture, explanation.grad_cam[shown[0]]))
        facts = [("truth", answer.truth), ("predicted", f"{answer.predicted} ({answer.probability:.0%})")]
        written = [("written", explanation.caption)] if explanation.caption else []
        cards.append(Card(_strip(pictures), facts + written, answer.right))
    grad_cam = ", Grad-CAM of the class answered" if with_grad_cam else ""
    return Section(
        "Right and wrong answers, and where the model looked",
        f"Zero-shot: {len(parts[0])} right, {len(parts[1])} wrong; of each up to {_OF_EACH} chosen at random. From "
        f"left to right: the image, similarity with the class answered, with the true class where it is "
        f"another{grad_cam}. A red edge marks a wrong answer.",
        cards=cards,
    )


def _strip(pictures: Sequence[Image.Image]) -> str:
    """Pictures side by side as one data URI."""
    height = max(picture.height for picture in pictures)
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), height))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return picture_uri(strip)
