"""Do cheap replicas of a correction claim the error that repeated calibration samples show?

A toy with two features and a context: 60 % signal, its background removed by sWeights of a known spectator.  Each
generator is fitted to each toy's calibration sample, as an analyst's is:

good    the right family: a linear regression on the context, with normal residuals of a fitted width
bad     the same with the mean of the first feature shifted and its width shrunk, and no correlation

A toy goes through `calorefine reweight --replicas`, `--apply` and `propagate`, called as functions.  Events are
generated at the conditions of the calibration sample; observables are those of another sample at fixed conditions: ten
bins of each feature, and the efficiency of a cut on the first in five bins of the context.  Its conditions and noise
are a Sobol sequence, so that they add hardly anything to the deviations.  What a toy claims is the
spread of the replicas (`calibration`) together with what they don't resolve (`unresolved`).  Keys, for each estimator
and generator:

claimed_over_true_...  root mean square of the claimed errors over bins and toys, over that of the nominal values'
                       deviations from their means over toys
worst_bin_...          the same for the bin furthest from 1
bias_...               largest mean deviation from the truth in a bin, over its stated error
slope_...              least part of a shift that the replicas of a toy recover, of all bins of an observable
worst_bin_slope_...    the same in a single bin
refused_...            share of toys without replicas

    python benchmarks/cheap_replicas.py --json cheap_replicas.json          # 50 toys of 30 000 events, 20 replicas each
    python benchmarks/cheap_replicas.py --sizes 3000 --toys 20 --kinds network
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before numpy and torch

import numpy as np
import torch
import uproot
from scipy.stats import norm, qmc

from calorefine import Columns
from calorefine.errors import CalorefineWarning, FitError
from calorefine.io.formats import open_source
from calorefine.io.sample import WeightedFiles
from calorefine.observables import Efficiency, Histogram, Observable, Weights, measure
from calorefine.reweighting import BoostingRatio, NetworkRatio
from calorefine.reweighting.resolved import resolved
from calorefine.systematics.variations import Variations
from calorefine.verbs import reweight_fit
from calorefine.verbs.propagate import propagate_files
from calorefine.verbs.reweight import reweight_files

COLUMNS = Columns({"x": None, "y": None}, {"c": None}, key=["event"])
ESTIMATORS = {"network": NetworkRatio, "trees": BoostingRatio}
FRACTION, SLOPE, WIDTH = 0.6, 3.0, 0.04  # of the signal; of the background in the spectator; of the signal in it
N_TARGET, SEED, BEYOND = 2**16, 20261201, 1e6
Array = np.ndarray


def features(c: Array, z: Array) -> Array:
    """Features (n, 2) of the signal: mean c, width 0.5 + 0.3 c, correlated; z (n, 2) are standard normal."""
    return c[:, None] + (0.5 + 0.3 * c[:, None]) * correlated(z, 0.6)


def correlated(z: Array, correlation: float) -> Array:
    """Standard normal numbers (n, 2) with a correlation, of independent ones."""
    return np.stack([z[:, 0], correlation * z[:, 0] + np.sqrt(1 - correlation**2) * z[:, 1]], axis=1)


def even(n: int) -> tuple[Array, Array]:
    """Contexts (n,), uniform, and standard normal numbers (n, 2) that fill space evenly; n is a power of 2."""
    points = qmc.Sobol(3, seed=SEED).random(n)
    return points[:, 0], norm.ppf(points[:, 1:])


def calibration(n: int, seed: list[int]) -> dict[str, Array]:
    """Calibration sample with sWeights of known densities of the spectator m."""
    rng = np.random.default_rng(seed)
    c, signal = rng.random(n), rng.random(n) < FRACTION
    m = np.where(signal, 0.5 + WIDTH * rng.normal(size=n), -np.log1p(-rng.random(n) * -np.expm1(-SLOPE)) / SLOPE)
    p_s = np.exp(-0.5 * ((m - 0.5) / WIDTH) ** 2) / (WIDTH * np.sqrt(2 * np.pi))
    p_b = SLOPE * np.exp(-SLOPE * m) / -np.expm1(-SLOPE)
    mixed = FRACTION * p_s + (1 - FRACTION) * p_b
    ratios = np.stack([p_s, p_b]) / mixed
    v = np.linalg.inv(ratios @ ratios.T / n)
    x = np.where(signal[:, None], features(c, rng.normal(size=(n, 2))), 0.3 + 1.2 * rng.normal(size=(n, 2)))
    weight = v[0] @ ratios
    return {"x": x[:, 0], "y": x[:, 1], "c": c, "w": weight, "event": np.arange(n, dtype=np.int64)}


@dataclass(frozen=True)
class Generator:
    """A linear regression on polynomials of the context with normal residuals, whose width is one as well."""

    mean: Array
    variance: Array
    correlation: float

    @classmethod
    def fit(cls, table: dict[str, Array], *, bad: bool) -> Generator:
        """Fit it to a weighted sample; the bad one is then spoiled."""
        basis, w = cls._basis(table["c"]), table["w"]
        x = np.stack([table["x"], table["y"]], axis=1)
        solve = np.linalg.inv(basis.T @ (basis * w[:, None])) @ (basis * w[:, None]).T
        mean = solve @ x
        variance = solve @ (x - basis @ mean) ** 2
        r = (x - basis @ mean) / np.sqrt(np.maximum(basis @ variance, 0.05))
        correlation = float(np.sum(w * r[:, 0] * r[:, 1]) / np.sum(w))
        if bad:
            mean[0, 0] += 0.15
            variance[:, 0] *= 1.3
            correlation = 0.0
        return cls(mean, variance, float(np.clip(correlation, -0.95, 0.95)))

    @staticmethod
    def _basis(c: Array) -> Array:
        return np.stack([np.ones_like(c), c, c**2], axis=1)

    def sample(self, c: Array, z: Array) -> dict[str, Array]:
        """Events at contexts (n,), of standard normal numbers (n, 2)."""
        basis, noise = self._basis(c), correlated(z, self.correlation)
        x = basis @ self.mean + np.sqrt(np.maximum(basis @ self.variance, 0.05)) * noise
        return {"x": x[:, 0], "y": x[:, 1], "c": c, "event": np.arange(len(c), dtype=np.int64)}


def write(path: Path, table: dict[str, Array]) -> str:
    """ROOT file of a table."""
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in table.items()}).extend(table)
    return str(path)


def observables() -> dict[str, Observable]:
    """Ten bins of each feature, the outer ones open, and an efficiency in five bins of the context."""
    edges = [-BEYOND, *np.linspace(-0.6, 1.8, 9).tolist(), BEYOND]
    shares: dict[str, Observable] = {name: Histogram(expression=name, edges=edges, normalize="unit") for name in "xy"}
    return shares | {"efficiency": Efficiency(passed="x > 0.5", expression="c", edges=np.linspace(0, 1, 6).tolist())}


def toy(number: int, n: int, kind: str, *, bad: bool, replicas: int, folder: Path) -> dict[str, Any]:
    """One calibration sample through the verbs: nominal values, claimed errors (25,) and slopes, or a refusal."""
    data = calibration(n, [SEED, n, number, 0])
    generator = Generator.fit(data, bad=bad)
    write(folder / "reference.root", data)
    noise = np.random.default_rng([SEED, number, 1]).normal(size=(n, 2))
    write(folder / "generated.root", generator.sample(data["c"], noise))
    target = generator.sample(*even(N_TARGET))
    given = {"generated": str(folder / "generated.root"), "overwrite": True, "output": str(folder / "r.pt")}
    fit = {"reference": str(folder / "reference.root"), "reference_weight": "w", "columns": COLUMNS, "seed": number}
    try:
        reweight_files(**given, **fit, estimator=ESTIMATORS[kind](), replicas=replicas, bootstrap_seed=number)
    except FitError as error:
        return {"refused": str(error)}
    files = {"generated": write(folder / "target.root", target), "output": str(folder / "weighted.root")}
    reweight_files(apply=str(folder / "r.pt"), overwrite=True, **files)
    given = {"nominal": files["output"], "weight": "weight", "observables": observables()}
    replicas_of = Variations(weights="weight_replica")
    try:
        found = propagate_files(**given, calibration=replicas_of, output=str(folder / "s"), overwrite=True)
    except FitError as error:
        return {"refused": str(error)}
    held = resolved(WeightedFiles(files["output"], weight="weight"), found.measured.observables, "weight_replica")
    sources = found.systematics.sources
    return {
        "nominal": found.systematics.nominal,
        "error": np.sqrt(sum(np.diag(sources[name].covariance) for name in ("calibration", "unresolved"))),
        "slope": min(held.slope_of(found.measured.part(name)) for name in observables()),
        "worst_bin_slope": held.slope.min(),
    }


def truth(folder: Path) -> Array:
    """Observables (25,) of the signal at the conditions of the target."""
    c, z = even(2**20)
    x = features(c, z)
    path = write(folder / "truth.root", {"x": x[:, 0], "y": x[:, 1], "c": c})
    return measure(open_source(path, "events"), observables(), weights=[Weights()]).values[0]


def summary(toys: list[dict[str, Any]], expected: Array) -> dict[str, float]:
    """Figures of all toys of one kind."""
    used = [one for one in toys if "refused" not in one]
    figures = {"refused": 1 - len(used) / len(toys)}
    if len(used) < 2:
        return figures
    nominal, errors = np.array([one["nominal"] for one in used]), np.array([one["error"] for one in used])
    true, claimed = nominal.std(axis=0, ddof=1), np.sqrt(np.mean(errors**2, axis=0))
    ratio = claimed / true
    return figures | {
        "claimed_over_true": float(np.sqrt(np.mean(claimed**2) / np.mean(true**2))),
        "worst_bin": float(ratio[np.argmax(np.abs(np.log(ratio)))]),
        "bias": float(np.max(np.abs(nominal.mean(axis=0) - expected) / claimed)),
        **{name: float(min(one[name] for one in used)) for name in ("slope", "worst_bin_slope")},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sizes", nargs="+", type=int, default=[30_000])
    parser.add_argument("--toys", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CalorefineWarning)  # the replicas' fit is not redone: the densities are known
    diagnose = mock.MagicMock()
    diagnose.return_value.to_dict.return_value = {}
    page = mock.patch.multiple(reweight_fit, diagnose=diagnose, write_diagnostics=lambda path, *_, **__: path.touch())
    page.start()  # they take longer than all else
    with tempfile.TemporaryDirectory() as folder:
        figures, expected = {}, truth(Path(folder))
    for n in options.sizes:
        for kind in options.kinds:
            for name in ("good", "bad"):
                start = time.time()
                with tempfile.TemporaryDirectory() as folder:
                    given = {"bad": name == "bad", "replicas": options.replicas, "folder": Path(folder)}
                    toys = [toy(number, n, kind, **given) for number in range(options.toys)]
                suffix = f"{kind}_{name}" + ("" if len(options.sizes) == 1 else f"_{n}")
                figures |= {f"{key}_{suffix}": value for key, value in summary(toys, expected).items()}
                print(f"{suffix}, n {n}: {summary(toys, expected)}, {time.time() - start:.0f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
