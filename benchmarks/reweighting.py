"""How close do density ratios come to the truth, and how long do they take?  calorefine's, and the field's.

`RatioToy` has eight features and a known ratio; the reference is 60 % signal, its background removed by sWeights, of
which 28 % are negative.  For n events in each sample (20k, 200k, 1m; several seeds), on 100 000 other generated events:

mse              mean squared error of the log ratio, mean weight normalized to 1
seconds          CPU time of the fit on one thread, with cross-fitting; the spectator is not fitted but known
n_eff_fraction   effective number of reweighted events, over their number
largest_share    largest weight, over their sum
auc              of a classifier of reweighted against true signal events, first seed; `auc_true` is with the true ratio

Each figure is the worst of the seeds.  mse_20k is calorefine's default; the others have a name in between:

boosting         BoostingRatio
clipped          gradient boosting with negative weights set to 0
hep_ml           GBReweighter (arXiv:1608.05806)
mcreweight_...   LHCb's mcreweight: gb, xgb, nn with the settings of its pipeline; `mse_mcreweight` is the best of them
..._tuned        the best settings of a grid, chosen on the truth at another seed: no analyst can, it favors the peer

    python -m venv peers && peers/bin/pip install hep_ml mcreweight
    python benchmarks/reweighting.py --peers-python peers/bin/python --json reweighting.json
    python benchmarks/reweighting.py --sizes 20k --objectives
    python benchmarks/reweighting.py --peers-python peers/bin/python --tune
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before numpy, scikit-learn and torch

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch.nn.functional import softplus

from calorefine import keys, stats
from calorefine.datasets import RatioToy
from calorefine.events import Events
from calorefine.reweighting import BoostingRatio, NetworkRatio, RatioEstimator, WeightedRows, fit_ratio, network
from calorefine.twosample.classifier import separation

SIZES = {"20k": 20_000, "200k": 200_000, "1m": 1_000_000}
SEEDS = {"20k": 3, "200k": 2, "1m": 1}
N_HELD_OUT, HELD_OUT_SEED, TUNING_SEED = 100_000, 999, 100
REPETITIONS = 4  # of the classifier
AUC_SIZE, AUC_METHODS = "200k", ("", "boosting", "hep_ml")
TOY = RatioToy()
PEERS = Path(__file__).parent / "peers" / "reweight.py"
WORST = {"mse": max, "seconds": max, "n_eff_fraction": min, "largest_share": max, "auc": max}
STAGES = [40, 80, 120, 200]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "hep_ml": [
        {"max_depth": depth, "learning_rate": rate, "min_samples_leaf": leaf, "stages": STAGES}
        for depth, rate, leaf in (
            *itertools.product((3, 4, 5), (0.05, 0.1, 0.2), (200,)),
            *itertools.product((3, 5), (0.1,), (50, 1000)),
        )
    ],
    "mcreweight_xgb": [
        {"n_iterations": n, "mixing_learning_rate": rate} for n, rate in itertools.product((15, 50), (0.1, 0.3))
    ],
    "mcreweight_nn": [
        {"n_iterations": n, "mixing_learning_rate": rate, "transform": "quantile"}
        for n, rate in itertools.product((10, 25), (0.1, 0.3))
    ],
}
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    "hep_ml_tuned": ("hep_ml", {"n_estimators": 200, "learning_rate": 0.05, "max_depth": 4}),
    "mcreweight_tuned": ("mcreweight_nn", GRIDS["mcreweight_nn"][1]),
}
Array = np.ndarray
Method = Callable[["Problem"], tuple[Array, float]]


@dataclass(frozen=True)
class Problem:
    """Two samples of n events, and the events to evaluate on."""

    n: int
    seed: int

    @cached_property
    def generated(self) -> WeightedRows:
        """Unit weights."""
        x = TOY.generate(self.n, seed=[self.seed, 0])["x"]
        return WeightedRows(x.astype(np.float32), np.ones(self.n), own_keys(self.n, 0))

    @cached_property
    def reference(self) -> WeightedRows:
        """SWeights."""
        table = TOY.calibration(self.n, seed=[self.seed, 1])
        return WeightedRows(table["x"].astype(np.float32), TOY.sweights(table["m"]), own_keys(self.n, 1))

    @cached_property
    def held_out(self) -> dict[str, Array]:
        """Generated events, and their true log ratios."""
        return TOY.generate(N_HELD_OUT, seed=HELD_OUT_SEED)

    @cached_property
    def values(self) -> Array:
        """Features (k, d) of the held-out events."""
        return np.asarray(self.held_out["x"], np.float32)


def own_keys(n: int, sample: int) -> Array:
    """Event keys (n,) of one sample."""
    return keys.make_keys([np.full(n, sample), np.arange(n)])


def ours(problem: Problem, *, estimator: RatioEstimator) -> tuple[Array, float]:
    """Log ratios of the held-out events by calorefine, and CPU time of the fit."""
    samples = problem.generated, problem.reference
    start = time.process_time()
    ratio = fit_ratio(*samples, estimator, seed=problem.seed)
    seconds = time.process_time() - start
    return ratio(problem.values, own_keys(N_HELD_OUT, 2)), seconds


def clipped(problem: Problem) -> tuple[Array, float]:
    """The same by a classifier that was trained without the negative weights."""
    generated, reference = problem.generated, problem.reference
    start = time.process_time()
    weight = np.maximum(reference.weight, 0)
    target = np.repeat([0, 1], [len(generated), len(reference)])
    model = HistGradientBoostingClassifier(random_state=problem.seed)
    rows = np.concatenate([generated.values, reference.values])
    model.fit(rows, target, np.concatenate([generated.weight, weight / weight.mean()]))
    seconds = time.process_time() - start
    return model.decision_function(problem.values), seconds


def peers(problem: Problem, *, python: Path, method: str, settings: list[dict[str, Any]]) -> tuple[Array, Array]:
    """The same by a program in another environment, for each of the settings: (s, k) and (s,)."""
    with tempfile.TemporaryDirectory() as name:
        source, result = Path(name) / "input.npz", Path(name) / "output.npz"
        samples = {"generated": problem.generated.values, "reference": problem.reference.values}
        np.savez(source, **samples, weight=problem.reference.weight, held_out=problem.values)
        command = [python, PEERS, method, source, result, "--settings", json.dumps(settings)]
        subprocess.run(command, check=True)
        with np.load(result) as file:
            return file["log_weight"], file["seconds"]


def peer(problem: Problem, *, python: Path, method: str, settings: dict[str, Any]) -> tuple[Array, float]:
    """One setting."""
    log_weight, seconds = peers(problem, python=python, method=method, settings=[settings])
    return log_weight[0], float(seconds[0])


def methods(python: Path | None, size: str) -> dict[str, Method]:
    """What is measured with samples of this size."""
    found: dict[str, Method] = {"": partial(ours, estimator=NetworkRatio())}
    if size != "1m":
        found["boosting"] = partial(ours, estimator=BoostingRatio())
    if size == "20k":
        found["clipped"] = clipped
    if python is None or size == "1m":
        return found
    chosen = {"hep_ml": ("hep_ml", {})}
    if size == "20k":
        chosen |= {name: (name, {}) for name in ("mcreweight_gb", "mcreweight_xgb", "mcreweight_nn")} | TUNED
    for name, (method, settings) in chosen.items():
        found[name] = partial(peer, python=python, method=method, settings=settings)
    return found


def mean_squared_error(log_weight: Array, truth: Array) -> float:
    """Mean squared error of log weights (..., k), after their mean weight is normalized to 1."""
    normalized = log_weight - np.log(np.mean(np.exp(log_weight)))
    return float(np.mean((normalized - truth) ** 2))


def auc(problem: Problem, log_weight: Array) -> float:
    """AUC of reweighted held-out events against true signal."""
    signal = TOY.signal(N_HELD_OUT, seed=HELD_OUT_SEED + 1)["x"]
    pairs = (problem.values, np.exp(log_weight), 2), (signal.astype(np.float32), np.ones(N_HELD_OUT), 3)
    nothing = np.zeros((N_HELD_OUT, 0), np.float32)
    events = [Events(x, nothing, w, own_keys(len(x), sample), own_keys(len(x), sample)) for x, w, sample in pairs]
    return separation(*events, repetitions=REPETITIONS).auc


def figures_of(problem: Problem, log_weight: Array, seconds: float) -> dict[str, float]:
    """What is measured of one fit."""
    weight = np.exp(log_weight)
    return {
        "mse": mean_squared_error(log_weight, problem.held_out["log_ratio"]),
        "seconds": seconds,
        "n_eff_fraction": stats.n_eff(weight) / len(weight),
        "largest_share": float(weight.max() / weight.sum()),
    }


def key_of(figure: str, method: str, size: str) -> str:
    """Name of a figure in the file."""
    return "_".join(part for part in (figure, method, size) if part)


def measure(size: str, first_seed: int, python: Path | None) -> dict[str, float]:
    """Worst figures of all methods with samples of one size; prints a line for each fit."""
    figures: dict[str, float] = {}
    for number in range(SEEDS[size]):
        problem = Problem(SIZES[size], first_seed + number)
        with_auc = size == AUC_SIZE and number == 0
        for name, method in methods(python, size).items():
            log_weight, seconds = method(problem)
            found = figures_of(problem, log_weight, seconds)
            if with_auc and name in AUC_METHODS:
                found["auc"] = auc(problem, log_weight)
            print_line(name or "default", size, problem.seed, found)
            for figure, value in found.items():
                key = key_of(figure, name, size)
                figures[key] = WORST[figure](value, figures.get(key, value))
    if size == AUC_SIZE:
        figures |= {key_of("auc", name, size): value for name, value in limits(problem).items()}
    if python and size == "20k":
        figures["mse_mcreweight_20k"] = min(figures[f"mse_mcreweight_{kind}_20k"] for kind in ("gb", "xgb", "nn"))
    return figures


def limits(problem: Problem) -> dict[str, float]:
    """AUC with the true ratio and without reweighting."""
    truth = problem.held_out["log_ratio"]
    return {"true": auc(problem, truth), "unweighted": auc(problem, np.zeros_like(truth))}


def objective(name: str) -> type[network._Training]:
    """The default's training with another objective of the log ratios f: lowest where they are right."""
    terms: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
        "cross_entropy": (softplus, lambda f: softplus(-f)),
        "lsif": (lambda f: 0.5 * torch.exp(2 * f), lambda f: -torch.exp(f)),
        "kl": (torch.exp, lambda f: -f),
        "sqrt": (lambda f: torch.exp(0.5 * f), lambda f: torch.exp(-0.5 * f)),
    }
    generated, reference = terms[name]

    class Training(network._Training):
        def training_step(self, batch: network.Batch) -> torch.Tensor:
            size = batch[0].shape[1]
            f = self.networks(torch.cat([z[rows] for z, rows in zip(self.z, batch, strict=True)], dim=1))
            v, w = (weight.gather(1, rows) for weight, rows in zip(self.weights, batch, strict=True))
            return (v * generated(f[:, :size])).mean(1).sum() + (w * reference(f[:, size:])).mean(1).sum()

    return Training


def compare_objectives(first_seed: int) -> dict[str, float]:
    """Errors of networks trained with each objective; all are calibrated with the cross entropy."""
    figures: dict[str, float] = {}
    for name in ("cross_entropy", "lsif", "kl", "sqrt"):
        with mock.patch.object(network, "_Training", objective(name)):
            for number in range(SEEDS["20k"]):
                problem = Problem(SIZES["20k"], first_seed + number)
                found = figures_of(problem, *ours(problem, estimator=NetworkRatio()))
                print_line(name, "20k", problem.seed, found)
                figures[f"mse_{name}_20k"] = max(found["mse"], figures.get(f"mse_{name}_20k", 0.0))
    return figures


def tune(python: Path) -> None:
    """Print the error of the peers with all settings of the grids."""
    problem = Problem(SIZES["20k"], TUNING_SEED)
    for method, grid in GRIDS.items():
        for settings in grid:
            rows, seconds = peers(problem, python=python, method=method, settings=[settings])
            errors = " ".join(f"{mean_squared_error(row, problem.held_out['log_ratio']):.4f}" for row in rows)
            print(f"{method} {settings}: mse {errors}, {seconds[-1]:.1f} s", flush=True)


def print_line(name: str, size: str, seed: int, figures: dict[str, float]) -> None:
    """Print one line of the table."""
    values = "  ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
    print(f"{name:>16} {size:>5} seed {seed}  {values}", flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--peers-python", type=Path, help="python of an environment with hep_ml and mcreweight")
    parser.add_argument("--objectives", action="store_true", help="compare objectives of the networks as well")
    parser.add_argument("--tune", action="store_true", help="only search the peers' settings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tune:
        tune(options.peers_python)
        return
    figures: dict[str, float] = {}
    for size in options.sizes:
        figures |= measure(size, options.first_seed, options.peers_python)
    if options.objectives:
        figures |= compare_objectives(options.first_seed)
    for key, value in figures.items():
        print(f"{key:>40} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
