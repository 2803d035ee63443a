"""A few of the cases that `benchmarks/fuzz.py` runs by the thousands, the same ones in every run."""

from __future__ import annotations

import pytest
from fuzz_harness import FAULTS, judged
from fuzz_kinds import KINDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = {"expressions": 60, "root": 40, "checkpoints": 25, "reweighters": 40, "configs": 6, "provenance": 60}
EXAMPLES |= {"showers": 60, "binning": 60}


@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_crashes_hangs_or_is_silently_wrong(kind):
    case = KINDS[kind]()

    @settings(
        max_examples=EXAMPLES[kind],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def holds(rng):
        outcome = judged(case, rng)
        assert outcome.result not in FAULTS, outcome.what

    holds()
