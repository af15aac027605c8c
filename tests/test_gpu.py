"""On a GPU (`CUDA_VISIBLE_DEVICES=0 pytest -m gpu tests/test_gpu.py`): what the CPU computes, in every way to run it.

Where there is no GPU, all but the one that needs two processes on it compare the CPU with itself.
"""

import open_clip
import pytest
import torch
from transformers import BatchEncoding

from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.model.loss import HybridLoss
from tests.conftest import MODEL
from tests.test_loss import WITH_BATCH_NORM, assert_two_are_as_one, global_batch, step

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _exact_products():
    """Matrix products of float32 in float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def of_another_backbone(name: str) -> dict:
    return {"vision_cfg": {**open_clip.get_model_config(MODEL)["vision_cfg"], "timm_model_name": name}}


def assert_same_gradients(found: dict, expected: dict, rtol: float) -> None:
    """Each is as near as rounding allows; a gradient that is nothing but rounding counts against the whole."""
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-4 * total)
        assert error < rtol, (name, float(error))


@pytest.mark.parametrize("config", [None, of_another_backbone("resnet10t")], ids=["vit", "convolutions"])
def test_terms_and_gradients_are_those_of_the_cpu(config):
    terms, gradients = step(slice(None), device=DEVICE, config=config)
    expected_terms, expected = step(slice(None), config=config)
    torch.testing.assert_close(terms.cpu(), expected_terms, rtol=1e-4, atol=1e-6)
    assert_same_gradients(gradients, expected, rtol=2e-3)


def terms_and_gradients(bfloat16: bool, compiled: bool = False) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(0)
    model = KeepFIT(ModelConfig.named(MODEL)).train().to(DEVICE)
    images, texts = global_batch()
    texts = BatchEncoding(texts).to(DEVICE)
    forward = torch.compile(model) if compiled else model
    with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
        terms = HybridLoss()(**forward(images.to(DEVICE), texts))
    sum(terms.values()).backward()
    return torch.stack([term.detach() for term in terms.values()]), {n: p.grad for n, p in model.named_parameters()}


def test_bfloat16_is_near_float32():
    terms, gradients = terms_and_gradients(bfloat16=True)
    expected_terms, expected = terms_and_gradients(bfloat16=False)
    torch.testing.assert_close(terms, expected_terms, rtol=2e-2, atol=2e-2)
    # Single small gradients are coarse; all of them together point the same way.
    found, wanted = (torch.cat([g.flatten() for g in side.values()]) for side in (gradients, expected))
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.98


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch, looking at its own tensors
def test_a_compiled_model_computes_what_an_eager_one_does():
    terms, gradients = terms_and_gradients(bfloat16=False, compiled=True)
    expected_terms, expected = terms_and_gradients(bfloat16=False)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients, expected, rtol=2e-3)


def test_captions_are_the_same_with_and_without_the_cache():
    torch.manual_seed(0)
    model = KeepFIT(ModelConfig.named(MODEL)).eval().to(DEVICE)
    images = torch.randn(4, 3, 64, 64, device=DEVICE)
    cached, plain = (model.generate(images, use_cache=use, max_length=12, min_length=12) for use in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.skipif(DEVICE == "cpu", reason="SyncBatchNorm is made for GPUs")
def test_batch_norm_over_two_processes_gives_the_gradients_of_one(tmp_path):
    """Two gloo processes share the GPU."""
    config = of_another_backbone(WITH_BATCH_NORM)
    assert_two_are_as_one(tmp_path, [{"device": "cuda", "config": config}], rtol=1e-3)
