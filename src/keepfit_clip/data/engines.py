"""Running jobs in parallel: in processes of this machine, or on a Ray cluster that shares a file system with it."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from keepfit_clip.errors import ShardError, WorkerError, first_line
from keepfit_clip.extras import require_extra

__all__ = ["ENGINES", "require_engine", "run_jobs"]

ENGINES = ("processes", "ray")


def require_engine(engine: str) -> None:
    """Makes sure that an engine can be used.

    Raises:
        ShardError: there is no such engine.
        MissingExtraError: it is Ray, which is not installed.
    """
    if engine not in ENGINES:
        raise ShardError(f"the engine is {engine!r}; it can be {' or '.join(ENGINES)}")
    if engine == "ray":
        require_extra("ray")


def run_jobs(function: Callable[[Any], Any], jobs: Sequence, workers: int | None, engine: str) -> Iterator:
    """The results of `function(job)` for every job, as the jobs end.

    Args:
        function: of a module, so that another process can import it.
        jobs: what it is called with.
        workers: jobs at a time; None is one for each core of the machine or cluster.
        engine: processes or ray. Ray joins the cluster of RAY_ADDRESS, or starts one on this machine.

    Raises:
        What the function raises; WorkerError where a worker or the cluster dies.
    """
    if engine == "ray":
        yield from _on_ray(function, jobs, workers)
        return
    parallel = joblib.Parallel(
        n_jobs=max(1, min(workers or len(os.sched_getaffinity(0)), len(jobs))),
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="2*n_jobs",
    )
    results = parallel(joblib.delayed(function)(job) for job in jobs)
    try:
        for result in results:  # noqa: UP028 - `yield from` would close them before the warning is silenced
            yield result
    except TerminatedWorkerError as error:
        what = "a worker process was killed, perhaps for want of memory: try fewer --workers"
        raise WorkerError(f"{what}; what was finished is kept") from error
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that tasks were cancelled, where the caller stops early
            results.close()


def _on_ray(function: Callable[[Any], Any], jobs: Sequence, workers: int | None) -> Iterator:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming default, else it warns
    import ray

    started = not ray.is_initialized()
    if started:
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **local)
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError, where the cluster does not answer
            raise WorkerError(f"Ray cannot be reached or started: {first_line(error)}") from error
    try:
        remote = ray.remote(function)
        at_once = workers or int(ray.cluster_resources().get("CPU", 1))
        left = iter(jobs)
        running = [remote.remote(job) for job in islice(left, 2 * at_once)]
        while running:
            (done, *_), running = ray.wait(running)
            yield ray.get(done)
            running += [remote.remote(job) for job in islice(left, 1)]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"Ray: {first_line(error)}; what was finished is kept") from error
    finally:
        if started:
            ray.shutdown()
