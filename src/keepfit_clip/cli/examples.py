"""An example or two of each command, for the end of its help."""

import typer

__all__ = ["EXAMPLES", "add_examples"]

# A command's name -> command lines, without "keepfit-clip" and that name.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": ("PHOTOS", "table.csv --images PHOTOS --out runs/first-look"),
    "draw": ("--count 200 --out runs/drawn", "--count 50 --modality OCT --size 512 --out runs/oct"),
    "demo": ("--quick", "--out runs/demo --open"),
    "import": ("flair.pth --from flair --out runs/flair",),
    "export": ("runs/first --out runs/model", "runs/model --onnx --out tower.onnx"),
    "push-to-hub": ("runs/model OWNER/NAME --private",),
    "models": ("", "--weights"),
    "predict": (
        'PHOTOS --model runs/model --categories "normal,glaucoma" --out answers.csv',
        "table.csv --images PHOTOS --model runs/model --head messidor --out answers.parquet",
    ),
    "classify": ('eye.jpg --model runs/model --modality CFP --categories "normal,glaucoma" --json -',),
    "caption": ("eye.jpg --model runs/model",),
    "explain": ('eye.jpg --model runs/model --modality CFP --categories "normal,glaucoma" --out runs/explained',),
    "app": ("--model runs/model", "--model runs/model --gallery shards/elite --port 7860"),
    "evaluate": ("test.csv --images PHOTOS --model runs/model --modality CFP --json scores.json",),
    "evaluate-retrieval": ("pairs.csv --images PHOTOS --model runs/model",),
    "evaluate-captions": ("pairs.csv --images PHOTOS --model runs/model --captions written.csv",),
    "transfer": (
        "messidor.csv --images PHOTOS --model runs/model --method zero-shot,linear-probe --shots 1,5,10 --out runs/m",
    ),
    "segment": ("--drawn 200 --model runs/model --out runs/lesions",),
    "benchmark": ("quick --models ours=runs/model,theirs=runs/flair --out runs/compared",),
    "report": ("runs/first --out first.html",),
    "run": ("-- clip_benchmark eval --model keepfit-v2-lite --pretrained weights.pt",),
    "doctor": ("", "--json -"),
    "shards build": (
        "table.csv --images PHOTOS --kind public --modality CFP --out shards/public --dry-run",
        "reports.csv --images PHOTOS --kind elite --split train=0.9,val=0.1 --out shards/elite",
    ),
    "shards check": ("shards/public",),
    "shards stats": ("shards/public --html runs/public.html",),
    "shards show": ("shards/public KEY",),
    "datasets list": ("",),
    "datasets show": ("rfmid",),
    "datasets find": ("DOWNLOADS/rfmid",),
    "datasets check": ("mine.json",),
    "datasets draft": ("table.csv --images PHOTOS --out mine.json",),
    "knowledge lookup": ("NPDR", '"no glaucoma" --json -'),
    "knowledge check": ("mine.yaml",),
    "knowledge diff": ("old.json new.json",),
    "knowledge migrate": ("old.json --out new.json",),
    "knowledge labels": ("", "rfmid"),
    "knowledge report": ("--out runs/knowledge.html",),
}


def add_examples(app: typer.Typer, above: str = "") -> None:
    """Puts the examples under the help of all commands of an app; `train` and `pretrain-text` bring their own."""
    for command in app.registered_commands:
        name = f"{above}{command.name or command.callback.__name__.replace('_', '-')}"
        lines = (f"keepfit-clip {name} {words}".strip() for words in EXAMPLES.get(name, ()))
        command.epilog = "\n\n".join(("Examples:", *lines)) if name in EXAMPLES else None
    for group in app.registered_groups:
        add_examples(group.typer_instance, f"{above}{group.name} ")
