"""The corpus of textual pretraining: documents out of files, cut into sentences, without duplicates, on the disk.

    source                               document: what is held out together
    text file (.txt, or any other)       a line
    .jsonl, .ndjson                      the objects of one "document" or "id", else an object
    shards                               the captions of one patient ("group"), else of one sample
    knowledge                            a condition

A corpus may be larger than memory: lines stream through, what was met before is looked up in a table on the disk, and
the sentences lie in Arrow files that `datasets` maps into memory.
"""

import json
import logging
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from ftfy import fix_text
from syntok import segmenter

from keepfit_clip.data.tars.locations import is_local
from keepfit_clip.data.tars.reader import list_shards, read_shards
from keepfit_clip.errors import CorpusError, OutputError, ShardError, first_line
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut
from keepfit_clip.knowledge.templates import sentences_of

__all__ = [
    "Corpus",
    "CorpusFigures",
    "Document",
    "build_corpus",
    "is_held_out",
    "read_documents",
    "split_sentences",
    "stamp_sources",
]

_MIN_SENTENCES = 20
_TABLE_CACHE = 256 * 1024  # KiB of the table of what was met that stay in memory
_FIELDS_SHOWN = 8
_PARAGRAPHS = re.compile(r"\n\s*\n")
_TAR = re.compile(r"\.(tar(\.\w+)?|tgz)$")
_PATTERN = re.compile(rf"{_TAR.pattern}|::|://|^pipe:|[{{}}]")
_FEATURES = Features({"text": Value("string"), "held_out": Value("bool")})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text, or a part of one.

    Args:
        name: what is held out together has one name.
        text: of one or more sentences.
    """

    name: str
    text: str


@dataclass(frozen=True)
class CorpusFigures:
    """What a corpus holds.

    Args:
        training_documents, held_out_documents: documents of which at least one sentence was new.
        training_sentences, held_out_sentences: different sentences.
        duplicates: sentences met again, in whatever document, and left out.
        left_out: lines and samples that could not be read.
        named_held_out: sentences left out because they name a category held out.
    """

    training_documents: int = 0
    held_out_documents: int = 0
    training_sentences: int = 0
    held_out_sentences: int = 0
    duplicates: int = 0
    left_out: int = 0
    named_held_out: int = 0


@dataclass(frozen=True)
class Corpus:
    """Sentences on the disk, each once.

    Args:
        training, held_out: data sets of one column, `text`.
        figures: how many.
    """

    training: Dataset
    held_out: Dataset
    figures: CorpusFigures


def read_documents(
    sources: Sequence[str | Path],
    knowledge: Knowledge | None = None,
    text_field: str = "text",
    languages: Sequence[str] = ("en",),
    on_unreadable: Callable[[str], None] | None = None,
) -> Iterator[Document]:
    """Goes once through the documents of a corpus, a line at a time.

    Args:
        sources: text files, JSON lines, and shards as `keepfit_clip.data.tars.reader.list_shards` takes them.
        knowledge: adds what it says of each condition.
        text_field: field of a JSON line that holds the text.
        languages: of the captions taken from shards.
        on_unreadable: called with what is wrong with a JSON line or a sample, which is then left out; without it
            the first one raises.

    Raises:
        CorpusError: a source is missing, empty, not text, or has nothing that can be used.
    """
    for source in map(str, sources):
        left_out = _LeftOut(on_unreadable or _refuse)
        has_documents = False
        for document in _read(source, text_field, languages, left_out):
            has_documents = True
            yield document
        if left_out.first and not has_documents:
            raise CorpusError(f"{left_out.first}; no line or sample of it can be used")
        if not has_documents:
            spoken = ", ".join(languages)
            raise CorpusError(f"{source}: no sample has a caption in {spoken}: give shards of elite samples")
    for name in knowledge.conditions if knowledge else ():
        yield from (Document(f"knowledge {name}", sentence) for sentence in sentences_of(name, knowledge, languages))


def stamp_sources(sources: Sequence[str | Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file: all of it as before means the same corpus as before.

    Raises:
        CorpusError: a file is missing.
    """
    stamps = []
    for source in map(str, sources):
        for file in _list_shards(source) if _is_shards(source) else [source]:
            if not is_local(file):
                stamps.append((file, 0, 0))
                continue
            try:
                status = os.stat(file)
            except OSError as error:
                raise _unreadable(file, error) from error
            stamps.append((os.path.abspath(file), status.st_size, status.st_mtime_ns))
    return stamps


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, mended by ftfy, with single spaces; no other character is lost.

    An empty line ends a sentence.
    """
    for paragraph in _PARAGRAPHS.split(fix_text(text)):
        paragraph = " ".join(paragraph.split())
        # The text is cut at the tokens' offsets: joining the tokens would drop some invisible characters.
        starts = [s[0].offset - len(s[0].spacing) for part in segmenter.analyze(paragraph) for s in part]
        for start, end in pairwise([0, *starts[1:], len(paragraph)]):
            if sentence := paragraph[start:end].strip():
                yield sentence


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Whether a document is held out: its name alone decides, so neither order nor other documents matter."""
    return _digest(f"{seed} {name}") < share * 2**64


def build_corpus(
    sources: Sequence[str | Path],
    folder: Path,
    held_out: float,
    seed: int,
    knowledge: Knowledge | None = None,
    text_field: str = "text",
    languages: Sequence[str] = ("en",),
    unnamed: HeldOut | None = None,
) -> Corpus:
    """Reads documents, cuts them into sentences and stores each sentence once, where it comes first.

    Args:
        sources, knowledge, text_field, languages: see `read_documents`; what cannot be read is counted and told.
        folder: where the sentences are stored; a new one.
        held_out: share of the documents that is not to be trained on.
        seed: of the choice.
        unnamed: categories whose sentences are left out.

    Raises:
        CorpusError: see `read_documents`; too few sentences; or nothing on one side of the split.
        OutputError: no space is left.
    """
    counts: Counter[str] = Counter()

    def leave_out(problem: str) -> None:
        counts["left_out"] += 1
        if counts["left_out"] == 1:
            _logger.warning("%s; it is left out, and so is whatever else cannot be read", problem)

    folder.mkdir()
    documents = read_documents(sources, knowledge, text_field, languages, leave_out)
    try:
        rows = Dataset.from_generator(
            lambda: _rows(documents, folder / "met.sqlite", held_out, seed, counts, unnamed),
            features=_FEATURES,
            cache_dir=str(folder),
            fingerprint="corpus",
        )
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, sqlite3.Error):
            raise OutputError(f"{folder}: the sentences cannot be stored ({cause})") from cause
        raise cause from None
    if counts["left_out"]:
        _logger.warning("%d lines or samples of the corpus could not be read and were left out", counts["left_out"])
    training, held_out_rows = (_side(rows, side, folder / f"held_out_{side}.arrow") for side in (False, True))
    return Corpus(training, held_out_rows, CorpusFigures(**counts))


def _rows(
    documents: Iterator[Document],
    table: Path,
    held_out: float,
    seed: int,
    counts: Counter[str],
    unnamed: HeldOut | None,
) -> Iterator[dict]:
    """Sentences met for the first time, counted on their side."""
    with closing(_KnownTexts(table)) as known:
        for document in documents:
            side = "held_out" if is_held_out(document.name, held_out, seed) else "training"
            for sentence in split_sentences(document.text):
                if not known.add(f"sentence {sentence.casefold()}"):
                    counts["duplicates"] += 1
                    continue
                if unnamed and unnamed.named_in(sentence):
                    counts["named_held_out"] += 1
                    continue
                counts[f"{side}_sentences"] += 1
                counts[f"{side}_documents"] += known.add(f"document {document.name}")
                yield {"text": sentence, "held_out": side == "held_out"}
    _check(counts, held_out)


def _check(counts: Counter[str], held_out: float) -> None:
    """Raises CorpusError unless there is enough to train on and to measure on."""
    sentences = counts["training_sentences"] + counts["held_out_sentences"]
    if sentences < _MIN_SENTENCES:
        raise CorpusError(f"the corpus has {sentences} different sentences; at least {_MIN_SENTENCES} are needed")
    if not (counts["training_sentences"] and counts["held_out_sentences"]):
        documents = counts["training_documents"] + counts["held_out_documents"]
        purpose = "train on" if counts["held_out_sentences"] else "measure on"
        raise CorpusError(
            f"a corpus of {documents} documents leaves nothing to {purpose} with {held_out} of them held out: "
            "give more documents, or another --held-out or --seed"
        )


def _side(rows: Dataset, held_out: bool, cache: Path) -> Dataset:
    """The sentences of one side of the split; the numbers of their rows are kept in a file."""
    chosen = rows.filter(
        lambda sides: [side == held_out for side in sides],
        input_columns="held_out",
        batched=True,
        cache_file_name=str(cache),
    )
    return chosen.remove_columns("held_out")


class _KnownTexts:
    """Texts met before, as 64-bit digests in a table on the disk.

    Among a hundred million texts the chance that any two share a digest is one in four thousand.
    """

    def __init__(self, path: Path):
        self.table = sqlite3.connect(path, isolation_level=None)
        # The file is thrown away after a crash, so nothing has to survive one.
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_TABLE_CACHE}"):
            self.table.execute(f"PRAGMA {setting}")
        self.table.execute("CREATE TABLE met (digest INTEGER PRIMARY KEY)")
        self.table.execute("BEGIN")

    def add(self, text: str) -> bool:
        """Whether the text was not met before."""
        digest = _digest(text) - 2**63  # SQLite's integers are signed
        return self.table.execute("INSERT OR IGNORE INTO met VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self.table.close()


def _digest(text: str) -> int:
    """A number from 0 to 2**64 - 1 that is the same everywhere."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _is_shards(source: str) -> bool:
    return os.path.isdir(source) or bool((_TAR if os.path.exists(source) else _PATTERN).search(source))


def _list_shards(source: str) -> list[str]:
    try:
        return list_shards(source)
    except ShardError as error:
        raise CorpusError(str(error)) from error


class _LeftOut:
    """Passes on what is wrong with a line or sample, and remembers the first."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell, self.first = tell, ""

    def __call__(self, problem: object) -> None:
        self.first = self.first or str(problem)
        self.tell(str(problem))


def _refuse(problem: str) -> None:
    raise CorpusError(problem)


def _read(source: str, text_field: str, languages: Sequence[str], left_out: _LeftOut) -> Iterator[Document]:
    if _is_shards(source):
        yield from _captions(source, languages, left_out)
    elif source.lower().endswith((".jsonl", ".ndjson")):
        yield from _json_lines(source, text_field, left_out)
    else:
        yield from (Document(line, line) for _, line in _lines(source))


def _captions(source: str, languages: Sequence[str], left_out: _LeftOut) -> Iterator[Document]:
    for sample in read_shards(_list_shards(source), left_out):
        description, group = sample.description, sample.description.group
        name = f"sample {sample.key}" if group is None else f"group {group} of {description.dataset}"
        yield from (Document(name, caption) for caption in description.captions_in(languages))


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1."""
    if path.lower().endswith((".json", ".yaml", ".yml")):
        raise CorpusError(f"{path}: is no corpus; give JSON lines (.jsonl), or a knowledge file with --knowledge")
    empty = True
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    empty = False
                    yield number, text
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}, line {number}: not UTF-8; is it a text file? `iconv` changes encodings") from error
    if empty:
        raise CorpusError(f"{path}: is empty")


def _json_lines(path: str, text_field: str, left_out: _LeftOut) -> Iterator[Document]:
    for number, line in _lines(path):
        try:
            document = _json_document(line, text_field)
        except ValueError as error:
            left_out(f"{path}, line {number}: {error}")
        else:
            yield document


def _json_document(line: str, text_field: str) -> Document:
    """The document in a JSON line.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    text = entry.get(text_field)
    if text_field not in entry:
        fields = ", ".join(list(entry)[:_FIELDS_SHOWN]) or "none"
        raise ValueError(f"has no field {text_field!r} (its fields: {fields}): name the right one with --text-field")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"its field {text_field!r} holds no text")
    part_of = next((entry[key] for key in ("document", "id") if isinstance(entry.get(key), (str, int))), None)
    return Document(text if part_of is None else f"document {part_of}", text)


def _unreadable(path: str, error: OSError) -> CorpusError:
    return CorpusError(f"{path}: cannot be read ({first_line(error)})")
