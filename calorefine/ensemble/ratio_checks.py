"""Sums over the events of a nominal sample with the weights of each member: whether these can be relied on.

Rows of equal event key (copies of a condition, candidates) are one event: they are summed before they are squared, in
each chunk that is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import keys
from calorefine.keys import KeyArray
from calorefine.stats import FloatArray, WeightSums

FEW_LEFT = 0.1
MOST_PULL, MOST_OFF = 5.0, 0.02


@dataclass
class MemberSums:
    r"""Sums over the events for each of K members, with nominal weights w and ratios r.

    Attributes:
        names: of the members.
        sums: of w and, for each member, wr.
        largest: (K,) largest absolute weight.
        n_cut_off: (K,) number of ratios cut off.
        n: number of events.
        n_impossible: of those that the nominal generator can't draw; their ratios are 1.
    """

    names: list[str]
    sums: WeightSums = field(init=False, repr=False)
    largest: FloatArray = field(init=False, repr=False)
    n_cut_off: FloatArray = field(init=False, repr=False)
    n: int = 0
    n_impossible: int = 0

    def __post_init__(self) -> None:
        """Start at 0."""
        self.sums = WeightSums(1 + len(self.names))
        self.largest, self.n_cut_off = np.zeros((2, len(self.names)))

    def add(self, weight: FloatArray, ratio: FloatArray, cut_off: NDArray[np.bool_], event_key: KeyArray) -> None:
        """Count events with nominal weights (n,), ratios (n, K), whether those were larger (n, K), and event keys."""
        weights = weight[:, None] * np.column_stack([np.ones(len(weight)), ratio])
        self.sums.add(weights, group=keys.group(event_key))
        self.largest = np.maximum(self.largest, np.abs(weights[:, 1:]).max(axis=0))
        self.n_cut_off = self.n_cut_off + cut_off.sum(axis=0)
        self.n += len(weight)

    @property
    def mean(self) -> FloatArray:
        """Mean ratio (K,)."""
        return self.sums.ratios()[0][0, 1:]

    @property
    def error(self) -> FloatArray:
        """Standard error of the mean ratio (K,)."""
        return self.sums.ratios()[1][0, 1:]

    @property
    def n_eff(self) -> FloatArray:
        """Effective number of events (K,)."""
        return self.sums.n_eff[0, 1:]

    @property
    def share_left(self) -> FloatArray:
        """Effective number of events (K,) relative to that of the nominal weights."""
        return np.asarray(self.n_eff / self.sums.n_eff[0, 0])

    def lines(self) -> list[str]:
        """Table for the terminal."""
        head = f"{'member':<14}{'mean ratio':>18}{'n_eff':>12}{'of nominal':>12}{'largest share':>15}{'cut off':>9}"
        share = self.largest / np.abs(self.sums.sum_w[0, 1:])
        rows = zip(self.names, self.mean, self.error, self.n_eff, self.share_left, share, self.n_cut_off, strict=True)
        return [head] + [
            f"{name:<14}{f'{mean:.4f} +- {error:.4f}':>18}{n_eff:>12.0f}{left:>12.1%}{part:>15.2g}{cut:>9.0f}"
            for name, mean, error, n_eff, left, part, cut in rows
        ]

    def warnings(self) -> list[str]:
        """What is off."""
        lines = []
        for name, left, m, e in zip(self.names, self.share_left, self.mean, self.error, strict=True):
            if left < FEW_LEFT:
                msg = f"{name}: n_eff falls to {left:.1%} of the nominal one: few events stand for it; use a sample of "
                lines.append(f"{msg}its own")
            if abs(m - 1) > MOST_PULL * e and abs(m - 1) > MOST_OFF:
                lines.append(f"{name}: mean ratio {m:.4f} +- {e:.4f}, expected 1: it is unreliable")
        if self.n_impossible:
            lines.append(f"{self.n_impossible} events are impossible for the nominal member and have ratio 1")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        numbers = {"mean_ratio": self.mean, "mean_ratio_error": self.error, "n_eff": self.n_eff}
        numbers |= {"largest_weight": self.largest, "n_cut_off": self.n_cut_off}
        return {name: dict(zip(self.names, values.tolist(), strict=True)) for name, values in numbers.items()}
