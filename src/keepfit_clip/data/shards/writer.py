"""Writing one shard of a plan: the job that runs in parallel, on this machine or on a cluster.

A tar is written under a temporary name; then its report, then the rename. So a tar that is there is whole and has its
report, and a build that goes on after a stop knows it by its name alone.
"""

import os
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import webdataset as wds

from keepfit_clip.data.description import Description
from keepfit_clip.data.duplicates import ImageIndex
from keepfit_clip.data.identifiers.privacy import find_identifiers, redact
from keepfit_clip.data.records import Caption, LeftOut, Record
from keepfit_clip.data.shards.options import ShardOptions
from keepfit_clip.data.shards.plan import read_rows
from keepfit_clip.data.shards.report import ShardResult, reading_leftovers
from keepfit_clip.errors import ImageError, KeepFITError, MissingExtraError, OutputError, TableError, WorkerError
from keepfit_clip.files import file_sha256, printable, writing
from keepfit_clip.images.burnt_in_text import find_text, mask_text
from keepfit_clip.images.depth import is_blank
from keepfit_clip.images.field_of_view import crop_field_of_view
from keepfit_clip.images.metadata import without_metadata
from keepfit_clip.images.reading import BLANK, encode_jpeg, fit_within, image_bytes, image_name, open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.corrections import corrections_of
from keepfit_clip.knowledge.labels import read_label

__all__ = ["EXCLUDED", "ShardJob", "describe", "write_shard"]

EXCLUDED = "excluded.npz"


@dataclass(frozen=True)
class ShardJob:
    """One shard to write.

    Args:
        plan: the plan's file.
        part: which part of the split, "" where there is none.
        start, stop: positions in it.
        tar: the tar's final path.
        report: path of its report.
        options: of the build.
        knowledge: resolves category names.
    """

    plan: Path
    part: str
    start: int
    stop: int
    tar: Path
    report: Path
    options: ShardOptions
    knowledge: Knowledge


def write_shard(job: ShardJob, on_row: Callable[[], None] | None = None) -> int:
    """Writes a shard and its report, unless they are there already; returns how many rows it took.

    Args:
        job: which one.
        on_row: called after each row.

    Raises:
        OutputError: no space is left.
        WorkerError: images lie in object storage, which does not answer.
    """
    if job.report.exists() and (job.tar.exists() or not ShardResult.load(job.report).samples):
        return job.stop - job.start
    # Beside the report, so that nothing half written can move into the output with the finished tars.
    temporary = job.report.with_name(f"{job.part}{job.tar.name}.{socket.gethostname()}-{os.getpid()}.partial")
    with writing(job.tar):
        try:
            result = _write_tar(job, temporary, on_row)
            result.save(job.report)
            if result.samples and not job.tar.exists():
                os.replace(temporary, job.tar)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return job.stop - job.start


def _write_tar(job: ShardJob, path: Path, on_row: Callable[[], None] | None) -> ShardResult:
    result = ShardResult()
    first_rows: dict[str, int] = {}
    tar = wds.TarWriter(str(path), encoder=False, mtime=0, user="keepfit", group="keepfit")
    try:
        for record, patient in read_rows(job.plan, job.part, job.start, job.stop):
            try:
                corrected = _corrected(record, job.options)
                sample, description, redacted, has_text = _sample(corrected, patient, job)
                first = first_rows.setdefault(sample["__key__"], record.row)
                if first != record.row:
                    raise TableError(f"the same picture and text as row {first}", record.row)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tar.write(sample)
            except (OutputError, WorkerError, MissingExtraError):
                raise
            except KeepFITError as error:
                reason = getattr(error, "reason", "it cannot be stored")  # a message may name a file
                result.left_out.append(LeftOut(record.row, reason, printable(f"row {record.row}: {error}")))
            else:
                result.redacted += redacted
                result.burnt_in_text += [record.row] * has_text
                result.corrected += corrected is not record
                result.silent += sum(not read_label(label, job.knowledge) for label in record.categories)
                result.count(description, job.knowledge)
            if on_row is not None:
                on_row()
    finally:
        _close(tar)
    if result.samples:
        result.sha256 = file_sha256(path)
    return result


def _close(tar: wds.TarWriter) -> None:
    """Closes a tar; where the disk is full it would otherwise try again, aloud, when it is collected."""
    try:
        tar.close()
    except OSError:
        with suppress(OSError):
            tar.close()
        raise


def describe(record: Record, options: ShardOptions, knowledge: Knowledge, patient: int | None = None) -> Description:
    """What the shards say of a record.

    Raises:
        TableError: the record lacks what its kind needs, or has what no sample may.
    """
    categories = tuple(dict.fromkeys(name for c in record.categories for name in read_label(c, knowledge)))
    if options.kind == "public" and not categories:
        raise TableError("has no category, which public shards need", record.row)
    if options.kind == "elite" and not record.captions:
        raise TableError("has no caption, which elite shards need", record.row)
    try:
        return Description(
            kind=options.kind,
            modality=record.modality or options.modality,
            captions=record.captions if options.kind == "elite" else (),
            categories=categories,
            attributes=record.attributes,
            dataset=options.dataset or record.dataset,
            eye=record.eye,
            group=patient,
        )
    except ValueError as error:
        raise TableError(str(error), record.row) from error


def _sample(record: Record, patient: int | None, job: ShardJob) -> tuple[dict, Description, bool, bool]:
    """A WebDataset sample of bytes, keyed by a hash of its content; its description; whether a caption was redacted;
    whether the picture has text burnt in, or had.
    """
    private, redacted = _private(record, job)
    description = describe(private, job.options, job.knowledge, patient)
    suffix, image, has_text = _image(record, description.modality, job)
    sample = {"__key__": description.key(image), suffix: image, "json": description.to_json()}
    return {**sample, "txt": description.text.encode()}, description, redacted, has_text


def _corrected(record: Record, options: ShardOptions) -> Record:
    """The record with the right terms in its captions; itself where nothing is to be corrected."""
    if not options.correct_terms:
        return record
    corrections = corrections_of(options.correct_terms)
    captions = tuple(
        c._replace(text=corrections.apply(c.text)) if c.lang == corrections.lang else c for c in record.captions
    )
    return record if captions == record.captions else replace(record, captions=captions)


def _private(record: Record, job: ShardJob) -> tuple[Record, bool]:
    """The record with texts that name nobody, and whether that took a change.

    Captions are looked at, and categories that the knowledge file does not know: whole descriptions, often.

    Raises:
        TableError: a text seems to hold an identifier and is neither to be redacted nor kept.
    """
    policy, patient = job.options.identifiers, record.patient
    if policy == "keep":
        return record, False
    captions = record.captions if job.options.kind == "elite" else ()
    foreign = [category for category in record.categories if job.knowledge.resolve(category) is None]
    kinds = [kind for text in (*(c.text for c in captions), *foreign) for kind in find_identifiers(text, patient)]
    if not kinds:
        return record, False
    if policy == "refuse":
        raise TableError(
            f"a text of it seems to hold {' and '.join(dict.fromkeys(kinds))}: look at it, then --redact or "
            "--keep-identifiers",
            record.row,
        )
    redacted = replace(
        record,
        captions=tuple(Caption(redact(caption.text, patient), caption.lang) for caption in captions),
        categories=tuple(redact(c, patient) if c in foreign else c for c in record.categories),
    )
    return redacted, True


def _image(record: Record, modality: str | None, job: ShardJob) -> tuple[str, bytes, bool]:
    """Suffix and bytes of the image as it is stored, and whether text is burnt into it, or was.

    Raises:
        TableError: it is excluded, or has text and is to be refused.
        ImageError: it cannot be read, or shows nothing.
    """
    options, name = job.options, image_name(record.image)
    content = image_bytes(record.image)
    picture = open_image(content, name)
    if options.exclude and _excluded(job.plan.with_name(EXCLUDED)).holds(content, picture):
        raise TableError("the picture also stands in an excluded set", record.row)
    if options.crop and modality == "CFP":
        picture = crop_field_of_view(picture)
    text = find_text(picture) if options.burnt_in_text != "ignore" else []
    if text and options.burnt_in_text == "refuse":
        raise TableError(
            "text seems to be burnt into the picture: look at it, then --burnt-in-text mask or count", record.row
        )
    if options.burnt_in_text == "mask":
        picture = mask_text(picture, text)
    side = options.side or ("shortest" if modality == "OCT" else "longest")
    picture = fit_within(picture, options.size, side)
    if not options.keep_blank and is_blank(picture):
        raise ImageError(name, f"{BLANK} (--keep-blank keeps it)")
    if options.originals:
        return *without_metadata(content, name), bool(text)
    return "jpg", encode_jpeg(picture, options.quality), bool(text)


def _excluded(path: Path) -> ImageIndex:
    with reading_leftovers(path):
        return _load_index(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load_index(path: Path, _written: int) -> ImageIndex:
    return ImageIndex.load(path)
