"""What `import keepfit_clip` adds to `import open_clip`, side by side in fresh processes.

python benchmarks/import_time.py [--runs 7]
"""

import argparse
import statistics
import subprocess
import sys
import time

ADDED_LIMIT = 0.3  # seconds


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs, pairs = parser.parse_args().runs, []
    seconds("import open_clip, keepfit_clip")  # warm the file cache
    for _ in range(runs):
        pairs.append((seconds("import open_clip"), seconds("import open_clip, keepfit_clip")))
    alone, both = (statistics.median(column) for column in zip(*pairs, strict=True))
    added = statistics.median(b - a for a, b in pairs)
    print(f"import open_clip                {alone:.2f} s")
    print(f"import open_clip, keepfit_clip  {both:.2f} s   ratio {both / alone:.3f}, added {added:.2f} s")
    print(f"limit of {ADDED_LIMIT} s added: {'kept' if added <= ADDED_LIMIT else 'EXCEEDED'}")


if __name__ == "__main__":
    main()
