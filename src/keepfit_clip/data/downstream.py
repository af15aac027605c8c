"""A downstream data set: a table of images and a class file that says which of its labels mean which class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from keepfit_clip.data.records import LeftOut, Record
from keepfit_clip.data.sources import SourceNotes, SourceOptions, find_source, nothing_usable, read_records
from keepfit_clip.errors import CategoryError, MissingClassesError, TableError
from keepfit_clip.files import read_shipped
from keepfit_clip.knowledge.conditions import MODALITIES, Knowledge
from keepfit_clip.knowledge.labels import read_label

__all__ = [
    "ClassFile",
    "DownstreamSet",
    "groups_of",
    "list_class_files",
    "read_class_file",
    "read_downstream",
    "require_images",
]

_SHIPPED = Path(__file__).parent / "class_files"
_SEVERAL = "it belongs to several classes"
_KEYS = {"title", "source", "modality", "ordinal", "multi_label", "named", "classes"}


@dataclass(frozen=True)
class ClassFile:
    """The classes of a data set.

    Args:
        title: name of the data set, for tables.
        classes: name of each class -> labels of the table that mean it beside its name and the name's synonyms.
        modality: CFP, FFA, OCT or None where the table tells.
        ordinal: the classes are grades in rising order; only then does a quadratic kappa say something.
        multi_label: an image may have several of the classes, or none.
        named: the classes' names mean something; else no text can be made of them.
        source: where the classes come from.
    """

    title: str
    classes: dict[str, tuple[str, ...]]
    modality: str | None = None
    ordinal: bool = False
    multi_label: bool = False
    named: bool = True
    source: str = ""


@dataclass
class DownstreamSet:
    """Labelled images.

    Args:
        spec: the classes.
        records: of the images, in the table's order.
        labels: (N,) class numbers, or (N, K) of 0 and 1 where an image may have several classes.
        groups: (N,) number of the patient of each image, or None where the table does not tell. Once encoded, near
            duplicates are in one group too.
        copies_together: whether `groups` hold near duplicates too.
        learnt_from: title of the data set that was learnt from, where it is another (domain shift).
        left_out: rows that could not be used.
        notes: which columns were taken for what.
    """

    spec: ClassFile
    records: list[Record]
    labels: np.ndarray
    groups: np.ndarray | None = None
    copies_together: bool = False
    learnt_from: str | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    notes: SourceNotes = field(default_factory=SourceNotes)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in order."""
        return list(self.spec.classes)

    @property
    def by_patient(self) -> bool:
        """Whether patients are known."""
        return any(record.patient is not None for record in self.records)

    @property
    def empty_classes(self) -> list[str]:
        """Names of the classes without an image."""
        several = self.labels.ndim == 2
        counts = self.labels.sum(axis=0) if several else np.bincount(self.labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]


def list_class_files() -> list[str]:
    """Names of the class files that the library ships."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def read_class_file(name: str | Path) -> ClassFile:
    """A shipped class file by its name, or one's own by its path.

    Raises:
        CategoryError: there is none, or it does not say what it should.
    """
    return _checked(*read_shipped(_SHIPPED, name, "class file", CategoryError))


def _checked(content, path: Path) -> ClassFile:
    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise CategoryError(f"{path}: {problem}")

    require(isinstance(content, dict), "a class file is an object")
    unknown = sorted(content.keys() - _KEYS)
    require(not unknown, f"unknown keys {unknown}; known are {sorted(_KEYS)}")
    classes = content.get("classes")
    if isinstance(classes, list):
        require(all(isinstance(name, str) for name in classes), "names of classes must be texts")
        classes = {name: [] for name in classes}
    require(isinstance(classes, dict), 'no "classes": a list of names, or an object from name to labels of the table')
    require(len(classes) >= 2, "at least two classes are needed")
    require(all(isinstance(labels, list) for labels in classes.values()), "the labels of a class are a list of texts")
    texts = [*classes, *(label for labels in classes.values() for label in labels)]
    require(all(isinstance(text, str) and text.strip() for text in texts), "names and labels must be texts")
    modality = content.get("modality")
    require(modality in (None, *MODALITIES), f"the modality {modality!r} is none of {', '.join(MODALITIES)}")
    for key in ("title", "source"):
        require(isinstance(content.get(key, ""), str), f'"{key}" must be a text')
    for key in ("ordinal", "multi_label", "named"):
        require(isinstance(content.get(key, False), bool), f'"{key}" must be true or false')
    return ClassFile(
        content.get("title", path.stem),
        {name: tuple(labels) for name, labels in classes.items()},
        modality,
        content.get("ordinal", False),
        content.get("multi_label", False),
        content.get("named", True),
        content.get("source", ""),
    )


def read_downstream(
    table: str | Path,
    images: str | Path | None,
    spec: ClassFile | Sequence[str] | None = None,
    knowledge: Knowledge | None = None,
    options: SourceOptions | None = None,
    rows: Iterable[int] | None = None,
    empty_classes: bool = False,
) -> DownstreamSet:
    """Reads the labelled images of a table.

    Args:
        table, images: see `read_records`.
        spec: a class file; or names of classes, which become canonical; None takes every category of the table, sorted.
        knowledge: resolves names, so that synonyms match.
        options: names of columns and the like.
        rows: row numbers to use; all by default.
        empty_classes: whether a class may be without images (--allow-missing-classes).

    Raises:
        TableError: no row can be used.
        CategoryError: fewer than two classes, a label that means two of them, no image of any, or a class without
            images.
    """
    knowledge = knowledge or Knowledge.load()
    rejected: list[TableError] = []
    chosen = None if rows is None else set(rows)
    options, notes = options or SourceOptions(), SourceNotes()
    if images is None:
        require_images(table, options)
    if isinstance(spec, ClassFile):  # it names numbers too
        words = [word for name, labels in spec.classes.items() for word in (name, *labels)]
        options = replace(options, known_labels=(*options.known_labels, *words))
    records = list(read_records(table, images, on_reject=rejected.append, options=options, notes=notes))
    if chosen is not None:
        records = [record for record in records if record.row in chosen]
        rejected = [error for error in rejected if error.row in chosen]
    if not records:
        raise nothing_usable(table, rejected)
    if spec is None:
        spec = sorted({name for r in records for category in r.categories for name in read_label(category, knowledge)})
    if not isinstance(spec, ClassFile):
        spec = ClassFile(Path(str(table)).stem, dict.fromkeys((knowledge.canonical(name) for name in spec), ()))
    if len(spec.classes) < 2:
        raise CategoryError(f"{table}: at least two classes are needed, there are {list(spec.classes) or 'none'}")
    meaning = _meaning(spec, knowledge)
    downstream = DownstreamSet(spec, [], np.empty(0, dtype=int), left_out=list(map(LeftOut.of, rejected)), notes=notes)
    labels = []
    for record in records:
        numbers = {meaning[word] for word in _words(record.categories, knowledge) if word in meaning}
        unknown = [c for c in record.categories if not any(w in meaning for w in _words([c], knowledge))]
        if spec.multi_label and record.categories and not unknown:
            labels.append([int(number in numbers) for number in range(len(spec.classes))])
        elif not spec.multi_label and len(numbers) == 1:
            labels.append(numbers.pop())
        else:
            reason = _reason(spec, numbers, unknown)
            message = f"{table}, row {record.row}: {reason}{f': {unknown}' if unknown else ''}"
            downstream.left_out.append(LeftOut(record.row, reason, message))
            continue
        downstream.records.append(record)
    downstream.labels = np.array(labels, dtype=int)
    _check_classes(downstream, table, records, knowledge, empty_classes)
    downstream.groups = groups_of(downstream.records)
    return downstream


def require_images(table: str | Path, options: SourceOptions) -> None:
    """Raises TableError where the images of a source lie elsewhere, and nobody said where."""
    if not options.layout and find_source(table, options.source) not in ("shards", "folder", "layout"):
        raise TableError(f"{table}: say which folder its image names are relative to, with --images")


def _words(labels, knowledge: Knowledge) -> list[str]:
    """The ways a label may stand in `_meaning`."""
    ways = [(label.strip(), *read_label(label, knowledge)) for label in labels]
    return list(dict.fromkeys(way.casefold() for of_label in ways for way in of_label))


def _meaning(spec: ClassFile, knowledge: Knowledge) -> dict[str, int]:
    """Label, in small letters -> number of its class."""
    meaning: dict[str, int] = {}
    for number, (name, labels) in enumerate(spec.classes.items()):
        for word in _words([name, *labels], knowledge):
            if meaning.setdefault(word, number) != number:
                first = list(spec.classes)[meaning[word]]
                raise CategoryError(f"{spec.title}: the label {word!r} means both {first!r} and {name!r}")
    return meaning


def _reason(spec: ClassFile, numbers: set[int], unknown: list[str]) -> str:
    if len(numbers) > 1:
        return _SEVERAL
    if unknown or not spec.multi_label:
        return "a label of it is not in the class file" if unknown else "it has no label"
    return "it has no label"


def _check_classes(
    downstream: DownstreamSet, table: str | Path, records: list[Record], knowledge: Knowledge, empty_classes: bool
) -> None:
    if not len(downstream.labels):
        there = sorted({name for r in records for label in r.categories for name in read_label(label, knowledge)})
        raise CategoryError(
            f"{table}: no row belongs to exactly one of the classes {downstream.classes}; the table has {there[:20]}"
        )
    if downstream.empty_classes and not empty_classes:
        several = sum(left_out.reason == _SEVERAL for left_out in downstream.left_out)
        raise MissingClassesError(
            f"{table} has no image of {', '.join(downstream.empty_classes)}"
            + (f" alone ({several} rows belong to several classes)" if several else "")
            + ": name the classes that count (--classes), or the labels that mean them in a class file"
        )


def groups_of(records: list[Record]) -> np.ndarray | None:
    """Numbers of the patients; an image without one is a patient of its own. None where no row names one."""
    names = [record.patient if record.patient is not None else ("alone", row) for row, record in enumerate(records)]
    if all(record.patient is None for record in records):
        return None
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names])
