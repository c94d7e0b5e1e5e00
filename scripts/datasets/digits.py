"""Small CNNs of different block types, and the images they are trained on.

The population that the demo and the default policy learn from: plain, residual, inverted residual,
squeeze-and-excite and dense nets of any width and depth, on scikit-learn's digits enlarged to 32x32
(they come with a dependency) or on CIFAR-10 where the measuring pack is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rlprune.errors import InputError, MissingExtraError
from rlprune.training.checkpoint import EpochRecord
from rlprune.training.finetune import Images, TrainConfig, fit, shifted


@dataclass(frozen=True, slots=True)
class NetSpec:
    """A net of the zoo: three stages of `depth` blocks at 32, 16 and 8 pixels."""

    kind: str
    """One of `KINDS`."""
    width: int
    """Channels of the first stage; the later ones have two and four times as many."""
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind}-w{self.width}-d{self.depth}"


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint images: to train on, to calibrate and choose with, and to report on."""

    train: Images
    calibration: Images
    report: Images

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one batch of one image."""
        return (1, *self.train.x.shape[1:])


def build(
    spec: NetSpec, *, in_channels: int = 1, class_count: int = 10, seed: int = 0
) -> nn.Module:
    """An untrained net, in eval mode.

    Raises:
        InputError: no such kind.
    """
    if spec.kind not in KINDS:
        raise InputError(f"no net of kind {spec.kind!r}; there are {', '.join(KINDS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Net(spec, in_channels, class_count).eval()


def train_net(
    spec: NetSpec,
    splits: Splits,
    *,
    epoch_count: int = 6,
    seed: int = 0,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> nn.Module:
    """A net trained from scratch on `splits.train`, in eval mode.

    All epochs but the last two see the images at half their size, which costs a quarter
    (progressive resizing).
    """
    class_count = int(splits.train.y.max()) + 1
    module = build(spec, in_channels=splits.shape[1], class_count=class_count, seed=seed)
    halved = F.avg_pool2d(torch.from_numpy(splits.train.x), 2).numpy()
    coarse = TrainConfig(epoch_count - 2, batch_size=32, learning_rate=0.1, seed=seed)
    fine = TrainConfig(min(epoch_count, 2), batch_size=32, learning_rate=0.05, seed=seed + 1)
    if epoch_count > 2:
        images = Images(halved, splits.train.y)
        fit(module, images, coarse, augment=partial(shifted, pixels=1), on_epoch=on_epoch)
    fit(module, splits.train, fine, augment=shifted, on_epoch=on_epoch)
    return module


def digits(*, seed: int = 0) -> Splits:
    """scikit-learn's 1,797 handwritten digits, enlarged to [N, 1, 32, 32].

    900 to train on, 450 to calibrate, 447 to report on; which ones is decided by `seed`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("training on digits", "dev") from error
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16.0
    large = F.interpolate(small, scale_factor=4.0, mode="bilinear")
    x = ((large - 0.3) / 0.35).numpy().astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = [
        Images(x[part], labels[part].astype(np.int64)) for part in np.split(order, [900, 1350])
    ]
    return Splits(*parts)


def cifar10(folder: str | Path, *, train_count: int = 45_000) -> Splits:
    """CIFAR-10 [N, 3, 32, 32] in [-1, 1], from the `cifar10` folder of the measuring pack.

    Trains on images outside `train_calib`, calibrates on `train_calib`, reports on `test_reward`;
    `test_report` is not touched.

    Raises:
        InputError: the folder does not hold the pack.
    """
    folder = Path(folder)
    try:
        labels = np.load(folder / "labels.npz")
        chosen = np.load(folder / "splits.npz")
        calibration, reward = chosen["train_calib"], chosen["test_reward"]
        train = np.setdiff1d(np.arange(len(labels["train"])), calibration)
        train = np.sort(np.random.default_rng(0).permutation(train)[:train_count])
        parts = [
            Images(_sheets(folder, split, index), labels[split][index].astype(np.int64))
            for split, index in (("train", train), ("train", calibration), ("test", reward))
        ]
    except (OSError, KeyError) as error:
        raise InputError(f"{folder} does not hold CIFAR-10 as sheets ({error})") from error
    return Splits(*parts)


def _sheets(folder: Path, split: str, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """The images `index` of a split; a sheet is 25 rows of 40 images."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading CIFAR-10", "dev") from error
    x = np.empty((len(index), 3, 32, 32), np.float32)
    for sheet in np.unique(index // 1000):
        with Image.open(folder / f"{split}_{sheet:02d}.webp") as image:
            pixels = np.asarray(image.convert("RGB"))
        tiles = pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
        here = index // 1000 == sheet
        x[here] = tiles[index[here] % 1000].astype(np.float32) / 127.5 - 1.0
    return x


def _conv(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(cout)


class _Plain(nn.Sequential):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(*_conv(cin, cout, 3, stride), nn.ReLU())


class _Residual(nn.Module):
    """Basic block; a 1x1 convolution as shortcut where the shape changes (He et al. 2015, B)."""

    def __init__(self, cin: int, cout: int, stride: int, squeeze: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(cin, cout, 3, stride), nn.ReLU(), *_conv(cout, cout))
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(cin, cout, 1, stride))
        self.gate = _Gate(cout) if squeeze else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gate(self.body(x)) + self.shortcut(x))


class _Gate(nn.Module):
    """Squeeze-and-excite (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(8, width // 4)
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.body(x))


class _Inverted(nn.Module):
    """Inverted residual (Sandler et al. 2018), four times wider inside."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        inner = 4 * cin
        self.residual = stride == 1 and cin == cout
        self.body = nn.Sequential(
            *_conv(cin, inner, 1),
            nn.ReLU6(),
            *_conv(inner, inner, 3, stride, inner),
            nn.ReLU6(),
            *_conv(inner, cout, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class _Dense(nn.Module):
    """The input and a few new channels (Huang et al. 2017); a 1x1 convolution leaves `cout`."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        growth = max(8, cout // 16 * 8)
        self.grow = nn.Sequential(*_conv(cin, growth), nn.ReLU())
        self.grow_more = nn.Sequential(*_conv(cin + growth, growth), nn.ReLU())
        self.leave = nn.Sequential(*_conv(cin + 2 * growth, cout, 1), nn.ReLU())
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        x = torch.cat([x, self.grow(x)], 1)
        x = torch.cat([x, self.grow_more(x)], 1)
        return cast(Tensor, self.leave(x))


def _squeeze(cin: int, cout: int, stride: int) -> nn.Module:
    return _Residual(cin, cout, stride, squeeze=True)


KINDS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "plain": _Plain,
    "residual": _Residual,
    "inverted": _Inverted,
    "squeeze": _squeeze,
    "dense": _Dense,
}
"""Kind -> block of (channels in, channels out, stride)."""


class _Net(nn.Module):
    def __init__(self, spec: NetSpec, in_channels: int, class_count: int) -> None:
        super().__init__()
        block = KINDS[spec.kind]
        self.stem = nn.Sequential(*_conv(in_channels, spec.width), nn.ReLU())
        blocks: list[nn.Module] = []
        width = spec.width
        for stage in range(3):
            for index in range(spec.depth):
                wide = spec.width * 2**stage
                blocks.append(block(width, wide, 2 if stage and index == 0 else 1))
                width = wide
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, class_count)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.blocks(self.stem(x)).mean((2, 3))))
