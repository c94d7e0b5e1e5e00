"""What the tests of reconstruction ask of it."""

from __future__ import annotations

import pytest

from rlprune.sensitivity import moments


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window is looked at, and next to nothing is added to variances."""
    monkeypatch.setattr(moments, "PLACES", 1 << 20)
    monkeypatch.setattr(moments, "RIDGE", 0.0)
    monkeypatch.setattr(moments, "RIDGE_PER_INPUT", 0.01)
