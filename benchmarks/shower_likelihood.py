"""Photons or electrons?  Log likelihoods of whole showers by two flows, one for each, beside a classifier.

`configs/showers/shower_autoregressive.yaml` is trained on 60 % of the rows of either file, as by `showers.py`; the
others judge.  Their log likelihood ratio, electrons over photons, is an anomaly score; each flow has seen its own
species alone.  Beside its `auc_likelihood_ratio` stands `auc_classifier`, of boosted trees on high-level features that
have learned from the same training rows of both, and judge the same others.  `gain_nats` says by how much a held-out
photon shower is more probable than with independent cells of the same energies, `ms_log_prob` how long its likelihood
takes.

The density is one: `toy_integral` is that over all hit patterns and energies of six cells in two layers, by importance
sampling from showers that the generator had no part in, of the value of the two conditions that is farther from 1.

    python benchmarks/shower_likelihood.py PHOTONS ELECTRONS --work W --json shower_likelihood.json

Trainings that are finished are kept in W; that of photons is the first seed of `showers.py`.  The electrons' file holds
the showers of the calibration sample and of the reference of `electron_closure.py`: generators trained here are for no
comparison with these.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "benchmarks")]

from showers import GEOMETRY, Sample, gained, train  # noqa: E402 (of this folder)

from calorefine.simulator import Simulator  # noqa: E402
from calorefine.twosample.classifier import auc_with_error  # noqa: E402
from calorefine.twosample.showers import Showers, high_level  # noqa: E402
from tests.models import six_cells  # noqa: E402

SEED, N_MOST, N_POINTS, E_INC_GEV = 1, 10**6, 200_000, (1.2, 2.3)


def log_prob(simulator: Simulator, showers: Showers) -> np.ndarray:
    """Log likelihoods (n,) of showers."""
    at = {"e_inc_gev": showers.e_inc / 1000, "entry_x_mm": showers.entry_mm[:, 0], "entry_y_mm": showers.entry_mm[:, 1]}
    return simulator.log_prob({"showers": showers.cells} | at)


def auc(photons: np.ndarray, electrons: np.ndarray) -> tuple[float, float]:
    """Probability that an electron has the higher score, and its error; rows of both are independent."""
    scores = electrons, photons  # the first is asked to be the higher
    ends = np.cumsum([len(one) for one in scores])
    event_keys = np.arange(ends[0], dtype=np.uint64), np.arange(ends[0], ends[1], dtype=np.uint64)
    return auc_with_error(*scores, weights=(np.ones(len(electrons)), np.ones(len(photons))), event_keys=event_keys)


def classified(samples: list[Sample], judges: list[Showers]) -> list[np.ndarray]:
    """Scores of the judging showers by trees that have learned from the training rows of both species."""
    rows = [high_level(one.rows(one.trains), GEOMETRY).values for one in samples]
    label = np.repeat([0, 1], [len(one) for one in rows])
    trees = HistGradientBoostingClassifier(
        max_iter=300, max_leaf_nodes=15, learning_rate=0.06, early_stopping=True, random_state=0
    )
    trees.fit(np.concatenate(rows), label)
    return [trees.decision_function(high_level(one, GEOMETRY).values) for one in judges]


def separated(samples: list[Sample], work: Path, n_most: int) -> dict[str, float]:
    """AUCs of likelihood ratio and classifier on the judging showers, and how much each species gains."""
    simulators = [Simulator.load(train("autoregressive", SEED, sample, work)) for sample in samples]
    judges = [sample.judges() for sample in samples]
    judges = [one.take(np.arange(min(n_most, len(one.key)))) for one in judges]
    start = time.process_time()
    ratios = [log_prob(simulators[1], one) - log_prob(simulators[0], one) for one in judges]
    seconds = time.process_time() - start
    told = {"n_photons": len(judges[0].key), "n_electrons": len(judges[1].key)}
    told["ms_log_prob"] = 1000 * seconds / (2 * sum(told.values()))
    told["auc_likelihood_ratio"], told["auc_likelihood_ratio_error"] = auc(*ratios)
    told["auc_classifier"], told["auc_classifier_error"] = auc(*classified(samples, judges))
    for name, simulator, own in zip(("", "_electrons"), simulators, judges, strict=True):
        told[f"gain_nats{name}"], told[f"gain_nats{name}_error"] = gained(simulator, own)
    return told


def toy() -> dict[str, float]:
    """Integral of the density of six cells."""
    simulator = six_cells.trained()
    found = [six_cells.integrated(simulator, e_inc, N_POINTS) for e_inc in E_INC_GEV]
    worst = max(found, key=lambda one: abs(one.total - 1))
    return {"toy_integral": worst.total, "toy_integral_error": worst.error}


def main() -> None:
    """Train, judge, integrate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photons", type=Path)
    parser.add_argument("electrons", type=Path)
    parser.add_argument("--work", type=Path, default=Path("showers"), help="folder that keeps what is finished")
    parser.add_argument("--judging", type=int, default=N_MOST, help="showers of each species at most that judge")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    found = separated([Sample(options.photons), Sample(options.electrons)], options.work, options.judging) | toy()
    for key, value in found.items():
        print(f"{key:>30} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
