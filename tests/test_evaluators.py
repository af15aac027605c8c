"""Evaluation inside training: values, tables, captions, and where they go."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keepfit_clip.data import list_shards, read_shards
from keepfit_clip.errors import CategoryError, ConfigError, TableError, TextTooLongError
from keepfit_clip.model.zero_shot import ZeroShotClassifier
from keepfit_clip.training.hybrid.run import main as train
from tests.conftest import train_flags


@pytest.fixture(scope="module")
def evaluated(shards, held_out, pictures, tmp_path_factory):
    """A run of two epochs with everything evaluated."""
    logs = tmp_path_factory.mktemp("evaluated")
    flags = train_flags(
        shards, logs, "run", val_data=held_out, report_to="tensorboard",
        zeroshot_frequency=1, caption_samples=3,
    )  # fmt: skip
    tables = [f"one@cfp={pictures / 'public.csv'}:{pictures}", f"two={pictures / 'public.csv'}:{pictures}"]
    train([*flags, *(word for table in tables for word in ("--zeroshot-table", table))])
    return logs / "run"


def test_values_of_every_evaluator_are_saved_per_epoch(evaluated):
    lines = [json.loads(line) for line in (evaluated / "checkpoints" / "results.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    for name in ("caption_nll", "zero_shot_aca_CFP", "one_aca", "one_auc", "two_aca", "image_to_text_recall@5"):
        assert name in lines[0], name
    assert 0 <= lines[1]["text_to_image_recall@1"] <= lines[1]["text_to_image_recall@10"] <= 1


def test_captions_are_written_beside_the_experts(evaluated, held_out):
    lines = [json.loads(line) for line in (evaluated / "captions.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 1, 1, 2, 2, 2]
    known = {c.text for s in read_shards(list_shards(held_out)) for c in s.description.captions}
    assert {line["truth"] for line in lines} <= known
    assert all(isinstance(line["written"], str) for line in lines)


def test_tensorboard_has_curves_captions_and_pictures(evaluated):
    events = EventAccumulator(str(evaluated / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/caption_loss", "val/caption_nll", "val/one_aca"} <= set(tags["scalars"])
    assert len(events.Images("val/captioned")) == 2
    assert events.Images("val/captioned")[0].width == 64 * 3  # three pictures side by side, or
    assert any("captions" in tag for tag in tags["tensors"])


@pytest.mark.parametrize("precision", ["amp_bf16", "pure_bf16"])
def test_half_precision_does_not_coarsen_the_scores(shards, held_out, pictures, tmp_path, precision):
    flags = train_flags(
        shards, tmp_path, "run", epochs=1, train_num_samples=8, val_data=held_out, precision=precision,
        zeroshot_table=f"t@CFP={pictures / 'public.csv'}:{pictures}",
    )  # fmt: skip
    train(flags)
    (line,) = (tmp_path / "run" / "checkpoints" / "results.jsonl").read_text().splitlines()
    assert {"caption_nll", "zero_shot_aca_CFP", "t_auc", "image_to_text_recall@5"} <= json.loads(line).keys()


def test_similarities_are_float32_under_autocast(model, tokenizer):
    classes = ZeroShotClassifier(model, tokenizer, ["normal", "glaucoma"], "CFP").classes
    features = torch.nn.functional.normalize(torch.randn(50, 32), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = classes.probabilities(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, classes.probabilities(features))


def test_a_shard_frequency_of_zero_evaluates_tables_only(shards, held_out, pictures, tmp_path):
    flags = train_flags(
        shards, tmp_path, "run", epochs=1, train_num_samples=8, val_frequency=0, val_data=held_out,
        zeroshot_table=f"t@CFP={pictures / 'public.csv'}:{pictures}",
    )  # fmt: skip
    train(flags)
    (line,) = (tmp_path / "run" / "checkpoints" / "results.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"epoch", "t_aca", "t_auc"}  # the classes are no grades, so there is no kappa


def test_tables_alone_evaluate_a_checkpoint(run, shards, pictures, tmp_path):
    table = f"t={pictures / 'public.csv'}:{pictures}"
    train(["--model", "keepfit-v2-test", "--logs", str(tmp_path), "--name", "eval", "--workers", "0",
           "--resume", str(run / "checkpoints" / "epoch_2.pt"), "--zeroshot-table", table])  # fmt: skip
    assert "t_aca" in (tmp_path / "eval" / "checkpoints" / "results.jsonl").read_text()


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("name", ConfigError, "not of the form NAME"),
        ("=a.csv:b", ConfigError, "not of the form NAME"),
        ("t@MRI={table}:{root}", ConfigError, "'MRI' is none of CFP"),
        ("t=/no/such.csv:{root}", TableError, "such"),
        ("t={one_class}:{root}", CategoryError, "at least two classes"),
    ],
)
def test_tables_that_cannot_be_used_say_so_at_the_start(shards, pictures, tmp_path, table, error, message):
    header, *rows = (pictures / "public.csv").read_text().splitlines()
    one_class = tmp_path / "one.csv"
    one_class.write_text("\n".join([header, *rows[:1]]) + "\n")
    spec = table.format(table=pictures / "public.csv", one_class=one_class, root=pictures)
    with pytest.raises(error, match=message):
        train(train_flags(shards, tmp_path, "bad", zeroshot_table=spec))
    assert not (tmp_path / "bad" / "checkpoints" / "results.jsonl").exists()


def test_classes_longer_than_the_context_say_so_at_the_start(shards, pictures, tmp_path):
    spec = f"t@CFP={pictures / 'public.csv'}:{pictures}"
    with pytest.raises(TextTooLongError, match="context of 8 tokens"):
        train(train_flags(shards, tmp_path, "short", zeroshot_table=spec, force_context_length=8))


def test_an_evaluation_that_fails_costs_no_epoch(shards, held_out, pictures, tmp_path, monkeypatch):
    def fail(*_):
        raise TableError("the disk with the table is gone")

    monkeypatch.setattr("keepfit_clip.training.hybrid.evaluators.evaluate_table", fail)
    spec = f"t@CFP={pictures / 'public.csv'}:{pictures}"
    flags = {"epochs": 1, "train_num_samples": 8, "val_data": held_out}
    train(train_flags(shards, tmp_path, "run", zeroshot_table=spec, **flags))
    assert "the training goes on: the disk with the table is gone" in (tmp_path / "run" / "out.log").read_text()
    assert (tmp_path / "run" / "checkpoints" / "epoch_1.pt").exists()
    assert "caption_nll" in (tmp_path / "run" / "checkpoints" / "results.jsonl").read_text()
    with pytest.raises(TableError, match="is gone"):  # an evaluation alone has nothing to go on with
        train(["--model", "keepfit-v2-test", "--logs", str(tmp_path), "--name", "eval", "--workers", "0",
               "--resume", str(tmp_path / "run" / "checkpoints" / "epoch_1.pt"), "--zeroshot-table", spec])  # fmt: skip


def test_evaluation_does_not_change_what_is_learnt(shards, held_out, tmp_path):
    train(train_flags(shards, tmp_path, "plain", train_num_samples=16))
    train(train_flags(shards, tmp_path, "looked", train_num_samples=16, val_data=held_out))
    one, other = (torch.load(tmp_path / n / "checkpoints" / "epoch_2.pt")["state_dict"] for n in ("plain", "looked"))
    assert all(torch.equal(one[key], other[key]) for key in one)
