"""The policy's network in numpy: what SB3's `MlpPolicy` predicts, without torch.

A forward of a trained network is three small matrix products; a server or board that plans needs
nothing else of torch's gigabyte. `tests/training/test_ppo.py` holds this equal to SB3's
deterministic `predict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlprune.errors import PolicyError
from rlprune.graph.types import FloatArray

Float32Array = NDArray[np.float32]

OBSERVATION_CLIP = 10.0
"""Standard deviations beyond which observations are cut off (VecNormalize's default)."""


@dataclass(frozen=True)
class Normalizer:
    """Fixed mean and scale of observations; a slot that never varied in training is left out.

    Such a slot has scale 0: the network saw a constant there, so whatever an unseen device puts
    into it would meet weights that nothing ever trained.
    """

    mean: FloatArray
    """[D]."""
    scale: FloatArray
    """1 / standard deviation [D], or 0."""

    @staticmethod
    def fit(observations: FloatArray | Float32Array) -> Normalizer:
        """From observations [N, D] seen in training."""
        data = np.asarray(observations, dtype=np.float64)
        std = data.std(0)
        constant = std < 1e-6
        return Normalizer(data.mean(0), np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, std)))

    def __call__(self, observations: Float32Array) -> Float32Array:
        """[..., D] -> [..., D], within +-`OBSERVATION_CLIP`."""
        normal = (observations - self.mean) * self.scale
        return np.clip(normal, -OBSERVATION_CLIP, OBSERVATION_CLIP).astype(np.float32)


@dataclass(frozen=True)
class Network:
    """tanh multilayer perceptron; its output, clipped to the action box, is the action."""

    normalizer: Normalizer
    layers: tuple[tuple[Float32Array, Float32Array], ...]
    """(weight [out, in], bias [out]) of every layer, the last one without tanh."""

    @property
    def observation_size(self) -> int:
        return int(self.layers[0][0].shape[1])

    @property
    def action_size(self) -> int:
        return int(self.layers[-1][0].shape[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(int(weight.shape[0]) for weight, _ in self.layers[:-1])

    def act(self, observations: Float32Array) -> Float32Array:
        """Deterministic actions in [-1, 1]: [B, D] -> [B, A]."""
        hidden = self.normalizer(observations)
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weight.T + bias)
        weight, bias = self.layers[-1]
        return np.asarray(np.clip(hidden @ weight.T + bias, -1.0, 1.0), dtype=np.float32)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Named float32 tensors, as `from_tensors` reads them."""
        named = {
            "observation.mean": self.normalizer.mean.astype(np.float32),
            "observation.scale": self.normalizer.scale.astype(np.float32),
        }
        for index, (weight, bias) in enumerate(self.layers):
            named[f"layer{index}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
            named[f"layer{index}.bias"] = np.ascontiguousarray(bias, dtype=np.float32)
        return named

    @staticmethod
    def from_tensors(tensors: Mapping[str, NDArray[np.float32]]) -> Network:
        """The inverse of `tensors`.

        Raises:
            PolicyError: tensors missing or superfluous, of shapes that do not chain, or not finite.
        """
        count = sum(name.endswith(".weight") for name in tensors)
        names = [f"layer{i}.{part}" for i in range(count) for part in ("weight", "bias")]
        expected = {"observation.mean", "observation.scale", *names}
        if count == 0 or expected != set(tensors):
            wrong = sorted(expected ^ set(tensors)) or ["layer0.weight"]
            raise PolicyError(f"policy tensors missing or superfluous: {', '.join(wrong)}")
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise PolicyError(f"policy tensor {name!r} is not finite float32; train it again")
        width = tensors["observation.mean"].shape
        if len(width) != 1 or tensors["observation.scale"].shape != width:
            raise PolicyError(f"observation.mean is {width}, not the shape of observation.scale")
        layers = []
        for index in range(count):
            weight, bias = tensors[f"layer{index}.weight"], tensors[f"layer{index}.bias"]
            if weight.ndim != 2 or weight.shape[1:] != width or bias.shape != weight.shape[:1]:
                raise PolicyError(
                    f"layer{index} of the policy reads {width}, but has weight {weight.shape} "
                    f"and bias {bias.shape}"
                )
            width = bias.shape
            layers.append((weight, bias))
        normalizer = Normalizer(
            tensors["observation.mean"].astype(np.float64),
            tensors["observation.scale"].astype(np.float64),
        )
        return Network(normalizer, tuple(layers))
