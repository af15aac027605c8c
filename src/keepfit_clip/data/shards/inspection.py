"""Looking into finished shards: whether they are whole and true to their manifest, and what they hold."""

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from keepfit_clip.data.description import DATA_SCHEMA, Description, json_text
from keepfit_clip.data.engines import run_jobs
from keepfit_clip.data.tars.reader import ShardSample, list_all_shards, list_shards, read_shards, split_parts
from keepfit_clip.errors import ImageError, ShardError
from keepfit_clip.files import file_sha256
from keepfit_clip.images.reading import encode_jpeg, fit_within, open_image
from keepfit_clip.knowledge.conditions import Knowledge

__all__ = ["Problem", "ShardStatistics", "check_shards", "find_sample", "gather_statistics"]

_THUMBNAIL = 128  # pixels


class Problem(NamedTuple):
    """Something that is not as it should be.

    Args:
        shard: name of the tar or file, with its part.
        key: of the sample, or "".
        what: is wrong.
    """

    shard: str
    key: str
    what: str


@dataclass
class _ShardCheck:
    """What the check of one shard brought up."""

    part: str
    problems: list[Problem] = field(default_factory=list)
    samples: int = 0
    images: dict[str, str] = field(default_factory=dict)  # digest of the image -> key
    keys: list[str] = field(default_factory=list)
    groups: set[tuple] = field(default_factory=set)
    categories: Counter = field(default_factory=Counter)


def check_shards(
    folder: str | Path,
    knowledge: Knowledge | None = None,
    workers: int | None = 1,
    on_step: Callable[[str, int, int | None], None] | None = None,
) -> list[Problem]:
    """Everything that is wrong with a folder of shards, or with the parts of a split.

    Hashes and counts against the manifest, every sample's JSON, text and image (also whether it shows anything), keys
    against the content they hash, categories against the knowledge file, images that stand there twice, and patients or
    images in two parts.

    Args:
        folder: of shards, or of the parts of a split.
        knowledge: resolves categories; the shipped one by default.
        workers: processes; None is one for each core.
        on_step: see `build_shards`.

    Raises:
        ShardError: there are no shards.
    """
    folder = Path(folder)
    knowledge = knowledge or Knowledge.load()
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder of shards")
    parts = split_parts(folder)
    problems: list[Problem] = []
    jobs = []
    for part, where in parts.items():
        list_problems, manifest = _check_lists(where, part)
        problems += list_problems
        options = manifest.get("options")
        blank = bool(options.get("keep_blank")) if isinstance(options, dict) else False
        jobs += [(part, shard, manifest["shards"].get(os.path.basename(shard)), blank) for shard in list_shards(where)]
    checks: dict[str, list[_ShardCheck]] = {part: [] for part in parts}
    with closing(run_jobs(_check_shard, [(*job, knowledge) for job in jobs], workers, "processes")) as results:
        for done, check in enumerate(results, start=1):
            checks[check.part].append(check)
            problems += check.problems
            if on_step is not None:
                on_step("checking shards", done, len(jobs))
    problems.sort()
    unresolved = sum((check.categories for part in checks.values() for check in part), Counter())
    problems += [
        Problem("", "", f"category {name!r} ({count} samples) is not in the knowledge file")
        for name, count in unresolved.most_common()
    ]
    return [*problems, *_repeated(checks), *_leaks(checks)]


def _read_json(path: Path) -> tuple[dict | None, str]:
    """The content, or None and what is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, "is missing"
    except (OSError, ValueError, RecursionError) as error:
        return None, f"cannot be read ({error})"
    return (content, "") if isinstance(content, dict) else (None, "is not a JSON object")


def _check_lists(folder: Path, part: str) -> tuple[list[Problem], dict]:
    """Problems of manifest.json and sizes.json, and the manifest."""
    problems = []

    def add(name: str, what: str) -> None:
        problems.append(Problem(_named(part, name), "", what))

    manifest, wrong = _read_json(folder / "manifest.json")
    if manifest is None:
        add("manifest.json", wrong)
        manifest = {}
    sizes, wrong = _read_json(folder / "sizes.json")
    if sizes is None:
        add("sizes.json", wrong)
    shards = manifest.get("shards")
    if not isinstance(shards, dict) or not all(isinstance(entry, dict) for entry in shards.values()):
        if manifest:
            add("manifest.json", 'has no list of "shards"')
        manifest = {**manifest, "shards": {}}
        shards = {}
    there = {path.name for path in folder.glob("*.tar")}
    for name in sorted(set(shards) - there):
        add(name, "is in the manifest but not in the folder")
    for name in sorted(there - set(shards)) if shards else ():
        add(name, "is in the folder but not in the manifest")
    if sizes is not None and shards and sizes != {name: entry.get("samples") for name, entry in shards.items()}:
        add("sizes.json", "does not agree with the manifest")
    return problems, manifest


def _named(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _check_shard(job: tuple[str, str, dict | None, bool, Knowledge]) -> _ShardCheck:
    part, shard, stored, blank, knowledge = job
    check, name = _ShardCheck(part), _named(part, os.path.basename(shard))

    def add(key: str, what: str) -> None:
        check.problems.append(Problem(name, key, what))

    if stored is not None and file_sha256(shard) != stored.get("sha256"):
        add("", "its SHA-256 is not the manifest's: it was changed or damaged")
    for sample in read_shards([shard], on_error=lambda error: add("", str(error).removeprefix(f"{shard}: "))):
        check.samples += 1
        check.keys.append(sample.key)
        for what in _sample_problems(sample, blank):
            add(sample.key, what)
        check.categories.update(c for c in sample.description.categories if knowledge.resolve(c) is None)
        if sample.description.patient is not None:
            check.groups.add(sample.description.patient)
        digest = hashlib.sha256(sample.image_bytes).hexdigest()[:24]
        check.images.setdefault(digest, sample.key)
    if stored is not None and check.samples != stored.get("samples"):
        add("", f"holds {check.samples} samples that can be read; the manifest says {stored.get('samples')}")
    return check


def _sample_problems(sample: ShardSample, blank: bool) -> Iterator[str]:
    """What is wrong with a sample; that its picture shows nothing, too, unless such ones were to be kept."""
    if json.loads(json_text(sample.json)) != sample.description.to_dict():
        yield f"its .json does not have the keys of schema {DATA_SCHEMA}"
    elif sample.key != sample.description.key(sample.image_bytes):
        yield "its key is not the hash of its content: it was changed"
    try:
        open_image(sample.image_bytes, blank=blank)
    except ImageError as error:
        yield error.reason


def _repeated(checks: dict[str, list[_ShardCheck]]) -> Iterator[Problem]:
    keys = Counter(key for part in checks.values() for check in part for key in check.keys)
    for key, count in keys.items():
        if count > 1:
            yield Problem("", key, f"stands there {count} times")


def _leaks(checks: dict[str, list[_ShardCheck]]) -> Iterator[Problem]:
    """Patients and images that stand in two parts of a split."""
    for what in ("groups", "images"):
        first: dict = {}
        for part, members in checks.items():
            for item in {item for check in members for item in getattr(check, what)}:
                other = first.setdefault(item, part)
                if other != part:
                    name = f"group {item[1]}" if what == "groups" else "an image"
                    yield Problem(f"{other}, {part}", "", f"{name} stands in both parts")


@dataclass
class ShardStatistics:
    """What shards hold.

    Args:
        samples: number of them.
        counts: kind, modality, dataset, eye, language -> value -> samples.
        categories: category -> samples.
        categories_by_modality: modality -> category -> samples.
        sizes: "width x height" of images -> samples, of those looked at.
        captions: number of captions; distinct_captions: of different ones; caption_words: words in all of them.
        groups: number of different patients or eyes.
        unreadable: samples or shards that could not be read.
        examples: (thumbnail as JPEG, what is said of it) of samples drawn at random.
    """

    samples: int = 0
    counts: dict[str, Counter] = field(default_factory=dict)
    categories: Counter = field(default_factory=Counter)
    categories_by_modality: dict[str, Counter] = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)
    captions: int = 0
    distinct_captions: int = 0
    caption_words: int = 0
    groups: int = 0
    unreadable: int = 0
    examples: list[tuple[bytes, Description]] = field(default_factory=list)


def gather_statistics(
    spec: str | Path, examples: int = 48, on_step: Callable[[str, int, int | None], None] | None = None
) -> ShardStatistics:
    """Reads shards once and counts.

    Args:
        spec: see `list_shards`; a folder with the parts of a split is all of its parts.
        examples: pictures for a contact sheet, drawn at random but the same each time.
        on_step: see `build_shards`.

    Raises:
        ShardError: there are no shards.
    """
    shards = list_all_shards(spec)
    statistics, rng = ShardStatistics(), random.Random(0)
    names = ("kind", "modality", "dataset", "eye", "language")
    statistics.counts = {name: Counter() for name in names}
    captions, groups = set(), set()
    chosen: list[ShardSample] = []

    def unreadable(_: ShardError) -> None:
        statistics.unreadable += 1

    for done, shard in enumerate(shards, start=1):
        for sample in read_shards([shard], unreadable):
            _count(statistics, sample.description, captions, groups)
            if len(chosen) < examples:  # reservoir sampling
                chosen.append(sample)
            elif (index := rng.randrange(statistics.samples)) < examples:
                chosen[index] = sample
        if on_step is not None:
            on_step("reading shards", done, len(shards))
    statistics.distinct_captions, statistics.groups = len(captions), len(groups)
    for sample in chosen:
        try:
            image = sample.image()
        except ImageError:
            statistics.unreadable += 1
            continue
        statistics.sizes[f"{image.width} x {image.height}"] += 1
        statistics.examples.append((encode_jpeg(fit_within(image, _THUMBNAIL), 85), sample.description))
    return statistics


def _count(statistics: ShardStatistics, description: Description, captions: set, groups: set) -> None:
    statistics.samples += 1
    for name in ("kind", "modality", "dataset", "eye"):
        statistics.counts[name][getattr(description, name) or "unknown"] += 1
    statistics.categories.update(description.categories)
    by_modality = statistics.categories_by_modality.setdefault(description.modality or "unknown", Counter())
    by_modality.update(description.categories)
    for caption in description.captions:
        statistics.captions += 1
        statistics.counts["language"][caption.lang] += 1
        statistics.caption_words += len(caption.text.split())
        captions.add(hash(caption.text))
    if description.patient is not None:
        groups.add(description.patient)


def find_sample(spec: str | Path, key: str) -> ShardSample:
    """The sample of a key, or of the beginning of one.

    Args:
        spec: see `gather_statistics`.
        key: of the sample, or its first characters.

    Raises:
        ShardError: there is none, or there are several.
    """
    matches: Sequence[ShardSample] = [
        sample
        for shard in list_all_shards(spec)
        for sample in read_shards([shard], on_error=lambda _: None)
        if sample.key.startswith(key)
    ]
    if not matches:
        raise ShardError(f"{spec}: no sample has the key {key!r}")
    if len(matches) > 1 and len({sample.key for sample in matches}) > 1:
        raise ShardError(f"{spec}: {len(matches)} samples have keys that begin with {key!r}; give more of it")
    return matches[0]
