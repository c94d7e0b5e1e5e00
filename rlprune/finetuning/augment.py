"""How training images are varied: moved and mirrored at random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Images [N, C, H, W] -> images of the same shape."""


def shifted(x: Tensor, generator: torch.Generator, *, pixels: int = 2) -> Tensor:
    """Each image moved by up to `pixels` in both directions, zeros moving in."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, (pixels,) * 4)
    offset = torch.randint(0, 2 * pixels + 1, (count, 2), generator=generator).to(x.device)
    rows = offset[:, :1] + torch.arange(height, device=x.device)  # [N, H]
    columns = offset[:, 1:] + torch.arange(width, device=x.device)  # [N, W]
    each = torch.arange(count, device=x.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored one time in two."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip.to(x.device), x.flip(3), x)


def flipped_and_shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored one time in two, then moved by up to 4 pixels: what CIFAR-10 is trained with."""
    return shifted(flipped(x, generator), generator, pixels=4)


AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    "flip": flipped,
    "crop-flip": flipped_and_shifted,
}
"""By the name a user gives."""
