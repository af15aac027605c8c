"""Any timm backbone works as an image tower: feature, tokens, locking, another image size."""

import pytest
import torch

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.config import VisionConfig
from keepfit_clip.model.image_tower import ImageTower, place_features

BACKBONES = [
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    "test_vit3",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_050",
    pytest.param("vgg11", marks=pytest.mark.long),
]


def tower(name, size=64, **options):
    torch.manual_seed(0)
    return ImageTower(VisionConfig(name, image_size=size, **options), 16, {}, {})


@pytest.mark.parametrize("name", BACKBONES)
def test_feature_and_tokens(name):
    size = 224 if name.startswith(("swin", "vgg")) else 64
    built = tower(name, size).eval()
    encoding = built.encode(torch.randn(2, 3, size, size))
    feature, tokens = encoding.features, encoding.tokens
    assert feature.shape == (2, 16)
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == built.token_dim
    assert int(tokens.shape[1] ** 0.5) ** 2 == tokens.shape[1]  # a square map, no class token in it
    (feature.sum() + tokens.sum()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in built.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_tokens_keep_their_place(name):
    built = tower(name).eval()
    image = torch.zeros(1, 3, 64, 64)
    marked = image.clone()
    marked[..., -8:, -8:] = 3.0  # bottom right
    change = (built.encode(marked).tokens - built.encode(image).tokens).norm(dim=-1)[0]
    assert change.argmax() == len(change) - 1


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_locking_all_or_all_but_the_last_groups(name):
    locked = tower(name)
    locked.lock(freeze_bn_stats=True)
    assert not any(p.requires_grad for p in locked.trunk.parameters())
    assert locked.proj.weight.requires_grad
    before = {key: value.clone() for key, value in locked.trunk.state_dict().items()}
    locked.train()
    locked(torch.randn(4, 3, 64, 64))
    for key, value in locked.trunk.state_dict().items():
        assert torch.equal(before[key], value), key
    partly = tower(name)
    partly.lock(unlocked_groups=1)
    free = [p.requires_grad for p in partly.trunk.parameters()]
    assert any(free)
    assert not all(free)


def test_a_checkpoint_of_another_image_size_loads_into_a_vit():
    small, large = tower("test_vit", 64), tower("test_vit", 128)
    large.load_state_dict(small.state_dict())
    places = [
        built.encode(torch.randn(1, 3, side, side)).tokens.shape[1] for built, side in ((large, 128), (small, 64))
    ]
    assert places[0] == 4 * places[1]


def test_normalised_trunk_feature():
    built = tower("test_resnet", normalize_trunk=True).eval()
    images = torch.randn(2, 3, 64, 64)
    pooled = built.trunk(images)
    expected = (pooled / pooled.norm(dim=1, keepdim=True)) @ built.proj.weight.T
    torch.testing.assert_close(built(images), expected)


def test_unknown_backbone():
    with pytest.raises(ConfigError, match="timm cannot build"):
        tower("resnet_of_dreams")


def test_place_features_tell_every_cell_apart_whatever_the_grid():
    places = place_features(4, 7)
    assert places.shape == (4, 7, 16)
    assert torch.unique(places.flatten(0, 1), dim=0).shape[0] == 28
    # The same place in the image has the same features on a finer grid: cell 1 of 3 is the middle, as is cell 2 of 5.
    torch.testing.assert_close(place_features(3, 3)[1, 1], place_features(5, 5)[2, 2])


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_tokens_end_in_their_place(name):
    size = 224 if name.startswith("swin") else 64
    tokens = tower(name, size).eval().encode(torch.randn(2, 3, size, size)).tokens
    side = int(tokens.shape[1] ** 0.5)
    torch.testing.assert_close(tokens[1, :, -16:], place_features(side, side).flatten(0, 1))
