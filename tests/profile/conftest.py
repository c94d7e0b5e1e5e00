"""What the tests of reconstruction ask of it."""

from __future__ import annotations

import pytest

from rlprune.profile import moments


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window is looked at, and nothing but what few samples need is added to variances."""
    monkeypatch.setattr(moments, "PLACES", 1 << 20)
    monkeypatch.setattr(moments, "RIDGE", 0.0)
