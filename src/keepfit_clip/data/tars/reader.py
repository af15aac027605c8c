"""Reading shards back: which tars a name stands for, and the samples in them.

Only images, `.json`, `.txt` and `.cls` members are read; anything else in a tar is passed over and never decoded.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import braceexpand
from PIL import Image

from keepfit_clip.data.description import Description
from keepfit_clip.data.tars.locations import beside, exists, is_local, read_text
from keepfit_clip.data.tars.members import IMAGE_MEMBERS, read_tar
from keepfit_clip.errors import ShardError
from keepfit_clip.files import printable
from keepfit_clip.images.reading import FileSlice, open_image
from keepfit_clip.remote.paths import Place, RemotePath, place

__all__ = [
    "RawSample",
    "ShardSample",
    "check_kind",
    "count_samples",
    "list_all_shards",
    "list_shards",
    "read_raw_samples",
    "read_shards",
    "shard_info",
    "split_parts",
]


@dataclass
class RawSample:
    """The members of one sample, as they stand in a tar.

    Args:
        key: their common name.
        members: suffix -> content, of the suffixes that are read.
        image: the image as a part of the tar, or its bytes where the tar is remote or compressed; None without one.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    image: FileSlice | bytes | None = None


@dataclass(frozen=True)
class ShardSample:
    """One sample of a shard.

    Args:
        key: its content hash.
        image_bytes: the encoded image.
        description: what is said of it.
        json: the same as it stands in the tar, with whatever else another tool wrote there.
    """

    key: str
    image_bytes: bytes
    description: Description
    json: bytes

    def image(self) -> Image.Image:
        """The decoded image.

        Raises:
            ImageError: it cannot be decoded.
        """
        return open_image(self.image_bytes, name=f"sample {self.key}")


def list_shards(spec: str | Place) -> list[str]:
    """The tars that a specification stands for, sorted within each part.

    Args:
        spec: a folder of shards, a tar, a brace pattern such as `DIR/{000000..000010}.tar`, or several of these
            joined by `::`. Each may be a path, a URL (http, https, s3, gs, ...) or `pipe:COMMAND`. A remote folder
            must hold the `sizes.json` that `keepfit-clip shards build` writes.

    Raises:
        ShardError: nothing there, or a local tar is missing.
    """
    return [shard for part in str(spec).split("::") for shard in _list_part(part)]


def _list_part(part: str) -> list[str]:
    if part.startswith("pipe:"):
        return list(braceexpand.braceexpand(part))
    if os.path.isdir(part):
        shards = sorted(str(path) for path in Path(part).glob("*.tar"))
        parts = [] if shards else [name for name in split_parts(part) if name]
        if parts:
            raise ShardError(f"{part} holds the parts {', '.join(parts)} of a split: give one of them")
        if not shards:
            raise ShardError(f"{part} holds no shards (*.tar): build them with `keepfit-clip shards build`")
        return shards
    shards = []
    try:
        expanded = list(braceexpand.braceexpand(part))
    except ValueError as error:
        raise ShardError(f"{part}: not a pattern of shards ({error})") from error
    for location in expanded:
        if os.path.isdir(location):
            shards += _list_part(location)
        elif not is_local(location) and ".tar" not in location.rpartition("/")[2]:
            shards += _list_remote_folder(location)
        else:
            shards.append(location)
    other = [shard for shard in shards if is_local(shard) and os.path.isfile(shard) and ".tar" not in Path(shard).name]
    if other:
        raise ShardError(
            f"{other[0]}: is no shard (*.tar); make shards of a table with `keepfit-clip shards build` and give their "
            "folder"
        )
    missing = [shard for shard in shards if not exists(shard)]
    if missing:
        raise ShardError(f"{missing[0]}: no such shard or shard folder")
    return shards


def split_parts(folder: str | Place) -> dict[str, Place]:
    """Name and folder of each part of a split, or "" and the folder itself where it is none."""
    folder = place(folder)
    try:
        parts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        parts = []
    named = isinstance(parts, list) and all(isinstance(part, str) and part == os.path.basename(part) for part in parts)
    return {part: folder / part for part in parts} if parts and named else {"": folder}


def list_all_shards(spec: str | Place) -> list[str]:
    """`list_shards`, and for a split the tars of all its parts."""
    if spec.is_dir() if isinstance(spec, RemotePath) else os.path.isdir(spec):
        return [shard for where in split_parts(spec).values() for shard in list_shards(where)]
    return list_shards(spec)


def _list_remote_folder(location: str) -> list[str]:
    sizes = f"{location.rstrip('/')}/sizes.json"
    try:
        names = sorted(json.loads(read_text(sizes)))
        if not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
            raise TypeError("its names are none of files beside it")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ShardError(f"{sizes} does not tell which shards there are ({error}); name the tars") from error
    if not names:
        raise ShardError(f"{sizes} names no shards")
    return [beside(sizes, name) for name in names]


def shard_info(shards: Iterable[str], name: str) -> dict[str, dict]:
    """What the JSON files beside shards say: location of the file -> its content; unreadable ones are left out.

    Args:
        shards: locations of tars.
        name: `sizes.json` or `manifest.json`.
    """
    contents = {}
    for location in dict.fromkeys(beside(shard, name) for shard in shards):
        try:
            content = json.loads(read_text(location))
        except (OSError, ValueError, RecursionError, ShardError):
            continue
        if isinstance(content, dict):
            contents[location] = content
    return contents


def count_samples(shards: Iterable[str]) -> int:
    """Number of samples in shards, from the `sizes.json` beside each.

    Raises:
        ShardError: no `sizes.json`, or it does not know a shard.
    """
    shards = list(shards)
    sizes = shard_info(shards, "sizes.json")
    total = 0
    for shard in shards:
        location, name = beside(shard, "sizes.json"), shard.rpartition("/")[2]
        count = sizes.get(location, {}).get(name)
        if not isinstance(count, int) or count < 0:
            raise ShardError(
                f"{location} does not tell how many samples {name} has: "
                "build the shards with `keepfit-clip shards build`, or give --train-num-samples"
            )
        total += count
    return total


def check_kind(shards: Iterable[str], kind: str) -> None:
    """Raises ShardError if the manifest beside a shard says it is of another kind (public, elite)."""
    for location, manifest in shard_info(shards, "manifest.json").items():
        options = manifest.get("options")
        stored = options.get("kind") if isinstance(options, dict) else None
        if stored not in (None, kind):  # shards made by another tool say it in each sample
            raise ShardError(f"{os.path.dirname(location)} holds {stored} samples, not {kind} ones")


def read_shards(shards: Iterable[str], on_error: Callable[[ShardError], None] | None = None) -> Iterator[ShardSample]:
    """Reads shards once, in order.

    Args:
        shards: locations of tars.
        on_error: called for each shard or sample that cannot be read, which is then left out; without it the first
            one raises.

    Raises:
        ShardError: a shard or sample cannot be read (see `on_error`).
    """
    for shard in shards:
        for sample in read_raw_samples(shard, on_error, image_slices=False):
            try:
                parsed = _parse(shard, sample)
            except ShardError as problem:
                _report(problem, on_error)
            else:
                yield parsed


def read_raw_samples(
    shard: str, on_error: Callable[[ShardError], None] | None = None, image_slices: bool = True
) -> Iterator[RawSample]:
    """The samples of one shard, not looked into.

    Args:
        shard: location of a tar.
        on_error: see `read_shards`.
        image_slices: give images as parts of the tar where it is a plain local file, instead of their bytes.
    """
    current, problem = None, None

    def whole() -> Iterator[RawSample]:
        if problem is not None:
            _report(ShardError(f"{shard}, sample {printable(current.key)}: {problem}"), on_error)
        elif current is not None:
            yield current

    for member in read_tar(shard, lambda error: _report(error, on_error), image_slices):
        if current is None or member.key != current.key:
            yield from whole()
            current, problem = RawSample(member.key), None
        is_image = member.suffix in IMAGE_MEMBERS
        if member.suffix in current.members or (is_image and current.image is not None):
            problem = problem or f"has the member .{member.suffix} twice"
        elif member.problem is not None:
            problem = problem or member.problem
        elif is_image:
            current.image = member.content
        else:
            current.members[member.suffix] = member.content
    yield from whole()


def _report(problem: ShardError, on_error: Callable[[ShardError], None] | None) -> None:
    if on_error is None:
        raise problem
    on_error(problem)


def _parse(shard: str, sample: RawSample) -> ShardSample:
    where = f"{shard}, sample {sample.key}"
    if sample.image is None or "json" not in sample.members:
        raise ShardError(f"{where}: has no image or no .json")
    try:
        description = Description.from_json(sample.members["json"])
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: its .json is not a description of a sample ({error})") from error
    return ShardSample(sample.key, sample.image, description, sample.members["json"])
