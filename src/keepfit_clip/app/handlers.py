"""What happens on the page: from what was uploaded, chosen or asked to what is shown."""

import base64
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from keepfit_clip.app.service import MAX_IMAGES, MAX_PIXELS, ImageAnswer, Service
from keepfit_clip.app.uploads import give_memory_back
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import KeepFITError
from keepfit_clip.images.reading import open_image
from keepfit_clip.page.report import picture_uri

__all__ = ["EXAMPLES", "GUESS", "Handlers", "example_picture"]

EXAMPLES = (
    ("CFP", "normal"), ("CFP", "branch retinal vein occlusion"), ("CFP", "glaucoma"),
    ("FFA", "macular edema"), ("OCT", "macular hole"),
)  # fmt: skip
GUESS = "guess"  # in place of a modality
_SHOWN = 512  # longest side of a picture on the page
_GONE = "The images are no longer in memory: upload them again."


class Handlers:
    """What happens on the page; every handler answers bad input with a sentence on it."""

    def __init__(self, service: Service, uploads: Path):
        self.service, self.uploads = service, uploads.resolve()

    def uploaded(self, files: Sequence[str] | None, modality: str, categories: list[str], kind: str):
        """Reads the files into memory, one after the other, and removes them."""
        paths, images, problems = [Path(file) for file in files or ()], [], []
        try:
            for number, path in enumerate(paths[:MAX_IMAGES], start=1):
                self._keep(paths[number - 1 :])
                try:
                    images.append(self.service.look(open_image(path.read_bytes(), max_pixels=MAX_PIXELS, blank=False)))
                except OSError:
                    problems.append(f"File {number}: it did not arrive; upload it again.")
                except KeepFITError as error:
                    problems.append(f"File {number}: {getattr(error, 'reason', error)}.")
            if len(paths) > MAX_IMAGES:
                problems.append(f"{len(paths)} files: only the first {MAX_IMAGES} were looked at.")
        finally:
            self._remove(paths)
            give_memory_back()
        return self._shown(images, problems, modality, categories, kind)

    def _keep(self, paths: Sequence[Path]) -> None:
        """Says that files are waited for, so that they are not taken for left behind while others are looked at."""
        for path in paths:
            with suppress(OSError):
                if path.resolve().is_relative_to(self.uploads):
                    os.utime(path)

    def _remove(self, paths: Sequence[Path]) -> None:
        """Removes uploads; a file of the page's own, which anybody can name as an upload, stays."""
        for path in paths:
            if path.resolve().is_relative_to(self.uploads):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # Gradio's folder of the same content, maybe in use
                    path.parent.rmdir()

    def example(self, number: int, modality: str, categories: list[str], kind: str):
        """Looks at a drawn example."""
        return self._shown([self.service.look(example_picture(number))], [], modality, categories, kind)

    def asked_anew(self, images: list[ImageAnswer], modality: str, categories: list[str], kind: str, number, target):
        """Other categories or another modality for the same images."""
        problems = [_GONE] if number and not images else []
        results = self._results(images, problems, modality, categories)
        return results, *self.map_chosen(images, modality, categories, kind, number, target)

    def map_chosen(self, images: list[ImageAnswer], modality: str, categories: list[str], kind: str, number, target):
        """Another kind of map or another image: other targets to choose from."""
        import gradio as gr

        choices = _named(categories)
        if kind == "attention":
            image = _numbered(images, number)
            choices = self.service.words(image) if image else []
        chosen = target if target in choices else choices[0] if choices else None
        heat = self.heat(images, modality, categories, kind, number, chosen)
        return gr.update(choices=choices, value=chosen), heat

    def heat(self, images: list[ImageAnswer], modality: str, categories: list[str], kind: str, number, target) -> str:
        """The heat map of a category or a word."""
        if number and not images:
            return _render([], [_GONE], "")
        image = _numbered(images, number)
        if image is None or not target:
            return ""
        try:
            overlay = self.service.heat(image, kind, target, _named(categories), _given(modality))
        except KeepFITError as error:
            return _render([], [str(error)], "")
        return f'<img src="{picture_uri(overlay, longest=_SHOWN)}" alt="heat map">'

    def _shown(self, images: list[ImageAnswer], problems: list[str], modality: str, categories: list[str], kind: str):
        import gradio as gr

        numbers = [str(n) for n in range(1, len(images) + 1)]
        first = numbers[0] if numbers else None
        target, heat = self.map_chosen(images, modality, categories, kind, first, None)
        results = self._results(images, problems, modality, categories)
        return images, None, results, gr.update(choices=numbers, value=first), target, heat

    def _results(self, images: list[ImageAnswer], problems: list[str], modality: str, categories: list[str]) -> str:
        cards, given = [], _given(modality)
        try:
            answers = [self.service.answer(image, _named(categories), given) for image in images]
            table = self.service.table(images, _named(categories), given) if images else ""
        except KeepFITError as error:
            return _render([], [*problems, str(error)], "")
        for image, answer in zip(images, answers, strict=True):
            cards.append(
                {
                    "picture": picture_uri(image.image, longest=_SHOWN),
                    "modality": answer.modality,
                    "guessed": given is None,
                    "sureness": image.sureness,
                    "probabilities": list(answer.probabilities.items()),
                    "caption": image.explanation.caption if image.explanation else None,
                    "nearest": image.nearest,
                    "heads": {name: list(answers.items()) for name, answers in image.heads.items()},
                }
            )
        return _render(cards, problems, table)


def _numbered(images: list[ImageAnswer], number: str | None) -> ImageAnswer | None:
    """The image that a number on the page stands for, if it is one."""
    return dict(zip(map(str, range(1, len(images) + 1)), images, strict=True)).get(number)


def _named(categories: Sequence[str]) -> tuple[str, ...]:
    """The categories without empty ones that somebody wrote."""
    return tuple(name for name in (category.strip() for category in categories) if name)


def _given(modality: str) -> str | None:
    return None if modality == GUESS else modality


def _render(cards: list[dict], problems: list[str], table: str) -> str:
    uri = f"data:text/csv;base64,{base64.b64encode(table.encode()).decode()}" if table else ""
    return _template().render(cards=cards, problems=problems, csv=uri)


@lru_cache(maxsize=1)
def _template():
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("results.html.j2")


def example_picture(number: int) -> Image.Image:
    """One of the drawn examples."""
    modality, condition = EXAMPLES[number]
    return draw_retina(modality, condition, [2026, number], 256).image
