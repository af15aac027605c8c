"""What happens on the page: from what was uploaded, chosen or asked to what is shown."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from keepfit_clip.app.maps import bar_colours
from keepfit_clip.app.service import MAX_IMAGES, MAX_PIXELS, Answer, ImageAnswer, Service
from keepfit_clip.app.table import Batch, Row, as_csv
from keepfit_clip.app.uploads import Uploads, give_memory_back
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import KeepFITError
from keepfit_clip.knowledge.conditions import MODALITIES
from keepfit_clip.page.report import picture_uri
from keepfit_clip.page.templates import template

__all__ = ["EXAMPLES", "GUESS", "MAX_FOLDER", "Asked", "Handlers", "example_buttons"]

EXAMPLES = (
    ("CFP", "normal"), ("CFP", "branch retinal vein occlusion"), ("CFP", "glaucoma"),
    ("FFA", "macular edema"), ("OCT", "macular hole"),
)  # fmt: skip
GUESS = "guess"  # in place of a modality
MAX_FOLDER = 1000  # images of a folder
_SHOWN = 512  # longest side of a picture on the page
_ROWS_SHOWN = 100  # of a folder's table
_EACH = 20  # images after which a long table is shown anew
_GONE = "The images are no longer in memory: upload them again."


@dataclass(frozen=True)
class Asked:
    """What the controls of the page say, in their order there.

    Args:
        modality: of all images, or `GUESS`.
        categories: names.
        heads: names of those that are asked.
        kind: of map.
        number: of the image whose map is shown, as text, or None.
        target: the category or word whose map is shown, or None.
        every_word: whether function words can be chosen.
        one, two: numbers of the images to compare, as text, or None.
    """

    modality: str = GUESS
    categories: Sequence[str] = ()
    heads: Sequence[str] = ()
    kind: str = "similarity"
    number: str | None = None
    target: str | None = None
    every_word: bool = False
    one: str | None = None
    two: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The categories without empty ones that somebody wrote."""
        return tuple(name for name in (category.strip() for category in self.categories) if name)

    @property
    def of_all(self) -> str | None:
        """The modality of all images; None where it is to be guessed."""
        return None if self.modality == GUESS else self.modality


class Handlers:
    """What happens on the page; every handler answers bad input with a sentence on it."""

    def __init__(self, service: Service, uploads: Path):
        self.service, self.uploads = service, Uploads(uploads, MAX_PIXELS)

    def uploaded(self, files: Sequence[str] | None, asked: Asked):
        """Reads the files into memory, one after the other, and removes them."""
        paths, images, problems = [Path(file) for file in files or ()], [], []
        try:
            for number, path in enumerate(paths[:MAX_IMAGES], start=1):
                self.uploads.keep(paths[number - 1 :])
                try:
                    image, told = self.uploads.read(path)
                    images.append(self.service.look(image, path.name, told))
                except KeepFITError as error:
                    problems.append(f"File {number}, {path.name}: {getattr(error, 'reason', error)}.")
            if len(paths) > MAX_IMAGES:
                problems.append(
                    f"{len(paths)} files: only the first {MAX_IMAGES} were looked at; a folder gives a table of all."
                )
        finally:
            self.uploads.remove(paths)
            give_memory_back()
        return self._shown(images, problems, asked)

    def example(self, number: str, asked: Asked):
        """Looks at a drawn example."""
        images = [self.service.look(_example_picture(place)) for place in range(len(EXAMPLES)) if str(place) == number]
        return self._shown(images, [], asked)

    def asked_anew(self, images: list[ImageAnswer], asked: Asked):
        """Other categories or heads for the same images."""
        problems = [_GONE] if asked.number and not images else []
        return self._results(images, problems, asked), *self.map_chosen(images, asked), self.compared(images, asked)

    def of_all(self, images: list[ImageAnswer], asked: Asked):
        """A modality for all images, in place of what was said of each."""
        images = [replace(image, chosen=None) for image in images]
        return images, *self.asked_anew(images, asked)

    def corrected(self, images: list[ImageAnswer], number: str, modality: str, asked: Asked):
        """The modality of one image, as its button says; taken back by a second click."""
        image = _numbered(images, number)
        if image is not None and modality in MODALITIES:
            chosen = replace(image, chosen=None if image.chosen == modality else modality)
            images = [chosen if other is image else other for other in images]
        return images, *self.asked_anew(images, asked)

    def map_chosen(self, images: list[ImageAnswer], asked: Asked):
        """Another kind of map or another image: other targets to choose from."""
        import gradio as gr

        image = _numbered(images, asked.number)
        if asked.kind == "attention":
            choices, opening = self.service.words_to_choose(image, asked.every_word) if image else ([], None)
        else:
            choices, opening = list(asked.names), self._likeliest(image, asked)
        chosen = asked.target if asked.target in choices else opening
        return gr.update(choices=choices, value=chosen), self.heat(images, replace(asked, target=chosen))

    def _likeliest(self, image: ImageAnswer | None, asked: Asked) -> str | None:
        """The category that the image is likeliest to be of, or where nothing tells the first."""
        first = asked.names[0] if asked.names else None
        if image is None:
            return first
        try:
            return next(iter(self.service.answer(image, asked.names, asked.of_all).probabilities), first)
        except KeepFITError:  # the answers themselves say what is wrong
            return first

    def heat(self, images: list[ImageAnswer], asked: Asked) -> str:
        """The heat map of a category or a word."""
        if asked.number and not images:
            return _pieces().problems([_GONE])
        image = _numbered(images, asked.number)
        if image is None or not asked.target:
            return ""
        try:
            heat = self.service.heat(image, asked.kind, asked.target, asked.names, asked.of_all)
        except KeepFITError as error:
            return _pieces().problems([str(error)])
        return _pieces().heat(heat, picture_uri(heat.picture), _clear_uri(heat.colours()), bar_colours())

    def compared(self, images: list[ImageAnswer], asked: Asked) -> str:
        """Two images side by side."""
        pair = [(number, _numbered(images, number)) for number in (asked.one, asked.two)]
        if any(image is None for _, image in pair):
            return ""
        try:
            answers = [self._answer(image, asked) for _, image in pair]
        except KeepFITError as error:
            return _pieces().problems([str(error)])
        sides = [
            self._card(image, answer) | {"title": f"Image {number}", "name": image.name}
            for (number, image), answer in zip(pair, answers, strict=True)
        ]
        one, two = answers
        rows = [
            {"head": head, "name": name, "one": value, "two": others[name]}
            for head, values, others in [("", one.probabilities, two.probabilities)]
            + [(head, values, two.heads[head]) for head, values in one.heads.items()]
            for name, value in values.items()
        ]
        likeness = float(pair[0][1].features @ pair[1][1].features)
        mixed = one.modality is None or one.modality != two.modality
        return _pieces().comparison(sides, rows, likeness, mixed)

    def folder(self, files: Sequence[str] | None, asked: Asked) -> Iterator[tuple]:
        """A table of many images, which are read, removed and forgotten one after the other.

        Yields:
            The batch, the same all the time; nothing in place of the files; how far it is; and the table, or a sign to
            leave the one that stands there.
        """
        import gradio as gr

        paths = [Path(file) for file in files or ()]
        batch = Batch(min(len(paths), MAX_FOLDER))
        try:
            yield batch, None, _pieces().progress(batch), ""
            for number, path in enumerate(paths[: batch.total], start=1):
                if batch.stopped:
                    break
                if number % _EACH == 1:
                    self.uploads.keep(paths[number - 1 :])
                batch.rows.append(self._row(number, path, asked))
                self.uploads.remove([path])
                table = self._table(batch, asked) if number < _EACH or not number % _EACH else gr.skip()
                yield batch, None, _pieces().progress(batch), table
        finally:  # also where the tab was closed
            self.uploads.remove(paths)
            give_memory_back()
        lines = [f"{len(paths)} images: only the first {MAX_FOLDER} were looked at."] * (len(paths) > MAX_FOLDER)
        yield batch, None, _pieces().problems(lines) + _pieces().progress(batch), self._table(batch, asked)

    @staticmethod
    def stopped(batch: Batch | None) -> None:
        """Lets a folder end before its next image."""
        if batch is not None:
            batch.stopped = True

    def _row(self, number: int, path: Path, asked: Asked) -> Row:
        try:
            image, told = self.uploads.read(path)
            seen = self.service.look(image, path.name, told, with_maps=False)
            return Row.of_image(number, seen, self._answer(seen, asked))
        except KeepFITError as error:
            return Row(number, path.name, problem=getattr(error, "reason", str(error)))

    @staticmethod
    def _table(batch: Batch, asked: Asked) -> str:
        return _pieces().table(batch.rows, _csv_uris(batch.rows, asked), _ROWS_SHOWN)

    def _shown(self, images: list[ImageAnswer], problems: list[str], asked: Asked):
        import gradio as gr

        numbers = [(f"{n} · {image.name}" if image.name else str(n), str(n)) for n, image in enumerate(images, start=1)]
        first, second = [*(number for _, number in numbers[:2]), None, None][:2]
        asked = replace(asked, number=first, target=None, one=first, two=second)
        results = self._results(images, problems, asked)
        chosen = [gr.update(choices=numbers, value=value) for value in (first, first, second)]
        number, one, two = chosen
        return images, None, results, number, *self.map_chosen(images, asked), one, two, self.compared(images, asked)

    def _answer(self, image: ImageAnswer, asked: Asked) -> Answer:
        return self.service.answer(image, asked.names, asked.of_all, asked.heads)

    def _results(self, images: list[ImageAnswer], problems: list[str], asked: Asked) -> str:
        try:
            answers = [self._answer(image, asked) for image in images]
        except KeepFITError as error:
            return _pieces().problems([*problems, str(error)])
        cards = [self._card(image, answer) for image, answer in zip(images, answers, strict=True)]
        rows = [Row.of_image(n, *pair) for n, pair in enumerate(zip(images, answers, strict=True), start=1)]
        return _pieces().results(cards, problems, _csv_uris(rows, asked), MODALITIES)

    def _card(self, image: ImageAnswer, answer: Answer) -> dict:
        return {
            "picture": picture_uri(image.image, longest=_SHOWN),
            "name": image.name,
            "chosen": image.chosen,
            "guess": image.guess,
            "answer": answer,
            "notes": {name: self._note(name) for name in answer.heads},
            "caption": image.caption,
            "nearest": image.nearest,
        }

    def _note(self, name: str) -> dict:
        """What has to be known of a head's answers: whence they are, and from when on an image has a class."""
        facts = self.service.heads[name].facts
        text = (
            f"{facts.method} on {facts.trained_on['images']} images of {facts.trained_on['data']}; calibrated on its "
            f"held-out folds (temperature {facts.temperature:.2f})."
        )
        thresholds = dict(zip(facts.classes, facts.thresholds, strict=True)) if facts.several else {}
        return {"text": text + (" ✓ from its threshold on." if thresholds else ""), "thresholds": thresholds}


def _numbered(images: list[ImageAnswer], number: str | None) -> ImageAnswer | None:
    """The image that a number on the page stands for, if it is one."""
    return dict(zip(map(str, range(1, len(images) + 1)), images, strict=True)).get(number)


def _csv_uris(rows: Sequence[Row], asked: Asked) -> list[str]:
    """The table with the files' names and without, as links; none of no rows."""
    tables = [as_csv(rows, asked.names, names) for names in (True, False)] if rows else []
    return [f"data:text/csv;base64,{base64.b64encode(table.encode()).decode()}" for table in tables]


def _clear_uri(image: Image.Image) -> str:
    """A picture that is clear in places, as a data URI."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _pieces():
    return template(Path(__file__).parent, "pieces.html.j2").module


def example_buttons() -> str:
    """The drawn examples as buttons."""
    examples = [
        {"title": " ".join(kind), "picture": picture_uri(_example_picture(number), longest=128)}
        for number, kind in enumerate(EXAMPLES)
    ]
    return _pieces().examples(examples)


def _example_picture(number: int) -> Image.Image:
    modality, condition = EXAMPLES[number]
    return draw_retina(modality, condition, [2026, number], 256).image
