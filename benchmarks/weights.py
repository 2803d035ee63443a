"""How long do weights take for 10^6 events on one core?

splot       sWeights of two species, after the fit (whose time is printed beside)
fractions   label fractions: three samples, two species, solved and evaluated
positive    E[w | x, context] by five-fold cross-fitted regression on ten columns
bootstrap   100 replicas of Poisson counts times a weight; one refit of the spectator is printed beside

python benchmarks/weights.py --json weights.json          (about two minutes)
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy, scikit-learn and torch

import numpy as np

from calorefine import keys
from calorefine.datasets import CorrelatedToy
from calorefine.events import Events
from calorefine.weights import (
    Exponential,
    Gaussian,
    LabelFractions,
    PositiveWeights,
    Replica,
    SPlot,
    replica_fit,
)

N, SEED, N_REPLICAS = 1_000_000, 1, 100


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and wall time."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def spectator(table: dict[str, np.ndarray], key: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """SWeights, and times of fit, weights and one refit."""
    source = SPlot(spectator="m", range=(0, 1), species={"signal": Gaussian(), "background": Exponential()})
    source.fit({"m": table["m"][: source.max_unbinned + 1000]})  # compile once
    fit, fit_seconds = timed(lambda: source.fit(table))
    weights, seconds = timed(lambda: [fit.weights(table, name) for name in fit.species])
    _, refit = timed(lambda: replica_fit(source, fit, table, key, Replica(1)))
    return weights[0], {"splot_seconds": seconds, "splot_fit_seconds": fit_seconds, "splot_refit_seconds": refit}


def fractions_seconds(table: dict[str, np.ndarray]) -> float:
    """Time to solve and evaluate the weights of both species."""
    known = {"rich": 0.7, "middle": 0.4, "poor": 0.1}
    source = LabelFractions(fractions={name: {"signal": f, "background": 1 - f} for name, f in known.items()})
    sample = np.random.default_rng(SEED).integers(3, size=len(table["m"]))

    def solve() -> list[np.ndarray]:
        fit = source.fit({"sample": sample})
        return [fit.weights({"sample": sample}, name) for name in fit.species]

    return timed(solve)[1]


def positive_seconds(table: dict[str, np.ndarray], weight: np.ndarray, key: np.ndarray) -> float:
    """Time of the cross-fitted regression on seven features and three context columns."""
    rng = np.random.default_rng(SEED)
    x, y, c = (table[name] for name in "xyc")
    more = [rng.normal(size=len(x)) + k * x / 3 for k in range(5)]
    features = np.stack([x, y, *more], axis=1).astype(np.float32)
    context = np.stack([c, rng.random(len(x)), rng.random(len(x))], axis=1).astype(np.float32)
    return timed(lambda: PositiveWeights().fit(Events(features, context, weight, key, key)))[1]


def bootstrap_seconds(weight: np.ndarray, key: np.ndarray) -> float:
    """Time of all replicas' weights, with the nominal weight function."""
    return timed(lambda: [float((Replica(r).counts(key) * weight).sum()) for r in range(1, N_REPLICAS + 1)])[1]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    table = CorrelatedToy().generate(N, seed=SEED)
    key = keys.make_keys([table["run"], table["event"]])
    weight, figures = spectator(table, key)
    figures["fractions_seconds"] = fractions_seconds(table)
    figures["bootstrap_seconds"] = bootstrap_seconds(weight, key)
    figures["positive_seconds"] = positive_seconds(table, weight, key)
    for name, value in figures.items():
        print(f"{name:>22} {value:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
