"""The objective on numbers small enough to check by hand, and the same on one process and on two."""

import math
import os

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from open_clip_train.params import parse_args as upstream_parse_args
from transformers import BatchEncoding

from keepfit_clip.data.stream.batch import encode_keys
from keepfit_clip.errors import NonFiniteLossError
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.loss import HybridLoss, soft_clip_loss_sum
from keepfit_clip.model.pairs import positive_pairs
from keepfit_clip.model.revision import revised_text_features
from keepfit_clip.training.hybrid.guard import NonFiniteGuard
from keepfit_clip.training.hybrid.params import parse_keepfit_args, upstream_argv
from keepfit_clip.training.hybrid.run import _Run
from tests.conftest import MODEL


def padded(*rows):
    return torch.tensor([[*row, *[-1] * (16 - len(row))] for row in rows])


def test_positive_pairs_compare_what_is_said_with_what_is_true():
    images = padded([1, 2], [1], [3])
    assert positive_pairs(images, torch.tensor([1, 2, 3])).tolist() == [
        [True, True, False],
        [True, False, False],
        [False, False, True],
    ]


def test_soft_clip_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3), 50.0]])
    positive, allowed = torch.tensor([[True, True, True]]), torch.tensor([True, True, False])
    # Over the two allowed columns the probabilities are 1/4 and 3/4, the target is 1/2 and 1/2.
    expected = -(0.5 * math.log(1 / 4) + 0.5 * math.log(3 / 4))
    assert soft_clip_loss_sum(logits, positive, allowed).item() == pytest.approx(expected, rel=1e-6)


def model_output(image, text, elite, text_id, category_ids, modality=None, scale=1.0):
    size = len(image)
    return {
        "image_features": image,
        "text_features": text,
        "logit_scale": torch.tensor(scale),
        "is_elite": torch.tensor(elite),
        "modality": torch.zeros(size, dtype=torch.long) if modality is None else torch.tensor(modality),
        "text_id": torch.tensor(text_id),
        "category_ids": category_ids,
        "revision_query": image[:, None],
        "revision_key": image[:, None],
        "revision_value": text[:, None],
    }


def test_distinct_texts_give_the_stock_clip_loss():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    output = model_output(image, text, [True] * 6, list(range(6)), padded(*[[i] for i in range(6)]), scale=5.0)
    ours = HybridLoss(revision_weight=0)(**output)["elite_contrastive_loss"]
    torch.testing.assert_close(ours, open_clip.ClipLoss()(image, text, torch.tensor(5.0)))


def test_images_of_one_category_are_positives_and_other_kinds_are_no_negatives():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    text[1] = text[0]
    # Two public images of category 7 with one text; their perfect target is one half each.
    output = model_output(image, text, [False, False, True, True], [7, 7, 8, 9], padded([7], [7], [8], [9]))
    terms = HybridLoss()(**output)
    row = -math.log(0.5)  # both texts are equal, so each image gives each one half
    columns = (image[:2] @ text[:2].T).T.log_softmax(dim=1).mul(-0.5).sum()
    assert terms["public_contrastive_loss"].item() == pytest.approx((2 * row + columns.item()) / 2 / 2, rel=1e-5)
    joint = HybridLoss(joint_contrast=True)(**output)
    assert "public_contrastive_loss" not in joint
    assert joint["contrastive_loss"] > 0


def test_revision_attends_within_the_modality_only():
    query = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    key = torch.tensor([[[100.0, 0.0]], [[0.0, 100.0]], [[100.0, 0.0]]])
    value = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
    revised, found = revised_text_features(query, key, value, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    assert revised[:, 0].tolist() == pytest.approx([1.0, 3.0, 0.0])
    assert found.tolist() == [True, True, False]


def test_revision_sums_over_heads():
    query = torch.tensor([[[1.0], [1.0]]])
    key, value = torch.zeros(2, 2, 1), torch.tensor([[[1.0], [10.0]], [[3.0], [30.0]]])
    revised, _ = revised_text_features(query, key, value, torch.tensor([0]), torch.tensor([0, -1]))
    assert revised.item() == pytest.approx(2.0 + 20.0)  # equal scores: the mean of each head's values


def test_caption_loss_is_the_mean_over_all_tokens_not_over_captions():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(3, 8), dim=1) for _ in range(2))
    output = model_output(image, text, [False, True, True], [1, 2, 3], padded([1], [2], [3]))
    output["caption_nll_sum"], output["caption_tokens"] = torch.tensor([9.0, 2.0, 8.0]), torch.tensor([3, 1, 4])
    terms = HybridLoss(caption_weight=2.0, public_caption_weight=0.5)(**output)
    assert terms["caption_loss"].item() == pytest.approx(2.0 * (2 + 8) / (1 + 4))
    assert terms["public_caption_loss"].item() == pytest.approx(0.5 * 9 / 3)


def test_autocast_does_not_coarsen_the_loss():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    output = model_output(
        image, text, [False] * 3 + [True] * 3, list(range(6)), padded(*[[i] for i in range(6)]), scale=100.0
    )
    plain = HybridLoss()(**output)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = HybridLoss()(**output)
    for name, term in plain.items():
        torch.testing.assert_close(mixed[name], term)


def global_batch():
    """Eight samples; each half, one rank's share, has public and elite ones of both modalities."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 40000, (8, 16), generator=generator)
    ids[:, 0], ids[:, 11] = 49406, 49407
    ids[:, 12:] = 0
    ids[2, 6], ids[2, 7:] = 49407, 0
    return torch.randn(8, 3, 64, 64, generator=generator), {
        "input_ids": ids,
        "is_elite": torch.tensor([False, True, True, False, True, False, False, False]),
        "modality": torch.tensor([0, 0, 2, 2, 2, 0, 2, -1]),
        "text_id": torch.tensor([1, 2, 3, 4, 2, 1, 5, 6]),
        "category_ids": padded([1], [2], [3], [4, 1], [2], [1, 5], [5], [6]),
    }


LOSS_FLAGS = ([], ["--local-loss"], ["--gather-with-grad"], ["--local-loss", "--gather-with-grad"])


def step(rows, distributed=False, flags=(), device="cpu", config=None):
    """Terms and gradients of the global batch's rows, with the loss that a run of these flags uses."""
    torch.manual_seed(0)
    config = ModelConfig.from_dict({**open_clip.get_model_config(MODEL), **(config or {})})
    model = KeepFIT(config).train().to(device)
    model.caption_public = True
    images, texts = global_batch()
    if config.vision.timm_model_name == WITH_BATCH_NORM and distributed:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if distributed else model
    texts = BatchEncoding({key: value[rows] for key, value in texts.items()}).to(device)
    argv = ["--public-data", "p", "--elite-data", "e", "--public-caption-weight", "0.3", "--name", "n", *flags]
    run = _Run(*parse_keepfit_args(argv), argv)
    loss = run.create_loss(upstream_parse_args(upstream_argv(run.settings, run.rest, "p")))
    terms = loss(**wrapped(images[rows].to(device), texts))
    sum(terms.values()).backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
    return torch.stack([term.detach() for term in terms.values()]), gradients


def bad_on_one_rank(rank):
    """What the guard says on each rank where one rank alone has a NaN."""
    features = torch.ones(2, 3)
    features[1] = math.nan if rank else 1.0
    guard = NonFiniteGuard(torch.nn.Linear(1, 1), None)
    outputs = {"image_features": features, "sample_key": encode_keys([f"rank{rank}a", f"rank{rank}b"])}
    with pytest.raises(NonFiniteLossError) as caught:
        guard.check({"a_loss": features.mean()}, outputs, "epoch 0, step 1")
    return str(caught.value)


def one_of_two(rank, port, folder, arguments):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    for number, more in enumerate(arguments):
        terms, gradients = step(slice(4 * rank, 4 * rank + 4), distributed=True, **more)
        dist.all_reduce(terms)
        if rank == 0:
            torch.save((terms.cpu() / 2, gradients), folder / f"{number}.pt")
    (folder / f"said{rank}.txt").write_text(bad_on_one_rank(rank))
    dist.destroy_process_group()


def assert_two_are_as_one(tmp_path, arguments, rtol=1e-5):
    port = 20000 + os.getpid() % 20000
    mp.start_processes(one_of_two, args=(port, tmp_path, arguments), nprocs=2, start_method="forkserver")
    for number, more in enumerate(arguments):
        two_terms, two_gradients = torch.load(tmp_path / f"{number}.pt")
        one_terms, one_gradients = step(slice(None), **more)
        torch.testing.assert_close(two_terms, one_terms.cpu(), rtol=rtol, atol=1e-6)
        assert set(two_gradients) == set(one_gradients)
        total = torch.stack([gradient.norm() for gradient in one_gradients.values()]).norm()
        for name, gradient in one_gradients.items():
            # An attention's key bias has no gradient but rounding; there the error counts against the whole.
            error = (two_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-5 * total)
            assert error < rtol, (name, more, float(error))


@pytest.mark.long
def test_two_processes_give_the_loss_and_gradients_of_one_whatever_the_flags(tmp_path):
    assert_two_are_as_one(tmp_path, [{"flags": flags} for flags in LOSS_FLAGS])
    said = [(tmp_path / f"said{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]  # every rank stops, and names the one sample
    assert "because of the samples rank1b. " in said[0]


WITH_BATCH_NORM = "resnet10t"
