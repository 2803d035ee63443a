"""Is the joint covariance of observables of the same events that of toys?  Through `observables.measure`, as the verbs.

*Joint*: overlapping efficiencies, an efficiency against two variables, and a scan of a cut, in samples of about 3000
events with signed weights.  For every pair of values the error of their sum and of their difference, by the mean
covariance, is divided by the spread over the toys; and the p-values of the chi2 of all observables together, each with
the covariance of its own toy, are compared with a uniform distribution (Kolmogorov and Smirnov).

*Correlated rows*: copies generated at each of about 400 conditions (1, 5, 10), told by a key, and events of three
candidates with a common part.  Claimed over true error, root mean square over the values of five kinds of observable.

    python benchmarks/joint_covariance.py --json joint_covariance.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as distributions

from calorefine.io.sources import BranchShape, Source
from calorefine.observables import Efficiency, Histogram, Mean, Measured, Observable, Weights, Width, measure
from calorefine.systematics.hotelling import hotelling

HALVES = [0.0, 0.5, 1.0]
JOINT: dict[str, Observable] = {
    "above_0": Efficiency("x > 0", "c", edges=HALVES),
    "above_01": Efficiency("x > 0.1", "c", edges=HALVES),
    "against_y": Efficiency("x > 0", "y", edges=[-9, 0.2, 0.8, 9]),
    **{f"scan_{k}": Efficiency(f"x > {cut}", "c", edges=[0, 1]) for k, cut in enumerate((-0.7, -0.2, 0.5, 1.0))},
}
KINDS: dict[str, Observable] = {
    "counts": Histogram("c", edges=[0, 0.3, 0.6, 1]),
    "shape": Histogram("x", edges=[-1, 0, 1, 2], normalize="unit"),
    "efficiency": Efficiency("x > 0.5", "c", edges=HALVES),
    "mean": Mean("x", "c", edges=HALVES),
    "width": Width("x", "c", edges=HALVES, range=(-8, 8)),
}


@dataclass(frozen=True)
class Rows(Source):
    """Rows in memory.

    Args:
        arrays: branch to its values (n,).
    """

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """There is no file."""
        object.__setattr__(self, "paths", [Path("memory")])

    @contextmanager
    def open(self, path: Path) -> Iterator[Rows]:
        """Nothing to open."""
        yield self

    @property
    def n_entries(self) -> int:
        """Number of rows."""
        return len(next(iter(self.arrays.values())))

    def names(self) -> list[str]:
        """Names of the branches."""
        return list(self.arrays)

    def shape(self, name: str) -> BranchShape:
        """One number for each row."""
        return self.arrays[name].shape[1:]

    def batches(self, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, Any], range]]:
        """Consecutive rows."""
        for first in range(0, self.n_entries, rows):
            at = range(first, min(first + rows, self.n_entries))
            yield {name: self.arrays[name][at.start : at.stop] for name in names}, at


def events(rng: np.random.Generator, mean: int, *, copies: int = 1, common: float = 0.0) -> dict[str, NDArray[Any]]:
    """About so many conditions c, each with some rows x that share a part of their variance."""
    n = rng.poisson(mean)
    c, shift = np.repeat(rng.random(n), copies), np.repeat(rng.normal(size=n), copies)
    x = 1.5 * c - 0.5 + np.sqrt(1 - common) * rng.normal(size=n * copies) + np.sqrt(common) * shift
    w = np.repeat(rng.normal(1, 0.5, n), copies)
    return {"c": c, "x": x, "y": c + rng.normal(0, 0.5, n * copies), "w": w, "event": np.repeat(np.arange(n), copies)}


def measured(arrays: Mapping[str, NDArray[Any]], observables: Mapping[str, Observable], rows: int | None) -> Measured:
    """As the verbs measure them."""
    weights = [Weights("w")]
    return measure(Rows("", "events", arrays), observables, weights=weights, in_domain=None, key=["event"], rows=rows)


def joint(toys: int, seed: int) -> dict[str, float]:
    """Sums and differences of all pairs of values, and chi2 of all together."""
    rng = np.random.default_rng(seed)
    results = [measured(events(rng, 3000), JOINT, None) for _ in range(toys)]
    values = np.array([result.values[0] for result in results])
    covariance = np.mean([result.statistics for result in results], axis=0)
    ratios = []
    for a, b in combinations(range(values.shape[1]), 2):
        for sign in (1, -1):
            claimed = covariance[a, a] + covariance[b, b] + 2 * sign * covariance[a, b]
            ratios.append(np.sqrt(claimed) / np.std(values[:, a] + sign * values[:, b], ddof=1))
    truth = values.mean(axis=0)
    p = [hotelling(result.values[0] - truth, [(result.statistics, np.inf)]).p_value for result in results]
    alone = np.sqrt(np.diag(covariance)) / values.std(axis=0, ddof=1)
    return {
        "pairs_lowest": float(np.min(ratios)),
        "pairs_highest": float(np.max(ratios)),
        "single_lowest": float(alone.min()),
        "single_highest": float(alone.max()),
        "chi2_ks_p": float(distributions.kstest(p, "uniform").pvalue),
        "chi2_below_005": float(np.mean(np.array(p) < 0.05)),
    }


def correlated(toys: int, seed: int, **options: Any) -> dict[str, float]:
    """Claimed over true error of all kinds, in chunks that cut events in two."""
    rng = np.random.default_rng(seed)
    results = [measured(events(rng, 400, **options), KINDS, 997) for _ in range(toys)]
    true = np.var([result.values[0] for result in results], axis=0, ddof=1)
    ratios = np.mean([np.diag(result.statistics) for result in results], axis=0) / true
    by_kind = {name: float(np.sqrt(np.mean(ratios[results[0].part(name)]))) for name in KINDS}
    return {"all": float(np.sqrt(np.mean(ratios))), **by_kind}


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toys", type=int, default=1000, help="of the joint covariance")
    parser.add_argument("--copies-toys", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures = joint(options.toys, options.seed)
    for name, given in {f"copies_{n}": {"copies": n} for n in (1, 5, 10)}.items():
        own = correlated(options.copies_toys, options.seed, **given)
        figures |= {f"{name}_{kind}": ratio for kind, ratio in own.items()}
    own = correlated(options.copies_toys, options.seed, copies=3, common=0.5)
    figures |= {f"candidates_3_{kind}": ratio for kind, ratio in own.items()}
    for name, figure in figures.items():
        print(f"{name:<28}{figure:8.3f}")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
