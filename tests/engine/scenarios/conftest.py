"""Scenarios run in both modes: as users have it, and with every wait dropping the run from memory."""

from __future__ import annotations

import pytest

from tests.kit.stage import M1, M2, Mode


@pytest.fixture(params=[M1, M2], ids=lambda mode: mode.name, autouse=True)
def mode(request: pytest.FixtureRequest) -> Mode:
    """How the stage's processors hold runs that wait."""
    found: Mode = request.param
    return found
