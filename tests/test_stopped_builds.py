"""What a stopped or killed job leaves: nothing finished is lost, what changed meanwhile is told, litter is removed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from keepfit_clip import files
from keepfit_clip.data import ShardOptions, build_shards
from keepfit_clip.errors import OutputError, ShardError, WorkerError
from keepfit_clip.files import new_folder
from tests.test_building import Stopped, build, command, encoded, labelled, picture, shown, tree
from tests.test_engines import die


@pytest.fixture
def table(tmp_path):
    return labelled(tmp_path, {f"{i}.png": encoded(picture(i, 32)) for i in range(12)})


@pytest.fixture
def classes(tmp_path):
    """A folder of two classes, with four pictures each."""
    for i in range(8):
        path = tmp_path / "classes" / ("glaucoma", "normal")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i, 32)))
    return tmp_path / "classes"


def stop_while_writing(*words, images=None, **options):
    """A build stopped after its first tar of three samples."""

    def on_step(step, done, total):
        if step == "writing shards" and done >= 4:
            raise Stopped

    source, out = words
    with pytest.raises(Stopped):
        build_shards(source, images, out, ShardOptions("public", samples_per_shard=3, **options), on_step=on_step)
    assert len(list(left_by(out).glob("shards/*.tar"))) == 1


def go_on(source, out, images=None, more=None, **options):
    return build_shards(source, images, out, ShardOptions("public", samples_per_shard=3, **options), **(more or {}))


def left_by(out):
    return out.with_name(f".{out.name}.building")


# -- inputs that change -----------------------------------------------------------------------------------------------


def replaced(folder):
    (folder / "5.png").write_bytes(encoded(picture(99, 32)))


def replaced_within_the_same_size(folder):
    content = bytearray((folder / "5.png").read_bytes())
    content[-1] ^= 1
    (folder / "5.png").write_bytes(content)


def removed(folder):
    (folder / "5.png").unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [(replaced, "changed"), (replaced_within_the_same_size, "changed"), (removed, "gone")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_images_of_a_table_that_change_are_named_and_the_user_decides(tmp_path, table, change, told):
    stop_while_writing(table, tmp_path / "out", images=tmp_path)
    change(tmp_path)
    with pytest.raises(OutputError, match=rf"1 of the files .*{told}: \S+/5\.png.*--restart .*--accept-changes"):
        go_on(table, tmp_path / "out", tmp_path)
    with pytest.raises(OutputError, match=r"5\.png"):  # it is not forgotten
        go_on(table, tmp_path / "out", tmp_path)
    go_on(table, tmp_path / "out", tmp_path, {"restart": True})
    go_on(table, tmp_path / "fresh", tmp_path)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_changes_that_are_accepted_are_not_asked_about_again(tmp_path, table):
    stop_while_writing(table, tmp_path / "out", images=tmp_path)
    removed(tmp_path)

    def stop(*_):
        raise Stopped

    with pytest.raises(Stopped):
        go_on(table, tmp_path / "out", tmp_path, {"accept_changes": True, "on_step": stop})
    report = go_on(table, tmp_path / "out", tmp_path)
    written = set(shown(tmp_path / "out"))
    assert report.samples + len(report.left_out) == 12
    assert len(written) == report.samples >= 11


def test_files_that_come_into_a_folder_are_named(tmp_path, classes):
    stop_while_writing(classes, tmp_path / "out")
    for name in ("a", "b", "c", "d", "e"):
        (classes / "normal" / f"{name}.png").write_bytes(encoded(picture(ord(name), 32)))
    (classes / "normal" / ".hidden.png").write_bytes(b"")
    with pytest.raises(OutputError, match=r"5 of the files .*new: .*a\.png, .*b\.png, .*c\.png and 2 more"):
        go_on(classes, tmp_path / "out")
    assert go_on(classes, tmp_path / "out", more={"accept_changes": True}).samples == 8
    assert go_on(classes, tmp_path / "fresh").samples == 13


def test_an_image_that_was_missing_and_came_is_named(tmp_path, table):
    with open(table, "a", newline="") as file:
        file.write("late,['another']\nnever.png,['another']\n")  # the first without its ending
    stop_while_writing(table, tmp_path / "out", images=tmp_path)
    (tmp_path / "late.PNG").write_bytes(encoded(picture(50, 32)))
    with pytest.raises(OutputError, match=r"1 of the files .*new: \S+/late\.PNG"):
        go_on(table, tmp_path / "out", tmp_path)
    assert go_on(table, tmp_path / "out", tmp_path, {"restart": True}).samples == 13


def test_a_table_and_excluded_sets_that_change_are_named(tmp_path, table, classes):
    stop_while_writing(table, tmp_path / "out", images=tmp_path, exclude=(str(classes / "glaucoma"),))
    with open(table, "a", newline="") as file:
        file.write("0.png,['another']\n")
    (classes / "glaucoma" / "x.png").write_bytes(encoded(picture(50)))
    with pytest.raises(OutputError, match=r"changed: \S+/table\.csv; new: \S+/x\.png"):
        go_on(table, tmp_path / "out", tmp_path, exclude=(str(classes / "glaucoma"),))


def test_shards_that_change_are_named(tmp_path, table):
    go_on(table, tmp_path / "source", tmp_path)
    stop_while_writing(tmp_path / "source", tmp_path / "out")
    tar = tmp_path / "source" / "000001.tar"
    tar.write_bytes(tar.read_bytes() + b"\0" * 512)
    with pytest.raises(OutputError, match=r"changed: \S+/000001\.tar"):
        go_on(tmp_path / "source", tmp_path / "out")


def test_nothing_is_asked_where_nothing_changed(tmp_path, classes):
    stop_while_writing(classes, tmp_path / "out")
    go_on(classes, tmp_path / "out")
    go_on(classes, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_restart_and_accept_changes_exclude_each_other(tmp_path, table, monkeypatch, capsys):
    usual = ("--images", tmp_path, "--out", tmp_path / "out", "--kind", "public")
    code, printed = command(monkeypatch, capsys, table, *usual, "--restart", "--accept-changes")
    assert code == 1
    assert "exclude each other" in printed.err


# -- what is damaged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"no database at all, but text" * 99, b"\xff\0"])
@pytest.mark.parametrize(
    "name", ["plan.sqlite", "build.json", "reports/000000.tar.json", "finished.json", "excluded.npz"]
)
def test_damaged_leftovers_are_named_and_restart_helps(tmp_path, table, classes, name, damage):
    options = {"exclude": (str(classes / "glaucoma"),)}
    stop_while_writing(table, tmp_path / "out", images=tmp_path, **options)
    (left_by(tmp_path / "out") / name).write_bytes(damage)
    go_on(table, tmp_path / "fresh", tmp_path, **options)
    try:
        go_on(table, tmp_path / "out", tmp_path, **options)
    except OutputError as error:
        assert Path(name).name in str(error)  # noqa: PT017
        assert "--restart" in str(error)  # noqa: PT017
        go_on(table, tmp_path / "out", tmp_path, {"restart": True}, **options)
    else:
        assert name == "plan.sqlite"  # an empty plan, which is made again
        assert len(damage) < 2
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_plan_damaged_within_is_named(tmp_path, table):
    stop_while_writing(table, tmp_path / "out", images=tmp_path)
    plan = left_by(tmp_path / "out") / "plan.sqlite"
    content = bytearray(plan.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    plan.write_bytes(content)
    with pytest.raises(OutputError, match=r"plan\.sqlite: damaged.*--restart"):
        go_on(table, tmp_path / "out", tmp_path)


# -- workers that die -------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_costs_no_finished_tar(tmp_path, table, monkeypatch):
    def dies(*_):
        yield 3
        raise WorkerError("a worker process was killed")

    stop_while_writing(table, tmp_path / "out", images=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("keepfit_clip.data.shards.build.run_jobs", dies)
        with pytest.raises(WorkerError, match="a worker process was killed"):
            go_on(table, tmp_path / "out", tmp_path, {"workers": 2})
    (tar,) = left_by(tmp_path / "out").glob("shards/*.tar")
    before = tar.stat().st_ino
    go_on(table, tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / tar.name).stat().st_ino == before


@pytest.mark.slow
@pytest.mark.parametrize("near_duplicates", ["ignore", "together"])
def test_a_worker_that_is_killed_costs_nothing_that_was_finished(tmp_path, table, monkeypatch, near_duplicates):
    options = {"near_duplicates": near_duplicates}
    stop_while_writing(table, tmp_path / "out", images=tmp_path, **options)
    with monkeypatch.context() as patch:
        patch.setattr("keepfit_clip.data.shards.build.write_shard", die)
        with pytest.raises(WorkerError, match=r"a worker process was killed.*what was finished is kept"):
            go_on(table, tmp_path / "out", tmp_path, {"workers": 2}, **options)
    assert len(list(left_by(tmp_path / "out").glob("shards/*.tar"))) == 1


@pytest.mark.parametrize("kind", ["GetTimeoutError", "NodeDiedError", "cluster"])
def test_an_error_of_ray_costs_no_finished_tar(tmp_path, table, monkeypatch, kind):
    """Ray itself is not needed: what stands in for it fails as it does."""
    stop_while_writing(table, tmp_path / "out", images=tmp_path)

    class FakeRay:
        class exceptions:
            RayError = type("RayError", (Exception,), {})
            RayTaskError = type("RayTaskError", (RayError,), {})

        @staticmethod
        def is_initialized():
            return kind != "cluster"

        @staticmethod
        def init(**_):
            raise ConnectionError("no cluster answers\nat that address")

        @staticmethod
        def remote(_):
            raise FakeRay.exceptions.RayError(f"\n{kind}: gone\nmore")

    monkeypatch.setitem(sys.modules, "ray", FakeRay)
    monkeypatch.setattr("keepfit_clip.data.shards.build.require_engine", lambda _: None)
    with pytest.raises(
        WorkerError, match="no cluster answers" if kind == "cluster" else f"Ray: {kind}: gone"
    ) as caught:
        go_on(table, tmp_path / "out", tmp_path, {"engine": "ray"})
    assert len(str(caught.value).splitlines()) == 1
    assert len(list(left_by(tmp_path / "out").glob("shards/*.tar"))) == 1


def test_an_error_that_nothing_helps_leaves_nothing(tmp_path):
    table = labelled(tmp_path, {"a.png": b"no picture"})
    with pytest.raises(ShardError, match="none of its rows"):
        build(table, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "table.csv"}


# -- litter -----------------------------------------------------------------------------------------------------------

WRITING = """
import sys, time, types
sys.modules["keepfit_clip"] = types.ModuleType("keepfit_clip")  # these modules only: the whole takes seconds
sys.modules["keepfit_clip"].__path__ = [sys.argv[2]]
from keepfit_clip.files import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "picture.png").write_bytes(b"a patient's picture")
    print("ready", flush=True)
    time.sleep(60)
"""


def writer(path):
    """A process that writes a folder and does not come to an end."""
    program = [sys.executable, "-c", WRITING, str(path), str(Path(files.__file__).parent)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process, sig=signal.SIGKILL):
    process.send_signal(sig)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("name", ["out", "another"])
def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path, name):
    dead, living = writer(tmp_path / "out"), writer(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 2
    end(dead)
    try:
        assert len(list(tmp_path.iterdir())) == 2
        with new_folder(tmp_path / name) as folder:
            (folder / "a").write_text("a")
        assert len(list(tmp_path.glob(".out.*"))) == 1
        assert list((tmp_path / name).iterdir()) == [tmp_path / name / "a"]
    finally:
        end(living)
    with new_folder(tmp_path / "third"):
        pass
    assert not list(tmp_path.glob(".*"))


def test_folders_of_others_and_of_unknown_age_stay(tmp_path):
    for other in (".download.partial", ".out.abc.partial", ".b.x.partial"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "a").write_text("a")
    old = time.time() - 2 * files._FORGOTTEN
    os.utime(tmp_path / ".b.x.partial", (old, old))
    with new_folder(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        ".download.partial",
        ".out.abc.partial",
        ".b.x.partial",
        "out",
    }
    os.utime(tmp_path / ".out.abc.partial", (old, old))  # of this output, nobody's for long
    with new_folder(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".download.partial", ".b.x.partial", "out"}


def test_two_that_write_the_same_do_not_take_each_others_folder_away(tmp_path):
    with new_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        with pytest.raises(Stopped), new_folder(tmp_path / "out"):
            raise Stopped
        assert first.is_dir()
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_drawn_pictures_of_a_killed_run_are_removed(tmp_path):
    program = [sys.executable, "-c", "from keepfit_clip.cli import main; main()", "draw", "--size", "256", "--out"]
    with subprocess.Popen([*program, tmp_path / "drawn", "--count", "999"]) as process:
        for _ in range(600):
            if list(tmp_path.glob(".drawn.*.partial/**/*.png")):
                break
            time.sleep(0.1)
        process.kill()
    assert list(tmp_path.glob(".drawn.*.partial/**/*.png"))
    subprocess.run([*program, tmp_path / "new", "--count", "1"], check=True, timeout=120)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# -- the cost ---------------------------------------------------------------------------------------------------------


def test_the_plan_holds_each_input_once_and_no_name_of_it_reaches_the_output(tmp_path, table):
    stop_while_writing(table, tmp_path / "out", images=tmp_path)
    with closing(sqlite3.connect(left_by(tmp_path / "out") / "plan.sqlite")) as plan:
        assert plan.execute("SELECT COUNT(*) FROM inputs").fetchone() == (13,)  # the table and twelve images
    go_on(table, tmp_path / "out", tmp_path)
    assert not [name for name, content in tree(tmp_path / "out").items() if b"table.csv" in content]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"] == 12
