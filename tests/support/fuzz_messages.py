"""Mutated requests to every rpc, as the server's own front takes them; the network is left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnx
from google.protobuf.message import Message
from mutate import mutate_bytes, mutate_message
from onnx import TensorProto, helper

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.planning import latency_model
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.energy import shape_profiles
from rlprune.service.device_messages import measurement_to, subject_to
from rlprune.service.devices import DeviceService
from rlprune.service.front import EventLoop, Pools, event_loop
from rlprune.service.models import Graphs
from rlprune.service.plans import PlanService
from rlprune.service.profile_messages import profiles_to
from rlprune.store import open_store
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases
from rlprune.v1 import devices_pb2, plans_pb2

Attempt = Callable[[np.random.Generator], str]
"""Makes one request and hands it in; what came of it in a word, which begins with `BUG` where it
should not have."""
DEVICE = "board-1"
FORGETTING = 2000
"""Requests after which a new store is begun: what is asked here is how requests are read."""


@dataclass
class _Call:
    """What the front sees of a call, with a message that is there at once."""

    data: bytes
    status: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""

    async def read(self) -> bytes:
        return self.data

    def peer(self) -> str:
        return "fuzz"

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.status, self.details = code, details
        assert sum(len(value) for _, value in trailing) * 4 / 3 + 3 * len(details) < 16_000
        raise _Ended


async def _no_health() -> None:
    """Where a server would say that it does not serve."""


class _Ended(Exception):
    """A call was aborted."""


@dataclass
class _Served:
    """A store with a device that has measured and a job that is leased, and valid requests."""

    folder: Path
    loop: EventLoop
    used: int = 0
    handlers: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, Message]] = field(default_factory=list)

    def begin(self) -> None:
        for old in self.folder.iterdir():
            old.unlink()
        self.used = 0
        store = open_store(str(self.folder / "s.sqlite"))
        jobs, graphs, pools = JobQueue(store), Graphs(store), Pools(_no_health)
        parts = {
            "PlanService": (plans_pb2, PlanService(store, jobs, graphs)),
            "DeviceService": (devices_pb2, DeviceService(store, jobs, Leases(store), graphs)),
        }
        for name, (module, implementation) in parts.items():
            descriptor = module.DESCRIPTOR.services_by_name[name]
            service = pools.service(descriptor, implementation)
            for method in descriptor.methods:
                path = f"/{descriptor.full_name}/{method.name}"
                details: Any = SimpleNamespace(method=path)
                self.handlers[path] = service.service(details).stream_unary
        self.requests = [
            (f"/rlprune.v1.{rpc}", request) for rpc, request in _requests(self._leased(store))
        ]

    def _leased(self, store: Any) -> str:
        trace = trace_onnx(_model())
        store.register_device(DEVICE, {"runtime": "ort"})
        store.put_graph(trace.graph, strip(trace.model))
        jobs = JobQueue(store)
        space = space_with(trace.graph, *keep_levels(trace.graph))
        subjects = list(latency_model(store, DEVICE).missing(space))
        sessions = ((1.0, 1.01, 1.0), (1.0, 1.0, 0.99))
        store.add_measurements([Measurement(DEVICE, one, sessions, sessions) for one in subjects])
        jobs.request(DEVICE, subjects[:20], request_id="job", fingerprint=trace.graph.fingerprint)
        lease = Leases(store, lease_sec=1e6).lease("worker", DEVICE)
        assert lease is not None
        return str(lease.lease_id)

    def answer(self, path: str, data: bytes) -> str:
        call = _Call(data)
        with suppress(_Ended):
            self.loop.run(self.handlers[path](None, call))
        if call.status in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            return f"BUG {call.status.name}: {path} {call.details}"
        if "cannot be analysed" in call.details:
            return f"{call.status.name}, by the guard of traces: {call.details}"
        return str(call.status.name)


@contextmanager
def attempts() -> Iterator[Attempt]:
    """One attempt is one request, mutated once to four times in its fields, its bytes, or both."""
    with tempfile.TemporaryDirectory() as folder:
        served = _Served(Path(folder), event_loop())

        def attempt(rng: np.random.Generator) -> str:
            if not served.handlers or served.used == FORGETTING:
                served.begin()
            served.used += 1
            path, sound = served.requests[int(rng.integers(len(served.requests)))]
            request = type(sound)()
            request.CopyFrom(sound)
            way = rng.random()
            if way < 0.7:
                for _ in range(int(rng.integers(1, 5))):
                    mutate_message(request, rng)
                if rng.random() < 0.5:
                    _mutate_skeleton(request, rng)
            data = request.SerializeToString()
            return served.answer(path, mutate_bytes(data, rng) if way > 0.6 else data)

        yield attempt


def _mutate_skeleton(request: Any, rng: np.random.Generator) -> None:
    if not getattr(request, "skeleton", b""):
        return
    try:
        model = onnx.load_model_from_string(request.skeleton)
    except Exception:  # mutated already
        return
    for _ in range(int(rng.integers(1, 4))):
        mutate_message(model, rng)
    request.skeleton = model.SerializeToString()


def _requests(lease_id: str) -> list[tuple[str, Message]]:
    """A valid request, or several, of every rpc."""
    trace = trace_onnx(_model())
    graph, skeleton = trace.graph, strip(trace.model)
    profiles = profiles_to(shape_profiles(space_with(graph, *keep_levels(graph))))
    plans, devices = plans_pb2, devices_pb2
    ask: Any = plans.CreatePlanRequest
    plan = ask(skeleton=skeleton, device="macs", budget_ratio=0.5, request_id="r1", min_keep=2)
    known = ask(
        fingerprint=graph.fingerprint, device=DEVICE, budget_ms=1.0, hold=["conv0"], pin=["conv1"]
    )
    profiled = ask(
        skeleton=skeleton, device=DEVICE, budget_ratio=0.7, profiles=profiles, candidates=4
    )
    learned = ask(skeleton=skeleton, device="macs", budget_ratio=0.6, policy="learned")
    widths = tuple(group.width for group in graph.groups)
    model = ModelSubject(graph.fingerprint, widths)
    conv = OperatorSpec("conv", "", 8, 8, (8, 8), (8, 8), (3, 3), (1, 1), (1,) * 4, (1, 1))
    sessions = ((1.0, 1.1), (1.0, 0.9))
    report = devices.ReportRequest(
        lease_id=lease_id,
        request_id="p1",
        measurements=[
            measurement_to(Measurement(DEVICE, one, sessions, sessions, sessions, sessions))
            for one in (model, conv)
        ],
    )
    measuring = devices.RequestMeasurementRequest(
        device=DEVICE,
        subjects=[subject_to(model), subject_to(conv)],
        skeleton=skeleton,
        request_id="m1",
    )
    return [
        ("PlanService/CreatePlan", plan),
        ("PlanService/CreatePlan", known),
        ("PlanService/CreatePlan", profiled),
        ("PlanService/CreatePlan", learned),
        ("PlanService/GetPlan", plans.GetPlanRequest(plan_id="ab" * 16)),
        ("PlanService/ListPlans", plans.ListPlansRequest(page_token="WzEsICIiXQ==", page_size=3)),
        ("DeviceService/RegisterDevice", devices.RegisterDeviceRequest(key=DEVICE)),
        ("DeviceService/ListDevices", devices.ListDevicesRequest(with_health=True)),
        ("DeviceService/RequestMeasurement", measuring),
        ("DeviceService/GetJob", devices.GetJobRequest(job_id="job", with_measurements=True)),
        ("DeviceService/GetSkeleton", devices.GetSkeletonRequest(fingerprint=graph.fingerprint)),
        ("DeviceService/Lease", devices.LeaseRequest(worker_id="worker", device=DEVICE)),
        ("DeviceService/Renew", devices.RenewRequest(lease_id=lease_id)),
        ("DeviceService/Report", report),
    ]


def _model() -> onnx.ModelProto:
    """Two convolutions with a branch, a pooling and a classifier."""

    def weight(name: str, *shape: int) -> TensorProto:
        size = int(np.prod(shape))
        return helper.make_tensor(name, TensorProto.FLOAT, shape, np.linspace(-1.0, 1.0, size))

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Add", ["c1", "r0"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], "fc", transB=1),
    ]
    weights = [
        weight("w0", 16, 3, 3, 3),
        weight("w1", 16, 16, 3, 3),
        weight("w2", 10, 16),
        weight("b2", 10),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
