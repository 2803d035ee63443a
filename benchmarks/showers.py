"""How near are generated photon showers to Geant4's?  Trains generators of 504 cells, and asks three classifiers.

The rows of FILE (20 000 photons, log-uniform from 1 to 16 GeV, entering within 20 mm of the center) are divided by a
hash of their number: 60 % train, a tenth of them held out, and the others judge alone, against as many that are
generated at fresh conditions of the same distribution.  Cells below 0.1 MeV count as 0 on both sides.

An AUC is the mean of three trainings of a classifier, and a key's the worse of two seeds of the generator:

lin     a network (2 x 512) on cells over the incident energy, and its logarithm
frame   the same on log(1 + cell / 0.1 MeV), layer and incident energies, entry point, in the canonical frame
high    boosted trees on response, depth and, layer by layer, energy, mean, width, occupancy, shares of hottest cells

`ms_<name>_<batch>` are CPU milliseconds per shower in calls of so many, one thread, the inverse preprocessing included.

Of couplings and autoregressive cells, `auc_flow_...` are those of the one with the lower `high`, `ms_flow_...` those of
couplings.  Showers of the two-step GAN are also weighted, by trees that learn from the training rows.  `gain_nats_...`
says by how much the judging showers' cells are more probable than independent ones with the same energies.
`response_width_all_...` is the standard deviation of the response less its mean, times the root of the incident energy,
of generated over judging showers, less 1.  With `--points` mean and standard deviation of the response are compared
with Geant4's at fixed energies; `--only coupling_gap` trains without 3 to 5.5 GeV, for `response_gap_mean_4`.
`--only student` trains what learns in one pass from flow matching of the same seed; its CPU time leaves its teacher's
out.  So `--only calogan vae_cells`, other generators of whole showers in one step.

    python benchmarks/showers.py FILE --points POINTS --work W --workers 2 --json showers.json
    python benchmarks/showers.py FILE --work W --only coupling:1 --json part.json

Any file in the layout of the CaloChallenge goes with its binning.  Incident energies may be discrete; the judging
showers' own are those at which showers are generated, and a pair is on one side of a classifier's split.  Classifiers
are then also the challenge's own network (2 x 2048), on the published inputs (less those along the radius):
`auc_<name>_challenge_low` and `_high`, and `jsd_...`.  They grow with the number of showers: published ones are of
100 000 to judge, here a file's 40 %.

    python benchmarks/showers.py dataset_2_1.hdf5 --xml binning_dataset_2.xml --only coupling --work W2 --json d2.json

Trainings and judgments that are finished are kept in W, each under the digest of its configuration, seed and data.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

from calorefine import keys, shower_observables, stats
from calorefine.binning import read_geometry
from calorefine.data.batches import Batch
from calorefine.data.frame import Frame
from calorefine.fit.command import lightning
from calorefine.geometry import Geometry, segmented
from calorefine.io.provenance import digest
from calorefine.models.autoregressive_cells import MOST_CELLS
from calorefine.models.density import standard_normal_log_prob
from calorefine.reweighting import BoostingRatio
from calorefine.reweighting.ratio import WeightedRows, fit_ratio
from calorefine.simulator import Simulator
from calorefine.twosample.shower_classifier import CHALLENGE, SMALL, ShowerTest, boosting_test, network_test
from calorefine.twosample.showers import (
    Showers,
    challenge_features,
    frame_inputs,
    high_level,
    linear_inputs,
    same_frame,
)

CONFIGS = Path(__file__).parent.parent / "configs" / "showers"
GENERATORS = {
    "coupling": "shower_flow",
    "autoregressive": "shower_autoregressive",
    "fm": "flow_matching",
    "vae": "vae",
    "gan2": "two_step_gan",
    "gan1": "atlas_gan",
}
OTHERS = {"student": "student", "calogan": "calogan", "vae_cells": "vae_cells"}  # where --only names them
TEACHER = "fm"
REWEIGHTED, FLOWS = ("gan2",), ("coupling", "autoregressive")
POINTS_GEV = (1.0, 2.0, 4.0, 8.0, 16.0)
GAP, GAP_MEV = "_gap", (3000.0, 5500.0)  # generators that aren't trained there
N_OF_POINT = 4000  # generated at each energy
SEEDS = (1, 2)
GEOMETRY = segmented([(3, 96), (12, 12), (12, 6)], (480.0, 480.0), 0.1)
TRAINS, E_INC_GEV, ENTRY_MM = 0.6, (1.0, 16.0), 20.0
ENTRY = ("entry_x_mm", "entry_y_mm")
BATCHES = {1: 200, 100: 20, 10_000: 1}  # showers in a call: calls


@dataclass(frozen=True)
class Sample:
    """The file, divided.

    Args:
        path: of the file.
        xml: binning of a file in the layout of the challenge; None of photon showers of this project.
        particle: of that binning, if it has several.
        threshold_mev: of the voxels.
    """

    path: Path
    xml: Path | None = None
    particle: str | None = None
    threshold_mev: float = 0.1

    @cached_property
    def geometry(self) -> Geometry:
        """Where the cells are."""
        return GEOMETRY if self.xml is None else read_geometry(self.xml, self.particle, self.threshold_mev)

    @property
    def datasets(self) -> tuple[str, ...]:
        """What is read of the file."""
        return ("incident_energies", "showers", "entry_mm")[: 3 if self.xml is None else 2]

    @cached_property
    def trains(self) -> np.ndarray:
        """Which rows (n,) train."""
        with h5py.File(self.path) as file:
            rows = np.arange(len(file["showers"]))
        mask: np.ndarray = keys.uniform(keys.stream(keys.make_keys([rows]), "judge")) < TRAINS
        return mask

    def training(self, work: Path) -> Path:
        """File of the rows that train, with the row as a key, written unless it is there."""
        output = work / f"train_{digest(self.path)[:12]}.h5"
        if not output.exists():
            beside = output.with_suffix(".part")
            with h5py.File(self.path) as file, h5py.File(beside, "w") as out:
                for name in self.datasets:
                    out.create_dataset(name, data=file[name][:][self.trains], compression="gzip", shuffle=True)
                out.create_dataset("row", data=np.flatnonzero(self.trains))
            beside.replace(output)
        return output

    def columns(self) -> dict[str, Any]:
        """Description of the file."""
        told: dict[str, Any] = yaml.safe_load((CONFIGS / "photon_columns.yaml").read_text()) | {"key": ["row"]}
        if self.xml is not None:
            told["features"]["showers"]["shape"] = [self.geometry.n_cells]
            told["context"] = {"e_inc_gev": told["context"]["e_inc_gev"]}
            told["showers"] = {"geometry": self.geometry.to_dict(), "e_inc": "e_inc_gev"}
        return told

    def judges(self) -> Showers:
        """The rows that don't train."""
        return self.rows(~self.trains)

    def rows(self, which: np.ndarray) -> Showers:
        """Rows where this mask (n,) is true."""
        with h5py.File(self.path) as file:
            e_inc, cells, *entry = (file[name][:][which] for name in self.datasets)
        key = keys.make_keys([np.flatnonzero(which)])
        entry_mm = entry[0].astype(np.float64) if entry else np.empty((len(key), 0))
        return Showers(cells, e_inc.reshape(-1).astype(np.float64), np.ones(len(key)), key, entry_mm)

    @cached_property
    def energies(self) -> np.ndarray:
        """Incident energies (n,) of the judging showers, MeV."""
        with h5py.File(self.path) as file:
            return np.asarray(file["incident_energies"][:].reshape(-1)[~self.trains], np.float64)

    def conditions(self, n: int, seed: int) -> dict[str, np.ndarray]:
        """Conditions (n,): of the distribution of the sample, or, with an XML, those of the judging showers."""
        return fresh(n, seed) if self.xml is None else {"e_inc_gev": np.resize(self.energies, n) / 1000}

    def generated(self, simulator: Simulator, reference: Showers, seed: int) -> Showers:
        """As many showers as the reference has, which are its judging ones."""
        n = len(reference.key)
        at = self.conditions(n, seed)
        own = keys.stream(keys.make_keys([np.arange(n)]), "generated", seed=seed)
        cells = simulator.sample(at, seed=seed)["showers"]
        entry = [at[name] for name in ENTRY if name in at]
        entry_mm = np.column_stack(entry) if entry else np.empty((n, 0))
        key = own if self.xml is None else reference.key
        return Showers(cells, 1000 * at["e_inc_gev"], np.ones(n), key, entry_mm)


def conditions_of(showers: Showers) -> dict[str, np.ndarray]:
    """Conditions (n,) of given showers."""
    return {"e_inc_gev": showers.e_inc / 1000} | dict(zip(ENTRY, showers.entry_mm.T, strict=False))


def fresh(n: int, seed: int) -> dict[str, np.ndarray]:
    """Conditions (n,) of the distribution of the photons."""
    rng = np.random.default_rng([20261130, seed])
    e_inc = np.exp(rng.uniform(*np.log(E_INC_GEV), n))
    x, y = rng.uniform(-ENTRY_MM, ENTRY_MM, (2, n))
    return {"e_inc_gev": e_inc, "entry_x_mm": x, "entry_y_mm": y}


def canonical(cells: np.ndarray, entry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Showers and entry points in the canonical frame of the photons' detector."""
    frame, points = Frame(GEOMETRY), torch.from_numpy(entry)
    return frame.canonical(torch.from_numpy(cells), points).numpy(), frame.entry(points).numpy()


def tests(made: Showers, reference: Showers, sample: Sample) -> dict[str, ShowerTest]:
    """The classifiers: three, and with an XML the challenge's on two kinds of inputs."""
    geometry, both = sample.geometry, (made, reference)
    frame = canonical if sample.xml is None else same_frame
    linear = [linear_inputs(one, geometry) for one in both]
    found = {
        "lin": network_test(*linear, SMALL),
        "frame": network_test(*(frame_inputs(one, geometry, frame=frame) for one in both), SMALL),
        "high": boosting_test(*(high_level(one, geometry) for one in both)),
    }
    if sample.xml is not None:
        features = (challenge_features(one, geometry) for one in both)
        found |= {
            "challenge_low": network_test(*linear, CHALLENGE),
            "challenge_high": network_test(*features, CHALLENGE),
        }
    return found


def corrected(simulator: Simulator, seed: int, sample: Sample, made: Showers) -> np.ndarray:
    """Weights (n,) of made showers, by trees on the high-level features that never saw the judging rows."""
    train, geometry = sample.rows(sample.trains), sample.geometry
    cells = simulator.sample(conditions_of(train), seed=1000 + seed)["showers"]
    twins = Showers(cells, train.e_inc, train.weight, train.key, train.entry_mm)
    rows = [
        WeightedRows(points.values.astype(np.float32), points.weight, points.key)
        for points in (high_level(twins, geometry), high_level(train, geometry))
    ]
    ratio = fit_ratio(rows[0], rows[1], BoostingRatio(n_trees=300, max_leaf_nodes=16), seed=seed)
    return np.exp(ratio(high_level(made, geometry).values.astype(np.float32)))


def width_over_all(made: Showers, reference: Showers, geometry: Geometry) -> tuple[float, float]:
    """Standard deviation of the response, less its mean at that energy and times the root of it, over the reference's.

    The mean is that of the reference, a cubic polynomial of the energy's logarithm, for both.  Less 1, and its error.
    """
    values = [shower_observables.evaluate("response", one.cells, geometry, one.e_inc) for one in (made, reference)]
    mean = np.polynomial.Polynomial.fit(np.log(reference.e_inc), values[1], 3)
    pulls = [
        (r - mean(np.log(one.e_inc))) * np.sqrt(one.e_inc / 1000)
        for r, one in zip(values, (made, reference), strict=True)
    ]
    widths, variances = zip(*map(width_with_error, pulls), strict=True)
    return widths[0] / widths[1] - 1, float(np.sqrt(sum(variances)))


def width_with_error(values: np.ndarray) -> tuple[float, float]:
    """Standard deviation of values (n,), and the square of its relative error."""
    away = values - values.mean()
    variance = float(np.mean(away**2))
    return variance**0.5, float(np.mean(away**4) / variance**2 - 1) / (4 * len(values))


def responses(simulator: Simulator, points: Path) -> dict[str, Any]:
    """Mean and standard deviation of the response at each energy of a file, generated over Geant4, with their errors.

    The errors are those of the file's showers; generated are ten times as many.
    """
    with h5py.File(points) as file:
        cells, e_inc, entry = (file[name][:] for name in ("showers", "incident_energies", "entry_mm"))
    told: dict[str, Any] = {}
    pulled = []
    for energy in POINTS_GEV:
        rows = np.isclose(e_inc[:, 0], 1000 * energy)
        which = np.resize(np.flatnonzero(rows), N_OF_POINT)
        at = {"e_inc_gev": np.full(N_OF_POINT, energy), "entry_x_mm": entry[which, 0], "entry_y_mm": entry[which, 1]}
        made = shower_observables.evaluate("e_tot", simulator.sample(at, seed=1)["showers"], GEOMETRY)
        true = shower_observables.evaluate("e_tot", cells[rows], GEOMETRY)
        n = len(true)
        told[f"mean_{energy:g}"] = made.mean() / true.mean() - 1
        told[f"mean_error_{energy:g}"] = true.std(ddof=1) / true.mean() / n**0.5
        told[f"width_{energy:g}"] = made.std(ddof=1) / true.std(ddof=1) - 1
        told[f"width_error_{energy:g}"] = 1 / (2 * (n - 1)) ** 0.5
        pulled.append((told[f"width_{energy:g}"], told[f"width_error_{energy:g}"] ** -2))
    value, weight = np.array(pulled).T
    return told | {"width": float(value @ weight / weight.sum()), "width_error": float(weight.sum() ** -0.5)}


def gained(simulator: Simulator, reference: Showers) -> tuple[float, float]:
    """By how many nats a shower is more probable than with independent cells of the same energies, and its error.

    Where the recipe has a likelihood of whole showers; of couplings it is the density of their network values, before
    layers are scaled, with cells without a hit spread.
    """
    model: Any = simulator.model
    gain = whole_gains if simulator.has_likelihood else network_gains
    context = np.column_stack([reference.e_inc / 1000, reference.entry_mm]).astype(np.float32)
    with torch.no_grad():
        gains = [
            gain(model, torch.from_numpy(reference.cells[rows]), torch.from_numpy(context[rows]))
            for rows in np.array_split(np.arange(len(context)), max(1, len(context) // 500))
        ]
    found = torch.cat(gains).double()
    return float(found.mean()), float(found.std() / len(found) ** 0.5)


def whole_gains(model: Any, cells: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Log likelihoods (n,) of showers over those with independent cells."""
    first, own = model.features.in_steps(cells, context)
    given = torch.cat([model.context(context), model.features.first_map(first, context)], dim=1)
    gains: torch.Tensor = model.then.log_prob(own, given) - model.then.log_prob(own, given, independent=True)
    return gains


def network_gains(model: Any, cells: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Log densities (n,) of network values of cells over those of normal numbers."""
    batch = Batch(cells, context, torch.ones(len(cells)))
    _, own = model.divided(model.to_network(batch, torch.Generator().manual_seed(0)))
    gains: torch.Tensor = model.then.network_log_prob(own.x, own.context) - standard_normal_log_prob(own.x)
    return gains


def milliseconds(simulator: Simulator, sample: Sample) -> dict[int, float]:
    """CPU milliseconds per shower in calls of 1, 100 and 10 000."""
    times = {}
    for n, calls in BATCHES.items():
        at = sample.conditions(n, 99)
        simulator.sample(at, seed=0)
        start = time.process_time()
        for seed in range(calls):
            simulator.sample(at, seed=seed)
        times[n] = 1000 * (time.process_time() - start) / (n * calls)
    return times


def configuration(label: str, sample: Sample, work: Path) -> dict[str, Any]:
    """The shipped configuration for this file, without the showers of the gap where they are left out."""
    name = (GENERATORS | OTHERS)[label.removesuffix(GAP)]
    told: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    told["data"] |= {"files": str(sample.training(work)), "columns": sample.columns()}
    if label.endswith(GAP):
        low, high = GAP_MEV
        told["data"]["columns"]["cut"] = f"(incident_energies < {low}) || (incident_energies > {high})"
    options = told["model"]["init_args"]
    cells = options.get("then", {}).get("init_args", {})
    if "latent_size" in cells:
        cells["latent_size"] = sample.geometry.n_cells
    if "latent_size" in options:  # a network value for the energy of each layer, too
        options["latent_size"] = sample.geometry.n_cells + len(sample.geometry.layers)
    return told


def train(label: str, seed: int, sample: Sample, work: Path) -> Path:
    """Train a configuration on the rows that train, unless that is done; return the checkpoint."""
    told = configuration(label, sample, work)
    if label == "student":
        told["model"]["init_args"]["teacher"] = str(train(TEACHER, seed, sample, work))
    return fitted(label, told, seed, work)


def fitted(label: str, told: dict[str, Any], seed: int, work: Path) -> Path:
    """Train as this configuration tells, unless that is done; return the checkpoint, with the CPU seconds beside."""
    content = json.dumps([told["data"], told["model"], told["trainer"], seed, digest(Path(told["data"]["files"]))])
    checkpoint = work / f"{label}_{seed}_{sha256(content.encode()).hexdigest()[:12]}.ckpt"
    if not checkpoint.exists():
        config = checkpoint.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(told))
        arguments = ["fit", "-c", str(config), "--runs", str(work / "runs" / label), "--seed_everything", str(seed)]
        start = time.process_time()
        finished = lightning([*arguments, "--threads", "1", "--trainer.enable_progress_bar", "false"])
        seconds = time.process_time() - start
        Simulator.load(finished.run_dir / "checkpoints" / "best.ckpt").save(checkpoint)
        checkpoint.with_suffix(".seconds").write_text(f"{seconds:.0f}")
    return checkpoint


def judged(label: str, seed: int, sample: Sample, work: Path, points: Path | None) -> dict[str, Any]:
    """Train and judge one generator, unless that is done; one without the showers of the gap by the points alone."""
    torch.set_num_threads(1)
    checkpoint = train(label, seed, sample, work)
    record = checkpoint.with_suffix(".json")
    if not record.exists():
        told = {} if label.endswith(GAP) else compared(label, seed, Simulator.load(checkpoint), sample)
        record.write_text(json.dumps(told | {"seconds": float(checkpoint.with_suffix(".seconds").read_text())}))
    result: dict[str, Any] = json.loads(record.read_text())
    if points is not None and "points" not in result:
        result["points"] = responses(Simulator.load(checkpoint), points)
        record.write_text(json.dumps(result))
    return result


def compared(label: str, seed: int, simulator: Simulator, sample: Sample) -> dict[str, Any]:
    """What the judging showers say of a generator."""
    reference, geometry = sample.judges(), sample.geometry
    made = sample.generated(simulator, reference, seed)
    found = tests(made, reference, sample)
    told: dict[str, Any] = {"auc": {name: test.separation.auc for name, test in found.items()}}
    told["auc_error"] = {name: test.separation.auc_error for name, test in found.items()}
    told["jsd"] = {name: test.separation.jsd for name, test in found.items()}
    told |= {"ms": milliseconds(simulator, sample), "n": len(reference.key)}
    told["width_all"], told["width_all_error"] = width_over_all(made, reference, geometry)
    if label in FLOWS:
        told["gain_nats"], told["gain_nats_error"] = gained(simulator, reference)
    if label in REWEIGHTED:
        weight = corrected(simulator, seed, sample, made)
        test = boosting_test(high_level(replace(made, weight=weight), geometry), high_level(reference, geometry))
        told |= {"auc_high_reweighted": test.separation.auc, "n_eff": stats.n_eff(weight) / len(weight)}
    return told


def floors(sample: Sample) -> dict[str, float]:
    """AUCs of one half of the judging showers against the other."""
    reference = sample.judges()
    first = keys.uniform(keys.stream(reference.key, "floor")) < 0.5
    found = tests(reference.take(first), reference.take(~first), sample)
    return {f"auc_floor_{name}": test.separation.auc for name, test in found.items()}


def figures(results: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The worse seed's of each figure."""
    told: dict[str, float] = {}
    for label, seeds in results.items():
        told |= gap_of(seeds) if label.endswith(GAP) else figures_of(label, seeds)
    return told | better_flow(told)


def figures_of(label: str, seeds: list[dict[str, Any]]) -> dict[str, float]:
    """The worse seed's of each figure of a generator; times of the first seed, and the longest training."""
    told = {f"auc_{label}_{name}": max(one["auc"][name] for one in seeds) for name in seeds[0]["auc"]}
    challenge = [name for name in seeds[0]["jsd"] if name.startswith("challenge")]
    told |= {f"jsd_{label}_{name}": max(one["jsd"][name] for one in seeds) for name in challenge}
    told |= {f"ms_{label}_{n}": value for n, value in seeds[0]["ms"].items()}
    told[f"fit_seconds_{label}"] = max(one["seconds"] for one in seeds)
    told[f"response_width_all_{label}"] = max((one["width_all"] for one in seeds), key=abs)
    told[f"response_width_all_error_{label}"] = max(one["width_all_error"] for one in seeds)
    if label in FLOWS:
        told[f"gain_nats_{label}"] = min(one["gain_nats"] for one in seeds)
    if label in REWEIGHTED:
        told[f"auc_{label}_high_reweighted"] = max(one["auc_high_reweighted"] for one in seeds)
        told[f"n_eff_{label}"] = min(one["n_eff"] for one in seeds)
    for name in seeds[0].get("points", ()):
        told[f"response_{name}_{label}"] = max((one["points"][name] for one in seeds), key=abs)
    return told


def gap_of(seeds: list[dict[str, Any]]) -> dict[str, float]:
    """The worse seed's response at the point that is left out of training."""
    names = ("mean_4", "mean_error_4", "width_4", "width_error_4")
    return {f"response_gap_{name}": max((one["points"][name] for one in seeds), key=abs) for name in names}


def better_flow(told: dict[str, float]) -> dict[str, float]:
    """AUCs of the flow whose `_high` is the lower, for `auc_flow_...`; those of couplings under their own name."""
    flows = [label for label in FLOWS if f"auc_{label}_high" in told]
    if not flows:
        return {}
    best = min(flows, key=lambda label: told[f"auc_{label}_high"])
    aucs = {name.replace(best, "flow", 1): value for name, value in told.items() if name.startswith(f"auc_{best}_")}
    return aucs | {f"ms_flow_{n}": told[f"ms_coupling_{n}"] for n in BATCHES if "coupling" in flows}


def main() -> None:
    """Train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="photon showers")
    parser.add_argument("--work", type=Path, default=Path("showers"), help="folder that keeps what is finished")
    parser.add_argument("--points", type=Path, help="photon showers of fixed energies, for the response at each")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only", nargs="*", help="generators, or generator:seed; all, and the floors, if left out")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--xml", type=Path, help="binning of a file in the layout of the CaloChallenge")
    parser.add_argument("--particle", help="of the binning, if it has several")
    parser.add_argument("--threshold-mev", type=float, default=0.01515, help="of its voxels; data sets 2 and 3's")
    options = parser.parse_args()
    if options.xml and (options.points or options.threshold_mev <= 0):
        parser.error("--xml goes without --points, and with a --threshold-mev above 0")
    if not options.points and any(GAP in one for one in options.only or ()):
        parser.error(f"a generator with {GAP} needs --points")
    options.work.mkdir(parents=True, exist_ok=True)
    told = (options.xml, options.particle, options.threshold_mev) if options.xml else ()
    sample = Sample(options.file, *told)
    sample.training(options.work)
    large = sample.geometry.n_cells > MOST_CELLS
    wanted = options.only or [name for name in GENERATORS if not (large and name == "autoregressive")]
    jobs = [
        (one.partition(":")[0], seed) for one in wanted for seed in SEEDS if one.partition(":")[2] in ("", str(seed))
    ]
    results: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(judged, *job, sample, options.work, options.points) for job in jobs]
        for (label, seed), future in zip(jobs, futures, strict=True):
            results.setdefault(label, []).append(future.result())
            print(label, seed, json.dumps(future.result()), flush=True)
    found = figures(results) | ({} if options.only else floors(sample))
    for key, value in found.items():
        print(f"{key:>30} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
