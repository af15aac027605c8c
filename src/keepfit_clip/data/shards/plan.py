"""The plan of a build: every row of the source, what becomes of it, and in which shard it will stand.

It is one SQLite file in the build's work folder, so that a million rows need no more memory than a thousand, workers
read their own part of it, and a build that was stopped goes on. It holds file names and patients, and is deleted
with the work folder; nothing of it is an output.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from keepfit_clip.data.duplicates import UnionFind, image_digest, near_pairs, perceptual_hash
from keepfit_clip.data.engines import run_jobs
from keepfit_clip.data.records import Caption, LeftOut, Record
from keepfit_clip.data.shards.inputs import INPUTS_TABLE, Inputs, size_of
from keepfit_clip.errors import ImageError, ShardError
from keepfit_clip.files import printable
from keepfit_clip.images.reading import FileSlice, Frame, image_bytes, image_name, open_image
from keepfit_clip.remote.opening import RemoteFile

__all__ = ["Plan", "as_ranges", "read_rows"]

_TABLES = f"""
    BEGIN;
    CREATE TABLE IF NOT EXISTS rows (
        id INTEGER PRIMARY KEY,
        row INTEGER NOT NULL,     -- number in the source; a study has one for all its images
        record TEXT NOT NULL,     -- JSON
        said TEXT NOT NULL,       -- hash of what is said of the image
        patient INTEGER,          -- number of the patient
        size INTEGER,             -- bytes of the encoded image
        digest TEXT,              -- SHA-256 of it, where another one is as long
        hash BLOB,                -- perceptual hash, where asked for
        team INTEGER,             -- rows that must stay in one part share it
        part TEXT,
        place INTEGER             -- position within the part
    );
    CREATE TABLE IF NOT EXISTS numbering (mark TEXT NOT NULL);  -- by which parts know that they number patients alike
    CREATE TABLE IF NOT EXISTS patients (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS rejected (row INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS done (step TEXT PRIMARY KEY);
    {INPUTS_TABLE}
    COMMIT;
"""
_AT_ONCE = 512
_HASHED_AT_ONCE = 64
_LOCK_TIMEOUT = 60  # seconds to wait for another process's write


class Plan:
    """The plan in a work folder.

    Args:
        path: of the SQLite file; made if it is not there.
        read_only: for workers.
    """

    def __init__(self, path: Path, read_only: bool = False):
        self.path = Path(path)
        mode = "ro" if read_only else "rwc"
        # Transactions are begun and ended by hand: Python's own begin too late for CREATE.
        self._db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}", timeout=_LOCK_TIMEOUT, isolation_level=None, uri=True
        )
        self._db.create_function("mixed", 2, _mixed, deterministic=True)
        if not read_only:
            self._db.executescript(_TABLES)
        self.inputs = Inputs(self._db)
        self._numbering = hashlib.sha256()
        self._spool = self.path.with_name("images.bin")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, name: str, work: Callable[[], None]) -> None:
        """Does a step unless it is done; what a step that was cut short had done is undone."""
        if self.is_done(name):
            return
        with self.changing():
            work()
            self._db.execute("INSERT INTO done VALUES (?)", (name,))

    def is_done(self, name: str) -> bool:
        """Whether a step was done."""
        return self._db.execute("SELECT 1 FROM done WHERE step = ?", (name,)).fetchone() is not None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keeps what the block does to the plan, or nothing of it where it is cut short."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def add(self, records: Iterable[Record], content_of: Callable[[Record], str]) -> None:
        """Takes the rows in.

        Args:
            records: of the source.
            content_of: what a record says of its image, as text; equal texts on equal images are one sample.
        """
        self._spool.unlink(missing_ok=True)
        self._numbering = hashlib.sha256()
        with open(self._spool, "wb") as spool:
            for record in records:
                image = record.image
                if isinstance(image, (Path, RemoteFile)):
                    size = self.inputs.note(image)
                elif isinstance(image, FileSlice):
                    size = image.size
                    self.inputs.note(image.path)
                elif isinstance(image, Frame):
                    size = self.inputs.note(image.path)
                else:  # it would not be found again: keep it until the shard is written
                    size = len(image)
                    image = FileSlice(self._spool, spool.tell(), size)
                    spool.write(record.image)
                patient = None if record.patient is None else self._patient_number(record.patient)
                self._number(patient, size)
                self._db.execute(
                    "INSERT INTO rows (row, record, said, patient, size) VALUES (?, ?, ?, ?, ?)",
                    (record.row, _to_json(record, image), _short_hash(content_of(record)), patient, size),
                )
        self._db.execute("INSERT INTO numbering VALUES (?)", (self._numbering.hexdigest()[:24],))

    def reject(self, left_out: LeftOut) -> None:
        """Notes a row that is left out; `reason` names nothing of the input."""
        row, reason, message = left_out
        self._db.execute("INSERT INTO rejected VALUES (?, ?, ?)", (row, printable(reason), printable(message)))

    def register_patient(self, record: Record) -> None:
        """Counts a row that is not taken in, so that all parts of a table number its patients alike.

        It is called while `add` takes in the others.
        """
        image = record.image
        match image:
            case FileSlice():
                size = image.size
            case Frame():
                size = size_of(image.path)
            case Path() | RemoteFile():
                size = size_of(image)
            case _:
                size = len(image)
        self._number(None if record.patient is None else self._patient_number(record.patient), size)

    def _number(self, patient: int | None, size: int | None) -> None:
        self._numbering.update(f"{patient} {size}\n".encode())

    def _patient_number(self, name: str) -> int:
        name = ascii(name)  # a file's name may hold halves of characters, which SQLite does not take
        self._db.execute("INSERT OR IGNORE INTO patients (name) VALUES (?)", (name,))
        return self._db.execute("SELECT number FROM patients WHERE name = ?", (name,)).fetchone()[0] - 1

    def drop_duplicates(self) -> None:
        """Leaves out all but the first of the rows that say the same of the same bytes."""
        self._db.execute("CREATE INDEX by_size ON rows (size)")
        repeated = "SELECT size FROM rows WHERE size > 0 GROUP BY size HAVING COUNT(*) > 1"
        for number, record in self._each(f"SELECT id, record FROM rows WHERE size IN ({repeated})"):
            try:
                digest = image_digest(image_bytes(from_json(record).image))
            except ImageError:
                continue  # the shard's writer says so
            self._db.execute("UPDATE rows SET digest = ? WHERE id = ?", (digest, number))
        self._db.execute("CREATE INDEX by_digest ON rows (digest, said, id) WHERE digest IS NOT NULL")
        twice = self._each(
            """SELECT later.id, later.row, MIN(first.row) FROM rows AS later JOIN rows AS first
               ON first.digest = later.digest AND first.said = later.said AND first.id < later.id
               GROUP BY later.id"""
        )
        for number, row, first in twice:
            reason = f"the same image and text as row {first}"
            self.reject(LeftOut(row, reason, f"row {row}: {reason}"))
            self._db.execute("DELETE FROM rows WHERE id = ?", (number,))

    def hash_pictures(self, workers: int | None, on_rows: Callable[[int], None]) -> None:
        """Computes the perceptual hash of every image that can be read; goes on where it was cut short.

        Args:
            workers: processes of this machine.
            on_rows: called with the number of rows done each time some are.
        """
        first, last = self._db.execute("SELECT MIN(id), MAX(id) FROM rows WHERE hash IS NULL").fetchone()
        ranges = [] if first is None else range(first, last + 1, _HASHED_AT_ONCE)
        jobs = [(self.path, start, start + _HASHED_AT_ONCE) for start in ranges]
        with closing(run_jobs(_hash_rows, jobs, workers, "processes")) as results:
            for hashes in results:
                self._db.executemany("UPDATE rows SET hash = ? WHERE id = ?", hashes)
                self._db.execute("COMMIT")  # these need not be computed again
                self._db.execute("BEGIN")
                on_rows(len(hashes))

    def near_duplicates(self, bits: int) -> Iterator[tuple[int, int]]:
        """Pairs of row ids, the earlier one first, whose pictures are nearly the same."""
        ids = np.fromiter((i for (i,) in self._db.execute("SELECT id FROM rows WHERE hash NOTNULL ORDER BY id")), int)
        hashes = b"".join(h for (h,) in self._db.execute("SELECT hash FROM rows WHERE hash NOTNULL ORDER BY id"))
        for i, j in near_pairs(np.frombuffer(hashes, dtype=np.uint8).reshape(len(ids), -1), bits):
            yield int(ids[i]), int(ids[j])

    def drop_near_duplicates(self, bits: int) -> None:
        """Leaves out every row that nearly shows the picture of an earlier one."""
        same: dict[int, int] = {}
        for first, later in sorted(self.near_duplicates(bits), key=lambda pair: (pair[1], pair[0])):
            if first not in same:  # the earlier one stays itself
                same.setdefault(later, first)
        for later, first in same.items():
            row, first_row = (
                self._db.execute("SELECT row FROM rows WHERE id = ?", (i,)).fetchone()[0] for i in (later, first)
            )
            reason = f"nearly the same picture as row {first_row}"
            self.reject(LeftOut(row, reason, f"row {row}: {reason}"))
            self._db.execute("DELETE FROM rows WHERE id = ?", (later,))

    def make_groups(self, bits: int | None) -> None:
        """Gives rows that must not be parted one group: those of a patient, of one image, and near duplicates.

        Args:
            bits: how near is near; None leaves near duplicates alone.
        """
        # A group's number (column team) is its patient's as -(number + 1), or else its first row's id.
        self._db.execute("UPDATE rows SET team = CASE WHEN patient IS NULL THEN id ELSE -(patient + 1) END")
        groups = UnionFind()
        of_row = "SELECT team FROM rows WHERE id = ?"
        pairs = self._each(
            """SELECT MIN(first.id), later.id FROM rows AS later JOIN rows AS first
               ON first.digest = later.digest AND first.id < later.id GROUP BY later.id"""
        )
        for first, later in pairs:
            groups.join(
                self._db.execute(of_row, (first,)).fetchone()[0], self._db.execute(of_row, (later,)).fetchone()[0]
            )
        for first, later in self.near_duplicates(bits) if bits is not None else ():
            groups.join(
                self._db.execute(of_row, (first,)).fetchone()[0], self._db.execute(of_row, (later,)).fetchone()[0]
            )
        self._db.execute("CREATE INDEX by_team ON rows (team)")
        for member in groups.members():
            self._db.execute("UPDATE rows SET team = ? WHERE team = ?", (groups.find(member), member))

    def split(self, parts: dict[str, float], seed: int) -> None:
        """Deals the groups out to the parts, each time to the part that lacks most.

        Args:
            parts: name -> share of the rows.
            seed: decides the order of the groups.

        Raises:
            ShardError: too few groups to give every part one.
        """
        total, left = self.count(), self._db.execute("SELECT COUNT(DISTINCT team) FROM rows").fetchone()[0]
        have = dict.fromkeys(parts, 0)
        groups = self._each("SELECT team, COUNT(*) FROM rows GROUP BY team ORDER BY mixed(?, team), team", (seed,))
        for group, count in groups:
            empty = [name for name, rows in have.items() if not rows]
            part = max(empty if left <= len(empty) else parts, key=lambda name: parts[name] * total - have[name])
            left -= 1
            have[part] += count
            self._db.execute("UPDATE rows SET part = ? WHERE team = ?", (part, group))
        empty = [name for name, count in have.items() if not count]
        if empty:
            raise ShardError(
                f"no rows are left for the part {empty[0]!r}: there are too few patients (or groups of images that "
                "belong together) for this split"
            )

    def split_as_given(self) -> None:
        """Puts every row into the part that its source gives; rows that it gives none are left out."""
        for number, record in self._each("SELECT id, record FROM rows"):
            given = from_json(record)
            if given.split is None:
                reason = "the source says no part of a split"
                remedy = "part it by shares instead, e.g. --split train=0.8,val=0.2"
                self.reject(LeftOut(given.row, reason, f"row {given.row}: {reason}; {remedy}"))
                self._db.execute("DELETE FROM rows WHERE id = ?", (number,))
            else:
                part = re.sub(r"\W+", "_", given.split)
                self._db.execute("UPDATE rows SET part = ? WHERE id = ?", (part, number))

    def parts(self) -> list[str]:
        """Names of the parts, "" where there is no split."""
        return [part for (part,) in self._db.execute("SELECT part FROM rows GROUP BY part ORDER BY MIN(id)")]

    def patients_in_several_parts(self) -> int:
        """How many patients have images in more than one part."""
        several = "SELECT patient FROM rows WHERE patient IS NOT NULL GROUP BY patient HAVING COUNT(DISTINCT part) > 1"
        return self._db.execute(f"SELECT COUNT(*) FROM ({several})").fetchone()[0]

    def lay_out(self, seed: int) -> None:
        """Gives every row its position: shuffled, because class by class would make poor batches."""
        self._db.execute("UPDATE rows SET part = '' WHERE part IS NULL")
        part, position = None, 0
        for number, its_part in self._each("SELECT id, part FROM rows ORDER BY part, mixed(?, id), id", (seed,)):
            part, position = (part, position + 1) if its_part == part else (its_part, 0)
            self._db.execute("UPDATE rows SET place = ? WHERE id = ?", (position, number))
        self._db.execute("CREATE INDEX by_place ON rows (part, place)")

    # -- patients ---------------------------------------------------------------------------------------------------

    def patients_in(self, part: str) -> dict:
        """What a manifest says of the patients of a part: `patients`, with their running numbers as ranges and a mark
        of the numbering, by which parts of one table know that their numbers mean the same people.

        The mark is a hash of the numbers and image sizes of all rows, in order: nothing of an identifier is in it.
        Empty where no row names a patient.
        """
        rows = self._db.execute(
            "SELECT DISTINCT patient FROM rows WHERE part = ? AND patient IS NOT NULL ORDER BY patient", (part,)
        )
        numbers = as_ranges(number for (number,) in rows)
        if not numbers:
            return {}
        (mark,) = self._db.execute("SELECT mark FROM numbering").fetchone()
        return {"patients": {"numbering": mark, "numbers": numbers}}

    # -- reading -----------------------------------------------------------------------------------------------------

    def count(self, part: str | None = None) -> int:
        """Rows in the plan, or in one part of it."""
        if part is None:
            return self._db.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
        return self._db.execute("SELECT COUNT(*) FROM rows WHERE part = ?", (part,)).fetchone()[0]

    def left_out(self) -> Iterator[LeftOut]:
        """Row, reason and message of each row left out."""
        yield from map(LeftOut._make, self._db.execute("SELECT row, reason, message FROM rejected ORDER BY row, rowid"))

    def records(self, first: int, stop: int) -> list[tuple[int, Record]]:
        """Id and record of the rows first <= id < stop without a perceptual hash."""
        rows = self._db.execute("SELECT id, record FROM rows WHERE id >= ? AND id < ? AND hash IS NULL", (first, stop))
        return [(number, from_json(record)) for number, record in rows]

    def rows(self, part: str, start: int, stop: int) -> list[tuple[Record, int | None]]:
        """Records and patient numbers of the rows start <= position < stop of a part, in order."""
        rows = self._db.execute(
            "SELECT record, patient FROM rows WHERE part = ? AND place >= ? AND place < ? ORDER BY place",
            (part, start, stop),
        )
        return [(from_json(record), patient) for record, patient in rows]

    def _each(self, query: str, values: Sequence = ()) -> Iterator[tuple]:
        """Rows of a query, some at a time, so that the table may be changed meanwhile.

        The result is first copied to a temporary table on disk.
        """
        name = f"each_{_short_hash(query)}"
        self._db.execute(f"DROP TABLE IF EXISTS temp.{name}")
        self._db.execute(f"CREATE TEMP TABLE {name} AS {query}", values)
        last = 0
        while True:
            block = self._db.execute(
                f"SELECT rowid, * FROM temp.{name} WHERE rowid > ? ORDER BY rowid LIMIT {_AT_ONCE}", (last,)
            ).fetchall()
            if not block:
                break
            yield from (row[1:] for row in block)
            last = block[-1][0]
        self._db.execute(f"DROP TABLE temp.{name}")


def as_ranges(numbers: Iterable[int]) -> str:
    """Rising whole numbers as text, such as "0-5,9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def read_rows(path: Path, part: str, start: int, stop: int) -> list[tuple[Record, int | None]]:
    """`Plan.rows` for a worker: opens the plan, reads and closes it."""
    with closing(Plan(path, read_only=True)) as plan:
        return plan.rows(part, start, stop)


def _to_json(record: Record, image: Path | FileSlice | Frame | RemoteFile) -> str:
    location = [_place(image.path), *image[1:]] if isinstance(image, (FileSlice, Frame)) else _place(image)
    fields = {name: getattr(record, name) for name in Record.__dataclass_fields__ if name != "image"}
    return json.dumps({**fields, "image": location}, ensure_ascii=True)


def _place(file: Path | RemoteFile) -> str | dict:
    return file._asdict() if isinstance(file, RemoteFile) else str(file)


def _file_at(written: str | dict) -> Path | RemoteFile:
    return Path(written) if isinstance(written, str) else RemoteFile(**written)


def from_json(content: str) -> Record:
    """The record that `_to_json` wrote."""
    fields = json.loads(content)
    image = fields.pop("image")
    fields["captions"] = tuple(Caption(*caption) for caption in fields["captions"])
    for name in ("categories", "attributes"):
        fields[name] = tuple(fields[name])
    if isinstance(image, list):
        location = {2: Frame, 3: FileSlice}[len(image)](_file_at(image[0]), *image[1:])
    else:
        location = _file_at(image)
    return Record(image=location, **fields)


def _hash_rows(job: tuple[Path, int, int]) -> list[tuple[bytes, int]]:
    """Perceptual hash and id of the rows first <= id < stop of a plan that have none."""
    path, first, stop = job
    with closing(Plan(path, read_only=True)) as plan:
        rows = plan.records(first, stop)
    hashes = []
    for number, record in rows:
        try:
            picture = open_image(image_bytes(record.image), image_name(record.image))
        except ImageError:
            continue  # the shard's writer says so
        hashes.append((perceptual_hash(picture), number))
    return hashes


def _short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _mixed(seed: int, number: int) -> int:
    """A number that looks random, the same everywhere."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
