"""Ten minutes of a GPU, spent in order of worth; each part writes its result at once.

    python benchmarks/gpu/run.py --kit KIT --out DIR [--minutes 9.5] [--parts tests step ...] [--smoke]

See README.md beside this file. It needs nothing but Python; what it starts finds its packages in KIT/site.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Samples in a batch: the last model takes 512 pixels.
BATCHES = {"keepfit-v2-vit-b-16": 128, "keepfit-v2-vit-l-16": 64, "keepfit-v2": 48}
ARMS = (
    "defaults",
    "public",
    "elite",
    "revision",
    "held_out",
    "held_out_public",
    "before",
    "fast",
    "root",
    "jpg_mild",
    "jpg_strong",
    "png_mild",
    "png_strong",
)
LARGE = {
    "step": ["--rounds", "1"],
    "inference": [],
    "loader": ["--sizes", "224", "512", "--workers", "12"],
    "learning": ["--steps", "600", "--workers", "4", "--jobs", "3", "--arms", *ARMS],
}
SMALL = {
    "step": ["--batch", "2", "--steps", "1", "--rounds", "1", "--image-size", "64"],
    "inference": ["--captions", "2", "--tokens", "4", "--pictures", "8", "--rounds", "1"],
    "loader": ["--sizes", "64", "--workers", "1", "--batches", "2"],
    "learning": ["--steps", "1", "--seeds", "0", "--image-size", "64", "--arms", "defaults"],
}
LEAST = 20  # seconds: with fewer no part is started


def parts(kit: Path, work: Path, smoke: bool) -> dict[str, list[str]]:
    """Name -> command, in the order in which they run."""
    small, device = (SMALL, "cpu") if smoke else (LARGE, "cuda")
    step = ["benchmarks/train_step.py", "--device", device, *small["step"]]
    commands = {"tests": ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]}
    for model, batch in list(BATCHES.items())[: 1 if smoke else None]:
        own = [*step, "--model", model, *([] if smoke else ["--batch", str(batch)])]
        commands[f"step-{model.removeprefix('keepfit-')}"] = [*own, "--no-loop", "--no-compile"]
        if not smoke:  # a CPU takes minutes to compile
            commands[f"compiled-{model.removeprefix('keepfit-')}"] = [*own, "--no-loop", "--compile"]
    commands["loop"] = [*step, "--no-compile"]
    commands["inference"] = ["benchmarks/gpu/inference.py", "--device", device, *small["inference"]]
    commands["loader"] = ["benchmarks/data_loading.py", *small["loader"]]
    if (kit / "images").is_dir():
        folders = [str(kit / "images"), "--out", str(work / "learning")]
        commands["learning"] = ["benchmarks/learning.py", *folders, "--device", device, *small["learning"]]
    return commands


def main() -> None:
    """Runs the parts until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kit", type=Path, required=True, help="folder that unpack.py made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which the last part is stopped")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--smoke", action="store_true", help="everything in small, on the CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.kit / "work"
    work.mkdir(exist_ok=True)
    commands = parts(args.kit, work, args.smoke)
    unknown = set(args.parts or ()) - set(commands)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(commands)}")
    end = time.monotonic() + 60 * args.minutes
    seconds: dict[str, float | str] = {}
    failed = False
    for name in args.parts or commands:
        left = end - time.monotonic()
        if left < LEAST:
            seconds[name] = "not begun: the time was up"
        else:
            extra = ["--minutes", str((left - 60) / 60)] if name == "learning" else []  # it ends by itself, with tables
            code, spent = run([*commands[name], *extra], args.out / f"{name}.txt", left, environment(args))
            seconds[name] = spent if code == 0 else f"failed with {code} after {spent:.0f} s"
            failed |= code != 0
        print(f"{name}: {seconds[name]}", flush=True)
        (args.out / "seconds.json").write_text(json.dumps(seconds, indent=2))
    for table in sorted((work / "learning").glob("*.md")):
        (args.out / f"learning-{table.name}").write_text(table.read_text())
    sys.exit(1 if failed else 0)


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Of the programs: packages out of the kit, no hub, the first GPU."""
    paths = [str((args.kit / "site").resolve()), str(ROOT), os.environ.get("PYTHONPATH", "")]
    gpu = {} if args.smoke else {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1", **gpu}  # fmt: skip


def run(command: list[str], log: Path, seconds: float, env: dict[str, str]) -> tuple[int | str, float]:
    """Exit code and seconds of a program whose output goes to a file; it is stopped, with all it started, in time."""
    start = time.monotonic()
    with open(log, "w") as file:
        child = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code: int | str = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = "the time was up"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return code, time.monotonic() - start


if __name__ == "__main__":
    main()
