"""Inputs in object storage, of which `memory://` stands for all: the same records, shards and scores as from a disk,
listings in place of requests, and nothing that is secret in any message.
"""

import shutil
from collections import Counter
from dataclasses import replace
from itertools import count

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import ShardOptions, SourceOptions, build_shards, read_records
from keepfit_clip.data.sources import find_source
from keepfit_clip.data.sources.layout_file import layout_names
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import ImageError, MissingExtraError, OutputError, TableError, WorkerError
from keepfit_clip.evaluate.features import FeatureCache, image_features
from keepfit_clip.evaluate.table import evaluate_table
from keepfit_clip.folders.loading import load_model
from keepfit_clip.images import reading
from keepfit_clip.images.reading import image_bytes, open_image
from keepfit_clip.remote import opening, paths
from keepfit_clip.remote.opening import RemoteFile
from keepfit_clip.remote.paths import Listings, place
from tests.test_building import tree
from tests.test_layouts import as_written, read, unpack
from tests.test_stopped_builds import go_on, stop_while_writing
from tests.test_vendor_files import write

_number = count()
PUBLIC = ShardOptions("public", modality="CFP", samples_per_shard=10)


@pytest.fixture
def bucket():
    """URL of an empty bucket."""
    name = f"bucket{next(_number)}"
    yield f"memory://{name}"
    memory = fsspec.filesystem("memory")
    if memory.exists(name):
        memory.rm(name, recursive=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "retina.png"
    draw_retina("CFP", "normal", 0, size=32).image.save(path)
    return path


@pytest.fixture
def asked(monkeypatch):
    """How often the storage was asked for what."""
    counts = Counter()

    def counted(method, name):
        def called(*args, **more):
            counts[name] += 1
            return method(*args, **more)

        return called

    for name in ("ls", "info", "cat_file", "open"):
        monkeypatch.setattr(MemoryFileSystem, name, counted(getattr(MemoryFileSystem, name), name))
    return counts


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(opening, "_FIRST_DELAY", 0.001)


def put(folder, url):
    """Copies what is below a folder to a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


def failing(monkeypatch, error, method="cat_file"):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(MemoryFileSystem, method, fail)


# -- the same as from a disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table_too", [True, False])
def test_a_table_gives_the_same_shards_with_few_requests(pictures, tmp_path, bucket, asked, table_too):
    build_shards(pictures / "public.csv", pictures, tmp_path / "local", PUBLIC)
    put(pictures, bucket)
    table = f"{bucket}/public.csv" if table_too else pictures / "public.csv"
    asked.clear()
    report = build_shards(table, bucket, tmp_path / "remote", PUBLIC)
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")
    assert asked["ls"] <= 4
    assert asked["info"] <= 8
    assert asked["cat_file"] <= 2 * report.samples
    assert {path.name for path in tmp_path.iterdir()} == {"local", "remote"}


@pytest.mark.parametrize("name", layout_names())
def test_a_layout_gives_the_same_records(name, tmp_path, picture, bucket):
    content = unpack(name, tmp_path, picture)
    root = place(put(tmp_path, bucket))
    records, rejected, _ = read(root, layout=name)
    there = [replace(record, image=tmp_path / record.image.url.removeprefix(f"{root}/")) for record in records]
    inside = [as_written(record, tmp_path) for record in there]
    assert sorted(inside, key=lambda told: told["image"]) == sorted(content["records"], key=lambda told: told["image"])
    assert len(rejected) == content.get("left_out", 0)


@pytest.mark.parametrize(("name", "asked_for"), [("rfmid", False), ("refuge", True)])
def test_a_layout_gives_the_same_shards(name, asked_for, tmp_path, bucket):
    unpack(name, tmp_path / "set")
    put(tmp_path / "set", bucket)
    assert find_source(bucket) == "layout"
    options = ShardOptions("public", split="given")
    how = SourceOptions(layout=name if asked_for else "")
    for source, out in ((tmp_path / "set", "local"), (bucket, "remote")):
        build_shards(source, None, tmp_path / out, options, source_options=how)
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")


def test_a_folder_of_classes_and_shards_made_of_it(pictures, tmp_path, bucket):
    for row in pd.read_csv(pictures / "public.csv").itertuples():
        folder = tmp_path / "classes" / row.categories.strip("[']").split("'")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / row.image, folder)
    build_shards(tmp_path / "classes", None, tmp_path / "local", PUBLIC)
    build_shards(put(tmp_path / "classes", bucket), None, tmp_path / "remote", PUBLIC)
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")
    put(tmp_path / "local", f"{bucket}-shards")
    build_shards(f"{bucket}-shards", None, tmp_path / "again", PUBLIC)
    excluding = ShardOptions("public", modality="CFP", exclude=(f"{bucket}-shards",))
    with pytest.raises(Exception, match="stands in an excluded set"):
        build_shards(bucket, None, tmp_path / "none", excluding)


@pytest.mark.parametrize("name", ["t.tsv", "t.xlsx", "t.jsonl", "t.parquet", "t.json"])
def test_tables_of_all_kinds(name, tmp_path, picture, bucket):
    shutil.copy(picture, tmp_path / "a.png")
    frame = pd.DataFrame([{"image": "a", "label": "drusen", "eye": "OD", "report": "Drusen."}])
    if name == "t.tsv":
        frame.to_csv(tmp_path / name, index=False, sep="\t")
    elif name == "t.xlsx":
        frame.to_excel(tmp_path / name, index=False)
    elif name == "t.parquet":
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_json(tmp_path / name, orient="records", lines=name == "t.jsonl")
    put(tmp_path, bucket)
    (local,), (remote,) = (list(read_records(f"{root}/{name}", str(root))) for root in (tmp_path, bucket))
    assert remote.image == RemoteFile(f"{bucket}/a.png", *remote.image[1:])
    assert image_bytes(remote.image) == image_bytes(local.image)
    assert (remote.categories, remote.captions, remote.eye) == (local.categories, local.captions, local.eye)


@pytest.mark.parametrize("kind", ["vol", "e2e", "fda"])
def test_files_of_several_pictures(kind, tmp_path, bucket):
    write(kind, tmp_path / f"scan.{kind}")
    (tmp_path / "t.csv").write_text(f"image,category\nscan.{kind},drusen\n")
    put(tmp_path, bucket)
    options = SourceOptions(frames="all")
    local, remote = (list(read_records(f"{root}/t.csv", str(root), options=options)) for root in (tmp_path, bucket))
    assert [image_bytes(record.image) for record in remote] == [image_bytes(record.image) for record in local]
    out = ShardOptions("public", keep_blank=True)
    for root in (tmp_path, bucket):
        build_shards(f"{root}/t.csv", str(root), tmp_path / root.__class__.__name__, out, source_options=options)
    assert tree(tmp_path / "str") == tree(tmp_path / type(tmp_path).__name__)


def test_two_workers_read_it_too(pictures, tmp_path):
    build_shards(pictures / "public.csv", pictures, tmp_path / "local", PUBLIC)
    url = f"file://{pictures}"
    build_shards(f"{url}/public.csv", url, tmp_path / "remote", PUBLIC, workers=2)
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")


def test_an_evaluation_gives_the_same_scores_and_features(exported, pictures, tmp_path, bucket):
    loaded, classes = load_model(exported), ["normal", "diabetic retinopathy", "glaucoma"]
    put(pictures, bucket)
    places = (pictures, bucket)
    local, remote = (evaluate_table(loaded, f"{at}/public.csv", str(at), classes, modality="CFP") for at in places)
    assert remote.figures == local.figures
    assert remote.scores.confusion.tolist() == local.scores.confusion.tolist()
    cache = FeatureCache(tmp_path / "cache", loaded)
    first, again = (
        image_features(loaded, list(read_records(f"{at}/public.csv", str(at))), cache) for at in (bucket, pictures)
    )
    assert first.computed
    assert not again.computed
    assert (first.projected == again.projected).all()


def test_the_command_takes_urls(pictures, tmp_path, bucket):
    put(pictures, bucket)
    out = tmp_path / "out"
    words = ["shards", "build", f"{bucket}/public.csv", "--images", bucket, "--out", str(out), "--kind", "public"]
    result = CliRunner().invoke(app, [*words, "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert (out / "000000.tar").exists()


# -- rows and URLs that are refused ------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used(tmp_path, picture, bucket):
    outside = ["../a.png", "/a.png", "memory://other/a.png", "x::memory://a"]
    names = ["a", f"{bucket}/deeper/a.png", *outside, "b.png", "no/c"]
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"{name},drusen\n" for name in names))
    for place_of in ("a.png", "deeper/a.png"):
        (tmp_path / place_of).parent.mkdir(exist_ok=True)
        shutil.copy(picture, tmp_path / place_of)
    put(tmp_path, bucket)
    rejected = []
    records = list(read_records(f"{bucket}/t.csv", bucket, rejected.append))
    assert [record.image.url for record in records] == [f"{bucket}/a.png", f"{bucket}/deeper/a.png"]
    leaves = "the image path leaves the image folder"
    assert [error.reason for error in rejected] == [*[leaves] * 4, *["the image file is missing"] * 2]
    assert all(bucket in str(error) for error in rejected[4:])


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:geheim@bucket/set",
        "s3://AKIAKEY:ge/heim@bucket/set",
        "https://token-geheim@host/t.csv",
        "https://host/t.csv?X-Amz-Signature=geheim",
        "abfs://container:geheim@account/t.csv",
    ],
)
def test_a_url_with_a_secret_is_refused_without_a_word_of_it(url, tmp_path, pictures):
    for source, images in ((url, None), (pictures / "public.csv", url)):
        with pytest.raises(TableError) as caught:
            build_shards(source, images, tmp_path / "out", PUBLIC)
        assert not any(word in str(caught.value) for word in ("heim", "KEY", "token"))
    result = CliRunner().invoke(app, ["datasets", "find", url])
    assert "heim" not in f"{result.output}{result.exception}"
    assert not any("heim" in str(path) for path in tmp_path.rglob("*"))


def test_what_a_library_says_is_told_without_its_secrets():
    said = "cannot reach https://key@host/a?Signature=geheim and s3://k:geheim@bucket/b@2.png"
    assert opening.without_secrets(said) == "cannot reach https://host/a and s3://bucket/b@2.png"


def test_urls_that_name_nothing(bucket, pictures):
    put(pictures, bucket)
    with pytest.raises(TableError, match="no such file or folder"):
        list(read_records(f"{bucket}/none.csv"))
    with pytest.raises(TableError, match="no such folder of images"):
        list(read_records(pictures / "public.csv", f"{bucket}/none"))
    with pytest.raises(TableError, match="is a file; give the folder"):
        list(read_records(pictures / "public.csv", f"{bucket}/public.csv"))
    with pytest.raises(TableError, match="does not list its folders"):
        list(read_records(pictures / "public.csv", "https://host/images"))
    with pytest.raises(TableError, match="nowhere://x: "):
        list(read_records("nowhere://x"))


def test_a_missing_library_is_named(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r"pip install .*s3fs"):
        list(read_records("s3://bucket/t.csv"))


# -- a storage that fails, or changes ----------------------------------------------------------------------------------


@pytest.fixture
def table(pictures, bucket):
    put(pictures, bucket)
    return f"{bucket}/public.csv"


def test_a_stopped_build_goes_on(table, bucket, tmp_path, asked):
    go_on(table, tmp_path / "whole", bucket)
    stop_while_writing(table, tmp_path / "out", images=bucket)
    asked.clear()
    go_on(table, tmp_path / "out", bucket)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert asked["ls"] + asked["info"] <= 8  # it looks whether anything changed, not at each file by itself


@pytest.mark.parametrize("what", ["changed", "gone"])
def test_a_build_notices_what_changed_meanwhile(table, bucket, tmp_path, what):
    stop_while_writing(table, tmp_path / "out", images=bucket)
    memory, name = fsspec.filesystem("memory"), sorted(fsspec.filesystem("memory").glob(f"{bucket}/public/*.*g"))[0]
    content = memory.cat_file(name)
    memory.rm_file(name)
    if what == "changed":
        memory.pipe(name, content)  # as long as it was
    with pytest.raises(OutputError, match=f"{what}: {bucket}/"):
        go_on(table, tmp_path / "out", bucket)
    go_on(table, tmp_path / "out", bucket, {"accept_changes": True})


@pytest.mark.parametrize("error", [PermissionError("ExpiredToken"), RuntimeError("https://host/a?Signature=geheim")])
def test_a_storage_that_fails_stops_a_build_that_can_go_on(table, bucket, tmp_path, monkeypatch, error):
    with monkeypatch.context() as patched:
        failing(patched, error)
        with pytest.raises(WorkerError, match="what was finished is kept") as caught:
            build_shards(table, bucket, tmp_path / "out", PUBLIC)
        assert "geheim" not in str(caught.value)
    assert (tmp_path / ".out.building" / "plan.sqlite").exists()
    assert not (tmp_path / "out").exists()
    assert build_shards(table, bucket, tmp_path / "out", PUBLIC).samples


def test_a_folder_that_cannot_be_listed_costs_no_row(table, bucket, monkeypatch):
    failing(monkeypatch, PermissionError("Forbidden"), "ls")
    rejected = []
    with pytest.raises(WorkerError, match=f"{bucket}/public: cannot be read"):
        list(read_records(table, bucket, rejected.append))
    assert rejected == []


def test_nor_does_one_that_a_layout_names(picture, tmp_path, bucket, monkeypatch):
    unpack("aptos", tmp_path / "set", picture)
    put(tmp_path / "set", bucket)
    own = MemoryFileSystem.ls

    def forbidden(self, path, *args, **more):
        if path.rstrip("/").endswith("train_images"):
            raise PermissionError("Forbidden")
        return own(self, path, *args, **more)

    monkeypatch.setattr(MemoryFileSystem, "ls", forbidden)
    rejected = []
    with pytest.raises(WorkerError, match="cannot be read"):
        list(read_records(bucket, None, rejected.append, SourceOptions(layout="aptos")))
    assert rejected == []


def test_a_name_that_fsspec_would_take_apart_costs_its_own_image(picture, tmp_path):
    for name in ("glaucoma/OCT::1.png", "glaucoma/2.png", "normal/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    records = list(read_records(f"file://{tmp_path}"))
    assert len(records) == 3
    with pytest.raises(ImageError, match="the name of the image file cannot be read"):
        [open_image(record.image) for record in records]


def test_several_parquet_files(picture, bucket):
    pytest.importorskip("pyarrow")
    fsspec.filesystem("memory").pipe(f"{bucket}/a.png", picture.read_bytes())
    for number in range(2):
        frame = pd.DataFrame({"image": ["a.png"], "category": [f"category {number}"]})
        with fsspec.open(f"{bucket}/tables/{number}.parquet", "wb") as file:
            frame.to_parquet(file)
    records = list(read_records(f"{bucket}/tables", bucket))
    assert [record.categories for record in records] == [("category 0",), ("category 1",)]


def test_a_storage_that_fails_once_is_asked_again(table, bucket, monkeypatch):
    own, fails = MemoryFileSystem.cat_file, iter([True])

    def flaky(self, *args, **more):
        if next(fails, False):
            raise RuntimeError("503 Slow Down")
        return own(self, *args, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    record = next(iter(read_records(table, bucket)))
    assert open_image(record.image).size


def test_an_image_is_read_within_the_limit(table, bucket, monkeypatch):
    image = next(iter(read_records(table, bucket))).image
    monkeypatch.setattr(reading, "MAX_IMAGE_BYTES", image.size - 1)
    for claimed in (image, image._replace(size=1)):  # it grew since it was listed
        with pytest.raises(ImageError, match="more than"):
            image_bytes(claimed)
    with pytest.raises(ImageError, match="is missing"):
        image_bytes(RemoteFile(f"{bucket}/gone.png", 1))
    with pytest.raises(ImageError, match="is empty"):
        open_image(RemoteFile(f"{bucket}/empty.png", 0))


def test_the_listings_that_are_kept_are_bounded(monkeypatch, bucket, asked):
    monkeypatch.setattr(paths, "_MOST_NAMES", 10)
    for folder in range(20):
        fsspec.filesystem("memory").pipe({f"{bucket}/{folder}/{name}.png": b"x" for name in range(5)})
    root = place(bucket, listings := Listings())
    assert all(root.file(f"{folder}/{name}.png") for folder in range(20) for name in range(5))
    assert len(listings._kept) == paths._LEAST_LISTINGS
    assert asked["ls"] == 20
