"""What makes a CPU fast: kept memory, convolutions channels-last, bfloat16 for what multiplies matrices."""

import subprocess
import sys

import pytest
import torch

from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.keepfit import KeepFIT
from keepfit_clip.training.hybrid.params import parse_keepfit_args
from keepfit_clip.training.text_stage.settings import TextPretraining

_FAULTS = """
import resource, sys
import torch
from keepfit_clip.processor import keep_freed_memory
kept = "keep" in sys.argv and keep_freed_memory()
torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(16 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and pages that a program asked the system for while it made tensors again and again."""
    command = [sys.executable, "-c", _FAULTS, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    kept, count = faults("keep")
    as_it_comes = faults()[1]
    assert kept
    assert count < as_it_comes / 2
    assert not faults("keep", MALLOC_MMAP_THRESHOLD_="65536")[0]


def trunk_weights(name: str) -> list[torch.Tensor]:
    visual = KeepFIT(ModelConfig.named(name).with_text(hf_model_pretrained=False)).visual
    return [m.weight for m in visual.trunk.modules() if isinstance(m, torch.nn.Conv2d)]


def test_convolutions_are_channels_last_and_patches_as_they_were():
    convolutions = [w for w in trunk_weights("keepfit-v2-lite") if w.shape[1] > 1 and w.shape[2] > 1]
    assert convolutions
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    assert all(w.is_contiguous() for w in trunk_weights("keepfit-v2-vit-b-16"))


def test_autocast_of_a_cpu_leaves_convolutions_in_float32():
    model = KeepFIT(ModelConfig.named("keepfit-v2-lite").with_text(hf_model_pretrained=False)).eval()
    images, ids = torch.randn(1, 3, 224, 224), torch.tensor([[101, 2000, 102]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.visual.feature_map(images).dtype == torch.float32
        assert model.text.transformer(ids).last_hidden_state.dtype == torch.float32  # a norm's
        assert model.text_decoder.hidden_states(ids, model.visual.encode(images).tokens) is not None
        assert model.encode_text(ids).dtype == torch.bfloat16


@pytest.mark.parametrize(("amx", "precision"), [(True, "amp_bf16"), (False, "fp32")])
def test_a_processor_with_amx_trains_in_bfloat16(monkeypatch, amx, precision):
    for stage in ("hybrid", "text_stage"):
        monkeypatch.setattr(f"keepfit_clip.training.{stage}.settings.has_fast_bfloat16", lambda: amx)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    argv = ["--public-data", "x", "--preset", "contrastive", "--device", "cpu"]
    settings, _ = parse_keepfit_args(argv)
    assert settings.precision == precision
    assert parse_keepfit_args([*argv, "--precision", "fp32"])[0].precision == "fp32"
    assert TextPretraining(init="x").bfloat16 == amx
    assert not TextPretraining(init="x", precision="fp32").bfloat16
