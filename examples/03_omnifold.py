"""Unfold a measured distribution, unbinned: OmniFold with the density ratios that reweight generated events.

    python examples/03_omnifold.py

A simulation gives pairs (particle level, detector level); the data are at detector level alone, and hold background
that is taken out by signed weights.  Each iteration asks two questions with the same engine:

1. at detector level: by which factor do the simulation's weights have to change to look like the data?
2. at particle level: which function of the truth alone is this factor on average?

It is the Gaussian case of the OmniFold paper (Andreassen et al., arXiv:1911.09107, section IV), with background: truth
in data N(0.2, 0.8), in simulation N(0, 1), resolution 0.5.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from calorefine import keys, stats
from calorefine.reweighting import NetworkRatio, WeightedRows, fit_ratio

RESOLUTION = 0.5
BACKGROUND = 0.3  # of the data, known to be N(-1, 0.5) at detector level


def column(values: np.ndarray, weight: np.ndarray, event_key: np.ndarray) -> WeightedRows:
    """One column as a table."""
    return WeightedRows(values[:, None].astype(np.float32), weight, event_key)


def measured(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Detector level (m,) and weights of n data events, and as negative weights those of simulated background."""
    n_background = rng.binomial(n, BACKGROUND)
    signal = rng.normal(rng.normal(0.2, 0.8, n - n_background), RESOLUTION)
    background, subtracted = rng.normal(-1, 0.5, n_background), rng.normal(-1, 0.5, n)
    weights = [np.ones(n), np.full(n, -BACKGROUND)]
    return np.concatenate([signal, background, subtracted]), np.concatenate(weights)


def unfold(
    truth: np.ndarray, simulated: np.ndarray, data: tuple[np.ndarray, np.ndarray], iterations: int
) -> np.ndarray:
    """Weights (n,) of the simulated pairs that make them look like the data."""
    estimator = NetworkRatio(hidden=[32, 32], n_folds=2)
    pair_key = keys.make_keys([np.arange(len(truth))])
    data_key = keys.stream(keys.make_keys([np.arange(len(data[0]))]), "data")
    target = column(*data, data_key)
    weight = np.ones(len(truth))
    for iteration in range(1, iterations + 1):
        at_detector = column(simulated, weight, pair_key)
        pulled = weight * np.exp(
            fit_ratio(at_detector, target, estimator, seed=iteration)(at_detector.values, pair_key)
        )
        at_truth = column(truth, np.ones(len(truth)), pair_key)
        pushed = column(truth, pulled, pair_key)
        ratio = fit_ratio(at_truth, pushed, estimator, seed=100 + iteration)
        weight = np.exp(ratio(at_truth.values, pair_key))
        weight /= weight.mean()
        mean, width = moments(truth, weight)
        print(f"{iteration:>9} {mean:8.3f} {width:8.3f} {stats.n_eff(weight) / len(weight):12.3f}")
    return weight


def moments(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted mean and width."""
    mean = float(stats.mean(values, weight))
    return mean, float(np.sqrt(stats.mean((values - mean) ** 2, weight)))


def main() -> None:
    """Unfold and print mean and width after each iteration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000, help="number of data events, and of simulated pairs")
    parser.add_argument("--iterations", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1, options.events)
    simulated = rng.normal(truth, RESOLUTION)
    print("iteration     mean    width n_eff fraction")
    print(f"simulated {truth.mean():8.3f} {truth.std():8.3f} {1:12.3f}")
    unfold(truth, simulated, measured(options.events, rng), options.iterations)
    print(f"in data   {0.2:8.3f} {0.8:8.3f}")


if __name__ == "__main__":
    main()
