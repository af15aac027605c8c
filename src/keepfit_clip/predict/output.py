"""Predictions as a table: a row for each image, in CSV or Parquet, written so that an interrupted job goes on.

Finished parts lie in a work folder beside the output until all are there; then they become one file. Rows without an
answer go into a file of their own, with the reasons.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keepfit_clip.data.records import LeftOut
from keepfit_clip.errors import ConfigError, ImageError, OutputError, WorkerError
from keepfit_clip.files import WorkFolder, parse_json, remove, to_json, write_json, write_text, writing
from keepfit_clip.page.cells import csv_text
from keepfit_clip.predict.answers import Answer, Predictor
from keepfit_clip.predict.inputs import Input, content_key

__all__ = [
    "OutputOptions",
    "Predictions",
    "left_out_path",
    "predicted",
    "predicted_classes",
    "uncertainty",
    "write_predictions",
]

SUFFIXES = (".csv", ".parquet")
_PART = 1024  # images, of which all are done or none
_MARK = "job.json"


@dataclass
class Predictions:
    """What was written.

    Args:
        rows: images with an answer.
        left_out: reason -> images.
        resumed: images that an interrupted run had done before.
    """

    rows: int = 0
    left_out: Counter = field(default_factory=Counter)
    resumed: int = 0


@dataclass(frozen=True)
class OutputOptions:
    """How predictions are made and written.

    Args:
        batch_size, workers: see `Predictor.answers`.
        anonymous: names images by their content, not as they were given.
    """

    batch_size: int = 32
    workers: int = 0
    anonymous: bool = False


def uncertainty(probabilities: np.ndarray, several: bool = False) -> float:
    """How unsure probabilities (K,) are: their entropy as a share of the largest there can be, from 0 to 1.

    Where an image may have several classes, the mean over the classes of the entropy of each.
    """
    p = np.clip(np.float64(probabilities), 1e-12, 1)
    if several:
        q = np.clip(1 - p, 1e-12, 1)
        return float(-(p * np.log2(p) + q * np.log2(q)).mean())
    return float(-(p * np.log(p)).sum() / np.log(len(p)))


def predicted_classes(predictor: Predictor, probabilities: np.ndarray) -> list[str]:
    """The likeliest class, or all from their thresholds on where an image may have several."""
    if predictor.several:
        chosen = probabilities >= np.array(predictor.head.facts.thresholds)
        return [name for name, there in zip(predictor.classes, chosen, strict=True) if there]
    return [predictor.classes[int(probabilities.argmax())]]


def predicted(predictor: Predictor, name: str, answer: Answer) -> dict[str, object]:
    """The row of an image: column -> value."""
    row: dict[str, object] = {"image": name}
    if answer.probabilities is not None:
        row["prediction"] = "; ".join(predicted_classes(predictor, answer.probabilities))
        row |= {f"p({c})": float(p) for c, p in zip(predictor.classes, answer.probabilities, strict=True)}
        row["uncertainty"] = uncertainty(answer.probabilities, predictor.several)
    row["modality"] = answer.modality
    if predictor.captions:
        row["caption"] = answer.caption
    if predictor.features:
        row["features"] = answer.features
    return row


def left_out_path(out: Path) -> Path:
    """Where the images without an answer stand."""
    return out.with_name(f"{out.stem}.left_out.csv")


def write_predictions(
    out: Path,
    inputs: Sequence[Input],
    predictor: Predictor,
    options: OutputOptions = OutputOptions(),
    not_read: Sequence[LeftOut] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Predictions:
    """Asks a model of all images and writes what it says.

    Args:
        out: .csv or .parquet; features are columns in the former and lists in the latter.
        inputs: the images.
        predictor: the model, and what it is asked.
        options: see there.
        not_read: rows of a source that gave no image; they stand with those left out.
        progress: told how many images are done.

    Raises:
        ConfigError: another ending.
        OutputError: something stands there already, or it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: its name must end in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise OutputError(f"{out} is there already: choose another name")
    work = WorkFolder(out.with_name(f".{out.name}.work"))
    identity = _identity(inputs, predictor, options.anonymous)
    with work.alone(OutputError(f"{out}: another process is writing it")):
        if work.claim(identity, _MARK):
            work.clear()
            write_json(work.path / _MARK, identity)
        parts = {start: work.path / f"{start:09}.parquet" for start in range(0, len(inputs), _PART)}
        to_do = [start for start, part in parts.items() if not part.exists()]
        result = Predictions(resumed=len(inputs) - sum(len(inputs[start : start + _PART]) for start in to_do))
        _write_parts({start: parts[start] for start in to_do}, inputs, predictor, options, progress)
        _join(list(parts.values()), out, predictor, result, [[f"row {row.row}", row.reason] for row in not_read])
    remove(work.path)
    return result


def _identity(inputs: Sequence[Input], predictor: Predictor, anonymous: bool) -> Mapping[str, object]:
    names = hashlib.sha256("\n".join(f"{one.name} {_version(one)}" for one in inputs).encode()).hexdigest()
    head = predictor.head and [predictor.head.facts.method, str(predictor.head.facts.trained_on)]
    asked = [list(predictor.classes), predictor.modality, predictor.captions, predictor.features,
             predictor.descriptions, predictor.findings, sorted(predictor.generation.items())]  # fmt: skip
    return {"model": predictor.loaded.fingerprint, "images": names, "head": head, "asked": str(asked),
            "anonymous": anonymous}  # fmt: skip


def _version(one: Input) -> str:
    """Size and time of an image's file, so that a job does not go on with images that were changed meanwhile."""
    if not isinstance(one.record.image, Path):
        return ""
    with suppress(OSError):
        status = one.record.image.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    return "missing"


def _write_parts(
    parts: Mapping[int, Path],
    inputs: Sequence[Input],
    predictor: Predictor,
    options: OutputOptions,
    progress: Callable[[int], None],
) -> None:
    """Asks of the images of all parts in one go, and writes each part, by its first image, once it is whole."""
    wanted = [number for start in parts for number in range(start, min(start + _PART, len(inputs)))]
    answers = predictor.answers([inputs[n].record for n in wanted], options.batch_size, options.workers)
    rows: list[dict[str, object]] = []
    wrong: list[tuple[str, str]] = []
    for index, answer in answers:
        one = inputs[wanted[index]]
        if isinstance(answer, ImageError):
            wrong.append((f"image {one.record.row}" if options.anonymous else one.name, answer.reason))
        else:
            rows.append(predicted(predictor, _key(one) if options.anonymous else one.name, answer))
        progress(len(inputs) - len(wanted) + index + 1)
        last = index + 1 == len(wanted)
        if last or wanted[index + 1] in parts:  # where another part begins
            _write_part(parts[wanted[index] // _PART * _PART], rows, wrong, predictor)
            rows, wrong = [], []


def _write_part(part: Path, rows: list[dict], wrong: list[tuple[str, str]], predictor: Predictor) -> None:
    table = pa.Table.from_pylist(rows, _schema(predictor))
    table = table.replace_schema_metadata({"left_out": to_json(wrong)})
    partial = part.with_suffix(".partial")
    with writing(part):
        pq.write_table(table, partial)
    os.replace(partial, part)


def _key(one: Input) -> str:
    with suppress(WorkerError):
        return content_key(one.record)
    return f"image {one.record.row}"


def _schema(predictor: Predictor) -> pa.Schema:
    columns = [("image", pa.string())]
    if predictor.classes:
        columns.append(("prediction", pa.string()))
        columns += [(f"p({name})", pa.float32()) for name in predictor.classes]
        columns.append(("uncertainty", pa.float32()))
    columns.append(("modality", pa.string()))
    columns += [("caption", pa.string())] if predictor.captions else []
    columns += [("features", pa.list_(pa.float32()))] if predictor.features else []
    return pa.schema(columns)


def _join(
    parts: Sequence[Path], out: Path, predictor: Predictor, result: Predictions, left_out: list[list[str]]
) -> None:
    """Makes one file of the parts, and one of what was left out."""
    partial = out.with_name(f".{out.name}.partial")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        tables = (pq.read_table(part) for part in parts)
        if out.suffix == ".parquet":
            _write_parquet(partial, tables, _schema(predictor))
        else:
            _write_csv(partial, tables, predictor)
    for part in parts:
        stored = pq.read_metadata(part)
        result.rows += stored.num_rows
        left_out += parse_json(stored.metadata[b"left_out"])
    result.left_out.update(reason for _, reason in left_out)
    if left_out:
        write_text(left_out_path(out), csv_text(("image", "reason"), left_out))
    os.replace(partial, out)


def _write_parquet(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(None))


def _write_csv(path: Path, tables: Iterator[pa.Table], predictor: Predictor) -> None:
    names = [name for name in _schema(predictor).names if name != "features"]
    width = predictor.loaded.widths[1] if predictor.features else 0
    with open(path, "w", encoding="utf-8") as file:
        file.write(csv_text([*names, *(f"feature{number}" for number in range(width))], []))
        for table in tables:
            features = np.empty((len(table), 0))
            if width:
                features = table.column("features").combine_chunks().flatten().to_numpy().reshape(-1, width)
            for row, values in zip(table.select(names).to_pylist(), features, strict=True):
                line = csv_text([_cell(row[name]) for name in names], []).removesuffix("\n")
                file.write(",".join([line, *(f"{value:.6f}" for value in values)]) + "\n")


def _cell(value: object) -> object:
    return f"{value:.6f}" if isinstance(value, float) else "" if value is None else value
