"""Shards hold what is promised and nothing that names a patient or file; bad rows are counted, bad tars reported."""

import hashlib
import io
import json
import re
import tarfile

import open_clip
import pytest
from open_clip_train.data import get_wds_dataset
from PIL import Image

from keepfit_clip.data import build_shards, list_shards, read_shards
from keepfit_clip.data.shards.build import ShardOptions
from keepfit_clip.data.tars.reader import count_samples
from keepfit_clip.errors import OutputError, ShardError
from tests.pictures import write_elite, write_public, write_table


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_public_and_elite_samples_follow_the_schema(shards):
    for kind in ("public", "elite"):
        samples = list(read_shards(list_shards(shards / kind)))
        assert len(samples) == {"public": 24, "elite": 16}[kind]
        for sample in samples:
            assert re.fullmatch(r"[0-9a-f]{20}", sample.key)
            assert set(json.loads(sample.json)) == {
                "schema", "kind", "modality", "captions", "categories", "attributes", "dataset", "eye", "group",
            }  # fmt: skip
            assert sample.description.kind == kind
            assert sample.description.modality == "CFP"
            assert bool(sample.description.captions) == (kind == "elite")
            assert sample.image().size == (64, 64)
    groups = {s.description.group for s in samples}
    assert groups == set(range(8))  # patients Doe-0 .. Doe-7, renumbered


def test_nothing_of_the_input_reaches_the_output(tmp_path):
    write_elite(tmp_path)
    path = tmp_path / "elite" / "Jane_Doe_1961-03-05_0.png"
    exif = Image.Exif()
    exif[0x013B], exif[0x9003] = "Dr Who", "1999:12:31 10:00:00"
    Image.open(path).save(path, exif=exif)
    out = tmp_path / "shards"
    build_shards(tmp_path / "elite.csv", tmp_path, out, ShardOptions(kind="elite"))
    content = all_bytes(out)
    for secret in (b"Jane", b"Doe", b"1961", b"Dr Who", b"1999:12", b"elite.csv", str(tmp_path).encode()):
        assert secret not in content, secret
    with tarfile.open(next(out.glob("*.tar"))) as tar:
        assert {member.mtime for member in tar} == {0}


def test_same_input_gives_the_same_bytes(tmp_path, pictures):
    options = ShardOptions(kind="public", modality="CFP", size=32, samples_per_shard=7)
    for name in ("one", "two"):
        build_shards(pictures / "public.csv", pictures, tmp_path / name, options)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")
    assert next(read_shards(list_shards(tmp_path / "one"))).image().size == (32, 32)


def test_manifest_and_sizes_tell_what_is_there(shards):
    manifest = json.loads((shards / "public" / "manifest.json").read_text())
    sizes = json.loads((shards / "public" / "sizes.json").read_text())
    assert sizes == {"000000.tar": 10, "000001.tar": 10, "000002.tar": 4}
    assert count_samples(list_shards(shards / "public")) == manifest["samples"] == 24
    assert manifest["categories"]["glaucoma"] == 6
    assert manifest["modalities"] == {"CFP": 24}
    for name, shard in manifest["shards"].items():
        assert hashlib.sha256((shards / "public" / name).read_bytes()).hexdigest() == shard["sha256"]


def test_bad_rows_are_counted_with_reasons_that_name_nothing(tmp_path):
    write_public(tmp_path, 4)
    good = [{"image": f"public/Jane_Doe_1961-03-05_{i}.png", "categories": "['normal']"} for i in range(4)]
    (tmp_path / "Jane_cut.png").write_bytes((tmp_path / good[0]["image"]).read_bytes()[:150])
    (tmp_path / "Jane_text.png").write_text("hello")
    bad = [
        {"image": "Jane_cut.png", "categories": "['normal']"},
        {"image": "Jane_text.png", "categories": "['normal']"},
        {"image": "Jane_missing.png", "categories": "['normal']"},
        {"image": "../Jane.png", "categories": "['normal']"},
        {"image": good[0]["image"], "categories": "normal"},
        {"image": good[0]["image"], "categories": repr([f"sign {i}" for i in range(17)])},
        good[3],
    ]
    table = write_table(
        tmp_path / "mixed.csv", good + bad + [{"image": good[1]["image"], "categories": "['odd sign']"}]
    )
    report = build_shards(table, tmp_path, tmp_path / "out", ShardOptions(kind="public"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert report.samples == manifest["samples"] == 5
    rows = [entry["row"] for entry in manifest["rejected"]]
    assert rows in ([5, 6, 7, 8, 9, 10, 11], [4, 5, 6, 7, 8, 9, 10])  # of rows 4 and 11, equal, one is left out
    assert "Jane" not in json.dumps(manifest)
    assert any("Jane_cut.png" in message for _, _, message in report.left_out)
    assert manifest["unresolved_categories"] == {"odd sign": 1}
    assert manifest["modalities"] == {"unknown": 5}


def test_a_build_that_failed_leaves_no_output_and_goes_on(tmp_path, pictures, monkeypatch):
    options = ShardOptions(kind="public", samples_per_shard=7)
    with monkeypatch.context() as patch:
        patch.setattr("keepfit_clip.data.shards.report.write_json", lambda *_: (_ for _ in ()).throw(OSError("broken")))
        with pytest.raises(OSError, match="broken"):
            build_shards(pictures / "public.csv", pictures, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    build_shards(pictures / "public.csv", pictures, tmp_path / "out", options)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    build_shards(pictures / "public.csv", pictures, tmp_path / "again", options)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "again")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "secret"}, "kind of shards is 'secret'"),
        ({"kind": "public", "modality": "MRI"}, "modality is 'MRI'"),
        ({"kind": "public", "size": 2}, "at least 16"),
        ({"kind": "public", "samples_per_shard": 0}, "at least one sample"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ShardError, match=message):
        ShardOptions(**options)


def test_a_table_of_the_wrong_kind_and_a_full_folder_are_refused(tmp_path, pictures):
    with pytest.raises(ShardError, match=r"none of its rows.*no caption"):
        build_shards(pictures / "public.csv", pictures, tmp_path / "out", ShardOptions(kind="elite"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="holds something already"):
        build_shards(pictures / "public.csv", pictures, pictures, ShardOptions(kind="public"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves the tar open
def test_stock_open_clip_loader_reads_the_shards(shards, tokenizer):
    args = type("Args", (), {})()
    args.train_data, args.val_data = None, str(shards / "public" / "000000.tar")
    args.val_num_samples, args.batch_size, args.workers = 10, 5, 0
    preprocess = open_clip.image_transform(64, is_train=False)
    loader = get_wds_dataset(args, preprocess, is_train=False, tokenizer=tokenizer).dataloader
    batch = next(iter(loader))
    images, texts = batch.values() if isinstance(batch, dict) else batch  # open_clip 4 names what is in it
    assert images.shape == (5, 3, 64, 64)
    assert tokenizer.decode(texts[0].tolist()).strip("!").startswith("<start_of_text>a fundus photograph of")


def test_specifications(shards):
    public = str(shards / "public")
    assert len(list_shards(public)) == 3
    assert len(list_shards(f"{public}/{{000000..000001}}.tar")) == 2
    assert len(list_shards(f"{public}::{shards / 'elite'}")) == 5
    (shards / "empty").mkdir(exist_ok=True)
    with pytest.raises(ShardError, match="holds no shards"):
        list_shards(shards / "empty")
    with pytest.raises(ShardError, match="no such shard"):
        list_shards(f"{public}/999999.tar")


def test_a_cut_tar_is_reported_and_what_came_before_is_read(shards, tmp_path):
    whole = (shards / "public" / "000000.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"cut\.tar: the tar is cut off or damaged"):
        list(read_shards([str(cut)]))
    problems = []
    samples = list(read_shards([str(cut), str(shards / "public" / "000001.tar")], on_error=problems.append))
    assert 10 < len(samples) < 20
    assert len(problems) >= 1


def test_a_cut_is_noticed_wherever_it_falls(tmp_path):
    path, whole = tmp_path / "cut.tar", io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for key in "abc":
            for suffix, content in (("jpg", b"x" * 600), ("json", b'{"kind": "public", "categories": ["normal"]}')):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    content = whole.getvalue()
    end = len(content.rstrip(b"\0"))
    for cut in range(0, end, 256):
        path.write_bytes(content[:cut])
        problems = []
        list(read_shards([str(path)], on_error=problems.append))
        assert problems, cut
    path.write_bytes(content)
    assert len(list(read_shards([str(path)]))) == 3


def test_parts_of_a_split_number_patients_alike_and_count_their_own_rows(tmp_path):
    write_elite(tmp_path)
    table = tmp_path / "elite.csv"
    with open(table, "a", newline="") as file:
        file.write("missing.png,text,[],CFP,Doe-9,left\n")
    groups = {}
    for name, rows in (("train", range(1, 9)), ("val", range(9, 18))):
        report = build_shards(table, tmp_path, tmp_path / name, ShardOptions(kind="elite"), rows=rows)
        groups[name] = {s.description.group for s in read_shards(list_shards(tmp_path / name))}
        assert len(report.left_out) == (name == "val")
    assert groups == {"train": {0, 1, 2, 3}, "val": {4, 5, 6, 7}}


@pytest.mark.parametrize(
    "description",
    [
        '{"kind": "public", "categories": []}',
        '{"kind": "elite", "categories": ["normal"], "captions": []}',
        '{"kind": "public", "categories": [3]}',
        '{"kind": "public", "categories": ["normal"], "modality": "fundus"}',
        '{"kind": "other", "categories": ["normal"]}',
        "[1]",
    ],
)
def test_odd_descriptions_are_reported(tmp_path, description):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for suffix, content in (("jpg", b"x"), ("json", description.encode())):
            info = tarfile.TarInfo(f"a.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ShardError, match=r"sample a: its \.json"):
        list(read_shards([str(tmp_path / "odd.tar")]))


def test_members_of_other_kinds_are_never_decoded(shards, tmp_path):
    source, target = shards / "public" / "000000.tar", tmp_path / "more.tar"
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
            info = tarfile.TarInfo(member.name.rpartition(".")[0] + ".pyd")
            info.size = 4
            new.addfile(info, io.BytesIO(b"evil"))
    assert len(list(read_shards([str(target)]))) == 10


def test_a_sample_without_description_is_reported(tmp_path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.jpg", b"x"), ("b.json", b"{}"), ("b.jpg", b"x"), ("c.jpg", b"x"), ("c.json", b"no")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    problems = []
    assert list(read_shards([str(path)], on_error=problems.append)) == []
    assert len(problems) == 3


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    import errno

    from keepfit_clip.files import new_folder, write_json

    with pytest.raises(OutputError, match="no space is left"), new_folder(tmp_path / "out") as folder:
        (folder / "part").write_text("half")
        raise OSError(errno.ENOSPC, "")
    with pytest.raises(OutputError, match="cannot be made"), new_folder(__file__ + "/below"):
        pass
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="is a link"):
        build_shards("no.csv", tmp_path, tmp_path / "link", ShardOptions(kind="public"))
    (tmp_path / "link").unlink()
    (tmp_path / "real").rmdir()
    write_json(tmp_path / "content.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["content.json"]
