"""Every registered model: shapes, gradients in every parameter, and the same ones with activation checkpointing."""

import open_clip
import pytest
import torch
from transformers import BatchEncoding

from keepfit_clip import HybridLoss, list_keepfit_models

SIZE = 64  # pixels; the towers' own sizes cost more and show no more
LENGTH = 12  # tokens


def batch_for(model):
    """Four images and texts, two of them elite; ids that every vocabulary has."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 2000, (4, LENGTH), generator=generator)
    ids[:, 0], ids[:, -2], ids[:, -1] = model.text.bos_id, model.text.eos_id, model.text.pad_id
    number = torch.arange(4)
    texts = {
        "input_ids": ids,
        "is_elite": torch.tensor([False, False, True, True]),
        "modality": torch.zeros(4, dtype=torch.long),
        "text_id": number,
        "category_ids": torch.cat([number[:, None], torch.full((4, 15), -1)], dim=1),
    }
    return torch.randn(4, 3, SIZE, SIZE, generator=generator), BatchEncoding(texts)


def step(model):
    """Output, losses and gradients of one step, with the same dropout masks each time."""
    model.zero_grad()
    torch.manual_seed(0)
    output = model(*batch_for(model))
    losses = HybridLoss()(**output)
    sum(losses.values()).backward()
    return output, losses, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.long
@pytest.mark.parametrize("name", list_keepfit_models())
def test_a_step_of_every_model_reaches_every_parameter_with_and_without_checkpointing(name):
    options = {"pretrained_text": False, "pretrained_image": False}
    model = open_clip.create_model(name, force_image_size=SIZE, **options).train()
    with (
        torch.no_grad()
    ):  # ResNets start with branches that are switched off, so that nothing before them has a gradient
        for parameter in model.parameters():
            if not parameter.any():
                parameter.fill_(0.1)
    output, losses, gradients = step(model)
    dim = model.visual.proj.out_features
    assert output["image_features"].shape == output["text_features"].shape == (4, dim)
    assert ("caption_nll_sum" in output) == (model.text_decoder is not None)
    assert all(torch.isfinite(value) for value in losses.values())
    for parameter, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), parameter
        # The key bias of an attention shifts all scores of a query alike: its true gradient is zero.
        assert gradient.abs().sum() > 0 or parameter.endswith(("key.bias", "k_proj.bias")), parameter
    model.set_grad_checkpointing()
    _, again, checkpointed = step(model)
    for key, value in losses.items():
        torch.testing.assert_close(again[key], value, msg=key)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter)
