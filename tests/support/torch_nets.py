"""Nets as PyTorch users write them: attention in its many spellings, and blocks around it.

Like `topologies`, each from a seed, with statistics and biases that show a wrong cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_parts import Head, conv_bn, randomise

Built = tuple[nn.Module, tuple[Tensor, ...]]


class PackedAttention(nn.Module):
    """timm's: one Linear for queries, keys and values, sizes from attributes and from the input."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = self.drop((q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1))
        x = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return cast(Tensor, self.proj(x))


class SeparateAttention(nn.Module):
    """Hugging Face's: three Linear layers, sizes from attributes, torch's fused attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_dim = num_heads, dim // num_heads, dim
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.p = 0.1

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        p = self.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2)
        return cast(Tensor, self.proj(mixed.reshape(*x.shape[:-1], self.all_head_dim)))


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention`, batch first or not, packed or with widths of keys and values."""

    def __init__(
        self, dim: int, num_heads: int, batch_first: bool = True, packed: bool = True
    ) -> None:
        super().__init__()
        other = None if packed else dim + 8
        self.widen = nn.Identity() if packed else nn.Linear(dim, dim + 8)
        self.batch_first = batch_first
        self.attention = nn.MultiheadAttention(
            dim, num_heads, dropout=0.1, batch_first=batch_first, kdim=other, vdim=other
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        other = self.widen(x)
        y: Tensor = self.attention(x, other, other, need_weights=self.batch_first)[0]
        return y if self.batch_first else y.transpose(0, 1)


class Encoder(nn.Module):
    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = attention
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + cast(Tensor, self.attention(self.norm1(x)))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Patches, class token, positions, encoders; `make` says how attention is written."""

    def __init__(
        self, make: Callable[[int, int], nn.Module], dim: int = 24, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 17, dim) * 0.1)
        self.encoders = nn.Sequential(*(Encoder(dim, make(dim, heads)) for _ in range(2)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.norm(self.encoders(x))
        return cast(Tensor, self.head(x[:, 0]))


class WindowAttention(nn.Module):
    """Swin's: windows, a table of relative positions per head, a shift, padding at run time."""

    index: Tensor
    mask: Tensor

    def __init__(self, dim: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.dim, self.num_heads, self.window_size, self.shift = dim, num_heads, window, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, num_heads) * 0.2)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = (at.flatten(1)[:, :, None] - at.flatten(1)[:, None, :]) + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        batch, height, breadth, width = x.shape
        w = self.window_size
        if height % w or breadth % w:
            x = F.pad(x, (0, 0, 0, -breadth % w, 0, -height % w))
        if self.shift > 0:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        x = x.view(batch, rows, w, columns, w, width).transpose(2, 3).reshape(-1, w * w, width)
        qkv = self.qkv(x).reshape(x.size(0), x.size(1), 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (width // self.num_heads) ** -0.5
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        x = (scores + bias.unsqueeze(0)).softmax(-1) @ v
        x = self.proj(x.transpose(1, 2).reshape(x.size(0), w * w, width))
        x = x.view(batch, rows, columns, w, w, width).transpose(2, 3)
        x = x.reshape(batch, rows * w, columns * w, width)
        if self.shift > 0:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :breadth]


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2, 2)
        self.blocks = nn.Sequential(
            Encoder(24, WindowAttention(24, 4, 4, 0)), Encoder(24, WindowAttention(24, 4, 4, 2))
        )
        self.norm, self.reduce = nn.LayerNorm(96), nn.Linear(96, 48, bias=False)
        self.last = Encoder(48, WindowAttention(48, 6, 4, 0))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for j in range(2) for i in range(2)], -1)
        x = self.last(self.reduce(self.norm(x)))
        return cast(Tensor, self.head(x.mean((1, 2))))


class ConvNextBlock(nn.Module):
    """Depthwise convolution, LayerNorm over channels, an MLP, LayerScale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scale = nn.Parameter(torch.rand(dim) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.mlp(y) * self.scale).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.blocks = nn.Sequential(ConvNextBlock(16), ConvNextBlock(16))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(self.stem(x))))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16), conv_bn(16, 24), nn.MaxPool2d(2), conv_bn(24, 32))
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.body(x)))


class Separable(nn.Module):
    """Depthwise then pointwise, as MobileNetV1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.depth1, self.point1 = conv_bn(16, 16, groups=16), conv_bn(16, 24, 1)
        self.depth2, self.point2 = conv_bn(24, 24, stride=2, groups=24), conv_bn(24, 32, 1)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point1(self.depth1(self.stem(x)))
        return cast(Tensor, self.head(self.point2(self.depth2(x))))


class EncoderLayers(nn.Module):
    """torch's own encoder, with its fused path in eval mode."""

    def __init__(self, norm_first: bool = False, count: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            24, 4, 48, dropout=0.1, batch_first=True, norm_first=norm_first
        )
        self.enter = nn.Linear(10, 24)
        self.encoder = nn.TransformerEncoder(layer, count, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.encoder(self.enter(x), src_key_padding_mask=padding)
        return cast(Tensor, self.head(x.mean(1)))


def built(make: Callable[[], nn.Module], *shape: int, seed: int = 0) -> Built:
    """An eval-mode net with random weights and statistics, and one random input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        randomise(module)
        return module.eval(), (torch.randn(shape or (1, 3, 16, 16)),)


TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "vit_packed": lambda: built(lambda: ViT(PackedAttention)),
    "vit_separate": lambda: built(lambda: ViT(SeparateAttention)),
    "vit_torch": lambda: built(lambda: ViT(TorchAttention)),
    "vit_torch_length_first": lambda: built(
        lambda: ViT(lambda dim, heads: TorchAttention(dim, heads, batch_first=False))
    ),
    "vit_torch_unpacked": lambda: built(
        lambda: ViT(lambda dim, heads: TorchAttention(dim, heads, packed=False))
    ),
    "swin": lambda: built(Swin),
    "convnext": lambda: built(ConvNext),
    "encoder": lambda: built(EncoderLayers, 1, 7, 10),
    "encoder_norm_first": lambda: built(lambda: EncoderLayers(norm_first=True), 1, 7, 10),
}
