"""Captions a second with the decoder's cache beside without, and zero-shot images a second, decoding included.

    python benchmarks/gpu/inference.py [--device cuda] [--captions 64] [--tokens 64] [--pictures 512]

The model is keepfit-v2-vit-b-16 with random weights: its captions end at --tokens on both sides, and both are the same.
The pictures are drawn retinas of 1024 pixels, as JPEG files; they are read as `keepfit-clip transfer` reads them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from keepfit_clip.drawing import draw_retina
from keepfit_clip.evaluate import image_batches
from keepfit_clip.processor import keep_freed_memory

MODEL = "keepfit-v2-vit-b-16"
DRAWN = 16  # different pictures


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--captions", type=int, default=64, help="in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="of a caption")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained_text=False)
    model = model.eval().to(args.device)
    table = Table(f"{MODEL} on {device_name(args.device)}", "a second", "ratio")
    images = torch.randn(args.captions, 3, 224, 224, device=args.device)
    options = {"max_length": args.tokens, "min_length": args.tokens}
    with torch.inference_mode():
        cached, plain = (model.generate(images, use_cache=use, **options) for use in (True, False))
        if not torch.equal(cached, plain):
            same = (cached == plain).float().mean().item()
            Console().print(f"with and without the cache {same:.1%} of the tokens are the same")
        without, within = alternating(
            [lambda u=use: model.generate(images, use_cache=u, **options) for use in (False, True)], args
        )
    table.add_row("captions without the cache", f"{args.captions / without:.1f}", "1.00")
    table.add_row("captions with it", f"{args.captions / within:.1f}", f"{without / within:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), args.pictures)

        def encode() -> None:
            for _, batch in image_batches(paths, preprocess):
                model.encode_image(batch.to(args.device))

        with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            (seconds,) = alternating([encode], args)
    table.add_row("zero-shot images of 1024 pixels, decoded in one process", f"{args.pictures / seconds:.1f}", "")
    Console(width=120).print(table)


def draw(folder: Path, count: int) -> list[Path]:
    """JPEG files of drawn retinas; only a few of them differ."""
    drawn = [draw_retina("CFP", "normal", [number], 256).image for number in range(DRAWN)]
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        drawn[number % DRAWN].resize((1024, 1024), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def alternating(works: list[Callable[[], object]], args: argparse.Namespace) -> list[float]:
    """Median seconds of each piece of work, taken in turns."""
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(args.rounds):
        for number, work in enumerate(works):
            wait()
            start = time.perf_counter()
            work()
            wait()
            seconds[number].append(time.perf_counter() - start)
    return [statistics.median(values) for values in seconds]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
