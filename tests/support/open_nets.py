"""Torch nets that take maps, rows and lines of any size, and exports that leave the sizes open."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_parts import Built, builder


class Fcn(nn.Module):
    """Convolutions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.out(F.relu(self.b(F.relu(self.a(x))))))


class Fpn(nn.Module):
    """Coarse maps grown to the size of finer ones, which is no multiple of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.c3 = nn.Conv2d(16, 24, 3, 2, 1)
        self.side = nn.ModuleList(nn.Conv2d(c, 12, 1) for c in (8, 16, 24))
        self.head = nn.Conv2d(12, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.relu(self.c1(x))
        b = F.relu(self.c2(a))
        levels = [
            side(map_) for side, map_ in zip(self.side, (a, b, F.relu(self.c3(b))), strict=True)
        ]
        for k in (1, 0):
            size = levels[k].shape[-2:]
            levels[k] = levels[k] + F.interpolate(levels[k + 1], size=size, mode="nearest")
        rows = [self.head(F.relu(p)).permute(0, 2, 3, 1) for p in levels]
        return torch.cat([r.reshape(r.shape[0], -1, 6) for r in rows], 1), levels[0].mean(1)


class UNetCrop(nn.Module):
    """What was upsampled is padded to the size of what was kept, as many U-Nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 10, 2, 2)
        self.out = nn.Conv2d(22, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = F.relu(self.down(x))
        up = self.up(F.relu(self.deep(F.max_pool2d(kept, 2))))
        high, wide = kept.shape[2] - up.shape[2], kept.shape[3] - up.shape[3]
        up = F.pad(up, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        logits = self.out(torch.cat([kept, up], 1))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear")


class PooledHead(nn.Module):
    """Pools over the whole map before its classifier, and gates its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = F.relu(self.b(x * gate))
        return cast(Tensor, self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


class Crnn(nn.Module):
    """A line of text: columns become a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, (2, 1), 1), nn.Conv2d(12, 16, 3, (2, 1), 1)
        self.c = nn.Conv2d(16, 24, (4, 1))
        self.hidden, self.out = nn.Linear(24, 20), nn.Linear(20, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        x = x.squeeze(2).permute(0, 2, 1)
        return F.softmax(self.out(F.relu(self.hidden(x))), -1)


class Tokens(nn.Module):
    """Attention between all positions of a map, and back to a map (as SVTR and MobileViT do)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 48)
        self.mix, self.out = nn.Linear(16, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        rows = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(rows).reshape(n, h * w, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        mixed = F.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
        rows = self.mix(mixed.transpose(1, 2).reshape(n, h * w, c))
        return cast(Tensor, self.out(rows.transpose(1, 2).reshape(n, c, h, w) + x))


class YoloHeads(nn.Module):
    """Boxes and scores of two levels, every position a column."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(c, 9, 1) for c in (12, 16))

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.a(x))
        maps = [head(y) for head, y in zip(self.heads, (a, F.silu(self.b(a))), strict=True)]
        columns = torch.cat([m.view(m.shape[0], 9, -1) for m in maps], 2)
        box, score = columns.split((4, 5), 1)  # type: ignore[no-untyped-call]
        return torch.cat([box * 2, score.sigmoid()], 1)


class Shuffled(nn.Module):
    """PixelShuffle, and the same spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 24, 3, padding=1)
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.pixel_shuffle(F.relu(self.a(x)), 2))
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return cast(Tensor, self.out(F.relu(x.reshape(n, c // 4, h * 2, w * 2))))


class GridPositions(nn.Module):
    """Learned positions resized to the map, and the coordinates themselves as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.places = nn.Conv2d(3, 16, 3, 2, 1), nn.Parameter(torch.randn(1, 16, 5, 5))
        self.mid, self.out = nn.Conv2d(18, 12, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, _, h, w = x.shape
        x = x + F.interpolate(self.places, size=(h, w), mode="bilinear")
        rows = torch.arange(h, dtype=torch.float32).view(1, 1, h, 1).expand(n, 1, h, w) / h
        columns = torch.arange(w, dtype=torch.float32).view(1, 1, 1, w).expand(n, 1, h, w) / w
        return cast(Tensor, self.out(F.relu(self.mid(torch.cat([x, rows, columns], 1)))))


class Rows(nn.Module):
    """A sequence of any length up to that of its learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(10, 16), nn.Parameter(torch.randn(1, 64, 16))
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.places[:, : x.shape[1]]
        x = x + self.down(F.gelu(self.up(x)))
        return cast(Tensor, self.head(x.mean(1)))


@dataclass(frozen=True)
class OpenNet:
    build: Callable[[], Built]
    axes: Mapping[int, str]
    """Axes of the input that the file leaves open, with their names."""
    others: tuple[tuple[int, ...], ...]
    """Sizes, other than the one it is analysed at, at which it runs."""


def _map(
    make: Callable[[], nn.Module],
    *others: tuple[int, int],
    side: tuple[int, int] = (16, 24),
    planes: int = 3,
    axes: Mapping[int, str] | None = None,
) -> OpenNet:
    return OpenNet(
        builder(make, lambda: (torch.randn(1, planes, *side),)),
        axes or {0: "batch", 2: "height", 3: "width"},
        tuple((k + 1, planes, *other) for k, other in enumerate(others)),
    )


NETS: dict[str, OpenNet] = {
    "fcn": _map(Fcn, (24, 16), (17, 31)),
    "fpn": _map(Fpn, (50, 50), (33, 47), (26, 22), side=(50, 38)),
    "unet_crop": _map(UNetCrop, (16, 24), (21, 27), (19, 32), side=(15, 22)),
    "pooled_head": _map(PooledHead, (24, 16), (40, 56)),
    "crnn": _map(Crnn, (16, 40), (16, 7), side=(16, 24), planes=1, axes={0: "batch", 3: "width"}),
    "tokens": _map(Tokens, (24, 16), (10, 12)),
    "yolo_heads": _map(YoloHeads, (24, 16), (40, 20)),
    "shuffled": _map(Shuffled, (9, 13), (20, 8)),
    "grid_positions": _map(GridPositions, (24, 16), (11, 30)),
    "rows": OpenNet(
        builder(Rows, lambda: (torch.randn(1, 12, 10),)),
        {0: "batch", 1: "length"},
        ((1, 20, 10), (3, 5, 10)),
    ),
}


def older(net: OpenNet, opset: int = 17, *, leave_open: bool = True) -> onnx.ModelProto:
    """As torch's older exporter writes it."""
    module, inputs = net.build()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            dynamic_axes={"x": dict(net.axes)} if leave_open else None,
        )
    return onnx.load_model_from_string(file.getvalue())


def newer(net: OpenNet, opset: int = 18) -> onnx.ModelProto:
    """As torch's newer exporter writes it."""
    module, inputs = net.build()
    # A batch of one would be taken for a constant.
    double = tuple(torch.cat([tensor] * 2) for tensor in inputs)
    dims = {axis: torch.export.Dim.DYNAMIC for axis in net.axes}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            double,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            verbose=False,
            input_names=["x"],
            dynamic_shapes=(dims,),
        )
        assert program is not None
        program.save(file)  # type: ignore[arg-type]
    return onnx.load_model_from_string(file.getvalue())
