"""One thread: these networks are too small for more, and a run sets torch's threads for the whole process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """In every test here."""
