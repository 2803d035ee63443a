"""Lets the tests import the kinds of cases, which `benchmarks/fuzz.py` runs by the thousands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
