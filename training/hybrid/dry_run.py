"""`--dry-run`: a few steps in a temporary folder, and what the whole run would read, take and write."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory

import torch

from keepfit_clip.data.tars.reader import count_samples, list_shards
from keepfit_clip.errors import ConfigError
from keepfit_clip.training.hybrid.outlook import duration, memory
from keepfit_clip.training.hybrid.settings import HybridPretraining

__all__ = ["DRY_STEPS", "DryRunDone", "described", "in_temporary_folder"]

DRY_STEPS = 4  # of which the first warms up


class DryRunDone(Exception):
    """Ends open_clip_train's main once the steps are made.

    Args:
        steps: of the whole run.
        seconds: of a step.
        disk: what its checkpoints take, in words.
    """

    def __init__(self, steps: int, seconds: float, disk: str):
        super().__init__(steps, seconds, disk)
        self.steps, self.seconds, self.disk = steps, seconds, disk


@contextmanager
def in_temporary_folder(settings: HybridPretraining, processes: int) -> Iterator[HybridPretraining]:
    """The same settings for a run in a folder that goes with the block.

    Raises:
        ConfigError: there is nothing to train on, or more than one process.
    """
    if processes > 1:
        raise ConfigError("--dry-run is of one process: start it without torchrun, with the --batch-size of one")
    if not settings.training_data:
        raise ConfigError("--dry-run is of a training: give --public-data or --elite-data")
    with TemporaryDirectory(prefix="keepfit-dry-run-") as folder:
        yield replace(settings, logs=folder, name="dry-run", resume=None)


def described(settings: HybridPretraining, done: DryRunDone) -> Sequence[str]:
    """What the run would be, a line each."""
    data = {"public": settings.public_data, "elite": settings.elite_data, "held out": settings.val_data}
    lines = ["dry run: nothing was kept"]
    for kind, spec in data.items():
        if spec:
            shards = list_shards(spec)
            lines.append(f"  {kind:9} {count_samples(shards)} samples in {len(shards)} shards")
    lines += [
        f"  {'steps':9} {done.steps} of {settings.batch_size} samples, in {settings.epochs} epochs",
        f"  {'time':9} {duration(done.steps * done.seconds)} at {done.seconds:.2f} s a step here; evaluations come "
        "on top",
        f"  {'memory':9} {_peak_memory(settings.device)} at most",
        f"  {'disk':9} {done.disk}",
        f"  {'folder':9} {settings.run}",
    ]
    return lines


def _peak_memory(device: str) -> str:
    if device.startswith("cuda"):
        return f"{memory(torch.cuda.max_memory_allocated(device))} of the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
