"""Are the p-values of `calorefine validate` uniform, and its AUC's errors right, where nothing differs?

Two halves of one sample of `CorrelatedToy`, with unit weights and with sWeights, are compared with each other again
and again.  Uniformity is the p-value of a KS test of the p-values; a pull is (AUC - 0.5) / its error.

    python benchmarks/validate_nulls.py --json validate_nulls.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats

from calorefine import keys
from calorefine.datasets import CorrelatedToy
from calorefine.events import Events
from calorefine.validation.classifier import separation
from calorefine.validation.distances import Points, compare_columns, sliced_wasserstein, standardized
from calorefine.weights import Exponential, Gaussian, SPlot

N = 4000
NAMES = ("ks", "w1", "energy", "sliced")
SPLITS = 4  # of the classifier, in each repetition


def sample(kind: str, number: int) -> Events:
    """One sample, features x and y, context c; unit weights, or sWeights of the signal."""
    toy = CorrelatedToy()
    table = toy.generate(N, seed=[number, 17])
    weight = np.ones(len(table["c"]))
    if kind == "sweights":
        species = {"signal": Gaussian(), "background": Exponential()}
        weight = SPlot(spectator="m", range=(0.0, 1.0), species=species).weights(table)
    key = keys.make_keys([table["run"], table["event"]])
    x = np.stack([table["x"], table["y"]], axis=1).astype(np.float32)
    return Events(x, table["c"][:, None].astype(np.float32), weight, key, key)


def halves(events: Events, number: int) -> tuple[Events, Events]:
    """Random halves."""
    first = keys.uniform(keys.stream(events.event_key, "benchmark", seed=number)) < 0.5
    return events.take(first), events.take(~first)


def p_values(a: Events, b: Events, number: int) -> list[list[float]]:
    """Of KS, W1 and energy distance in each feature, and of the sliced distance in features and context."""
    columns = [Points(events.x, events.weight, events.event_key) for events in (a, b)]
    found = compare_columns(*columns, seed=number)
    table = [Points(np.hstack([e.x, e.context]), e.weight, e.event_key) for e in (a, b)]
    sliced = sliced_wasserstein(*standardized(*table), seed=number)
    lists = [[getattr(one, name).p_value for one in found] for name in ("ks", "wasserstein", "energy")]
    return [*lists, [sliced.p_value]]


def study(kind: str, repetitions: int) -> dict[str, float]:
    """All repetitions for one kind of weights."""
    seen: list[list[list[float]]] = []
    pulls = []
    start = time.perf_counter()
    for number in range(repetitions):
        a, b = halves(sample(kind, number), number)
        seen.append(p_values(a, b, number))
        pulls.append(classifier(a, b, number))
    print(f"{kind}: {repetitions} repetitions in {time.perf_counter() - start:.0f} s", flush=True)
    figures = {f"{name}_uniformity_{kind}": uniformity([one[k] for one in seen]) for k, name in enumerate(NAMES)}
    figures |= {f"auc_pull_mean_{kind}": float(np.mean(pulls)), f"auc_pull_width_{kind}": float(np.std(pulls, ddof=1))}
    return figures


def classifier(a: Events, b: Events, number: int) -> float:
    """Pull of the AUC."""
    found = separation(a, b, repetitions=SPLITS, seed=number)
    return (found.auc - 0.5) / found.auc_error


def uniformity(p: list[list[float]]) -> float:
    """P-value of uniformity of the p-values of all repetitions and features."""
    return float(scipy_stats.kstest(np.concatenate(p), "uniform").pvalue)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    figures = {}
    for kind in ("unit", "sweights"):
        figures |= study(kind, options.repetitions)
    for key, value in figures.items():
        print(f"{key:>32} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
