"""Does the error of the response's width cover the truth?  Toys of photon showers' energies, whose law is known.

**The law** is the energy flow of `configs/showers/shower_flow.yaml`, its `first`: energies of the three layers given
the incident energy, by the same map of energies and a `Flow` of the same size and epochs, trained on the 60 % of FILE
that `benchmarks/showers.py` trains on.

**A toy** is all that an analysis does, by the verbs' functions: 2000 showers' energies drawn from the law,
log-uniform from 1 to 16 GeV; `ensemble`, a nominal flow and 20 bootstrap replicas of all of the toy's events; `sample`,
20 000 events of each at 4 GeV; `propagate`, half the central 68.27 % interval of the response, with its error by the
replicas and the generated statistics.  Keys differ between toys, so that each has its own bootstrap counts.

**The truth** is that half width in 2 million events of the law at 4 GeV, known to 0.1 %.

Figures: `coverage_width`, the share of toys whose 68.27 % interval (Student's t) holds the truth, and its binomial
error; mean and width of the pull (nominal - truth) / error, `bias_percent` and `spread_percent` of the nominal values,
`error_percent`, the mean error, and `seconds_training`, CPU seconds of a training.  No toy is left out; its number is
its seed.  The flow of the toys is that of `benchmarks/coverage.py` in nearly as many steps; other toys (9001 and on,
`--first 9001`) are for trying others.

    python benchmarks/shower_coverage.py FILE --work W --workers 2 --json coverage.json

Toys that are finished are kept in W.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uproot
import yaml
from showers import E_INC_GEV, Sample

from calorefine import Simulator, shower_observables
from calorefine.fit.command import lightning
from calorefine.observables import Width
from calorefine.systematics.variations import Variations
from calorefine.verbs.ensemble import ensemble_models
from calorefine.verbs.propagate import propagate_files
from calorefine.verbs.sample import sample_file

N_TOYS, N_EVENTS, N_REPLICAS, N_GENERATED, N_TRUTH = 40, 2000, 20, 20_000, 2_000_000
AT_GEV, LEVEL, FIRST = 4.0, 0.6827, 1
RESPONSE = "(e_layer[0] + e_layer[1] + e_layer[2]) / (1000 * e_inc_gev)"
FLOWS: dict[str, dict[str, Any]] = {
    "law": {"class_path": "Flow"},
    "toy": {"class_path": "Flow", "init_args": {"hidden": [16, 16], "n_bins": 5, "learning_rate": 2e-2}},
}
BATCH, EPOCHS = {"law": 256, "toy": 128}, {"law": 40, "toy": 18}


def configuration(kind: str, file: Path, sample: Sample, seed: int) -> dict[str, Any]:
    """Configuration of a training on energies of layers."""
    numbers = [layer.number for layer in sample.geometry.layers]
    energies = {"e_inc": "e_inc_gev", "numbers": numbers, "threshold": sample.geometry.threshold_mev}
    return {
        "seed_everything": seed,
        "data": {
            "files": str(file),
            "tree": "events",
            "columns": {
                "features": {"e_layer": {"shape": [len(numbers)]}},
                "context": {"e_inc_gev": None},
                "key": ["run", "event"],
            },
            "preprocessing": {"class_path": "LayerEnergies", "init_args": energies},
            "batch_size": BATCH[kind],
        },
        "model": FLOWS[kind],
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": EPOCHS[kind],
            "check_val_every_n_epoch": EPOCHS[kind] if kind == "toy" else 1,
            "log_every_n_steps": 1000,
            "enable_progress_bar": False,
        },
    }


def write(path: Path, run: int, **columns: np.ndarray) -> Path:
    """Write events of a run."""
    event = np.arange(len(columns["e_inc_gev"]))
    columns |= {"run": np.full(len(event), run), "event": event}
    with uproot.recreate(path) as file:
        types = {name: np.dtype((values.dtype, values.shape[1:])) for name, values in columns.items()}
        file.mktree("events", types).extend(columns)
    return path


def law(sample: Sample, work: Path) -> Path:
    """Checkpoint of the flow that draws the toys, trained unless it is there."""
    checkpoint = work / "law.ckpt"
    if not checkpoint.exists():
        train = sample.rows(sample.trains)
        energies = shower_observables.layer_energies(train.cells, sample.geometry).astype(np.float32)
        file = write(work / "law.root", 0, e_layer=energies, e_inc_gev=train.e_inc / 1000)
        config = work / "law.yaml"
        config.write_text(yaml.safe_dump(configuration("law", file, sample, 1)))
        finished = lightning(["fit", "-c", str(config), "--runs", str(work / "runs"), "--threads", "1"])
        Simulator.load(finished.run_dir / "checkpoints" / "best.ckpt").save(checkpoint)
    return checkpoint


def true_width(checkpoint: Path) -> float:
    """Half the central interval of the response of the law at the energy in question."""
    e_inc = np.full(N_TRUTH, AT_GEV)
    made = Simulator.load(checkpoint).sample({"e_inc_gev": e_inc}, seed=1)["e_layer"]
    low, high = np.quantile(made.sum(1, dtype=np.float64) / (1000 * AT_GEV), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(high - low) / 2


def draw(checkpoint: Path, number: int, path: Path) -> Path:
    """Write a toy's events."""
    rng = np.random.default_rng([20261130, number])
    e_inc = np.exp(rng.uniform(*np.log(E_INC_GEV), N_EVENTS))
    made = Simulator.load(checkpoint).sample({"e_inc_gev": e_inc}, seed=1000 + number)["e_layer"]
    return write(path, number, e_layer=made.astype(np.float32), e_inc_gev=e_inc)


def toy(number: int, checkpoint: Path, sample: Sample, folder: Path) -> dict[str, float]:
    """Train, sample and propagate as an analysis does; the width, its error and its interval."""
    config = folder / "fit.yaml"
    file = draw(checkpoint, number, folder / "toy.root")
    config.write_text(yaml.safe_dump(configuration("toy", file, sample, number)))
    start = time.process_time()
    trained = ensemble_models(fit=str(config), output=str(folder / "ensemble"), replicas=N_REPLICAS, processes=1)
    seconds = (time.process_time() - start) / (1 + N_REPLICAS)
    conditions = write(folder / "conditions.root", number, e_inc_gev=np.full(N_GENERATED, AT_GEV))
    for name in trained.ensemble.records:
        sample_file(
            checkpoint=str(trained.ensemble.checkpoint(name)),
            conditions=str(conditions),
            output=str(folder / f"{name}.root"),
            pass_through="e_inc_gev,run,event",
            seed=number,
        )
    found = propagate_files(
        nominal=str(folder / "nominal.root"),
        observables={"width": Width(RESPONSE, "e_inc_gev", edges=[AT_GEV - 0.1, AT_GEV + 0.1])},
        output=str(folder / "systematics"),
        outside="ignore",
        calibration=Variations(files=str(folder / "replica_*.root")),
    ).systematics
    (low,), (high,) = found.interval(LEVEL)
    told = {"value": found.nominal[0], "error": found.errors()[0], "low": low, "high": high, "seconds": seconds}
    return {name: float(value) for name, value in told.items()}


def kept(number: int, checkpoint: Path, sample: Sample, work: Path) -> dict[str, float]:
    """Do a toy, unless that is done."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    record = work / f"toy_{number}.json"
    if not record.exists():
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # Lightning's advice
            record.write_text(json.dumps(toy(number, checkpoint, sample, Path(folder))))
    found: dict[str, float] = json.loads(record.read_text())
    return found


def summarized(toys: list[dict[str, float]], truth: float) -> dict[str, float]:
    """Figures of all toys."""
    value, error, low, high, seconds = (
        np.array([one[name] for one in toys]) for name in ("value", "error", "low", "high", "seconds")
    )
    covered, pull, n = float(np.mean((low <= truth) & (truth <= high))), (value - truth) / error, len(toys)
    spread = {
        "pull_mean_width": pull.mean(),
        "pull_width_width": pull.std(ddof=1) if n > 1 else np.nan,
        "bias_percent": 100 * (value.mean() / truth - 1),
        "spread_percent": 100 * value.std(ddof=1) / truth if n > 1 else np.nan,
        "error_percent": 100 * error.mean() / truth,
        "seconds_training": seconds.mean(),
    }
    told = {"coverage_width": covered, "coverage_width_error": np.sqrt(LEVEL * (1 - LEVEL) / n), "n_toys": n}
    return {name: float(number) for name, number in (told | spread | {"true_width": truth}).items()}


def main() -> None:
    """Draw, train, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="photon showers")
    parser.add_argument("--work", type=Path, default=Path("shower_coverage"), help="folder that keeps what is finished")
    parser.add_argument("--toys", type=int, default=N_TOYS)
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first toy")
    parser.add_argument("--workers", type=int, default=1, help="toys at a time")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    options.work.mkdir(parents=True, exist_ok=True)
    sample = Sample(options.file)
    checkpoint = law(sample, options.work)
    truth = true_width(checkpoint)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        numbers = range(options.first, options.first + options.toys)
        futures = [pool.submit(kept, number, checkpoint, sample, options.work) for number in numbers]
        toys: list[dict[str, float]] = []
        for number, future in zip(numbers, futures, strict=True):
            toys.append(future.result())
            print(number, json.dumps(toys[-1]), flush=True)
    figures = summarized(toys, truth)
    for key, value in figures.items():
        print(f"{key:>24} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
