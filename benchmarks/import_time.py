"""Start-up beside `import open_clip`, each in a fresh process, one after the other in every round.

python benchmarks/import_time.py [--runs 7]
"""

import argparse
import statistics
import subprocess
import sys
import time

ADDED_LIMIT = 0.3  # seconds that `import keepfit_clip` may add to `import open_clip`
SHARE_LIMIT = 0.15  # of the time of `import open_clip`, for what needs no model
KEEPFIT = "import sys; sys.argv[1:] = {}.split(); from keepfit_clip.cli import main; main()"
LIGHT = ("--help", "--version", "knowledge lookup glaucoma")


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    codes = {
        "import open_clip": "import open_clip",
        "import open_clip, keepfit_clip": "import open_clip, keepfit_clip",
        **{f"keepfit-clip {words}": KEEPFIT.format(repr(words)) for words in LIGHT},
    }
    seconds(codes["import open_clip, keepfit_clip"])  # warm the file cache
    rounds = [{name: seconds(code) for name, code in codes.items()} for _ in range(runs)]
    medians = {name: statistics.median(taken[name] for taken in rounds) for name in codes}
    alone, _, *light = medians.values()
    added = statistics.median(
        taken["import open_clip, keepfit_clip"] - taken["import open_clip"] for taken in rounds
    )  # pairwise, so that a slower minute counts in both
    print(f"{'import open_clip':40} {alone:.2f} s")
    for name, taken in list(medians.items())[1:]:
        print(f"{name:40} {taken:.2f} s   ratio {taken / alone:.3f}")
    print(f"added {added:.2f} s; limit {ADDED_LIMIT} s: {'kept' if added <= ADDED_LIMIT else 'EXCEEDED'}")
    kept = max(light) / alone <= SHARE_LIMIT
    print(f"without a model at most {max(light) / alone:.3f}; limit {SHARE_LIMIT}: {'kept' if kept else 'EXCEEDED'}")


if __name__ == "__main__":
    main()
