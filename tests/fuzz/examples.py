"""How many examples a property gets: few and always the same ones in the suite; many new ones by hand.

``HYPOTHESIS_PROFILE=long python -m pytest tests/fuzz`` runs twenty times as many.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def examples(few: int) -> settings:
    return settings(
        max_examples=few * 20 if _IS_LONG else few,
        derandomize=not _IS_LONG,
        deadline=None,  # the machine's, not the code's
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
