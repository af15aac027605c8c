"""Real processes and real SIGKILLs: a run killed again and again ends with the weights of one that was not."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from keepfit_clip.errors import ConfigError, KeepFITError
from keepfit_clip.training.hybrid import run_folder
from keepfit_clip.training.hybrid.run import main as train
from tests.conftest import train_flags
from tests.programs import Program
from tests.test_training import checkpoint, with_dropout

EPOCHS = 6
STEPS = 4  # in an epoch
PATIENCE = 120  # seconds


def start(flags, processes=1, max_restarts=0, environment=None, from_scratch=False):
    """Starts a training as its users do."""
    if processes == 1 and not from_scratch:
        return Program("keepfit_clip.training.main", flags, environment)
    program = ["-m", "keepfit_clip.training.main", *flags]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        program = [*launcher, "--max-restarts", str(max_restarts), "-m", "keepfit_clip.training.main", "--", *flags]
    number, name = tempfile.mkstemp(prefix="training-", suffix=".log")  # a pipe that nobody reads would stop it
    with open(number, "wb") as output:
        process = subprocess.Popen([sys.executable, *program], stdout=output, stderr=subprocess.STDOUT)
    process.output = Path(name)
    return process


def all_output(process, timeout=PATIENCE):
    """Waits for the end of a process and gives what it said."""
    process.wait(timeout)
    output = process.output.read_text()
    process.output.unlink()
    return output


def family(process):
    return [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]


def rank_process(process, rank):
    """The training process of a rank under torchrun (its data workers have it as parent)."""
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError("no such rank")


def kill_all(process):
    """As when a machine loses power: nobody gets to clean up."""
    members = family(process)
    for member in members:
        member.send_signal(signal.SIGKILL)
    psutil.wait_procs(members, timeout=30)
    process.wait()
    process.output.unlink()


def wait_until(condition, process):
    """Waits for a condition; False where the process ended first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise AssertionError("nothing happened for too long")


def finished(process):
    output = all_output(process)
    assert process.returncode == 0, [line for line in output.splitlines() if "keepfit-clip train:" in line]


def epochs_saved(run):
    return max((int(p.stem.removeprefix("epoch_")) for p in run.glob("checkpoints/epoch_*.pt")), default=0)


def flags_of(shards, folder, name, **more):
    model = f"local-dir:{folder / 'dropout'}"
    if not (folder / "dropout").exists():
        with_dropout(folder / "dropout")
    return [*train_flags(shards, folder, name, model=model, epochs=EPOCHS, workers=1, **more), "--resume", "latest"]


def assert_same_weights(one, other):
    straight, killed = checkpoint(one, EPOCHS), checkpoint(other, EPOCHS)
    for key, tensor in straight.items():
        assert torch.equal(tensor, killed[key]), key


def logged(run):
    return (run / "debug.log").read_text() if (run / "debug.log").exists() else ""


def kill_at_a_step(run, process, step):
    """Kills once this attempt has done so many steps; False where it ended first."""
    before = logged(run).count("Train Epoch")
    return _kill_when(lambda: logged(run).count("Train Epoch") >= before + step, process)


def kill_while_saving(run, process, checkpoints):
    """Kills while this attempt writes one more checkpoint than so many; False where it ended first."""
    began, seen = time.time(), set()

    def is_saving():
        for path in run.glob("checkpoints/*.partial"):
            with suppress(FileNotFoundError):  # renamed meanwhile
                if path.stat().st_mtime >= began:  # else an earlier attempt left it
                    seen.add(path.name)
        return len(seen) > checkpoints

    return _kill_when(is_saving, process)


def _kill_when(condition, process):
    if not wait_until(condition, process):
        finished(process)
        return False
    kill_all(process)
    return True


def assert_it_went_on(run, saved, log_before):
    """An attempt began with the epoch after the last that was saved: none is lost, none is done twice."""
    attempt = logged(run).removeprefix(log_before)
    resumed = re.findall(r"resuming checkpoint 'epoch_(\d+)\.pt'", attempt)
    assert resumed == ([str(saved)] if saved else []) or "Start epoch" not in attempt
    started = re.findall(r"Start epoch (\d+)", attempt)
    assert [int(epoch) for epoch in started] == list(range(saved, saved + len(started)))


def kill_again_and_again(shards, folder, processes, kills, seed):
    """Kills a run at random steps, every other time while it saves; returns the steps and saves it was killed at.

    A run that ends before its kill starts anew in another folder, until there were enough kills.
    """
    batch = 8 // processes
    straight = flags_of(shards, folder, "straight", batch_size=batch)
    if processes == 1:
        train(straight)
    else:
        finished(start(straight, processes))
    rng, killed, turn = random.Random(seed), [], 0
    while len(killed) < kills:
        run = folder / f"killed{turn}"
        turn += 1
        flags = flags_of(shards, folder, run.name, batch_size=batch)
        while epochs_saved(run) < EPOCHS:
            saved, log = epochs_saved(run), logged(run)
            process = start(flags, processes)
            if len(killed) == kills:
                finished(process)
            elif len(killed) % 2:
                if kill_while_saving(run, process, rng.randrange(2)):
                    killed.append("save")
            elif kill_at_a_step(run, process, rng.randint(1, 2 * STEPS)):
                killed.append("step")
            assert_it_went_on(run, saved, log)
            for path in run.glob("checkpoints/*.pt"):
                assert torch.load(path, weights_only=True)["epoch"] == int(path.stem.removeprefix("epoch_"))
        assert_same_weights(folder / "straight", run)
        assert not list(run.glob("checkpoints/*.partial"))
    return killed


@pytest.mark.long
def test_a_run_killed_twice_ends_with_the_same_weights(shards, tmp_path):
    assert kill_again_and_again(shards, tmp_path, processes=1, kills=2, seed=0) == ["step", "save"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_fifteen_kills(shards, tmp_path, processes):
    assert len(kill_again_and_again(shards, tmp_path, processes, kills=15, seed=processes)) == 15


# Flags that upstream reads with several processes only, all at once.
OF_SEVERAL = {"local_loss": True, "gather_with_grad": True, "ddp_static_graph": True, "accum_freq": 2,
              "grad_checkpointing": True}  # fmt: skip


@pytest.mark.long
def test_one_dead_rank_ends_all_and_torchrun_starts_them_again(shards, tmp_path):
    run = tmp_path / "restarted"
    flags = flags_of(shards, tmp_path, run.name, batch_size=4, **OF_SEVERAL)
    process = start(flags, processes=2, max_restarts=1)
    assert wait_until(lambda: epochs_saved(run) >= 2, process)
    others = [rank_process(process, 0)]
    rank_process(process, 1).send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(others, timeout=60)
    assert gone
    assert not alive
    finished(process)
    assert epochs_saved(run) == EPOCHS
    found = re.findall(r"resuming checkpoint 'epoch_(\d+)\.pt'", (run / "out.log").read_text())
    assert len(found) == 1  # of the first rank; the one before had nothing to go on from
    assert int(found[0]) >= 2


@pytest.mark.long
def test_without_torchrun_the_other_rank_ends_with_one_sentence(shards, tmp_path):
    flags = flags_of(shards, tmp_path, "plain", batch_size=4)
    port = str(20000 + os.getpid() % 20000)
    peers = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [start(flags, environment={**peers, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert wait_until(lambda: epochs_saved(tmp_path / "plain") >= 1, ranks[0])
    kill_all(ranks[1])
    output = all_output(ranks[0], timeout=60)
    assert ranks[0].returncode == 1
    assert output.strip().splitlines()[-1].startswith("keepfit-clip train: another process of this run has ended")
    assert "Traceback" not in output


def test_an_attempt_that_ended_before_its_first_step_is_no_run(shards, tmp_path):
    short = {"epochs": 1, "train_num_samples": 8}
    with pytest.raises(KeepFITError):
        train(train_flags(shards, tmp_path, "one", preset="contrastive", public_data=shards / "elite", **short))
    assert (tmp_path / "one" / "out.log").exists()
    train(train_flags(shards, tmp_path, "one", **short))
    with pytest.raises(ConfigError, match="holds a run already"):
        train(train_flags(shards, tmp_path, "one", **short))


def test_a_second_run_is_kept_out_of_the_folder(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_ORPHANS_LIVE", 0.1)
    (tmp_path / "one").mkdir()
    with FileLock(tmp_path / "one" / ".run.lock"), pytest.raises(ConfigError, match="another run is at work in"):
        train(train_flags(shards, tmp_path, "one"))


@pytest.mark.long
def test_an_error_ends_a_run_that_is_copied_to_a_remote_folder(shards, tmp_path):
    """Python waits at its end for a process of upstream's that copies for ever."""
    broken = train_flags(shards, tmp_path, "broken", lr=1e30, grad_clip_norm=1e30, remote_sync=tmp_path / "remote",
                         remote_sync_protocol="fsspec")  # fmt: skip
    process = start(broken, from_scratch=True)  # a forked process ends otherwise
    output = all_output(process)
    assert process.returncode == 1
    assert output.strip().splitlines()[-1].startswith("keepfit-clip train: epoch 0, step")


def test_a_folder_with_leftovers_of_a_kill_is_cleaned(shards, tmp_path):
    flags = flags_of(shards, tmp_path, "left", train_num_samples=8)
    checkpoints = tmp_path / "left" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("epoch_3.pt.partial", "tmp.pt"):
        (checkpoints / name).write_bytes(b"half")
    (tmp_path / "left" / ".model.abc.partial").mkdir()
    train(flags)
    assert not [p for p in (tmp_path / "left").rglob("*") if "partial" in p.name or p.name == "tmp.pt"]
    assert json.loads((tmp_path / "left" / "model" / "open_clip_config.json").read_text())
