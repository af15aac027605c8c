"""Memory of the losses: contrast by rows of one rank beside open_clip's whole matrix, captions without all logits.

    python benchmarks/loss_memory.py [--global-batches 1024 2048 4096 8192 16384] [--device cuda]

First table: forward and backward of the contrastive terms on one rank, the other ranks simulated (their rows are
constants, copies of this rank's), for HybridLoss and for open_clip's ClipLoss with its default flags and with
--local-loss. Beside each peak stands its ratio to the row above: 2 where memory grows with local x global, 4 where it
grows with global x global.

Second table: `token_nll` of a decoder's states beside cross-entropy over materialised logits, forward and backward;
alone, and in a whole step of keepfit-v2's caption decoder with gradient checkpointing.

Each peak is that of a process of its own, above what it had with its inputs at hand; on a CPU (Linux) glibc is told to
give every block back at once, so that the peak is of what was in use. The seconds are of other processes, without that.
On CUDA the caption loss runs in bfloat16.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import torch
from open_clip.loss import ClipLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from keepfit_clip.data.stream.batch import MAX_IDS
from keepfit_clip.model.compat import set_activation_checkpointing
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.decoder import CaptionDecoder, token_nll
from keepfit_clip.model.loss import HybridLoss, _Ranks

LOCAL = 128
EMBED_DIM = 512
CHECKED = 1024  # tokens of the comparison of gradients
SIDES = ("HybridLoss", "ClipLoss", "ClipLoss --local-loss")
MIB = 2**20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--global-batches", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--batch", type=int, default=64, help="captions (64)")
    parser.add_argument("--tokens", type=int, default=128, help="of a caption (128)")
    parser.add_argument("--vocabulary", type=int, default=28996)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes for each caption loss (2)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    console = Console(width=120)
    console.print(contrast_table(args), caption_table(args), decoder_table(args))
    console.print(differences(args))


def fresh(function: Callable, *arguments, keep_memory: bool = False):
    """The result of a function in a process of its own, whose malloc keeps nothing back unless told to."""
    settings = {} if keep_memory else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    with mock.patch.dict(os.environ, settings), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds_and_peak(args: argparse.Namespace, work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a piece of work, and the most memory it took above what there was before, in bytes."""
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - start, memory("VmHWM") - before


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process, bytes. A child's ru_maxrss would begin with its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


# ---- contrast


def contrast_table(args: argparse.Namespace) -> Table:
    table = Table("global batch", "one local x global, MiB", *(f"{side}, MiB" for side in SIDES))
    above: dict[str, int] = {}
    for size in args.global_batches:
        peaks = {side: fresh(contrast_peak, args, side, size) for side in SIDES}
        cells = [f"{p / MIB:.1f}" + (f"  x {p / above[side]:.2f}" if above else "") for side, p in peaks.items()]
        table.add_row(str(size), f"{4 * LOCAL * size / MIB:.1f}", *cells)
        above = peaks
    return table


def contrast_peak(args: argparse.Namespace, side: str, size: int) -> int:
    """Bytes that the contrastive terms of one rank take in a global batch of `size`."""
    torch.set_num_threads(args.threads)
    contrast(args, side, 2 * LOCAL)()  # what a first call loads
    return seconds_and_peak(args, contrast(args, side, size))[1]


def contrast(args: argparse.Namespace, side: str, size: int) -> Callable[[], None]:
    ranks, number = size // LOCAL, torch.arange(LOCAL, device=args.device)
    image, text = (
        F.normalize(torch.randn(LOCAL, EMBED_DIM, device=args.device), dim=1).requires_grad_() for _ in range(2)
    )
    scale = torch.tensor(14.3, device=args.device, requires_grad=True)
    if side == "HybridLoss":
        category_ids = F.pad(number[:, None], (0, MAX_IDS - 1), value=-1)
        loss = partial(HybridLoss()._contrastive, OneOfMany(ranks), image, text, scale)
        terms = partial(loss, is_elite=number % 2 == 0, text_id=number, category_ids=category_ids)
    else:
        loss = ClipLoss(local_loss=side.endswith("--local-loss"), world_size=ranks)
        terms = partial(loss, image, text, scale, output_dict=True)

    def work() -> None:
        with mock.patch("open_clip.loss.gather_features", partial(gathered_features, ranks)):
            sum(terms().values()).backward()

    return work


class OneOfMany(_Ranks):
    """The first of some ranks; the others hold copies of its rows."""

    def __init__(self, ranks: int):
        super().__init__()
        self.world_size = ranks

    def gather(self, tensor: Tensor) -> Tensor:
        return with_copies(tensor, self.world_size)


def gathered_features(ranks: int, image_features: Tensor, text_features: Tensor, **_) -> tuple[Tensor, Tensor]:
    """In place of open_clip's function, which needs the ranks."""
    return with_copies(image_features, ranks), with_copies(text_features, ranks)


def with_copies(tensor: Tensor, ranks: int) -> Tensor:
    """Rows (B, ...) and what the other ranks hold, without gradient: (ranks * B, ...)."""
    return torch.cat([tensor, *[tensor.detach()] * (ranks - 1)])


# ---- captions


def full_nll(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """What `token_nll` computes, over all logits at once."""
    logits = F.linear(states.flatten(0, -2), weight, bias)
    return F.cross_entropy(logits.float(), targets.flatten(), reduction="none").view(targets.shape)


def caption_table(args: argparse.Namespace) -> Table:
    size = f"{args.batch} captions of {args.tokens} tokens, vocabulary {args.vocabulary:,}"
    table = Table(f"caption loss: {size}", "peak MiB", "ratio", "seconds", "ratio")
    functions = (full_nll, token_nll)
    peaks = [fresh(caption_figures, args, function)[1] for function in functions]
    rounds = [
        [fresh(caption_figures, args, function, keep_memory=True)[0] for function in functions]
        for _ in range(args.rounds)
    ]
    seconds = [statistics.median(column) for column in zip(*rounds, strict=True)]
    table.add_row("all logits at once", f"{peaks[0] / MIB:.0f}", "", f"{seconds[0]:.2f}", "")
    ratios = (f"{peaks[1] / peaks[0]:.2f}", f"{seconds[1]:.2f}", f"{seconds[1] / seconds[0]:.2f}")
    table.add_row("token_nll", f"{peaks[1] / MIB:.0f}", *ratios)
    return table


def decoder_table(args: argparse.Namespace) -> Table:
    table = Table("a step of the caption decoder, the same captions", "peak MiB", "ratio")
    peaks = [fresh(decoder_peak, args, function) for function in (full_nll, token_nll)]
    table.add_row("all logits at once", f"{peaks[0] / MIB:.0f}", "")
    table.add_row("token_nll", f"{peaks[1] / MIB:.0f}", f"{peaks[1] / peaks[0]:.2f}")
    return table


def decoder_peak(args: argparse.Namespace, function: Callable) -> int:
    """Bytes that forward and backward of keepfit-v2's caption decoder take with a caption loss."""
    torch.set_num_threads(args.threads)
    config = ModelConfig.named("keepfit-v2")
    encoder = config.text.hf_model_config
    words = torch.nn.Embedding(encoder["vocab_size"], encoder["hidden_size"])
    decoder = CaptionDecoder(config.decoder, words, words.embedding_dim, pad_id=0, bos_id=101, eos_id=102)
    set_activation_checkpointing(decoder, True)
    decoder.train().to(args.device)
    words.to(args.device)

    def work(batch: int) -> None:
        ids = torch.randint(1000, words.num_embeddings, (batch, args.tokens + 1), device=args.device)
        image_tokens = torch.randn(batch, 49, words.embedding_dim, device=args.device)
        with (
            mock.patch("keepfit_clip.model.decoder.token_nll", function),
            torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda),
        ):
            nll, tokens = decoder.caption_nll(ids, torch.ones_like(ids, dtype=torch.bool), image_tokens)
        (nll.sum() / tokens.sum()).backward()

    work(1)  # what a first call loads, gradients included
    return seconds_and_peak(args, partial(work, args.batch))[1]


def caption_figures(args: argparse.Namespace, function: Callable) -> tuple[float, int]:
    """Seconds and bytes of a caption loss, forward and backward; the faster of two."""
    torch.set_num_threads(args.threads)
    nll_and_gradients(function, *states_and_targets(args, 64))  # what a first call loads
    inputs = states_and_targets(args, args.batch * args.tokens)
    figures = [seconds_and_peak(args, lambda: nll_and_gradients(function, *inputs)) for _ in range(2)]
    return min(seconds for seconds, _ in figures), figures[0][1]


def states_and_targets(args: argparse.Namespace, tokens: int) -> tuple[list[Tensor], Tensor]:
    """States (T, C), weight (V, C) and bias (V,), which want gradients, and targets (T,)."""
    torch.manual_seed(0)
    width, vocabulary, device = args.width, args.vocabulary, args.device
    weight = torch.randn(vocabulary, width, device=device) / width**0.5
    inputs = [torch.randn(tokens, width, device=device), weight, torch.zeros(vocabulary, device=device)]
    return [i.requires_grad_() for i in inputs], torch.randint(vocabulary, (tokens,), device=device)


def nll_and_gradients(function: Callable, inputs: list[Tensor], targets: Tensor) -> list[Tensor]:
    """Mean NLL () and its gradients: states (T, C), weight (V, C), bias (V,)."""
    with torch.autocast("cuda", torch.bfloat16, enabled=targets.is_cuda):
        value = function(*inputs, targets).mean()
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def differences(args: argparse.Namespace) -> str:
    """How far value and gradients of the two caption losses lie apart, each in parts of its own largest entry."""
    torch.set_num_threads(args.threads)
    inputs, targets = states_and_targets(args, CHECKED)
    full, chunked = (nll_and_gradients(function, inputs, targets) for function in (full_nll, token_nll))
    names = ("value", "gradient of states", "of weight", "of bias")
    apart = [float((b - a).abs().max() / a.abs().max()) for a, b in zip(full, chunked, strict=True)]
    listed = ", ".join(f"{name} {value:.1e}" for name, value in zip(names, apart, strict=True))
    return f"largest relative difference over {CHECKED} tokens: {listed}"


if __name__ == "__main__":
    main()
