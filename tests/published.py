"""Small models with the tensor names and the forward passes that other projects publish, to compare imports with.

The image towers have timm's names here too; `timm` knows them under names of this file, so that they can be asked for.
"""

from functools import partial

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

PATCH, SIDE, WIDTH = 8, 32, 128
PLACES = (SIDE // PATCH) ** 2


class Block(nn.Module):
    """A transformer's block as timm, MAE, DINOv2 and MIRAGE have it; with `scale` as DINOv2 has it."""

    def __init__(self, scale=False):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
        for name in ("ls1", "ls2") if scale else ():
            self.add_module(name, nn.ParameterDict({"gamma": nn.Parameter(torch.rand(WIDTH))}))

    def forward(self, tokens):
        tokens = tokens + self.scaled("ls1", self.attend(self.norm1(tokens)))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.scaled("ls2", self.mlp["fc2"](hidden))

    def scaled(self, name, change):
        scale = getattr(self, name, None)
        return change if scale is None else change * scale["gamma"]

    def attend(self, tokens):
        batch, count, _ = tokens.shape
        queries, keys, values = self.attn["qkv"](tokens).view(batch, count, 3, 2, -1).permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5).softmax(dim=-1)
        return self.attn["proj"]((weights @ values).transpose(1, 2).reshape(batch, count, -1))


class ViT(nn.Module):
    """A masked autoencoder's encoder, or DINOv2's: a class token in front."""

    def __init__(self, scale=False):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + PLACES, WIDTH))
        self.blocks = nn.Sequential(Block(scale), Block(scale))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def tokens(self, images):
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(len(images), -1, -1)
        return self.blocks(torch.cat([first, patches], dim=1) + self.pos_embed)

    def forward(self, images):
        return self.norm(self.tokens(images))[:, 0]


class Mirage(nn.Module):
    """MIRAGE's encoder for B-scans: one channel, positions as a map, a global token behind the patches."""

    def __init__(self):
        super().__init__()
        adapter = {"proj": nn.Conv2d(1, WIDTH, PATCH, PATCH)}
        self.input_adapters = nn.ModuleDict({"bscan": nn.ModuleDict(adapter)})
        self.input_adapters["bscan"].register_parameter(
            "pos_emb", nn.Parameter(torch.randn(1, WIDTH, SIDE // PATCH, SIDE // PATCH))
        )
        self.global_tokens = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.encoder = nn.Sequential(Block(), Block())

    def forward(self, images):
        adapter = self.input_adapters["bscan"]
        patches = (adapter["proj"](images[:, :1]) + adapter.pos_emb).flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([patches, self.global_tokens.expand(len(images), -1, -1)], dim=1))
        return nn.functional.layer_norm(tokens, (WIDTH,), eps=1e-6)[:, :-1].mean(dim=1)


class LoRA(nn.Module):
    """RetiZero's qkv: what LoRA adds to queries and values."""

    def __init__(self, qkv):
        super().__init__()
        self.qkv = qkv
        for part in "qv":
            self.add_module(f"linear_a_{part}", nn.Linear(WIDTH, 4, bias=False))
            self.add_module(f"linear_b_{part}", nn.Linear(4, WIDTH, bias=False))

    def forward(self, tokens):
        qkv = self.qkv(tokens)
        qkv[:, :, :WIDTH] += self.linear_b_q(self.linear_a_q(tokens))
        qkv[:, :, -WIDTH:] += self.linear_b_v(self.linear_a_v(tokens))
        return qkv


def randomise(module):
    """Other values for the norms' weights, which are one and zero at first and so would hide what is mixed up."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias, 0, 0.2)
    return module.eval()


_SHAPE = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
_CLIP = {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), "act_layer": "quick_gelu"}


def _register(name, **settings):
    def build(pretrained=False, **options):
        for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(unused, None)
        return VisionTransformer(**{**_SHAPE, **settings, **options})

    build.__name__, build.__module__ = name, __name__
    default_cfgs[name] = _CONFIGS[name]
    register_model(build)


default_cfgs = {}
_NAMES = ("published_vit", "published_dinov2", "published_registers", "published_clip")
_CONFIGS = generate_default_cfgs(
    {name: {"input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.5,) * 3} for name in _NAMES}
)
if not timm.is_model(_NAMES[0]):
    _register("published_vit")
    _register("published_dinov2", init_values=1e-5)
    _register("published_registers", init_values=1e-5, reg_tokens=4, no_embed_class=True)
    _register("published_clip", **_CLIP)
