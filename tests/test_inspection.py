"""check finds what is wrong with shards, stats counts what they hold, show finds a sample."""

import io
import json
import shutil
import tarfile

import pytest
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import ShardOptions, build_shards, list_shards, read_shards
from keepfit_clip.data.shards.inspection import check_shards, find_sample, gather_statistics
from keepfit_clip.errors import ShardError
from tests.pictures import write_elite


@pytest.fixture
def copy(shards, tmp_path):
    shutil.copytree(shards / "public", tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(tar, change):
    """Writes a tar anew with every member's (name, content) changed; None leaves one out."""
    with tarfile.open(tar) as old:
        members = [(member.name, old.extractfile(member).read()) for member in old]
    with tarfile.open(tar, "w") as new:
        for name, content in filter(None, (change(*member) for member in members)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))


def what(folder):
    return [problem.what for problem in check_shards(folder)]


def test_whole_shards_have_no_problem(shards):
    assert check_shards(shards / "public") == []
    assert check_shards(shards / "elite") == []


def test_missing_and_unknown_files_are_found(copy):
    (copy / "000001.tar").unlink()
    shutil.copy(copy / "000000.tar", copy / "000007.tar")
    (copy / "sizes.json").write_text("{}")
    problems = {problem.shard: problem.what for problem in check_shards(copy) if not problem.key}
    assert problems == {
        "000001.tar": "is in the manifest but not in the folder",
        "000007.tar": "is in the folder but not in the manifest",
        "sizes.json": "does not agree with the manifest",
    }
    (copy / "manifest.json").write_text("{")
    (copy / "sizes.json").unlink()
    assert any("cannot be read" in line for line in what(copy))
    assert "is missing" in what(copy)


def test_a_changed_byte_a_cut_and_a_broken_image_are_found(copy):
    tar = copy / "000000.tar"
    content = bytearray(tar.read_bytes())
    content[1000] ^= 1
    tar.write_bytes(content)
    assert any("SHA-256" in line for line in what(copy))
    tar.write_bytes(content[:20000])
    lines = what(copy)
    assert any("cut off" in line for line in lines)
    assert any("samples that can be read; the manifest says 10" in line for line in lines)
    rewrite(copy / "000001.tar", lambda name, content: (name, content[:300] if name.endswith(".jpg") else content))
    assert any("truncated or damaged" in line for line in what(copy))


def test_changed_samples_and_categories_nobody_knows_are_found(copy):
    def change(name, content):
        if name.endswith(".json"):
            content = content.replace(b'"glaucoma"', b'"blue retina"')
        return name, content

    rewrite(copy / "000000.tar", change)
    lines = what(copy)
    assert any("its key is not the hash of its content" in line for line in lines)
    assert any("'blue retina'" in line and "not in the knowledge file" in line for line in lines)


def test_samples_that_stand_there_twice_are_found(copy):
    shutil.copy(copy / "000000.tar", copy / "000001.tar")
    assert sum("stands there 2 times" in line for line in what(copy)) == 10


def test_leaks_between_the_parts_of_a_split_are_found(tmp_path):
    write_elite(tmp_path, 24)
    options = ShardOptions(kind="elite", split={"train": 0.5, "val": 0.5})
    build_shards(tmp_path / "elite.csv", tmp_path, tmp_path / "out", options)
    assert check_shards(tmp_path / "out") == []
    shutil.copy(tmp_path / "out" / "train" / "000000.tar", tmp_path / "out" / "val" / "000001.tar")
    lines = what(tmp_path / "out")
    assert any(line.startswith("group ") and "in both parts" in line for line in lines)
    assert any(line == "an image stands in both parts" for line in lines)


def test_statistics_count_what_is_there(shards):
    found = gather_statistics(f"{shards / 'public'}::{shards / 'elite'}", examples=5)
    assert found.samples == 40
    assert found.counts["kind"] == {"public": 24, "elite": 16}
    assert found.counts["eye"].total() == 40
    assert found.captions == 16
    assert found.groups == 8
    assert found.categories["glaucoma"] == 10
    assert len(found.examples) == 5
    assert found.sizes == {"64 x 64": 5}
    assert Image.open(io.BytesIO(found.examples[0][0])).format == "JPEG"


def test_the_statistics_page_shows_counts_and_pictures_and_names_nobody(shards, tmp_path):
    page = tmp_path / "deep" / "page.html"
    result = CliRunner().invoke(app, ["shards", "stats", str(shards / "elite"), "--html", str(page)])
    assert result.exit_code == 0
    assert "16 captions" in result.output
    html = page.read_text()
    assert html.count("<figure>") == 16
    assert "Categories, CFP" in html
    assert "Doe" not in html
    assert "http" not in html.replace("http://www.w3.org", "")


def test_check_on_the_command_line_ends_with_1_and_a_table(copy):
    assert "nothing wrong" in CliRunner().invoke(app, ["shards", "check", str(copy), "--workers", "1"]).output
    (copy / "000002.tar").unlink()
    result = CliRunner().invoke(app, ["shards", "check", str(copy), "--workers", "1"])
    assert result.exit_code == 1
    assert "000002.tar" in result.output
    with pytest.raises(ShardError, match="no such folder"):
        CliRunner().invoke(app, ["shards", "check", str(copy / "no")], catch_exceptions=False)


def test_show_prints_a_sample_and_writes_its_image(shards, tmp_path):
    sample = next(read_shards(list_shards(shards / "elite")))
    assert find_sample(shards / "elite", sample.key[:12]).key == sample.key
    arguments = ["shards", "show", str(shards / "elite"), sample.key, "--image", str(tmp_path / "x.jpg")]
    result = CliRunner().invoke(app, arguments)
    assert json.loads(result.output.partition("\n}")[0] + "}")["key"] == sample.key
    assert "64 x 64 pixels" in result.output
    assert (tmp_path / "x.jpg").read_bytes() == sample.image_bytes
    with pytest.raises(ShardError, match="no sample has the key"):
        find_sample(shards / "elite", "zz")
    with pytest.raises(ShardError, match="give more of it"):
        find_sample(shards / "elite", "")
