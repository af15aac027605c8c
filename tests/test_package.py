"""The package as a whole: its public names, its README, what it imports."""

import ast
import configparser
import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

import keepfit_clip
from keepfit_clip.cli import app

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "HybridLoss", "KeepFIT", "KeepFITError", "KeepFITFeatures", "KeepFITWarning", "Knowledge",
    "ZeroShotClassifier", "__version__", "allow_source",
    "list_keepfit_models", "load_model", "register",
}  # fmt: skip


def test_public_names():
    assert set(keepfit_clip.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(keepfit_clip, name) is not None


def test_a_type_checker_sees_the_public_names():
    tree = ast.parse(Path(keepfit_clip.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    assert {name.name for node in block.body for name in node.names} == PUBLIC - {"__version__"}


def test_version_stands_once():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == keepfit_clip.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == keepfit_clip.__version__
    assert citation["license"] == config["metadata"]["license"]


def test_training_and_configs_are_subpackages():
    import keepfit_clip.model_configs
    import keepfit_clip.training

    assert (Path(keepfit_clip.model_configs.__file__).parent / "keepfit-v2.json").is_file()
    assert keepfit_clip.training.__name__ == "keepfit_clip.training"


def test_the_library_does_not_import_the_training_programs():
    for path in (ROOT / "src" / "keepfit_clip").rglob("*.py"):
        found = re.search(r"keepfit_clip\.training", re.sub(r'"""[\s\S]*?"""', "", path.read_text()))
        assert found is None or path.parent.name == "cli", path


def test_the_readmes_tree_is_true():
    """Every room, and every module that stands beside rooms, is in it; and what it names is there."""
    tree = re.search(r"## The tree\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for root in (ROOT / "src" / "keepfit_clip", ROOT / "training"):
        for path in [*root.glob("*"), *root.glob("*/*/")]:
            if path.is_dir() and (path / "__init__.py").exists():
                assert f"{path.name}/" in tree, path
            elif path.suffix == ".py" and path.name != "__init__.py":
                assert re.search(rf"\b{path.stem}\b", tree), path
    for line in tree.splitlines():
        room = re.match(r" *(?:src/)?([a-z_]+)/ ", line)
        if room:
            inside = (ROOT / "src").glob(f"**/{room[1]}/"), (ROOT / "training").glob(f"**/{room[1]}/")
            assert (ROOT / room[1]).is_dir() or any(map(list, inside)), line


def test_every_file_that_a_document_names_is_there():
    named = re.compile(r"\b(?:src|tests|training|benchmarks|examples)/[\w/.-]*\w\.(?:py|sh|json|md)\b")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for name in named.findall(path.read_text()):
            assert (ROOT / name).exists() or list(ROOT.glob(f"*/**/{name}")), f"{path.name}: {name}"


def test_every_command_in_the_readme_exists():
    commands = set(re.findall(r"keepfit-clip ((?:(?:shards|knowledge) )?[a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"train", "export", "shards build"} <= commands
    for command in commands - {"train", "pretrain-text"}:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command


def test_the_oldest_python_has_what_is_taken_from_typing():
    newer = {"Self", "Never", "LiteralString", "Required", "NotRequired", "Unpack", "assert_never", "override"}
    for folder in ("src", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in re.findall(r"^from typing import (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
                assert not newer & set(re.findall(r"\w+", line)), f"{path}: typing_extensions has it for Python 3.10"
