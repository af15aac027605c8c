"""What belongs to a training step: presets, the caption schedule, frozen text, and losses that are not finite."""

import math

import pytest
import torch
from torch import nn

from keepfit_clip.data.stream.batch import encode_keys, sample_keys
from keepfit_clip.errors import ConfigError, NonFiniteLossError
from keepfit_clip.training.hybrid.guard import NonFiniteGuard
from keepfit_clip.training.hybrid.loss_log import LossLog, read_losses
from keepfit_clip.training.hybrid.objective import CaptionSchedule, frozen
from keepfit_clip.training.hybrid.params import parse_keepfit_args
from keepfit_clip.training.hybrid.step_loss import StepLoss

FLAGS = ["--public-data", "p", "--elite-data", "e"]


@pytest.mark.parametrize(
    ("preset", "elite", "revision", "caption", "without_decoder"),
    [("contrastive", None, 0, 0, True), ("v1", "e", 100, 0, True), ("v2", "e", 100, 1, False)],
)
def test_presets_are_the_arms_of_the_papers_ablation(preset, elite, revision, caption, without_decoder):
    settings, _ = parse_keepfit_args([*FLAGS, "--preset", preset])
    assert (settings.elite_data, settings.revision_weight, settings.caption_weight) == (elite, revision, caption)
    assert settings.without_decoder == without_decoder


def test_a_flag_wins_over_the_preset():
    settings, _ = parse_keepfit_args([*FLAGS, "--preset", "v1", "--caption-weight", "2", "--revision-weight", "3"])
    assert (settings.caption_weight, settings.revision_weight, settings.without_decoder) == (2, 3, False)
    with pytest.raises(ConfigError, match="public data only"):
        parse_keepfit_args(["--elite-data", "e", "--preset", "contrastive"])


def test_caption_schedules_by_hand():
    linear = CaptionSchedule("linear", 0.0, 2.0, steps=4)
    assert [linear(step) for step in (0, 1, 4, 9)] == [0, 0.5, 2, 2]
    falling = CaptionSchedule("cosine", 3.0, 1.0, steps=2)
    assert [falling(step) for step in (0, 1, 2)] == pytest.approx([3, 2, 1])
    assert CaptionSchedule("constant", 0.0, 2.0, steps=4)(0) == 2
    with pytest.raises(ConfigError, match="at least 1"):
        CaptionSchedule("linear", 0.0, 1.0, steps=0)


def test_keys_travel_as_bytes():
    keys = ["0123456789abcdef0123", "short", "x" * 40]
    assert sample_keys(encode_keys(keys)) == [keys[0], "short", "x" * 32]


class Net(nn.Module):
    """A BatchNorm, whose statistics a bad batch spoils, and a layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(self.norm(x))


def outputs_of(y):
    keys = [f"key{number}" for number in range(len(y))]
    return {"image_features": y, "sample_key": encode_keys(keys)}


def take_steps(batches, allowed, net, left_out=lambda number: False):
    """Trains on batches under a guard, as open_clip's loop would; a gradient scaler may leave out some steps."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    guard = NonFiniteGuard(net, optimizer, allowed)
    for number, x in enumerate(batches):
        optimizer.zero_grad()
        y = net(x)
        terms = guard.check({"some_loss": y.square().mean()}, outputs_of(y), f"epoch 0, step {number + 1}")
        sum(terms.values()).backward()
        if not left_out(number):
            optimizer.step()
        guard.end_step()
    return guard


def test_a_skipped_step_leaves_weights_moments_and_statistics_as_they_were():
    torch.manual_seed(1)
    good = [torch.randn(4, 3) for _ in range(4)]
    bad = good[0].clone()
    bad[2, 1] = math.inf
    plain, guarded = Net(), Net()
    take_steps(good, 0, plain)
    guard = take_steps([good[0], bad, good[1], good[2], bad, good[3]], 2, guarded)
    assert guard.skipped == 2
    for (name, one), other in zip(plain.state_dict().items(), guarded.state_dict().values(), strict=True):
        if name != "norm.num_batches_tracked":
            assert torch.equal(one, other), name


def test_a_skipped_last_step_that_the_scaler_left_out_spoils_no_statistics():
    net = Net()
    take_steps([torch.randn(4, 3), torch.full((4, 3), math.nan)], 1, net, left_out=lambda number: number == 1)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


def test_one_bad_step_more_than_allowed_stops():
    bad = torch.full((4, 3), math.nan)
    with pytest.raises(NonFiniteLossError, match="epoch 0, step 2"):
        take_steps([bad, bad], 1, Net())


def test_the_message_names_step_term_and_samples():
    guard = NonFiniteGuard(Net(), torch.optim.SGD(Net().parameters(), lr=0.1))
    features = torch.ones(4, 2)
    features[1] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"epoch 3, step 7: .*some_loss nan, other_loss 2.*samples key1\. "):
        guard.check(
            {"some_loss": torch.tensor(math.nan), "other_loss": torch.tensor(2.0)},
            outputs_of(features),
            "epoch 3, step 7",
        )
    with pytest.raises(NonFiniteLossError, match=r"inf\), though the features of every sample are"):
        guard.check({"some_loss": torch.tensor(math.inf)}, outputs_of(torch.ones(4, 2)), "epoch 0, step 1")
    with pytest.raises(NonFiniteLossError, match="any of the 4 samples"):
        guard.check({"a_loss": torch.tensor(math.nan)}, outputs_of(torch.full((4, 2), math.nan)), "epoch 0, step 1")


def test_frozen_parameters_stay_and_the_others_step_as_if_they_were_alone():
    torch.manual_seed(0)
    together, alone = nn.Linear(2, 2), nn.Linear(2, 2)
    text = nn.Linear(2, 2)
    alone.load_state_dict(together.state_dict())
    before = [p.clone() for p in text.parameters()]
    optimizer = torch.optim.AdamW([*together.parameters(), *text.parameters()], lr=0.1, weight_decay=0.5)
    reference = torch.optim.AdamW(alone.parameters(), lr=0.1, weight_decay=0.5)
    x, active = torch.randn(5, 2), True
    with frozen(text, optimizer, lambda: active):
        for _ in range(3):
            optimizer.zero_grad()
            (together(x).square().mean() + 100 * text(x).square().mean()).backward()
            torch.nn.utils.clip_grad_norm_([*together.parameters(), *text.parameters()], 0.1)
            optimizer.step()
            reference.zero_grad()
            alone(x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
            reference.step()
        for old, new in zip(before, text.parameters(), strict=True):
            assert torch.equal(old, new)
        for one, other in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other)
        active = False
        optimizer.zero_grad()
        text(x).square().mean().backward()
        optimizer.step()
        assert not torch.equal(before[0], next(text.parameters()))


def test_a_step_of_several_batches_counts_once(tmp_path):
    weights = []

    class Loss:
        caption_weight = None

        def __init__(self):
            self.figures = {"a_figure": torch.tensor(0.5), "none": None}

        def __call__(self, **_):
            weights.append(self.caption_weight)
            return {"a_loss": torch.tensor(1.0)}

    guard = NonFiniteGuard(Net(), torch.optim.SGD(Net().parameters(), lr=0.1))
    log = LossLog(tmp_path, epoch=1, steps=3)
    loss = StepLoss(Loss(), CaptionSchedule("linear", 0, 8, 8), guard, epoch=1, steps=3, calls_per_step=2, log=log)
    for _ in range(4):
        loss(image_features=torch.ones(2, 2))
    assert weights == [3, 3, 4, 4]
    assert loss.step == 4
    assert [line["step"] for line in read_losses(tmp_path)] == [1, 2]
    assert read_losses(tmp_path)[0]["figures"] == {"a_figure": 0.5}


def test_accumulated_batches_bring_the_scale_its_gradient_once():
    class Loss:
        def __init__(self):
            self.figures = {}

        def __call__(self, logit_scale, **_):
            return {"a_loss": 3 * logit_scale}

    scale = torch.tensor(2.0, requires_grad=True)
    guard = NonFiniteGuard(Net(), torch.optim.SGD(Net().parameters(), lr=0.1))
    loss = StepLoss(Loss(), CaptionSchedule("constant", 1, 1, 1), guard, epoch=0, steps=1, calls_per_step=4)
    for _ in range(4):
        terms = loss(logit_scale=scale, image_features=torch.ones(2, 2))
        assert terms["a_loss"] == 6
        terms["a_loss"].backward()
    assert scale.grad == 3
