"""A torch module as ONNX in memory, by the older of torch's exporters or by the newer one.

Both are told to fold nothing and to keep BatchNorm, so that every initializer bears its
`state_dict` name. The older one goes first: it is quicker, and writes fewer nodes. What it does not
know (RMSNorm, grouped-query attention) the newer one does, on top of `onnxscript`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from enum import Enum
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from rlprune.errors import ModelError
from rlprune.graph.torch_call import (
    Call,
    as_float32,
    detached_copy,
    first_line,
    named_tensors,
    plain_attention,
    refuse_value_reads,
)

OLDER_OPSET = 17
"""The newest that the older exporter writes without opset-18 forms of Split, Pad and reductions."""
NEWER_OPSET = 18
"""The oldest that the newer exporter writes by itself, without converting what it wrote."""


class Exporter(Enum):
    """Which of torch's two exporters."""

    OLDER = "older"
    """By way of TorchScript (`dynamo=False`)."""
    NEWER = "newer"
    """By way of `torch.export` (`dynamo=True`)."""


def newer_exporter_missing() -> bool:
    """Whether the library is not installed that torch's newer exporter is written with."""
    return importlib.util.find_spec("onnxscript") is None


def export_onnx(
    module: nn.Module,
    call: Call,
    exporter: Exporter,
    *,
    prepare: Callable[[nn.Module], None] = lambda _: None,
) -> onnx.ModelProto:
    """`module` in eval mode and float32 as ONNX, nothing folded, initializers named as in
    `state_dict`.

    Args:
        module: not changed.
        call: what it is called with.
        prepare: what to do to the copy that is exported.

    Raises:
        ModelError: the exporter refuses the module; the message is the exporter's first line.
    """
    twin = _twin(module)
    with torch.no_grad():
        _tell_apart(twin)
    prepare(twin)
    call.flatten(twin)
    export = _older if exporter is Exporter.OLDER else _newer
    try:
        with _running():
            model = export(twin, call.tensors())
    except Exception as error:  # anything the forward code or the exporter may raise
        raise ModelError(_reason(error)) from error
    values = dict(named_tensors(module))
    for initializer in model.graph.initializer:
        value = values.get(initializer.name)
        if value is not None and tuple(value.shape) == tuple(initializer.dims):
            array = as_float32(value.detach()).cpu().contiguous().numpy()
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    return model


def refuse_branches(module: nn.Module, call: Call) -> None:
    """Runs a copy of `module` in eval mode and float32, and refuses branches on computed values.

    Raises:
        ModelError: naming the line; or the module does not run on `call`.
    """
    with _running():
        refuse_value_reads(_twin(module), call)


@contextmanager
def _running() -> Iterator[None]:
    """Around code of the user's or an exporter's: nothing printed, nothing drawn."""
    with (
        plain_attention(),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        silence(),
    ):
        # Its age, what it folds, branches on shapes: the graph that comes out is what counts, and
        # every cut made with it is checked.
        warnings.simplefilter("ignore")
        yield


def _twin(module: nn.Module) -> nn.Module:
    twin = detached_copy(module).eval().cpu().float()
    for part in twin.modules():
        # The exporters name what `state_dict` lists and turn other buffers into constants.
        part._non_persistent_buffers_set.clear()
    return twin


def _older(twin: nn.Module, tensors: tuple[Tensor, ...]) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        twin,
        tensors,
        file,  # type: ignore[arg-type]  # annotated for the newer exporter only
        # Eval-mode training flags, yet BatchNorm stays a node with its own tensors.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=OLDER_OPSET,
        dynamo=False,
    )
    return onnx.load_model_from_string(file.getvalue())


def _newer(twin: nn.Module, tensors: tuple[Tensor, ...]) -> onnx.ModelProto:
    program = torch.onnx.export(
        twin, tensors, dynamo=True, opset_version=NEWER_OPSET, optimize=False, verbose=False
    )
    assert program is not None
    # By way of its bytes: the proto may hold on to the module's own memory.
    model = onnx.load_model_from_string(program.model_proto.SerializeToString())
    _settle_types(model)
    return model


def _settle_types(model: onnx.ModelProto) -> None:
    """Makes a Cast of every CastLike, which the exporter's optimiser would have done, in place.

    The optimiser is not asked, since it folds small weights and so takes their names away.
    """
    casts = [node for node in model.graph.node if node.op_type == "CastLike"]
    if not casts:
        return
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    types |= {initializer.name: initializer.data_type for initializer in graph.initializer}
    for node in casts:
        if types.get(node.input[1]):
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", types[node.input[1]]))
            del node.input[1:]


def _reason(error: Exception) -> str:
    """The first line that says something: the newer exporter wraps what went wrong twice."""
    cause = error.__cause__
    while isinstance(cause, Exception) and type(error).__module__.startswith("torch.onnx"):
        error, cause = cause, cause.__cause__
    return first_line(error)


def _tell_apart(module: nn.Module) -> None:
    """Gives tensors of equal content different content, in place.

    The exporter makes one initializer of equal ones, such as all BatchNorm scales of a fresh net,
    which would tie together channels that have nothing to do with each other. The true values are
    put back afterwards.
    """
    seen: set[tuple[object, ...]] = set()
    done: set[int] = set()
    for _, tensor in named_tensors(module):
        if not tensor.is_floating_point() or tensor.data_ptr() in done:
            continue
        done.add(tensor.data_ptr())
        while (key := _content(tensor)) in seen:
            tensor.add_(len(seen) * 0.125)
        seen.add(key)


def _content(tensor: Tensor) -> tuple[object, ...]:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), hash(raw)


# --- what the exporters print ----------------------------------------------------------------

_SILENT = threading.Lock()


@contextmanager
def silence() -> Iterator[None]:
    """Keeps what the exporters print off standard output, which may be read as JSON.

    The older one prints its whole graph on a refusal, from C++, where `redirect_stdout` does not
    reach: so the file descriptor itself is turned away, one thread at a time, and always put back.
    What other threads of the process print meanwhile is lost.
    """
    log = logging.getLogger("torch")
    with _SILENT, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            with _descriptor_to_nowhere(1):
                yield
        finally:
            log.setLevel(level)


@contextmanager
def _descriptor_to_nowhere(descriptor: int) -> Iterator[None]:
    try:
        kept = os.dup(descriptor)
    except OSError:  # closed, as in a daemon: nothing can be printed
        yield
        return
    try:
        _flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
        yield
    finally:
        _flush()  # what C has buffered would come out later
        os.dup2(kept, descriptor)
        os.close(kept)


def _flush() -> None:
    """Python's standard output and C's buffers."""
    with suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    if os.name == "posix":
        library: Any = ctypes.CDLL(None)
        library.fflush(None)
