"""What tells the groups of one graph apart: where they lie and which operators touch them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, PruningGraph

WEIGHTED = ("conv", "conv_transpose", "depthwise_conv", "linear")
"""Kinds of operators with a kernel or matrix of their own; products of activations are not."""


@dataclass(frozen=True, slots=True)
class GroupFeatures:
    """One number a group, [G] each."""

    kernel: FloatArray
    """Greatest kernel extent among the weighted operators that write it; so is `stride`."""
    stride: FloatArray
    dense_stride: FloatArray
    """The same without depthwise convolutions."""
    cells: FloatArray
    """Positions of its largest feature map."""
    depthwise: FloatArray
    """1 where a depthwise convolution works on it; so the next ones where"""
    producers: FloatArray
    """How many weighted operators, depthwise ones left out, write it."""
    consumers: FloatArray
    """... and read it."""
    stream: FloatArray
    """1 where it has several producers: a residual stream."""
    bypassed: FloatArray
    """1 where all that reads it writes into streams: a branch beside a shortcut."""
    siblings: FloatArray
    """Greatest share of a reader's input that other groups make up."""
    first: FloatArray
    """1 where an operator that reads no group writes it: the stem."""
    last: FloatArray
    """1 where an operator that writes no group reads it: the classifier."""
    layers: FloatArray
    """Weighted operators and products that read or write it, at least 1."""
    fan_in: FloatArray
    """Most channels read by one that writes it; products count, depthwise ones do not."""
    fan_out: FloatArray
    """Most channels written by one that reads it."""
    macs: FloatArray
    """Of all operators that touch it."""


def group_features(graph: PruningGraph) -> GroupFeatures:
    """The features of every group, of the unpruned model."""
    groups, widths = len(graph.groups), graph.widths
    kernel, stride, dense_stride, cells, fan_in, fan_out = np.ones((6, groups))
    depthwise, producers, consumers, siblings = np.zeros((4, groups))
    first, last, layers, macs = np.zeros((4, groups))
    written: list[set[int]] = [set() for _ in range(groups)]  # by what reads each group
    for op in graph.operators:
        extent = float(math.prod(op.out_spatial))
        ins, outs = op.in_width.at(widths), op.out_width.at(widths)
        work = float(op.macs_at(ins, outs))
        weighted, dense = op.kind in WEIGHTED, op.kind != "depthwise_conv"
        mixes = dense and (weighted or op.kind == "matmul")
        for group, _ in op.out_width.terms:
            cells[group] = max(cells[group], extent)
            if not dense:
                depthwise[group] = 1.0
            if weighted:
                kernel[group] = max(kernel[group], *op.kernel, 1)
                stride[group] = max(stride[group], *op.stride, 1)
                first[group] = max(first[group], float(not op.in_width.terms))
            if weighted and dense:
                producers[group] += 1
                dense_stride[group] = max(dense_stride[group], *op.stride, 1)
            if mixes:
                fan_in[group] = max(fan_in[group], ins)
        for group, count in op.in_width.terms:
            if mixes:
                fan_out[group] = max(fan_out[group], outs)
            if weighted and dense:
                consumers[group] += 1
                siblings[group] = max(siblings[group], 1 - count * widths[group] / float(ins))
                last[group] = max(last[group], float(not op.out_width.terms))
                written[group] |= {other for other, _ in op.out_width.terms} or {-1}
        touched = [group for group, _ in (*op.in_width.terms, *op.out_width.terms)]
        for group in touched if weighted or op.kind == "matmul" else ():
            layers[group] += 1
        for group in set(touched):
            macs[group] += work
    streams = set(np.flatnonzero(producers > 1).tolist())
    bypassed = [
        bool(others) and group not in others and others <= streams
        for group, others in enumerate(written)
    ]
    return GroupFeatures(
        kernel=kernel,
        stride=stride,
        dense_stride=dense_stride,
        cells=cells,
        depthwise=depthwise,
        producers=producers,
        consumers=consumers,
        stream=(producers > 1).astype(np.float64),
        bypassed=np.array(bypassed, dtype=np.float64),
        siblings=siblings,
        first=first,
        last=last,
        layers=np.maximum(layers, 1),
        fan_in=fan_in,
        fan_out=fan_out,
        macs=macs,
    )
