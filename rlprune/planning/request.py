"""One planning question: everything that may be asked, checked once.

The command line, `rlprune.plan`, `Client.plan` and the server all make a `PlanRequest` of what they
were given, so that an option that exists for one of them exists for all. What was refused, and by
which field, is the same everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, Unpack

from rlprune.constraints import Constraints, patterns
from rlprune.device_keys import canonical_key
from rlprune.errors import BudgetError, InputError
from rlprune.files import fields_of
from rlprune.latency.types import F32, INT8, MACS_DEVICE, Arithmetic, check_precision
from rlprune.planning.effort import check_effort
from rlprune.schemes import CHANNEL_ONLY, asked_schemes, check_schemes, profitable_schemes

Unit = Literal["ms", "ratio"]

SCORES = ("synflow", "snip", "grasp")
"""What can say, before training, how much a group matters (`surgery.torch_saliency`)."""
MAX_BUDGETS = 64
SEARCH = "search"
"""The policy by default."""
MAX_THREADS = 1024


class SharedOptions(TypedDict, total=False):
    """What may be asked beside a budget; in Python, over the wire and on the command line alike."""

    device: str | None
    """Device whose latency counts: a key that the store or the server knows; `ort` (the default),
    `openvino` or `mnn` for that runtime on this machine; or `macs`, under which "ms" are millions
    of MACs. Of a server, a key or `macs`."""
    policy: str
    """`search`, the default: plans are evaluated where the weights are (see `effort`). The others
    plan by sensitivity alone: learned, knapsack, global, uniform (one ratio, filled up to the
    budget), uniform-plain (not filled), or a trained policy's directory (of a server: a name it
    serves)."""
    round_to: int | None
    """Kept counts are multiples of this, or the full width; by default the device decides (8 for
    ONNX Runtime)."""
    min_keep: int
    """No group keeps fewer units."""
    min_keep_ratio: float
    """No group keeps a smaller share (0-1) of its units."""
    hold: str | Iterable[str]
    """Globs over names of layers, nodes, weights or groups; what matches is not pruned."""
    pin: str | Iterable[str]
    """Globs likewise; the channels of all layers that one glob matches keep one ratio."""
    precision: str
    """What the network computes in on the device: `f32`, `bf16` (OpenVINO, where the processor has
    it) or `int8` (ONNX Runtime and OpenVINO). Budgets as ratios are shares of the unpruned
    network's latency in the same precision."""
    keep_float: str | Iterable[str]
    """Globs likewise; with `int8`, layers that stay in float."""
    schemes: str | Iterable[str]
    """Names of schemes that may be used, such as `channels,shapes,blocks`. By default all that the
    device profits from, where calibration data says what they lose; channels alone otherwise, and
    for policies that know nothing else."""
    effort: str | None
    """How much a search does to find the plan. `instant`: one pass of the unpruned network tells
    what every option loses; `quick`: then some 45 plans are evaluated, at the price of some eight
    evaluations of 1,000 images; `thorough`: some 240, at that of a hundred. Without calibration
    data on made-up inputs. By default `quick`; where no runtime is installed or made-up inputs are
    not taken, sensitivity is predicted from the weights."""
    guard: bool
    """Take the knapsack's plan, and say so in `plan.note`, where the policy's recorded gain on
    unseen networks is not clearly above zero; False for the policy's own plan in any case."""
    certify: bool
    """Measure the plan on the device, in new processes, and plan again where it misses its budget
    or leaves much of it unused; `plan.certificate` holds what was measured."""
    max_params: int | None
    """A second budget: parameters (BatchNorm folded) that the plan may have at most."""
    at_init: str | None
    """`synflow`, `snip` or `grasp`: the torch module is not trained yet, and sensitivity comes from
    this score; snip and grasp need calibration images with labels. Prune, then train."""
    threads: int | None
    """Threads that the runtime computes on; the device key with so many threads is then meant."""
    wait: bool
    """Wait until what the plan needs is measured, here or by the server's workers; False for a plan
    from what is known now."""
    timeout_sec: float | None
    """How long measuring may take. A server's answer is waited for so long (600 s by default); on
    this machine the plan is then made from what was measured (no limit by default)."""


class PlanOptions(SharedOptions, total=False):
    """All options of a plan: the budget, one or several, and what may be asked beside it."""

    budget_ms: float | Sequence[float] | None
    """Latency that the pruned model must not exceed; or several, for a plan each."""
    budget_ratio: float | Sequence[float] | None
    """The same as shares (0-1] of the unpruned model's predicted latency; either this or
    `budget_ms`."""


class OneBudget(SharedOptions, total=False):
    """Options that ask for one plan; see `PlanOptions`."""

    budget_ms: float | None
    budget_ratio: float | None


class SeveralBudgets(SharedOptions, total=False):
    """Options that ask for a list of plans; see `PlanOptions`."""

    budget_ms: Sequence[float] | None
    budget_ratio: Sequence[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A planning question, checked at birth; `InputError` names the field that is wrong.

    `PlanOptions` says what the fields mean. Whether the model, its calibration data and the device
    go with it is seen when they are there.
    """

    budgets: tuple[float, ...]
    """In the order in which plans are given."""
    unit: Unit = "ms"
    """What the budgets are: ms, or shares of the unpruned latency."""
    device: str | None = None
    policy: str = SEARCH
    constraints: Constraints = field(default_factory=Constraints)
    precision: str = F32
    schemes: tuple[str, ...] = ()
    """Names of schemes, `channel` first; without it no channels are pruned. None: by default."""
    effort: str | None = None
    guard: bool = True
    certify: bool = False
    max_params: int | None = None
    at_init: str | None = None
    threads: int | None = None
    wait: bool = True
    timeout_sec: float | None = None

    def __post_init__(self) -> None:
        name = f"budget_{self.unit}"
        if not 1 <= len(self.budgets) <= MAX_BUDGETS:
            raise BudgetError(f"{len(self.budgets)} budgets; give 1 to {MAX_BUDGETS}", field=name)
        for budget in self.budgets:
            check_budget(budget, name)
        check_schemes(self.schemes)
        check_precision(self.precision)
        if self.constraints.keep_float and self.precision != INT8:
            raise InputError(
                f"keep_float goes with precision int8; all is float in {self.precision}",
                field="keep_float",
            )
        if self.device is not None:
            object.__setattr__(self, "device", canonical_key(self.device))
        if not self.policy:
            raise InputError("policy is empty; give its name", field="policy")
        if self.max_params is not None and self.max_params < 1:
            raise BudgetError(
                f"max_params is {self.max_params}; give how many parameters may stay, at least 1",
                field="max_params",
            )
        if self.at_init is not None and self.at_init not in SCORES:
            raise InputError(
                f"no score {self.at_init[:40]!r}; give {', '.join(SCORES)}", field="at_init"
            )
        if self.effort is not None:
            self._check_effort(self.effort)
        if self.certify and self.device == MACS_DEVICE:
            raise InputError("MACs are counted, not measured; leave certify out", field="certify")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InputError(f"threads is {self.threads}; give 1 to {MAX_THREADS}", field="threads")
        # A comparison that NaN fails too.
        if self.timeout_sec is not None and not self.timeout_sec >= 0:
            raise InputError(
                f"timeout_sec is {self.timeout_sec}; give seconds, 0 or more", field="timeout_sec"
            )

    def _check_effort(self, name: str) -> None:
        check_effort(name)
        for other, value in {"max_params": self.max_params, "at_init": self.at_init}.items():
            if value is not None:
                raise InputError(f"effort does not go with {other}; leave one out", field="effort")
        if self.policy != SEARCH:
            raise InputError(
                f"effort does not go with policy {self.policy!r}, which plans by sensitivity "
                "alone; leave one out",
                field="effort",
            )

    @staticmethod
    def of(**options: Unpack[PlanOptions]) -> PlanRequest:
        """The request that options ask for.

        Raises:
            BudgetError: not exactly one of `budget_ms` and `budget_ratio`, or a bad one.
            InputError: another option is refused; `field` names it.
        """
        given: dict[str, Any] = dict(options)
        budgets = {unit: given.pop(f"budget_{unit}", None) for unit in ("ms", "ratio")}
        stated = {unit: value for unit, value in budgets.items() if value is not None}
        if len(stated) != 1:
            raise BudgetError("give either budget_ms or budget_ratio", field="budget_ms")
        unit: Unit = "ms" if "ms" in stated else "ratio"
        constraints = Constraints(
            given.pop("round_to", None),
            given.pop("min_keep", 1),
            given.pop("min_keep_ratio", 0.0),
            patterns(given.pop("hold", ())),
            patterns(given.pop("pin", ())),
            patterns(given.pop("keep_float", ())),
        )
        return PlanRequest(
            budgets=(stated[unit],) if asks_for_one(options) else tuple(stated[unit]),
            unit=unit,
            constraints=constraints,
            schemes=asked_schemes(given.pop("schemes", ())),
            **given,
        )

    @property
    def searches(self) -> bool:
        """Whether plans may be evaluated to find the best: they are proposed by latency alone, and
        an untrained network's losses tell none apart."""
        return self.policy == SEARCH and self.max_params is None and self.at_init is None

    @property
    def arithmetic(self) -> Arithmetic:
        """What is predicted and measured in."""
        return Arithmetic.of(self.precision, self.constraints.keep_float)

    def with_schemes(self, device: str, *, measured: bool) -> PlanRequest:
        """The same with schemes chosen where none are stated: those that the device profits from.

        Args:
            device: the key that is meant, or `macs`.
            measured: whether it is measured what options lose. Of kernel shapes and blocks nothing
                else tells it well: plans by what is predicted of them were no better (four
                networks).
        """
        if self.schemes:
            return self
        knowing = self.policy in (SEARCH, "learned", "knapsack") and self.at_init is None
        if not (measured and knowing):
            return replace(self, schemes=CHANNEL_ONLY)
        return replace(self, schemes=profitable_schemes(device, self.precision))

    def to_json(self) -> str:
        """What was stated, in the words of `PlanOptions`, as one JSON object; what is as by default
        left out. `of` makes the same request of it."""
        default = PlanRequest(budgets=(1.0,))
        stated = fields_of(self.constraints) | {
            name: getattr(self, name) for name in _OTHERS if name != "constraints"
        }
        plain = fields_of(default.constraints) | {
            name: getattr(default, name) for name in _OTHERS if name != "constraints"
        }
        changed = {name: value for name, value in stated.items() if value != plain[name]}
        return json.dumps({f"budget_{self.unit}": self.budgets, **changed})


_OTHERS = tuple(name for name in PlanRequest.__slots__ if name not in ("budgets", "unit"))


def asks_for_one(options: Mapping[str, Any]) -> bool:
    """Whether the budget among `options` is one, and not a sequence of them."""
    given = (options.get("budget_ms"), options.get("budget_ratio"))
    return not any(isinstance(value, Iterable) for value in given if not isinstance(value, str))


def check_budget(value: float, name: str = "budget_ms") -> float:
    """`value` as a float, if it can be a budget; `name` is what the caller called it.

    Raises:
        BudgetError: not a positive, finite number, or a ratio above 1.
    """
    if isinstance(value, str) or not math.isfinite(value) or value <= 0:
        raise BudgetError(f"{name} is {value}; give a positive, finite number", field=name)
    if name == "budget_ratio" and value > 1:
        raise BudgetError(
            f"budget_ratio is {value}; give a share of the unpruned latency, above 0 and at most 1",
            field=name,
        )
    return float(value)
