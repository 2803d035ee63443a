"""What files say about the making of their weights: fitted yields and tests of factorization, of any layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calorefine.weights.summary import Dependence


def stored_part(provenance: Any) -> dict[str, Any]:
    """The part of a file's provenance that is about weights; empty if there is none, or in a way not known here."""
    parts = [provenance.get(k) for k in ("splot", "fractions", "weights")] if isinstance(provenance, dict) else []
    return next((part for part in parts if isinstance(part, dict)), {})


def stored_yields(expressions: Mapping[str, str], parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fitted yields of species whose weights are branches `sw_<species>` or `w_<species>`, summed over the files.

    Args:
        expressions: species to its weight.
        parts: of each file; a species that any of them lacks is left out.
    """
    yields = {}
    for name, text in expressions.items():
        prefix, _, species = text.strip().partition("_")
        sizes = [_yield_in(part, species) for part in parts] if prefix in ("sw", "w") else [None]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes) and math.fsum(known) != 0:
            yields[name] = math.fsum(known)
    return yields


def _yield_in(part: Mapping[str, Any], species: str) -> float | None:
    """Fitted yield of a species in the provenance; None if it isn't there."""
    table = part.get("yields")
    value = table.get(species) if isinstance(table, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def stored_tests(parts: Sequence[Mapping[str, Any]]) -> list[Dependence]:
    """Tests of factorization in each file; what isn't one is left out."""
    tests = []
    for count, part in enumerate(parts, start=1):
        entries = part.get("factorization")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and (test := dependence(entry, f"file {count}" if len(parts) > 1 else "")):
                tests.append(test)
    return tests


def dependence(entry: Mapping[str, Any], file: str = "") -> Dependence | None:
    """Record of a test from its fields; None if the fields are not those of a test."""
    try:
        edges, named = entry.get("edges") or (), entry.get("deviations") or {}
        pulls = [(abs(v), name, v, i) for name, vs in named.items() for i, v in enumerate(vs) if v is not None]
        _, parameter, deviation, index = max(pulls, default=(0.0, "", 0.0, 0))
        low, high = (float(edges[index]), float(edges[index + 1])) if parameter and edges else (None, None)
        cell = str(entry["cells"][index]) if parameter and not edges else ""
        sizes = [float(entry[name]) for name in ("chi2", "p_value", "p_corrected")]
        where = ", ".join(filter(None, [cell, str(entry.get("where") or ""), file]))
        column, ndf = str(entry["column"]), int(entry["ndf"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    if not np.all(np.isfinite([*sizes, deviation])):
        return None
    return Dependence(column, sizes[0], ndf, sizes[1], sizes[2], parameter, float(deviation), low, high, where)
