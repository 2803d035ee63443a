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
says by how much the judging showers' cells are more probable than independent ones with the same energies.  With
`--points` mean and standard deviation of the response are compared with Geant4's at fixed energies.

    python benchmarks/showers.py FILE --points POINTS --work W --workers 2 --json showers.json
    python benchmarks/showers.py FILE --work W --only coupling:1 --json part.json

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

from calorefine import keys, shower_observables, stats
from calorefine.data.batches import Batch
from calorefine.data.frame import Frame
from calorefine.fit.command import lightning
from calorefine.geometry import segmented
from calorefine.io.provenance import digest
from calorefine.models.density import standard_normal_log_prob
from calorefine.reweighting import BoostingRatio
from calorefine.reweighting.ratio import WeightedRows, fit_ratio
from calorefine.simulator import Simulator
from calorefine.twosample.shower_classifier import ShowerTest, boosting_test, network_test
from calorefine.twosample.showers import Showers, frame_inputs, high_level, linear_inputs

CONFIGS = Path(__file__).parent.parent / "configs" / "showers"
GENERATORS = {
    "coupling": "shower_flow",
    "autoregressive": "shower_autoregressive",
    "fm": "flow_matching",
    "vae": "vae",
    "gan2": "two_step_gan",
    "gan1": "atlas_gan",
}
REWEIGHTED, FLOWS = ("gan2",), ("coupling", "autoregressive")
POINTS_GEV = (1.0, 2.0, 4.0, 8.0, 16.0)
N_OF_POINT = 4000  # generated at each energy
SEEDS = (1, 2)
GEOMETRY = segmented([(3, 96), (12, 12), (12, 6)], (480.0, 480.0), 0.1)
TRAINS, E_INC_GEV, ENTRY_MM = 0.6, (1.0, 16.0), 20.0
BATCHES = {1: 200, 100: 20, 10_000: 1}  # showers in a call: calls
TESTS = ("lin", "frame", "high")


@dataclass(frozen=True)
class Sample:
    """The file, divided.

    Args:
        path: of the file.
    """

    path: Path

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
                for name in ("incident_energies", "showers", "entry_mm"):
                    out.create_dataset(name, data=file[name][:][self.trains], compression="gzip", shuffle=True)
                out.create_dataset("row", data=np.flatnonzero(self.trains))
            beside.replace(output)
        return output

    def judges(self) -> Showers:
        """The rows that don't train."""
        return self.rows(~self.trains)

    def rows(self, which: np.ndarray) -> Showers:
        """Rows where this mask (n,) is true."""
        with h5py.File(self.path) as file:
            cells, e_inc, entry = (file[name][:][which] for name in ("showers", "incident_energies", "entry_mm"))
        key = keys.make_keys([np.flatnonzero(which)])
        return Showers(cells, e_inc[:, 0].astype(np.float64), np.ones(len(key)), key, entry.astype(np.float64))


def fresh(n: int, seed: int) -> dict[str, np.ndarray]:
    """Conditions (n,) of the distribution of the sample."""
    rng = np.random.default_rng([20261130, seed])
    e_inc = np.exp(rng.uniform(*np.log(E_INC_GEV), n))
    x, y = rng.uniform(-ENTRY_MM, ENTRY_MM, (2, n))
    return {"e_inc_gev": e_inc, "entry_x_mm": x, "entry_y_mm": y}


def generated(simulator: Simulator, n: int, seed: int) -> Showers:
    """As many showers at fresh conditions."""
    at = fresh(n, seed)
    cells = simulator.sample(at, seed=seed)["showers"]
    key = keys.stream(keys.make_keys([np.arange(n)]), "generated", seed=seed)
    return Showers(
        cells, 1000 * at["e_inc_gev"], np.ones(n), key, np.column_stack([at["entry_x_mm"], at["entry_y_mm"]])
    )


def canonical(cells: np.ndarray, entry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Showers and entry points in the canonical frame."""
    frame, points = Frame(GEOMETRY), torch.from_numpy(entry)
    return frame.canonical(torch.from_numpy(cells), points).numpy(), frame.entry(points).numpy()


def tests(made: Showers, reference: Showers) -> dict[str, ShowerTest]:
    """The three classifiers."""
    networks = {
        "lin": [linear_inputs(one, GEOMETRY) for one in (made, reference)],
        "frame": [frame_inputs(one, GEOMETRY, frame=canonical) for one in (made, reference)],
    }
    found = {name: network_test(first, second) for name, (first, second) in networks.items()}
    return found | {"high": boosting_test(high_level(made, GEOMETRY), high_level(reference, GEOMETRY))}


def corrected(simulator: Simulator, seed: int, sample: Sample, made: Showers) -> np.ndarray:
    """Weights (n,) of made showers, by trees on the high-level features that never saw the judging rows."""
    train = sample.rows(sample.trains)
    at = {"e_inc_gev": train.e_inc / 1000, "entry_x_mm": train.entry_mm[:, 0], "entry_y_mm": train.entry_mm[:, 1]}
    cells = simulator.sample(at, seed=1000 + seed)["showers"]
    twins = Showers(cells, train.e_inc, train.weight, train.key, train.entry_mm)
    rows = [
        WeightedRows(points.values.astype(np.float32), points.weight, points.key)
        for points in (high_level(twins, GEOMETRY), high_level(train, GEOMETRY))
    ]
    ratio = fit_ratio(rows[0], rows[1], BoostingRatio(n_trees=300, max_leaf_nodes=16), seed=seed)
    return np.exp(ratio(high_level(made, GEOMETRY).values.astype(np.float32)))


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
    """By how many nats a shower's cells are more probable than independent ones with the same energies, and its error.

    Where the recipe of the cells has a density; cells without a hit are spread for flows that need it.
    """
    model: Any = simulator.model
    context = np.column_stack([reference.e_inc / 1000, reference.entry_mm]).astype(np.float32)
    gains = []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(context)), len(context) // 500):
            batch = Batch(
                torch.from_numpy(reference.cells[rows]), torch.from_numpy(context[rows]), torch.ones(len(rows))
            )
            _, own = model.divided(model.to_network(batch, torch.Generator().manual_seed(0)))
            gains.append(model.then.network_log_prob(own.x, own.context) - standard_normal_log_prob(own.x))
    gain = torch.cat(gains).double()
    return float(gain.mean()), float(gain.std() / len(gain) ** 0.5)


def milliseconds(simulator: Simulator) -> dict[int, float]:
    """CPU milliseconds per shower in calls of 1, 100 and 10 000."""
    times = {}
    for n, calls in BATCHES.items():
        at = fresh(n, 99)
        simulator.sample(at, seed=0)
        start = time.process_time()
        for seed in range(calls):
            simulator.sample(at, seed=seed)
        times[n] = 1000 * (time.process_time() - start) / (n * calls)
    return times


def train(label: str, seed: int, sample: Sample, work: Path) -> Path:
    """Train a configuration on the rows that train, unless that is done; return the checkpoint."""
    config = CONFIGS / f"{GENERATORS[label]}.yaml"
    told = json.dumps([config.read_text(), (CONFIGS / "photon_columns.yaml").read_text(), seed, digest(sample.path)])
    checkpoint = work / f"{label}_{seed}_{sha256(told.encode()).hexdigest()[:12]}.ckpt"
    if not checkpoint.exists():
        arguments = [
            "fit",
            "-c",
            str(config),
            "--data.files",
            str(sample.training(work)),
            "--data.columns.key",
            "[row]",
        ]
        arguments += ["--runs", str(work / "runs" / label), "--seed_everything", str(seed), "--threads", "1"]
        start = time.process_time()
        finished = lightning([*arguments, "--trainer.enable_progress_bar", "false"])
        seconds = time.process_time() - start
        Simulator.load(finished.run_dir / "checkpoints" / "best.ckpt").save(checkpoint)
        checkpoint.with_suffix(".seconds").write_text(f"{seconds:.0f}")
    return checkpoint


def judged(label: str, seed: int, path: Path, work: Path, points: Path | None) -> dict[str, Any]:
    """Train and judge one generator, unless that is done."""
    torch.set_num_threads(1)
    sample = Sample(path)
    checkpoint = train(label, seed, sample, work)
    record = checkpoint.with_suffix(".json")
    if not record.exists():
        simulator, reference = Simulator.load(checkpoint), sample.judges()
        made = generated(simulator, len(reference.key), seed)
        found = tests(made, reference)
        told: dict[str, Any] = {f"auc_{name}": test.separation.auc for name, test in found.items()}
        told |= {f"auc_error_{name}": test.separation.auc_error for name, test in found.items()}
        told |= {"ms": milliseconds(simulator), "n": len(reference.key)}
        if label in FLOWS:
            told["gain_nats"], told["gain_nats_error"] = gained(simulator, reference)
        if label in REWEIGHTED:
            weight = corrected(simulator, seed, sample, made)
            test = boosting_test(high_level(replace(made, weight=weight), GEOMETRY), high_level(reference, GEOMETRY))
            told |= {"auc_high_reweighted": test.separation.auc, "n_eff": stats.n_eff(weight) / len(weight)}
        record.write_text(json.dumps(told | {"seconds": float(checkpoint.with_suffix(".seconds").read_text())}))
    result: dict[str, Any] = json.loads(record.read_text())
    if points is not None and "points" not in result:
        result["points"] = responses(Simulator.load(checkpoint), points)
        record.write_text(json.dumps(result))
    return result


def floors(sample: Sample) -> dict[str, float]:
    """AUCs of one half of the judging showers against the other."""
    reference = sample.judges()
    first = keys.uniform(keys.stream(reference.key, "floor")) < 0.5
    return {f"auc_floor_{k}": t.separation.auc for k, t in tests(reference.take(first), reference.take(~first)).items()}


def figures(results: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The worse seed's of each AUC; times of the first seed, and the longest training."""
    told: dict[str, float] = {}
    for label, seeds in results.items():
        told |= {f"auc_{label}_{name}": max(one[f"auc_{name}"] for one in seeds) for name in TESTS}
        told |= {f"ms_{label}_{n}": value for n, value in seeds[0]["ms"].items()}
        told[f"fit_seconds_{label}"] = max(one["seconds"] for one in seeds)
        if label in FLOWS:
            told[f"gain_nats_{label}"] = min(one["gain_nats"] for one in seeds)
        if label in REWEIGHTED:
            told[f"auc_{label}_high_reweighted"] = max(one["auc_high_reweighted"] for one in seeds)
            told[f"n_eff_{label}"] = min(one["n_eff"] for one in seeds)
        for name in seeds[0].get("points", ()):
            told[f"response_{name}_{label}"] = max((one["points"][name] for one in seeds), key=abs)
    return told | better_flow(told)


def better_flow(told: dict[str, float]) -> dict[str, float]:
    """AUCs of the flow whose `_high` is the lower, for `auc_flow_...`; those of couplings under their own name."""
    flows = [label for label in FLOWS if f"auc_{label}_high" in told]
    if not flows:
        return {}
    best = min(flows, key=lambda label: told[f"auc_{label}_high"])
    return {f"auc_flow_{name}": told[f"auc_{best}_{name}"] for name in TESTS} | {
        f"ms_flow_{n}": told[f"ms_coupling_{n}"] for n in BATCHES if "coupling" in flows
    }


def main() -> None:
    """Train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="photon showers")
    parser.add_argument("--work", type=Path, default=Path("showers"), help="folder that keeps what is finished")
    parser.add_argument("--points", type=Path, help="photon showers of fixed energies, for the response at each")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only", nargs="*", help="generators, or generator:seed; all, and the floors, if left out")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sample = Sample(options.file)
    sample.training(options.work)
    wanted = options.only or list(GENERATORS)
    jobs = [
        (one.partition(":")[0], seed) for one in wanted for seed in SEEDS if one.partition(":")[2] in ("", str(seed))
    ]
    results: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(judged, *job, options.file, options.work, options.points) for job in jobs]
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
