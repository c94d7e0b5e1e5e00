"""What training minimises and what an epoch is judged by: of a classifier, or the user's own.

Without anything given, the module answers with logits: cross-entropy is minimised, epochs are
judged by accuracy, and a teacher's softened answers are matched by the Kullback-Leibler divergence
(Hinton et al., arXiv:1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from rlprune.errors import InputError

Loss = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> scalar tensor, the mean over the batch."""
Metric = Callable[[Any, Any], Any]
"""(outputs, targets) -> a number, the mean over the batch; higher is better."""
DistillLoss = Callable[[Any, Any], Tensor] | Literal["logits"]
"""(the module's outputs, the teacher's) -> scalar tensor; or "logits", as for classifiers."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Loss, metric and distillation of a run."""

    loss: Loss | None = None
    """Cross-entropy where None."""
    metric: Metric | None = None
    """Where None accuracy; with a loss of the user's own, that loss: the lower the better."""
    distill_loss: DistillLoss | None = None
    """Where None, as "logits" for cross-entropy; a loss of the user's own needs one to distill."""
    label_smoothing: float = 0.0
    distill_weight: float = 0.0
    distill_temperature: float = 16.0

    def __post_init__(self) -> None:
        for name in ("loss", "metric", "distill_loss"):
            given = getattr(self, name)
            if given is None or callable(given) or (name, given) == ("distill_loss", "logits"):
                continue
            words = "a function or 'logits'" if name == "distill_loss" else "a function"
            raise InputError(f"{name} is {given!r}; give {words}", field=name)

    @property
    def judged_by(self) -> Literal["accuracy", "metric", "loss"]:
        """What `good` is."""
        if self.metric is not None:
            return "metric"
        return "accuracy" if self.loss is None else "loss"

    def check_teaching(self) -> None:
        """Refuses to distill where nobody said how answers compare.

        Raises:
            InputError: there is a loss of the user's own, and no `distill_loss`.
        """
        if self.distill_weight and self.loss is not None and self.distill_loss is None:
            raise InputError(
                "with a loss of your own, distillation must know how answers compare: give "
                "distill_loss (a function of the module's and the teacher's outputs, or 'logits' "
                "where outputs are logits [N, classes]), or a distill weight of 0",
                field="distill_loss",
            )

    def plain(self, outputs: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """The loss without a teacher."""
        if self.loss is not None:
            return _scalar(self.loss(outputs, targets), "loss")
        _check_logits(outputs, targets)
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=smoothing)

    def trained(self, outputs: Any, targets: Any, wanted: Any = None) -> Tensor:
        """What is minimised.

        Args:
            wanted: the teacher's outputs, no gradient in them; None without a teacher.
        """
        hard = self.plain(outputs, targets, smoothing=self.label_smoothing)
        if wanted is None or self.distill_weight == 0:
            return hard
        if self.distill_loss is None or isinstance(self.distill_loss, str):
            soft = divergence(outputs, wanted, self.distill_temperature)
        else:
            soft = _scalar(self.distill_loss(outputs, wanted), "distill_loss")
        return (1 - self.distill_weight) * hard + self.distill_weight * soft

    def good(self, outputs: Any, targets: Any, loss: float, count: int) -> float:
        """How good the answers to `count` samples are, summed over them: accuracy (0-1), the
        metric, or minus the loss."""
        if self.metric is not None:
            try:
                return count * float(self.metric(outputs, targets))
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"metric: its result is no number ({error})", field="metric"
                ) from error
        if self.loss is not None:
            return -loss * count
        right = float((outputs.argmax(1) == targets).sum())
        return right / int(targets.numel() // count)  # of pixels, where each has a class


def divergence(outputs: Any, wanted: Any, temperature: float) -> Tensor:
    """T^2 KL(softmax(wanted / T) || softmax(outputs / T)) along axis 1, the mean over the rest."""
    for one in (outputs, wanted):
        if not _are_logits(one) or one.shape != outputs.shape:
            shown = " and ".join(_shown(each) for each in (outputs, wanted))
            raise InputError(
                f"distillation matches logits [N, classes]; module and teacher answer {shown}: "
                "give distill_loss, a function of both, or a distill weight of 0",
                field="distill_loss",
            )
    soft: Tensor = nn.functional.kl_div(
        (outputs / temperature).log_softmax(1),
        (wanted / temperature).log_softmax(1),
        reduction="sum",
        log_target=True,
    )
    return soft * (temperature**2 / int(outputs.numel() // outputs.shape[1]))


def _are_logits(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and outputs.dim() >= 2 and outputs.is_floating_point()


def _check_logits(outputs: Any, targets: Any) -> None:
    """Refuses what cross-entropy does not take."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or not targets.numel():
        raise InputError(
            f"targets are {_shown(targets)}; cross-entropy needs classes as integers, give a loss "
            "of your own for others",
            field="loss",
        )
    most = int(targets.max())
    if (
        not _are_logits(outputs)
        or outputs.shape[1] <= most
        or (targets.shape != outputs.shape[:1] + outputs.shape[2:])
    ):
        raise InputError(
            f"the module answers {_shown(outputs)} for classes up to {most}; training needs logits "
            "[N, classes], or a loss of your own",
            field="loss",
        )


def _scalar(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        raise InputError(f"{name} returned {_shown(value)}; return a scalar tensor", field=name)
    return value.reshape(())


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"a {type(value).__name__}"


def check_finite(loss: float, step: int, total: int) -> None:
    """Refuses to go on once nothing can be learned any more."""
    if not math.isfinite(loss):
        raise InputError(
            f"training diverged: the loss is {loss} at step {step} of {total}; "
            "lower the learning rate"
        )
