"""Architectures that answer with images: detectors, segmentation, super-resolution."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_parts import conv_bn


class Yolo(nn.Module):
    """YOLOv5-like: sliced stem, CSP split, SPPF, upsample and concat, two outputs as boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.focus = conv_bn(12, 16)
        self.csp_a, self.csp_b = conv_bn(16, 16, 1), conv_bn(16, 16, 1)
        self.inner = conv_bn(16, 16)
        self.csp_out = conv_bn(32, 32, 3, 2)
        self.sppf_in, self.sppf_out = conv_bn(32, 16, 1), conv_bn(64, 32, 1)
        self.lateral = conv_bn(32, 16, 1)
        self.mixed = conv_bn(48, 16)
        self.small, self.large = nn.Conv2d(16, 14, 1), nn.Conv2d(32, 14, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.focus(torch.cat(parts, 1))
        a = self.csp_a(x)
        stage = torch.cat((a + self.inner(a), self.csp_b(x)), 1)
        deep = self.sppf_in(self.csp_out(stage))
        pools = [deep]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 3, 1, 1))
        deep = self.sppf_out(torch.cat(pools, 1))
        up = F.interpolate(self.lateral(deep), scale_factor=2.0, mode="nearest")
        fine = self.mixed(torch.cat((up, stage), 1))
        return self.boxes(self.small(fine)), self.boxes(self.large(deep))

    @staticmethod
    def boxes(x: Tensor) -> Tensor:
        batch, _, height, breadth = x.shape
        return x.view(batch, 2, 7, height, breadth).permute(0, 1, 3, 4, 2).sigmoid()


class SuperResolution(nn.Module):
    """EDSR-like: residual blocks, PReLU, PixelShuffle, sum with the resized input's features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.a, self.b = nn.Conv2d(16, 24, 3, 1, 1), nn.Conv2d(24, 16, 3, 1, 1)
        self.act = nn.PReLU(24)
        self.up = nn.Conv2d(16, 64, 3, 1, 1)
        self.out = nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.act(self.a(x)))
        return cast(Tensor, self.out(F.relu(F.pixel_shuffle(self.up(x), 2))))


class Decoder(nn.Module):
    """DCGAN-like: from a code, by transposed convolutions (one depthwise), to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(20, 32 * 16)
        self.up1 = nn.ConvTranspose2d(32, 24, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.up2 = nn.ConvTranspose2d(24, 24, 4, 2, 1, groups=24)
        self.up3 = nn.ConvTranspose2d(24, 16, 2, 2, groups=4)
        self.out = nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, code: Tensor) -> Tensor:
        x = F.relu(self.fc(code)).view(-1, 32, 4, 4)
        x = F.leaky_relu(self.norm(self.up1(x)), 0.2)
        return torch.tanh(self.out(F.relu(self.up3(F.relu(self.up2(x))))))


class LrAspp(nn.Module):
    """Segmentation head of MobileNetV3: a gate from pooling, bilinear resizes to what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = conv_bn(3, 16, 3, 2), conv_bn(16, 32, 3, 2)
        self.cbr = conv_bn(32, 24, 1)
        self.scale = nn.Conv2d(32, 24, 1, bias=False)
        self.low_out, self.high_out = nn.Conv2d(16, 4, 1), nn.Conv2d(24, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        low = self.low(image)
        high = self.high(low)
        x = self.cbr(high) * torch.sigmoid(self.scale(F.adaptive_avg_pool2d(high, 1)))
        x = F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        x = self.low_out(low) + self.high_out(x)
        return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)


class UNetBilinear(nn.Module):
    """U-Net with bilinear resizes and the padding that makes odd maps fit."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 16), conv_bn(16, 24)
        self.middle = conv_bn(24, 24)
        self.up2, self.up1 = conv_bn(48, 16), conv_bn(32, 16)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.join(self.middle(F.max_pool2d(two, 2)), two))
        return cast(Tensor, self.out(self.up1(self.join(x, one))))

    @staticmethod
    def join(low: Tensor, skip: Tensor) -> Tensor:
        low = F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=True)
        high, wide = skip.shape[2] - low.shape[2], skip.shape[3] - low.shape[3]
        low = F.pad(low, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return torch.cat((skip, low), 1)


class Aspp(nn.Module):
    """DeepLab: dilated branches and an image-level one, stretched to the map, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.rates = nn.ModuleList([nn.Conv2d(16, 8, 3, 1, r, r) for r in (1, 2, 3)])
        self.pooled = nn.Conv2d(16, 8, 1)
        self.project = conv_bn(32, 16, 1)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = F.relu(self.pooled(F.adaptive_avg_pool2d(x, 1))).expand(-1, -1, *x.shape[2:])
        maps = [F.relu(branch(x)) for branch in self.rates]
        return cast(Tensor, self.out(self.project(torch.cat([*maps, wide], 1))))
