"""Every command and Python block of README and docs runs, on a small sandbox, or says why it does not.

A block that cannot run here stands behind `<!-- not run: why -->`. Commands run as they stand, but shorter: what
`SHORTER` has is added to them. `make` targets have only to exist; they are what `.ci/run` runs.
"""

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data.shards.build import ShardOptions, build_shards
from keepfit_clip.drawing import draw_retina
from tests.pictures import write_elite, write_public
from tests.test_layouts import unpack
from tests.test_segmentation import write_lesions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>bash|python)\n(?P<text>.*?)```", re.DOTALL)
SHORTER = {
    "draw": ["--count", "20", "--size", "64"],
    "pretrain-text": ["--epochs", "0.02", "--batch-size", "4"],
    "train": ["--epochs", "1", "--train-num-samples", "8", "--batch-size", "4", "--workers", "0"],
    "transfer": ["--epochs", "1"],
    "segment": ["--epochs", "1", "--folds", "2", "--input-size", "32"],
}
GRADES = ("no diabetic retinopathy", "mild non-proliferative diabetic retinopathy",
          "moderate non-proliferative diabetic retinopathy", "severe non-proliferative diabetic retinopathy",
          "proliferative diabetic retinopathy")  # fmt: skip
UNPACKED = {"FIVES": "fives", "IDRiD": "idrid", "ODIR": "odir5k", "OCTDL": "octdl", "RFMiD": "rfmid"}
FOUR = ("normal", "age-related macular degeneration", "diabetic retinopathy", "glaucoma")


def blocks(document):
    return [match.groupdict() for match in BLOCK.finditer((ROOT / document).read_text())]


def commands(text):
    """The commands of a block, as words; continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def done():
    """The blocks of Python and commands that ran already: what several documents say runs once."""
    return set()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, run, exported):
    """A folder with everything that the documents speak of, in small."""
    folder = tmp_path_factory.mktemp("docs")
    data = folder / "DATA"
    write_public(data, 24)
    write_elite(data, 16)
    for name in ("public", "elite"):
        shutil.copy(data / f"{name}.csv", folder)
        build_shards(data / f"{name}.csv", data, folder / "shards" / name, ShardOptions(kind=name, modality="CFP"))
    for name in ("test", "table"):
        shutil.copy(data / "public.csv", folder / f"{name}.csv")
    (folder / "other").mkdir()
    write_public(folder / "other", 4, "test.csv", seed=5)
    options = ShardOptions(kind="public", modality="CFP")
    build_shards(folder / "other" / "test.csv", folder / "other", folder / "shards" / "test", options)
    shutil.copy(data / "elite.csv", folder / "pairs.csv")
    write_noise(folder, "messidor", GRADES, 14)
    write_noise(folder, "fives", FOUR, 14)
    draw_retina("CFP", "glaucoma", 0, 96).image.save(folder / "eye.jpg")
    write_lesions(folder / "lesions", 8, 4)
    (folder / "lesions" / "binary").rename(folder / "lesions" / "masks")
    (folder / "reports.txt").write_text("The optic disc is pale. The macula is flat.\nNo hemorrhages are seen.\n" * 20)
    mine = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "DATA.md").read_text(), re.DOTALL)
    (folder / "mine.yaml").write_text(mine[1])
    for name, layout in UNPACKED.items():
        unpack(layout, folder / name)
    for name in ("model", "demo/model"):
        shutil.copytree(exported, folder / "runs" / name)
    for name in ("first", "second"):
        shutil.copytree(run, folder / "runs" / name)
    return folder


def write_noise(folder, name, classes, of_each):
    """A table of pictures that a colour tells apart."""
    rng = np.random.default_rng(0)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for number in range(of_each * len(classes)):
            colour = np.eye(3)[number % 3] * 200 + 20 * (number % len(classes))
            pixels = np.clip(colour + rng.integers(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "DATA" / f"{name}{number}.png")
            writer.writerow([f"{name}{number}.png", classes[number % len(classes)]])


def run_command(words, folder):
    """One command of a document in a sandbox."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
        return
    assert words[0] == "keepfit-clip", f"{shlex.join(words)}: mark its block as not run, with the reason"
    if "--out" in words and "resume" not in words:  # made by an earlier block
        out = folder / words[words.index("--out") + 1]
        if out.is_dir():
            shutil.rmtree(out)
    if words[1] == "train" and "--resume" not in words:
        shutil.rmtree(folder / "runs" / words[words.index("--name") + 1], ignore_errors=True)
    if words[1:3] == ["shards", "show"]:
        words = [*words[:-1], any_key(folder / words[3])]
    result = CliRunner().invoke(app, [*words[1:], *SHORTER.get(words[1], [])])
    assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}\n{result.exception!r}"


def any_key(shards):
    from keepfit_clip.data.tars.reader import list_all_shards, read_shards

    return next(iter(read_shards(list_all_shards(shards)))).key[:8]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_run(document, sandbox, done, monkeypatch):
    found = blocks(document)
    if not found:
        pytest.skip("no block")
    monkeypatch.chdir(sandbox)
    for block in found:
        if block["why"] is not None:
            assert block["why"].strip()
        elif block["kind"] == "python":
            if block["text"] not in done:
                exec(compile(block["text"], document, "exec"), {"__name__": "__main__"})
                done.add(block["text"])
        else:
            for words in commands(block["text"]):
                if tuple(words) not in done:
                    run_command(words, sandbox)
                    done.add(tuple(words))


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"
        for target in re.findall(r"\{doc\}`([^`]+)`", text):
            assert (ROOT / "docs" / f"{target}.md").exists(), f"{document}: {target}"
