"""`keepfit-clip quickstart`: what it sees in a folder, and that the commands it prints do what it says."""

import shutil

import pytest
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.cli.quickstart import guess_modality, look_at, plan
from keepfit_clip.drawing.retina import draw_retina
from keepfit_clip.errors import TableError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures each of two classes, in folders."""
    root = tmp_path_factory.mktemp("quick") / "photos"
    for condition in ("normal", "glaucoma"):
        (root / condition).mkdir(parents=True)
        for number in range(3):
            draw_retina("CFP", condition, [1, number], size=64).image.save(root / condition / f"{number}.png")
    return root


def test_folders_of_classes_lead_to_a_table_a_probe_and_pages(folder, tmp_path):
    look = look_at(folder)
    assert (look.images, look.labels) == (6, {"normal": 3, "glaucoma": 3})
    commands = plan(look, "MODEL", "CFP", tmp_path)
    assert [command[0] for command in commands] == ["transfer", "report", "explain"]
    assert commands[0][commands[0].index("--method") + 1] == "zero-shot,linear-probe"
    assert commands[0][commands[0].index("--folds") + 1] == "3"


def test_what_photographs_and_scans_look_like_is_told(folder, tmp_path):
    assert guess_modality(look_at(folder).first) == ("CFP", 6, 6)
    scans = []
    for number in range(3):
        scans.append(tmp_path / f"{number}.png")
        draw_retina("OCT", "normal", [3, number], size=128).image.save(scans[-1])
    assert guess_modality(scans) == ("OCT", 3, 3)
    assert guess_modality([]) is None


def test_without_a_model_only_a_probe_is_promised(folder, tmp_path):
    commands = plan(look_at(folder), None, None, tmp_path)
    assert commands[0][commands[0].index("--method") + 1] == "linear-probe"
    assert [command[0] for command in commands] == ["transfer", "report"]


def test_images_without_labels_get_answers(folder, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(folder / "normal", flat)
    look = look_at(flat)
    assert (look.images, look.labels, look.source) == (3, {}, None)
    assert [command[0] for command in plan(look, "MODEL", "CFP", tmp_path)] == ["predict", "explain"]
    with pytest.raises(TableError, match="give --model"):
        plan(look, None, None, tmp_path)


def test_a_table_goes_before_folders_and_the_largest_before_others(folder, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(folder, root)
    rows = [f"{path.relative_to(root)},{path.parent.name},p{path.stem}" for path in sorted(root.rglob("*.png"))]
    (root / "all.csv").write_text("\n".join(["image,category,patient", *rows]))
    (root / "few.csv").write_text("\n".join(["image,category,patient", *rows[:2]]))
    (root / "notes.csv").write_text("a,b\n1,2\n")
    look = look_at(root)
    assert look.source == root / "all.csv"
    assert look.others == [root / "few.csv"]
    assert look.patients == 3


def test_of_images_with_several_labels_those_that_stand_alone_are_told_apart(folder, tmp_path):
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "t.csv").write_text("\n".join(["image,category", f"{rows[0].split(',')[0]},\"['a', 'b']\"", *rows[1:]]))
    look = look_at(tmp_path / "t.csv", folder)
    assert look.labels == {"normal": 3, "glaucoma": 2, "a": 1, "b": 1}
    assert look.classes == ["normal", "glaucoma"]
    command = plan(look, "MODEL", "CFP", tmp_path)[0]
    assert command[command.index("--classes") + 1] == "normal,glaucoma"


def test_a_folder_of_nothing_says_so(tmp_path):
    with pytest.raises(TableError, match="holds no images"):
        look_at(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(TableError, match=r"is no table \(.csv"):
        look_at(tmp_path / "notes.txt")
    with pytest.raises(TableError, match="no such folder"):
        look_at(tmp_path / "none")


def test_the_commands_run_one_after_the_other(folder, exported, tmp_path):
    words = ["quickstart", folder, "--model", exported, "--modality", "CFP", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "$ keepfit-clip transfer" in result.output
    for made in ("transfer", "report.html", "explained/explain.html"):
        assert (tmp_path / "out" / made).exists(), made
