"""Learning rates of groups, decay where it belongs, averaged weights, and what accumulated batches bring."""

import json

import open_clip
import pytest
import torch

from keepfit_clip.errors import ConfigError
from keepfit_clip.folders.export import AVERAGE, load_training_checkpoint
from keepfit_clip.training.hybrid.averaging import AveragedWeights
from keepfit_clip.training.hybrid.optimizer import parameter_groups, scaled_rates
from keepfit_clip.training.hybrid.run import main as train
from keepfit_clip.training.hybrid.settings import HybridPretraining
from tests.conftest import MODEL, train_flags


def by_name(model, groups):
    """Name of each parameter -> (factor of the rate, decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_new_layers_learn_faster_and_towers_the_slower_the_nearer_to_their_input(model):
    told = by_name(model, parameter_groups(model, 0.1, head_scale=10.0, layer_decay=0.5))
    assert set(told) == {name for name, _ in model.named_parameters()}
    for name in ("visual.proj.weight", "text.proj.weight", "logit_scale", "text_revision.query.weight"):
        assert told[name][0] == 10
    assert all(scale == 10 for name, (scale, _) in told.items() if name.startswith("text_decoder"))
    words = told["text.transformer.embeddings.word_embeddings.weight"][0]
    first = told["text.transformer.encoder.layer.0.output.dense.weight"][0]
    second = told["text.transformer.encoder.layer.1.output.dense.weight"][0]
    assert (words, first, second) == (0.25, 0.5, 1.0)
    assert told["visual.trunk.patch_embed.proj.weight"][0] < told["visual.trunk.norm.weight"][0] <= 1


def test_norms_biases_scales_and_embeddings_do_not_decay(model):
    told = by_name(model, parameter_groups(model, 0.1, head_scale=1.0, layer_decay=1.0))
    kinds = (torch.nn.LayerNorm, torch.nn.Embedding)
    without = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
        if isinstance(module, kinds) or own == "bias"
    }
    without |= {"logit_scale", "text_revision.log_temperature", "visual.trunk.pos_embed", "visual.trunk.cls_token"}
    weights = {"visual.proj.weight", "text_decoder.blocks.0.mlp.0.weight"} & set(told)
    assert weights
    for name, (_, decay) in told.items():
        if name in without:
            assert decay == 0, name
        elif name.endswith("weight"):
            assert decay == 0.1, name


def test_what_is_locked_is_in_no_group(model):
    model.lock_image_tower()
    assert not any(name.startswith("visual.trunk") for name in by_name(model, parameter_groups(model, 0.1, 10.0, 1.0)))


def test_a_schedule_keeps_the_factors():
    groups = [{"lr_scale": 10.0}, {}]
    assert scaled_rates(lambda step: 0.1 * step, groups)(2) == 0.2
    assert [group["lr"] for group in groups] == [2.0, 0.2]


def test_the_average_is_the_plain_one_at_first_and_goes_on_from_a_checkpoint():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    average = AveragedWeights(layer, optimizer, 0.9)

    def step(times):
        for _ in range(times):
            optimizer.zero_grad()
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    step(1)
    torch.testing.assert_close(average.model.weight, layer.weight)  # the start counts for nothing
    step(3)
    assert not torch.equal(average.model.weight, layer.weight)
    other = AveragedWeights(layer, optimizer, 0.9, step=4, stored=average.model.state_dict())
    step(1)
    torch.testing.assert_close(other.model.weight, average.model.weight)


def test_a_run_keeps_averages_evaluates_with_them_and_goes_on_with_them(shards, tmp_path):
    flags = train_flags(shards, tmp_path, "run", epochs=2, train_num_samples=16)
    train(flags)
    last = torch.load(tmp_path / "run" / "checkpoints" / "epoch_2.pt")
    assert set(last[AVERAGE]) == set(last["state_dict"])
    assert any(not torch.equal(last[AVERAGE][key], value) for key, value in last["state_dict"].items())
    used = load_training_checkpoint(tmp_path / "run" / "checkpoints" / "epoch_2.pt")
    assert all(torch.equal(used[key], value) for key, value in last[AVERAGE].items())
    train(train_flags(shards, tmp_path, "half", epochs=2, train_num_samples=16, save_frequency=1))
    (tmp_path / "half" / "checkpoints" / "epoch_2.pt").unlink()
    train(train_flags(shards, tmp_path, "half", epochs=2, train_num_samples=16, resume="latest"))
    again = torch.load(tmp_path / "half" / "checkpoints" / "epoch_2.pt")
    for key, value in last[AVERAGE].items():
        torch.testing.assert_close(again[AVERAGE][key], value)


def test_without_averages_there_are_none(shards, tmp_path):
    train(train_flags(shards, tmp_path, "none", epochs=1, train_num_samples=8, ema_decay=0))
    assert AVERAGE not in torch.load(tmp_path / "none" / "checkpoints" / "epoch_1.pt")


def test_groups_have_their_rates_in_a_run_and_the_log_its_entropy(shards, tmp_path):
    train(train_flags(shards, tmp_path, "run", epochs=1, train_num_samples=16, lr=0.01, head_lr=0.05, layer_decay=0.5))
    groups = torch.load(tmp_path / "run" / "checkpoints" / "epoch_1.pt")["optimizer"]["param_groups"]
    assert {group["lr_scale"] for group in groups} >= {5.0, 1.0, 0.5}
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert all(0 < line["figures"]["revision_entropy"] <= 1.0001 for line in lines)
    assert all(name.endswith("_loss") for line in lines for name in line["terms"])


@pytest.mark.parametrize("wrong", [{"layer_decay": 0}, {"layer_decay": 1.5}, {"ema_decay": 1}, {"warmup_share": 2}])
def test_shares_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="--layer-decay"):
        HybridPretraining(elite_data="e", **wrong)


def test_rates_of_groups_with_another_optimizer_are_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="--head-lr and --layer-decay are AdamW's"):
        train(train_flags(shards, tmp_path, "lamb", opt="timm/lamb", head_lr=0.1))


def test_a_run_that_began_with_one_rate_goes_on_with_it(shards, tmp_path):
    train(train_flags(shards, tmp_path, "run", epochs=1, train_num_samples=8))
    path = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    checkpoint = torch.load(path)
    model = open_clip.create_model(MODEL, pretrained_text=False)
    plain = [
        p
        for n, p in model.named_parameters()
        if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n
    ]
    rest = [p for p in model.parameters() if all(p is not other for other in plain)]
    checkpoint["optimizer"] = torch.optim.AdamW([{"params": plain}, {"params": rest}]).state_dict()
    torch.save(checkpoint, path)
    for epochs in (2, 3):  # nor does it forget that at the second time
        train(train_flags(shards, tmp_path, "run", epochs=epochs, train_num_samples=8, resume="latest"))
        last = torch.load(tmp_path / "run" / "checkpoints" / f"epoch_{epochs}.pt")
        assert len(last["optimizer"]["param_groups"]) == 2
