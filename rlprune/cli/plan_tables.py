"""How `plan` prints a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlprune.cli.shared import print_line, print_table

if TYPE_CHECKING:
    from rlprune.plans import Candidate, PlanFigures, PruningPlan
    from rlprune.reports.plan import PlanReport


def print_plan(report: PlanReport) -> None:
    """A plan for a person: what sites keep, then the figures, a line each."""
    from rlprune.sensitivity.correct import MUCH_DIVERGENCE

    plan, unit = report.plan, report.unit
    precision = "" if plan.precision == "f32" else f" in {plan.precision}"
    device = f"{plan.device}{precision}"
    print_line(f"graph {plan.fingerprint[:12]}   device {device}   policy {plan.policy}")
    _print_sites(report)
    if plan.candidates:
        _print_candidates(report)
    low, high = plan.predicted_interval_ms
    print_line(
        f"budget     {plan.budget_ms:.4g} {unit} of {plan.base_latency_ms:.4g} unpruned; "
        f"the smallest plan takes {plan.least_latency_ms:.4g}"
    )
    whole = report.unpruned
    print_line(f"unpruned   {whole.macs / 1e6:.4g} M MACs, {whole.params:,} parameters")
    if plan.unpruned:
        each = (f"{one.latency_ms:.4g} {unit} in {one.precision}" for one in plan.unpruned)
        print_line(f"           {', '.join(each)}")
    within = "" if report.counted else f"; 90 % within {low:.4g} .. {high:.4g} {unit}"
    print_line(f"{'counted  ' if report.counted else 'predicted'}  {_figures(plan, unit)}{within}")
    certificate = plan.certificate
    if certificate is not None:
        low, high = certificate.measured_interval_ms
        print_line(
            f"measured   {certificate.measured_latency_ms:.4g} {unit}; 90 % within {low:.4g} .. "
            f"{high:.4g} {unit}"
        )
    if plan.expected_divergence is not None:
        how = "" if plan.profiled else "predicted, roughly; "
        print_line(
            f"expected   once applied, answers {plan.expected_divergence:.2g} nats from the "
            f"original's ({how}0: the same, {MUCH_DIVERGENCE:g}: far)"
        )
    if report.better_sec is not None:
        print_line(f"better     {_remedy(report.better_sec)}")
    if plan.reference is not None:
        print_line(f"knapsack   {_figures(plan.reference, unit)}")
    if plan.note:
        print_line(f"note       {plan.note}")


def _print_sites(report: PlanReport) -> None:
    """Of channels alone what every group keeps; with other schemes what changes, in words."""
    if report.only_channels:
        columns = ["group", "width", "keep"]
        shown = report.sites
        rows = [[site.name, str(site.width), str(site.keep)] for site in shown]
        others = [str(site.reference_keep) for site in shown]
    else:
        columns = ["where", "what stays"]
        shown = tuple(site for site in report.sites if site.changed)
        rows = [[site.name, site.option] for site in shown]
        others = [site.reference_option for site in shown]
    if report.differs:
        columns.append("knapsack")
        rows = [[*row, other] for row, other in zip(rows, others, strict=True)]
    constrained = any(site.constraint for site in shown)
    if constrained:
        columns.insert(1, "constraint")
        rows = [[row[0], site.constraint, *row[1:]] for row, site in zip(rows, shown, strict=True)]
    text = 1 + constrained if report.only_channels else len(columns)
    if rows or report.only_channels:
        print_table(columns, rows, left=text)
    if report.only_channels:
        return
    from rlprune.reports.plan import counted_sites

    if report.unchanged:
        print_line(f"as it is   {counted_sites(report.unchanged)}")
    if report.gone:
        print_line(f"           left out with their blocks: {counted_sites(report.gone)}")


def _print_candidates(report: PlanReport) -> None:
    print_table(
        ("candidate", report.unit, "images", "divergence", "loss", "+-", "chosen"),
        [_candidate(one) for one in report.finalists],
    )
    if report.others:
        print_line(f"{report.others} others diverge more, or did on fewer images")


def _candidate(one: Candidate) -> tuple[str, ...]:
    figures = (one.divergence, one.loss, one.loss_se)
    return (
        one.policy,
        f"{one.predicted_latency_ms:.4g}",
        str(one.image_count),
        *("" if value is None else f"{value:.4f}" for value in figures),
        "yes" if one.chosen else "",
    )


def _remedy(cost_sec: float) -> str:
    """How a plan whose losses are only predicted is made better, and what that costs."""
    from rlprune.planning.effort import cpu_text

    cost = cpu_text(cost_sec)
    return (
        f"with --effort quick plans are evaluated (about {cost} of CPU), on made-up inputs, or on "
        "yours with --calibration FILE"
    )


def _figures(figures: PruningPlan | PlanFigures, unit: str) -> str:
    macs = f"{figures.macs / 1e6:.4g} M MACs, {figures.params:,} parameters"
    return macs if unit == "M MACs" else f"{figures.predicted_latency_ms:.4g} {unit}, {macs}"
