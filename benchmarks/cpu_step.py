"""A training step of keepfit-v2-lite on the CPU with glibc's memory settings of the README and without, side by side.

python benchmarks/cpu_step.py [--steps 6]
"""

import argparse
import os
import statistics
import subprocess
import sys

KEPT = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
STEP = """
import statistics, sys, time, torch, open_clip, keepfit_clip
from transformers import BatchEncoding
from keepfit_clip.model.loss import HybridLoss
torch.set_num_threads(2)
torch.manual_seed(0)
model = open_clip.create_model("keepfit-v2-lite", pretrained_text=False).train()
optimizer, loss, number = torch.optim.AdamW(model.parameters(), lr=1e-4), HybridLoss(), torch.arange(32)
ids = torch.randint(1000, 2000, (32, 32)); ids[:, -1] = 102
texts = BatchEncoding(dict(input_ids=ids, is_elite=number % 2 == 0, modality=number * 0, text_id=number,
                           category_ids=torch.cat([number[:, None], -torch.ones(32, 15, dtype=torch.long)], 1)))
images, seconds = torch.randn(32, 3, 224, 224), []
for _ in range(int(sys.argv[1])):
    start = time.perf_counter()
    sum(loss(**model(images, texts)).values()).backward()
    optimizer.step(); optimizer.zero_grad()
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[min(2, len(seconds) - 1):]))
"""


def median_step(environment: dict[str, str], steps: int) -> float:
    env = {key: value for key, value in os.environ.items() if key not in KEPT} | environment
    command = [sys.executable, "-c", STEP, str(steps)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    plain, kept = (statistics.median(median_step(env, steps) for _ in range(2)) for env in ({}, KEPT))
    print(f"step of 32 samples, as it is       {plain:.2f} s")
    print(f"step of 32 samples, memory kept    {kept:.2f} s   ratio {kept / plain:.2f}")


if __name__ == "__main__":
    main()
