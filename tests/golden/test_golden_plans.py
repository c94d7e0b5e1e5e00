"""Plans stay what they are until somebody changes them on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from golden import PLANS, answer, differences, golden_store, questions

KEPT = json.loads(PLANS.read_text())
ASKED = list(questions())


@pytest.fixture(scope="module", autouse=True)
def _store() -> Iterator[None]:
    with golden_store():
        yield


def test_every_kept_plan_is_asked_for() -> None:
    assert [name for name, _, _ in ASKED] == list(KEPT) and len(KEPT) >= 200


@pytest.mark.parametrize("name", sorted({net for _, net, _ in ASKED}))
def test_plans_are_those_that_were_kept(name: str) -> None:
    said: dict[str, Any] = {}
    for question, net, options in ASKED:
        if net == name and (found := differences(KEPT[question], answer(net, options))):
            said[question] = found
    assert not said
