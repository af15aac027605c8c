"""Building WebDataset shards from any source of labelled pictures.

One sample is `<key>.jpg` (or .png, .webp), `<key>.txt` (a ready caption, so that a stock open_clip loader can train
too) and `<key>.json` (see `describe`). Beside the tars stand `sizes.json`, which open_clip reads, and
`manifest.json`. Keys are content hashes; no file name, date or metadata of an input image, and no patient identifier,
reaches the output.

A build makes a plan first (`keepfit_clip.data.shards.plan`), then writes its shards in parallel
(`keepfit_clip.data.shards.writer`), all in a hidden work folder beside the output, which takes its place when
everything is there. The same input and options give the same bytes whatever the number of workers, and a build that
was stopped, at any moment, goes on where it was when it is started again.
"""

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from keepfit_clip._version import __version__
from keepfit_clip.data.description import DATA_SCHEMA
from keepfit_clip.data.duplicates import NEAR_BITS, ImageIndex
from keepfit_clip.data.engines import require_engine, run_jobs
from keepfit_clip.data.records import LeftOut
from keepfit_clip.data.shards.options import GIVEN, ShardOptions
from keepfit_clip.data.shards.plan import Plan
from keepfit_clip.data.shards.report import ShardReport, ShardResult, reading_leftovers
from keepfit_clip.data.shards.writer import EXCLUDED, ShardJob, write_shard
from keepfit_clip.data.sources import SourceNotes, SourceOptions, find_source, read_records
from keepfit_clip.data.tars.locations import is_local
from keepfit_clip.data.tars.reader import list_shards
from keepfit_clip.errors import KeepFITError, MissingExtraError, OutputError, ShardError, WorkerError
from keepfit_clip.files import WorkFolder, put_in_place, read_json, require_free, write_json, writing
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.labels import read_label
from keepfit_clip.remote.paths import Place, place

__all__ = ["build_shards"]

_SHARD_NAME = "{:06d}.tar"
_SEED = 0
_ROWS = "rows"  # the first step of a plan
_NAMED = 3  # files of each kind that an error names
_IDENTITY = "build.json"
_FINISHED = "finished.json"  # the report of a build that only has to be put in place
_NOTES = "notes.json"  # which columns were taken for what


def build_shards(
    source: str | Place,
    images: str | Place | None,
    out: str | Path,
    options: ShardOptions,
    knowledge: Knowledge | None = None,
    source_options: SourceOptions | None = None,
    workers: int | None = 1,
    engine: str = "processes",
    on_step: Callable[[str, int, int | None], None] | None = None,
    rows: Iterable[int] | None = None,
    restart: bool = False,
    accept_changes: bool = False,
) -> ShardReport:
    """Builds shards into a new folder, or goes on with a build of the same that was stopped.

    Args:
        source, images, source_options: see `read_records`.
        out: folder to make; it must not hold anything yet. It appears only when complete.
        options: what the shards hold.
        knowledge: resolves category names; the shipped one by default.
        workers: processes that write shards; None is one for each core of the machine or cluster.
        engine: processes (on this machine) or ray (on a cluster that shares the file system with this machine).
        on_step: called with the name of a step, how much of it is done, and of how much, where that is known.
        rows: row numbers to use; all by default.
        restart: throw away what a stopped build had done.
        accept_changes: go on with the plan of a stopped build although its input changed since: the shards that it
            wrote stay, for the others files are read as they are now, and files that came are not taken in.

    Raises:
        TableError: the source as a whole cannot be read.
        OutputError: `out` holds something already, another build is writing it, no space is left; or a stopped build
            of `out` had other options, its input changed since, or what it left is damaged.
        ShardError: no row could be used.
        WorkerError: a worker process was killed, the cluster is gone, or object storage does not answer; started
            again, the build goes on.
        MissingExtraError: the engine ray, and Ray is not installed.
    """
    source_options = source_options or SourceOptions()
    knowledge = knowledge or Knowledge.load()
    out = Path(out)
    work = out.absolute().parent / f".{out.name}.building"
    with suppress(OSError):
        work.rmdir()  # where a build was killed at its very end, it is empty
    if restart or not (work / _FINISHED).exists():
        require_free(out)
    find_source(source, source_options.source)
    require_engine(engine)
    folder = WorkFolder(work)
    build = _Build(place(source), images, out, folder, options, knowledge, source_options, on_step or _ignore)
    with folder.alone(busy=OutputError(f"{out}: another build is writing it")), writing(out):
        if restart:
            folder.clear()
        return build.run(None if rows is None else sorted(set(rows)), workers, engine, accept_changes)


def _ignore(step: str, done: int, total: int | None) -> None:
    pass


@dataclass(frozen=True)
class _Build:
    """One build: its plan, its shards, and putting them in place.

    Args:
        source, images, out, options, knowledge, source_options, on_step: see `build_shards`.
        folder: where it works.
    """

    source: Place
    images: str | Place | None
    out: Path
    folder: WorkFolder
    options: ShardOptions
    knowledge: Knowledge
    source_options: SourceOptions
    on_step: Callable[[str, int, int | None], None]

    @property
    def work(self) -> Path:
        return self.folder.path

    @property
    def shards(self) -> Path:
        return self.work / "shards"

    @property
    def reports(self) -> Path:
        return self.work / "reports"

    def run(self, rows: list[int] | None, workers: int | None, engine: str, accept_changes: bool) -> ShardReport:
        """Does what is left to do and returns the report."""
        finished = self.work / _FINISHED
        if not finished.exists():
            self._claim(rows)
            path = self.work / "plan.sqlite"
            try:
                with closing(Plan(path)) as plan:
                    if plan.is_done(_ROWS):
                        self._check_inputs(plan, accept_changes)
                    with self._discarding_on_error():
                        self._plan(plan, None if rows is None else set(rows), workers)
                        jobs = list(self._jobs(plan))
                    self._write(jobs, workers, engine)
                    with self._discarding_on_error():
                        report = self._finish(plan, jobs)
            except sqlite3.DatabaseError as error:
                with reading_leftovers(path):
                    raise error
            report.save(finished)
        return self._put_in_place(finished)

    @contextmanager
    def _discarding_on_error(self) -> Iterator[None]:
        """Throws everything away after an error that a second try would end in too."""
        try:
            yield
        except (OutputError, WorkerError, MissingExtraError):
            raise
        except KeepFITError:
            shutil.rmtree(self.work, ignore_errors=True)
            raise

    def _claim(self, rows: list[int] | None) -> None:
        """Makes sure that what lies in the work folder is of this very build."""
        self.shards.mkdir(parents=True, exist_ok=True)
        self.reports.mkdir(exist_ok=True)
        with reading_leftovers(self.work / _IDENTITY):
            changed = self.folder.claim(self._identity(rows), _IDENTITY)
        if changed:
            raise OutputError(
                f"{self.out}: a build of it was stopped that had another {', another '.join(changed)}; finish that one "
                "with its own options, or throw it away with --restart"
            )

    def _identity(self, rows: list[int] | None) -> dict:
        options = json.loads(json.dumps([asdict(self.options), asdict(self.source_options), rows]))
        return {
            "version": __version__,
            "source": [str(self.source.absolute()), str(self.images)],
            "set of options": options,
            "knowledge": hashlib.sha256(repr(sorted(self.knowledge.conditions.items())).encode()).hexdigest(),
        }

    # -- inputs ---------------------------------------------------------------------------------------------------

    def _input_paths(self) -> list[str]:
        """The files and folders that are read, but for the images that rows name."""
        there = place(str(self.source)).exists()  # asked anew: it may have come or gone
        paths = [str(self.source)] if there else []
        if find_source(self.source, self.source_options.source) == "shards":
            paths += [shard for shard in list_shards(self.source) if is_local(shard)]
        return [*paths, *(where for where in self.options.exclude if place(where).exists())]

    def _check_inputs(self, plan: Plan, accept: bool) -> None:
        """Makes sure that the input is as it was when the plan was made, or that the user takes what changed."""
        named: dict[str, list[str]] = {}
        counts: Counter[str] = Counter()
        with plan.changing():
            for what, path in plan.inputs.changes(self._input_paths()):
                counts[what] += 1
                if counts[what] <= _NAMED:
                    named.setdefault(what, []).append(path)
                if accept:
                    plan.inputs.accept([path])
        if not counts or accept:
            return
        changes = [f"{what}: {', '.join(paths)}{self._more(counts[what])}" for what, paths in sorted(named.items())]
        raise OutputError(
            f"{self.out}: since its build was stopped, {counts.total()} of the files that it reads are others ("
            f"{'; '.join(changes)}); --restart builds anew, --accept-changes goes on with the rows that it had"
        )

    @staticmethod
    def _more(count: int) -> str:
        return f" and {count - _NAMED} more" if count > _NAMED else ""

    # -- planning ------------------------------------------------------------------------------------------------

    def _plan(self, plan: Plan, rows: set[int] | None, workers: int | None) -> None:
        options = self.options

        def read() -> None:
            plan.inputs.clear()
            plan.inputs.note_all(self._input_paths())  # before they are read: what changes meanwhile is noticed too
            notes = SourceNotes()
            plan.add(self._records(plan, rows, notes), self._content_of)
            write_json(self.work / _NOTES, notes.lines())

        plan.step(_ROWS, read)
        if not plan.count():
            raise self._nothing_left(list(plan.left_out()))
        self.on_step("looking for equal images", 0, None)
        plan.step("duplicates", plan.drop_duplicates)
        if options.nearness != "ignore":
            total, done = plan.count(), 0

            def on_rows(rows: int) -> None:
                nonlocal done
                done += rows
                self.on_step("looking for nearly equal pictures", done, total)

            plan.step("hashes", lambda: plan.hash_pictures(workers, on_rows))
            if options.nearness == "drop":
                plan.step("near duplicates", lambda: plan.drop_near_duplicates(NEAR_BITS))
        if options.split == GIVEN:
            plan.step("split", plan.split_as_given)
            if not plan.count():
                raise self._nothing_left(list(plan.left_out()))
        elif options.split:
            bits = NEAR_BITS if options.nearness == "together" else None
            plan.step("teams", lambda: plan.make_groups(bits))
            plan.step("split", lambda: plan.split(options.split, _SEED))
        plan.step("layout", lambda: plan.lay_out(_SEED))
        if options.exclude and not (self.work / EXCLUDED).exists():
            self.on_step("reading the sets to exclude", 0, None)
            ImageIndex.of(options.exclude).save(self.work / EXCLUDED)

    def _records(self, plan: Plan, rows: set[int] | None, notes: SourceNotes) -> Iterator:
        def reject(error) -> None:
            if rows is None or error.row in rows:
                plan.reject(LeftOut.of(error))
                for path in error.looked_for:  # it may be there when a stopped build goes on
                    plan.inputs.note_missing(path)

        @lru_cache(maxsize=1 << 12)
        def contradiction(categories: tuple[str, ...]) -> tuple[str, str] | None:
            return self.knowledge.contradiction(n for label in categories for n in read_label(label, self.knowledge))

        records = read_records(self.source, self.images, reject, self.source_options, notes)
        for number, record in enumerate(records, start=1):
            if number % 1000 == 0:
                self.on_step("reading the source", number, None)
            if rows is not None and record.row not in rows:
                plan.register_patient(record)
            elif self.options.kind == "public" and (both := contradiction(record.categories)):
                reason = f"its labels say {both[0]} and {both[1]} at once"
                plan.reject(LeftOut(record.row, reason, f"row {record.row}: {reason}"))
                plan.register_patient(record)
            else:
                yield record

    def _content_of(self, record) -> str:
        categories = [name for category in record.categories for name in read_label(category, self.knowledge)]
        return json.dumps([record.captions, categories, record.modality, record.eye])

    def _nothing_left(self, left_out: list[LeftOut], part: str = "") -> ShardError:
        first = f" First: {left_out[0].message}" if left_out else ""
        where = f" for {part}" if part else ""
        return ShardError(f"{self.source}: none of its rows could be used{where} ({len(left_out)} rejected).{first}")

    def _parts(self, plan: Plan) -> list[str]:
        """Names of the parts, in the order in which somebody named them; "" where there is no split."""
        return list(self.options.split) if isinstance(self.options.split, dict) else plan.parts()

    # -- writing ---------------------------------------------------------------------------------------------------

    def _jobs(self, plan: Plan) -> Iterator[ShardJob]:
        for part in self._parts(plan):
            (self.shards / part).mkdir(exist_ok=True)
            count, size = plan.count(part), self.options.samples_per_shard
            for number, start in enumerate(range(0, count, size)):
                name = _SHARD_NAME.format(number)
                yield ShardJob(
                    plan.path,
                    part,
                    start,
                    min(start + size, count),
                    self.shards / part / name,
                    self.reports / f"{part}{name}.json",
                    self.options,
                    self.knowledge,
                )

    def _write(self, jobs: list[ShardJob], workers: int | None, engine: str) -> None:
        total = sum(job.stop - job.start for job in jobs)
        done = 0

        def on_row() -> None:
            nonlocal done
            done += 1
            self.on_step("writing shards", done, total)

        if engine == "processes" and (workers == 1 or len(jobs) == 1):
            for job in jobs:
                before = done
                write_shard(job, on_row)
                done = before + job.stop - job.start
            self.on_step("writing shards", done, total)
            return
        with closing(run_jobs(write_shard, jobs, workers, engine)) as results:
            for rows in results:
                done += rows
                self.on_step("writing shards", done, total)

    # -- finishing -------------------------------------------------------------------------------------------------

    def _finish(self, plan: Plan, jobs: list[ShardJob]) -> ShardReport:
        """Writes the lists beside the tars."""
        whole = ShardReport(told=read_json(self.work / _NOTES), left_out=list(plan.left_out()))
        parts = {part: ShardReport() for part in self._parts(plan)}
        if self.options.split == GIVEN and (shared := plan.patients_in_several_parts()):
            whole.told.append(f"{shared} patients stand in more than one of the given parts")
        for job in jobs:
            result = ShardResult.load(job.report)
            parts[job.part].add(job.tar.name, result)
            whole.add(f"{job.part}/{job.tar.name}".lstrip("/"), result)
        for part, report in parts.items():
            if not report.samples:
                raise self._nothing_left(whole.left_out, part)
            if part:
                self._write_lists(self.shards / part, report, plan.patients_in(part))
        if self.options.split:
            write_json(self.shards / "manifest.json", {**self._manifest(whole), "parts": list(parts)})
        else:
            self._write_lists(self.shards, whole, plan.patients_in(""))
        return whole

    def _put_in_place(self, finished: Path) -> ShardReport:
        """Moves the shards to where they belong, unless that was all that had been done, and cleans up."""
        report = ShardReport.load(finished)
        if self.shards.exists():
            require_free(self.out)
            put_in_place(self.shards, self.out)
        with suppress(OSError):  # what cannot be removed costs nobody the shards
            self.folder.clear(keep=finished.name)  # what says that all is done goes last: a kill may come at any time
        shutil.rmtree(self.work, ignore_errors=True)
        return report

    def _write_lists(self, folder: Path, report: ShardReport, patients: dict) -> None:
        write_json(folder / "sizes.json", {name: shard["samples"] for name, shard in report.shards.items()})
        write_json(folder / "manifest.json", {**self._manifest(report), **patients})

    def _manifest(self, report: ShardReport) -> dict:
        """What stands in manifest.json: counts, hashes and row numbers, nothing that names an input."""
        options = {**asdict(self.options), "exclude": len(self.options.exclude)}
        return {
            "schema": DATA_SCHEMA,
            "options": options,
            "samples": report.samples,
            "shards": report.shards,
            "categories": dict(report.categories.most_common()),
            "modalities": dict(report.modalities.most_common()),
            "unresolved_categories": dict(report.unresolved.most_common()),
            "redacted": report.redacted,
            "corrected": report.corrected,
            "silent_labels": report.silent,
            "burnt_in_text": sorted(report.burnt_in_text),
            "rejected": [row.without_names() for row in sorted(report.left_out)],
        }
