"""Are sums of positive weights right, region by region, and do bootstrap intervals around them cover the truth?

regions    Toys of known truth with n_eff of about 300.  Sums of positive weights in six regions: core, both tails and
           the tail of another feature, a corner of three columns, and background alone.  Pulls are deviations from the
           truth over the standard deviation of 50 bootstrap replicas that redo the regression; the 68 % interval is the
           estimate plus or minus one of them.
tail       The embedded electron sample: |E/p - 1| > 0.3 holds all but nothing of the signal and 7800 other events; and
           the largest difference of positive and signed sums in tenths of the prediction, in standard errors.
asymmetry  The toy of Glazier and Tyson (arXiv:2409.08183): a mass between 0 and 10, Gaussian(5, 0.5) over a line with
           twice as many events; cos(2 phi) has the amplitude 0.8 in the signal and -0.2 in the background.  The
           amplitude is fitted by maximum likelihood, with positive and with signed weights.

python benchmarks/positive_weights.py --json positive_weights.json           (about 30 minutes on 2 cores)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import uproot
from scipy.optimize import brentq
from scipy.stats import norm

from calorefine import keys
from calorefine.events import Events
from calorefine.weights import DoubleGaussian, Exponential, PositiveWeights, Replica, SPlot

SEED, N_TOYS, N_REPLICAS = 20261129, 200, 50
SLOPE, FRACTION = -0.5, 1 / 3
SIGNAL_REGIONS, SIGNAL_ASYMMETRY = 450, 1000
ASYMMETRY, BACKGROUND_ASYMMETRY = 0.8, -0.2
ELECTRONS = Path(__file__).parents[1] / "examples" / "data" / "electron_calibration.root"
FEATURES = ("e_over_p", "f_front", "f_back", "width_strip_mm", "f_core", "r_mid", "dx_mm")
CONTEXT = ("p_gev", "x_in_cell_mm", "n_pv")
PARTS = ("regions", "tail", "asymmetry")


def densities(m: np.ndarray) -> np.ndarray:
    """Densities (2, n) of the mass in signal and background."""
    return np.stack([norm(5, 0.5).pdf(m), (1 + SLOPE * (m / 5 - 1)) / 10])


def sweights(m: np.ndarray) -> np.ndarray:
    """Signal sWeights (n,) for the true densities and fraction (Dembinski et al., arXiv:2112.04574, eq. 8)."""
    grid = np.linspace(0, 10, 20_001)
    yields = np.array([FRACTION, 1 - FRACTION])
    shape = densities(grid)
    overlap = (shape[:, None] * shape / (yields @ shape)).sum(axis=2) * (grid[1] - grid[0])
    shape = densities(m)
    return np.linalg.inv(overlap)[0] @ shape / (yields @ shape)


def mass(rng: np.random.Generator, n_signal: int, n_background: int) -> np.ndarray:
    """Masses, those of the signal first; the background's by the inverse of its distribution function."""
    u = rng.random(n_background)
    t = (-1 + np.sqrt((1 - SLOPE) ** 2 + 4 * SLOPE * u)) / SLOPE
    return np.concatenate([rng.normal(5, 0.5, n_signal), 5 * (t + 1)])


def as_events(x: np.ndarray, context: np.ndarray, m: np.ndarray) -> Events:
    """Events with sWeights and keys of their own."""
    key = keys.make_keys([np.arange(len(m))])
    return Events(x.astype(np.float32), context.astype(np.float32), sweights(m), key, key)


def signal_columns(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal's x, two peaks that end at -2 and 2.5, its y and its context c."""
    c, peak = rng.random(n), np.where(rng.random(n) < 0.6, -1.0, 1.5)
    return peak + 2 * rng.beta(3, 3, n) - 1, rng.gamma(4, 1 / (1 + c)), c


def region_toy(seed: list[int]) -> Events:
    """Events with features x and y and context c."""
    rng = np.random.default_rng(seed)
    n_signal, n_background = rng.poisson(SIGNAL_REGIONS), rng.poisson(2 * SIGNAL_REGIONS)
    background = rng.uniform(-4, 4, n_background), rng.gamma(3, 1, n_background), rng.random(n_background)
    x, y, c = np.concatenate([signal_columns(rng, n_signal), background], axis=1)
    return as_events(np.stack([x, y], axis=1), c[:, None], mass(rng, n_signal, n_background))


def regions(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Which events (6, n) lie in each region; the last one holds no signal."""
    corner = (c > 0.7) & (y < 2) & (x > 0)
    return np.stack([np.abs(x + 1) < 0.4, x < -1.4, (x > 1.9) & (x < 2.7), y > 5, corner, x > 3])


def true_sums() -> np.ndarray:
    """Expected signal (6,) in each region, from four million events."""
    return SIGNAL_REGIONS * regions(*signal_columns(np.random.default_rng(1), 4_000_000)).mean(axis=1)


def estimates(events: Events, index: int, n_replicas: int, of: Callable[[np.ndarray], object]) -> np.ndarray:
    """Function `of` weights, for the nominal sample and its replicas: (1 + r, 2, ...) of positive and signed ones."""
    rows = []
    for number in range(n_replicas + 1):
        counts = Replica(number, index).counts(events.event_key)
        positive = PositiveWeights().fit(events, multiplicity=counts).weight
        rows.append([of(counts * positive), of(counts * events.weight)])
    return np.array(rows, np.float64)


def pulls(rows: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    """Deviation from the truth over the standard deviation of the replicas; 0 where all of them are the truth."""
    deviation, spread = rows[0] - truth, rows[1:].std(axis=0, ddof=1)
    return np.divide(deviation, spread, out=np.zeros_like(deviation), where=(deviation != 0) | (spread > 0))


def region_pulls(job: tuple[int, int]) -> np.ndarray:
    """(2, 6) pulls of one toy: positive and signed."""
    index, n_replicas = job
    events = region_toy([SEED, 1, index])
    inside = regions(*events.x.T, events.context[:, 0])
    return pulls(estimates(events, index, n_replicas, lambda weight: inside @ weight), true_sums())


def angles(rng: np.random.Generator, n: int, amplitude: float) -> np.ndarray:
    """Angles (n,) with density 1 + amplitude cos(2 phi), by rejection."""
    phi = rng.uniform(-np.pi, np.pi, 3 * n + 100)
    return phi[rng.random(len(phi)) * (1 + abs(amplitude)) < 1 + amplitude * np.cos(2 * phi)][:n]


def asymmetry_toy(seed: list[int]) -> Events:
    """Events with the angle as only feature."""
    rng = np.random.default_rng(seed)
    n_signal, n_background = rng.poisson(SIGNAL_ASYMMETRY), rng.poisson(2 * SIGNAL_ASYMMETRY)
    phi = [angles(rng, n_signal, ASYMMETRY), angles(rng, n_background, BACKGROUND_ASYMMETRY)]
    m = mass(rng, n_signal, n_background)
    return as_events(np.concatenate(phi)[:, None], np.zeros((len(m), 0)), m)


def amplitude(phi: np.ndarray, weight: np.ndarray) -> float:
    """Amplitude of cos(2 phi) where the weighted likelihood is largest."""
    wave = np.cos(2 * phi)

    def slope(a: float) -> float:
        return float(np.sum(weight * wave / (1 + a * wave)))

    if slope(0.999) > 0:
        return 0.999
    return float(brentq(slope, -0.999, 0.999, xtol=1e-6)) if slope(-0.999) > 0 else -0.999


def asymmetry_pulls(job: tuple[int, int]) -> np.ndarray:
    """(2,) pulls of one toy: positive and signed."""
    index, n_replicas = job
    events = asymmetry_toy([SEED, 2, index])
    phi = events.x[:, 0].astype(np.float64)
    return pulls(estimates(events, index, n_replicas, lambda weight: amplitude(phi, weight)), ASYMMETRY)


def tail() -> dict[str, float]:
    """Sums of weights where |E/p - 1| > 0.3 in the electron sample."""
    with uproot.open(ELECTRONS) as file:
        table = file["events"].arrays(library="np")
    species = {"signal": DoubleGaussian(), "background": Exponential()}
    fit = SPlot(spectator="m_ee_gev", range=(2.6, 3.6), species=species).fit_spectator(table["m_ee_gev"])
    key = keys.make_keys([table["run"].astype(np.int64), table["event"].astype(np.int64)])
    x, context = (np.stack([table[name] for name in names], axis=1, dtype=np.float32) for names in (FEATURES, CONTEXT))
    events = Events(x, context, fit.weights(table["m_ee_gev"]), key, key)
    result = PositiveWeights().fit(events)
    positive, tenths = result.weight, [r for name, r in result.regions.items() if name.startswith("predictions")]
    inside = np.abs(table["e_over_p"] - 1) > 0.3
    signed = events.weight[inside]
    return {
        "tail_positive": float(positive[inside].sum()),
        "tail_signed": float(signed.sum()),
        "tail_signed_error": float(np.sqrt(np.sum(signed**2))),
        "tail_true": float(np.sum(table["true_signal"][inside] > 0)),
        "tenths_largest_pull": max(abs(r.positive - r.signed) / r.error for r in tenths),
    }


def region_figures(found: np.ndarray) -> dict[str, float]:
    """Figures of pulls (t, 2, 6)."""
    figures = {}
    for number in range(6):
        positive, signed = found[:, :, number].T
        figures[f"pull_mean_region{number + 1}"] = float(positive.mean())
        figures[f"pull_width_region{number + 1}"] = float(positive.std(ddof=1))
        figures[f"coverage_region{number + 1}"] = float(np.mean(np.abs(positive) < 1))
        figures[f"signed_pull_mean_region{number + 1}"] = float(signed.mean())
        figures[f"signed_coverage_region{number + 1}"] = float(np.mean(np.abs(signed) < 1))
    return figures


def asymmetry_figures(found: np.ndarray) -> dict[str, float]:
    """Figures of pulls (t, 2)."""
    names = ("asymmetry", "asymmetry_signed")
    mean, width = found.mean(axis=0), found.std(axis=0, ddof=1)
    means = {f"{name}_pull_mean": float(value) for name, value in zip(names, mean, strict=True)}
    return means | {f"{name}_pull_width": float(value) for name, value in zip(names, width, strict=True)}


def main() -> None:
    """Run the toys, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--first", type=int, default=0, help="number of the first toy")
    parser.add_argument("--toys", type=int, default=N_TOYS)
    parser.add_argument("--replicas", type=int, default=N_REPLICAS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    jobs = [(index, options.replicas) for index in range(options.first, options.first + options.toys)]
    figures: dict[str, float] = tail() if "tail" in options.parts else {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        if "regions" in options.parts:
            figures |= region_figures(np.array(list(pool.map(region_pulls, jobs))))
        if "asymmetry" in options.parts:
            figures |= asymmetry_figures(np.array(list(pool.map(asymmetry_pulls, jobs))))
    for key, value in figures.items():
        print(f"{key:>30} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
