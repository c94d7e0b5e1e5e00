"""What a worker would do with a model, without a server: `rlprune work --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping

from rlprune.device.child import Child, ChildConfig, ChildFault
from rlprune.errors import MeasurementError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.skeleton import strip
from rlprune.latency.device import batch_of, local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import Measurement, ModelSubject


def measure_like_a_worker(
    traces: Mapping[str, OnnxTrace],
    *,
    runtime: str = "ort",
    thread_count: int = 1,
    child_config: ChildConfig | None = None,
) -> dict[str, Measurement]:
    """Strips every model, fills the skeleton and measures it whole in a child process.

    Returns:
        By the names given; `failed` and why where the model takes the child down.

    Raises:
        NotFoundError, MissingExtraError: no such runtime, or it is not installed.
    """
    child = Child(runtime, child_config)
    found: dict[str, Measurement] = {}
    try:
        child.start()
        for name, trace in traces.items():
            graph = trace.graph
            batch = batch_of(graph.input_shapes)
            device = local_device_key(child, thread_count=thread_count, batch=batch)
            subject = ModelSubject(graph.fingerprint, tuple(int(width) for width in graph.widths))
            try:
                (found[name],) = child.measure(
                    [subject],
                    device=device,
                    config=MeasureConfig(thread_count=thread_count),
                    fingerprint=graph.fingerprint,
                    skeleton=strip(trace.model),
                    checkpoint=lambda done, planned: None,
                )
            except (ChildFault, MeasurementError) as error:
                found[name] = Measurement(
                    device,
                    subject,
                    (),
                    (),
                    thread_count=thread_count,
                    status="failed",
                    reason=str(error),
                )
    finally:
        child.close()
    return found
