"""How far do trainings differ that are told apart by `seed_everything` alone?

The toy is that of `tests/statistical/test_impure_toy.py`, trained by its configuration: the figure of a training is the
largest of 16 deviations from the truth, in units of the true width, and the test's chance of failing follows from its
mean and standard deviation.  The electrons are those of `configs/weighted_wgan.yaml`, compared with pure ones by the
classifier of `calorefine validate`.  All trainings are judged by their `best.ckpt`.

    python benchmarks/steadiness.py --json steadiness.json            # 20 toys and 5 electron trainings
    python benchmarks/steadiness.py --only toy --toy-seeds 101 102    # other seeds, to choose settings on

toy_largest_mean, toy_largest_sd      of the largest deviation, over the trainings
toy_failing_by_accident               chance of a largest deviation beyond the tolerance, if its logarithm were normal
best_minus_last_rms                   of the deviations' differences between best.ckpt and last.ckpt
auc_wgan_worst, auc_wgan_sd           over the trainings on electrons
..._seconds_max                       CPU time of the longest training, in one thread, set-up included
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.stats import norm

from calorefine.cli import calorefine
from calorefine.fit.command import lightning

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "examples" / "data" / "electron_reference.root"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
TOY, ELECTRONS = "toy", "electrons"


def toy() -> ModuleType:
    """The test of the toy."""
    path = ROOT / "tests" / "statistical" / "test_impure_toy.py"
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(config: Path, seed: int, folder: Path, options: list[str]) -> tuple[Path, float]:
    """Train; return the folder of the checkpoints and the CPU time in seconds."""
    start = time.process_time()
    arguments = [
        "fit",
        "-c",
        str(config),
        "--runs",
        str(folder / "runs"),
        "--seed_everything",
        str(seed),
        "--threads",
        "1",
    ]
    run = lightning([*arguments, *QUIET, *options]).run_dir
    return run / "checkpoints", time.process_time() - start


def train_toy(seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """Deviations (16,) of the best and the last checkpoint of a training on the toy."""
    checkpoints, seconds = fit(folder / "toy.yaml", seed, folder, options)
    deviations = {name: toy().deviations(checkpoints / f"{name}.ckpt").ravel().tolist() for name in ("best", "last")}
    return {"what": TOY, "seed": seed, "seconds": seconds, **deviations}


def train_electrons(seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """AUC of events generated at the conditions of pure electrons against these."""
    fixed = ["--data.files", str(ROOT / "examples" / "data" / "electron_calibration.root")]
    config = ROOT / "configs" / "weighted_wgan.yaml"
    checkpoints, seconds = fit(config, seed, folder, [*fixed, *options])
    generated = ["--generated", str(folder / f"generated_{seed}.root")]
    sample = ["--checkpoint", str(checkpoints / "best.ckpt"), "--conditions", str(REFERENCE), "--output", generated[1]]
    calorefine(["sample", *sample, "--seed", str(seed)])
    output = ["--output", str(folder / f"validation_{seed}.json")]
    validation = calorefine(["validate", *generated, "--reference", str(REFERENCE), *output])
    separation = validation.classifier.separation
    return {"what": ELECTRONS, "seed": seed, "seconds": seconds, "auc": separation.auc, "error": separation.auc_error}


def trainings(jobs: list[Callable[[], dict[str, Any]]], processes: int) -> Iterator[dict[str, Any]]:
    """Results of the jobs in their order, each trained in one of so many processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_call, jobs)


def _call(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return job()


def line(result: dict[str, Any]) -> str:
    """What is said of a training when it is done."""
    largest = [f"{name}.ckpt {np.abs(result[name]).max():.4f}" for name in ("best", "last") if name in result]
    figure = f"AUC {result['auc']:.4f}" if "auc" in result else f"largest deviation {', '.join(largest)}"
    return f"{result['what']}, seed {result['seed']}: {figure}; {result['seconds']:.0f} s of CPU time\n"


def toy_figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation of the largest deviation, and what the choice of the checkpoint does."""
    best, last = (np.array([result[name] for result in results]) for name in ("best", "last"))
    largest = np.abs(best).max(axis=1)
    logarithm = np.log(largest)
    pull = (np.log(toy().TOLERANCE) - logarithm.mean()) / logarithm.std(ddof=1)
    return {
        "toy_largest_mean": float(largest.mean()),
        "toy_largest_sd": float(largest.std(ddof=1)),
        "toy_largest_mean_plus_4_sd": float(largest.mean() + 4 * largest.std(ddof=1)),
        "toy_largest_worst": float(largest.max()),
        "toy_failing_by_accident": float(norm.sf(pull)),
        "toy_deviation_rms": float(np.sqrt(np.mean(best**2))),
        "best_minus_last_rms": float(np.sqrt(np.mean((best - last) ** 2))),
        "toy_seconds_max": max(result["seconds"] for result in results),
    }


def electron_figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """Worst AUC and its spread."""
    auc = np.array([result["auc"] for result in results])
    seconds = max(result["seconds"] for result in results)
    figures = {f"auc_wgan_seed_{result['seed']}": result["auc"] for result in results}
    spread = {"auc_wgan_worst": float(auc.max()), "auc_wgan_sd": float(auc.std(ddof=1))}
    return {
        **figures,
        **spread,
        "auc_wgan_error": max(result["error"] for result in results),
        "wgan_seconds_max": seconds,
    }


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=[TOY, ELECTRONS], help="leave out the other")
    parser.add_argument("--toy-seeds", type=int, nargs="+", default=list(range(1, 21)))
    parser.add_argument("--electron-seeds", type=int, nargs="+", default=list(range(1, 6)))
    parser.add_argument("--processes", type=int, default=1, help="trainings at the same time, each in one thread")
    parser.add_argument("--options", default="", help="further options of the trainings, as one string")
    arguments = parser.parse_args()
    extra = arguments.options.split()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = []
        if arguments.only != ELECTRONS:
            toy().write(folder)
            jobs += [partial(train_toy, seed, folder, extra) for seed in arguments.toy_seeds]
        if arguments.only != TOY:
            jobs += [partial(train_electrons, seed, folder, extra) for seed in arguments.electron_seeds]
        results = []
        for result in trainings(jobs, arguments.processes):
            results.append(result)
            sys.stdout.write(line(result))
            sys.stdout.flush()
    figures = {}
    for what, summarize in ((TOY, toy_figures), (ELECTRONS, electron_figures)):
        chosen = [result for result in results if result["what"] == what]
        figures |= summarize(chosen) if len(chosen) > 1 else {}
    for key, value in figures.items():
        sys.stdout.write(f"{key:>28} {value:.4g}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
