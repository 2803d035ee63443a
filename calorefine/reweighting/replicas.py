r"""Replicas of a reweighter: what the correction is for bootstrap copies of the reference.

The generator and the networks stay.  Each copy has other means of the columns' terms, and the factors follow them by a
linear `tilt`, without a training and without shrinking: the corrected events have the copy's means whatever the
generator's are.  The generated events that the correction was learned from are counted anew, too.  The spread is what
the statistics of both samples brings to the corrected events, as far as the terms resolve it: the slope by which known
shifts are recovered is measured, and below 0.9 in bins of a column there are no replicas.  For the observables of an
analysis `resolved` tells.

Replica r of the reference's weights is entry r - 1 of the branch `<weight>_replica`, as `calorefine splot --replicas`
writes it: bootstrap counts included, the spectator fit redone.  Where there is none, the nominal weights are multiplied
by the counts, and the spread lacks the uncertainty of the fit behind them.

In the conditional case the copies' contexts differ as well: that is projected out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import CalorefineWarning, ConfigError, FitError
from calorefine.io.chunks import Request
from calorefine.io.provenance import read_provenance
from calorefine.io.sources import Source
from calorefine.keys import KeyArray
from calorefine.reweighting.reweighter import Reweighter
from calorefine.reweighting.slopes import slopes
from calorefine.reweighting.tilt import COPIES, LEAST_SLOPE, Terms, Tilt, Weighted, shift_coefficients
from calorefine.stats import FloatArray
from calorefine.twosample.pair import Samples
from calorefine.weights.bootstrap import Replica

SUFFIX = "_replica"


@dataclass(frozen=True)
class BootstrapCopies:
    """Replicas 1 to K of the reference.

    Attributes:
        weight: (m, K) its weights in each.
        seed: of the counts.
        refit: whether the fit behind the weights was redone.
    """

    weight: FloatArray
    seed: int
    refit: bool

    @property
    def n(self) -> int:
        """Number K of replicas."""
        return int(self.weight.shape[1])

    def counts(self, key: KeyArray, index: int) -> NDArray[np.float32]:
        """How often events (n,) of these keys are in a replica: as often as those of the reference with equal keys."""
        return Replica(index + 1, self.seed).counts(key).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        sums, n_eff = ([function(w) for w in self.weight.T] for function in (stats.sum_w, stats.n_eff))
        return {
            "n": self.n,
            "indices": [1, self.n],
            "seed": self.seed,
            "refit": self.refit,
            "sum_w": sums,
            "n_eff": n_eff,
        }


def bootstrap_copies(samples: Samples, source: Source, weight: str, *, n: int, seed: int) -> BootstrapCopies:
    """Find the replicas of the reference's weights.

    Args:
        samples: the nominal ones.
        source: files of the reference.
        weight: branch or expression of the nominal weight.
        n: number of replicas.
        seed: of the counts, where the files don't tell the one of theirs.

    Raises:
        ConfigError: the files hold fewer replicas.

    Warns:
        CalorefineWarning: there are none, so that the fit behind the weights isn't redone.
    """
    branch = f"{weight}{SUFFIX}"
    if branch not in source.branch_names():
        if weight != "none":
            msg = f"{source}: there is no branch '{branch}': replicas count events anew, and the fit behind '{weight}' "
            msg += "is not redone; write it with calorefine splot --replicas"
            warnings.warn(msg, CalorefineWarning, stacklevel=3)
        key = _block_key(samples, source)
        counts = np.stack([Replica(index, seed).counts(key) for index in range(1, n + 1)], axis=1)
        return BootstrapCopies(samples.reference.weight[:, None] * counts, seed, refit=False)
    chunks = source.chunks(Request({}, cut=samples.columns.cut, branches=[branch]))
    weights = np.concatenate([chunk.branches[branch] for chunk in chunks])
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise ConfigError(f"{source}: '{branch}' of shape {weights.shape} found, expected finite numbers (events, K)")
    if weights.shape[1] < n:
        msg = f"replicas: {n} found, but '{branch}' of {source} has {weights.shape[1]}; expected at most as many"
        raise ConfigError(msg)
    parts = [part for part in read_provenance(source.paths[0]).values() if isinstance(part, dict)]
    told: dict[str, Any] = next((part["replicas"] for part in parts if part.get("replicas")), {})
    return BootstrapCopies(weights[:, :n].astype(np.float64), int(told.get("seed", seed)), refit=True)


def fit_replicas(nominal: Reweighter, samples: Samples, copies: BootstrapCopies) -> tuple[Tilt, dict[str, float]]:
    """Learn the tilts of all replicas.

    Args:
        nominal: the reweighter of the samples.
        samples: generated events and reference.
        copies: weights of the reference in each replica.

    Returns:
        The tilts, and the part of a known shift that they recover, by name of column (`calorefine.reweighting.tilt`).

    Raises:
        FitError: it is below 0.9 in bins of a column.
        WeightError: a replica's weights don't have a positive sum.
    """
    generated = samples.generated.take(nominal.in_domain(samples.generated.context))
    inside = nominal.in_domain(samples.reference.context)
    reference = samples.reference.take(inside)
    weights = np.column_stack([reference.weight, copies.weight[inside]])
    for weight in weights.T:
        stats.require_positive_sum(weight, "replica of the reference")
    factors = generated.weight * nominal.factors(generated)
    factors *= nominal.context_factors(replace(generated, weight=factors), reference)
    n_free = generated.x.shape[1] if nominal.conditional else generated.table.shape[1]
    own, other = (generated.table, factors), (reference.table, reference.weight)
    terms = Terms.chosen(own, other, n_free, COPIES)
    drawn, copied = Weighted(terms, *own), Weighted(terms, reference.table, weights)
    counted = np.column_stack([factors, *(factors * copies.counts(generated.event_key, k) for k in range(copies.n))])
    found = slopes(drawn, generated.event_key, [*samples.columns.feature_names, *samples.columns.context_names])
    _refuse(found)
    means = copied.means() - replace(drawn, weight=counted).means()
    return Tilt(terms, shift_coefficients(drawn.squares(), means[:, 1:] - means[:, :1], terms.given)), found


def _refuse(found: dict[str, float]) -> None:
    bad = {name: slope for name, slope in found.items() if " in bins of " not in name and not slope >= LEAST_SLOPE}
    if bad:
        worst = min(bad, key=lambda name: bad[name])
        msg = f"replicas: of a known shift in ten bins of '{worst}' {bad[worst]:.2f} is recovered, expected at least "
        msg += f"{LEAST_SLOPE}: their spread would be too small; it takes more events (an effective number of 1200 for "
        raise FitError(f"{msg}each column), or samples of the members of an ensemble (calorefine ensemble)")


def _block_key(samples: Samples, source: Source) -> KeyArray:
    """What the counts of the reference's events (m,) go by."""
    columns, key = samples.columns, samples.reference.event_key
    if not columns.block:
        return key
    chunks = list(source.chunks(Request.of(columns, columns.block_expressions)))
    table = {name: np.concatenate([chunk.values[name] for chunk in chunks]) for name in columns.block_expressions}
    return columns.bootstrap_key(table, key)
