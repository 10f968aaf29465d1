"""Nodes in this process answer at once, so nobody waits a tenth of a second for them."""

import pytest


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("exchange", "roll"):
        monkeypatch.setattr(f"msfusion.flower.{module}.POLL", 0.01)
