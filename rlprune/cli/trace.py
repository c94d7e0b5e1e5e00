"""`trace`: what of a model can be pruned, what not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprune.cli.inputs import InputValues
from rlprune.cli.models import Model, load_trace
from rlprune.cli.shared import (
    Hold,
    InputShapes,
    Json,
    MinKeep,
    MinKeepRatio,
    Pin,
    RoundTo,
    SchemeNames,
    console,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from rlprune.latency.tables import LatencyTables
    from rlprune.schemes import Space

FIGURES = 40
"""Columns of a terminal that a group's figures take in the table."""
NAME = 28
"""Most characters of a name in what is held; exporters make some of 200."""
SHOWN = 4
"""Names that a line lists before it only counts them; a DenseNet's layer has 60 readers."""


def trace(
    model: Model,
    tree: Annotated[
        bool, typer.Option("--tree", help="Groups with their members, then what is held and why.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="KEY|RUNTIME|macs",
            help="Whose latency is shared out, from the local store; nothing is measured. A key, "
            "or ort, openvino, mnn on this machine. MACs stand in if left out.",
        ),
    ] = None,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    round_to: RoundTo = None,
    min_keep: MinKeep = 1,
    min_keep_ratio: MinKeepRatio = 0.0,
    hold: Hold = None,
    pin: Pin = None,
    schemes: SchemeNames = None,
    as_json: Json = False,
) -> None:
    """Show what of a model can be pruned, and why the rest cannot.

    One row per group of channels that live or die together, then what is not prunable and why.
    """
    from rlprune.constraints import Constraints, bind
    from rlprune.latency.device import BLOCK, preferred_multiple
    from rlprune.reports.trace import trace_report
    from rlprune.schemes import CHANNEL_ONLY, asked_schemes, space_of

    constraints = Constraints(
        round_to, min_keep, min_keep_ratio, tuple(hold or ()), tuple(pin or ())
    )
    traced = load_trace(model, input_shape, input_value)
    graph = traced.graph
    if device is not None:
        from rlprune.planning import which_device

        device, _ = which_device(device, graph)
    preferred = BLOCK if device is None else preferred_multiple(device)
    bound = bind(graph, constraints, round_to=preferred, device=device or "")
    space = space_of(graph, bound, asked_schemes(schemes or ()) or CHANNEL_ONLY)
    facts = trace_report(space, bound, _tables(space, device))
    facts["notes"] = list(traced.notes)
    if as_json:
        print_json(facts)
        return
    measured = device not in (None, "macs")
    latency = f"   {facts['latency_ms']:.4g} ms on {device}" if measured else ""
    print_line(
        f"graph {graph.fingerprint[:12]}   {facts['macs'] / 1e6:.2f} M MACs   "
        f"{facts['params']:,} parameters{latency}"
    )
    (_print_tree if tree else _print_tables)(facts)
    if facts["sites"]:
        print_table(("scheme", "sites", "options"), _site_rows(facts["sites"]), left=3)
    for note in traced.notes:
        print_line(f"note: {note}")
    if facts["uncounted"]:
        print_line(f"Not counted in the MACs: {'; '.join(map(_unknown, facts['uncounted']))}.")
    print_line(
        f"{facts['prunable_macs_ratio']:.1%} of the MACs are prunable. MACs, params, latency: what "
        "goes with the whole group; neighbours share them."
        + ("" if measured else " Latency is counted in MACs; --device has a device's.")
    )


def _tables(space: Space, device: str | None) -> LatencyTables:
    """The device's latencies as the local store predicts them; MACs where none is given.

    Raises:
        NotFoundError: the store does not know the device, or nothing of this model on it.
    """
    from rlprune.latency.macs import macs_tables
    from rlprune.latency.types import MACS_DEVICE
    from rlprune.planning import check_measured, task_for
    from rlprune.sensitivity.energy import shape_profiles

    if device in (None, MACS_DEVICE):
        return macs_tables(space)
    from rlprune.store import open_store

    store = open_store()
    check_measured(space.graph, store, str(device))
    return task_for(space, shape_profiles(space), store, str(device)).tables


def _print_tables(facts: dict[str, Any]) -> None:
    """One line a group where names are not too long; one row for what is held for one reason."""
    constrained = any(group["constraint"] for group in facts["groups"])
    columns = ["group", "members", "width", "MACs", "params", "latency"]
    room = max(console().width - FIGURES, 24) // (2 + constrained)
    rows = []
    for group in facts["groups"]:
        members = _fitting(_called(group["axes"]), room)
        row = [shortened(group["name"], room), members, str(group["width"]), *_shares(group)]
        if constrained:
            row.insert(1, shortened(group["constraint"], room))
        rows.append(row)
    if constrained:
        columns.insert(1, "constraint")
    print_table(columns, rows, left=2 + constrained)
    if facts["held"]:
        print_table(("not prunable", "why", "width", "times"), held_rows(facts["held"]), left=2)


def _site_rows(sites: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Sites of other schemes than `channel`; those of the same options are one row."""
    found: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        options = site["options"]
        words = _factored(options) if len(options) > 1 else f"{options[0]}: nothing to decide"
        found.setdefault((site["scheme"], words), []).append(site["name"])
    room = max(console().width // 3, 24)
    return [(scheme, _fitting(names, room), words) for (scheme, words), names in found.items()]


def _factored(options: Sequence[str]) -> str:
    """`1x1, 1x3, 3x3 of 3x3`: what all options end in is said once."""
    ends = {option.partition(" of ")[2] for option in options}
    if len(ends) > 1 or "" in ends:
        return ", ".join(options)
    return f"{', '.join(option.partition(' of ')[0] for option in options)} of {ends.pop()}"


def held_rows(held: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Layer, reason, width and how often, once per weight and reason.

    The node whose rule it is goes unnamed, so that a weight that many nodes read is one row;
    `--tree` and `--json` name it.
    """
    found: Counter[tuple[str, str, int]] = Counter()
    layers: dict[str, str] = {}
    for one in held:
        node, reason = one["forced_by"], one["reason"]
        layers.setdefault(one["tensor"], one["layer"] or one["tensor"])
        found[one["tensor"], reason.replace(f" {node}", "") if node else reason, one["width"]] += 1
    return [
        (shortened(layers[tensor], NAME), reason, str(width), str(often))
        for (tensor, reason, width), often in found.items()
    ]


def shortened(name: str, room: int) -> str:
    """The name, what is in its middle left out where it is longer than `room`."""
    if len(name) <= room:
        return name
    tail = (room - 1) // 2
    return f"{name[: room - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def _fitting(names: list[str], room: int) -> str:
    """As many names as fit, and how many more there are; `--json` has all."""
    names = [shortened(name, room) for name in names]
    for count in range(len(names), 1, -1):
        more = f" +{len(names) - count}" if count < len(names) else ""
        text = ", ".join(names[:count]) + more
        if len(text) <= room:
            return text
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return shortened(names[0], max(room - len(more), 8)) + more if names else ""


def _unknown(one: Mapping[str, Any]) -> str:
    return f"{one['operator']} x {one['count']} ({one['params_ratio']:.1%} of the parameters)"


def _print_tree(facts: dict[str, Any]) -> None:
    """Groups, the axes that make or carry their channels, and those that read them; then holds."""
    from rich.text import Text
    from rich.tree import Tree

    groups = facts["groups"]
    root = Tree(Text(f"{len(groups)} groups"))
    for group in groups:
        macs, params, latency = _shares(group)
        low, high = group["levels"][0], group["levels"][-1]
        keeps = f"keeps {low}..{high}" if low < high else f"keeps {high}"
        branch = root.add(
            Text(
                f"{group['name']}: {group['width']} units, {keeps}; "
                f"{macs} of MACs, {params} of params, {latency} of latency"
                + (f"; {group['constraint']}" if group["constraint"] else "")
            )
        )
        makes = [axis for axis in group["axes"] if not axis["reads"]]
        readers = [axis for axis in group["axes"] if axis["reads"]]
        for axis in makes[:SHOWN]:
            branch.add(Text(_axis(axis)))
        if len(makes) > SHOWN:
            branch.add(Text(f"and {_some(_called(makes[SHOWN:]))}"))
        if readers:
            branch.add(Text(f"read by {_some(_called(readers))}"))
    console().print(root)
    if not facts["held"]:
        return
    whole = Tree(Text("not prunable"))
    reasons: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for held in facts["held"]:
        reasons.setdefault((held["reason"], held["forced_by"]), []).append(held)
    for (reason, node), axes in reasons.items():
        by = f" (by {node})" if node and node not in reason else ""
        branch = whole.add(Text(f"{reason}{by}".replace(node, shortened(node, NAME))))
        layers = [shortened(h["layer"] or h["tensor"], NAME) for h in axes]
        branch.add(Text(_some([f"{n} x {h['width']}" for n, h in zip(layers, axes, strict=True)])))
    console().print(whole)


def _axis(axis: dict[str, Any]) -> str:
    """One weight axis: its tensor, and what reads it where the tensor does not say that."""
    layer, tensor = axis["layer"], axis["tensor"]
    where = [name for name in (layer, axis["node"]) if name and not tensor.startswith(name)]
    repeat = f", {axis['repeat']} each" if axis["repeat"] > 1 else ""
    return f"{tensor}[{axis['axis']}]{repeat}" + (f"  in {' = '.join(where)}" if where else "")


def _called(axes: Iterable[dict[str, Any]]) -> list[str]:
    """Layers with the axis, each once: of a layer's weight, bias and statistics one is enough."""
    names = (f"{axis['layer'] or axis['tensor']}[{axis['axis']}]" for axis in axes)
    return list(dict.fromkeys(names))


def _shares(group: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{group['macs_ratio']:.1%}",
        f"{group['params_ratio']:.1%}",
        f"{group['latency_ratio']:.1%}",
    )


def _some(names: list[str]) -> str:
    """The first names, and how many more there are; `--json` has all."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
