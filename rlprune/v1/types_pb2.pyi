from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "field", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    field: str
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., field: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Matrix(_message.Message):
    __slots__ = ("row_count", "column_count", "values")
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    COLUMN_COUNT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    row_count: int
    column_count: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, row_count: _Optional[int] = ..., column_count: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class PlanEntry(_message.Message):
    __slots__ = ("name", "scheme", "width", "keep", "members", "constraint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    scheme: str
    width: int
    keep: int
    members: _containers.RepeatedScalarFieldContainer[str]
    constraint: str
    def __init__(self, name: _Optional[str] = ..., scheme: _Optional[str] = ..., width: _Optional[int] = ..., keep: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ..., constraint: _Optional[str] = ...) -> None: ...

class Constraints(_message.Message):
    __slots__ = ("round_to", "min_keep", "min_keep_ratio", "hold", "pin", "keep_float")
    ROUND_TO_FIELD_NUMBER: _ClassVar[int]
    MIN_KEEP_FIELD_NUMBER: _ClassVar[int]
    MIN_KEEP_RATIO_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    KEEP_FLOAT_FIELD_NUMBER: _ClassVar[int]
    round_to: int
    min_keep: int
    min_keep_ratio: float
    hold: _containers.RepeatedScalarFieldContainer[str]
    pin: _containers.RepeatedScalarFieldContainer[str]
    keep_float: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round_to: _Optional[int] = ..., min_keep: _Optional[int] = ..., min_keep_ratio: _Optional[float] = ..., hold: _Optional[_Iterable[str]] = ..., pin: _Optional[_Iterable[str]] = ..., keep_float: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanFigures(_message.Message):
    __slots__ = ("keeps", "predicted_latency_ms", "predicted_interval_ms", "macs", "params")
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    keeps: _containers.RepeatedScalarFieldContainer[int]
    predicted_latency_ms: float
    predicted_interval_ms: Interval
    macs: int
    params: int
    def __init__(self, keeps: _Optional[_Iterable[int]] = ..., predicted_latency_ms: _Optional[float] = ..., predicted_interval_ms: _Optional[_Union[Interval, _Mapping]] = ..., macs: _Optional[int] = ..., params: _Optional[int] = ...) -> None: ...

class PruningPlan(_message.Message):
    __slots__ = ("fingerprint", "policy", "profiled", "device", "budget_ms", "feasible", "base_latency_ms", "least_latency_ms", "predicted_latency_ms", "predicted_interval_ms", "groups", "macs", "params", "reference", "note", "constraints", "candidates", "expected_divergence", "certificate", "precision", "unpruned")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROFILED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    BASE_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    LEAST_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    UNPRUNED_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    policy: str
    profiled: bool
    device: str
    budget_ms: float
    feasible: bool
    base_latency_ms: float
    least_latency_ms: float
    predicted_latency_ms: float
    predicted_interval_ms: Interval
    groups: _containers.RepeatedCompositeFieldContainer[PlanEntry]
    macs: int
    params: int
    reference: PlanFigures
    note: str
    constraints: Constraints
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    expected_divergence: float
    certificate: Certificate
    precision: str
    unpruned: _containers.RepeatedCompositeFieldContainer[Unpruned]
    def __init__(self, fingerprint: _Optional[str] = ..., policy: _Optional[str] = ..., profiled: _Optional[bool] = ..., device: _Optional[str] = ..., budget_ms: _Optional[float] = ..., feasible: _Optional[bool] = ..., base_latency_ms: _Optional[float] = ..., least_latency_ms: _Optional[float] = ..., predicted_latency_ms: _Optional[float] = ..., predicted_interval_ms: _Optional[_Union[Interval, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[PlanEntry, _Mapping]]] = ..., macs: _Optional[int] = ..., params: _Optional[int] = ..., reference: _Optional[_Union[PlanFigures, _Mapping]] = ..., note: _Optional[str] = ..., constraints: _Optional[_Union[Constraints, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., expected_divergence: _Optional[float] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., precision: _Optional[str] = ..., unpruned: _Optional[_Iterable[_Union[Unpruned, _Mapping]]] = ...) -> None: ...

class Unpruned(_message.Message):
    __slots__ = ("precision", "latency_ms")
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    precision: str
    latency_ms: float
    def __init__(self, precision: _Optional[str] = ..., latency_ms: _Optional[float] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("within", "measured_latency_ms", "measured_interval_ms", "rounds")
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    MEASURED_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    within: bool
    measured_latency_ms: float
    measured_interval_ms: Interval
    rounds: _containers.RepeatedCompositeFieldContainer[MeasuredRound]
    def __init__(self, within: _Optional[bool] = ..., measured_latency_ms: _Optional[float] = ..., measured_interval_ms: _Optional[_Union[Interval, _Mapping]] = ..., rounds: _Optional[_Iterable[_Union[MeasuredRound, _Mapping]]] = ...) -> None: ...

class MeasuredRound(_message.Message):
    __slots__ = ("keeps", "predicted_latency_ms", "measured_latency_ms", "measured_interval_ms", "status", "reason")
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    keeps: _containers.RepeatedScalarFieldContainer[int]
    predicted_latency_ms: float
    measured_latency_ms: float
    measured_interval_ms: Interval
    status: str
    reason: str
    def __init__(self, keeps: _Optional[_Iterable[int]] = ..., predicted_latency_ms: _Optional[float] = ..., measured_latency_ms: _Optional[float] = ..., measured_interval_ms: _Optional[_Union[Interval, _Mapping]] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("policy", "figures", "divergence", "gain_se", "loss", "loss_se", "image_count", "chosen")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    GAIN_SE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSS_SE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    policy: str
    figures: PlanFigures
    divergence: float
    gain_se: float
    loss: float
    loss_se: float
    image_count: int
    chosen: bool
    def __init__(self, policy: _Optional[str] = ..., figures: _Optional[_Union[PlanFigures, _Mapping]] = ..., divergence: _Optional[float] = ..., gain_se: _Optional[float] = ..., loss: _Optional[float] = ..., loss_se: _Optional[float] = ..., image_count: _Optional[int] = ..., chosen: _Optional[bool] = ...) -> None: ...

class GroupProfiles(_message.Message):
    __slots__ = ("fingerprint", "levels", "level_count", "energy_loss", "measured_loss", "base_loss", "image_count", "initial_loss", "initial_score", "predicted_loss")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENERGY_LOSS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_LOSS_FIELD_NUMBER: _ClassVar[int]
    BASE_LOSS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    INITIAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_SCORE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_LOSS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    levels: Matrix
    level_count: _containers.RepeatedScalarFieldContainer[int]
    energy_loss: Matrix
    measured_loss: _containers.RepeatedCompositeFieldContainer[Matrix]
    base_loss: float
    image_count: int
    initial_loss: Matrix
    initial_score: str
    predicted_loss: Matrix
    def __init__(self, fingerprint: _Optional[str] = ..., levels: _Optional[_Union[Matrix, _Mapping]] = ..., level_count: _Optional[_Iterable[int]] = ..., energy_loss: _Optional[_Union[Matrix, _Mapping]] = ..., measured_loss: _Optional[_Iterable[_Union[Matrix, _Mapping]]] = ..., base_loss: _Optional[float] = ..., image_count: _Optional[int] = ..., initial_loss: _Optional[_Union[Matrix, _Mapping]] = ..., initial_score: _Optional[str] = ..., predicted_loss: _Optional[_Union[Matrix, _Mapping]] = ...) -> None: ...

class OperatorSpec(_message.Message):
    __slots__ = ("kind", "variant", "in_width", "out_width", "in_spatial", "out_spatial", "kernel", "stride", "pads", "dilation", "groups", "precision")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    IN_WIDTH_FIELD_NUMBER: _ClassVar[int]
    OUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IN_SPATIAL_FIELD_NUMBER: _ClassVar[int]
    OUT_SPATIAL_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    PADS_FIELD_NUMBER: _ClassVar[int]
    DILATION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    variant: str
    in_width: int
    out_width: int
    in_spatial: _containers.RepeatedScalarFieldContainer[int]
    out_spatial: _containers.RepeatedScalarFieldContainer[int]
    kernel: _containers.RepeatedScalarFieldContainer[int]
    stride: _containers.RepeatedScalarFieldContainer[int]
    pads: _containers.RepeatedScalarFieldContainer[int]
    dilation: _containers.RepeatedScalarFieldContainer[int]
    groups: int
    precision: str
    def __init__(self, kind: _Optional[str] = ..., variant: _Optional[str] = ..., in_width: _Optional[int] = ..., out_width: _Optional[int] = ..., in_spatial: _Optional[_Iterable[int]] = ..., out_spatial: _Optional[_Iterable[int]] = ..., kernel: _Optional[_Iterable[int]] = ..., stride: _Optional[_Iterable[int]] = ..., pads: _Optional[_Iterable[int]] = ..., dilation: _Optional[_Iterable[int]] = ..., groups: _Optional[int] = ..., precision: _Optional[str] = ...) -> None: ...

class ModelSubject(_message.Message):
    __slots__ = ("fingerprint", "keeps", "schemes", "precision", "keep_float")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    SCHEMES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    KEEP_FLOAT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    keeps: _containers.RepeatedScalarFieldContainer[int]
    schemes: _containers.RepeatedScalarFieldContainer[str]
    precision: str
    keep_float: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fingerprint: _Optional[str] = ..., keeps: _Optional[_Iterable[int]] = ..., schemes: _Optional[_Iterable[str]] = ..., precision: _Optional[str] = ..., keep_float: _Optional[_Iterable[str]] = ...) -> None: ...

class Subject(_message.Message):
    __slots__ = ("operator", "model")
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    operator: OperatorSpec
    model: ModelSubject
    def __init__(self, operator: _Optional[_Union[OperatorSpec, _Mapping]] = ..., model: _Optional[_Union[ModelSubject, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("samples_ms",)
    SAMPLES_MS_FIELD_NUMBER: _ClassVar[int]
    samples_ms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, samples_ms: _Optional[_Iterable[float]] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("device", "subject", "cpu", "wall", "control_cpu", "control_wall", "thread_count", "warmup_count", "status", "reason", "conditions")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    WALL_FIELD_NUMBER: _ClassVar[int]
    CONTROL_CPU_FIELD_NUMBER: _ClassVar[int]
    CONTROL_WALL_FIELD_NUMBER: _ClassVar[int]
    THREAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    WARMUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    device: str
    subject: Subject
    cpu: _containers.RepeatedCompositeFieldContainer[Session]
    wall: _containers.RepeatedCompositeFieldContainer[Session]
    control_cpu: _containers.RepeatedCompositeFieldContainer[Session]
    control_wall: _containers.RepeatedCompositeFieldContainer[Session]
    thread_count: int
    warmup_count: int
    status: str
    reason: str
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    def __init__(self, device: _Optional[str] = ..., subject: _Optional[_Union[Subject, _Mapping]] = ..., cpu: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., wall: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., control_cpu: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., control_wall: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., thread_count: _Optional[int] = ..., warmup_count: _Optional[int] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
