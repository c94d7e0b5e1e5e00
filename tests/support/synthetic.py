"""Planning tasks made by hand, for tests that need no model file: graphs, tables and profiles.

Everything follows from the seed. `random_task` is the usual door; `resnet_like` has the size of a
CIFAR ResNet and is what speed is judged on.
"""

from __future__ import annotations

import hashlib

import numpy as np

from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.interval import Interval
from rlprune.latency.tables import LatencyTables
from rlprune.recording.evaluations import Evaluations
from rlprune.schemes import Form, Space, space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask


def group_width(group: int) -> Width:
    """The width of one group, each unit one channel."""
    return Width(0, ((group, 1),))


def conv(
    name: str,
    source: int,
    in_width: Width,
    out_width: Width,
    side: int,
    *,
    kernel: int = 3,
    stride: int = 1,
) -> Operator:
    """A square convolution that reads operator `source` (-1: the image) at `side` x `side`."""
    out = -(-side // stride)
    pad = kernel // 2
    return Operator(
        name=name,
        kind="conv",
        variant="",
        inputs=(source,),
        in_width=in_width,
        out_width=out_width,
        in_spatial=(side, side),
        out_spatial=(out, out),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pads=(pad,) * 4,
        dilation=(1, 1),
    )


def plain(name: str, kind: str, source: int, width: Width, side: int) -> Operator:
    """An operator without weights that keeps its input's shape."""
    return Operator(name, kind, "", (source,), width, width, (side, side), (side, side))


def linear(name: str, source: int, in_width: Width, out_width: Width) -> Operator:
    """A fully connected layer over pooled features."""
    return Operator(name, "linear", "", (source,), in_width, out_width, (), ())


def graph_of(
    groups: list[Group], operators: list[Operator], shape: tuple[int, ...]
) -> PruningGraph:
    """A graph whose fingerprint is a hash of what was given."""
    text = repr((groups, operators, shape))
    return PruningGraph(
        hashlib.sha256(text.encode()).hexdigest(), tuple(groups), tuple(operators), (shape,)
    )


def chain_graph(widths: list[int], *, side: int = 16) -> PruningGraph:
    """A plain stack of 3x3 convolutions and a classifier: costs couple neighbours only."""
    groups = [Group(f"conv{i}", width, ()) for i, width in enumerate(widths)]
    operators: list[Operator] = []
    before = Width(3)
    for index in range(len(widths)):
        width = group_width(index)
        operators.append(conv(f"conv{index}", len(operators) - 1, before, width, side))
        before = width
    operators.append(linear("head", len(operators) - 1, before, Width(10)))
    return graph_of(groups, operators, (1, 3, side, side))


def resnet_like(
    blocks: tuple[int, ...] = (9, 9, 9), *, width: int = 16, side: int = 32
) -> PruningGraph:
    """A CIFAR ResNet, shortcuts projected: a stream group a stage, an inner group a block."""
    groups = [Group("stem", width, ())]
    operators = [conv("stem", -1, Width(3), group_width(0), side)]
    stream = 0
    for stage, count in enumerate(blocks):
        stage_width = width << stage
        for block in range(count):
            name = f"s{stage}b{block}"
            stride = 2 if stage and not block else 1
            source = len(operators) - 1
            in_width = group_width(stream)
            inner = len(groups)
            groups.append(Group(f"{name}.conv1", stage_width, ()))
            operators.append(
                conv(f"{name}.conv1", source, in_width, group_width(inner), side, stride=stride)
            )
            if stage and not block:
                stream = len(groups)
                groups.append(Group(f"{name}.conv2", stage_width, ()))
            out = group_width(stream)
            operators.append(
                conv(f"{name}.conv2", len(operators) - 1, group_width(inner), out, side // stride)
            )
            shortcut = source
            if stage and not block:
                operators.append(
                    conv(f"{name}.down", source, in_width, out, side, kernel=1, stride=2)
                )
                shortcut = len(operators) - 1
            side //= stride
            add = Operator(
                name=f"{name}.add",
                kind="add",
                variant="",
                inputs=(len(operators) - 1, shortcut),
                in_width=out,
                out_width=out,
                in_spatial=(side, side),
                out_spatial=(side, side),
            )
            operators.append(add)
    operators.append(linear("head", len(operators) - 1, group_width(stream), Width(10)))
    return graph_of(
        groups, operators, (1, 3, operators[0].in_spatial[0], operators[0].in_spatial[1])
    )


def random_graph(
    rng: np.random.Generator, group_count: int, *, greatest_width: int = 64
) -> PruningGraph:
    """Convolutions wired at random: chains, shared streams, depthwise layers and concatenations."""
    widths = [int(rng.integers(1, greatest_width + 1)) for _ in range(group_count)]
    groups = [Group(f"g{i}", width, ()) for i, width in enumerate(widths)]
    side = int(rng.choice([4, 8, 16]))
    operators: list[Operator] = []
    before = Width(3)
    for index in range(group_count):
        out = group_width(index)
        stride = 2 if side > 2 and rng.random() < 0.2 else 1
        kernel = int(rng.choice([1, 3, 5]))
        source = len(operators) - 1
        operators.append(conv(f"c{index}", source, before, out, side, kernel=kernel, stride=stride))
        side = -(-side // stride)
        if rng.random() < 0.3:
            operators.append(
                Operator(
                    f"d{index}", "depthwise_conv", "", (len(operators) - 1,), out, out,
                    (side, side), (side, side), (3, 3), (1, 1), (1,) * 4, (1, 1), 0,
                )
            )  # fmt: skip
        if rng.random() < 0.3:  # a second producer: the group becomes a stream
            operators.append(conv(f"r{index}", len(operators) - 1, out, out, side))
            operators.append(plain(f"a{index}", "add", len(operators) - 1, out, side))
        if index and rng.random() < 0.3:  # the next layer reads two groups side by side
            other = int(rng.integers(0, index))
            before = Width(int(rng.integers(0, 3)), ((other, 1), (index, 1)))
            operators.append(plain(f"k{index}", "concat", len(operators) - 1, before, side))
        else:
            before = out
    operators.append(linear("head", len(operators) - 1, before, Width(10)))
    return graph_of(groups, operators, (1, 3, *operators[0].in_spatial))


def channel_space(graph: PruningGraph, *, round_to: int = 8, max_levels: int = 16) -> Space:
    """What may be decided where the user states nothing but the multiple of channels."""
    return space_with(graph, *keep_levels(graph, round_to=round_to, max_levels=max_levels))


def random_tables(
    space: Space,
    rng: np.random.Generator,
    *,
    noise: float = 0.0,
    interval_ratio: tuple[float, float] = (0.95, 1.05),
) -> LatencyTables:
    """MACs at a rate per kind plus a cost per operator and per channel moved, in ms.

    noise > 0 multiplies every entry by a random factor: fewer channels may then cost more.
    """
    rate = {"conv": 1e-4, "depthwise_conv": 4e-4, "linear": 5e-5}  # ms per thousand MACs

    def cost(form: Form, in_width: IntArray, out_width: IntArray) -> FloatArray:
        op = form.operator
        ins, outs = in_width[:, None], out_width[None, :]
        cells = float(np.prod(op.out_spatial)) if op.out_spatial else 1.0
        ms = op.macs_at(ins, outs) * (rate.get(op.kind, 0.0) / 1e3)
        ms = ms + 2e-6 * cells * (ins + outs) + 2e-3
        return np.asarray(ms * np.exp(noise * rng.standard_normal(ms.shape)))

    return LatencyTables.compile(
        "synthetic", space, cost, overhead_ms=0.01, interval=Interval(*interval_ratio)
    )


def random_profiles(space: Space, rng: np.random.Generator, *, folds: int = 4) -> GroupProfiles:
    """Convex loss curves of very different height per group, with noise between the folds.

    folds=0 gives data-free profiles.
    """
    levels = space.settings
    dropped = 1.0 - levels / levels[:, -1:]  # [G, L]
    power = rng.uniform(1.2, 4.0, len(levels))[:, None]
    height = np.exp(rng.normal(-1.5, 1.0, len(levels)))[:, None]
    energy = dropped ** rng.uniform(1.0, 2.0, len(levels))[:, None]
    measured = None
    if folds:
        jitter = np.exp(0.2 * rng.standard_normal((folds, len(levels), 1)))
        measured = height * dropped**power * jitter
    return GroupProfiles(
        fingerprint=space.graph.fingerprint,
        levels=levels,
        level_count=space.option_count,
        energy_loss=energy,
        measured_loss=measured,
        base_loss=0.3 if folds else float("nan"),
        image_count=256 * folds,
    )


def task_of(
    graph: PruningGraph,
    *,
    seed: int = 0,
    round_to: int = 8,
    noise: float = 0.0,
    folds: int = 4,
    max_levels: int = 16,
) -> PruningTask:
    """A task over `graph` with random tables and profiles."""
    rng = np.random.default_rng(seed)
    space = channel_space(graph, round_to=round_to, max_levels=max_levels)
    return PruningTask(
        space=space,
        tables=random_tables(space, rng, noise=noise),
        profiles=random_profiles(space, rng, folds=folds),
    )


def random_task(
    seed: int,
    *,
    group_count: int = 6,
    round_to: int = 8,
    noise: float = 0.0,
    folds: int = 4,
    max_levels: int = 16,
) -> PruningTask:
    """A task over a random graph with random tables and profiles."""
    graph = random_graph(np.random.default_rng((seed, 1)), group_count)
    return task_of(
        graph, seed=seed, round_to=round_to, noise=noise, folds=folds, max_levels=max_levels
    )


def evaluations_of(
    keeps: IntArray, increase: FloatArray, accuracy: FloatArray | None = None
) -> Evaluations:
    """Plans [N, G] drawn at random, with their losses above an unpruned model's of 0.3."""
    count = len(keeps)
    return Evaluations(
        keeps=keeps,
        loss=increase + 0.3,
        loss_se=np.full(count, 0.01),
        divergence=increase,
        accuracy=np.exp(-increase) if accuracy is None else accuracy,
        base_loss=0.3,
        source=np.full(count, "random"),
        device=np.full(count, "macs"),
        budget=np.full(count, 1.0),
        batch=np.zeros(count, dtype=np.int64),
    )
