"""What a user can say of a source."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from keepfit_clip.errors import ConfigError

__all__ = ["NO_COLUMN", "SourceOptions"]

NO_COLUMN = "none"  # in place of a column's name: none is taken, whatever is there


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read. A column that is not named is found by its usual names.

    Args:
        source: table, jsonl, studies, parquet, folder, shards or layout; auto looks at what is there.
        layout: name of a shipped layout, or a file of one, that says how a data set lies on disk.
        image_column, attribute_column, modality_column, patient_column, eye_column, volume_column, visit_column,
            slice_column, dataset_column: names of columns; "none" takes no column for it, also where one has a usual
            name.
        caption_columns, category_columns: names of columns, each maybe several.
        label_names: what a label stands for where the source writes a number or a code, e.g. {"0": "normal"}; of one
            column alone, e.g. {"Retinopathy grade:1": "mild NPDR"}, also of one of eyes or modalities.
        labels: name of a shipped label map, or a file of one, that says what the labels of a data set mean.
        as_written: whether the labels of tables that are known to be wrong stay as they are.
        known_labels: numbers that are named elsewhere, such as in a class file, and pass as labels.
        group_pattern: regular expression on an image's file name; its first group, or else the whole match, names the
            patient or eye where no column does.
        frames: which pictures of a file of several (DICOM, .vol, .e2e, .fda) are taken: middle, all, or every:N for
            every Nth.
        images_only: whether only the images and their modality matter: rows without a caption or category are taken,
            labels not read.
        encoding: of text files.
        lang: two-letter language of captions whose column does not tell; by default Chinese is told from other
            writing, which is taken to be English.

    Raises:
        ConfigError: the pattern is not a regular expression.
    """

    source: str = "auto"
    layout: str = ""
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    category_columns: tuple[str, ...] = ()
    attribute_column: str | None = None
    modality_column: str | None = None
    patient_column: str | None = None
    eye_column: str | None = None
    volume_column: str | None = None
    visit_column: str | None = None
    slice_column: str | None = None
    dataset_column: str | None = None
    label_names: Mapping[str, str] = field(default_factory=dict)
    labels: str = ""
    as_written: bool = False
    known_labels: tuple[str, ...] = ()
    group_pattern: str | None = None
    frames: str = "middle"
    images_only: bool = False
    encoding: str = "utf-8"
    lang: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"middle|all|every:[1-9]\d*", self.frames):
            raise ConfigError(f"--frames {self.frames}: middle, all, or every:N such as every:4")
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise ConfigError(
                f"the group pattern {self.group_pattern!r} is not a regular expression: {error}"
            ) from error
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ConfigError(f"{self.encoding!r} is not an encoding; try utf-8, gb18030 or cp1252") from error
