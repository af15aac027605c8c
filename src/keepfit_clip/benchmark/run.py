"""Measures every model of a list on every data set of a suite, in jobs that are kept once they are done."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from keepfit_clip._version import __version__
from keepfit_clip.benchmark.protocols import Protocol, protocol_named
from keepfit_clip.benchmark.results import MethodResult, ResultFiles, SetResult
from keepfit_clip.benchmark.seen import standing
from keepfit_clip.benchmark.slugs import slug_of
from keepfit_clip.benchmark.suites import Suite, SuiteSet
from keepfit_clip.data.downstream import read_downstream
from keepfit_clip.data.engines import require_engine, run_jobs
from keepfit_clip.data.sources import SourceOptions
from keepfit_clip.drawing.dataset import draw_dataset
from keepfit_clip.errors import ConfigError, KeepFITError, OutputError, WorkerError, first_line, ordinary_trouble
from keepfit_clip.evaluate.features import FeatureCache
from keepfit_clip.files import WorkFolder, file_sha256
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.folders.loading import load_model
from keepfit_clip.folders.training_record import record_of_model
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.transfer.protocol import (
    METRICS,
    Encoded,
    Outcome,
    TransferOptions,
    encode_set,
    obstacle,
    run_transfer,
)

__all__ = ["BenchmarkOptions", "BenchmarkRun", "Failure", "ModelChoice", "run_benchmark"]

_SCHEMA = 1
_RESULTS, _DATA = "results", "data"
_DRAWN_TABLE = "public.csv"


@dataclass(frozen=True)
class ModelChoice:
    """A model to measure.

    Args:
        label: what to call it in tables.
        name: see `keepfit_clip.folders.loading.load_model`.
    """

    label: str
    name: str

    @classmethod
    def of(cls, text: str) -> Self:
        """A model as people write it: its name, or LABEL=NAME. Without a label no folder of this machine is shown."""
        label, equals, name = text.partition("=")
        if equals and label.strip() and name.strip() and "/" not in label:
            return cls(label.strip(), name.strip())
        scheme, colon, rest = text.partition(":")
        if colon and scheme == "hf-hub":
            return cls(text, text)
        if colon and scheme in ("open_clip", "timm"):
            architecture, slash, weights = rest.partition("/")
            return cls(f"{scheme}:{architecture}{slash}{weights.rpartition('/')[2]}", text)
        return cls(Path(text.removeprefix("local-dir:")).name or text, text)

    @property
    def slug(self) -> str:
        """Its label in file names."""
        return slug_of(self.label)


@dataclass(frozen=True)
class BenchmarkOptions:
    """How a suite is measured.

    Args:
        models: the first is what the others are compared with.
        methods, shots, folds: in place of the suite's; None leaves those.
        protocol: name of one of `PROTOCOLS`.
        seed: of folds, shots, adapters and resamples.
        resamples: of the bootstrap.
        jobs: at a time; None is one for each core.
        engine: see `keepfit_clip.data.engines.run_jobs`.
        device, crop: see `load_model`.
    """

    models: tuple[ModelChoice, ...]
    methods: tuple[str, ...] | None = None
    shots: tuple[str, ...] | None = None
    folds: int | None = None
    protocol: str = "ours"
    seed: int = 0
    resamples: int = 500
    jobs: int | None = 1
    engine: str = "processes"
    device: str | None = None
    crop: bool | None = None

    def __post_init__(self):
        protocol_named(self.protocol)
        require_engine(self.engine)
        if not self.models:
            raise ConfigError("--models names no model")
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"--jobs {self.jobs}: at least one")
        slugs = [model.slug.casefold() for model in self.models]
        twice = [model.label for model in self.models if slugs.count(model.slug.casefold()) > 1]
        if twice:
            raise ConfigError(f"--models: {', '.join(twice)} are called the same; write LABEL=NAME for each")

    def transfer(self, suite: Suite, one: SuiteSet) -> TransferOptions:
        """The options of a set's transfer runs."""
        return TransferOptions(
            self.methods or suite.methods,
            self.shots or suite.shots,
            self.folds or suite.folds,
            one.modality,
            seed=self.seed,
            resamples=self.resamples,
            cache_scale=protocol_named(self.protocol).cache_scale,
        )


@dataclass(frozen=True)
class Failure:
    """A job that came to nothing: of which model and set, and why, for the terminal alone."""

    model: str
    set: str
    reason: str


@dataclass(frozen=True)
class BenchmarkRun:
    """What a run gives.

    Args:
        suite: that was measured.
        options: of the run.
        sets: those that were there.
        missing: those that were not, each with what was looked for.
        results: (label of the model, name of the set) -> what came of it.
        failures: jobs that came to nothing.
        kept: how many jobs had been done before.
        folder: of the results.
    """

    suite: Suite
    options: BenchmarkOptions
    sets: tuple[SuiteSet, ...]
    missing: list[tuple[SuiteSet, Path]]
    results: dict[tuple[str, str], SetResult]
    failures: list[Failure]
    kept: int
    folder: Path

    @property
    def protocol(self) -> Protocol:
        """How it was measured."""
        return protocol_named(self.options.protocol)

    def files(self, model: ModelChoice, one: SuiteSet) -> ResultFiles:
        """Of a model on a set."""
        return ResultFiles(self.folder, model.slug, one.slug)


@dataclass(frozen=True)
class _Place:
    """Where a set lies: its source, and the folder of the images where that is a table."""

    one: SuiteSet
    source: Path
    images: Path | None

    def content(self) -> str:
        """A hash of the table, or of the names and sizes of all files of a layout."""
        if self.source.is_file():
            return file_sha256(self.source)
        lines = []
        for folder, folders, files in os.walk(self.source):
            folders.sort()
            paths = [Path(folder, name) for name in sorted(files)]
            lines += [f"{path.relative_to(self.source)} {path.stat().st_size}" for path in paths]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class _Job:
    """One model on one set; `data` tells the set's content, see `_Place.content`."""

    model: ModelChoice
    place: _Place
    data: str
    options: TransferOptions
    protocol: Protocol
    device: str | None
    crop: bool | None
    cache: Path
    results: Path

    @property
    def one(self) -> SuiteSet:
        return self.place.one

    @property
    def files(self) -> ResultFiles:
        return ResultFiles(self.results, self.model.slug, self.one.slug)


@dataclass(frozen=True)
class _Ended:
    """What became of a job: done now, or before, or not, for a reason."""

    model: str
    set: str
    kept: bool = False
    reason: str = ""


def run_benchmark(
    suite: Suite,
    root: Path | None,
    out: Path,
    options: BenchmarkOptions,
    cache: Path = Path("runs/features"),
    on_missing: Callable[[list[tuple[SuiteSet, Path]]], None] = lambda missing: None,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> BenchmarkRun:
    """Measures every model on every set that is there. What `out` holds of an earlier run is kept, not done again.

    Args:
        suite: what is measured.
        root: where the sets lie; None where all of them are drawn.
        out: folder of the results.
        options: of the run.
        cache: folder of the features.
        on_missing: told at once which sets are not there, and what was looked for.
        on_step: called with the job that ended, how many have, and of how many.

    Raises:
        ConfigError: no root, or options that cannot be.
        OutputError: another run is at work in `out`, or it cannot be written.
        KeepFITError: none of the sets is there, or every job failed.
    """
    if suite.needs_root and root is None:
        raise ConfigError(f"the sets of {suite.title} lie on the disk: say below which folder with --root")
    busy = OutputError(f"another benchmark is at work in {out}: wait for it, or choose another --out")
    for one in suite.sets:
        options.transfer(suite, one)  # says at once what cannot be
    with WorkFolder(out).alone(busy):
        there, missing = _there(suite, root, out)
        on_missing(missing)
        if not there:
            raise KeepFITError(f"none of the sets of {suite.title} is below {root}")
        jobs = _jobs(suite, there, out, options, cache)
        ended: list[_Ended] = []
        on_step("measuring", 0, len(jobs))
        for end in _run(jobs, options):
            ended.append(end)
            on_step(f"{end.model}, {end.set}", len(ended), len(jobs))
    failures = [Failure(end.model, end.set, end.reason) for end in ended if end.reason]
    if len(failures) == len(jobs):
        raise KeepFITError(f"none of the {len(jobs)} jobs could be done: {failures[0].reason}")
    done = {(end.model, end.set) for end in ended if not end.reason}
    order = [job for job in jobs if (job.model.label, job.one.name) in done]
    return BenchmarkRun(
        suite,
        options,
        tuple(place.one for place in there),
        missing,
        {(job.model.label, job.one.name): job.files.read() for job in order},
        sorted(failures, key=lambda failure: (failure.model, failure.set)),
        sum(end.kept for end in ended),
        out / _RESULTS,
    )


def _there(suite: Suite, root: Path | None, out: Path) -> tuple[list[_Place], list[tuple[SuiteSet, Path]]]:
    """Where the sets are, and those that are not there; what is drawn is drawn."""
    there, missing = [], []
    for one in suite.sets:
        if one.drawn is not None:
            folder = out / _DATA / one.slug
            if not (folder / _DRAWN_TABLE).is_file():
                draw_dataset(folder, one.drawn)
            there.append(_Place(one, folder / _DRAWN_TABLE, folder))
            continue
        source, images = one.below(root)
        if source.is_dir() if one.layout else source.is_file():
            there.append(_Place(one, source, images))
        else:
            missing.append((one, source))
    return there, missing


def _jobs(suite: Suite, places: Sequence[_Place], out: Path, options: BenchmarkOptions, cache: Path) -> list[_Job]:
    """Every model on every set, a model's jobs one after the other, for a process keeps its last model."""
    contents = [place.content() for place in places]
    return [
        _Job(
            model,
            place,
            content,
            options.transfer(suite, place.one),
            protocol_named(options.protocol),
            options.device,
            options.crop,
            cache,
            out / _RESULTS,
        )
        for model in options.models
        for place, content in zip(places, contents, strict=True)
    ]


def _run(jobs: Sequence[_Job], options: BenchmarkOptions) -> Iterator[_Ended]:
    """The ends of all jobs; those that a worker's death took along have failed."""
    if options.jobs == 1 and options.engine == "processes":
        yield from map(_run_job, jobs)
        return
    left = {(job.model.label, job.one.name) for job in jobs}
    try:
        for end in run_jobs(_run_job, jobs, options.jobs, options.engine):
            left.remove((end.model, end.set))
            yield end
    except WorkerError as error:
        reason = str(error).replace("--workers", "--jobs")
        yield from (_Ended(*key, reason=reason) for key in sorted(left))


def _run_job(job: _Job) -> _Ended:
    """Does a job, unless it was done before. Whatever goes wrong is its own trouble: the other jobs go on."""
    label, name = job.model.label, job.one.name
    try:
        loaded = _loaded(job.model.name, job.device, job.crop, job.protocol.name)
        identity = _identity(job, loaded)
        if job.files.read(identity) is not None:
            return _Ended(label, name, kept=True)
        _measure(job, loaded, identity)
    except KeepFITError as error:
        return _Ended(label, name, reason=str(error))
    except Exception as error:
        reason = ordinary_trouble(error) or f"unexpected: {type(error).__name__}: {first_line(error)[:300]}"
        return _Ended(label, name, reason=reason)
    return _Ended(label, name)


@lru_cache(maxsize=1)
def _loaded(name: str, device: str | None, crop: bool | None, protocol: str) -> LoadedModel:
    """The model of the last job, as a rule; its preprocessing is changed before anything depends on it."""
    loaded = load_model(name, device, crop)
    chosen = protocol_named(protocol)
    if chosen.preprocess:
        loaded.preprocess = chosen.image_transform(loaded, crop)
    return loaded


def _identity(job: _Job, loaded: LoadedModel) -> dict[str, Any]:
    """What makes a job this one and no other."""
    record = record_of_model(job.model.name)
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "model": loaded.fingerprint,
        "data": job.data,
        "set": {"layout": Path(job.one.layout).name, "classes": asdict(job.one.classes)},
        "options": asdict(job.options) | {"shots": [str(shots) for shots in job.options.shots]},
        "protocol": job.protocol.name,
        "trained": record.to_json() if record else None,
    }


def _measure(job: _Job, loaded: LoadedModel, identity: dict[str, Any]) -> None:
    """Measures, and writes what comes of it."""
    one, knowledge = job.one, Knowledge.load()
    source_options = SourceOptions(layout=one.layout)
    downstream = read_downstream(job.place.source, job.place.images, one.classes, knowledge, source_options)
    problems = {name: obstacle(name, loaded, downstream.spec) for name in job.options.methods}
    methods = tuple(name for name, problem in problems.items() if not problem)
    if not methods:
        name, problem = next(iter(problems.items()))
        raise ConfigError(f"--method {name} {problem}")
    cache, began = FeatureCache(job.cache, loaded), time.perf_counter()
    encoded = encode_set(loaded, downstream, cache)
    seconds = time.perf_counter() - began
    options = replace(job.options, methods=methods)
    outcomes = run_transfer(loaded, encoded, options, knowledge=knowledge, cache=cache)
    result = SetResult(
        identity,
        job.model.label,
        one.name,
        len(encoded.labels),
        encoded.downstream.classes,
        downstream.spec.ordinal,
        standing(downstream.spec, record_of_model(job.model.name), knowledge),
        hashlib.sha256(" ".join(encoded.keys).encode()).hexdigest(),
        seconds,
        encoded.computed,
        [_method_result(outcome) for outcome in outcomes],
        {name: problem for name, problem in problems.items() if problem},
        [row.without_names() for row in sorted(encoded.downstream.left_out)],
    )
    job.files.write(result, _arrays(encoded, outcomes))


def _method_result(outcome: Outcome) -> MethodResult:
    folds = {
        metric: [None if np.isnan(value) else float(value) for value in values]
        for metric in METRICS
        for values in [[getattr(scores, metric) for scores in outcome.folds]]
    }
    interval = {metric: list(ends) for metric, ends in outcome.interval.items()}
    return MethodResult(outcome.method, str(outcome.shots or ""), folds, interval, outcome.seconds)


def _arrays(encoded: Encoded, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    """What is kept of the answers: every method has the same images in the same folds."""
    parts = outcomes[0].parts
    arrays = {
        "labels": np.concatenate([part.labels for part in parts]),
        "fold": np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts]),
        **{outcome.name: outcome.answers.probabilities for outcome in outcomes},
    }
    if encoded.groups is not None:
        arrays["groups"] = np.concatenate([part.groups for part in parts])
    return arrays
