"""What a user writes: `Client("host:port").plan("model.onnx", device="...", budget_ms=8)`.

The model stays here: traced here, its sensitivity measured here, and sent as a skeleton without
weights. Importing this imports neither torch nor ray nor a runtime nor a database.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from rlprune.graph.any_trace import model_name, trace_any
from rlprune.graph.types import IntArray
from rlprune.latency.types import F32, Measurement, ModelSubject
from rlprune.planning.request import PlanRequest, asks_for_one
from rlprune.plans import PruningPlan
from rlprune.service.channel import Channel
from rlprune.service.plan_messages import plan_from, record_from
from rlprune.service.remote import RemotePlanner, SentModel, measure_on
from rlprune.service.waiting import list_devices
from rlprune.store.records import DeviceRecord, PlanRecord
from rlprune.v1 import plans_pb2

if TYPE_CHECKING:
    from typing import Unpack

    from rlprune.graph.any_trace import OnnxModel, TorchModel
    from rlprune.planning.request import OneBudget, SeveralBudgets
    from rlprune.progress import OnProgress
    from rlprune.sensitivity.sources import CalibrationSource


class Client:
    """A planning server, as a user sees it. May be used from several threads; `with` closes it."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        patience_sec: float = 5.0,
    ) -> None:
        """Opens nothing yet; the first call connects.

        Args:
            target: HOST:PORT.
            token: sent with every call. Beyond loopback only together with TLS.
            tls_ca: PEM file of the certificate that vouches for the server; turns TLS on.
            patience_sec: how long an unavailable server is tried again.

        Raises:
            InputError: `Channel` refuses one of them.
        """
        self._channel = Channel(target, token=token, tls_ca=tls_ca, patience_sec=patience_sec)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def planner(self) -> RemotePlanner:
        """What `planning.make_plans` asks this server through."""
        return RemotePlanner(self._channel)

    @overload
    def plan(
        self,
        model: OnnxModel | TorchModel,
        *,
        calibration: CalibrationSource | None = None,
        example_inputs: Any = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[OneBudget],
    ) -> PruningPlan: ...
    @overload
    def plan(
        self,
        model: OnnxModel | TorchModel,
        *,
        calibration: CalibrationSource | None = None,
        example_inputs: Any = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[SeveralBudgets],
    ) -> list[PruningPlan]: ...
    def plan(
        self,
        model: OnnxModel | TorchModel,
        *,
        calibration: CalibrationSource | None = None,
        example_inputs: Any = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> PruningPlan | list[PruningPlan]:
        """Finds how to prune a network so that it meets a latency budget on a server's device.

        Plans are evaluated on this machine; the server's workers measure latencies. The server
        keeps the plan.

        Args:
            model: as `rlprune.plan` takes it, as are the next three.
            calibration: stays on this machine.
            example_inputs: of a torch module.
            input_shapes: of ONNX inputs whose extents the file leaves open.
            on_progress: told what is being measured, here and on the device.
            options: `device`, a key as `devices` has it, or `macs`; `budget_ms` or `budget_ratio`,
                and all else that may be asked: see `rlprune.planning.request.PlanOptions`.

        Returns:
            The plan, or for several budgets a list of plans in their order; `feasible` is False
            where no plan is within the budget.

        Raises:
            InputError: what was given is refused; the subclass says what (model, budget, ...).
            NotFoundError: the server does not know the device; names those it knows.
            MeasurementError: the device cannot run what would have to be measured.
            UnavailableError: no answer, or the device has not measured enough in time.
        """
        from rlprune.planning.rounds import make_plans

        request = PlanRequest.of(**options)
        made = make_plans(
            self.planner(),
            trace_any(model, example_inputs, input_shapes),
            request,
            calibration=calibration,
            model_name=model_name(model),
            on_progress=on_progress,
        )
        return made[0] if asks_for_one(options) else made

    def get_plan(self, plan_id: str) -> PruningPlan:
        """A stored plan; NotFoundError if there is none."""
        request = plans_pb2.GetPlanRequest(plan_id=plan_id)
        found = self._channel.call("PlanService/GetPlan", request, plans_pb2.StoredPlan)
        return plan_from(found.plan)

    def plans(self, *, device: str = "") -> Iterator[PlanRecord]:
        """All stored plans (for one device), newest first; fetched page by page."""
        request = plans_pb2.ListPlansRequest(device=device)
        while True:
            page = self._channel.call("PlanService/ListPlans", request, plans_pb2.ListPlansResponse)
            yield from (record_from(record) for record in page.plans)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def devices(self, *, health: bool = False) -> list[DeviceRecord]:
        """All devices that the server knows, by key.

        With `health`, how far each one's predictions can be trusted, which the server may have to
        compute.
        """
        return list_devices(self._channel, health=health)

    def measure(
        self,
        model: OnnxModel,
        keeps: IntArray,
        device: str,
        *,
        precision: str = F32,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        timeout_sec: float = 600.0,
        on_progress: OnProgress | None = None,
    ) -> list[Measurement]:
        """Has the device measure variants of a model now, and waits for it.

        Args:
            keeps: keep counts, one variant per row [N, G], or one variant [G].
            precision: `f32`, `bf16` or `int8`; so is the unpruned model that runs in turns.

        Returns:
            One measurement per row. What the device could not run has `status` "failed".

        Raises:
            NotFoundError: unknown device; names the known ones.
            MeasurementError: the device's workers gave the job up.
            UnavailableError: no answer in time.
        """
        from rlprune.graph.from_onnx import OnnxTrace

        deadline = time.monotonic() + timeout_sec
        trace = trace_any(model, None, input_shapes)
        sent = SentModel(trace if isinstance(trace, OnnxTrace) else trace.onnx)
        subjects = [
            ModelSubject(
                sent.fingerprint,
                tuple(int(keep) for keep in row),
                precision=precision,
            )
            for row in np.atleast_2d(np.asarray(keeps, dtype=np.int64))
        ]
        return measure_on(
            self._channel, sent, subjects, device, deadline=deadline, on_progress=on_progress
        )
