r"""Two samples with events in common: how much of their statistics they share.

A member's values y are a function of the sums over events, and an event (all rows of one key) has the influence U_g on
them (`observables.statistics`).  Two samples a and b at the same conditions share what their influences have in common,

.. math:: C = \sum_g U_{ga} U_{gb}^T, \qquad
          \operatorname{cov}(y_a - y_b) = \sum_g (U_{ga} - U_{gb}) (U_{ga} - U_{gb})^T = V_a + V_b - C - C^T,

where an event that one of them lacks has no influence there.  With the same latent noise they share nearly all, with
noise of their own what the conditions do, at other conditions nothing: the events tell, whatever the seeds were.  The
spread of members therefore holds the rest of the generated statistics, half the covariance of a difference
(`own_noise`), which is not to be added again.

Events go together by their key branches, where one of the files says which those are and both have them.  Without, rows
go together by their place in the file, if the provenance says that one sample was generated at each row of the other
one, or both at the same conditions.  Otherwise nothing tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy import sparse

from calorefine.io.chunks import CHUNK_ROWS
from calorefine.io.sample import WeightedFiles
from calorefine.keys import KeyArray
from calorefine.observables import Observable, Weights
from calorefine.observables.reading import Evaluated, Identity, chunks
from calorefine.observables.sums import ObservableSums
from calorefine.stats import FloatArray, row_sums
from calorefine.systematics.sources import less

Match = tuple[Identity, Identity]


@dataclass(frozen=True)
class Shared:
    """Covariances (n, n) of two samples from their own events, and what they have in common."""

    first: FloatArray
    second: FloatArray
    common: FloatArray

    @property
    def apart(self) -> FloatArray:
        """Covariance (n, n) of the difference."""
        return less(self.first + self.second, self.common + self.common.T)


def matched(first: WeightedFiles, second: WeightedFiles) -> Match | None:
    """By what the rows of each of two samples tell their event; None where nothing says which go together."""
    samples = (first, second)
    for told in (sample.provenance for sample in samples):
        key = told.get("options", {}).get("key") or told.get("columns", {}).get("key")
        if key and all(set(key) <= set(sample.source.branch_names("number")) for sample in samples):
            return Identity(tuple(key)), Identity(tuple(key))
    if not any("conditions" in sample.provenance for sample in samples):
        return None
    (names, copies), (others, other_copies) = (_conditions(sample) for sample in samples)
    return (Identity(copies=copies), Identity(copies=other_copies)) if names and names == others else None


def _conditions(sample: WeightedFiles) -> tuple[list[str], int]:
    """Names of the files whose rows were the conditions, none if rows are missing, and rows at each condition."""
    told, n = sample.provenance, sum(sample.source.lengths())
    copies, names = int(told.get("n_per_event", 1)), told.get("conditions", [path.name for path in sample.source.paths])
    complete = len(sample.source.paths) == 1 and told.get("n_conditions", n) * copies == n
    return names if complete else [], copies


def shared(first: WeightedFiles, second: WeightedFiles, observables: Mapping[str, Observable], match: Match) -> Shared:
    """Compare two samples event by event.

    Args:
        first: events with their weight, any sign.
        second: others.
        observables: with their sub-cells chosen.
        match: of `matched`.
    """
    pairs = zip((first, second), match, strict=True)
    keys, weighted, jacobians = zip(*(_amounts(sample, observables, events) for sample, events in pairs), strict=True)
    group, rows = np.unique(np.concatenate(keys), return_inverse=True)[1], []
    for at, amounts in zip(np.split(group, [len(keys[0])]), weighted, strict=True):
        rows.append(row_sums(amounts, at, int(group.max()) + 1))
    products = [jacobians[i] @ (rows[i].T @ rows[j]) @ jacobians[j].T for i, j in ((0, 0), (1, 1), (0, 1))]
    return Shared(*(product.toarray() for product in products))


def own_noise(samples: Sequence[WeightedFiles], observables: Mapping[str, Observable]) -> FloatArray | None:
    """Statistics (n, n) that the samples of members don't share with each other, so that their spread holds it.

    Two of them show it, if all have noise of the same seed, or each of another; else two of either kind.

    Returns:
        The covariance, or None where nothing tells which events go together.
    """
    groups: dict[Any, list[WeightedFiles]] = {}
    for sample in samples:
        groups.setdefault(sample.provenance.get("seed"), []).append(sample)
    n = len(samples)
    alike = sum(len(group) * (len(group) - 1) for group in groups.values()) / (n * (n - 1))
    same, *_ = sorted(groups.values(), key=len, reverse=True)
    pairs = [(alike, same[:2])] if alike else []
    pairs += [(1 - alike, [group[0] for group in groups.values()][:2])] if alike < 1 else []
    noise = np.zeros(())
    for share, (first, second) in pairs:
        match = matched(first, second)
        if match is None:
            return None
        noise = noise + share * shared(first, second, observables, match).apart / 2
    return noise


def _amounts(
    sample: WeightedFiles, observables: Mapping[str, Observable], events: Identity
) -> tuple[KeyArray, sparse.csr_array, sparse.csr_array]:
    """Keys (m,) of the rows, their weighted amounts (m, sums), and the values' derivatives (n, sums)."""
    sums = [ObservableSums(name, observable, 1) for name, observable in observables.items()]
    weight, bad = Weights(sample.weight), Counter[str]()
    texts = [*chain.from_iterable(observable.texts() for observable in observables.values()), weight.text]
    keys, rows = [], []
    for key, chunk in _keyed(chunks(sample.source, texts, CHUNK_ROWS, events), events):
        weights = chunk.weights([weight])
        for part in sums:
            part.add(chunk, np.repeat(weights, 2, axis=1), np.ones(chunk.n, bool), bad)
        amounts = sparse.hstack([part.amounts(chunk) for part in sums], format="csr")
        keys.append(key)
        rows.append(sparse.diags_array(weights[:, 0]) @ amounts)
    jacobian = sparse.block_diag([part.jacobian() for part in sums], format="csr")
    return np.concatenate(keys), sparse.vstack(rows, format="csr"), jacobian


def _keyed(parts: Iterator[Evaluated], events: Identity) -> Iterator[tuple[KeyArray, Evaluated]]:
    """Chunks with the keys of their rows: those of the files, or else the place of the condition."""
    first = 0
    for chunk in parts:
        place = np.arange(first, first + chunk.n, dtype=np.uint64) // np.uint64(events.copies)
        yield (chunk.key if events.key and chunk.key is not None else place), chunk
        first += chunk.n
