"""Does the propagated uncertainty cover the truth?  An ensemble trained on the calibration sample against Geant4.

An ensemble of flows (or of another configuration) generates at the conditions of `electron_reference.root`, whose
features no training has seen.  Three observables in ten bins each: the shape of `e_over_p`, the efficiency of a
selection against momentum, and the resolution (68 % half-width of `e_over_p`) against momentum.  Sources are those of
the workflow: replicas, seeds, the generated sample, and what is left of the closure on the calibration sample, where
the nominal generates once at each event's conditions with its sWeight.
Counted are the bins where the reference lies inside the 95 % band, with and
without the reference's own statistical error in the band, and with and without the closure as a source.  The band's
width is compared with the statistical error that the sWeighted calibration sample itself has in these bins.  The same
again at a shifted spectrum: conditions are a subset drawn with a probability that falls with momentum, and the
reference is weighted by that probability.

    python benchmarks/propagation.py --json propagation.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uproot
import yaml

from calorefine.cli import calorefine
from calorefine.ensemble.members import Ensemble
from calorefine.io.root import RootFiles
from calorefine.io.sample import WeightedFiles
from calorefine.observables import Efficiency, Histogram, Observable, Weights, Width, measure
from calorefine.systematics import Systematics, closure_bias
from calorefine.systematics.closure import Closure
from calorefine.systematics.variations import Variations
from calorefine.verbs.propagate import propagate_files

ROOT = Path(__file__).parent.parent
DATA, CONFIGS = ROOT / "examples" / "data", ROOT / "configs"
CALIBRATION, REFERENCE = DATA / "electron_calibration.root", DATA / "electron_reference.root"
MOMENTA = [1.0, 1.3, 1.8, 2.5, 3.5, 5.0, 6.5, 8.5, 11.0, 13.0, 16.0]
EDGES = [0.6, 0.85, 0.91, 0.95, 0.98, 1.0, 1.02, 1.05, 1.09, 1.15, 1.4]
N_COPIES = 10
SHIFT = "exp(-p_gev / 6)"  # probability to keep a condition
OBSERVABLES: dict[str, Observable] = {
    "e_over_p": Histogram("e_over_p", edges=EDGES, normalize="unit"),
    "efficiency": Efficiency("e_over_p > 0.9 && e_over_p < 1.15 && f_core > 0.75", "p_gev", edges=MOMENTA),
    "resolution": Width("e_over_p", "p_gev", edges=MOMENTA),
}


def shifted_conditions(folder: Path, seed: int = 1) -> Path:
    """Conditions of the reference, kept with a probability that falls with momentum."""
    names = ["p_gev", "x_in_cell_mm", "n_pv", "run", "event"]
    with uproot.open(REFERENCE) as file:
        table = file["events"].arrays(names, library="np")
    keep = np.random.default_rng(seed).random(len(table["p_gev"])) < np.exp(-table["p_gev"] / 6)
    path = folder / "shifted.root"
    with uproot.recreate(path) as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend({k: v[keep] for k, v in table.items()})
    return path


def generate(ensemble: Path, conditions: Path, folder: Path) -> None:
    """Events of each member at these conditions."""
    folder.mkdir()
    finished = Ensemble.load(ensemble)
    for checkpoint in map(finished.checkpoint, finished.records):
        options = ["--pass-through", "p_gev", "--n-per-event", str(N_COPIES), "--conditions", str(conditions)]
        output = folder / f"{checkpoint.parent.name}.root"
        calorefine(["sample", "--checkpoint", str(checkpoint), "--output", str(output), *options])


def closure(ensemble: Path, weighted: Path, folder: Path, weight: str) -> Closure:
    """The calibration sample, and the nominal's events at its conditions."""
    output = folder / "closure.root"
    if not output.is_file():
        options = ["--pass-through", "p_gev,sw_signal", "--conditions", str(weighted)]
        checkpoint = Ensemble.load(ensemble).checkpoint("nominal")
        calorefine(["sample", "--checkpoint", str(checkpoint), "--output", str(output), *options])
    return Closure(WeightedFiles(str(output), weight=weight), WeightedFiles(str(weighted), weight=weight))


def propagated(folder: Path, compared: Closure) -> Systematics:
    """Systematics from the members' events."""
    training = Variations(files=str(folder / "seed_*.root")) if list(folder.glob("seed_*.root")) else None
    summary = propagate_files(
        nominal=str(folder / "nominal.root"),
        observables=OBSERVABLES,
        output=str(folder / "systematics"),
        calibration=Variations(files=str(folder / "replica_*.root")),
        training=training,
        closure=compared,
    )
    print(summary, flush=True)
    return summary.systematics


def without_closure(systematics: Systematics) -> Systematics:
    """The same without what is left of the closure."""
    return replace(systematics, sources={k: source for k, source in systematics.sources.items() if k != "residual"})


def compare(systematics: Systematics, weight: str, calibration: np.ndarray) -> dict[str, float]:
    """Figures of one spectrum."""
    true = measure(RootFiles(str(REFERENCE), "events"), OBSERVABLES, weights=[Weights(weight)])
    bias = closure_bias(systematics, true.values[0], truth_covariance=true.statistics)
    low, high = systematics.interval(0.95)
    band = np.abs(true.values[0] - systematics.nominal) <= (high - low) / 2
    inside = bias.p_value > 1 - 0.95
    ratio = systematics.errors() / calibration
    figures = {"inside_95": float(inside.mean()), "inside_95_without_reference_error": float(band.mean())}
    figures |= {"closure_p": bias.chi2.p_value, "band_over_calibration_max": float(ratio.max())}
    figures["band_over_calibration_median"] = float(np.median(ratio))
    for name in OBSERVABLES:
        part = systematics.part(name)
        pulls = bias.difference[part] / bias.error[part]
        print(f"{name:>12}: inside {inside[part].sum()} of {len(pulls)}, pulls {np.array2string(pulls, precision=1)}")
        print(f"{'':>12}  band / calibration's error {np.array2string(ratio[part], precision=2)}", flush=True)
        figures[f"inside_95_{name}"] = float(inside[part].mean())
    return figures


def weighted_calibration(folder: Path) -> Path:
    """The calibration sample with sWeights."""
    path = folder / "weighted.root"
    calorefine(["splot", "-c", str(CONFIGS / "splot.yaml"), "--files", str(CALIBRATION), "--output", str(path)])
    return path


def calibration_errors(weighted: Path, weight: str) -> np.ndarray:
    """Errors that the sWeighted calibration sample itself has in these bins."""
    measured = measure(RootFiles(str(weighted), "events"), OBSERVABLES, weights=[Weights(weight)])
    return np.asarray(np.sqrt(np.diag(measured.statistics)))


def main() -> None:
    """Train, generate, propagate, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--fit", default=str(CONFIGS / "conditional_flow.yaml"), help="configuration of the members")
    parser.add_argument("--ensemble", type=Path, help="a finished ensemble; trained if left out")
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ensemble = options.ensemble or folder / "ensemble"
        if options.ensemble is None:
            data = yaml.safe_dump(["--data.files", str(CALIBRATION)], default_flow_style=True).strip()
            sizes = ["--replicas", str(options.replicas), "--seeds", str(options.seeds)]
            print(
                calorefine(["ensemble", "--fit", options.fit, "--output", str(ensemble), f"--options={data}", *sizes])
            )
        weighted = weighted_calibration(folder)
        spectra = {"": (REFERENCE, "none", "sw_signal")}
        spectra["shifted_"] = (shifted_conditions(folder), SHIFT, f"sw_signal * {SHIFT}")
        for prefix, (conditions, weight, signal) in spectra.items():
            generate(ensemble, conditions, folder / f"{prefix}generated")
            systematics = propagated(folder / f"{prefix}generated", closure(ensemble, weighted, folder, signal))
            errors = calibration_errors(weighted, signal)
            for suffix, one in {"": systematics, "_without_closure": without_closure(systematics)}.items():
                found = compare(one, weight, errors)
                figures |= {f"{prefix}{key}{suffix}": value for key, value in found.items()}
    for key, value in figures.items():
        print(f"{key:>60} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
