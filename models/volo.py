"""VOLO, the Vision Outlooker (arXiv 2106.13112): convolutional stem, outlookers, transformers, class attention.

Parameter names are those of the authors' code, so that published checkpoints load unchanged. Features travel as
[B, H, W, C] maps until the class attention, and as [B, tokens, C] from there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.outlook import OutlookAttention


@dataclass(frozen=True)
class VoloConfig:
    """What a VOLO is made of. Stages are the outlookers and three of transformers; class attention follows the last."""

    layers: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    mlp_ratio: float = 3.0
    stem_width: int = 64
    patch_size: int = 8
    class_attention_layers: int = 2
    image_size: int = 224
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.image_size < self.token_size or self.image_size % self.token_size:
            raise ValueError(f"image size {self.image_size} is not a multiple of {self.token_size} pixels")
        if self.num_classes < 1:
            raise ValueError(f"a model of {self.num_classes} classes has nothing to say")
        if len(set(self.dims[1:])) != 1:
            raise ValueError(f"stages 2 to 4 share one width, got dims {self.dims}")
        if any(dim % heads for dim, heads in zip(self.dims, self.heads, strict=True)):
            raise ValueError(f"dims {self.dims} are not multiples of heads {self.heads}")

    @property
    def token_size(self) -> int:
        """Pixels on a side of the square that one token stands for, after the downsampling."""
        return 2 * self.patch_size

    @property
    def grid_size(self) -> int:
        """Tokens on a side."""
        return self.image_size // self.token_size


VARIANTS = {
    "volo_d1": VoloConfig(layers=(4, 4, 8, 2), dims=(192, 384, 384, 384), heads=(6, 12, 12, 12)),
    "volo_d2": VoloConfig(layers=(6, 4, 10, 4), dims=(256, 512, 512, 512), heads=(8, 16, 16, 16)),
    "volo_d3": VoloConfig(layers=(8, 8, 16, 4), dims=(256, 512, 512, 512), heads=(8, 16, 16, 16)),
    "volo_d4": VoloConfig(layers=(8, 8, 16, 4), dims=(384, 768, 768, 768), heads=(12, 16, 16, 16)),
    "volo_d5": VoloConfig(
        layers=(12, 12, 20, 4),
        dims=(384, 768, 768, 768),
        heads=(12, 16, 16, 16),
        mlp_ratio=4.0,
        stem_width=128,
    ),
    # ours, for pictures of 64 pixels: patches half as large, so that stage 1 still sees 16 x 16 of them
    "volo_tiny": VoloConfig(
        layers=(2, 2, 4, 1),
        dims=(96, 192, 192, 192),
        heads=(3, 6, 6, 6),
        stem_width=32,
        patch_size=4,
        image_size=64,
        num_classes=200,
    ),
    "volo_nano": VoloConfig(
        layers=(2, 1, 2, 1),
        dims=(64, 160, 160, 160),
        heads=(2, 5, 5, 5),
        stem_width=32,
        patch_size=4,
        image_size=64,
        num_classes=200,
    ),
}


class Heads(NamedTuple):
    """What the two heads say: ``cls`` [B, classes] of the class token, ``aux`` [B, patches, classes] of every patch."""

    cls: Tensor
    aux: Tensor

    def logits(self) -> Tensor:
        """The model's answer [B, classes]: the class token's word, and half of the loudest patch's."""
        return self.cls + 0.5 * self.aux.amax(dim=1)


class PatchEmbed(nn.Module):
    """Stem: x [B, 3, S, S] -> patches [B, S/p, S/p, C], by three convolutions at half size and a projection."""

    def __init__(self, stem_width: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, stem_width, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem_width, stem_width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem_width, stem_width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
        )
        self.proj = nn.Conv2d(stem_width, dim, kernel_size=patch_size // 2, stride=patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(self.conv(x))
        return patches.permute(0, 2, 3, 1)


class Mlp(nn.Module):
    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all places of a map: x [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)  # B, n, C
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # B, n, 3, heads, d
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B, heads, n, d
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # B, n, heads, d
        return self.proj(mixed.reshape(x.shape))


class ClassAttention(nn.Module):
    """The class token alone asks, it and all patches answer: tokens [B, 1 + n, C] -> [B, 1, C]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.q = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        q = self.q(tokens[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # B, heads, 1, d
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # B, heads, 1 + n, d
        mixed = F.scaled_dot_product_attention(q, k, v)  # B, heads, 1, d
        return self.proj(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Pre-norm residual block around a mixing layer: an outlooker or a transformer, by what mixes the places."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClassBlock(nn.Module):
    """Pre-norm residual block that updates only the class token of tokens [B, 1 + n, C]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        cls = tokens[:, :1]
        cls = cls + self.attn(self.norm1(tokens))
        cls = cls + self.mlp(self.norm2(cls))
        return torch.cat([cls, tokens[:, 1:]], dim=1)


class Downsample(nn.Module):
    """Halves the map: x [B, H, W, C] -> [B, H/2, W/2, D]."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.proj(x.permute(0, 3, 1, 2))
        return halved.permute(0, 2, 3, 1)


class Volo(nn.Module):
    """Vision Outlooker: normalised pictures x [B, 3, S, S] -> logits [B, classes]."""

    def __init__(self, config: VoloConfig) -> None:
        super().__init__()
        self.config = config
        dims, grid = config.dims, config.grid_size
        self.patch_embed = PatchEmbed(config.stem_width, config.patch_size, dims[0])
        self.network = nn.ModuleList(
            [
                self._stage(0, OutlookAttention),
                Downsample(dims[0], dims[1]),
                self._stage(1, Attention),
                self._stage(2, Attention),
                self._stage(3, Attention),
            ]
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dims[1]))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[3]))
        self.post_network = nn.ModuleList(
            ClassBlock(dims[3], config.heads[3], config.mlp_ratio) for _ in range(config.class_attention_layers)
        )
        self.norm = nn.LayerNorm(dims[3])
        self.head = nn.Linear(dims[3], config.num_classes)
        self.aux_head = nn.Linear(dims[3], config.num_classes)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def _stage(self, index: int, attention: type[OutlookAttention] | type[Attention]) -> nn.Sequential:
        dim, heads, ratio = self.config.dims[index], self.config.heads[index], self.config.mlp_ratio
        return nn.Sequential(*(Block(dim, attention(dim, heads), ratio) for _ in range(self.config.layers[index])))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.tokens(x)).logits()

    def heads(self, tokens: Tensor) -> Heads:
        """Both heads' scores of ``tokens``, before they are joined into logits: what training needs."""
        return Heads(cls=self.head(tokens[:, 0]), aux=self.aux_head(tokens[:, 1:]))

    def evidence(self, tokens: Tensor, classes: Tensor) -> Tensor:
        """How loudly each patch speaks for some classes, [B, K] -> the auxiliary head's scores [B, K, G, G].

        The loudest patch's is what ``forward`` has added to the class's logit, by half.
        """
        weight, bias = self.aux_head.weight[classes], self.aux_head.bias[classes]  # B, K, C and B, K
        maps = weight @ tokens[:, 1:].transpose(1, 2) + bias[..., None]  # B, K, patches
        return maps.unflatten(2, (self.config.grid_size, self.config.grid_size))

    def tokens(self, x: Tensor) -> Tensor:
        """The class token, then one token a patch, normalised: [B, 1 + patches, C]."""
        patches = self.features(x).flatten(1, 2)  # B, patches, C
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        for block in self.post_network:
            tokens = block(tokens)
        return self.norm(tokens)

    def features(self, x: Tensor) -> Tensor:
        """The last transformer stage's map, before the class attention: [B, S/2p, S/2p, C]."""
        outlookers, downsample, *transformers = self.network
        x = downsample(outlookers(self.patch_embed(x))) + self.pos_embed
        for stage in transformers:
            x = stage(x)
        return x


def _initialise(module: nn.Module) -> None:
    """The authors' start: small truncated normal weights and zero biases in linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
