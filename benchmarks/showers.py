"""How near are generated photon showers to Geant4's?  Trains generators of 504 cells, and asks three classifiers.

The rows of FILE (20 000 photons, log-uniform from 1 to 16 GeV, entering within 20 mm of the center) are divided by a
hash of their number: 60 % train, a tenth of them held out, and the others judge alone, against as many that are
generated at fresh conditions of the same distribution.  Cells below 0.1 MeV count as 0 on both sides.

An AUC is the mean of three trainings of a classifier, and a key's the worse of two seeds of the generator:

lin     a network (2 x 512) on cells over the incident energy, and its logarithm
frame   the same on log(1 + cell / 0.1 MeV), layer and incident energies, entry point, in the canonical frame
high    boosted trees on response, depth and, layer by layer, energy, mean, width, occupancy, shares of hottest cells

`ms_<name>_<batch>` are CPU milliseconds per shower in calls of so many, one thread, the inverse preprocessing included.

    python benchmarks/showers.py FILE --work W --workers 2 --json showers.json
    python benchmarks/showers.py FILE --work W --only flow:1 --json part.json

Trainings and judgments that are finished are kept in W, each under the digest of its configuration, seed and data.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from calorefine import keys
from calorefine.data.frame import Frame
from calorefine.fit.command import lightning
from calorefine.geometry import segmented
from calorefine.io.provenance import digest
from calorefine.simulator import Simulator
from calorefine.twosample.shower_classifier import ShowerTest, boosting_test, network_test
from calorefine.twosample.showers import Showers, frame_inputs, high_level, linear_inputs

CONFIGS = Path(__file__).parent.parent / "configs" / "showers"
GENERATORS = {"flow": "shower_flow", "fm": "flow_matching", "vae": "vae"}
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
        """The other rows."""
        with h5py.File(self.path) as file:
            cells, e_inc, entry = (file[name][:][~self.trains] for name in ("showers", "incident_energies", "entry_mm"))
        key = keys.make_keys([np.flatnonzero(~self.trains)])
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
    found = {name: network_test(*inputs) for name, inputs in networks.items()}
    return found | {"high": boosting_test(high_level(made, GEOMETRY), high_level(reference, GEOMETRY))}


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


def judged(label: str, seed: int, path: Path, work: Path) -> dict[str, Any]:
    """Train and judge one generator, unless that is done."""
    torch.set_num_threads(1)
    sample = Sample(path)
    checkpoint = train(label, seed, sample, work)
    record = checkpoint.with_suffix(".json")
    if not record.exists():
        simulator, reference = Simulator.load(checkpoint), sample.judges()
        found = tests(generated(simulator, len(reference.key), seed), reference)
        told: dict[str, Any] = {f"auc_{name}": test.separation.auc for name, test in found.items()}
        told |= {f"auc_error_{name}": test.separation.auc_error for name, test in found.items()}
        told |= {"ms": milliseconds(simulator), "n": len(reference.key)}
        record.write_text(json.dumps(told | {"seconds": float(checkpoint.with_suffix(".seconds").read_text())}))
    result: dict[str, Any] = json.loads(record.read_text())
    return result


def floors(sample: Sample) -> dict[str, float]:
    """AUCs of one half of the judging showers against the other."""
    reference = sample.judges()
    first = keys.uniform(keys.stream(reference.key, "floor")) < 0.5
    return {f"auc_floor_{k}": t.separation.auc for k, t in tests(reference.take(first), reference.take(~first)).items()}


def figures(results: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The worse seed's of each AUC; times of the first seed, and the longest training."""
    told = {}
    for label, seeds in results.items():
        told |= {f"auc_{label}_{name}": max(one[f"auc_{name}"] for one in seeds) for name in TESTS}
        told |= {f"ms_{label}_{n}": value for n, value in seeds[0]["ms"].items()}
        told[f"fit_seconds_{label}"] = max(one["seconds"] for one in seeds)
    return told


def main() -> None:
    """Train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="photon showers")
    parser.add_argument("--work", type=Path, default=Path("showers"), help="folder that keeps what is finished")
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
        futures = [pool.submit(judged, *job, options.file, options.work) for job in jobs]
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
