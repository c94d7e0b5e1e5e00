"""A module that computes, while it is trained, as its int8 file will (quantisation-aware training).

Rounded to what int8 can hold are the weights of convolutions and linear layers and their inputs,
as ONNX Runtime's QDQ quantiser does it (`rlprune.precision`): weights symmetric, a scale per output
channel, from the weights as they are; inputs in uint8 with one scale and zero point per tensor,
from the range seen on some samples, fixed from then on. Gradients pass as if nothing were rounded,
but not through what was clipped (straight-through estimator; Jacob et al., arXiv:1712.05877).

A convolution is quantised after BatchNorm was folded into it. That multiplies a channel's weights
by one number, and a channel's scale with them, so what is rounded to what stays the same and no
folding is needed here. BatchNorm's statistics must stand still, as they do in the file.

What the file rounds besides (sums, pooled values, what a layer answers before it is added) is not
imitated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rlprune.finetuning.batches import Batch

_TINY = torch.finfo(torch.float32).tiny


@contextmanager
def fake_quantised(
    module: nn.Module, samples: Iterable[Batch], *, keep_float: Collection[str] = ()
) -> Iterator[None]:
    """Within it `module` computes as in int8, also in train mode; afterwards, also after an error,
    it is the module it was, with the weights that it has by then.

    Meanwhile rounded weights go by other names in its `state_dict`.

    Args:
        samples: on which the ranges of inputs are taken, on the device of the module.
        keep_float: names of layers that stay in float.
    """
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and name not in keep_float
    }
    inputs = _input_ranges(module, layers, samples)
    hooks, rounded = [], []
    try:
        for name, layer in layers.items():
            if name in inputs:  # a part may read a layer's weight without calling the layer
                hooks.append(layer.register_forward_pre_hook(inputs[name], with_kwargs=True))
            # A weight that is computed (weight_norm) is not the layer's own to round.
            if isinstance(layer._parameters.get("weight"), nn.Parameter):
                axis = 1 if getattr(layer, "transposed", False) else 0  # of output channels
                parametrize.register_parametrization(layer, "weight", _Rounded(axis), unsafe=True)
                rounded.append(layer)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
                hooks.append(part.register_forward_pre_hook(_hold_still))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in rounded:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            for name in ("weight", "bias"):  # in the order that optimizers know parameters by
                if name in layer._parameters:
                    layer._parameters[name] = layer._parameters.pop(name)


def rounded_weight(weight: Tensor, axis: int = 0) -> Tensor:
    """The weight as int8 holds it, a scale per position of `axis`, which is the greatest magnitude
    over 127; never -128, as ONNX Runtime's quantiser."""
    greatest = weight.detach().abs().amax([one for one in range(weight.dim()) if one != axis])
    scale = (greatest / 127).clamp(min=_TINY)
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -127, 127)


def rounded_input(value: Tensor, low: float, high: float) -> Tensor:
    """A tensor as uint8 holds it whose values were seen to lie between `low` and `high`."""
    low, high = min(low, 0.0), max(high, 0.0)  # zero, which pads, must be held exactly
    scale = (high - low) / 255
    if scale < _TINY:
        return value
    zero_point = round(-low / scale)
    return torch.fake_quantize_per_tensor_affine(value, scale, zero_point, 0, 255)


class _Rounded(nn.Module):
    """A weight, rounded whenever it is read."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        return rounded_weight(weight, self._axis)


class _Input:
    """A layer's first argument: its range, and afterwards what rounds it."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def see(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Widens the range."""
        value = (args or tuple(kwargs.values()))[0]
        self.low = min(self.low, float(value.min()))
        self.high = max(self.high, float(value.max()))

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (rounded_input(args[0], self.low, self.high), *args[1:]), kwargs
        [(name, value)] = kwargs.items()
        return args, {name: rounded_input(value, self.low, self.high)}


def _input_ranges(
    module: nn.Module, layers: dict[str, nn.Module], samples: Iterable[Batch]
) -> dict[str, _Input]:
    """Of every layer that is called, over all samples, in eval mode and float."""
    seen = {name: _Input() for name in layers}
    modes = [(part, part.training) for part in module.modules()]
    hooks = [
        layer.register_forward_pre_hook(seen[name].see, with_kwargs=True)
        for name, layer in layers.items()
    ]
    module.eval()
    try:
        with torch.no_grad():
            for batch in samples:
                batch.answers(module)
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in modes:
            part.training = training
    return {name: one for name, one in seen.items() if one.low <= one.high}


def _hold_still(norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Whatever mode the training loop puts the module in."""
    norm.training = False
