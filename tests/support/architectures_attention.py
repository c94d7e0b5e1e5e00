"""Architectures with attention or token mixing in common use, small."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Attention(nn.Module):
    """timm's: one projection, unbound into its three parts; `fused` by torch's own function."""

    def __init__(self, width: int, heads: int, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return cast(Tensor, self.proj(x.transpose(1, 2).reshape(batch, count, width)))


class PackedAttention(nn.Module):
    """torch.nn.MultiheadAttention: `in_proj_weight` holds all three projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.attention(x, x, x, need_weights=False)[0])


class SeparateAttention(nn.Module):
    """BERT-like: three projections, heads by view and permute; keys may be of another sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        source = x if other is None else other
        q, k, v = self.split(self.q(x)), self.split(self.k(source)), self.split(self.v(source))
        weight = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weight @ v).permute(0, 2, 1, 3).contiguous()
        return cast(Tensor, self.proj(mixed.view(x.shape[0], x.shape[1], -1)))


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = attention, Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, two blocks of the given kind of attention."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, 32))
        self.position = nn.Parameter(0.5 * torch.randn(1, 17, 32))
        make = {
            "unbound": lambda: Attention(32, 4),
            "fused": lambda: Attention(32, 4, fused=True),
            "packed": lambda: PackedAttention(32, 4),
            "separate": lambda: SeparateAttention(32, 4),
        }[kind]
        self.blocks = nn.Sequential(Block(32, make(), 64), Block(32, make(), 64))  # type: ignore[no-untyped-call]
        self.norm, self.fc = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        return cast(Tensor, self.fc(self.norm(self.blocks(x))[:, 0]))


class EncoderLayer(nn.Module):
    """torch.nn.TransformerEncoderLayer on rows, as speech models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.fc = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.layer(self.enter(x)).mean(1)))


class CrossAttention(nn.Module):
    """Learned queries that read a sequence of other length."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(10, 32), nn.LayerNorm(32)
        self.query = nn.Parameter(torch.randn(1, 3, 32))
        self.cross, self.mlp = SeparateAttention(32, 4), Mlp(32, 64)
        self.fc = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        q = self.query.expand(x.shape[0], -1, -1)
        q = q + self.cross(q, x)
        return cast(Tensor, self.fc((q + self.mlp(q)).flatten(1)))


class WindowAttention(nn.Module):
    """Swin's: position bias per head, mask per window."""

    def __init__(self, width: int, heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        cells = window * window
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(*2 * [torch.arange(window)], indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :] + window - 1).permute(1, 2, 0)
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.register_buffer("mask", mask)
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        count, cells, width = x.shape
        qkv = self.qkv(x).reshape(count, cells, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weight = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        index = cast(Tensor, self.index).view(-1)
        bias = self.bias[index].view(cells, cells, -1).permute(2, 0, 1).contiguous()
        weight = weight + bias.unsqueeze(0)
        if self.mask is not None:
            windows = cast(Tensor, self.mask).shape[0]
            weight = weight.view(-1, windows, self.heads, cells, cells)
            weight = weight + cast(Tensor, self.mask)[None, :, None]
            weight = weight.view(-1, self.heads, cells, cells)
        x = (weight.softmax(-1) @ v).transpose(1, 2).reshape(count, cells, width)
        return cast(Tensor, self.proj(x))


class SwinBlock(nn.Module):
    def __init__(self, width: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        mask = self._mask(side, window, shift) if shift else None
        self.attention = WindowAttention(width, 4, window, mask)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width, 2 * width)

    @staticmethod
    def _mask(side: int, window: int, shift: int) -> Tensor:
        """Which window cells come from different regions of the rolled map, as -100 or 0."""
        region = torch.zeros(side)
        region[-window:-shift], region[-shift:] = 1, 2
        both = 3 * region[:, None] + region[None, :]
        cells = both.view(side // window, window, side // window, window)
        cells = cells.transpose(1, 2).reshape(-1, window * window)
        return torch.where(cells[:, None] == cells[:, :, None], 0.0, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, high, wide, width = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        w = self.window
        y = y.view(batch, high // w, w, wide // w, w, width).permute(0, 1, 3, 2, 4, 5)
        y = self.attention(y.reshape(-1, w * w, width))
        y = y.view(batch, high // w, wide // w, w, w, width).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, high, wide, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class Swin(nn.Module):
    """Windows, shifted windows with their mask, and a patch merge."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16)
        self.blocks = nn.Sequential(SwinBlock(16, 8, 4, 0), SwinBlock(16, 8, 4, 2))
        self.merge_norm, self.merge = nn.LayerNorm(64), nn.Linear(64, 32, bias=False)
        self.last = SwinBlock(32, 4, 4, 0)
        self.fc_norm, self.fc = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.patch(x).permute(0, 2, 3, 1)))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.last(self.merge(self.merge_norm(torch.cat(parts, -1))))
        return cast(Tensor, self.fc(self.fc_norm(x).mean((1, 2))))


class MixerBlock(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = Mlp(count, 24), Mlp(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + cast(Tensor, self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + cast(Tensor, self.channels(self.norm2(x)))


class Mixer(nn.Module):
    """MLP over the tokens, MLP over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.norm, self.fc = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return cast(Tensor, self.fc(self.norm(x).mean(1)))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Llama(nn.Module):
    """RMSNorm spelled out, rotary positions, keys shared by pairs of heads, gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 32)
        self.norm1, self.norm2 = RmsNorm(32), RmsNorm(32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.proj = nn.Linear(32, 32, bias=False)
        self.gate, self.up = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)
        self.down = nn.Linear(64, 32, bias=False)
        self.fc = nn.Linear(32, 12)
        angle = torch.arange(12.0)[:, None] / 100.0 ** (torch.arange(4.0) / 4)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), -1))
        self.register_buffer("sin", torch.cat((angle.sin(), angle.sin()), -1))

    def rotated(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        turned = torch.cat((-right, left), -1)
        return x * cast(Tensor, self.cos) + turned * cast(Tensor, self.sin)

    def attend(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = (
            part(x).view(batch, count, -1, 8).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        q, k = self.rotated(q), self.rotated(k)
        shape = batch, 2, 2, count, 8
        k, v = (part[:, :, None].expand(shape).reshape(batch, 4, count, 8) for part in (k, v))
        scores = q @ k.transpose(-2, -1) / 8**0.5
        scores = scores + torch.full((count, count), -100.0).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, 32)
        return cast(Tensor, self.proj(mixed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return cast(Tensor, self.fc(x.mean(1)))


class SpatialReduction(nn.Module):
    """SegFormer-like: keys from a map made smaller, MLP with a depthwise convolution inside."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 2, 1)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.q, self.kv, self.proj = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(32, 32)
        self.reduce, self.reduce_norm = nn.Conv2d(32, 32, 4, 4), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.depth = nn.Conv2d(64, 64, 3, 1, 1, groups=64)
        self.fc = nn.Linear(32, 10)

    def attend(self, x: Tensor, side: int) -> Tensor:
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, 4, width // 4).permute(0, 2, 1, 3)
        small = self.reduce(x.permute(0, 2, 1).reshape(batch, width, side, side))
        small = self.reduce_norm(small.reshape(batch, width, -1).permute(0, 2, 1))
        kv = self.kv(small).reshape(batch, -1, 2, 4, width // 4).permute(2, 0, 3, 1, 4)
        weight = (q @ kv[0].transpose(-2, -1) * 8**-0.5).softmax(-1)
        mixed = (weight @ kv[1]).transpose(1, 2).reshape(batch, count, width)
        return cast(Tensor, self.proj(mixed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attend(self.norm1(x), side)
        y = self.up(self.norm2(x))
        y = self.depth(y.transpose(1, 2).view(y.shape[0], -1, side, side))
        y = F.gelu(y.flatten(2).transpose(1, 2))
        return cast(Tensor, self.fc((x + self.down(y)).mean(1)))


class MobileVit(nn.Module):
    """Convolutions around an attention over unfolded patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.local = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.enter, self.leave = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.block = Block(32, Attention(32, 4), 64)
        self.fuse, self.fc = nn.Conv2d(32, 24, 3, 1, 1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        y = self.enter(F.silu(self.local(x)))
        batch, width, high, wide = y.shape
        y = y.reshape(batch * width * high // 2, 2, wide // 2, 2).transpose(1, 2)
        y = y.reshape(batch, width, high * wide // 4, 4).transpose(1, 3)
        y = self.block(y.reshape(batch * 4, -1, width))
        y = y.contiguous().view(batch, 4, high * wide // 4, width).transpose(1, 3)
        y = y.reshape(batch * width * high // 2, wide // 2, 2, 2).transpose(1, 2)
        y = self.leave(y.reshape(batch, width, high, wide))
        return cast(Tensor, self.fc(F.relu(self.fuse(torch.cat((x, y), 1))).mean((2, 3))))


class NonLocal(nn.Module):
    """Attention over positions with one head, between convolutions: its inner widths are held."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 1, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        theta, phi, g = self.theta(x).flatten(2), self.phi(x).flatten(2), self.g(x).flatten(2)
        weight = (theta.transpose(1, 2) @ phi).softmax(-1)
        y = (weight @ g.transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], 8, *x.shape[2:])
        x = x + self.out(y)
        return cast(Tensor, self.fc(F.relu(self.last(x)).mean((2, 3))))
