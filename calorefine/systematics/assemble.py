"""Systematics from the values of all bins under each variation."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import ArrayLike

from calorefine.errors import ConfigError, UncertaintyWarning
from calorefine.stats import error_of_error
from calorefine.systematics.alternatives import beyond_seeds
from calorefine.systematics.sources import (
    GENERATED,
    NOISE,
    AlternativesRule,
    ErrorSource,
    finite_rows,
    from_alternatives,
    from_deviation,
    from_replicas,
    less,
)
from calorefine.systematics.systematics import ObservableBins, Systematics

FEWEST = 5  # degrees of freedom that the data have to allow for intervals that cover what they say


def assemble(
    nominal: ArrayLike,
    bins: Mapping[str, ObservableBins],
    *,
    calibration: ArrayLike | None = None,
    training: ArrayLike | None = None,
    alternatives: Mapping[str, ArrayLike] | None = None,
    retrained: Collection[str] | None = None,
    rule: AlternativesRule = "envelope",
    residual: ArrayLike | None = None,
    residual_correlated: bool = True,
    generated: ArrayLike | None = None,
    own_noise: ArrayLike | None = None,
    unresolved: ArrayLike | None = None,
    outside: ArrayLike | None = None,
    data_dof: float = np.inf,
) -> Systematics:
    """Systematics from values of all bins under variations.

    Args:
        nominal: (n,).
        bins: observables.
        calibration: (K, n) bootstrap replicas, without the nominal one.
        training: (K', n) the same data and other seeds.
        alternatives: choice, as `spectator`, to the values (m, n) under its alternatives.
        retrained: names of the alternatives that are trainings of their own, whose noise is taken off by `training`
            (see `alternatives`); all of them, if left out.
        rule: how several alternatives of one choice combine, see `sources`.
        residual: (n,) deviation that the closure of the reweighting leaves.
        residual_correlated: whether it moves all bins together.
        generated: (n, n) covariance of the generated sample's own statistics.
        own_noise: (n, n) the part of it that the members' samples don't share: their spread holds it, as the source
            `noise`, so that it isn't added.
        unresolved: (n, n) covariance that the calibration replicas lack, since weights can't follow all of
            the calibration sample's statistics.
        outside: (n,) deviation of events outside the training domain.
        data_dof: degrees of freedom that the calibration sample allows (`stats.weights_dof`).

    Raises:
        ConfigError, ValueRangeError: as `Systematics` and the functions of `sources`.

    Warns:
        UncertaintyWarning: there are seeds and no bootstrap replicas.
    """
    values, given = np.asarray(nominal, np.float64), {"calibration": calibration, "training": training}
    replicas = {name: np.asarray(rows, np.float64) for name, rows in given.items() if rows is not None}
    whole = "calibration" if "calibration" in replicas else None
    sources = [
        from_replicas(name, rows, data_dof=data_dof)
        if name == "calibration"
        else from_replicas(name, rows, part_of=whole)
        for name, rows in replicas.items()
    ]
    notes = _notes(*sources)
    if whole and data_dof < FEWEST:
        note = f"the calibration sample allows {data_dof:.2g} degrees of freedom (few blocks, or a few heavy events): "
        known = f"its errors are known to {error_of_error(data_dof):.0%}"
        notes.append(f"{note}{known}, and intervals may cover less than they say")
    for name, rows in (alternatives or {}).items():
        varied = finite_rows(name, rows)
        if retrained is None or name in retrained:
            deviations, said = beyond_seeds(name, values, varied, replicas.get("training"), bins)
            varied, notes = values + deviations, notes + said
        sources += from_alternatives(name, values, varied, rule=rule)
    if residual is not None:
        sources.append(from_deviation("residual", residual, correlated=residual_correlated))
    if own_noise is not None:
        told = "generated statistics that members don't share"
        sources.append(ErrorSource(NOISE, np.asarray(own_noise), part_of=whole or "training", rule=told))
    if generated is not None:
        covariance = np.asarray(generated, np.float64)
        covariance = covariance if own_noise is None else less(covariance, np.asarray(own_noise, np.float64))
        sources.append(ErrorSource(GENERATED, covariance))
    if unresolved is not None:
        told = "statistics of the calibration sample that the weights of its replicas don't follow"
        sources.append(ErrorSource("unresolved", np.asarray(unresolved, np.float64), rule=told))
    if outside is not None:
        sources.append(from_deviation("outside", outside))
    by_name = {source.name: source for source in sources}
    if len(by_name) < len(sources):
        names = [source.name for source in sources]
        raise ConfigError(f"sources {names}: two have the same name; rename the alternatives")
    return Systematics(values, dict(bins), by_name, replicas, tuple(notes))


def _notes(*replicated: ErrorSource) -> list[str]:
    """Notes on sources from replicas."""
    if [source.name for source in replicated] == ["training"]:
        note = "the calibration sample's statistics are not in the total: there are other seeds, but no bootstrap "
        warnings.warn(f"{note}replicas; run an ensemble with replicas", UncertaintyWarning, stacklevel=3)
        return [f"{note}replicas"]
    below = int(np.sum(np.diff([np.diag(source.covariance) for source in replicated], axis=0) > 0))
    what = f"calibration minus training has a negative variance in {below} bins"
    return [f"{what}: noise of a finite number of replicas"] if below else []
