"""The fence to open_clip_train: the only file of the library that imports it, and that replaces names of it.

While a run lasts, these are others (the first eight are what a run brings, see run.py):

    parse_args               our flags first, the rest to upstream's parser
    setup_logging            upstream's own, with names instead of paths in the log file
    get_data                 the mixed stream and the held-out shards
    create_model_and_transforms   with --image-tower
    create_loss              HybridLoss
    evaluate                 captions, retrieval and zero-shot classes, see validation.py
    train_one_epoch          upstream's own, with generators seeded per epoch, every term logged, troubles reported
    pt_load                  with an error that says what does not fit
    get_latest_checkpoint    the newest one by its epoch, whatever it is called
    start_sync_process       as one that ends with the run, however that ends
    init_process_group       with addresses of its own at each of torchrun's restarts, where torch mixes them up
    DistributedDataParallel  without device_ids for modules on the CPU, which torch refuses
    torch.save               under a temporary name, then renamed
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from open_clip import create_model_and_transforms
from open_clip_train.data import DataInfo, SharedEpoch
from open_clip_train.distributed import is_master, world_info_from_env
from open_clip_train.params import parse_args
from open_clip_train.precision import get_autocast

from keepfit_clip.errors import ConfigError

try:  # open_clip 4 keeps the loop over images and texts under another name, beside one over tasks
    from open_clip_train import legacy_main as upstream
    from open_clip_train.legacy_train import train_one_epoch, unwrap_model
except ImportError:
    import open_clip_train.main as upstream
    from open_clip_train.train import train_one_epoch, unwrap_model

__all__ = ["DataInfo", "SharedEpoch", "as_batch", "create_model_and_transforms", "get_autocast",
           "init_each_attempt_anew", "is_master", "load_checkpoint", "parse_args", "run_main", "train_one_epoch",
           "unwrap_model", "world_info_from_env"]  # fmt: skip

load_checkpoint = upstream.pt_load
_NAMED_BATCHES = upstream.__name__.endswith("legacy_main")
# All ranks wait for the first one's evaluation; NCCL's own patience is ten minutes.
_TIMEOUT = timedelta(hours=1)


def as_batch(images, texts):
    """A batch as the installed open_clip_train's loop takes it apart."""
    return {"image": images, "text": texts} if _NAMED_BATCHES else (images, texts)


def run_main(argv, ours: Mapping[str, Callable], save: Callable, wrapped: Mapping[str, Callable]) -> int | None:
    """Calls open_clip_train's main with other functions under some of its names.

    Args:
        argv: command line words; None takes those of this process.
        ours: name in its main -> what stands there.
        save: in place of `torch.save`.
        wrapped: name in its main -> what makes another function of the one that stands there.

    Returns:
        What main returned: 0 or None where it came to its end.

    Raises:
        ConfigError: the installed open_clip_train lacks one of the names.
    """
    changes = {(upstream, name): lambda _, function=function: function for name, function in ours.items()}
    changes |= {(upstream, name): make for name, make in wrapped.items()}
    changes |= {
        (upstream, "start_sync_process"): _ending_with_the_run,
        (torch.distributed, "init_process_group"): init_each_attempt_anew,
        (torch.nn.parallel, "DistributedDataParallel"): _ddp_on_any_device,
        (torch, "save"): lambda _: save,
    }
    missing = [name for module, name in changes if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"this open_clip_train lacks {', '.join(missing)}: pip install 'open_clip_torch>=3.3,<4'")
    originals = {target: getattr(*target) for target in changes}
    try:
        for (module, name), make in changes.items():
            setattr(module, name, make(originals[module, name]))
        with _own_logging():
            return upstream.main(argv)
    finally:
        for (module, name), function in originals.items():
            setattr(module, name, function)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Gives the run's log handlers to the run alone; upstream also raises the level of every logger there is."""
    root = logging.getLogger()
    handlers, levels = root.handlers, {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    root_level = root.level
    root.handlers = [logging.NullHandler()]  # else the first log line installs a handler, and each stands twice
    raises, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk is told once, by what is saved next
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        for handler in root.handlers:  # the run's log file among them
            with suppress(OSError):  # what a full disk did not take
                handler.close()
        root.handlers = handlers
        root.setLevel(root_level)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _ending_with_the_run(original: Callable) -> Callable:
    """Python waits at its end for a process that is no daemon; upstream ends it only where all went well."""

    def start(*args, **options):
        process = original(*args, **options)
        process.daemon = True
        return process

    return start


def init_each_attempt_anew(original: Callable) -> Callable:
    """torchrun keeps one store for all attempts (torch 2.15), in which a restarted rank finds where its peers were.

    On one machine all ranks know the number of the attempt. On several they may not: there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun start a new store each time.
    """

    def init(backend=None, init_method=None, **options):
        options = {"timeout": _TIMEOUT, **options}
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if attempt == "0" or os.environ.get("GROUP_WORLD_SIZE", "1") != "1" or init_method != "env://":
            return original(backend=backend, init_method=init_method, **options)
        store, rank, world_size = next(torch.distributed.rendezvous(init_method))
        own = torch.distributed.PrefixStore(f"attempt {attempt}", store)
        return original(backend=backend, store=own, **{**options, "rank": rank, "world_size": world_size})

    return init


def _ddp_on_any_device(original: type) -> Callable:
    def build(module, device_ids=None, **options):
        on_cpu = next(module.parameters()).device.type == "cpu"
        return original(module, device_ids=None if on_cpu else device_ids, **options)

    return build
