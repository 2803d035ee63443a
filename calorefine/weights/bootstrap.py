r"""Poisson bootstrap: replica r of a sample counts each event :math:`n_i \sim \mathrm{Poisson}(1)` times.

The count is a pure function of (key, replica, seed): of the event, not of its place in a file or of the others.  The
same event has the same count on every machine and in every sample that it is part of, so that replica 7 of one sample
and replica 7 of another that shares events with it are correlated as the samples are.  Replica 0 is nominal: count 1.

Integer arithmetic alone decides: the 64 bits of the event's stream are compared with the Poisson distribution function
times :math:`2^{64}`, computed with 60 decimal digits.  The spread of any statistic over replicas that redo all that is
fitted estimates its standard deviation.  It covers the statistics of the sample, not a bias of the model.

References: ATL-PHYS-PUB-2021-011; Efron, Ann. Stat. 7 (1979) 1; Chamandy et al., "Estimating uncertainty for massive
data streams", Google (2012).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import accumulate
from math import factorial

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.errors import CalorefineWarning, ConfigError, FitError, ValueRangeError
from calorefine.events import Arrays
from calorefine.stats import FloatArray
from calorefine.weights.source import EVENT, WeightFit, WeightSource

PURPOSE = "bootstrap"
_UNDECIDED = 255
_BLOCK = 16_384
FEW_BLOCKS = 20


@dataclass(frozen=True)
class Replica:
    """Which bootstrap copy of a sample.

    Args:
        index: 0 for the nominal sample, where each event counts once; others count Poisson(1) times.  In files, entry
            k of a replica array is replica k + 1.
        seed: seed of the counts; with another seed all replicas are other ones.
        refit: whether what the weights come from (a spectator fit, uncertain fractions) is redone with the counts.
            Without, the replicas' spread lacks its uncertainty.
    """

    index: int = 0
    seed: int = 0
    refit: bool = True

    def __post_init__(self) -> None:
        """Check the index."""
        if self.index < 0:
            raise ConfigError(f"replica: index {self.index} found, expected 0 (nominal) or more")

    def counts(self, key: keys.KeyArray) -> NDArray[np.uint8]:
        """How often each event counts (n,); see `counts`."""
        return counts(key, replica=self.index, seed=self.seed)


def counts(key: keys.KeyArray, *, replica: int, seed: int = 0) -> NDArray[np.uint8]:
    """How often each event counts in a replica.

    Args:
        key: (n,) uint64: event keys, shared by the candidates of an event; or keys of blocks, such as runs, whose
            events are correlated and have to be kept together.
        replica: its number; 0 gives 1 for every event.
        seed: the user's seed.

    Returns:
        (n,) uint8, Poisson of mean 1, independent between keys, replicas and seeds.

    >>> counts(np.arange(8, dtype=np.uint64), replica=1)
    array([1, 1, 1, 1, 1, 0, 2, 2], dtype=uint8)
    """
    out = np.ones(len(key), np.uint8)
    if replica == 0:
        return out
    for first in range(0, len(key), _BLOCK):
        bits = keys.stream(key[first : first + _BLOCK], PURPOSE, seed=seed, replica=replica)
        out[first : first + _BLOCK] = _poisson(bits)
    return out


def check_blocks(key: keys.KeyArray, block: list[str]) -> None:
    """Raise if all events are in one block, which has no spread; warn if they are in few.

    Raises:
        ConfigError: there is but one block.

    Warns:
        CalorefineWarning: there are fewer than 20: their number tells how well a spread is known.
    """
    n_blocks = len(np.unique(key))
    blocks = f"block [{', '.join(block)}]: {n_blocks} block{'s' * (n_blocks > 1)} in {len(key)} events"
    if n_blocks == 1:
        raise ConfigError(f"{blocks}, expected several: a bootstrap of one has no spread; leave out columns.block")
    if n_blocks < FEW_BLOCKS:
        warnings.warn(f"{blocks}: replicas differ by few independent numbers", CalorefineWarning, stacklevel=2)


def replica_fit(source: WeightSource, nominal: WeightFit, table: Arrays, key: keys.KeyArray, r: Replica) -> WeightFit:
    """Weight functions of a replica: its own, from its counts and its own draw of what is uncertain in the source.

    Args:
        source: where weights come from.
        nominal: its result for replica 0; returned as it is for replica 0 or without refitting.
        table: what `nominal` was fitted to.
        key: (n,) keys of the table's events or blocks.
        r: the replica.

    Raises:
        FitError: its fit fails, also after the refits of `calorefine.weights.refits`.
    """
    if r.index == 0 or not r.refit:
        return nominal
    try:
        blocks = {**table, EVENT: key}
        return source.varied(r.index, r.seed).fit(blocks, multiplicity=r.counts(key), near=nominal)
    except FitError as error:
        hint = "A replica has fewer distinct events than the sample: take wider bins"
        raise FitError(f"replica {r.index}: {error}. {hint}") from error


def bootstrap_weights(
    source: WeightSource, table: Arrays, key: keys.KeyArray, *, n_replicas: int, seed: int = 0, refit: bool = True
) -> Iterator[FloatArray]:
    """Weights of the target in replica 0, 1, ..., `n_replicas`: (n,) each, bootstrap counts included.

    Args:
        source: where weights come from.
        table: name to (n,) values, with the names of ``source.branches``.
        key: (n,) keys of events or blocks.
        n_replicas: how many beside the nominal one.
        seed: seed of the counts.
        refit: whether the source is fitted again in each replica.

    Raises:
        ValueRangeError: another number of keys than of events.
    """
    nominal = source.fit(table)
    for index in range(n_replicas + 1):
        r = Replica(index, seed, refit)
        weight = replica_fit(source, nominal, table, key, r).weights(table)
        if key.shape != weight.shape:
            raise ValueRangeError(f"key has shape {key.shape}, expected {weight.shape}, one key per event")
        yield r.counts(key) * weight


def _thresholds() -> NDArray[np.uint64]:
    """Poisson distribution function of mean 1 times 2^64, as far as it is below 2^64."""
    with localcontext() as context:
        context.prec = 60
        terms = [Decimal(-1).exp() / factorial(k) for k in range(30)]
        values = [int(total * 2**64) for total in accumulate(terms)]
    return np.array([value for value in values if value < 2**64 - 1], np.uint64)


def _table(thresholds: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count for each value of the upper 16 bits; `_UNDECIDED` where the lower bits matter."""
    first = np.arange(2**16, dtype=np.uint64) << np.uint64(48)
    low = np.searchsorted(thresholds, first, side="right")
    high = np.searchsorted(thresholds, first + np.uint64(2**48 - 1), side="right")
    return np.where(low == high, low, _UNDECIDED).astype(np.uint8)


_THRESHOLDS = _thresholds()
_TABLE = _table(_THRESHOLDS)


def _poisson(bits: keys.KeyArray) -> NDArray[np.uint8]:
    result = _TABLE[(bits >> np.uint64(48)).astype(np.intp)]
    undecided = np.flatnonzero(result == _UNDECIDED)
    result[undecided] = np.searchsorted(_THRESHOLDS, bits[undecided], side="right")
    return result
