"""Reading shards back: which tars a name stands for, and the samples in them.

Only images, `.json` and `.txt` members are read; anything else in a tar is passed over before it could be decoded.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import braceexpand
import webdataset as wds
from PIL import Image

from keepfit_clip.data.images import open_image
from keepfit_clip.errors import ShardError
from keepfit_clip.knowledge import MODALITIES

__all__ = ["ShardSample", "check_kind", "count_samples", "list_shards", "read_shards"]

_IMAGES = ("jpg", "jpeg", "png", "webp")
_MEMBERS = (*_IMAGES, "json", "txt")
_END_MARK = 1024  # bytes of zeros at the end of a tar


@dataclass(frozen=True)
class ShardSample:
    """One sample of a shard.

    Args:
        key: its content hash.
        image_bytes: the encoded image.
        description: the sample's JSON, see `keepfit_clip.data.shards`.
    """

    key: str
    image_bytes: bytes
    description: dict

    def image(self) -> Image.Image:
        """The decoded image.

        Raises:
            ImageError: it cannot be decoded.
        """
        return open_image(self.image_bytes, name=f"sample {self.key}")


def list_shards(spec: str | Path) -> list[str]:
    """The tars that a specification stands for, sorted within each part.

    Args:
        spec: a folder of shards, a tar, a brace pattern such as `DIR/{000000..000010}.tar`, or several of these
            joined by `::`.

    Raises:
        ShardError: nothing there, or a tar is missing.
    """
    shards = []
    for part in str(spec).split("::"):
        if os.path.isdir(part):
            found = sorted(str(path) for path in Path(part).glob("*.tar"))
            if not found:
                raise ShardError(f"{part} holds no shards (*.tar): build them with `keepfit-clip shards build`")
        else:
            found = list(braceexpand.braceexpand(part))
        shards += found
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise ShardError(f"{missing[0]}: no such shard or shard folder")
    return shards


def count_samples(shards: Iterable[str]) -> int:
    """Number of samples in shards, from the `sizes.json` beside each.

    Raises:
        ShardError: no `sizes.json`, or it does not know a shard.
    """
    total = 0
    for shard in shards:
        sizes = Path(shard).with_name("sizes.json")
        try:
            total += int(json.loads(sizes.read_text(encoding="utf-8"))[os.path.basename(shard)])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{sizes} does not tell how many samples {os.path.basename(shard)} has: "
                "build the shards with `keepfit-clip shards build`, or give --train-num-samples"
            ) from error
    return total


def check_kind(shards: Iterable[str], kind: str) -> None:
    """Raises ShardError if the manifest beside a shard says it is of another kind (public, elite)."""
    for manifest in {Path(shard).with_name("manifest.json") for shard in shards}:
        try:
            stored = json.loads(manifest.read_text(encoding="utf-8"))["options"]["kind"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # shards made by another tool have no manifest of ours; each sample says its kind
        if stored != kind:
            raise ShardError(f"{manifest.parent} holds {stored} samples, not {kind} ones")


def read_shards(shards: Iterable[str], on_error: Callable[[ShardError], None] | None = None) -> Iterator[ShardSample]:
    """Reads shards once, in order.

    Args:
        shards: paths of tars.
        on_error: called for each shard or sample that cannot be read, which is then left out; without it the first
            one raises.

    Raises:
        ShardError: a shard or sample cannot be read (see `on_error`).
    """

    def report(problem: ShardError) -> None:
        if on_error is None:
            raise problem
        on_error(problem)

    def repeated(error: Exception) -> bool:
        report(ShardError(f"a shard has a member twice: {error.args[0]}"))
        return True

    for shard in shards:
        for sample in wds.tariterators.group_by_keys(_members(shard, report), handler=repeated):
            try:
                parsed = _parse(sample)
            except ShardError as problem:
                report(problem)
            else:
                yield parsed


def _members(shard: str, report: Callable[[ShardError], None]) -> Iterator[dict]:
    """Name and content of the members we know, up to where the tar is damaged."""
    try:
        with open(shard, "rb") as stream:
            whole = _has_end_mark(stream)
            for member in wds.tariterators.tar_file_iterator(stream, select_files=_is_member):
                yield {**member, "__url__": shard}
        if not whole:  # cut between two members, where tarfile sees nothing wrong
            report(ShardError(f"{shard}: the tar is cut off or damaged (it has no end mark)"))
    except (OSError, EOFError, tarfile.TarError) as error:
        cause = error.args[0] if error.args else type(error).__name__
        report(ShardError(f"{shard}: the tar is cut off or damaged ({cause})"))


def _has_end_mark(stream: BinaryIO) -> bool:
    """Whether a tar ends in the two empty blocks that close it."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _END_MARK))
    end = stream.read()
    stream.seek(0)
    return len(end) == _END_MARK and not any(end)


def _is_member(name: str) -> bool:
    return os.path.basename(name).partition(".")[2].lower() in _MEMBERS


def _parse(sample: dict) -> ShardSample:
    key = sample["__key__"]
    where = f"{sample.get('__url__', 'shard')}, sample {key}"
    suffix = next((name for name in _IMAGES if name in sample), None)
    if suffix is None or "json" not in sample:
        raise ShardError(f"{where}: has no image or no .json")
    try:
        description = json.loads(sample["json"])
        captions = [caption["text"] for caption in description.get("captions", [])]
        complete = (
            description["kind"] in ("public", "elite")
            and description.get("modality") in (*MODALITIES, None)
            and all(isinstance(text, str) for text in [*captions, *description["categories"]])
            and bool(captions if description["kind"] == "elite" else description["categories"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{where}: its .json is not a description of a sample ({error!r})") from error
    if not complete:
        raise ShardError(f"{where}: its .json lacks a kind, a known modality, or what the kind needs")
    return ShardSample(key, sample[suffix], description)
