"""Are the p-values of `calorefine validate` uniform where nothing differs, and its AUC's errors right?

Two halves of one sample of `CorrelatedToy`, with unit weights and with sWeights, are compared with each other again
and again.  Uniformity is the p-value of a KS test of the p-values; a pull is (AUC - 0.5) / its error.  Two more kinds:

* shifted: one half's x is moved until the AUC is about 0.55, its expectation is the mean over all repetitions;
* copies: one sample is drawn five times at each condition of the other one, as by `--n-per-event 5`.

    python benchmarks/validate_nulls.py --json validate_nulls.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats

from calorefine import keys
from calorefine.datasets import CorrelatedToy
from calorefine.events import Events
from calorefine.twosample.classifier import separation
from calorefine.twosample.distances import Points, compare_columns, sliced_wasserstein, standardized
from calorefine.weights import Exponential, Gaussian, SPlot

N = 3000
NAMES = ("ks", "w1", "energy", "sliced")
SPLITS = 4  # of the classifier, in each repetition
SHIFT = 0.26  # of x
COPIES = 5


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


def shifted(number: int) -> tuple[Events, Events]:
    """Halves with unit weights, x moved in the first one."""
    a, b = halves(sample("unit", number), number)
    return replace(a, x=a.x + np.array([SHIFT, 0], np.float32)), b


def copies(number: int) -> tuple[Events, Events]:
    """Signal drawn several times at each condition, and once."""
    rng = np.random.default_rng([number, 18])
    context, event_key = rng.random(N // 4), keys.make_keys([np.arange(N // 4)])
    both = []
    for repeats in (COPIES, 1):
        c, event = np.repeat(context, repeats), np.repeat(event_key, repeats)
        x = np.stack([rng.normal(1 + c / 2, 0.5), rng.gamma(4.0, 1.5 / 4, len(c))], axis=1).astype(np.float32)
        key = keys.combine(event, np.arange(len(c)))
        both.append(Events(x, c[:, None].astype(np.float32), np.ones(len(c)), key, event))
    return both[0], both[1]


def p_values(a: Events, b: Events, number: int) -> list[list[float]]:
    """Of KS, W1 and energy distance in each feature, and of the sliced distance in features and context."""
    columns = [Points(events.x, events.weight, events.event_key) for events in (a, b)]
    found = compare_columns(*columns, seed=number)
    table = [Points(np.hstack([e.x, e.context]), e.weight, e.event_key) for e in (a, b)]
    sliced = sliced_wasserstein(*standardized(*table), seed=number)
    lists = [[getattr(one, name).p_value for one in found] for name in ("ks", "wasserstein", "energy")]
    return [*lists, [sliced.p_value]]


PAIRS = {
    "unit": lambda number: halves(sample("unit", number), number),
    "sweights": lambda number: halves(sample("sweights", number), number),
    "shifted": shifted,
    "copies": copies,
}


def distances(kind: str, repetitions: int) -> dict[str, float]:
    """Uniformity of all p-values."""
    seen = [p_values(*PAIRS[kind](number), number) for number in range(repetitions)]
    return {f"{name}_uniformity_{kind}": uniformity([one[k] for one in seen]) for k, name in enumerate(NAMES)}


def classifier(kind: str, repetitions: int) -> dict[str, float]:
    """Mean AUC, mean and width of its pulls."""
    found = [separation(*PAIRS[kind](number), repetitions=SPLITS, seed=number) for number in range(repetitions)]
    auc, error = (np.array([getattr(one, name) for one in found]) for name in ("auc", "auc_error"))
    width = float(np.std((auc - auc.mean()) / error, ddof=1))
    null = {} if kind == "shifted" else {f"auc_pull_mean_{kind}": float(np.mean((auc - 0.5) / error))}
    return {f"auc_mean_{kind}": float(auc.mean()), f"auc_pull_width_{kind}": width} | null


STUDIES = (
    *((distances, kind) for kind in ("unit", "sweights", "copies")),
    *((classifier, kind) for kind in ("unit", "sweights", "shifted")),
)


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
    for study, kind in STUDIES:
        start = time.perf_counter()
        figures |= study(kind, options.repetitions)
        print(f"{study.__name__} of {kind}: {time.perf_counter() - start:.0f} s", flush=True)
    for key, value in figures.items():
        print(f"{key:>32} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
