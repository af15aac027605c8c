"""Building WebDataset shards from a labelled table.

One sample is `<key>.jpg`, `<key>.txt` (a ready caption, so that a stock open_clip loader can train too) and
`<key>.json` (see DATA_SCHEMA). Beside the tars stand `sizes.json`, which open_clip reads, and `manifest.json`. Keys
are content hashes; no file name, date or metadata of an input image, and no patient identifier, reaches the output.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import webdataset as wds
from PIL import Image

from keepfit_clip.data.images import encode_jpeg, open_image
from keepfit_clip.data.records import Record, read_records
from keepfit_clip.errors import KeepFITError, ShardError, TableError
from keepfit_clip.files import file_sha256, new_folder, require_free, write_json
from keepfit_clip.knowledge import MODALITIES, Knowledge
from keepfit_clip.templates import category_text

__all__ = ["DATA_SCHEMA", "KINDS", "ShardOptions", "ShardReport", "build_shards"]

DATA_SCHEMA = 1
KINDS = ("public", "elite")
MAX_CATEGORIES = 16
_SHARD_NAME = "{:06d}.tar"


@dataclass(frozen=True)
class ShardOptions:
    """How shards are made.

    Args:
        kind: public (categories become texts) or elite (an expert's captions).
        modality: CFP, FFA or OCT for rows that do not say; None leaves them without.
        size: longest side of the stored image, pixels; None keeps the size. Images are never enlarged.
        dataset: a name of the data set to store, or None.
        samples_per_shard: at most this many samples in a tar.
        quality: of the stored JPEGs.
    """

    kind: str
    modality: str | None = None
    size: int | None = None
    dataset: str | None = None
    samples_per_shard: int = 1000
    quality: int = 95

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ShardError(f"the kind of shards is {self.kind!r}; it can be {' or '.join(KINDS)}")
        if self.modality is not None and self.modality not in MODALITIES:
            raise ShardError(f"the modality is {self.modality!r}; it can be {', '.join(MODALITIES)}")
        if self.size is not None and self.size < 16:
            raise ShardError(f"the size is {self.size} pixels; it must be at least 16")
        if self.samples_per_shard < 1:
            raise ShardError("a shard holds at least one sample")


@dataclass
class ShardReport:
    """What was built.

    Args:
        samples: number of samples written.
        shards: name -> {"sha256", "samples"} of each tar.
        categories, modalities: counts over samples.
        unresolved: counts of categories that the knowledge file does not know (kept as written).
        rejected: (row number, reason) of rows left out; reasons name nothing of the input.
        messages: the same errors in full, for the terminal only.
    """

    samples: int = 0
    shards: dict[str, dict] = field(default_factory=dict)
    categories: Counter = field(default_factory=Counter)
    modalities: Counter = field(default_factory=Counter)
    unresolved: Counter = field(default_factory=Counter)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def reject(self, row: int, reason: str, message: str) -> None:
        """Counts a row that was left out."""
        self.rejected.append((row, reason))
        self.messages.append(message)


def build_shards(
    table: str | Path,
    images: str | Path,
    out: str | Path,
    options: ShardOptions,
    knowledge: Knowledge | None = None,
    progress=iter,
    rows: Iterable[int] | None = None,
) -> ShardReport:
    """Builds shards from a table into a new folder.

    Args:
        table, images: see `read_records`.
        out: folder to make; it must not hold anything yet. It appears only when complete.
        options: how.
        knowledge: resolves category names; the shipped one by default.
        progress: wraps the list of records, e.g. `rich.progress.track` with its text.
        rows: row numbers to use, e.g. one part of a split; all by default.

    Raises:
        TableError: the table as a whole cannot be read.
        OutputError: `out` holds something already.
        ShardError: no row could be used.
    """
    out = require_free(out)
    knowledge = knowledge or Knowledge.load()
    report = ShardReport()
    chosen = None if rows is None else set(rows)

    def reject(error: TableError) -> None:
        if chosen is None or error.row in chosen:
            report.reject(error.row, error.reason, str(error))

    records = list(read_records(table, images, on_reject=reject))
    groups = _group_numbers(records)  # of the whole table, so that the parts of a split number patients alike
    if chosen is not None:
        records = [record for record in records if record.row in chosen]
    # Tables are sorted by class; a fixed shuffle spreads every class over the shards.
    random.Random(0).shuffle(records)
    with new_folder(out) as folder:
        _write_shards(folder, progress(records), options, knowledge, groups, report)
        if not report.samples:
            first = f" First: {report.messages[0]}" if report.messages else ""
            raise ShardError(f"{table}: none of its rows could be used ({len(report.rejected)} rejected).{first}")
        write_json(folder / "sizes.json", {name: shard["samples"] for name, shard in report.shards.items()})
        write_json(folder / "manifest.json", _manifest(options, report))
    return report


def _group_numbers(records: Sequence[Record]) -> dict[str, int]:
    """Patient -> running number, in the table's order."""
    patients = dict.fromkeys(record.patient for record in records if record.patient is not None)
    return {patient: number for number, patient in enumerate(patients)}


def _write_shards(folder, records, options, knowledge, groups, report) -> None:
    seen: dict[str, int] = {}
    writer = None
    for record in records:
        try:
            description = _describe(record, options, knowledge, groups)
            sample = _sample(record, description, options)
        except KeepFITError as error:
            reason = getattr(error, "reason", str(error))
            report.reject(record.row, reason, f"row {record.row}: {error}")
            continue
        first = seen.setdefault(sample["__key__"], record.row)
        if first != record.row:
            reason = f"the same image and text as row {first}"
            report.reject(record.row, reason, f"row {record.row}: {reason}")
            continue
        if writer is None or writer.count >= options.samples_per_shard:
            if writer is not None:
                writer.close(report)
            writer = _Shard(folder / _SHARD_NAME.format(len(report.shards)))
        writer.write(sample)
        _count(description, knowledge, report)
    if writer is not None:
        writer.close(report)


class _Shard:
    """One tar being written, byte for byte the same for the same samples."""

    def __init__(self, path: Path):
        self.path = path
        self.count = 0
        self._tar = wds.TarWriter(str(path), encoder=False, mtime=0, user="keepfit", group="keepfit")

    def write(self, sample: dict) -> None:
        try:
            self._tar.write(sample)
        except OSError:
            with suppress(OSError):
                self._tar.close()  # else it tries again, aloud, when it is collected
            raise
        self.count += 1

    def close(self, report: ShardReport) -> None:
        self._tar.close()
        report.shards[self.path.name] = {"sha256": file_sha256(self.path), "samples": self.count}


def _describe(record: Record, options: ShardOptions, knowledge: Knowledge, groups: dict[str, int]) -> dict:
    """The sample's JSON."""
    categories = list(dict.fromkeys(knowledge.canonical(c) for c in record.categories))
    if len(categories) > MAX_CATEGORIES:
        raise TableError(f"has {len(categories)} categories; at most {MAX_CATEGORIES} are supported", record.row)
    if options.kind == "public" and not categories:
        raise TableError("has no category, which public shards need", record.row)
    if options.kind == "elite" and not record.captions:
        raise TableError("has no caption, which elite shards need", record.row)
    captions = record.captions if options.kind == "elite" else ()
    return {
        "schema": DATA_SCHEMA,
        "kind": options.kind,
        "modality": record.modality or options.modality,
        "captions": [{"lang": "en", "text": caption} for caption in captions],
        "categories": categories,
        "attributes": list(record.attributes),
        "dataset": options.dataset,
        "eye": record.eye,
        "group": groups.get(record.patient),
    }


def _sample(record: Record, description: dict, options: ShardOptions) -> dict:
    """One WebDataset sample of bytes; its key is a hash of its content."""
    image_bytes = encode_jpeg(_fit(open_image(record.image), options.size), options.quality)
    content = json.dumps(description, ensure_ascii=False, sort_keys=True).encode()
    key = hashlib.sha256(image_bytes + content).hexdigest()[:20]
    if description["captions"]:
        text = description["captions"][0]["text"]
    else:
        text = category_text(description["categories"], description["modality"], description["attributes"])
    return {"__key__": key, "jpg": image_bytes, "json": content, "txt": text.encode()}


def _fit(image: Image.Image, size: int | None) -> Image.Image:
    """The image with its longest side at most `size`."""
    if size is None or max(image.size) <= size:
        return image
    image = image.copy()
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    return image


def _count(description: dict, knowledge: Knowledge, report: ShardReport) -> None:
    report.samples += 1
    report.modalities[description["modality"] or "unknown"] += 1
    report.categories.update(description["categories"])
    report.unresolved.update(c for c in description["categories"] if knowledge.resolve(c) is None)


def _manifest(options: ShardOptions, report: ShardReport) -> dict:
    """What stands in manifest.json: counts, hashes and row numbers, nothing that names an input."""
    return {
        "schema": DATA_SCHEMA,
        "options": asdict(options),
        "samples": report.samples,
        "shards": report.shards,
        "categories": dict(report.categories.most_common()),
        "modalities": dict(report.modalities.most_common()),
        "unresolved_categories": dict(report.unresolved.most_common()),
        "rejected": [{"row": row, "reason": reason} for row, reason in sorted(report.rejected)],
    }
