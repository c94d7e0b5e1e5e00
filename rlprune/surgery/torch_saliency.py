"""What every weight of an untrained module is worth: SynFlow, SNIP, GraSP, per weight and per unit.

- SynFlow (Tanaka et al., NeurIPS 2020) takes no data: w dR/dw, R the sum of the outputs for inputs
  of ones with all weights made positive.
- SNIP (Lee et al., ICLR 2019): |w dL/dw|, L the cross-entropy on a batch or a few.
- GraSP (Wang et al., ICLR 2020): |w (Hg)|, of the gradient's norm. Its sign is dropped, as Frankle
  et al. (ICLR 2021) found no worse, and because before a normalisation Hw = -g: the signed scores
  of a layer then add up to the same whatever its units are like.

A unit is worth the sum over the weights that make or read it. The module is copied, not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from rlprune.errors import InputError, ModelError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.torch_call import Call, detached_copy, first_line, plain_attention, tensors_in
from rlprune.graph.types import FloatArray, IntArray
from rlprune.surgery.torch_attention import unpacked
from rlprune.surgery.torch_cut import Cut

SCORES = ("synflow", "snip", "grasp")
WITH_IMAGES = ("snip", "grasp")
"""Scores that are taken of images."""

BATCH_SIZE = 128
MAX_IMAGES = 512
"""The first so many are looked at; SNIP's own paper takes one batch of 128."""
TEMPERATURE = 200.0
"""GraSP divides the logits by it, so that their scale at initialisation does not matter."""

Saliency = dict[str, Tensor]
"""By parameter: a value of 0 or more for every weight. Vectors (biases, scales) have none."""


def initial_scores(
    trace: TorchTrace,
    score: str,
    x: NDArray[np.float32] | None = None,
    y: IntArray | None = None,
) -> list[FloatArray]:
    """Per group what each unit is worth [width], by `score` of `SCORES`.

    Args:
        x, y: images as the module takes them and their classes, for SNIP and GraSP.

    Raises:
        InputError: no such score, or images missing or given for nothing.
        ModelError: the module cannot be run forwards and backwards so, or gives no logits.
    """
    given = None if x is None or y is None else (x[:MAX_IMAGES], y[:MAX_IMAGES])
    trace = unpacked(trace)
    worth = weight_saliency(trace.module, trace.call, score, given)
    return _per_unit(trace, worth)


def weight_saliency(
    module: nn.Module,
    call: Call,
    score: str,
    images: tuple[NDArray[np.float32], IntArray] | None = None,
) -> Saliency:
    """What each weight of at least two axes is worth; all of `images` are looked at.

    Raises:
        InputError, ModelError: as `initial_scores`.
    """
    check_score(score, with_images=images is not None)
    name = type(module).__name__
    twin = detached_copy(module)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _open_branches(twin)
    try:
        with plain_attention(), torch.random.fork_rng(devices=[]):
            if images is None:
                worth = _synflow(twin, call)
            else:
                batches = _Batches(twin.float(), call, *images)
                worth = (_snip if score == "snip" else _grasp)(twin, batches)
    except (InputError, ModelError):
        raise
    except Exception as error:  # whatever forward code raises, or an operator without a gradient
        raise ModelError(
            f"{score} of module {name} cannot be computed: {first_line(error)}"
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in worth.values()):
        raise ModelError(
            f"{score} of module {name} is not finite; initialise it anew or take another score "
            f"({', '.join(one for one in SCORES if one != score)})"
        )
    return worth


def check_score(score: str, *, with_images: bool) -> None:
    """Refuses an unknown score, and images missing or given for nothing.

    Raises:
        InputError: in one line.
    """
    if score not in SCORES:
        raise InputError(f"no score {score!r}; give {', '.join(SCORES)}", field="at_init")
    if score in WITH_IMAGES and not with_images:
        raise InputError(
            f"{score} is taken of images: give calibration, or take synflow, which needs none",
            field="calibration",
        )
    if score not in WITH_IMAGES and with_images:
        raise InputError(
            f"{score} looks at no images: leave calibration out, or take "
            f"{' or '.join(WITH_IMAGES)}",
            field="calibration",
        )


def _open_branches(twin: nn.Module) -> None:
    """Scales of normalisations that start at zero become one, in place.

    A residual branch that is closed so carries nothing before the first step, and all its weights
    would be worth nothing.
    """
    for part in twin.modules():
        if isinstance(part, _NormBase | nn.GroupNorm | nn.LayerNorm):
            weight = part.weight
            if isinstance(weight, Tensor) and not bool(weight.any()):
                nn.init.ones_(weight)


# --- the scores ------------------------------------------------------------------------------


def _synflow(twin: nn.Module, call: Call) -> Saliency:
    """In float64, for R grows with the product of the layers' fan-ins.

    Biases, shifts and running means are 0, so that R is a sum over paths and nothing else.
    """
    twin.double().eval()
    with torch.no_grad():
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            if name.rpartition(".")[2] in ("bias", "running_mean"):
                tensor.zero_()
            elif tensor.is_floating_point():
                tensor.abs_()
    ones = call.map(lambda t: torch.ones_like(t[:1]).double() if t.is_floating_point() else t)
    flow = sum(output.sum() for output in tensors_in(ones.run(twin)) if output.is_floating_point())
    if not isinstance(flow, Tensor):
        raise ModelError(f"module {type(twin).__name__} gives no floating-point output")
    names, weights = _weights(twin)
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    return _worth(names, weights, gradients)


class _Batches:
    """The images in batches; their mean loss, BatchNorm computing with each batch's statistics."""

    def __init__(self, twin: nn.Module, call: Call, x: NDArray[np.float32], y: IntArray) -> None:
        tensors = call.tensors()
        if len(tensors) != 1 or tensors[0].shape[1:] != x.shape[1:]:
            takes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise InputError(
                f"calibration: x is {list(x.shape)}, the module was traced with {takes}",
                field="calibration",
            )
        twin.train()
        for part in twin.modules():
            if isinstance(part, _DropoutNd):
                part.eval()
        self._twin, self._call = twin, call
        self._x, self._y = torch.from_numpy(x), torch.from_numpy(y)

    def losses(self, temperature: float = 1.0) -> Iterator[Tensor]:
        """Each batch's share of the mean cross-entropy over all images."""
        count = len(self._y)
        # Batches of about one size, so that none is too small for statistics.
        parts = max(1, round(count / BATCH_SIZE))
        for x, y in zip(self._x.chunk(parts), self._y.chunk(parts), strict=True):
            logits = self._call.map(lambda _, x=x: x).run(self._twin)
            if (
                not isinstance(logits, Tensor)
                or logits.dim() != 2
                or logits.shape[1] <= int(y.max())
            ):
                raise ModelError(
                    f"module {type(self._twin).__name__} does not answer with logits [N, classes] "
                    f"for classes up to {int(y.max())}"
                )
            mean = nn.functional.cross_entropy(logits / temperature, y)
            yield mean * (len(y) / count)


def _snip(twin: nn.Module, batches: _Batches) -> Saliency:
    names, weights = _weights(twin)
    return _worth(names, weights, _summed(batches.losses(), weights))


def _grasp(twin: nn.Module, batches: _Batches) -> Saliency:
    """Two passes, as in the paper's code: g of all images, then H g batch by batch."""
    names, weights = _weights(twin)
    gradient = _summed(batches.losses(TEMPERATURE), weights)

    def along() -> Iterator[Tensor]:
        for loss in batches.losses(TEMPERATURE):
            own = _gradients(loss, weights, create_graph=True)
            yield torch.stack([(g * h).sum() for g, h in zip(gradient, own, strict=True)]).sum()

    return _worth(names, weights, _summed(along(), weights))


def _summed(values: Iterable[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """The gradients of all values together."""
    total = [torch.zeros_like(weight) for weight in weights]
    for value in values:
        for sum_, part in zip(total, _gradients(value, weights), strict=True):
            sum_ += part
    return total


def _gradients(
    value: Tensor, weights: list[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Zeros where `value` does not depend on a weight."""
    found = torch.autograd.grad(value, weights, create_graph=create_graph, allow_unused=True)
    return tuple(
        torch.zeros_like(weight) if gradient is None else gradient
        for weight, gradient in zip(weights, found, strict=True)
    )


def _weights(twin: nn.Module) -> tuple[list[str], list[Tensor]]:
    named = {name: p for name, p in twin.named_parameters() if p.dim() > 1 and p.requires_grad}
    return list(named), list(named.values())


def _worth(names: list[str], weights: list[Tensor], gradients: Iterable[Tensor | None]) -> Saliency:
    return {
        name: torch.zeros_like(weight) if gradient is None else (weight * gradient).detach().abs()
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }


# --- from weights to units -------------------------------------------------------------------


def _per_unit(trace: TorchTrace, worth: Mapping[str, Tensor]) -> list[FloatArray]:
    """Sums over every axis of every weight whose positions a group owns."""
    widths = trace.graph.widths
    cut = Cut(trace, [np.arange(width, dtype=np.int64) for width in widths])
    scores = [np.zeros(width, dtype=np.float64) for width in widths]
    for name, value in worth.items():
        array = value.double().cpu().numpy()
        for axis, size in enumerate(array.shape):
            group, unit = cut.units(name, axis, size)
            along = array.sum(tuple(k for k in range(array.ndim) if k != axis))
            for g in np.unique(group[group >= 0]):
                own = group == g
                np.add.at(scores[g], unit[own], along[own])
    return scores
