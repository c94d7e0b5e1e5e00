from rlprune.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_PENDING: _ClassVar[JobState]
    JOB_STATE_LEASED: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_PARKED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_PENDING: JobState
JOB_STATE_LEASED: JobState
JOB_STATE_DONE: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_PARKED: JobState

class Device(_message.Message):
    __slots__ = ("key", "description", "first_seen_sec", "last_seen_sec", "measurement_count", "generation", "open_job_count", "last_measured_sec", "health")
    class DescriptionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_SEC_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_SEC_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OPEN_JOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_MEASURED_SEC_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    key: str
    description: _containers.ScalarMap[str, str]
    first_seen_sec: float
    last_seen_sec: float
    measurement_count: int
    generation: int
    open_job_count: int
    last_measured_sec: float
    health: DeviceHealth
    def __init__(self, key: _Optional[str] = ..., description: _Optional[_Mapping[str, str]] = ..., first_seen_sec: _Optional[float] = ..., last_seen_sec: _Optional[float] = ..., measurement_count: _Optional[int] = ..., generation: _Optional[int] = ..., open_job_count: _Optional[int] = ..., last_measured_sec: _Optional[float] = ..., health: _Optional[_Union[DeviceHealth, _Mapping]] = ...) -> None: ...

class DeviceHealth(_message.Message):
    __slots__ = ("error_ratio", "drift_ratio", "stale", "parked_job_count", "dropped")
    ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    DRIFT_RATIO_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    PARKED_JOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    error_ratio: float
    drift_ratio: float
    stale: bool
    parked_job_count: int
    dropped: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, error_ratio: _Optional[float] = ..., drift_ratio: _Optional[float] = ..., stale: _Optional[bool] = ..., parked_job_count: _Optional[int] = ..., dropped: _Optional[_Iterable[str]] = ...) -> None: ...

class RegisterDeviceRequest(_message.Message):
    __slots__ = ("key", "description")
    class DescriptionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    key: str
    description: _containers.ScalarMap[str, str]
    def __init__(self, key: _Optional[str] = ..., description: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "with_health")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WITH_HEALTH_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    with_health: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., with_health: _Optional[bool] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices", "next_page_token")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    next_page_token: str
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RequestMeasurementRequest(_message.Message):
    __slots__ = ("device", "subjects", "skeleton", "request_id")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    SKELETON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    device: str
    subjects: _containers.RepeatedCompositeFieldContainer[_types_pb2.Subject]
    skeleton: bytes
    request_id: str
    def __init__(self, device: _Optional[str] = ..., subjects: _Optional[_Iterable[_Union[_types_pb2.Subject, _Mapping]]] = ..., skeleton: _Optional[bytes] = ..., request_id: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "device", "state", "subjects", "fingerprint", "failure_count", "reason", "measurements", "reported_count")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    device: str
    state: JobState
    subjects: _containers.RepeatedCompositeFieldContainer[_types_pb2.Subject]
    fingerprint: str
    failure_count: int
    reason: str
    measurements: _containers.RepeatedCompositeFieldContainer[_types_pb2.Measurement]
    reported_count: int
    def __init__(self, job_id: _Optional[str] = ..., device: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., subjects: _Optional[_Iterable[_Union[_types_pb2.Subject, _Mapping]]] = ..., fingerprint: _Optional[str] = ..., failure_count: _Optional[int] = ..., reason: _Optional[str] = ..., measurements: _Optional[_Iterable[_Union[_types_pb2.Measurement, _Mapping]]] = ..., reported_count: _Optional[int] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id", "with_measurements")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    with_measurements: bool
    def __init__(self, job_id: _Optional[str] = ..., with_measurements: _Optional[bool] = ...) -> None: ...

class GetSkeletonRequest(_message.Message):
    __slots__ = ("fingerprint",)
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    def __init__(self, fingerprint: _Optional[str] = ...) -> None: ...

class GetSkeletonResponse(_message.Message):
    __slots__ = ("skeleton",)
    SKELETON_FIELD_NUMBER: _ClassVar[int]
    skeleton: bytes
    def __init__(self, skeleton: _Optional[bytes] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("worker_id", "device")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    device: str
    def __init__(self, worker_id: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("job", "lease_id", "left", "lease_sec")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    LEASE_SEC_FIELD_NUMBER: _ClassVar[int]
    job: Job
    lease_id: str
    left: _containers.RepeatedCompositeFieldContainer[_types_pb2.Subject]
    lease_sec: float
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., lease_id: _Optional[str] = ..., left: _Optional[_Iterable[_Union[_types_pb2.Subject, _Mapping]]] = ..., lease_sec: _Optional[float] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("lease_sec",)
    LEASE_SEC_FIELD_NUMBER: _ClassVar[int]
    lease_sec: float
    def __init__(self, lease_sec: _Optional[float] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("lease_id", "request_id", "measurements", "done", "release")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    request_id: str
    measurements: _containers.RepeatedCompositeFieldContainer[_types_pb2.Measurement]
    done: bool
    release: bool
    def __init__(self, lease_id: _Optional[str] = ..., request_id: _Optional[str] = ..., measurements: _Optional[_Iterable[_Union[_types_pb2.Measurement, _Mapping]]] = ..., done: _Optional[bool] = ..., release: _Optional[bool] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("job_id", "state", "accepted_count", "generation")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: JobState
    accepted_count: int
    generation: int
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., accepted_count: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...
