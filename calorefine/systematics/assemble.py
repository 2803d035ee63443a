"""Systematics from the values of all bins under each variation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from calorefine.errors import ConfigError, UncertaintyWarning
from calorefine.systematics.sources import (
    GENERATED,
    AlternativesRule,
    ErrorSource,
    from_alternatives,
    from_deviation,
    from_replicas,
)
from calorefine.systematics.systematics import ObservableBins, Systematics


def assemble(
    nominal: ArrayLike,
    bins: Mapping[str, ObservableBins],
    *,
    calibration: ArrayLike | None = None,
    training: ArrayLike | None = None,
    alternatives: Mapping[str, ArrayLike] | None = None,
    rule: AlternativesRule = "envelope",
    residual: ArrayLike | None = None,
    residual_correlated: bool = True,
    generated: ArrayLike | None = None,
    outside: ArrayLike | None = None,
) -> Systematics:
    """Systematics from values of all bins under variations.

    Args:
        nominal: (n,).
        bins: observables.
        calibration: (K, n) bootstrap replicas, without the nominal one.
        training: (K', n) the same data and other seeds.
        alternatives: choice, as `spectator`, to the values (m, n) under its alternatives.
        rule: how several alternatives of one choice combine, see `sources`.
        residual: (n,) deviation that the closure of the reweighting leaves.
        residual_correlated: whether it moves all bins together.
        generated: (n, n) covariance of the generated sample's own statistics.
        outside: (n,) deviation of events outside the training domain.

    Raises:
        ConfigError, ValueRangeError: as `Systematics` and the functions of `sources`.

    Warns:
        UncertaintyWarning: there are seeds and no bootstrap replicas.
    """
    values = np.asarray(nominal, np.float64)
    sources, notes = _replicated(calibration, training)
    for name, rows in (alternatives or {}).items():
        sources += from_alternatives(name, values, rows, rule=rule)
    if residual is not None:
        sources.append(from_deviation("residual", residual, correlated=residual_correlated))
    if generated is not None:
        sources.append(ErrorSource(GENERATED, np.asarray(generated, np.float64)))
    if outside is not None:
        sources.append(from_deviation("outside", outside))
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ConfigError(f"sources {names}: two have the same name; rename the alternatives")
    replicas = {"calibration": calibration, "training": training}
    kept = {name: np.asarray(rows, np.float64) for name, rows in replicas.items() if rows is not None}
    return Systematics(values, dict(bins), {source.name: source for source in sources}, kept, tuple(notes))


def _replicated(calibration: ArrayLike | None, training: ArrayLike | None) -> tuple[list[ErrorSource], list[str]]:
    """Sources from replicas and seeds, and notes."""
    if training is None:
        return ([] if calibration is None else [from_replicas("calibration", calibration)]), []
    if calibration is not None:
        both = [from_replicas("calibration", calibration), from_replicas("training", training, part_of="calibration")]
        below = int(np.sum(np.diag(both[0].covariance) < np.diag(both[1].covariance)))
        note = (
            f"calibration minus training has a negative variance in {below} bins: noise of a finite number of replicas"
        )
        return both, [note] if below else []
    note = "the calibration sample's statistics are not in the total: there are other seeds, but no bootstrap replicas"
    warnings.warn(f"{note}; run an ensemble with replicas", UncertaintyWarning, stacklevel=3)
    return [from_replicas("training", training)], [note]
