"""Do impure data train a pure generator?  Trains on the calibration sample, compares with pure electrons.

An independent classifier tries to tell generated events from `electron_reference.root`, at the same contexts.  It sees
features and context; half of the contexts train it and half test it, with both twins of a context on the same side.
AUC 0.5 is perfect; the floor is the reference against itself.  Only this benchmark, and tests, read `true_signal`.

    python benchmarks/electron_closure.py --json closure.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from calorefine.cli import calorefine, lightning
from calorefine.io.root import Request, RootFiles
from calorefine.simulator import Simulator

DATA = Path(__file__).parent.parent / "examples" / "data"
CONFIGS = Path(__file__).parent.parent / "configs"
CALIBRATION, REFERENCE = DATA / "electron_calibration.root", DATA / "electron_reference.root"
FEATURES = ["e_over_p", "f_front", "f_back", "width_strip_mm", "f_core", "r_mid", "dx_mm"]
CONTEXT = ["p_gev", "x_in_cell_mm", "n_pv"]
SEEDS = (1, 2, 3)
N_SPLITS = 10
N_BINS = 5


def classifier_auc(signal: np.ndarray, background: np.ndarray, split: int) -> float:
    """AUC of a classifier trained on one half of the rows; row i of both samples is on the same side."""
    order = np.random.default_rng(split).permutation(len(signal))
    train, test = np.array_split(order, 2)
    model = HistGradientBoostingClassifier(max_iter=200, early_stopping=False, random_state=split)
    model.fit(np.concatenate([signal[train], background[train]]), np.repeat([1, 0], len(train)))
    scores = model.predict_proba(np.concatenate([signal[test], background[test]]))[:, 1]
    return float(roc_auc_score(np.repeat([1, 0], len(test)), scores))


def auc(signal: np.ndarray, background: np.ndarray) -> tuple[float, float]:
    """Mean and spread of the AUC over the splits."""
    values = [classifier_auc(signal, background, split) for split in range(N_SPLITS)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def floor(reference: np.ndarray) -> tuple[float, float]:
    """AUC of one random half of the reference against the other."""
    values = []
    for split in range(N_SPLITS):
        order = np.random.default_rng(1000 + split).permutation(len(reference))
        first, second = reference[order[: len(order) // 2]], reference[order[len(order) // 2 : len(order) // 2 * 2]]
        values.append(classifier_auc(first, second, split))
    return float(np.mean(values)), float(np.std(values, ddof=1))


def read_reference() -> dict[str, np.ndarray]:
    """All columns of the reference sample."""
    wanted = {name: name for name in FEATURES + CONTEXT}
    chunks = list(RootFiles(str(REFERENCE), "events").chunks(Request(wanted)))
    return {name: np.concatenate([chunk.values[name] for chunk in chunks]) for name in wanted}


def width_errors(generated: np.ndarray, reference: np.ndarray, p_gev: np.ndarray) -> np.ndarray:
    """Relative error of the 68 % half-width of e_over_p in bins of momentum with equal numbers of events."""
    edges = np.quantile(p_gev, np.linspace(0, 1, N_BINS + 1))
    index = np.clip(np.searchsorted(edges, p_gev, side="right") - 1, 0, N_BINS - 1)
    half = [[np.diff(np.quantile(x[index == k], [0.16, 0.84]))[0] for k in range(N_BINS)] for x in (generated, reference)]
    return np.array(half[0]) / np.array(half[1]) - 1


def train(config: str, seed: int, runs: Path, *options: str) -> tuple[Simulator, float]:
    """Train a committed configuration; return the best checkpoint's simulator and the wall time of the whole command."""
    start = time.perf_counter()
    arguments = ["fit", "-c", str(CONFIGS / f"{config}.yaml"), "--runs", str(runs), "--seed_everything", str(seed)]
    arguments += ["--data.files", str(CALIBRATION), "--trainer.enable_progress_bar", "false", *options]
    finished = lightning(arguments)
    seconds = time.perf_counter() - start
    return Simulator.load(finished.run_dir / "checkpoints" / "best.ckpt"), seconds


def variants(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """The comparison trainings: name to configuration and options."""
    weighted = folder / "weighted.root"
    calorefine(["splot", "-c", str(CONFIGS / "splot.yaml"), "--files", str(CALIBRATION), "--output", str(weighted)])
    pure_epochs = str(round(epochs("weighted_wgan") / signal_fraction()))  # as many updates as the others
    clipped = ["--data.files", str(weighted), "--data.weights", "where(sw_signal > 0, sw_signal, 0)"]
    pure = ["--data.weights", "none", "--data.columns.cut", "true_signal", "--trainer.max_epochs", pure_epochs]
    return {
        "wgan": ("weighted_wgan", []),
        "cramer": ("weighted_cramer_gan", []),
        "wgan_unweighted": ("weighted_wgan", ["--data.weights", "none"]),
        "wgan_pure": ("weighted_wgan", pure),
        "wgan_clipped": ("weighted_wgan", clipped),
    }


def epochs(config: str) -> int:
    """Number of epochs in a configuration."""
    import yaml

    return int(yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["trainer"]["max_epochs"])


def signal_fraction() -> float:
    """Fraction of true signal in the calibration sample."""
    request = Request({"true_signal": "true_signal"})
    return float(np.mean(np.concatenate([c.values["true_signal"] for c in RootFiles(str(CALIBRATION), "events").chunks(request)])))


def main() -> None:
    """Train, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reference = read_reference()
    target = np.stack([reference[name] for name in FEATURES + CONTEXT], axis=1)
    figures: dict[str, float] = {}
    mean, spread = floor(target)
    print(f"floor (reference against reference): AUC {mean:.4f} +- {spread:.4f}", flush=True)
    figures["auc_floor"] = mean
    seconds, widths = [], []
    with tempfile.TemporaryDirectory() as name:
        for label, (config, extra) in variants(Path(name)).items():
            worst = 0.0
            for seed in SEEDS if label in ("wgan", "cramer") else SEEDS[:1]:
                simulator, wall = train(config, seed, Path(name) / label, *extra)
                events = simulator.sample({column: reference[column] for column in CONTEXT}, seed=seed)
                made = np.stack([events[f] for f in FEATURES] + [reference[c] for c in CONTEXT], axis=1)
                mean, spread = auc(target, made)
                errors = width_errors(events["e_over_p"], reference["e_over_p"], reference["p_gev"])
                print(
                    f"{label}, seed {seed}: AUC {mean:.4f} +- {spread:.4f} (floor {figures['auc_floor']:.4f}), "
                    f"e_over_p width errors {np.array2string(100 * errors, precision=1)} %, fit {wall:.0f} s",
                    flush=True,
                )
                worst = max(worst, mean)
                seconds.append(wall)
                if label in ("wgan", "cramer"):
                    widths.append(np.abs(errors).max())
                    figures[f"auc_{label}_seed_{seed}"] = mean
                    figures[f"e_over_p_width_error_{label}_seed_{seed}"] = float(np.abs(errors).max())
            figures[f"auc_{label}"] = worst
    figures["e_over_p_width_error_max"] = float(max(widths))
    figures["fit_seconds_max"] = max(seconds)
    for key, value in figures.items():
        print(f"{key:>40} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
