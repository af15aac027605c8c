"""A suite: data sets, their classes, and how models are measured on them, in a JSON file.

    {"schema": 1, "title": "My clinic", "methods": ["zero-shot", "linear-probe"], "shots": ["5", "80%"], "folds": 5,
     "sets": [{"name": "FIVES", "folder": "FIVES", "layout": "fives", "classes": "fives"},
              {"name": "Mine", "folder": "images", "table": "mine.csv", "classes": "mine.json", "novel": true}]}

A set is a layout (`folder` below --root is the unpacked set), a table (`table` below --root, its images relative to
`folder`), or drawn. `classes` is a class file, shipped or beside the suite, or a list of names. Figures of a paper
stand in `published`, by model, method, number of shots ("0" where nothing is learnt) and metric; `papers` names the
paper of each such model. The shipped suites lie in `suites`; the form is `suite.schema.json`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jsonschema

from keepfit_clip.benchmark.slugs import slug_of
from keepfit_clip.data.downstream import ClassFile, list_class_files, read_class_file
from keepfit_clip.data.sources.layout_file import read_layout
from keepfit_clip.drawing.dataset import DrawOptions
from keepfit_clip.drawing.retina import KINDS
from keepfit_clip.errors import ConfigError
from keepfit_clip.files import read_shipped
from keepfit_clip.transfer.splits import Shots

__all__ = ["PublishedFigure", "Suite", "SuiteSet", "list_suites", "read_suite"]

_SHIPPED = Path(__file__).parent / "suites"
_NOTHING_LEARNT = "0"


@dataclass(frozen=True)
class PublishedFigure:
    """A figure as a paper gives it; nobody measured it here.

    Args:
        model: as the paper calls it.
        method: of classifying.
        shots: what it learnt from; "" where it learnt nothing.
        metric: aca, auc, kappa or f1.
        value: between 0 and 1.
        paper: that gives it.
    """

    model: str
    method: str
    shots: str
    metric: str
    value: float
    paper: str


@dataclass(frozen=True)
class SuiteSet:
    """A data set of a suite.

    Args:
        name: in tables and file names.
        classes: a class file.
        folder: below the root: of the layout, or what the image paths of the table are relative to.
        layout: name of a layout, or a layout file; "" where there is none.
        table: path below the root; "" where there is none.
        drawn: what to draw instead; None where nothing is.
        modality: of its images, in place of the class file's.
        novel: whether its classes are those that papers keep out of training.
        published: what papers give for it.
    """

    name: str
    classes: ClassFile
    folder: str = ""
    layout: str = ""
    table: str = ""
    drawn: DrawOptions | None = None
    modality: str | None = None
    novel: bool = False
    published: tuple[PublishedFigure, ...] = ()

    @property
    def slug(self) -> str:
        """Its name in file names."""
        return slug_of(self.name)

    def below(self, root: Path) -> tuple[Path, Path | None]:
        """The source, and the folder of its images where it is a table."""
        return (root / self.folder, None) if self.layout else (root / self.table, root / self.folder)


@dataclass(frozen=True)
class Suite:
    """What is measured.

    Args:
        title: for the table.
        sets: the data sets.
        methods: see `keepfit_clip.transfer.protocol.TransferOptions`.
        shots: the same.
        folds: the same.
        source: where the choice comes from.
    """

    title: str
    sets: tuple[SuiteSet, ...]
    methods: tuple[str, ...]
    shots: tuple[Shots, ...] = (Shots(share=0.8),)
    folds: int = 5
    source: str = ""

    @cached_property
    def needs_root(self) -> bool:
        """Whether any of its sets lies on the disk."""
        return any(one.drawn is None for one in self.sets)


def list_suites() -> list[str]:
    """Names of the suites that the library ships."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def read_suite(name: str | Path) -> Suite:
    """A shipped suite by its name, or one's own by its path.

    Raises:
        ConfigError: there is none, or it does not say what it should.
        CategoryError, TableError: a class file or layout of it cannot be used.
    """
    content, path = read_shipped(_SHIPPED, name, "suite", ConfigError)
    schema = json.loads((Path(__file__).parent / "suite.schema.json").read_text(encoding="utf-8"))
    for error in jsonschema.Draft202012Validator(schema).iter_errors(content):
        where = ".".join(map(str, error.absolute_path)) or "the file"
        raise ConfigError(f"{path}: {where}: {error.message[:200]}")
    try:
        return _suite(content, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _suite(content: dict, beside: Path) -> Suite:
    sets = tuple(_set(entry, content.get("papers", {}), beside) for entry in content["sets"])
    slugs = [one.slug.casefold() for one in sets]
    if len(set(slugs)) < len(slugs):
        raise ConfigError(f"two of the sets are called the same: {', '.join(one.name for one in sets)}")
    return Suite(
        content["title"],
        sets,
        tuple(content["methods"]),
        tuple(map(Shots.of, content.get("shots", Suite.shots))),
        content.get("folds", Suite.folds),
        content.get("source", ""),
    )


def _set(entry: dict, papers: dict[str, str], beside: Path) -> SuiteSet:
    name = entry["name"]
    if sum(key in entry for key in ("layout", "table", "drawn")) != 1:
        raise ConfigError(f"the set {name} has one of layout, table and drawn")
    for key in ("folder", "table"):
        if Path(entry.get(key, "")).is_absolute() or ".." in Path(entry.get(key, "")).parts:
            raise ConfigError(f"the set {name}: {key} {entry[key]!r} leads out of --root")
    layout = entry.get("layout", "")
    if layout.endswith((".json", ".yaml", ".yml")):
        layout = str(beside / layout)
    if layout:
        read_layout(layout)
    classes = _classes(name, entry["classes"], entry.get("modality"), beside)
    return SuiteSet(
        name,
        classes,
        entry.get("folder", ""),
        layout,
        entry.get("table", ""),
        _drawn(name, entry["drawn"], classes) if "drawn" in entry else None,
        entry.get("modality"),
        entry.get("novel", False),
        tuple(_published(name, entry.get("published", {}), papers)),
    )


def _classes(name: str, asked: str | Sequence[str], modality: str | None, beside: Path) -> ClassFile:
    if not isinstance(asked, str):
        return ClassFile(name, dict.fromkeys(asked, ()), modality)
    return read_class_file(asked if asked in list_class_files() else beside / asked)


def _drawn(name: str, entry: dict, classes: ClassFile) -> DrawOptions:
    kinds = tuple((classes.modality, condition) for condition in classes.classes)
    unknown = [condition for kind, condition in kinds if (kind, condition) not in KINDS]
    if unknown:
        raise ConfigError(f"the set {name}: {', '.join(unknown)} cannot be drawn as {classes.modality}")
    return DrawOptions(entry["count"], entry.get("size", 128), entry.get("seed", 0), elite=0.0, kinds=kinds)


def _published(name: str, entry: dict, papers: dict[str, str]):
    for model, methods in entry.items():
        if model not in papers:
            raise ConfigError(f"the set {name}: the figures of {model} are of no paper (papers: {{{model!r}: ...}})")
        for method, by_shots in methods.items():
            for shots, figures in by_shots.items():
                learnt = "" if shots == _NOTHING_LEARNT else str(Shots.of(shots))
                for metric, value in figures.items():
                    yield PublishedFigure(model, method, learnt, metric, value, papers[model])
