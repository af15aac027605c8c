"""One labelled picture, whatever file told of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Self

from keepfit_clip.errors import TableError
from keepfit_clip.images.reading import FileSlice, Frame
from keepfit_clip.remote.opening import RemoteFile

__all__ = ["Caption", "LeftOut", "Record"]


class Caption(NamedTuple):
    """What an expert wrote of an image.

    Args:
        text: the caption.
        lang: its language, a two-letter code.
    """

    text: str
    lang: str = "en"


@dataclass(frozen=True)
class Record:
    """One labelled picture as a source tells of it.

    Args:
        row: its number in the source, from 1.
        image: where the encoded image is: a file, a part or a frame of one, a file in object storage, or
            the bytes themselves.
        captions: an expert's captions, maybe none.
        categories: what the image shows, as written.
        attributes: words about the image itself, as written.
        modality: CFP, FFA, OCT or None.
        patient: identifier of the patient or study, or None. For grouping only; it must not leave the program.
        eye: left, right or None.
        dataset: name of the data set the source gives, or None.
        volume: identifier of the volume that the image is a slice of, or None; it must not leave the program either.
        visit: identifier of the visit, or None; it must not leave the program.
        slice: number of the image in its volume, or None.
        split: train, val, test or another part that the source gives, or None.
    """

    row: int
    image: Path | FileSlice | Frame | RemoteFile | bytes
    captions: tuple[Caption, ...] = ()
    categories: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    modality: str | None = None
    patient: str | None = None
    eye: str | None = None
    dataset: str | None = None
    split: str | None = None
    volume: str | None = None
    visit: str | None = None
    slice: int | None = None

    @property
    def caption_texts(self) -> list[str]:
        """The captions without their languages."""
        return [caption.text for caption in self.captions]


class LeftOut(NamedTuple):
    """A row that could not be used.

    Args:
        row: its number in the source, from 1.
        reason: why, free of anything that stands in the input.
        message: the whole sentence, for the person at the terminal only.
    """

    row: int
    reason: str
    message: str

    @classmethod
    def of(cls, error: TableError) -> Self:
        """The row that an error of a source speaks of."""
        return cls(error.row, error.reason, str(error))

    def without_names(self) -> dict[str, int | str]:
        """What others may see of it."""
        return {"row": self.row, "reason": self.reason}
