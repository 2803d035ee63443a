"""Density ratios by hep_ml and mcreweight; run by `benchmarks/reweighting.py` with the python of their environment.

    python reweight.py hep_ml input.npz output.npz --settings '[{"max_depth": 4}]'

Input: generated (n, d), reference (m, d), weight (m,) of any sign, held_out (k, d).  Output, for each of the settings:
log_weight (k,) of the held-out events, and the CPU seconds of the fit.  A setting `stages` of hep_ml is a list of
numbers of trees, all of which are evaluated from one training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hep_ml.reweight import GBReweighter

Data = dict[str, np.ndarray]
Fitted = tuple[list[np.ndarray], float]


def hep_ml(data: Data, *, stages: list[int] | None = None, **options: Any) -> Fitted:
    """hep_ml's trees, its own defaults; signed weights are what it is made for."""
    model = GBReweighter(**options, **({"n_estimators": max(stages)} if stages else {}))
    start = time.process_time()
    model.fit(data["generated"], data["reference"], target_weight=data["weight"])
    seconds = time.process_time() - start
    if not stages:
        return [np.log(model.predict_weights(data["held_out"]))], seconds
    staged = enumerate(model.gb.staged_decision_function(data["held_out"]), start=1)
    return [np.array(one) for number, one in staged if number in stages], seconds


def mcreweight(name: str, defaults: dict[str, Any]) -> Callable[..., Fitted]:
    """One of mcreweight's methods, with the settings that its pipeline gives it where none were tuned.

    Signed weights go in as they are: the trees of XGB clip them to 0 by themselves, GB and the networks keep them.  The
    pipeline's cut of predicted weights at their 99th percentile is left out.
    """

    def fit(data: Data, **options: Any) -> Fitted:
        import mcreweight.models.onnxreweighter as methods

        model = getattr(methods, name)(**{"verbosity": 0, **defaults, **options})
        start = time.process_time()
        model.fit(data["generated"], data["reference"], tw=data["weight"])
        seconds = time.process_time() - start
        return [np.log(model.predict_weights(data["held_out"]).astype(np.float64))], seconds

    return fit


TREES = {"n_estimators": 100, "learning_rate": 0.1, "max_depth": 4}
XGB = {"learning_rate": 0.1, "max_depth": 4, "subsample": 0.8, "reg_alpha": 2.0, "reg_lambda": 5.0, "n_jobs": 1}
METHODS: dict[str, Callable[..., Fitted]] = {
    "hep_ml": hep_ml,
    "mcreweight_gb": mcreweight("ONNXGBReweighter", TREES),
    "mcreweight_xgb": mcreweight("ONNXIXGBReweighter", {"n_iterations": 15, "mixing_learning_rate": 0.05, **XGB}),
    "mcreweight_nn": mcreweight("ONNXINNReweighter", {"n_iterations": 10, "mixing_learning_rate": 0.05}),
}


def main() -> None:
    """Fit with each of the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--settings", type=json.loads, default=[{}], help="list of keyword arguments")
    options = parser.parse_args()
    with np.load(options.input) as file:
        data = dict(file)
    rows, seconds = [], []
    for settings in options.settings:
        with contextlib.redirect_stdout(io.StringIO()):
            found, taken = METHODS[options.method](data, **settings)
        rows += found
        seconds += [taken] * len(found)
    np.savez(options.output, log_weight=np.stack(rows), seconds=np.array(seconds))


if __name__ == "__main__":
    main()
