"""The extents that a file leaves open: the sizes it is analysed at, and others to compare with.

What a file declares open stays open. The model is walked at the sizes given (a batch of one where
none is) and at others: what is computed alike at all of them is constant, the rest stays computed.
An extent at which no other size goes through is closed, with a sentence that says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from onnx import ModelProto, ValueInfoProto

from rlprune.errors import ModelError
from rlprune.graph.load import check_shape
from rlprune.graph.walk import Shape, Walk

SIZES_KEY = "rlprune.sizes"
"""`metadata_props` key of the extents a model with open ones was analysed at: a JSON object of
lists by input name."""

MAX_APART = 8
"""Most open extents that are looked at one by one."""
Label = tuple[str, int]
"""What the file calls an open extent (its parameter, or where it lies), and the extent given."""
Change = Mapping[Label, int]
Types = dict[str, tuple[int, Shape]]


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input of the graph that is no weight."""

    name: str
    elem_type: int
    extents: Shape
    """Analysed at; 1 for a batch that nobody stated."""
    labels: tuple[Label | None, ...]
    """Per axis the label of an open extent; axes of one label are always of one size."""

    def at(self, change: Change) -> tuple[int, Shape]:
        """Element type and extents where open ones are as `change` says."""
        pairs = zip(self.labels, self.extents, strict=True)
        return self.elem_type, tuple(
            extent if label is None else change.get(label, extent) for label, extent in pairs
        )


@dataclass(frozen=True, slots=True)
class OtherSizes:
    """What walks at other sizes found."""

    walks: tuple[Walk, ...]
    """Empty where nothing is open."""
    open: frozenset[Label]
    closed: tuple[str, ...]
    """A sentence for every extent that the file leaves open and that cannot stay so."""


def read_inputs(model: ModelProto, given: Mapping[str, Sequence[int]]) -> tuple[GraphInput, ...]:
    """The inputs of a model with the extents it is to be analysed at.

    Raises:
        ModelError: an extent beside the batch is open and not given; what is given does not fit.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    real = [value for value in model.graph.input if value.name not in constants]
    unknown = set(given) - {value.name for value in real}
    if unknown:
        names = ", ".join(value.name for value in real)
        raise ModelError(
            f"no graph input {sorted(unknown)[0]!r}; the inputs are: {names}", field="input_shapes"
        )
    noted = _noted(model)
    return tuple(_read(value, given.get(value.name), noted.get(value.name)) for value in real)


def _read(
    value: ValueInfoProto, given: Sequence[int] | None, noted: Sequence[int] | None
) -> GraphInput:
    name, kind = value.name, value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    names = [d.dim_param for d in kind.shape.dim]
    ranked = kind.HasField("shape")
    if not ranked:
        dims, names = [-1, -1], ["", ""]
    if given is None and noted is not None and (len(noted) == len(dims) or not ranked):
        given = noted
    if given is not None:
        stated = [int(d) for d in given]
        if len(stated) != len(dims) and ranked:
            raise ModelError(
                f"input {name!r} has {len(dims)} axes, --input-shape gives {len(stated)}",
                field="input_shapes",
            )
        if not ranked:
            dims, names = [-1] * len(stated), [""] * len(stated)
        fits = all(d in (-1, s) for d, s in zip(dims, stated, strict=True))
        if any(d < 1 for d in stated) or not fits:
            raise ModelError(
                f"input {name!r} is {text(dims)}, --input-shape gives {text(stated)}",
                field="input_shapes",
            )
    elif any(d == -1 for d in dims[1:]):
        example = "x".join("1" if k == 0 else str(d) if d > 0 else "N" for k, d in enumerate(dims))
        raise ModelError(
            f"input {name!r} is {text(dims)}: its extents must be known; "
            f"say them with --input-shape {name}={example}",
            field="input_shapes",
        )
    else:
        stated = [abs(d) for d in dims]
    check_shape(name, stated)
    if 0 in dims:
        raise ModelError(f"input {name!r} is empty ({text(dims)})")
    labels = tuple(
        None if d > 0 else (_called(name, axis, names[axis]), stated[axis])
        for axis, d in enumerate(dims)
    )
    return GraphInput(name, kind.elem_type, tuple(stated), labels)


def _called(name: str, axis: int, parameter: str) -> str:
    """What an open extent is called; batches without a name are one, other extents on their own."""
    if parameter and parameter != "?":
        return parameter
    return f"{name} {axis}" if axis else ""


def other_sizes(
    inputs: Sequence[GraphInput], first: Walk, walk_at: Callable[[Types], Walk]
) -> OtherSizes:
    """Walks at a few other sizes of all that can stay open.

    All open extents are changed together, each by a factor of its own where that goes through, so
    that none is taken for another; where no such sizes do, one after the other.
    """
    labels = tuple(dict.fromkeys(label for one in inputs for label in one.labels if label))
    if not labels:
        return OtherSizes((), frozenset(), ())
    batches = {label for one in inputs for axis, label in enumerate(one.labels) if not axis}
    whys: dict[Label, str] = {}
    # Two batches tell constants apart; halves and remainders of other extents take more sizes.
    enough = 1 if set(labels) <= batches else 4

    def attempt(change: Change) -> Walk | str:
        try:
            other = walk_at({one.name: one.at(change) for one in inputs})
        except ModelError as error:
            return str(error)
        for name, (_, shape) in first.types.items():
            if name in other.types and len(other.types[name][1]) != len(shape):
                return f"the number of axes of {name!r} depends on it"
        return other

    def walks_of(some: Sequence[Label]) -> tuple[Walk, ...]:
        found: list[Walk] = []
        for change in _changes(some, batches):
            other = attempt(change)
            if isinstance(other, Walk):
                found.append(other)
            if len(found) == enough:
                break
        return tuple(found)

    found = walks_of(labels)
    if found:
        return OtherSizes(found, frozenset(labels), ())
    accepted: dict[Label, int] = {}
    for label in labels:
        for change in _changes((label,), batches):
            other = attempt({**accepted, **change})
            if isinstance(other, Walk):
                accepted.update(change)
                found = (other,)
                break
            whys.setdefault(label, other)
        else:
            continue
    closed = tuple(
        f"input {one.name!r} stays {extent} long on axis {axis}, which the file leaves open: "
        f"at another size {whys[label]}"
        for one in inputs
        for axis, (label, extent) in enumerate(zip(one.labels, one.extents, strict=True))
        if label is not None and label not in accepted
    )
    return OtherSizes(walks_of(tuple(accepted)) or found, frozenset(accepted), closed)


def some_sizes(inputs: Sequence[GraphInput]) -> list[tuple[Types, frozenset[Label]]]:
    """The sizes analysed, then others: of all that is open together, and of each alone.

    Each with the labels, batches apart, that have another size there; without them where there are
    more than `MAX_APART`, since each alone takes a walk.
    """
    labels = tuple(dict.fromkeys(label for one in inputs for label in one.labels if label))
    batches = {label for one in inputs for axis, label in enumerate(one.labels) if not axis}
    changes: list[Change] = [{}]
    if labels:
        changes += _changes(labels, batches)
    apart = len(labels) <= MAX_APART
    if len(labels) > 1 and apart:
        changes += [next(_changes((label,), batches)) for label in labels]
    return [
        (
            {one.name: one.at(change) for one in inputs},
            frozenset(change) - batches if apart else frozenset(),
        )
        for change in changes
    ]


def _changes(labels: Sequence[Label], batches: set[Label | None]) -> Iterator[Change]:
    """Other sizes to try, the likeliest to go through first."""

    places = {label: k % 2 for k, label in enumerate(one for one in labels if one not in batches)}
    # Of the size, and of 0 or 1 in turns: so two extents are not taken for one.
    rests: tuple[Callable[[int, int], int], ...] = (
        lambda size, odd: size * (2 + odd),
        lambda size, odd: size + 1 + 2 * odd,
        lambda size, odd: size + 32 * (1 + odd),
        lambda size, odd: max(size // 2, 1) if size > 1 else 2,
        lambda size, odd: 2 * size,
        lambda size, odd: size + 32,
        lambda size, odd: size + 1,
    )
    for rest in rests if places else rests[:1]:
        yield {
            label: 2 * label[1] if label in batches else rest(label[1], places[label])
            for label in labels
        }


def open_input(value: ValueInfoProto, one: GraphInput, still_open: frozenset[Label]) -> None:
    """Gives a graph input the extents that are closed; the others stay as the file has them."""
    shape = value.type.tensor_type.shape
    shape.SetInParent()
    while len(shape.dim) < len(one.extents):
        shape.dim.add()
    for dim, label, extent in zip(shape.dim, one.labels, one.extents, strict=True):
        if label is None or label not in still_open:
            dim.dim_value = extent
        elif dim.HasField("dim_value"):
            dim.ClearField("dim_value")


def note_sizes(
    model: ModelProto, inputs: Sequence[GraphInput], still_open: frozenset[Label]
) -> None:
    """Writes into a model what it was analysed at, where a batch of one does not say it all."""
    beyond = any(
        label in still_open and (axis > 0 or extent != 1)
        for one in inputs
        for axis, (label, extent) in enumerate(zip(one.labels, one.extents, strict=True))
    )
    kept = [entry for entry in model.metadata_props if entry.key != SIZES_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if beyond:
        sizes = {one.name: list(one.extents) for one in inputs}
        model.metadata_props.add(key=SIZES_KEY, value=json.dumps(sizes, sort_keys=True))


def _noted(model: ModelProto) -> Mapping[str, Sequence[int]]:
    """What `note_sizes` wrote into a model; nothing where it is damaged."""
    for entry in model.metadata_props:
        if entry.key == SIZES_KEY:
            try:
                found = json.loads(entry.value)
                return {
                    str(name): [int(extent) for extent in extents]
                    for name, extents in found.items()
                    if all(0 < int(extent) < 2**31 for extent in extents)
                }
            except (AttributeError, TypeError, ValueError, RecursionError):
                return {}
    return {}


def at_sizes(model: ModelProto) -> ModelProto:
    """The model at the sizes it was analysed at, as it is measured; itself where it notes none."""
    noted = _noted(model)
    if not noted:
        return model
    closed = deepcopy(model)
    for value in closed.graph.input:
        extents = noted.get(value.name, ())
        for dim, extent in zip(value.type.tensor_type.shape.dim, extents, strict=False):
            if not dim.dim_value:
                dim.dim_value = extent
    # What was inferred with open extents would contradict.
    del closed.graph.value_info[:]
    return closed


def text(dims: Sequence[int]) -> str:
    """Extents as a person writes them, `?` for open ones."""
    return "x".join("?" if d < 0 else str(d) for d in dims)
