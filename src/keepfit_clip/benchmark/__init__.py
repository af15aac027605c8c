"""One table of several models over a suite of data sets.

`suites` says what a suite is, `run` measures each model on each set, `results` keeps what came of one of these jobs,
`compare` ranks the models and bootstraps their differences, `tables` and `page` write it all down.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "benchmark.run": ["BenchmarkOptions", "run_benchmark"],
        "benchmark.suites": ["Suite", "SuiteSet", "read_suite"],
    },
)
