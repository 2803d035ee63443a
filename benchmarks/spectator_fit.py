"""How long does the spectator fit take?  A double Gaussian on an exponential, unbinned and binned.

python benchmarks/spectator_fit.py --json spectator_fit.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from calorefine.weights import DoubleGaussian, Exponential, SPlot

SIZES = (31_160, 200_000, 1_000_000)
LOW, HIGH, TAU = 2.6, 3.6, 0.7


def spectator(n: int) -> np.ndarray:
    """Spectator values of a sample that is 45 % signal, as in the embedded sample."""
    rng = np.random.default_rng(n)
    n_signal = round(0.45 * n)
    narrow = rng.random(n_signal) < 0.7
    signal = np.where(narrow, rng.normal(3.097, 0.030, n_signal), rng.normal(3.090, 0.065, n_signal))
    tail = 1 - np.exp(-(HIGH - LOW) / TAU)
    return np.concatenate([signal, LOW - TAU * np.log(1 - rng.random(n - n_signal) * tail)])


def seconds(m: np.ndarray, *, max_unbinned: int) -> float:
    """Wall time of one fit with its sWeights."""
    species = {"signal": DoubleGaussian(), "background": Exponential()}
    splot = SPlot(spectator="m", range=(LOW, HIGH), species=species, max_unbinned=max_unbinned)
    start = time.perf_counter()
    splot.weights({"m": m})
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    for limit in (10**9, 0):  # compile once
        seconds(spectator(5000), max_unbinned=limit)
    figures = {}
    for n in SIZES:
        m = spectator(n)
        figures[f"unbinned_seconds_{n}"] = seconds(m, max_unbinned=10**9)
        figures[f"binned_seconds_{n}"] = seconds(m, max_unbinned=0)
    for key, value in figures.items():
        print(f"{key:>30} {value:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
