"""What of a model can be pruned, what not, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rlprune.constraints import BoundConstraints
from rlprune.latency.tables import LatencyTables
from rlprune.planning.shares import group_shares
from rlprune.schemes import Space, scheme_named


def trace_report(space: Space, bound: BoundConstraints, tables: LatencyTables) -> dict[str, Any]:
    """Everything that is told of a graph: its groups, what is not prunable, their shares.

    Args:
        space: the options within the constraints.
        tables: whose latency is shared out.
    """
    graph = space.graph
    shares = group_shares(graph, tables)
    return {
        "fingerprint": graph.fingerprint,
        "input_shapes": graph.input_shapes,
        "macs": int(graph.macs(graph.widths)),
        "params": int(graph.params(graph.widths)),
        "device": tables.device,
        "latency_ms": shares.latency_ms,
        "prunable_macs_ratio": graph.prunable_macs_ratio(bound.held),
        "constraints": asdict(bound.recorded),
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "levels": list(space.sites[index].values),
                "macs_ratio": float(shares.macs[index]),
                "params_ratio": float(shares.params[index]),
                "latency_ratio": float(shares.latency[index]),
                "constraint": bound.why(index),
                "members": [f"{m.tensor}[{m.axis}]" for m in group.members],
                "axes": [asdict(member) for member in group.members],
            }
            for index, group in enumerate(graph.groups)
        ],
        "sites": [
            {
                "name": site.name,
                "scheme": site.scheme,
                "values": list(site.values),
                "options": [
                    scheme_named(site.scheme).describe(site, value) for value in site.values
                ],
            }
            for site in space.sites[space.group_count :]
        ],
        "held": [asdict(held) for held in graph.held],
        "uncounted": [
            {**asdict(one), "params_ratio": one.params / max(int(graph.params(graph.widths)), 1)}
            for one in graph.uncounted
        ],
    }
