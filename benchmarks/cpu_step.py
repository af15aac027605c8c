"""A training step of keepfit-v2-lite on the CPU, and what makes it fast there, side by side in one run.

    python benchmarks/cpu_step.py [--steps 6] [--rounds 2] [--batch 32]

Each row adds one thing to the row above it: malloc as it comes and convolutions channels-first; the memory of one step
kept for the next (`keep_freed_memory`); convolutions channels-last, as the image tower has them; and, where the
processor has AMX (or with --bfloat16), bfloat16 for what is no convolution, as `--precision amp_bf16` trains. Each
figure is the median of fresh processes that take turns. The losses of all steps are printed too: they are to be the
same but for rounding.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import open_clip
import torch
from rich.console import Console
from rich.table import Table
from transformers import BatchEncoding

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.processor import has_fast_bfloat16, keep_freed_memory

MODEL = "keepfit-v2-lite"
TOKENS = 32
WAYS = ("malloc as it comes, channels-first", "memory kept", "and channels-last", "and bfloat16")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="in a process, of which the first two warm up")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each row")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bfloat16", action="store_true", default=has_fast_bfloat16())
    args = parser.parse_args()
    ways = range(len(WAYS) if args.bfloat16 else len(WAYS) - 1)
    seconds: dict[int, list[float]] = {way: [] for way in ways}
    losses = {}
    for number in range(args.rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                steps, losses[way] = pool.submit(measure, way, args.steps, args.batch).result()
            seconds[way] += steps[min(2, len(steps) - 1) :]
    table = Table(f"{MODEL}, a step of {args.batch}", "seconds", "images/s", "ratio", "losses")
    first = statistics.median(seconds[0])
    for way in ways:
        median = statistics.median(seconds[way])
        shown = " ".join(f"{loss:.3f}" for loss in losses[way])
        table.add_row(WAYS[way], f"{median:.2f}", f"{args.batch / median:.1f}", f"{first / median:.2f}", shown)
    Console(width=120).print(table)


def measure(way: int, steps: int, batch: int) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step of a fresh model on the same images and texts."""
    if way > 0:
        keep_freed_memory()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, pretrained_image=True).train()
    if way < 2:
        model.visual.trunk.to(memory_format=torch.contiguous_format)
    optimizer, loss, number = torch.optim.AdamW(model.parameters(), lr=1e-4), HybridLoss(), torch.arange(batch)
    ids = torch.randint(1000, 2000, (batch, TOKENS))
    ids[:, -1] = 102
    categories = torch.cat([number[:, None], -torch.ones(batch, 15, dtype=torch.long)], 1)
    texts = BatchEncoding(
        {"input_ids": ids, "is_elite": number % 2 == 0, "modality": number * 0, "text_id": number}
        | {"category_ids": categories}
    )
    images = torch.randn(batch, 3, 224, 224)
    seconds, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if way > 2 else nullcontext():
            total = sum(loss(**model(images, texts)).values())
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(total.item())
    return seconds, losses


if __name__ == "__main__":
    main()
