"""Every remedy that an error message names works: what it names is there, and what it advises ends well."""

import argparse
import ast
import configparser
import gc
import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import open_clip
import pytest
import torch
import typer
from open_clip_train.params import parse_args as upstream_parse_args
from packaging.requirements import Requirement
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoTokenizer

from keepfit_clip.cli import app
from keepfit_clip.data import ShardOptions, build_shards
from keepfit_clip.errors import ConfigError
from keepfit_clip.extras import EXTRAS, install_command
from keepfit_clip.folders.loading import load_model
from keepfit_clip.folders.model_folder import write_model_folder
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.preprocess import resolve_preprocess
from keepfit_clip.model.text_tower import with_text_tower
from keepfit_clip.training.hybrid.params import UNSUPPORTED, keepfit_parser, parse_keepfit_args
from keepfit_clip.training.text_stage.settings import text_parser
from tests.conftest import MODEL
from tests.encoders import POSITIONS, SENTENCES, write_encoder
from tests.pictures import CONDITIONS, write_table
from tests.programs import call
from tests.test_building import Stopped, encoded, picture, stop_at

ROOT = Path(__file__).parents[1]
OF_OTHERS = {"--shm-size"}  # docker's
TELLING = ("Error", "error", "require", "refuse")  # in the names of functions whose texts become messages


# -- what is named is there --------------------------------------------------------------------------------------------


@cache
def messages():
    """Where and what: every text in a `raise`, in an error that is made, and in what helps to make one."""
    found = [("training/params.py UNSUPPORTED", text) for text in UNSUPPORTED.values()]
    for folder in ("src", "training"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            places = [node for node in ast.walk(tree) if isinstance(node, ast.Raise) or _makes_an_error(node)]
            texts = {(node.lineno, text) for place in places for node, text in _texts(place)}
            found += [(f"{path.relative_to(ROOT)}:{line}", text) for line, text in sorted(texts)]
    return found


def _makes_an_error(node):
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return any(part in name for part in TELLING)
    return isinstance(node, ast.FunctionDef) and node.name in ("ordinary_trouble", "_explained", "reading_leftovers")


def _texts(place):
    """String constants; of an f-string all of its own in one, with a word for each value."""
    parts = set()
    for node in ast.walk(place):
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            yield node, "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node, node.value


def commands(group, prefix=""):
    """Name and click's object of every command."""
    for name, command in group.commands.items():
        yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def every_option():
    """Every option of every command, both parsers of training among them."""
    root = typer.main.get_command(app)
    found = {word for _, c in [("", root), *commands(root)] for p in c.params for word in (*p.opts, *p.secondary_opts)}
    of_training = (keepfit_parser(), text_parser(), upstream_parser())
    return found | {word for parser in of_training for word in parser._option_string_actions} | {"--help"}


def upstream_parser():
    """open_clip_train's, which it makes within a function."""
    made = []
    no_flags = mock.patch.object(argparse.ArgumentParser, "parse_args", lambda self, _: made.append(self))
    with no_flags, pytest.raises(AttributeError):  # what it does with them next
        upstream_parse_args([])
    return made[0]


def test_every_option_that_a_message_names_is_one():
    known = every_option() | OF_OTHERS
    told = [(where, option) for where, text in messages() for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)]
    assert len({option for _, option in told}) > 60  # they are found
    assert [(where, option) for where, option in told if option not in known] == []


def test_every_command_that_a_message_names_is_one():
    known = [*dict(commands(typer.main.get_command(app)))]
    told = [
        (where, words)
        for where, text in messages()
        for words in re.findall(r"keepfit-clip ((?:(?:shards|knowledge) )?[a-z][a-z-]*)", text)
    ]
    assert len(told) > 15
    assert [(where, words) for where, words in told if words not in known] == []


def test_everything_that_a_message_tells_to_install_is_a_requirement():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    required = {Requirement(line).name for block in lines for line in block.split("\n") if line}
    told = [word for _, text in messages() for word in re.findall(r"pip install '?([a-z][\w-]*)", text)]
    assert told
    assert set(told) <= required
    for extra in EXTRAS:
        _, _, *wanted = shlex.split(install_command(extra))
        assert wanted
        assert {Requirement(word).name for word in wanted} <= required


# -- what is advised works ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded_once():
    """What every command loads anew is loaded once: that is not what is tried here, and takes most of the time."""
    with (
        mock.patch("open_clip.factory.SimpleTokenizer", cache(open_clip.SimpleTokenizer)),
        mock.patch("keepfit_clip.folders.loading.load_model", cache(load_model)),
    ):
        yield


@pytest.fixture(scope="module")
def places(loaded_once, pictures, shards, held_out, run, exported, tmp_path_factory):
    """Name -> what the commands below call so."""
    made = tmp_path_factory.mktemp("made")
    _write_tables(made, pictures)
    _write_folders(made, pictures, shards)
    write_encoder(made / "encoder", lowercase=False)
    write_encoder(made / "tiny", vocab_size=60)
    _write_weights(made)
    _write_models(made)
    _write_corpora(made)
    found = {
        "pictures": pictures, "shards": shards, "run": run, "model": exported, "made": made,
        "others": Path(held_out.partition("::")[0]).parents[1],
    }  # fmt: skip
    for number, more in enumerate(("", "--lock-image"), 1):
        assert attempt(f"{TRAIN} {more}", found, made, number).returncode == 0
    gc.collect()
    gc.freeze()  # the trainings collect garbage again and again; what was imported is none
    yield found
    gc.unfreeze()


def _write_tables(made, pictures):
    images = [f"public/Jane_Doe_1961-03-05_{number}.png" for number in range(8)]
    rows = list(enumerate(images))

    def table(name, encoding="utf-8", **columns):
        path = write_table(made / name, [{key: of(n, image) for key, of in columns.items()} for n, image in rows])
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding, newline="")

    def image(_, name):
        return name

    table("odd.csv", photo=image, finding=lambda n, _: CONDITIONS[n % 4])
    table("remarks.csv", photo=image, remark=lambda n, _: f"Fundus with {CONDITIONS[n % 4]}.")
    table("grades.csv", image=image, label=lambda n, _: n % 2)
    table("two.csv", image=image, grade=lambda n, _: n % 2, edema=lambda n, _: n // 2 % 2)
    table("few.csv", image=image, label=lambda n, _: CONDITIONS[n % 4])
    lines = [json.dumps({"image": name, "grade": n % 2, "edema": n // 2 % 2}) for n, name in rows]
    (made / "two.jsonl").write_text("\n".join(lines))
    write_table(made / "small.csv", [{"image": images[n], "label": CONDITIONS[n % 2]} for n in (0, 1, 4, 5)])
    table("chinese.csv", "gb18030", image=image, label=lambda n, _: ("青光眼", "白内障")[n % 2])
    table("wide.csv", "utf-16", image=image, label=lambda n, _: ("青光眼", "白内障")[n % 2])
    table("french.csv", "cp1252", image=image, label=lambda n, _: ("rétinopathie", "glaucome")[n % 2])
    table("named.csv", image=image, caption=lambda n, _: f"Mr. John Smith, seen on 05/03/1961, has drusen, eye {n}.")
    shutil.copy(made / "few.csv", made / "few.dat")
    lines = [json.dumps({"image": name, "label": ("青光眼", "白内障")[n % 2]}, ensure_ascii=False) for n, name in rows]
    (made / "chinese.jsonl").write_text("\n".join(lines), encoding="gb18030")
    blank = [{"image": f"blank{n}.png", "label": CONDITIONS[n]} for n in range(2)]
    write_table(made / "blank.csv", blank)
    for n, row in enumerate(blank):
        Image.new("L", (32, 32), n).save(made / row["image"])
    burnt = Image.new("RGB", (256, 256))
    burnt.paste(picture(0, 192), (32, 40))
    ImageDraw.Draw(burnt).text((4, 4), "Qorwen, Tilda 1961-03-05", "white", ImageFont.load_default(16))
    burnt.save(made / "burnt.png")
    write_table(made / "burnt.csv", [{"image": "burnt.png", "label": "normal"}])
    (made / "grades.json").write_text(json.dumps({"classes": {"normal": ["0"], "glaucoma": ["1"]}}))
    (made / "several.json").write_text(json.dumps({"classes": CONDITIONS, "multi_label": True, "modality": "CFP"}))


def _write_folders(made, pictures, shards):
    for number in range(8):
        for folder in ("classes", "splits/train", "splits/val"):
            path = made / folder / ("glaucoma", "normal")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(number, 32)))
    (made / "empty").mkdir()
    (made / "file").write_text("a file")
    kinds = {"kind": "elite", "modality": "CFP"}
    table = pictures / "elite.csv"
    build_shards(table, pictures, made / "split", ShardOptions(**kinds, split={"train": 0.5, "val": 0.5}), workers=1)
    other = ShardOptions(**kinds, split={"val": 0.5, "train": 0.5}, size=48)  # dealt out otherwise
    build_shards(table, pictures, made / "other", other, workers=1)
    for name in ("sizes", "manifest"):
        shutil.copytree(shards / "public", made / f"without_{name}")
        (made / f"without_{name}" / f"{name}.json").unlink()


def _write_weights(made):
    """A few tensors of what FLAIR's checkpoints hold."""
    bert = "text_model.model."
    state = {f"{bert}embeddings.word_embeddings.weight": torch.zeros(200, 128)}
    state |= {f"{bert}encoder.layer.{n}.intermediate.dense.weight": torch.zeros(64, 128) for n in range(3)}
    torch.save(state, made / "flair.pth")
    state[f"{bert}embeddings.word_embeddings.weight"] = torch.zeros(60, 128)
    torch.save(state, made / "small.pth")
    torch.save(
        {"visual.class_embedding": torch.zeros(8), "visual.conv1.weight": torch.zeros(8, 3, 4, 4)}, made / "vit.pt"
    )


def _write_models(made):
    """Model folders without weights: one without a decoder, one whose config names a text tower elsewhere."""
    theirs = str(shutil.copytree(made / "encoder", made / "theirs"))  # that nobody asks for but a config
    usual, bpe = ModelConfig.named(MODEL), open_clip.get_tokenizer(MODEL)
    foreign = with_text_tower(usual, made / "encoder").with_text(hf_model_name=theirs, hf_tokenizer_name=theirs)
    folders = {
        "v1": (replace(usual, decoder=None), bpe),
        "foreign": (foreign, AutoTokenizer.from_pretrained(theirs)),
    }
    for name, (config, tokenizer) in folders.items():
        (made / name).mkdir()
        write_model_folder(made / name, config, resolve_preprocess(config), tokenizer)


def _write_corpora(made):
    (made / "corpus.txt").write_text("".join(f"{sentence}.\n" for sentence in SENTENCES))
    lines = [json.dumps({"report": f"{sentence}.", "id": n % 2}) for n, sentence in enumerate(SENTENCES)]
    (made / "corpus.jsonl").write_text("\n".join(lines))
    (made / "corpus.json").write_text("[]")
    (made / "knowledge.json").write_text(json.dumps({"schema": 1, "conditions": [{"name": "drusen"}]}))


# Commands of which most cases need a little more.
BUILD = "shards build --kind public --workers 1 --out {out}"
EVALUATE = "evaluate --model {model} --modality CFP"
TRANSFER = "transfer {pictures}/public.csv --images {pictures} --model {model} --modality CFP --cache {tmp}/cache"
TEXT = "pretrain-text --init {made}/encoder --out {out} --knowledge {made}/knowledge.json --max-steps 1"
BARE = (
    f"train --model {MODEL} --logs {{tmp}}/runs --name {{name}} --batch-size 4 --train-num-samples 4 --epochs 1 "
    "--workers 0 --warmup 1 --lr 1e-3"
)
PUBLIC, ELITE = "--public-data {shards}/public", "--elite-data {shards}/elite"
TRAIN = f"{BARE} {PUBLIC} {ELITE}"
ODD, FEW = "{made}/odd.csv --images {pictures}", "{made}/few.csv --images {pictures}"
TWO_COLUMNS = "{made}/two.csv --images {pictures} --category-column grade --category-column edema"
TWO = f"{TRANSFER.replace('{pictures}/public.csv --images {pictures}', TWO_COLUMNS)} --classes {{made}}/several.json"
NAMES = (
    "--label-name 'grade:0=normal' --label-name 'grade:1=diabetic retinopathy' --label-name 'edema:0=glaucoma' "
    "--label-name 'edema:1=cataract'"
)
BOTH = "columns 'grade' and 'edema' both hold numbers.* does not say whose it is: write 'edema:0="
PARTS = "shards build {pictures}/elite.csv --images {pictures} --kind elite --workers 1 --out {out} --split"

# What the message says, the command that ends in it, and the remedies it names. "..." in a remedy is the command
# itself; "&&" stands between commands of which each has to end well.
PLAIN = r"\. A table of --\S+ is read by the usual names, in UTF-8"
CASES = [
    # how a table is read
    ("Name yours with --image-column, --category-column", f"{EVALUATE} {ODD}",
     "... --image-column photo --category-column finding"),
    ("or --caption-column", "shards build {made}/remarks.csv --images {pictures} --kind elite --out {out}",
     "... --image-column photo --caption-column remark"),
    ("has no column 'foto'; it has photo, finding", f"{EVALUATE} {ODD} --image-column foto --category-column finding",
     "... --image-column photo"),
    ("is a number .*--label-name 0=", f"{EVALUATE} {{made}}/grades.csv --images {{pictures}}",
     "... --label-name 0=normal --label-name 1=glaucoma", "... --classes {made}/grades.json"),
    (BOTH, f"{TWO} --label-name 0=normal --label-name 1=glaucoma", f"{TWO} {NAMES}"),
    (BOTH, f"{BUILD} {TWO_COLUMNS} --label-name 0=normal --label-name 1=glaucoma",
     f"{BUILD} {TWO_COLUMNS} {NAMES}"),
    (BOTH, f"{BUILD} {TWO_COLUMNS.replace('csv', 'jsonl')} --label-name 0=normal --label-name 1=glaucoma",
     f"{BUILD} {TWO_COLUMNS.replace('csv', 'jsonl')} {NAMES}"),
    ("--label-name 'grade:0=...'",
     f"{BUILD} {TWO_COLUMNS}", f"... {NAMES}"),
    ("give the folder that the image names are relative to",
     f"{EVALUATE} {{made}}/few.csv --images {{pictures}}/public/Jane_Doe_1961-03-05_0.png", f"{EVALUATE} {FEW}"),
    ("with --images", f"{EVALUATE} {{made}}/few.csv", "... --images {pictures}"),
    ("give --encoding, e.g. gb18030", f"{BUILD} {{made}}/chinese.csv --images {{pictures}}", "... --encoding gb18030"),
    ("or cp1252", f"{BUILD} {{made}}/french.csv --images {{pictures}}", "... --encoding cp1252"),
    ("give --encoding", f"{BUILD} {{made}}/wide.csv --images {{pictures}}", "... --encoding utf-16"),
    ("give --encoding", f"{BUILD} {{made}}/chinese.jsonl --images {{pictures}}", "... --encoding gb18030"),
    ("not an encoding; try utf-8, gb18030", f"{BUILD} {FEW} --encoding utf9", "... --encoding utf-8"),
    ("say what it is with --source", f"{BUILD} {{made}}/few.dat --images {{pictures}}", "... --source table"),
    ("a folder of classes holds its images itself; leave --images out",
     f"{EVALUATE} {{made}}/classes --images {{pictures}}", f"{EVALUATE} {{made}}/classes"),
    ("shards hold their images themselves; leave --images out", f"{EVALUATE} {{shards}}/public --images {{pictures}}",
     f"{EVALUATE} {{shards}}/public"),
    (r"look like splits \(train, val\): give one of them", f"{EVALUATE} {{made}}/splits",
     f"{EVALUATE} {{made}}/splits/val"),
    (f"not a CSV in UTF-8 .*{PLAIN}", f"{BUILD} {FEW} --exclude {{made}}/french.csv",
     f"{BUILD} {FEW} --exclude {{others}}/public.csv"),
    (f"it has photo, finding{PLAIN}", f"{BUILD} {FEW} --exclude {{made}}/odd.csv",
     f"{BUILD} {FEW} --exclude {{others}}/public.csv"),
    (f"it has photo, finding{PLAIN}", f"{TRAIN} --zeroshot-table t={{made}}/odd.csv:{{pictures}}",
     f"{TRAIN} --zeroshot-table t={{others}}/public.csv:{{others}}"),
    (f"is a number .*{PLAIN}", f"{TRAIN} --zeroshot-table t={{made}}/grades.csv:{{pictures}}",
     f"{TRAIN} --zeroshot-table t={{others}}/public.csv:{{others}}"),
    (f"not a CSV in UTF-8 .*{PLAIN}", f"{TRAIN} --zeroshot-table t={{made}}/french.csv:{{pictures}}",
     f"{TRAIN} --zeroshot-table t={{others}}/public.csv:{{others}}"),
    ("Name yours with --image-column", "app --model {model} --gallery {made}/odd.csv --images {pictures}",
     "... --image-column photo --category-column finding --help"),
    # building
    ("look at it, then --redact or --keep-identifiers",
     "shards build {made}/named.csv --images {pictures} --kind elite --out {out}",
     "... --redact", "... --keep-identifiers"),
    ("--redact and --keep-identifiers exclude each other", f"{BUILD} {FEW} --redact --keep-identifiers",
     f"{BUILD} {FEW} --redact", f"{BUILD} {FEW} --keep-identifiers"),
    ("look at it, then --burnt-in-text mask or count",
     f"{BUILD} {{made}}/burnt.csv --images {{made}} --burnt-in-text refuse",
     "... --burnt-in-text mask", "... --burnt-in-text count"),
    ("leave one of the two out", f"{BUILD} {FEW} --originals --burnt-in-text mask", f"{BUILD} {FEW} --originals",
     f"{BUILD} {FEW} --burnt-in-text mask"),
    ("--keep-blank keeps it", f"{BUILD} {{made}}/blank.csv --images {{made}}", "... --keep-blank"),
    ("leave the size and the crop out", f"{BUILD} {FEW} --originals --size 32 --crop", f"{BUILD} {FEW} --originals"),
    ("holds something already: choose a new folder", f"shards build --kind public --out {{made}} {FEW}",
     f"{BUILD} {FEW}"),
    # measuring
    ("go on without them .--allow-missing-classes", f"{EVALUATE} {FEW} --classes '{','.join(CONDITIONS)},drusen'",
     "... --allow-missing-classes", f"... --classes '{','.join(CONDITIONS)}'"),
    ("name the classes that count .--classes", f"{TRANSFER} --classes '{','.join(CONDITIONS)},drusen'",
     f"... --classes '{','.join(CONDITIONS)}'"),
    ("is a folder; give a file, or - for standard output", f"{EVALUATE} {FEW} --json {{tmp}}", "... --json -"),
    ("is a folder; give a file", "models --json ''", "... --json {tmp}/result.json", "... --json -"),
    ('write them as "glaucoma,normal"', "classify {pictures}/public/Jane_Doe_1961-03-05_0.png --model {model} "
     "--categories ' ,'", "... --categories glaucoma,normal"),
    ("none of CFP, FFA, OCT", f"{EVALUATE} {FEW} --modality MRI", "... --modality CFP", "... --modality oct"),
    ("make one with `keepfit-clip export`", "evaluate {shards}/public --model {run}",
     "export {run} --out {out} && evaluate {shards}/public --model {out}"),
    ("fewer than the 30 folds: use fewer --folds", f"{TRANSFER} --folds 30", "... --folds 3"),
    ("fewer than the 5 folds: use fewer --folds, and less of --shots with them",
     f"{TRANSFER.replace('{pictures}/public', '{made}/small')} --method linear-probe", "... --folds 2 --shots 50%"),
    ("3 folds leave 67% to learn from, use more --folds or smaller --shots",
     f"{TRANSFER} --method linear-probe --folds 3", "... --folds 5", "... --shots 50%"),
    ("nor a share such as 20%", f"{TRANSFER} --method linear-probe --shots many",
     "... --shots 1,20%"),
    ("--shots names nothing: write 1,5,10 or 80%", f"{TRANSFER} --method linear-probe --shots ,",
     "... --shots 1,80%"),
    ("is neither 'tuned' nor numbers such as 0.5", f"{TRANSFER} --classes {{made}}/several.json --threshold high",
     "... --threshold tuned", "... --threshold 0.5"),
    ("gives 2 values, for 4 classes", f"{TRANSFER} --classes {{made}}/several.json --threshold 0.4,0.6",
     "... --threshold 0.4,0.6,0.5,0.5", "... --threshold 0.4"),
    ("is for images that may have several classes", f"{TRANSFER} --threshold tuned", TRANSFER),
    ("leave finetune out",
     f"{TRANSFER} --classes {{made}}/several.json --threshold tuned --method finetune,linear-probe",
     "... --method linear-probe"),
    ("--domain-shift-images without --domain-shift", f"{TRANSFER} --domain-shift-images {{others}}",
     "... --domain-shift {others}/public.csv"),
    ("give another --cache", f"{TRANSFER} --cache {{made}}/file", "... --cache {tmp}/another"),
    ("or -m MODULE, or a Python file", "run", "run -- -m keepfit_clip --help", "run -- keepfit-clip --help"),
    # weights
    ("--partial takes what fits", "import {made}/flair.pth --from flair --tokenizer {made}/encoder --out {out}",
     "... --partial"),
    ("give the one they were trained with .--tokenizer", "import {made}/small.pth --from flair --tokenizer "
     "{made}/encoder --out {out} --partial", "... --tokenizer {made}/tiny"),
    ("pass that .--tokenizer DIR", "import {made}/flair.pth --from flair --tokenizer nobody/nothing "
     "--partial --out {out}", "... --tokenizer {made}/encoder"),
    ("give timm's name as --backbone",
     f"import {{made}}/vit.pt --from open-clip --model {MODEL} --out {{out}} --partial",
     "... --backbone test_vit"),
    # textual pretraining
    ("pass that .--init DIR", f"{TEXT} --corpus {{made}}/corpus.txt --init nobody/nothing",
     "... --init {made}/encoder"),
    ("name the right one with --text-field", f"{TEXT} --corpus {{made}}/corpus.jsonl --held-out 0.5",
     "... --text-field report"),
    ("give more documents, or another --held-out", f"{TEXT} --corpus {{made}}/corpus.jsonl --text-field report "
     "--held-out 0.01", "... --held-out 0.5", "... --corpus {made}/corpus.txt {made}/corpus.jsonl --held-out 0.1"),
    (r"give JSON lines \(.jsonl\), or a knowledge file with --knowledge", f"{TEXT} --corpus {{made}}/corpus.json",
     "... --corpus {made}/corpus.txt"),
    ("give shards of elite samples", f"{TEXT} --corpus {{shards}}/public",
     "... --corpus {shards}/elite {made}/corpus.txt"),
    (f"the encoder takes at most {POSITIONS} tokens", f"{TEXT} --corpus {{made}}/corpus.txt --max-length 999",
     f"... --max-length {POSITIONS}"),
    ("name an encoder with --init", f"{TEXT} --corpus {{made}}/corpus.txt --init {MODEL}", "... --init {made}/encoder"),
    # training
    ("give --elite-data, or .* with --preset contrastive", f"{BARE} {PUBLIC}", "... --preset contrastive"),
    ("raise --train-num-samples", f"{TRAIN} --accum-freq 2", "... --train-num-samples 8"),
    ("raise --batch-size or change --elite-fraction", f"{TRAIN} --elite-fraction 0.1", "... --batch-size 8",
     "... --elite-fraction 0.5"),
    ("needs --epochs-cooldown", f"{TRAIN} --lr-scheduler const-cooldown", "... --epochs-cooldown 1"),
    ("use --save-most-recent instead", f"{TRAIN} --delete-previous-checkpoint --save-frequency 2",
     "... --save-most-recent"),
    ("build held-out ones with `keepfit-clip shards build --split train=0.9,val=0.1`",
     f"{TRAIN} --val-data {{shards}}/public",
     f"{PARTS} train=0.9,val=0.1 && {BARE} {PUBLIC} --elite-data {{out}}/train --val-data {{out}}/val"),
    ("patients of one table .*build both at once with `keepfit-clip shards build --split train=0.9,val=0.1`",
     f"{BARE} {PUBLIC} --elite-data {{made}}/split/train --val-data {{made}}/other/val",
     f"{PARTS} val=0.1,train=0.9 && {BARE} {PUBLIC} --elite-data {{out}}/train --val-data {{out}}/val"),
    ("of a split: give one of them", f"{BARE} {PUBLIC} --elite-data {{made}}/split",
     f"{BARE} {PUBLIC} --elite-data {{made}}/split/train"),
    ("make shards of a table with `keepfit-clip shards build` and give their folder",
     f"{BARE} {ELITE} --public-data {{made}}/few.csv", f"{BUILD} {FEW} && {BARE} {ELITE} --public-data {{out}}"),
    ("build them with `keepfit-clip shards build`", "shards stats {made}/empty",
     f"{BUILD} {FEW} && shards stats {{out}}"),
    ("build the shards with `keepfit-clip shards build`, or give --train-num-samples",
     f"{BARE.replace('--train-num-samples 4', '')} {ELITE} --public-data {{made}}/without_sizes",
     "... --train-num-samples 4",
     f"{BUILD} {FEW} && {BARE.replace('--train-num-samples 4', '')} {ELITE} --public-data {{out}} --batch-size 8"),
    ("need the manifest.json that `keepfit-clip shards build` writes",
     f"{BARE} {ELITE} --balance category --public-data {{made}}/without_manifest",
     f"{BUILD} {{made}}/without_manifest && {BARE} {ELITE} --balance category --public-data {{out}}"),
    ("make one with keepfit-clip pretrain-text", f"{TRAIN} --text-tower {{made}}/empty",
     f"{TEXT} --corpus {{made}}/corpus.txt && {TRAIN} --text-tower {{out}}"),
    ("--text-tower would be overwritten .*: drop one",
     f"{TRAIN} --model local-dir:{{model}} --text-tower {{made}}/encoder",
     f"{TRAIN} --model local-dir:{{model}}"),
    ("which is nothing of its own: .*--random-text.* --allow-source", f"{TRAIN} --model local-dir:{{made}}/foreign",
     "... --random-text", "... --allow-source {made}/theirs"),
    ("lower --lr", f"{TRAIN} --train-num-samples 8 --lr 1e18", "... --lr 1e-3"),
    ("see `keepfit-clip models`", f"{TRAIN} --model RN50", "models"),
    ("choose --preset contrastive or v1, or a V2 model", f"{TRAIN} --model local-dir:{{made}}/v1", "... --preset v1"),
]  # fmt: skip


def each_remedy(cases):
    """One test for each remedy: what stands before the remedies, and the remedy."""
    for number, case in enumerate(cases):
        told, command, *remedies = case if isinstance(case[0], str) else case[1:]
        for remedy in remedies:
            before = case[: len(case) - len(remedies)]
            yield pytest.param(*before, remedy.replace("...", command), id=f"{number} {told[:50]}")


def attempt(command, places, tmp_path, number):
    """Calls the commands between "&&", one after the other until one fails; gives the last one's result."""
    own = {"tmp": tmp_path, "out": tmp_path / f"out{number}", "name": f"run{number}"}
    for part in command.split(" && "):
        result = call(*shlex.split(part.format(**places, **own)))
        if result.returncode:
            break
    return result


def said(result):
    return " ".join(f"{result.stdout} {result.stderr}".split())


@pytest.mark.long
@pytest.mark.parametrize(("told", "command", "remedy"), [*each_remedy(CASES)])
def test_what_a_message_advises_works(places, tmp_path, told, command, remedy):
    refused_then_helped(places, tmp_path, told, command, remedy)


def refused_then_helped(places, tmp_path, told, command, remedy):
    refused = attempt(command, places, tmp_path, 1)
    assert refused.returncode == 1, said(refused)
    assert re.search(told, said(refused)), said(refused)
    assert "bug of the library" not in said(refused)
    helped = attempt(remedy, places, tmp_path, 2)
    assert helped.returncode == 0, said(helped)


# -- what another run or build has left --------------------------------------------------------------------------------


def stopped(places, folder):
    """A build of `out1` that was stopped while it wrote."""
    table = shutil.copy(places["made"] / "few.csv", folder)
    with pytest.raises(Stopped):
        build_shards(table, places["pictures"], folder / "out1", ShardOptions("public"), on_step=stop_at(3), workers=1)
    return folder / ".out1.building"


def changed(places, folder):
    stopped(places, folder)
    with open(folder / "few.csv", "a") as file:
        file.write("public/Jane_Doe_1961-03-05_9.png,normal\n")


def damaged(places, folder):
    (stopped(places, folder) / "plan.sqlite").write_bytes(b"no database at all, but text" * 99)


def linked(_, folder):
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")


def trained(places, folder):
    shutil.copytree(places["made"] / "runs", folder / "runs")


def trained_with_a_locked_tower(places, folder):
    shutil.copytree(places["made"] / "runs" / "run2", folder / "runs" / "run1")


AGAIN = "shards build {tmp}/few.csv --images {pictures} --kind public --out {tmp}/out1 --workers 1"
ON = f"{TRAIN.replace('{name}', 'run1')} --resume latest --epochs 2"

# As above, after what a function left; a remedy that is not "..." alone is written in full.
LEFT = [
    (stopped, "or throw it away with --restart", f"{AGAIN} --size 32", "... --restart", AGAIN),
    (changed, "--restart builds anew, --accept-changes goes on", AGAIN, "... --restart", "... --accept-changes"),
    (damaged, "throw what the stopped build did away with --restart", AGAIN, "... --restart"),
    (damaged, "--restart and --accept-changes exclude each other", f"{AGAIN} --restart --accept-changes",
     f"{AGAIN} --restart"),
    (linked, "is a link.*: choose a folder inside it", f"{BUILD} {FEW} --out {{tmp}}/link", "... --out {tmp}/link/new"),
    (trained, "go on with --resume latest, or choose another --name", TRAIN.replace("{name}", "run1"),
     "... --resume latest", "... --name another"),
    (trained, "go on with the same flags, or choose another --name", f"{ON} --force-context-length 32", ON,
     "... --name another"),
    (trained_with_a_locked_tower, "give the same --lock-image and --lock-text flags", ON, "... --lock-image"),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("before", "told", "command", "remedy"), [*each_remedy(LEFT)])
def test_what_a_message_advises_after_another_run_or_build_works(places, tmp_path, before, told, command, remedy):
    before(places, tmp_path)
    refused_then_helped(places, tmp_path, told, command, remedy)


# -- flags of a training that are refused before anything is read ------------------------------------------------------

BOTH_KINDS = "--public-data x --elite-data x"

# What the message says, flags, and those that it names.
FLAGS = [
    ("give --public-data and --elite-data", "", BOTH_KINDS, "--elite-data x", "--public-data x --preset contrastive"),
    ("give --elite-data, or .* with --preset contrastive", "--public-data x", BOTH_KINDS,
     "--public-data x --preset contrastive"),
    ("with --preset contrastive", "--public-data x --preset v1", "--public-data x --preset contrastive"),
    ("trains on public data only: give --public-data", "--elite-data x --preset contrastive",
     "--public-data x --preset contrastive"),
    ("exclude each other", f"{BOTH_KINDS} --random-text --text-tower x", f"{BOTH_KINDS} --random-text",
     f"{BOTH_KINDS} --text-tower x"),
    ("exclude each other", f"{BOTH_KINDS} --image-tower x --pretrained x", f"{BOTH_KINDS} --image-tower x",
     f"{BOTH_KINDS} --pretrained x"),
    ("is none of cosine, const, const-cooldown", f"{BOTH_KINDS} --lr-scheduler linear",
     f"{BOTH_KINDS} --lr-scheduler const", f"{BOTH_KINDS} --lr-scheduler cosine"),
    ("is neither adamw nor timm/NAME", f"{BOTH_KINDS} --opt sgd", f"{BOTH_KINDS} --opt adamw",
     f"{BOTH_KINDS} --opt timm/sgd"),
    ("use --save-most-recent instead", f"{BOTH_KINDS} --delete-previous-checkpoint --save-frequency 2",
     f"{BOTH_KINDS} --save-most-recent --save-frequency 2"),
    ("use --caption-weight", f"{BOTH_KINDS} --coca-caption-loss-weight 2", f"{BOTH_KINDS} --caption-weight 2"),
    ("use --contrastive-weight", f"{BOTH_KINDS} --coca-contrastive-loss-weight 2",
     f"{BOTH_KINDS} --contrastive-weight 2"),
    ("--augmentation none", f"{BOTH_KINDS} --aug-cfg scale=1", f"{BOTH_KINDS} --augmentation none"),
    ("give --public-data and --elite-data", "--val-data x --train-data x", f"--val-data x {BOTH_KINDS}"),
    ("use --elite-fraction, --public-weights and --elite-weights",
     f"{BOTH_KINDS} --train-data-upsampling-factors 2::1",
     f"{BOTH_KINDS} --elite-fraction 0.3 --public-weights 1 --elite-weights 2"),
    ("zero-shot over --val-data and --zeroshot-table", f"{BOTH_KINDS} --imagenet-val x",
     f"{BOTH_KINDS} --val-data x --zeroshot-table x=t.csv:x"),
    ("all of --val-data is evaluated", f"{BOTH_KINDS} --val-data x --val-num-samples 9", f"{BOTH_KINDS} --val-data x"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "flags", "remedy"), [*each_remedy(FLAGS)])
def test_what_a_message_advises_is_taken_by_the_parser(told, flags, remedy):
    with pytest.raises(ConfigError, match=told):
        parse_keepfit_args(flags.split())
    args, rest = parse_keepfit_args(remedy.split())
    upstream_parse_args(rest)
    for flag in re.findall("--([a-z-]+)", remedy):
        assert getattr(args, flag.replace("-", "_"), None) or f"--{flag}" in rest


# -- what Python alone says --------------------------------------------------------------------------------------------


def test_prompts_of_several_lengths_are_taken_one_length_at_a_time(model, tokenizer):
    pixels, texts = torch.zeros(3, 3, 64, 64), tokenizer(["drusen", "glaucoma with drusen", "cataract"])
    with pytest.raises(ConfigError, match="several lengths; give those of one length together"):
        model.generate(pixels, text=texts, max_length=12)
    lengths = texts.ne(0).sum(dim=1)
    for length in lengths.unique():
        assert len(model.generate(pixels[lengths == length], text=texts[lengths == length], max_length=12))


@pytest.mark.parametrize(
    ("told", "options", "remedy"),
    [
        (r"needs top_p=\.\.\.", {"generation_type": "top_p"}, {"generation_type": "top_p", "top_p": 0.9, "seq_len": 9}),
        ("it can be beam_search, top_p, top_k", {"generation_type": "diverse"},
         {"generation_type": "beam_search", "seq_len": 9}),
        ("leave it out", {"num_beams": 6, "num_beam_groups": 3}, {"num_beams": 6, "seq_len": 9}),
        ("give one of them", {"seq_len": 9, "max_length": 9}, {"max_length": 9}),
        (r"needs seq_len \(or max_length\)", {"fixed_output_length": True},
         {"fixed_output_length": True, "seq_len": 9}),
    ],
)  # fmt: skip
def test_what_generate_advises_works(model, told, options, remedy):
    with pytest.raises(ConfigError, match=told):
        model.generate(torch.zeros(1, 3, 64, 64), **options)
    assert len(model.generate(torch.zeros(1, 3, 64, 64), **remedy)) == 1
