"""Photon showers learned from a sample with 30 % electrons: does a flow on positive weights match one on pure photons?

The photons are the rows of PHOTONS that `benchmarks/showers.py` trains on.  Electrons come from the first 14 000 of
ELECTRONS, those of the calibration sample.  A spectator between 0 and 1 is a peak for photons (0.5, width 0.05) and an
exponential for electrons, independent of the shower within each.  sWeights are fitted at set-up, and positive ones made
of them by a regression that sees eight observables of the showers, beside the conditions: before its calibration it
tells photons from electrons with AUC 0.661, where boosted trees that are told which are which have 0.665.  Which shower
is a photon's no training is told.  Three trainings of one configuration, with the same photons:

- `auc_flow_pure_high`: photons alone;
- `auc_flow_impure_high`: the mixture with positive weights;
- `auc_flow_mixture_high`: the mixture without weights.

Each is judged as "high" of `benchmarks/showers.py`, on the photons that nothing trained on, by the mean AUC of three
trainings; `_error` is its error.  `difference_impure` is the impure one's less the pure one's.

    python benchmarks/shower_impure.py PHOTONS ELECTRONS --work W --json impure.json
    python benchmarks/shower_impure.py PHOTONS ELECTRONS --work W --generator autoregressive --only pure impure

Trainings and judgments that are finished are kept in W.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from showers import FLOWS, GEOMETRY, Sample, configuration, fitted

from calorefine import Simulator
from calorefine.twosample.shower_classifier import boosting_test
from calorefine.twosample.showers import high_level

ELECTRONS, CALIBRATION, FIRST_ELECTRON = 0.3, 14_000, 1_000_000
PEAK, WIDTH, SCALE = 0.5, 0.05, 0.6  # of the spectator
OBSERVABLES = "response depth width_eta_0 width_eta_1 width_phi_1 occupancy_0 occupancy_1 hottest_0"
INPUTS = [f"shower.{name}" for name in OBSERVABLES.split()]
SPLOT = {
    "class_path": "SPlot",
    "init_args": {
        "spectator": "m",
        "range": [0, 1],
        "species": {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}},
    },
}
WEIGHTS: dict[str, dict[str, Any]] = {
    "pure": {},
    "impure": {"weights": SPLOT, "positive": {"inputs": INPUTS}},
    "mixture": {},
}


def spectator(n_photons: int, n_electrons: int) -> np.ndarray:
    """Values (n_photons + n_electrons,), photons first."""
    rng = np.random.default_rng(20261130)
    beyond = rng.random(n_electrons) * (1 - np.exp(-1 / SCALE))
    return np.concatenate([np.clip(rng.normal(PEAK, WIDTH, n_photons), 0, 1), -SCALE * np.log1p(-beyond)])


def mixture(photons: Path, electrons: Path, output: Path) -> Path:
    """Write photons (n,), and electrons so that they are 30 %, with a spectator; unless it is there."""
    if not output.exists():
        with h5py.File(photons) as first, h5py.File(electrons) as second:
            n = len(first["showers"])
            wanted = round(n * ELECTRONS / (1 - ELECTRONS))
            if wanted > CALIBRATION:
                raise SystemExit(f"{wanted} electrons wanted, {CALIBRATION} are there to train on")
            columns = {
                name: np.concatenate([first[name][:], second[name][:wanted]]) for name in Sample(photons).datasets
            }
            columns["row"] = np.concatenate([first["row"][:], FIRST_ELECTRON + np.arange(wanted)])
            columns["is_photon"] = np.arange(n + wanted) < n
        beside = output.with_suffix(".part")
        with h5py.File(beside, "w") as out:
            for name, values in (columns | {"m": spectator(n, wanted)}).items():
                out.create_dataset(name, data=values, compression="gzip", shuffle=True)
        beside.replace(output)
    return output


def judged(kind: str, generator: str, seed: int, sample: Sample, mixed: Path, work: Path) -> dict[str, Any]:
    """Train on one of the samples, and judge, unless that is done."""
    told = configuration(generator, sample, work)
    told["data"] |= WEIGHTS[kind] | ({} if kind == "pure" else {"files": str(mixed)})
    checkpoint = fitted(f"{kind}_{generator}", told, seed, work)
    record = checkpoint.with_suffix(".json")
    if not record.exists():
        reference = sample.judges()
        made = sample.generated(Simulator.load(checkpoint), reference, seed)
        test = boosting_test(high_level(made, GEOMETRY), high_level(reference, GEOMETRY)).separation
        seconds = float(checkpoint.with_suffix(".seconds").read_text())
        record.write_text(json.dumps({"auc": test.auc, "auc_error": test.auc_error, "seconds": seconds}))
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def main() -> None:
    """Mix, train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photons", type=Path)
    parser.add_argument("electrons", type=Path)
    parser.add_argument("--work", type=Path, default=Path("shower_impure"), help="folder that keeps what is finished")
    parser.add_argument("--generator", default="coupling", choices=FLOWS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=WEIGHTS, help="trainings; all, if left out")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    sample = Sample(options.photons)
    pure = sample.training(options.work)
    mixed = mixture(pure, options.electrons, options.work / f"mixed_{pure.stem}.h5")
    figures: dict[str, float] = {}
    for kind in options.only or WEIGHTS:
        found = judged(kind, options.generator, options.seed, sample, mixed, options.work)
        figures |= {f"auc_flow_{kind}_high": found["auc"], f"auc_flow_{kind}_high_error": found["auc_error"]}
        figures[f"fit_seconds_{kind}"] = found["seconds"]
        print(kind, json.dumps(found), flush=True)
    if {"auc_flow_pure_high", "auc_flow_impure_high"} <= set(figures):
        figures["difference_impure"] = figures["auc_flow_impure_high"] - figures["auc_flow_pure_high"]
    for key, value in figures.items():
        print(f"{key:>28} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
