r"""Density ratio of two weighted samples: the interface of the estimators, and the cross-fitting that they share.

An estimator trains several *members*, each on all events but those of one fold; an event's fold is a function of its
key, so that an event and the one generated at the same conditions are left out together.  An event that was trained on
gets the mean log ratio of the members that left it out; any other event gets the mean of all.  Averaging over members
takes out much of the noise of the training.

A new event gets the mean ratio of all folds, not the exponential of the mean logarithm: the mean over new events is
then that over events trained on, however much the members differ, and a normalization found with the latter holds for
the former.  Nothing is shrunk towards a ratio of 1: an estimate that is has a bias that its spread doesn't show.

Weights of the reference may be negative: the objective is linear in them, and bounded since f is bounded by
construction to the logarithm of `max_ratio`.  Those of the generated events, the denominator, must not be.

References: Cranmer, Pavez and Louppe, arXiv:1506.02169 (ratio from a classifier); Chernozhukov et al.,
arXiv:1608.00060 (cross-fitting).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from calorefine import keys, stats
from calorefine.errors import ConfigError, EmptySelectionError, ValueRangeError, WeightError
from calorefine.events import Events
from calorefine.io.provenance import Configured
from calorefine.reweighting.tilt import Tilt
from calorefine.stats import FloatArray
from calorefine.weights.positive import PositiveWeights

Folded = tuple["WeightedRows", NDArray[np.int64]]  # rows, and the fold (n,) of each


@dataclass(frozen=True)
class WeightedRows:
    """Weighted rows.

    Args:
        values: (n, d) finite numbers.
        weight: (n,) positive sum.
        event_key: (n,) uint64: folds go by it.

    Raises:
        ConfigError: lengths differ.
        ValueRangeError: NaN or infinite values.
        WeightError: weights without a positive sum.
    """

    values: NDArray[np.float32]
    weight: FloatArray
    event_key: keys.KeyArray

    def __post_init__(self) -> None:
        """Check the rows."""
        n = len(self.values)
        if self.values.ndim != 2 or self.weight.shape != (n,) or self.event_key.shape != (n,):
            shapes = self.values.shape, self.weight.shape, self.event_key.shape
            raise ConfigError(f"values, weights and keys of shapes {shapes} found, expected (n, d), (n,) and (n,)")
        if bad := int(np.sum(~np.isfinite(self.values))):
            msg = f"density ratio: {bad} of {self.values.size} values are NaN or infinite, expected none"
            raise ValueRangeError(msg)
        stats.require_positive_sum(self.weight, "density ratio")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.weight)

    @property
    def relative_weight(self) -> FloatArray:
        """Weights (n,) of mean 1."""
        return self.weight * (len(self) / stats.sum_w(self.weight))

    def take(self, index: NDArray[Any]) -> WeightedRows:
        """Rows at these indices, or where this mask is true."""
        return WeightedRows(self.values[index], self.weight[index], self.event_key[index])

    def with_positive_weights(self) -> WeightedRows:
        """Rows with weights that are not negative: their own, or the conditional mean E[w | values] of signed ones."""
        if self.weight.min() >= 0:
            return self
        nothing = np.zeros((len(self), 0), np.float32)
        events = Events(self.values, nothing, self.weight, self.event_key, self.event_key)
        return replace(self, weight=np.asarray(PositiveWeights(bounds=None).fit(events).weight))

    def in_order(self) -> WeightedRows:
        """Rows in an order that depends only on what they are."""
        identity = np.zeros(len(self), np.uint64)
        for column in self.values.T:
            identity = keys.combine(identity, np.ascontiguousarray(column).view(np.uint32))
        return self.take(np.lexsort((identity, self.event_key)))


class Classifiers(ABC):
    """Trained members of an estimator."""

    n_members: int

    @abstractmethod
    def log_ratios(self, values: NDArray[np.float32], which: NDArray[np.int64]) -> FloatArray:
        """Log ratios (k, n) that k of the members give to rows (n, d)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and plain containers to rebuild them from."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Classifiers:
        """Inverse of `state`."""


@dataclass(kw_only=True)
class RatioEstimator(Configured, ABC):
    """What an estimator has to bring: the training of its members.

    Args:
        n_folds: into how many parts the events are divided; a member leaves out one.
        n_repeats: how many members leave out the same part, started from other random numbers.
        max_ratio: bound of the density ratio, and of its inverse.

    Raises:
        ConfigError: fewer than 2 folds, no repeat, a bound that is not above 1, another number that is not positive.
    """

    members: ClassVar[type[Classifiers]]
    n_folds: int = 4
    n_repeats: int = 2
    max_ratio: float = 100.0

    def __post_init__(self) -> None:
        """Check the options."""
        if self.n_folds < 2 or self.n_repeats < 1:
            msg = f"n_folds {self.n_folds} and n_repeats {self.n_repeats} found, expected at least 2 and 1"
            raise ConfigError(msg)
        if not (np.isfinite(self.max_ratio) and self.max_ratio > 1):
            raise ConfigError(f"max_ratio: {self.max_ratio} found, expected a finite number above 1")

    def require_positive(self, **numbers: float) -> None:
        """Raise `ConfigError` for the first of these options that is not positive."""
        for name, value in numbers.items():
            if not value > 0:
                raise ConfigError(f"{name}: {value} found, expected a positive number")

    @property
    def bound(self) -> float:
        """Largest absolute log ratio."""
        return math.log(self.max_ratio)

    @abstractmethod
    def fit_members(self, generated: Folded, reference: Folded, *, seed: int) -> Classifiers:
        """Train one member after the other; member k leaves out fold k % n_folds.

        Args:
            generated: not negative weights.
            reference: weights of any sign.
            seed: of all that is random.
        """


@dataclass(frozen=True)
class Ratio:
    """A cross-fitted log density ratio, reference over generated.

    Attributes:
        members: the trained members.
        n_folds: number of folds.
        seed: of the folds.
        bound: largest absolute log ratio.
        known: sorted event keys of the events trained on.
        tilt: what is added to the log ratio of each fold (`calorefine.reweighting.tilt`).
        scale: of files of version 0.1, whose ratios are this factor times the mean logarithm of all members.
    """

    members: Classifiers
    n_folds: int
    seed: int
    bound: float
    known: keys.KeyArray
    tilt: Tilt | None = None
    scale: float | None = None

    def __call__(self, values: NDArray[np.float32], event_key: keys.KeyArray | None = None) -> FloatArray:
        """Log ratios (n,) of rows (n, d), by members that did not see their events; by all if none was trained on."""
        fold = np.full(len(values), -1)  # -1: not trained on
        if event_key is not None:
            place = np.minimum(np.searchsorted(self.known, event_key), len(self.known) - 1)
            fold = np.where(self.known[place] == event_key, fold_of(event_key, self.n_folds, self.seed), -1)
        out = np.empty(len(values))
        for number in range(-1, self.n_folds):
            rows = fold == number
            out[rows] = self._of_new(values[rows]) if number < 0 else self._left_out(values[rows], number)
        return np.clip(out * (1.0 if self.scale is None else self.scale), -self.bound, self.bound)

    def _left_out(self, values: NDArray[np.float32], fold: int) -> FloatArray:
        """Mean log ratios (n,) of the members that left out a fold."""
        which = np.arange(fold, self.members.n_members, self.n_folds)
        return np.asarray(self.members.log_ratios(values, which).mean(axis=0) + self._tilts(values)[:, fold])

    def _of_new(self, values: NDArray[np.float32]) -> FloatArray:
        """Logarithm (n,) of the folds' mean ratio."""
        logs = self.members.log_ratios(values, np.arange(self.members.n_members))
        if self.scale is not None:
            return np.asarray(logs.mean(axis=0))
        folds = logs.reshape(len(logs) // self.n_folds, self.n_folds, len(values)).mean(axis=0) + self._tilts(values).T
        return np.asarray(logsumexp(folds, axis=0) - math.log(self.n_folds))

    def _tilts(self, values: NDArray[np.float32]) -> FloatArray:
        """Tilt of each fold (n, n_folds)."""
        return self.tilt(values) if self.tilt else np.zeros((len(values), self.n_folds))

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        known, tilt = torch.from_numpy(self.known.view(np.int64)), self.tilt and self.tilt.state()
        return {**vars(self), "known": known, "members": self.members.state(), "tilt": tilt}

    @classmethod
    def from_state(cls, state: dict[str, Any], members: type[Classifiers]) -> Ratio:
        """Inverse of `state`, for members of this type."""
        known = state["known"].numpy().view(np.uint64)
        tilt = Tilt.from_state(state["tilt"]) if state.get("tilt") else None
        return cls(**{**state, "known": known, "members": members.from_state(state["members"]), "tilt": tilt})


def fold_of(event_key: keys.KeyArray, n_folds: int, seed: int) -> NDArray[np.int64]:
    """Fold (n,) of each event: a function of its key."""
    return (keys.uniform(keys.stream(event_key, "ratio_fold", seed=seed)) * n_folds).astype(np.int64)


def fit_ratio(generated: WeightedRows, reference: WeightedRows, estimator: RatioEstimator, *, seed: int = 0) -> Ratio:
    """Estimate the log density ratio of two samples, whatever their order and the scale of their weights.

    Args:
        generated: the denominator; weights that are not negative.
        reference: the numerator; weights of any sign.
        estimator: network or boosted trees.
        seed: of folds and training.

    Raises:
        ConfigError: samples with different columns.
        EmptySelectionError: a fold without generated or without reference events.
        WeightError: negative generated weights, or a fold whose reference weights have no positive sum.
    """
    widths = generated.values.shape[1], reference.values.shape[1]
    if widths[0] != widths[1]:
        msg = f"density ratio: {widths[0]} and {widths[1]} columns found, expected the same in both samples"
        raise ConfigError(msg)
    if bad := int(np.sum(generated.weight < 0)):
        msg = f"density ratio: {bad} of {len(generated)} generated weights are negative; they are its denominator and "
        raise WeightError(msg + "must not be: leave them out, or swap the samples")
    generated, reference = generated.in_order(), reference.in_order()
    folds = [fold_of(rows.event_key, estimator.n_folds, seed) for rows in (generated, reference)]
    for rows, fold, name in zip((generated, reference), folds, ("generated", "reference"), strict=True):
        _check_folds(rows, fold, estimator.n_folds, name)
    members = estimator.fit_members((generated, folds[0]), (reference, folds[1]), seed=seed)
    known = np.unique(np.concatenate([generated.event_key, reference.event_key]))
    return Ratio(members, estimator.n_folds, seed, estimator.bound, known)


def _check_folds(rows: WeightedRows, fold: NDArray[np.int64], n_folds: int, name: str) -> None:
    if np.bincount(fold, minlength=n_folds).min() == 0:
        msg = f"density ratio: {len(rows)} {name} events found, too few for {n_folds} folds with some events in each"
        raise EmptySelectionError(msg)
    for number in range(n_folds):
        what = f"density ratio, {name} events outside of fold {number}"
        stats.require_positive_sum(rows.weight[fold != number], what)
