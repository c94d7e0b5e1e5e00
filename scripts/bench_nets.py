"""ResNet-50 and Swin-T as torch modules, true to what was published, for benches of the tracer.

He et al., CVPR 2016 (stride in the 3x3 convolution, as everybody trains it) and Liu et al., ICCV
2021. Weights are random; `PARAMS` are the published counts, which `export` checks.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

PARAMS = {"resnet50": 25_557_032, "swin_t": 28_288_354}


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            width, blocks = 64 << stage, []
            for block in range(count):
                blocks.append(Bottleneck(channels, width, 2 if stage and not block else 1))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


WINDOW = 7


class WindowAttention(nn.Module):
    """Attention within 7 x 7 windows, with a learned bias per offset."""

    def __init__(self, channels: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.shift = heads, side, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(
            0.02 * torch.randn((2 * WINDOW - 1) ** 2, heads)
        )
        place = torch.stack(
            torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
        )
        offset = (place.flatten(1)[:, :, None] - place.flatten(1)[:, None]) + WINDOW - 1
        index = offset[0] * (2 * WINDOW - 1) + offset[1]
        self.register_buffer("relative_position_index", index.flatten(), persistent=False)
        if shift:
            region = torch.zeros(side, side)
            bounds = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((r, c) for r in bounds for c in bounds):
                region[rows, columns] = number
            count = side // WINDOW
            windows = (
                region.view(count, WINDOW, count, WINDOW).permute(0, 2, 1, 3).reshape(count**2, -1)
            )
            apart = windows[:, None] != windows[:, :, None]
            self.register_buffer("mask", -100.0 * apart[None, :, None].float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, channels = x.shape
        count, area = side // WINDOW, WINDOW**2
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(batch, count, WINDOW, count, WINDOW, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch * count**2, area, channels)
        qkv = self.qkv(x).reshape(-1, area, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = scores + bias.view(area, area, -1).permute(2, 0, 1)[None]
        if self.shift:
            scores = scores.view(batch, count**2, self.heads, area, area) + self.mask
            scores = scores.view(-1, self.heads, area, area)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, area, channels)
        x = self.proj(x).view(batch, count, count, WINDOW, WINDOW, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, side, side, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    def __init__(self, channels: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, side, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class SwinT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 96, 4, 4)
        self.embed_norm = nn.LayerNorm(96)
        layers: list[nn.Module] = []
        for stage, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
            channels, side = 96 << stage, 56 >> stage
            for block in range(depth):
                shift = WINDOW // 2 if block % 2 and side > WINDOW else 0
                layers.append(SwinBlock(channels, heads, side, shift))
            if stage < 3:
                layers.append(PatchMerging(channels))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(768)
        self.head = nn.Linear(768, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.layers(x)).mean((1, 2)))


NETS = {"resnet50": ResNet50, "swin_t": SwinT}


def export(name: str, path: Path, *, dynamo: bool = False) -> None:
    """Writes the net as an ONNX file with random weights, by the older or the newer exporter."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    count = sum(parameter.numel() for parameter in net.parameters())
    if count != PARAMS[name]:
        raise SystemExit(f"{name} has {count:,} parameters, not the published {PARAMS[name]:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, 224, 224),),
            str(path),
            opset_version=20 if dynamo else 17,
            dynamo=dynamo,
            external_data=False,
        )
