"""`keepfit-clip quickstart`: from somebody's images to a first result, by the commands that it prints."""

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepfit_clip.cli.console import console, error_console, show_left_out
from keepfit_clip.cli.options import USE, Modality, upper
from keepfit_clip.errors import KeepFITError, TableError

DEMO_MODEL = "runs/demo/model"  # what `keepfit-clip demo` makes
_IMAGES_ONLY = "timm:tf_efficientnet_lite0.in1k"
_TABLES = (".csv", ".tsv", ".xlsx", ".jsonl", ".json", ".parquet")
_FOLDS = 5
_EXPLAINED = 3  # images
_LOOKED_AT = 12
_SHOWN = 8  # labels
_ASKED = {
    "CFP": "normal,diabetic retinopathy,glaucoma,age-related macular degeneration,cataract",
    "FFA": "normal,branch retinal vein occlusion,macular edema,capillary non-perfusion",
    "OCT": "normal,macular edema,macular hole,age-related macular degeneration,epiretinal membrane",
}


def add_commands(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=USE)(quickstart)


@dataclass
class Look:
    """What there is.

    Args:
        source: table, folder of classes or data set that names labels; None where there are images alone.
        root: folder the image paths are relative to.
        images: that can be used.
        labels: how often each stands there.
        alone: how often each is the only one of its image.
        modalities: the same.
        patients: how many are told apart.
        first: some of the images.
        guessed: what some images look like, where nobody says: a modality, of how many, out of how many.
        left_out: rows that cannot be used.
        others: tables that could be used too.
    """

    source: Path | None
    root: Path
    images: int = 0
    labels: Counter = field(default_factory=Counter)
    alone: Counter = field(default_factory=Counter)
    modalities: Counter = field(default_factory=Counter)
    patients: int = 0
    first: list[Path] = field(default_factory=list)
    guessed: tuple[str, int, int] | None = None
    left_out: list = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Labels to tell apart: those with an image for each fold, or where fewer than two have so many, with two."""
        for least in (_FOLDS, 2):
            enough = [name for name, count in self.alone.most_common() if count >= least and "," not in name]
            if len(enough) > 1:
                return enough
        return []

    @property
    def folds(self) -> int:
        """Folds that each of the classes can be dealt out to; 0 where there are no two classes."""
        return min((_FOLDS, *(self.alone[name] for name in self.classes))) if self.classes else 0


def quickstart(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="folder of images, of classes or of a data set, or a table")],
    images: Annotated[
        Path | None, typer.Option(help="folder the image paths of a table are relative to (the table's)")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"folder or name (`keepfit-clip models`) ({DEMO_MODEL}, where there is one)")
    ] = None,
    modality: Modality = None,
    out: Annotated[Path, typer.Option(help="new folder for all results")] = Path("runs/quickstart"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be run, and run nothing")] = False,
) -> None:
    """Look at a folder of images or a table, and run the shortest way to a zero-shot table, a probe and a page."""
    from keepfit_clip.files import require_free

    modality = upper(modality)
    require_free(out)
    look = look_at(data, images)
    if modality is None and not look.modalities:
        look.guessed = guess_modality(look.first)
    _tell(look)
    model = model or (DEMO_MODEL if Path(DEMO_MODEL).is_dir() else None)
    if model is None:
        console.print(
            f"[yellow]no model is given, and none lies in {DEMO_MODEL}: an ImageNet tower stands in, which knows no "
            "texts.[/] `keepfit-clip demo` trains one on drawn retinas; --model takes your own or another project's",
            soft_wrap=True,
        )
    guessed = look.guessed[0] if look.guessed else None
    commands = plan(look, model, modality or _only(look.modalities) or guessed, out)
    console.print("\nthe way to a first result:", highlight=False)
    for command in commands:
        console.print(f"  keepfit-clip {shlex.join(command)}", markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        return
    for command in commands:
        console.print(f"\n$ keepfit-clip {shlex.join(command)}", style="bold", markup=False, soft_wrap=True)
        _run(context, command)
    console.print(f"\nall results -> {out}", soft_wrap=True)


def _run(context: typer.Context, command: Sequence[str]) -> None:
    """Runs a command of ours in this process; one that failed in part does not end the others."""
    code = context.find_root().command.main(list(command), prog_name="keepfit-clip", standalone_mode=False)
    if code:
        error_console.print(f"[yellow]it ended with {code}: see above[/]")


def look_at(data: Path, images: Path | None = None) -> Look:
    """What a folder or table holds.

    Raises:
        TableError: neither images nor a table that can be read.
    """
    from keepfit_clip.data.sources.folder import walk_images

    if data.is_file() and data.suffix.lower() not in _TABLES:
        raise TableError(f"{data}: is no table ({', '.join(_TABLES)}); give one of images, or a folder of images")
    if data.is_file():
        return _read(data, images or data.parent)
    if not data.is_dir():
        raise TableError(f"{data}: no such folder or file")
    looks = _readable(sorted(path for path in data.iterdir() if path.suffix.lower() in _TABLES), images or data)
    looks = looks or _readable([data], images or data)
    if looks:
        best = max(looks, key=lambda look: look.images)
        best.others = [look.source for look in looks if look is not best]
        return best
    found = sorted(walk_images(data))
    if not found:
        raise TableError(f"{data}: holds no images (.jpg, .png, .tif, .dcm, ...) and no table of some")
    return Look(None, data, len(found), first=[data / name for name in found[:_LOOKED_AT]])


def guess_modality(images: Sequence[Path]) -> tuple[str, int, int] | None:
    """The modality that most of some images look like, of how many, out of how many; None where they are unsure."""
    from keepfit_clip.errors import ImageError
    from keepfit_clip.images.reading import open_image
    from keepfit_clip.model.modality import guess_by_looks

    pictures = []
    for path in images:
        with suppress(ImageError):  # what then reads it says so
            pictures.append(open_image(path))
    guesses = Counter(filter(None, map(guess_by_looks, pictures)))
    if not guesses:
        return None
    ((name, count),) = guesses.most_common(1)
    return (name, count, len(pictures)) if count > len(pictures) / 2 else None


def _readable(sources: Sequence[Path], root: Path) -> list[Look]:
    looks = []
    for source in sources:
        with suppress(KeepFITError):  # it is no source, or none of its images are here
            looks.append(_read(source, root))
    return looks


def _read(source: Path, root: Path) -> Look:
    """The records of a source.

    Raises:
        KeepFITError: none can be used.
    """
    from keepfit_clip.data.records import LeftOut
    from keepfit_clip.data.sources import SourceNotes, read_records

    look, patients, notes = Look(source, root), set(), SourceNotes()
    for record in read_records(source, root, lambda error: look.left_out.append(LeftOut.of(error)), notes=notes):
        look.images += 1
        labels = set(record.categories)
        look.labels.update(labels)
        look.alone.update(labels if len(labels) == 1 else ())
        look.modalities.update(filter(None, [record.modality]))
        patients.add(record.patient)
        if isinstance(record.image, Path) and len(look.first) < _LOOKED_AT:
            look.first.append(record.image)
    look.patients = len(patients - {None})
    if not look.images:
        raise TableError(f"{source}: none of its rows can be used")
    return look


def _tell(look: Look) -> None:
    """Says what there is."""
    what = look.source if look.source else f"{look.root}, images without labels"
    console.print(f"[bold]{look.images} images[/]: {escape(str(what))}", highlight=False, soft_wrap=True)
    if look.labels:
        most = ", ".join(f"{name} {count}" for name, count in look.labels.most_common(_SHOWN))
        more = f" and {len(look.labels) - _SHOWN} more" if len(look.labels) > _SHOWN else ""
        console.print(f"  labels      {most}{more}", markup=False, highlight=False, soft_wrap=True)
    if look.modalities:
        most = ", ".join(f"{name} {count}" for name, count in look.modalities.most_common())
        console.print(f"  modalities  {most}", markup=False, highlight=False)
    if look.guessed:
        name, count, total = look.guessed
        console.print(f"  modalities  {count} of {total} images look like {name} (--modality says it)", highlight=False)
    if look.patients:
        console.print(f"  patients    {look.patients}, whose images stay together", highlight=False)
    elif look.source:
        console.print("  patients    not told apart: near copies stay together", highlight=False)
    if look.others:
        names = ", ".join(str(path) for path in look.others)
        console.print(f"  also there  {names}: name one to use it", markup=False, highlight=False, soft_wrap=True)
    show_left_out(look.left_out, "rows cannot be used")


def _only(counts: Counter) -> str | None:
    return next(iter(counts)) if len(counts) == 1 else None


def plan(look: Look, model: str | None, modality: str | None, out: Path) -> list[list[str]]:
    """The commands, without "keepfit-clip".

    Args:
        look: what there is.
        model: None for an image tower without texts.
        modality: of all images, where it is known.
        out: folder of the results.

    Raises:
        TableError: nothing can be done with it.
    """
    where = ["--images", str(look.root)]
    worded = ["--modality", modality] if modality else []
    source = str(look.source)
    commands = []
    if look.folds:
        methods = "zero-shot,linear-probe" if model else "linear-probe"
        named = ["--model", model or _IMAGES_ONLY]
        told = [] if set(look.classes) == set(look.labels) else ["--classes", ",".join(look.classes)]
        measured = str(out / "transfer")
        share = f"{100 * (look.folds - 1) // look.folds}%"
        commands.append(
            ["transfer", source, *where, *named, *worded, *told, "--method", methods, "--folds", str(look.folds),
             "--shots", share, "--out", measured]
        )  # fmt: skip
        answers = [*named, "--table", source, *where, *worded, *told] if model else []
        commands.append(["report", measured, "--out", str(out / "report.html"), *answers])
    if model is None:
        if not commands:
            raise TableError(
                f"{look.root}: has no two labels to learn, and without a model nothing can be said of images alone: "
                "give --model"
            )
        return commands
    if not look.folds:
        asked = ["--categories", _ASKED[modality or "CFP"], *worded]
        inputs = [source, *where] if look.source else [str(look.root)]
        answers = str(out / "answers.csv")
        commands.append(["predict", *inputs, "--model", model, *asked, "--out", answers])
    categories = ",".join(look.classes[:_SHOWN]) or _ASKED[modality or "CFP"]
    explained = str(out / "explained")
    pictures = list(map(str, look.first[:_EXPLAINED]))
    if pictures:
        commands.append(
            ["explain", *pictures, "--model", model, *worded, "--categories", categories, "--out", explained]
        )
    return commands
