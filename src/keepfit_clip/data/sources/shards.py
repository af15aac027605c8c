"""Existing WebDataset shards: ours, to be built anew with other options, or another tool's images with texts."""

import json
from collections.abc import Iterator

from keepfit_clip.data.description import Description, json_text
from keepfit_clip.data.records import Record
from keepfit_clip.data.sources.cells import RowReader, row_error
from keepfit_clip.data.sources.notes import SourceNotes
from keepfit_clip.data.sources.options import SourceOptions
from keepfit_clip.data.tars.reader import RawSample, list_shards, read_raw_samples
from keepfit_clip.errors import ShardError, TableError
from keepfit_clip.remote.paths import Place

__all__ = ["fits", "read"]


def fits(path: Place) -> bool:
    """Whether a path is a tar, a pattern of tars or a folder of them."""
    return ".tar" in path.name or (path.is_dir() and any(path.glob("*.tar")))


def read(
    path: Place, images: str | Place | None, options: SourceOptions, notes: SourceNotes | None = None
) -> Iterator[Record | TableError]:
    """The samples of shards, and an error for each that cannot be used.

    Raises:
        TableError: `images` is given, which shards do not need.
        ShardError: no shard is there.
    """
    if images is not None:
        raise TableError(f"{path}: shards hold their images themselves; leave --images out")
    problems: list[ShardError] = []
    number = 0
    for shard in list_shards(path):
        reader = RowReader(
            shard,
            None,
            options,
            needs_image=False,
            notes=notes,
            unfit="has no text and no category that is known",
        )
        for sample in read_raw_samples(shard, problems.append):
            number += 1
            try:
                yield from _records(shard, number, sample, reader)
            except TableError as error:
                yield error
        for problem in problems:
            number += 1
            yield row_error(shard, number, "the shard or a sample in it is damaged", f" ({problem})")
        problems.clear()
    if number == 0:
        raise TableError(f"{path}: its shards hold no samples")


def _records(shard: str, number: int, sample: RawSample, reader: RowReader) -> list[Record]:
    if sample.image is None:
        raise row_error(shard, number, "has no image")
    try:
        stored = json.loads(json_text(sample.members.get("json", b"{}")))
        text = sample.members.get("txt", b"").decode()
        if not isinstance(stored, dict):
            raise ValueError("not an object")
        if "schema" in stored and "kind" in stored:
            return [_our_record(number, sample)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise row_error(shard, number, "its .json or .txt cannot be read") from error
    cells = {key: value for key, value in stored.items() if not isinstance(value, dict)}
    if text.strip():
        cells.setdefault("caption", text)
    if "cls" in sample.members:
        cells.setdefault("cls", sample.members["cls"].decode(errors="replace"))
    return reader.records(number, cells, sample.image)


def _our_record(number: int, sample: RawSample) -> Record:
    """The record of a sample of ours; ValueError where its JSON is not what we write."""
    stored = Description.from_json(sample.members["json"])
    return Record(
        row=number,
        image=sample.image,
        captions=stored.captions,
        categories=stored.categories,
        attributes=stored.attributes,
        modality=stored.modality,
        patient=None if stored.group is None else f"{stored.dataset} {stored.group}",
        eye=stored.eye,
        dataset=stored.dataset,
    )
