"""The stream: both kinds in every batch, the same samples again from the same seed, trouble counted."""

import io
import math
import random
import shutil
import tarfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from keepfit_clip.data import ShardOptions, build_shards
from keepfit_clip.data.stream.augment import augment
from keepfit_clip.data.stream.batch import ImageBatch, stable_id
from keepfit_clip.data.stream.sampling import ShardPool, category_repeats, make_pools
from keepfit_clip.errors import ConfigError, ShardError, TextTooLongError
from keepfit_clip.model.tokenization import Tokenizer
from tests.pictures import write_elite, write_public


def fingerprint(stream):
    return [(images.pixels.sum(dim=(1, 2, 3)).tolist(), texts["text_id"].tolist()) for images, texts in stream]


def test_every_batch_has_both_kinds_at_the_ratio(make_stream):
    for images, texts in make_stream(batches=10):
        assert texts["is_elite"].tolist() == [False] * 6 + [True] * 2
        assert images.pixels.shape == (8, 64, 64, 3)
        assert images.pixels.dtype == torch.uint8
        assert texts["input_ids"].shape[1] % 8 == 0
        assert texts["category_ids"].shape == (8, 16)
        assert (texts["category_ids"] == texts["text_id"][:, None]).any(dim=1).all()
        assert (texts["modality"] == 0).all()


def test_ids_say_what_the_text_says(make_stream):
    categories = {stable_id("CFP", name) for name in ("normal", "diabetic retinopathy", "glaucoma", "cataract")}
    for _, texts in make_stream():
        elite = texts["is_elite"]
        assert set(texts["text_id"][~elite].tolist()) <= categories
        assert not set(texts["text_id"][elite].tolist()) & categories


def test_same_seed_same_samples_and_everything_else_differs(make_stream):
    first = fingerprint(make_stream())
    assert first == fingerprint(make_stream())
    for other in ({"epoch": 1}, {"seed": 1}, {"rank": 1}):
        assert first != fingerprint(make_stream(**other))


def test_persistent_workers_see_what_fresh_ones_see(make_stream):
    epoch = torch.zeros(1, dtype=torch.long).share_memory_()
    stream = make_stream()
    stream.epoch = lambda: int(epoch)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for number in (0, 1):
        epoch.fill_(number)
        epochs.append(fingerprint(loader))
    fresh = make_stream(epoch=1)
    assert epochs[1] == fingerprint(torch.utils.data.DataLoader(fresh, batch_size=None, num_workers=2))
    assert epochs[0] != epochs[1]
    assert len(epochs[0]) == 8  # four batches from each worker


def labels(stream):
    return [text_id for _, texts in stream for text_id in texts["text_id"][~texts["is_elite"]].tolist()]


def test_weights_decide_how_often_each_part_is_drawn_from(make_stream, shards):
    spec = f"{shards / 'public' / '000000.tar'}::{shards / 'public' / '000001.tar'}"
    stream = make_stream(batches=40, elite=None, augmentation="none")
    stream.public = make_pools(spec, weights="9::1")
    sums = Counter(images.pixels[i].sum().item() for images, _ in stream for i in range(8))
    first = make_stream(batches=40, elite=None, augmentation="none")
    first.public = make_pools(spec.partition("::")[0])
    mine = {images.pixels[i].sum().item() for images, _ in first for i in range(8)}
    share = sum(count for total, count in sums.items() if total in mine) / sums.total()
    assert 0.85 < share < 0.95


def test_balanced_data_sets_come_up_equally_often_whatever_their_size(shards, tmp_path):
    pools = make_pools(f"{shards / 'public'}::{shards / 'elite'}", balance="dataset")
    assert [len(pool.shards) for pool in pools] == [3, 2]
    assert {pool.weight for pool in pools} == {1.0}
    assert len(make_pools(f"{shards / 'public'}::{shards / 'elite'}")) == 1


def test_balanced_categories_come_up_about_equally_often(make_stream, tmp_path):
    write_public(tmp_path, 40)
    rows = (tmp_path / "public.csv").read_text().splitlines()
    kept = [rows[0], *(row for i, row in enumerate(rows[1:]) if "normal" in row or i % 10 < 2)]
    (tmp_path / "public.csv").write_text("\n".join(kept) + "\n")
    build_shards(tmp_path / "public.csv", tmp_path, tmp_path / "shards", ShardOptions(kind="public", modality="CFP"))
    stream = make_stream(batches=60, elite=None)
    stream.public = make_pools(tmp_path / "shards")
    rare = Counter(labels(stream))
    stream.repeats = {"public": category_repeats(stream.public)}
    even = Counter(labels(stream))
    assert max(rare.values()) > 2.4 * min(rare.values())
    assert max(even.values()) < 1.5 * min(even.values())


def test_kinds_are_balanced_each_by_its_own_categories(make_stream, tmp_path):
    write_elite(tmp_path, 24)
    table = pd.read_csv(tmp_path / "elite.csv")
    table["categories"] = ["['retinitis pigmentosa']" if row < 4 else "['normal']" for row in range(len(table))]
    table.to_csv(tmp_path / "elite.csv", index=False)
    build_shards(tmp_path / "elite.csv", tmp_path, tmp_path / "shards", ShardOptions(kind="elite", modality="CFP"))
    pools = make_pools(tmp_path / "shards")
    repeats = category_repeats(pools)
    assert repeats["retinitis pigmentosa"] == pytest.approx(24 / (2 * 4))
    assert category_repeats(pools, "root")["retinitis pigmentosa"] == pytest.approx(math.sqrt(3))
    assert category_repeats(pools, "none") == {}
    shares = []
    for chosen in ({}, {"public": repeats}, {"elite": repeats}):
        stream = make_stream(batches=60, public=None)
        stream.elite, stream.repeats = pools, chosen
        named = [
            stable_id("CFP", "retinitis pigmentosa") in row for _, t in stream for row in t["image_codes"].tolist()
        ]
        shares.append(np.mean(named))
    assert shares[0] == shares[1] < 0.25
    assert 0.4 < shares[2] < 0.6


def test_bad_weights_and_balances_are_refused(shards, tmp_path):
    spec = f"{shards / 'public'}::{shards / 'elite'}"
    for weights in ("1", "1::x", "1::0", "1::2::3"):
        with pytest.raises(ConfigError, match="weights"):
            make_pools(spec, weights)
    with pytest.raises(ConfigError, match="exclude each other"):
        make_pools(spec, "1::1", "dataset")
    with pytest.raises(ConfigError, match="balance is 'fair'"):
        make_pools(spec, balance="fair")
    shutil.copy(shards / "public" / "000000.tar", tmp_path)
    with pytest.raises(ConfigError, match="need the manifest"):
        category_repeats(make_pools(tmp_path))


def test_only_captions_in_the_chosen_languages_are_used(make_stream, tmp_path):
    write_elite(tmp_path, 8)
    rows = (tmp_path / "elite.csv").read_text(encoding="utf-8").splitlines()
    header = rows[0].replace("caption", "en_caption") + ",cn_caption"
    (tmp_path / "elite.csv").write_text("\n".join([header, *(f"{row},\u7cd6\u7f51" for row in rows[1:])]))
    build_shards(tmp_path / "elite.csv", tmp_path, tmp_path / "shards", ShardOptions(kind="elite"))
    counts = []
    for languages in (("en",), ("zh",), ("en", "zh")):
        stream = make_stream(batches=8, public=None, languages=languages)
        stream.elite = make_pools(tmp_path / "shards")
        counts.append(len({text_id for _, texts in stream for text_id in texts["text_id"].tolist()}))
    assert counts[1] == 1
    assert counts[2] == counts[0] + 1
    stream = make_stream(public=None, languages=("fr",))
    with pytest.raises(ShardError, match="none of the 2 elite shards"):
        next(iter(stream))
    assert stream.left_out.languages.value == 16


def test_too_many_bad_samples_end_the_run_with_one_error(make_stream, shards, tmp_path):
    damaged = tmp_path / "damaged.tar"
    with tarfile.open(shards / "public" / "000000.tar") as old, tarfile.open(damaged, "w") as new:
        for number, member in enumerate(old):
            content = old.extractfile(member).read()
            content = b"no picture" if member.name.endswith(".jpg") and number < 15 else content
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    stream = make_stream(batches=100, elite=None, max_bad_fraction=0.3)
    stream.public = [ShardPool((str(damaged),))]
    with pytest.raises(ShardError, match=r"of \d+ samples could not be read, more than --max-bad-fraction 0\.3"):
        list(stream)
    tolerant = make_stream(batches=100, elite=None, max_bad_fraction=0.6)
    tolerant.public = stream.public
    assert len(list(tolerant)) == 100
    assert "undecodable images left out" in tolerant.left_out.summary()


def test_small_sets_go_round_and_every_sample_comes_up(make_stream):
    seen = set()
    for images, _ in make_stream(batches=4, batch_size=8, elite_fraction=0.5, augmentation="none"):
        seen.update(images.pixels[4:].sum(dim=(1, 2, 3)).tolist())
    assert len(seen) == 16


def test_one_kind_alone(make_stream):
    assert next(iter(make_stream(elite=None)))[1]["is_elite"].sum() == 0
    assert next(iter(make_stream(public=None)))[1]["is_elite"].sum() == 8
    with pytest.raises(ConfigError, match="no training data"):
        make_stream(public=None, elite=None)
    with pytest.raises(ConfigError, match="no room"):
        make_stream(elite_fraction=0.01)


def test_long_texts_are_cut_and_counted(make_stream):
    stream = make_stream(context_length=6)
    _, texts = next(iter(stream))
    assert texts["input_ids"].shape[1] == 6
    assert (texts["input_ids"][:, -1] == 49407).any()
    assert stream.left_out.cut_texts.value > 0
    assert "texts cut" in stream.left_out.summary()


def test_outside_training_a_long_text_is_an_error(tokenizer):
    with pytest.raises(TextTooLongError, match=r"context of 6 tokens.*retinal"):
        Tokenizer(tokenizer, 6, 0, 49407)(["retinal " * 10])


def test_a_cut_shard_is_counted_and_training_goes_on(make_stream, shards, tmp_path):
    stream = make_stream()
    cut = tmp_path / "cut.tar"
    cut.write_bytes((shards / "elite" / "000000.tar").read_bytes()[:5000])
    stream.elite = [ShardPool((str(cut), str(shards / "elite" / "000001.tar")))]
    assert len(list(stream)) == 4
    assert stream.left_out.shards.value >= 1


def test_nothing_readable_ends_in_an_error_not_in_a_loop(make_stream, tmp_path):
    stream = make_stream()
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    stream.public = [ShardPool((str(empty),))]
    with pytest.raises(ShardError, match="none of the 1 public shards"):
        next(iter(stream))


def test_images_that_never_decode_end_in_an_error_too(make_stream, shards, tmp_path):
    stream = make_stream()
    broken = tmp_path / "broken.tar"
    with tarfile.open(shards / "public" / "000000.tar") as old, tarfile.open(broken, "w") as new:
        for member in old:
            content = b"no picture" if member.name.endswith(".jpg") else old.extractfile(member).read()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    stream.public = [ShardPool((str(broken),))]
    with pytest.raises(ShardError, match="none of the 1 public shards"):
        next(iter(stream))
    assert stream.left_out.images.value == 10


def test_samples_of_the_other_kind_are_counted_not_mixed_in(make_stream, shards):
    stream = make_stream()
    stream.public = [ShardPool((*stream.public[0].shards, *stream.elite[0].shards))]
    for _, texts in stream:
        assert texts["is_elite"].tolist() == [False] * 6 + [True] * 2
    assert stream.left_out.shards.value > 0


def test_images_become_normalised_floats():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 1, 3)
    images = ImageBatch(pixels, [0.5] * 3, [0.25] * 3).to(device="cpu", dtype=None, non_blocking=True)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[0, 0, :, 0], torch.tensor([-2.0, (128 / 255 - 0.5) / 0.25, 2.0]))
    assert ImageBatch(pixels, [0.5] * 3, [0.5] * 3).to(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_only_images_without_place_words_are_mirrored():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, :8] = 200

    def mirrored(may_flip):
        found = [augment(image, random.Random(seed), may_flip) for seed in range(40)]
        return sum(bool(out[:, -6:].mean() > out[:, :6].mean()) for out in found)

    assert mirrored(may_flip=False) == 0
    assert 10 <= mirrored(may_flip=True) <= 30


@pytest.mark.parametrize("coloured", [True, False])
def test_strong_augmentation_keeps_grey_grey_and_never_mirrors_what_names_a_place(coloured):
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, :16] = 200
    found = [augment(image, random.Random(seed), False, "strong", coloured) for seed in range(60)]
    assert len({out.tobytes() for out in found}) > 50
    assert all(out.shape == image.shape and out.dtype == np.uint8 for out in found)
    assert not any(out[:, -8:].mean() > out[:, :8].mean() for out in found)
    tinted = [bool((out.max(axis=2) != out.min(axis=2)).any()) for out in found]
    assert any(tinted) == coloured


def test_the_same_generator_augments_alike_and_none_leaves_the_image():
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    for strength in ("mild", "strong"):
        assert np.array_equal(*(augment(image, random.Random(3), True, strength) for _ in range(2)))
    assert augment(image, random.Random(3), True, "none") is image
