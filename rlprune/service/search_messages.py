"""A round of a search as a protocol message and back."""

from __future__ import annotations

import numpy as np

from rlprune.errors import InputError
from rlprune.planning.proposals import MOST_PROPOSED, MOST_SEEN, Round
from rlprune.planning.request import SEARCH
from rlprune.schemes import Space
from rlprune.v1 import plans_pb2

MAX_LOSS = 1e3


def round_to_message(asked: Round) -> plans_pb2.Search:
    """What was evaluated; how many to propose stands in the request."""
    return plans_pb2.Search(
        evaluated=[
            plans_pb2.EvaluatedPlan(keeps=keeps, divergence=loss, error=error)
            for keeps, loss, error in zip(
                asked.keeps.tolist(), asked.loss.tolist(), asked.error.tolist(), strict=True
            )
        ]
    )


def round_from(request: plans_pb2.CreatePlanRequest, space: Space) -> Round | None:
    """The round that a request asks for; None where it is not part of a search.

    Raises:
        InputError: a plan that is none of the space's, or figures that are none; names the field.
    """
    if not request.HasField("search"):
        return None
    if request.policy not in ("", SEARCH):
        raise InputError(f"rounds go with policy {SEARCH!r} only", field="policy")
    if request.max_params:
        raise InputError("a search goes by latency alone", field="max_params")
    if not 0 <= request.candidates <= MOST_PROPOSED:
        raise InputError(
            f"{request.candidates} candidates, not 0..{MOST_PROPOSED}", field="candidates"
        )
    evaluated = request.search.evaluated
    if len(evaluated) > MOST_SEEN:
        raise InputError(
            f"{len(evaluated)} evaluated plans, more than {MOST_SEEN}", field="search.evaluated"
        )
    if not evaluated:
        return Round.first(len(space.sites), request.candidates)
    for index, one in enumerate(evaluated):
        field = f"search.evaluated[{index}]"
        if len(one.keeps) != len(space.sites):
            raise InputError(
                f"{len(one.keeps)} values for {len(space.sites)} sites", field=f"{field}.keeps"
            )
        # Comparisons that NaN fails too.
        if not 0.0 <= one.divergence <= MAX_LOSS:
            raise InputError(f"a divergence of {one.divergence}", field=f"{field}.divergence")
        if not 0.0 <= one.error <= 1.0:
            raise InputError(f"an error of {one.error}, not 0..1", field=f"{field}.error")
    keeps = np.array([list(one.keeps) for one in evaluated], dtype=np.int64)
    wrong = np.flatnonzero(~(space.settings == keeps[..., None]).any(-1).all(-1))
    if len(wrong):
        raise InputError(
            "a value that is none of its site's options in profiles",
            field=f"search.evaluated[{wrong[0]}].keeps",
        )
    return Round(
        keeps,
        np.array([one.divergence for one in evaluated]),
        np.array([one.error for one in evaluated]),
        request.candidates,
    )
