"""Do weighted means and widths have the errors that the bootstrap gives them?  200 toys of known truth, three methods.

splot      sWeights: a Gaussian on an exponential, everything independent of the spectator within each species
cow        the background's slope depends on a feature: four Bernstein polynomials as background terms
fractions  three samples of signal fractions 0.7, 0.4 and 0.2, which are known to +- 0.01

Each toy is weighted, its weighted means and widths compared with the truth in closed form, and divided by the standard
deviation over 50 bootstrap replicas that redo everything (fit, or fractions drawn from their errors).  Pulls should
have mean 0 and width sqrt(49/47) = 1.02, since 50 replicas know a standard deviation to 10 %.  The same with replicas
that keep the nominal weight functions shows what is lost without refitting.

python benchmarks/weights_closure.py --json weights_closure.json          (about 15 minutes on 2 cores)
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import stats as distributions

from calorefine import keys, stats
from calorefine.datasets import CorrelatedToy
from calorefine.weights import Bernstein, Exponential, Gaussian, LabelFractions, SPlot, bootstrap_weights

SEED, N_TOYS, N_REPLICAS, N_EVENTS = 20261122, 200, 50, 10_000
FEATURES = ("x", "y", "c")
FRACTIONS, ERROR = {"rich": 0.7, "middle": 0.4, "poor": 0.2}, 0.01
METHODS = ("splot", "cow", "fractions")
STATISTICS = [f"{kind} {name}" for kind in ("mean", "width") for name in FEATURES] + ["yield"]


def spectator_toy(method: str, index: int) -> tuple[SPlot, dict[str, np.ndarray], float]:
    """Weight source, table and true yield for the two methods that fit a spectator."""
    toy = CorrelatedToy(background_dependence=2.0 if method == "cow" else 0.0)
    background = Bernstein(3) if method == "cow" else Exponential()
    source = SPlot(spectator="m", range=(0, 1), species={"signal": Gaussian(), "background": background})
    return source, toy.generate(N_EVENTS, seed=[SEED, METHODS.index(method), index]), N_EVENTS * toy.fraction


def fractions_toy(index: int) -> tuple[LabelFractions, dict[str, np.ndarray], float]:
    """Weight source, table and true yield for mixed samples whose fractions are known with an error."""
    known = np.random.default_rng([SEED, 9, index]).normal(list(FRACTIONS.values()), ERROR)
    fractions = {name: {"signal": f, "background": 1 - f} for name, f in zip(FRACTIONS, known, strict=True)}
    errors = {name: {"signal": ERROR, "background": ERROR} for name in FRACTIONS}
    samples = []
    for number, fraction in enumerate(FRACTIONS.values()):
        table = CorrelatedToy(fraction=fraction).generate(N_EVENTS, seed=[SEED, 2, index, number])
        samples.append(table | {"sample": np.full(len(table["x"]), number), "run": table["run"] + number})
    table = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    return LabelFractions(fractions=fractions, errors=errors), table, N_EVENTS * sum(FRACTIONS.values())


def statistics(table: dict[str, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Weighted means and widths of the features, and the sum of weights."""
    values = np.stack([table[name] for name in FEATURES], axis=1)
    width = np.sqrt(np.diag(stats.covariance(values, weight)))
    return np.concatenate([stats.mean(values, weight), width, [stats.sum_w(weight)]])


def pulls(method: str, index: int) -> np.ndarray:
    """(2, s) pulls of one toy: with and without refitting."""
    source, table, size = fractions_toy(index) if method == "fractions" else spectator_toy(method, index)
    moments = CorrelatedToy().signal_moments()
    truth = np.array([moments[name][kind] for kind in (0, 1) for name in FEATURES] + [size])
    key = keys.make_keys([table["run"], table["event"]])
    rows = []
    for refit in (True, False):
        weights = bootstrap_weights(source, table, key, n_replicas=N_REPLICAS, seed=index, refit=refit)
        nominal, *replicas = [statistics(table, weight) for weight in weights]
        rows.append((nominal - truth) / np.std(replicas, axis=0, ddof=1))
    return np.array(rows)


def p_value(sample: np.ndarray) -> float:
    """Probability of a larger chi2 of the means and mean squares of all pulls (t, s): Hotelling's test."""
    expected = (N_REPLICAS - 1) / (N_REPLICAS - 3)
    u = np.concatenate([sample, sample**2 - expected], axis=1)
    n, d = u.shape
    chi2 = n * u.mean(axis=0) @ np.linalg.solve(np.cov(u, rowvar=False), u.mean(axis=0))
    return float(distributions.f.sf(chi2 * (n - d) / (d * (n - 1)), d, n - d))


def report(method: str, found: np.ndarray) -> dict[str, float]:
    """Print the table of one method from pulls (t, 2, s), and return its figures."""
    mean, width = found.mean(axis=0), found.std(axis=0, ddof=1)
    print(f"\n{method}: {len(found)} toys, {N_REPLICAS} replicas")
    print(f"{'':<12}{'pull mean':>10}{'pull width':>12}{'without refitting':>20}")
    for index, name in enumerate(STATISTICS):
        print(f"{name:<12}{mean[0, index]:>10.3f}{width[0, index]:>12.3f}{width[1, index]:>20.3f}")
    features, n = found[:, 0, :-1], len(STATISTICS) - 1
    figures = {
        "pull_mean_max": float(np.max(np.abs(mean[0, :n]))),
        "pull_width_min": float(width[0, :n].min()),
        "pull_width_max": float(width[0, :n].max()),
        "pull_p_value": p_value(features),
        "pull_width_yield": float(width[0, n]),
        "unrefitted_pull_width_max": float(width[1, :n].max()),
        "unrefitted_pull_width_yield": float(width[1, n]),
    }
    print(f"chi2 of all means and widths of pulls: p = {figures['pull_p_value']:.3g}")
    return {f"{method}_{key}": value for key, value in figures.items()}


def main() -> None:
    """Run the toys, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--toys", type=int, default=N_TOYS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for method in options.methods:
            found = np.array(list(pool.map(partial(pulls, method), range(options.toys), chunksize=5)))
            figures |= report(method, found)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
