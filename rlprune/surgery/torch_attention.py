"""`nn.MultiheadAttention` with fewer heads than its width has room for.

torch's own computes the size of a head as width / heads, so that it cannot do with fewer heads over
the same stream. This one takes it from the weights; parameters keep their names, and it computes
with the same operators in the same order, so that its export is the cut export of the original.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.graph.from_torch import Place, TorchTrace
from rlprune.graph.torch_call import detached_copy


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """Attention over `num_heads` heads of `head_dim`; takes and gives `embed_dim` channels."""

    head_dim: int

    @classmethod
    def convert(cls, attention: nn.MultiheadAttention, head_dim: int) -> None:
        """Turns a module whose projections were cut into one of this class, in place."""
        attention.__class__ = cls
        assert isinstance(attention, cls)
        attention.head_dim = head_dim
        attention.num_heads = attention.out_proj.weight.shape[1] // head_dim
        # torch's fused kernels ask this flag, and know only heads that fill the width.
        attention._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; `is_causal` needs its `attn_mask` as there."""
        batched = query.dim() == 3
        same = key is value
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            alike = query is key
            query = query.transpose(1, 0)
            key = query if alike else key.transpose(1, 0)
            value = key if same else value.transpose(1, 0)
        length, batch, _ = query.shape
        q, k, v = self._project(query, key, value)
        mask = self._mask(query, key, key_padding_mask, attn_mask)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.repeat(1, batch, 1)])
            v = torch.cat([v, self.bias_v.repeat(1, batch, 1)])
            mask = None if mask is None else F.pad(mask, (0, 1))
        heads = batch * self.num_heads
        q = q.view(length, heads, self.head_dim).transpose(0, 1)
        k = k.view(k.shape[0], heads, self.head_dim).transpose(0, 1)
        v = v.view(v.shape[0], heads, self.head_dim).transpose(0, 1)
        if self.add_zero_attn:
            zeros = k.new_zeros(heads, 1, self.head_dim)
            k, v = torch.cat([k, zeros], dim=1), torch.cat([v, zeros], dim=1)
            mask = None if mask is None else F.pad(mask, (0, 1))
        weights: Tensor | None = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scaled = q * math.sqrt(1.0 / float(self.head_dim))
            if mask is not None:
                scores = torch.baddbmm(mask, scaled, k.transpose(-2, -1))
            else:
                scores = torch.bmm(scaled, k.transpose(-2, -1))
            weights = F.softmax(scores, dim=-1)
            if dropout > 0.0:
                weights = F.dropout(weights, p=dropout)
            mixed = torch.bmm(weights, v).transpose(0, 1).contiguous()
        else:
            if mask is not None:
                one = mask.shape[0] == 1
                mask = mask[None] if one else mask.view(batch, self.num_heads, -1, k.shape[1])
            shape = (batch, self.num_heads, -1, self.head_dim)
            q, k, v = q.view(shape), k.view(shape), v.view(shape)
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
            mixed = mixed.permute(2, 0, 1, 3).contiguous()
        mixed = mixed.view(length * batch, self.num_heads * self.head_dim)
        output = F.linear(mixed, self.out_proj.weight, self.out_proj.bias)
        output = output.view(length, batch, output.shape[1])
        if weights is not None:
            weights = weights.view(batch, self.num_heads, length, k.shape[1])
            if average_attn_weights:
                weights = weights.mean(dim=1)
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return output.squeeze(1), weights
        return output.transpose(1, 0) if self.batch_first else output, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [length, batch, heads * head_dim]."""
        width = self.num_heads * self.head_dim
        if self.in_proj_weight is not None and query is key and key is value:
            joint = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            joint = joint.unflatten(-1, (3, width)).unsqueeze(0)  # type: ignore[no-untyped-call]
            joint = joint.transpose(0, -2).squeeze(-2).contiguous()
            return joint[0], joint[1], joint[2]
        bias = self.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        q, k, v = (
            F.linear(x, weight, b)
            for x, weight, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def _mask(
        self, query: Tensor, key: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores [batch * heads or 1, length, source]; None for nothing."""
        masks = []
        for given in (padding, mask):
            if given is not None and given.dtype == torch.bool:
                zeros = torch.zeros_like(given, dtype=query.dtype)
                given = zeros.masked_fill_(given, float("-inf"))
            masks.append(given)
        padding, mask = masks
        if mask is not None and mask.dim() == 2:
            mask = mask.unsqueeze(0)
        if padding is None:
            return mask
        batch, source = query.shape[1], key.shape[0]
        padding = padding.view(batch, 1, 1, source).expand(-1, self.num_heads, -1, -1)
        padding = padding.reshape(batch * self.num_heads, 1, source)
        return padding if mask is None else mask + padding


def unpacked(trace: TorchTrace) -> TorchTrace:
    """The trace with those attentions that must come apart as `nn.MultiheadAttention` writes them
    for keys of another width than the queries: a weight each for queries, keys and values.

    They read from streams that are cut in different places, so that no packed weight can hold what
    stays. The graph and its ONNX twin are the same; so is `trace` where there is none.
    """
    apart = {
        path: places
        for path, part in trace.module.named_modules()
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None
        for places in [trace.moved.get(_joined(path, "in_proj_weight"), ())]
        if _read_apart(trace, places)
    }
    if not apart:
        return trace
    module = detached_copy(trace.module)
    moved = dict(trace.moved)
    for path, places in apart.items():
        part = module.get_submodule(path)
        assert isinstance(part, nn.MultiheadAttention)
        _unpack(part)
        del moved[_joined(path, "in_proj_weight")]
        for third, name in enumerate(_PROJECTIONS):
            first = third * part.embed_dim
            rows = range(first, first + part.embed_dim)
            moved[_joined(path, name)] = tuple(_moved_up(trace, places, rows))
    return replace(trace, module=module, moved=moved)


_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _read_apart(trace: TorchTrace, places: tuple[Place, ...]) -> bool:
    """Whether the parts of a packed weight [3 E, E] read channels of different groups."""
    columns = [trace.onnx.channels.axis_units(place.tensor, place.axes[1]) for place in places]
    return any(not np.array_equal(columns[0], other) for other in columns[1:])


def _moved_up(trace: TorchTrace, places: tuple[Place, ...], rows: range) -> Iterator[Place]:
    """The places as they are of these rows of the weight, those elsewhere left out."""
    for place in places:
        start = place.starts[0]
        group, _ = trace.onnx.channels.axis_units(place.tensor, place.axes[0])
        if start < rows.stop and start + len(group) > rows.start:
            yield replace(place, starts=(start - rows.start, *place.starts[1:]))


def _unpack(attention: nn.MultiheadAttention) -> None:
    """Makes three weights of the packed one, in place."""
    packed = attention.in_proj_weight
    for name, weight in zip(_PROJECTIONS, packed.detach().chunk(3), strict=True):
        parameter = nn.Parameter(weight.clone(), packed.requires_grad)
        attention.register_parameter(name, parameter)
    attention.register_parameter("in_proj_weight", None)
    # torch's own flag of whether the packed weight is there.
    attention._qkv_same_embed_dim = False
