from rlprune.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreatePlanRequest(_message.Message):
    __slots__ = ("skeleton", "fingerprint", "profiles", "device", "budget_ms", "budget_ratio", "policy", "round_to", "request_id", "min_keep", "min_keep_ratio", "hold", "pin", "unguarded", "candidates", "constraints", "max_params", "provisional", "schemes", "precision", "search")
    SKELETON_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_RATIO_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROUND_TO_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_KEEP_FIELD_NUMBER: _ClassVar[int]
    MIN_KEEP_RATIO_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    UNGUARDED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PARAMS_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    SCHEMES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    skeleton: bytes
    fingerprint: str
    profiles: _types_pb2.GroupProfiles
    device: str
    budget_ms: float
    budget_ratio: float
    policy: str
    round_to: int
    request_id: str
    min_keep: int
    min_keep_ratio: float
    hold: _containers.RepeatedScalarFieldContainer[str]
    pin: _containers.RepeatedScalarFieldContainer[str]
    unguarded: bool
    candidates: int
    constraints: _types_pb2.Constraints
    max_params: int
    provisional: bool
    schemes: _containers.RepeatedScalarFieldContainer[str]
    precision: str
    search: Search
    def __init__(self, skeleton: _Optional[bytes] = ..., fingerprint: _Optional[str] = ..., profiles: _Optional[_Union[_types_pb2.GroupProfiles, _Mapping]] = ..., device: _Optional[str] = ..., budget_ms: _Optional[float] = ..., budget_ratio: _Optional[float] = ..., policy: _Optional[str] = ..., round_to: _Optional[int] = ..., request_id: _Optional[str] = ..., min_keep: _Optional[int] = ..., min_keep_ratio: _Optional[float] = ..., hold: _Optional[_Iterable[str]] = ..., pin: _Optional[_Iterable[str]] = ..., unguarded: _Optional[bool] = ..., candidates: _Optional[int] = ..., constraints: _Optional[_Union[_types_pb2.Constraints, _Mapping]] = ..., max_params: _Optional[int] = ..., provisional: _Optional[bool] = ..., schemes: _Optional[_Iterable[str]] = ..., precision: _Optional[str] = ..., search: _Optional[_Union[Search, _Mapping]] = ...) -> None: ...

class Search(_message.Message):
    __slots__ = ("evaluated",)
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    evaluated: _containers.RepeatedCompositeFieldContainer[EvaluatedPlan]
    def __init__(self, evaluated: _Optional[_Iterable[_Union[EvaluatedPlan, _Mapping]]] = ...) -> None: ...

class EvaluatedPlan(_message.Message):
    __slots__ = ("keeps", "divergence", "error")
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    keeps: _containers.RepeatedScalarFieldContainer[int]
    divergence: float
    error: float
    def __init__(self, keeps: _Optional[_Iterable[int]] = ..., divergence: _Optional[float] = ..., error: _Optional[float] = ...) -> None: ...

class CreatePlanResponse(_message.Message):
    __slots__ = ("plan", "plan_id", "pending_job_count", "pending_job_ids", "measured", "awaited_job_count")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    PENDING_JOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    AWAITED_JOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    plan: _types_pb2.PruningPlan
    plan_id: str
    pending_job_count: int
    pending_job_ids: _containers.RepeatedScalarFieldContainer[str]
    measured: bool
    awaited_job_count: int
    def __init__(self, plan: _Optional[_Union[_types_pb2.PruningPlan, _Mapping]] = ..., plan_id: _Optional[str] = ..., pending_job_count: _Optional[int] = ..., pending_job_ids: _Optional[_Iterable[str]] = ..., measured: _Optional[bool] = ..., awaited_job_count: _Optional[int] = ...) -> None: ...

class PutPlanRequest(_message.Message):
    __slots__ = ("plan", "model_name", "request", "request_id")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    plan: _types_pb2.PruningPlan
    model_name: str
    request: str
    request_id: str
    def __init__(self, plan: _Optional[_Union[_types_pb2.PruningPlan, _Mapping]] = ..., model_name: _Optional[str] = ..., request: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetPlanRequest(_message.Message):
    __slots__ = ("plan_id",)
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    def __init__(self, plan_id: _Optional[str] = ...) -> None: ...

class StoredPlan(_message.Message):
    __slots__ = ("plan_id", "plan", "created_sec", "model_name", "request")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    CREATED_SEC_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    plan: _types_pb2.PruningPlan
    created_sec: float
    model_name: str
    request: str
    def __init__(self, plan_id: _Optional[str] = ..., plan: _Optional[_Union[_types_pb2.PruningPlan, _Mapping]] = ..., created_sec: _Optional[float] = ..., model_name: _Optional[str] = ..., request: _Optional[str] = ...) -> None: ...

class ListPlansRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "device")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    device: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class ListPlansResponse(_message.Message):
    __slots__ = ("plans", "next_page_token")
    PLANS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    plans: _containers.RepeatedCompositeFieldContainer[StoredPlan]
    next_page_token: str
    def __init__(self, plans: _Optional[_Iterable[_Union[StoredPlan, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
