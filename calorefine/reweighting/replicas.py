r"""Replicas of a reweighter: the generator stays, and each is learned from a bootstrap copy of the reference.

The spread of their weights is the uncertainty that the reference's statistics and the stochasticity of the training
bring to the correction.  It is the cheap mode of an ensemble: no generator is trained.  The generator's own uncertainty
matters only as far as the correction can't make up for it, which the residual of a closure shows.

Replica r of the reference's weights is entry r - 1 of the branch `<weight>_replica`, as `calorefine splot --replicas`
writes it: bootstrap counts included, the spectator fit redone.  Where there is none, the nominal weights are multiplied
by the counts, and the spread lacks the uncertainty of the fit behind them.

Generated events at the conditions of a reference event count as often as that: their conditions are those of the
replica.  Others, whose conditions come from elsewhere, count once.  Events that count 0 times are left out of the
training, and known to it all the same: an event's weight is in each replica that of networks that left it out.  The
mean weight at each context, which is divided out, is that of all generated events: it is the generator's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import CalorefineError, CalorefineWarning, ConfigError
from calorefine.events import Columns, Events
from calorefine.io.chunks import Request
from calorefine.io.provenance import read_provenance
from calorefine.io.sources import Source
from calorefine.keys import KeyArray
from calorefine.reweighting.mean_weight import MeanWeight
from calorefine.reweighting.ratio import RatioEstimator
from calorefine.reweighting.reweighter import Reweighter, Round
from calorefine.twosample.pair import Samples
from calorefine.weights.bootstrap import Replica

SUFFIX = "_replica"


@dataclass(frozen=True)
class BootstrapCopies:
    """Replicas 1 to K of two samples.

    Args:
        samples: the nominal ones.
        n: K.
        seed: of the counts.
        key: (m,) what the counts of the reference's events go by: their keys, or those of their blocks.
        weight: (m, >= K) weights of the reference in each replica; None for counts times the nominal ones.
        shared: whether generated events count as the reference events of the same key do.
    """

    samples: Samples
    n: int
    seed: int
    key: KeyArray
    weight: NDArray[np.float32] | None = None
    shared: bool = True

    def __iter__(self) -> Iterator[tuple[Events, Events]]:
        """Generated and reference events of each replica."""
        generated, reference = self.samples.generated, self.samples.reference
        row = _rows(reference.event_key, generated.event_key)
        for index in range(1, self.n + 1):
            counts = Replica(index, self.seed).counts(self.key)
            weight = counts * reference.weight if self.weight is None else self.weight[:, index - 1].astype(np.float64)
            shared = np.where(row >= 0, counts[row], 1) if self.shared else 1
            pair = (generated, generated.weight * shared), (reference, weight)
            of_generated, of_reference = (replace(events, weight=w).take(w != 0) for events, w in pair)
            yield of_generated, of_reference

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        sums = [(stats.sum_w(reference.weight), stats.n_eff(reference.weight)) for _, reference in self]
        told = {"n": self.n, "indices": [1, self.n], "seed": self.seed, "refit": self.weight is not None}
        total, n_eff = zip(*sums, strict=True)
        return {**told, "twins_counted": self.shared, "sum_w": list(total), "n_eff": list(n_eff)}


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
        CalorefineWarning: there are none, so that the fit behind the weights isn't redone; or their counts are not
            those of the events' keys, so that generated events at the same conditions can't share them.
    """
    branch = f"{weight}{SUFFIX}"
    if branch not in source.branch_names():
        if weight != "none":
            msg = f"{source}: there is no branch '{branch}': replicas count events anew, and the fit behind '{weight}' "
            msg += "is not redone; write it with calorefine splot --replicas"
            warnings.warn(msg, CalorefineWarning, stacklevel=3)
        return BootstrapCopies(samples, n, seed, _block_key(samples, source, samples.columns))
    chunks = source.chunks(Request({}, cut=samples.columns.cut, branches=[branch]))
    weights = np.concatenate([chunk.branches[branch] for chunk in chunks])
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise ConfigError(f"{source}: '{branch}' of shape {weights.shape} found, expected finite numbers (events, K)")
    if weights.shape[1] < n:
        msg = f"replicas: {n} found, but '{branch}' of {source} has {weights.shape[1]}; expected at most as many"
        raise ConfigError(msg)
    parts = [part for part in read_provenance(source.paths[0]).values() if isinstance(part, dict)]
    told: dict[str, Any] = next((part["replicas"] for part in parts if part.get("replicas")), {})
    columns = replace(samples.columns, block=told.get("block", samples.columns.block))
    copies = BootstrapCopies(samples, n, int(told.get("seed", seed)), _block_key(samples, source, columns), weights)
    if bool(np.any(weights[Replica(1, copies.seed).counts(copies.key) == 0, 0])):
        msg = f"{source}: '{branch}' was not made with counts by these event keys and seed {copies.seed}; generated "
        msg += "events at the same conditions count once in each replica"
        warnings.warn(msg, CalorefineWarning, stacklevel=3)
        return replace(copies, shared=False)
    return copies


def fit_replicas(
    nominal: Reweighter, copies: BootstrapCopies, estimator: RatioEstimator, *, repeats: int, seed: int
) -> list[Reweighter]:
    """Learn a reweighter with as many rounds from each replica.

    Args:
        nominal: the reweighter of the samples themselves.
        copies: their replicas.
        estimator: of the density ratio.
        repeats: `n_repeats` of the estimator.
        seed: of folds and training; each replica has its own.

    Raises:
        CalorefineError: as in a fit; the message names the replica.
    """
    if repeats < 1:
        raise ConfigError(f"replica_repeats: {repeats} found, expected at least 1")
    estimator, replicas = replace(estimator, n_repeats=repeats), []
    for index, pair in enumerate(copies, 1):
        seed_of_replica = int(np.random.SeedSequence([seed, index]).generate_state(1)[0] // 2)
        try:
            replicas.append(_fit_one(nominal, copies.samples.generated, *pair, estimator, seed_of_replica))
        except CalorefineError as error:
            raise type(error)(f"replica {index}: {error}") from error
    return replicas


def _fit_one(
    nominal: Reweighter, everything: Events, generated: Events, reference: Events, estimator: RatioEstimator, seed: int
) -> Reweighter:
    """Learn from the generated and reference events of a replica; take the mean weights from all generated events."""
    replica, known = nominal.with_rounds([]), nominal.rounds[0].ratio.known
    for _ in nominal.rounds:
        weight = everything.weight * replica.factors(everything)
        replica = replica.improved(generated, reference, estimator=estimator, seed=seed)
        ratio = replace(replica.rounds[-1].ratio, known=known)
        factors = np.exp(ratio(everything.table, everything.event_key))
        replica.rounds[-1] = Round(ratio, MeanWeight.fit(nominal.conditions(everything), factors, weight))
    return replica


def _rows(reference: KeyArray, generated: KeyArray) -> NDArray[np.intp]:
    """Row (n,) of the reference with the event key of each generated event; -1 if there is none."""
    order = np.argsort(reference, kind="stable")
    place = order[np.minimum(np.searchsorted(reference, generated, sorter=order), len(order) - 1)]
    return np.where(reference[place] == generated, place, -1)


def _block_key(samples: Samples, source: Source, columns: Columns) -> KeyArray:
    """What the counts of the reference's events (m,) go by."""
    key = samples.reference.event_key
    if not columns.block:
        return key
    chunks = list(source.chunks(Request.of(samples.columns, columns.block_expressions)))
    table = {name: np.concatenate([chunk.values[name] for chunk in chunks]) for name in columns.block_expressions}
    return columns.bootstrap_key(table, key)
