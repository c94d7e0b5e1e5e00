"""Models measured as a worker measures them, without a server: `rlprune measure --isolated`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from rlprune.device.child import Child, ChildConfig, ChildFault
from rlprune.errors import InputError, MeasurementError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.skeleton import strip
from rlprune.latency.device import batch_of, local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.service.device_messages import measurement_from


def measure_isolated(
    traces: Sequence[OnnxTrace],
    *,
    runtime: str = "ort",
    thread_count: int = 1,
    child_config: ChildConfig | None = None,
) -> list[Measurement]:
    """Strips every model, fills the skeleton and measures it whole in a child process; `failed`,
    and why, where the model takes the child down.

    Raises:
        NotFoundError, MissingExtraError: no such runtime, or it is not installed.
    """
    found: list[Measurement] = []
    with closing(Child(runtime, child_config)) as child:
        child.start()
        for trace in traces:
            graph = trace.graph
            batch = batch_of(graph.input_shapes)
            device = local_device_key(child, thread_count=thread_count, batch=batch)
            subject = ModelSubject(graph.fingerprint, tuple(int(width) for width in graph.widths))
            try:
                measured = child.measure(
                    [subject],
                    device=device,
                    config=MeasureConfig(thread_count=thread_count),
                    fingerprint=graph.fingerprint,
                    skeleton=strip(trace.model),
                    checkpoint=lambda done, planned: None,
                )
                found += map(measurement_from, measured)
            except (ChildFault, InputError, MeasurementError) as error:
                found.append(
                    Measurement.failed(device, subject, str(error), thread_count=thread_count)
                )
    return found
