"""How a data set lies on disk, in a file: its tables, where its images are, and which column means what.

The layouts of the usual sets ship in `layouts`, one JSON file each, described in `layout.schema.json`; a file of one's
own may be JSON or YAML. A part of a layout is a table, or a pattern of image files whose parts are its columns:

    {"table": "a. Training Set/labels.csv", "format": {...}, "images": [{"image": "{ID}", "labels": [...]}]}
    {"files": "{split}/{class}/{file}", "images": [{"image": "{path}", "labels": [{"column": "class"}]}]}
"""

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from keepfit_clip.errors import TableError
from keepfit_clip.files import parse_json, read_shipped
from keepfit_clip.knowledge.files import parse_yaml
from keepfit_clip.knowledge.labels import label_map_names

__all__ = ["ImageRule", "LabelRule", "Layout", "Part", "layout_names", "read_layout"]

_FOLDER = Path(__file__).parent / "layouts"
_TEMPLATES = ("attributes", "eye", "patient", "visit", "volume", "slice", "dataset", "split", "modality")
_LARGEST_FILE = 1 << 20  # bytes


@dataclass(frozen=True)
class LabelRule:
    """What columns say of an image.

    Args:
        columns: that hold labels.
        one_hot: whether they hold 1 for what their name says.
        map: label -> categories, for these columns alone.
        label_map: name of a shipped label map, for these columns alone.
        separator: between several labels in a cell; None leaves ";" and "|".
    """

    columns: tuple[str, ...]
    one_hot: bool = False
    map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_map: str = ""
    separator: str | None = None


@dataclass(frozen=True)
class ImageRule:
    """An image of a row: an eye of two, or the only one. Texts are templates: {COLUMN} stands for its cell.

    Args:
        image: path below the root; without an ending of an image, the usual ones are tried.
        anywhere: whether the file's name is looked for in all folders.
        if_there: whether an image that is not there is passed over: another rule may have it.
        attributes: template of words about the image itself.
        labels: rules of its labels.
        captions: templates of its captions.
        eye, patient, visit, volume, slice, dataset, split, modality: templates.
        codes: eye, split or modality -> what a cell's codes stand for.
    """

    image: str
    anywhere: bool = False
    if_there: bool = False
    attributes: str = ""
    labels: tuple[LabelRule, ...] = ()
    captions: tuple[str, ...] = ()
    eye: str = ""
    patient: str = ""
    visit: str = ""
    volume: str = ""
    slice: str = ""
    dataset: str = ""
    split: str = ""
    modality: str = ""
    codes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A table, or a pattern of files.

    Args:
        table: pattern of paths of tables below the root; {NAME} in it is a column; "" where files are the rows.
        files: pattern of paths of images below the root.
        format: how a table is written: kind, separator, header, columns, encoding, sheet, keys.
        parse: column -> pattern of its cells; its {NAME}s become columns.
        images: of each row.
        keep: column -> values of the rows that are taken.
        drop: column -> values of rows that are not.
        optional: whether a set may be without it.
    """

    table: str = ""
    files: str = ""
    format: Mapping[str, Any] = field(default_factory=dict)
    parse: Mapping[str, str] = field(default_factory=dict)
    images: tuple[ImageRule, ...] = ()
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drop: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: bool = False

    @property
    def columns(self) -> set[str]:
        """Names of the columns that its rows must have."""
        rules = self.images
        templates = [t for r in rules for t in (r.image, *r.captions, *(getattr(r, key) for key in _TEMPLATES))]
        named = {column for t in templates for _, column, _, _ in string.Formatter().parse(t) if column is not None}
        labels = {c for r in rules for rule in r.labels if not rule.one_hot for c in rule.columns}
        parsed = {name for pattern in self.parse.values() for name in re.findall(r"\{(\w+)\}", pattern)}
        given = set(re.findall(r"\{(\w+)\}", self.table))
        return (named | labels | set(self.keep) | set(self.drop) | set(self.parse)) - parsed - given

    @property
    def marks(self) -> set[str]:
        """Names of the columns of 0 and 1, of which releases of a set may lack some."""
        return {c for r in self.images for rule in r.labels if rule.one_hot for c in rule.columns}


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Args:
        name: of the set.
        title: its whole name.
        modality: of its images, or None.
        parts: of it.
        images: how many it has, as published, or None.
        labels: what its labels are, in words.
        licence, home: as words; licences and homes change, so look.
        source: where the layout is documented.
        unverified: what of the layout could not be verified.
    """

    name: str
    title: str
    modality: str | None
    parts: tuple[Part, ...]
    images: int | None = None
    labels: str = ""
    licence: str = ""
    home: str = ""
    source: str = ""
    unverified: tuple[str, ...] = ()

    def tree(self) -> list[str]:
        """The files that it expects, a line each."""
        lines = []
        for part in self.parts:
            may = "   (may be missing)" if part.optional else ""
            if part.table:
                lines.append(f"{part.table}{may}")
            lines += [
                f"{part.files or image_lines}{may}" for image_lines in dict.fromkeys(i.image for i in part.images)
            ]
        return list(dict.fromkeys(lines))


def layout_names() -> list[str]:
    """Names of the layouts that ship with the library."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@lru_cache(maxsize=64)
def read_layout(name: str) -> Layout:
    """A shipped layout by its name, or one's own by its path.

    Raises:
        TableError: there is none, or it does not say what it should.
    """
    content, path = read_shipped(_FOLDER, name, "layout", TableError, _json_or_yaml)
    problem = next(iter(_problems(content)), None)
    if problem is not None:
        raise TableError(f"{path}: {problem}")
    return _layout(content, path.stem)


def _json_or_yaml(path: Path):
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise TableError(f"{path}: larger than {_LARGEST_FILE >> 20} MiB, which no layout is")
    return parse_yaml(text) if path.suffix.lower() in (".yaml", ".yml") else parse_json(text)


def _problems(content):
    schema = json.loads((Path(__file__).parent / "layout.schema.json").read_text(encoding="utf-8"))
    for error in sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(content), key=lambda e: list(map(str, e.path))
    ):
        where = ".".join(map(str, error.absolute_path)) or "the file"
        yield f"{where}: {error.message[:200]}"
        return
    for number, part in enumerate(content["parts"]):
        for pattern in (part.get("table", ""), part.get("files", ""), *part.get("parse", {}).values()):
            names = re.findall(r"\{([^}]*)\}", pattern)
            if ".." in pattern.split("/") or pattern.startswith("/"):
                yield f"parts.{number}: {pattern!r} leads out of the folder"
            if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
                yield f"parts.{number}: {pattern!r} names a part twice, or by no plain word"
        how = part.get("format", {})
        if len(how.get("separator", ",")) != 1:
            yield f"parts.{number}: the separator {how['separator']!r} is not one character"
        try:
            "x".encode(how.get("encoding", "utf-8")).decode(how.get("encoding", "utf-8"))
        except (LookupError, UnicodeError):
            yield f"parts.{number}: {how['encoding']!r} is no encoding of texts"
        if bool(part.get("table")) == bool(part.get("files")):
            yield f"parts.{number}: has either a table or files"
        for image in part["images"]:
            templates = [image["image"], *image.get("captions", ()), *(image.get(key, "") for key in _TEMPLATES)]
            for template in templates:
                if problem := _template_problem(template):
                    yield f"parts.{number}: {template!r} {problem}"
            for rule in image.get("labels", ()):
                if rule.get("label_map") and rule["label_map"] not in label_map_names():
                    yield f"parts.{number}: there is no label map {rule['label_map']!r}"


def _template_problem(template: str) -> str:
    """What is wrong with a template, "" for nothing."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"is no template: {error}"
    odd = [name for _, name, form, conversion in parts if name is not None and (not name or form or conversion)]
    return "is no template: write {COLUMN}, and nothing else in the brackets" if odd else ""


def _layout(content: dict, name: str) -> Layout:
    facts = {key: content[key] for key in ("title", "images", "labels", "licence", "home", "source") if key in content}
    return Layout(
        name,
        modality=content.get("modality"),
        parts=tuple(map(_part, content["parts"])),
        unverified=tuple(content.get("unverified", ())),
        **{"title": name, **facts},
    )


def _part(entry: dict) -> Part:
    return Part(
        entry.get("table", ""),
        entry.get("files", ""),
        entry.get("format", {}),
        entry.get("parse", {}),
        tuple(map(_image_rule, entry["images"])),
        {column: tuple(map(str, values)) for column, values in entry.get("keep", {}).items()},
        {column: tuple(map(str, values)) for column, values in entry.get("drop", {}).items()},
        entry.get("optional", False),
    )


def _image_rule(entry: dict) -> ImageRule:
    codes = {key: {str(code): text for code, text in known.items()} for key, known in entry.get("codes", {}).items()}
    fields = {
        **entry,
        "codes": codes,
        "labels": tuple(map(_label_rule, entry.get("labels", ()))),
        "captions": tuple(entry.get("captions", ())),
    }
    return ImageRule(**fields)


def _label_rule(entry: dict) -> LabelRule:
    columns = entry.get("columns") or [entry["column"]]
    meanings = {str(label): tuple(categories) for label, categories in entry.get("map", {}).items()}
    return LabelRule(
        tuple(columns), entry.get("one_hot", False), meanings, entry.get("label_map", ""), entry.get("separator")
    )
