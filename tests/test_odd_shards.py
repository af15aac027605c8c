"""Odd and hostile shards: a sample that cannot be used is left out and counted, everywhere, whatever is in it."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keepfit_clip.cli import main
from keepfit_clip.data import MixedStream, ShardOptions, StreamOptions, build_shards, list_shards, read_shards
from keepfit_clip.data.shards.inspection import check_shards, gather_statistics
from keepfit_clip.data.shards.statistics_page import statistics_page
from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.data.stream.sampling import ShardPool
from keepfit_clip.errors import KeepFITError
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.tokenization import Tokenizer
from tests.conftest import PREPROCESS
from tests.odd_shards import LONE, description, header, odd_name, odd_sample, write_tar
from tests.test_building import encoded, picture

IMAGE = encoded(picture(0, 24), "JPEG")


def members(said, image=IMAGE):
    return {"jpg": image, "json": json.dumps(said).encode(), "txt": b"drusen"}


def stream_of(shards, kind, tokenizer, batches=4, batch_size=4, **options):
    pools = [ShardPool(tuple(map(str, shards)))]
    return MixedStream(
        pools if kind == "public" else [], pools if kind == "elite" else [],
        StreamOptions(batch_size=batch_size, max_bad_fraction=1.0, **options), batches, lambda: 0,
        make_resizer(PREPROCESS),
        Tokenizer(tokenizer, 77, pad_id=0, eos_id=49407), Knowledge.load(), PREPROCESS["mean"], PREPROCESS["std"],
    )  # fmt: skip


BAD = {
    "half a character in a caption": ("elite", {"captions": [{"lang": "en", "text": f"Drusen {LONE}"}]}),
    "half a character in a language": ("elite", {"captions": [{"lang": LONE, "text": "Drusen."}]}),
    "half a character in a category": ("public", {"categories": ["glaucoma", LONE]}),
    "half a character in an attribute": ("public", {"attributes": [LONE]}),
    "half a character in the data set": ("public", {"dataset": LONE}),
    "half a character in the group": ("public", {"group": LONE}),
    "17 captions": ("elite", {"captions": [{"lang": "en", "text": f"Drusen {i}."} for i in range(17)]}),
    "17 categories": ("public", {"categories": [f"sign {i}" for i in range(17)]}),
    "an empty caption": ("elite", {"captions": [{"lang": "en", "text": " "}]}),
    "a book": ("elite", {"captions": [{"lang": "en", "text": "Drusen. " * 10_000}]}),
}


@pytest.mark.parametrize("what", [*BAD, "a name that is no UTF-8"])
def test_one_bad_sample_is_left_out_by_all(tmp_path, tokenizer, what, monkeypatch, capsys):
    kind, changes = BAD.get(what, ("public", {}))
    name = b"\xff1" if what.startswith("a name") else b"000001"
    good = [(b"%06d" % i, members(description(kind, dataset="a"))) for i in (0, 2, 3)]
    write_tar(tmp_path / "a.tar", [good[0], (name, members(description(kind, **changes))), *good[1:]])
    problems = []
    assert len(list(read_shards([str(tmp_path / "a.tar")], problems.append))) == 3
    assert len(problems) == 1
    str(problems[0]).encode()
    stream = stream_of([str(tmp_path / "a.tar")], kind, tokenizer, batches=1, batch_size=3)
    ((_, texts),) = stream
    assert len(texts["text_id"]) == 3
    assert stream.left_out.shards.value >= 1
    report = build_shards(tmp_path / "a.tar", None, tmp_path / "built", ShardOptions(kind, originals=True))
    assert (report.samples, len(report.left_out)) == (1, 3)  # the three good ones say the same
    json.dumps(report.left_out, ensure_ascii=False).encode()
    found = [p for p in check_shards(tmp_path) if p.shard == "a.tar" and "sample" in p.what]
    assert len(found) == 1
    statistics = gather_statistics(tmp_path / "a.tar")
    assert (statistics.samples, statistics.unreadable) == (3, 1)
    statistics_page(statistics).encode()
    monkeypatch.setattr(sys, "argv", ["keepfit-clip", "shards", "show", str(tmp_path / "a.tar"), "000002"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert "glaucoma" in capsys.readouterr().out


def test_what_training_refuses_a_build_refuses(tmp_path):
    picture(0).save(tmp_path / "a.png")
    cells = [f"Drusen {i}." for i in range(17)]
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"image": "a.png", "caption": cells}) + "\n" + json.dumps({"image": "a.png", "caption": cells[:16]})
    )
    report = build_shards(tmp_path / "a.jsonl", tmp_path, tmp_path / "out", ShardOptions("elite"))
    assert report.samples == 1
    assert [left_out.row for left_out in report.left_out] == [1]
    assert "at most 16" in report.left_out[0].reason
    assert not [p for p in check_shards(tmp_path / "out") if "caption" in p.what]


@pytest.mark.parametrize("name", [b"caf\xe9_1.png", b"caf\xe9_2.png"])
def test_files_whose_names_are_no_text_are_taken_or_rejected(tmp_path, name):
    """On a disk that once belonged to Windows."""
    for folder, seed in ((b"glaucoma", 0), (b"norm\xe9l", 1)):
        os.mkdir(os.fsencode(tmp_path) + b"/" + folder)
        picture(seed).save(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder + b"/" + name))
    from keepfit_clip.data.sources import SourceOptions

    options = SourceOptions(group_pattern="^[^_]+")
    report = build_shards(tmp_path, None, tmp_path.parent / "out", ShardOptions("public"), source_options=options)
    assert report.samples + len(report.left_out) == 2
    assert report.samples
    (tmp_path.parent / "out").rename(tmp_path.parent / f"{tmp_path.name}.out")


# -- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import json, resource, sys
from keepfit_clip.data.tars.reader import read_shards

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

list(read_shards([sys.argv[1]]))
told = {}
for path in sys.argv[2:]:
    before, problems = peak(), []
    found = len(list(read_shards([path], on_error=lambda error: problems.append(str(error)))))
    told[path] = peak() - before, found, problems
print(json.dumps(told))
"""
BOMB = 64 << 20
ZEROS = b"\0" * BOMB
SMALLER = BOMB // 4


def good(name):
    said = json.dumps(description()).encode()
    return header(name + b".jpg", 512) + b"\0" * 512 + header(name + b".json", 512) + said.ljust(512)


END = b"\0" * 1024


BOMBS = {
    "long name": header(b"././@LongLink", BOMB, b"L") + ZEROS,
    "long link": header(b"././@LongLink", SMALLER, b"K") + ZEROS[:SMALLER],
    "pax header": header(b"pax", BOMB, b"x") + b"%d comment=" % BOMB + ZEROS[len(b"%d comment=" % BOMB) :],
    "global pax header": header(b"pax", SMALLER, b"g") + ZEROS[:SMALLER],
    "many long names": (header(b"././@LongLink", 512, b"L") + b"n" * 511 + b"\0") * 20_000,
    "many global headers": b"".join(
        header(b"g", 512, b"g") + (b"512 k%07d=" % i).ljust(511, b"v") + b"\n" for i in range(20_000)
    ),
    "sparse": header(b"a.jpg", SMALLER, b"S") + ZEROS[:SMALLER],
    "json": header(b"b.json", BOMB) + ZEROS,
    "text": header(b"b.jpg", 512) + b"\0" * 512 + header(b"b.txt", SMALLER) + ZEROS[:SMALLER],
    "another kind": header(b"b.mp4", SMALLER) + ZEROS[:SMALLER],
}  # fmt: skip


def test_small_tars_take_little_memory(tmp_path):
    (tmp_path / "good.tar").write_bytes(good(b"a") + END)
    paths = {str(tmp_path / f"{what}.tar"): what for what in BOMBS}
    for path, what in paths.items():
        bomb = good(b"a") + BOMBS[what] + good(b"c") + END
        Path(path).write_bytes(gzip.compress(bomb, 1))
        assert Path(path).stat().st_size < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "good.tar"), *paths],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    for path, (grown, found, problems) in json.loads(done.stdout).items():
        what = paths[path]
        assert grown < 4 << 10, f"{what}: {grown} KiB more"
        assert len(problems) == (what != "another kind"), what
        assert found == (2 if what in ("json", "text", "another kind") else 1), what  # what came before, or behind too


def test_a_compressed_tar_may_not_unpack_to_far_more_than_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("keepfit_clip.data.tars.members._ALWAYS_UNPACKED", 1 << 20)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(good(b"a") + header(b"b.mp4", BOMB) + ZEROS + END))
    problems = []
    assert len(list(read_shards([str(tmp_path / "a.tar.gz")], problems.append))) == 1
    assert "unpacks to more than 250 times its size" in str(problems[0])


def test_an_image_member_has_a_limit_and_the_next_sample_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("keepfit_clip.data.tars.members.MAX_IMAGE_BYTES", 2000)
    samples = [(b"a", members(description(), b"\0" * 3000)), (b"b", members(description(), b"\0" * 1000))]
    write_tar(tmp_path / "a.tar", samples)
    problems = []
    assert [sample.key for sample in read_shards([str(tmp_path / "a.tar")], problems.append)] == ["b"]
    assert "sample a: its .jpg has more than" in str(problems[0])
    assert len(problems) == 1


# -- fuzz -------------------------------------------------------------------------------------------------------------


def try_odd_shards(folder: Path, tokenizer, seed: int) -> None:
    """Odd shards through everything that reads shards: nothing but errors of ours, and what is left out is counted."""
    rng = random.Random(seed)
    kind = rng.choice(("public", "elite"))
    shards = []
    for number in range(rng.randint(1, 3)):
        samples = [(odd_name(rng, i), odd_sample(rng, kind)[1]) for i in range(rng.randint(1, 12))]
        shards.append(folder / f"{number:06}.tar")
        write_tar(shards[-1], samples, rng)
    if rng.random() < 0.5:
        write_tar(folder / "999999.tar", [(b"%06d" % i, members(description(kind))) for i in range(3)])
        shards.append(folder / "999999.tar")
    problems = []
    usable = [s for s in read_shards(map(str, shards), problems.append) if s.description.kind == kind]
    for text in (str(problem) for problem in problems):
        text.encode()
    stream = stream_of(shards, kind, tokenizer, batches=2, seed=seed, languages=rng.choice((("en",), ("en", "zh"))))
    try:
        for images, texts in stream:
            assert images.pixels.shape == (4, 64, 64, 3)
            assert (texts["category_ids"] == texts["text_id"][:, None]).any(dim=1).all()
    except KeepFITError as error:
        assert "has a sample that can be read" in str(error) or not usable  # noqa: PT017
    assert stream.left_out.shards.value >= bool(problems)
    statistics = gather_statistics(folder, examples=4)
    statistics_page(statistics).encode()
    for problem in check_shards(folder):
        "".join(problem).encode()
    out = folder / "out"
    try:
        report = build_shards(
            folder, None, out, ShardOptions(kind, size=32, identifiers=rng.choice(("refuse", "redact", "keep")))
        )
    except KeepFITError as error:
        str(error).encode()
        return
    built = list(read_shards(list_shards(out)))  # nothing that was built is refused
    assert len(built) == report.samples
    assert [p for p in check_shards(out) if "knowledge file" not in p.what] == []


def fuzz(folder: Path, tokenizer, first: int, seconds: float) -> int:
    """Seeds one after the other for so long; returns how many."""
    end, seed = time.monotonic() + seconds, first
    while time.monotonic() < end:
        place = folder / str(seed)
        place.mkdir()
        try:
            try_odd_shards(place, tokenizer, seed)
        except Exception as error:
            error.add_note(f"seed {seed}") if hasattr(error, "add_note") else None
            raise
        seed += 1
    return seed - first


@pytest.mark.parametrize("seed", range(12))
def test_odd_shards_are_read_or_counted(tmp_path, tokenizer, seed):
    try_odd_shards(tmp_path, tokenizer, seed)


@pytest.mark.slow
def test_a_minute_of_odd_shards(tmp_path, tokenizer):
    assert fuzz(tmp_path, tokenizer, 1000, 60) > 10
