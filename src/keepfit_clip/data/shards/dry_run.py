"""What a build would read, take and write, told by building a few of its rows in a temporary folder."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from keepfit_clip.data.records import LeftOut
from keepfit_clip.data.shards.build import build_shards
from keepfit_clip.data.shards.options import ShardOptions
from keepfit_clip.data.shards.report import ShardReport
from keepfit_clip.data.sources import SourceOptions, read_records
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.remote.paths import Place

__all__ = ["BuildOutlook", "try_build"]

_TRIED = 48  # rows


@dataclass(frozen=True)
class BuildOutlook:
    """What a build would be.

    Args:
        images: that the source names and that lie there.
        left_out: rows that the source's reading leaves out.
        labels: how often each category stands there, as written.
        tried: what became of the rows that were built.
        seconds: that writing all images would take.
        size: bytes of all shards.
    """

    images: int
    left_out: list[LeftOut]
    labels: Counter
    tried: ShardReport
    seconds: float
    size: float


def try_build(
    source: str | Place,
    images: str | Place | None,
    options: ShardOptions,
    knowledge: Knowledge,
    source_options: SourceOptions,
    workers: int | None = 1,
    on_step: Callable[[str, int, int | None], None] | None = None,
) -> BuildOutlook:
    """Reads the whole source, and builds rows of it that lie evenly apart; nothing is kept.

    Args:
        source, images, options, knowledge, source_options, workers: as `build_shards` takes them.
        on_step: called with the name of a step, how much of it is done, and of how much, where that is known.

    Raises:
        TableError: the source as a whole cannot be read.
        ShardError: no row that was tried could be used.
    """
    left_out: list[LeftOut] = []
    labels: Counter = Counter()
    rows: list[int] = []
    for record in read_records(source, images, lambda error: left_out.append(LeftOut.of(error)), source_options):
        rows.append(record.row)
        labels.update(record.categories)
        if on_step and len(rows) % 1000 == 0:
            on_step("reading the source", len(rows), None)
    chosen = {rows[number] for number in np.linspace(0, len(rows) - 1, min(_TRIED, len(rows))).astype(int)}
    alone = replace(options, split=None, near_duplicates="ignore")
    with TemporaryDirectory(prefix="keepfit-dry-run-") as folder:
        out, start, seconds = Path(folder) / "shards", time.monotonic(), 0.0

        def timed(step: str, done: int, total: int | None) -> None:
            nonlocal start, seconds
            if step != "writing shards":
                start = time.monotonic()
            seconds = time.monotonic() - start
            if on_step:
                on_step("trying some rows", done, total)

        tried = build_shards(source, images, out, alone, knowledge, source_options, 1, on_step=timed, rows=chosen)
        size = sum(file.stat().st_size for file in out.glob("*.tar"))
    share = len(rows) / (tried.samples + len(tried.left_out))
    processes = workers or len(os.sched_getaffinity(0))
    return BuildOutlook(len(rows), left_out, labels, tried, seconds * share / processes, size * share)
