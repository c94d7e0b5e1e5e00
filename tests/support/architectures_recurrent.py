"""Architectures with recurrent layers, small."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class Recogniser(nn.Module):
    """CRNN: convolutions, two bidirectional LSTM layers along the width, a class per column."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 24, 3, 1, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d((4, 1))),
        )
        self.rnn = nn.LSTM(48, 20, 2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(40, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(1, 2).transpose(1, 2)
        return cast(Tensor, self.fc(self.rnn(x)[0]))


class Keywords(nn.Module):
    """A linear layer, a GRU, and what its last state says."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rnn = nn.Linear(10, 24), nn.GRU(24, 32, batch_first=True)
        self.middle, self.fc = nn.Linear(32, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(torch.relu(self.enter(x)))
        return cast(Tensor, self.fc(torch.relu(self.middle(y[:, -1]))))
