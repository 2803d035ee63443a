"""How fast is sampling, and how much memory does it take?  For an untrained default generator: weights don't change it.

    python benchmarks/sampling.py --json sampling.json
    python benchmarks/sampling.py --config conditional_flow          (about a quarter of an hour)

Prints events per second in memory on one core (noise, network, inverse transform), from ROOT file to ROOT file
(reading, sampling, writing), and the peak memory of a process that samples 5 million conditions from file to file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import uproot

from calorefine.fit.command import lightning
from calorefine.simulator import Simulator
from calorefine.verbs.sample import sample_file

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, CALIBRATION = ROOT / "configs", ROOT / "examples" / "data" / "electron_calibration.root"
N_IN_MEMORY, N_FILE, N_LARGE = 1_000_000, 1_000_000, 5_000_000
REPETITIONS = 5


def conditions(n: int, seed: int) -> dict[str, np.ndarray]:
    """Conditions like those of a fast simulation, with their keys and two branches to carry along."""
    rng = np.random.default_rng(seed)
    return {
        "run": np.ones(n, np.uint32),
        "event": np.arange(n, dtype=np.uint64),
        "p_gev": rng.uniform(1, 16, n).astype(np.float32),
        "x_in_cell_mm": rng.uniform(0, 40, n).astype(np.float32),
        "n_pv": rng.poisson(40, n).astype(np.int32),
        "eta": rng.uniform(-1.4, 1.4, n).astype(np.float32),
        "pair_id": np.arange(n) // 2,
    }


def write_conditions(path: Path, n: int) -> None:
    """Write a file of conditions in portions."""
    with uproot.recreate(path) as file:
        tree = None
        for seed in range(n // 500_000):
            part = conditions(500_000, seed)
            part["event"] += np.uint64(seed * 500_000)
            tree = tree or file.mktree("events", {name: values.dtype for name, values in part.items()})
            tree.extend(part)


def checkpoint(folder: Path, config: str) -> Path:
    """Train a shipped configuration for one epoch."""
    arguments = ["fit", "-c", str(CONFIGS / f"{config}.yaml"), "--runs", str(folder), "--data.files", str(CALIBRATION)]
    arguments += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    run = lightning([*arguments, "--trainer.enable_progress_bar", "false"]).run_dir
    return run / "checkpoints" / "best.ckpt"


def in_memory_rate(path: Path) -> float:
    """Events per second of `Simulator.sample`, the best of several repetitions."""
    simulator, given = Simulator.load(path), conditions(N_IN_MEMORY, 1)
    context = {name: given[name] for name in simulator.columns.context}
    times = []
    for repetition in range(REPETITIONS):
        start = time.perf_counter()
        simulator.sample(context, seed=repetition)
        times.append(time.perf_counter() - start)
    return N_IN_MEMORY / min(times)


def file_rate(path: Path, folder: Path) -> float:
    """Events per second from file to file, the best of several repetitions."""
    write_conditions(folder / "conditions.root", N_FILE)
    return max(sample(path, folder / "conditions.root", folder / f"{k}.root") for k in range(3))


def sample(path: Path, source: Path, output: Path) -> float:
    """Sample a file; return events per second."""
    done = sample_file(checkpoint=str(path), conditions=str(source), output=str(output), pass_through="eta,pair_id")
    return done.n_generated / done.seconds


def peak_memory_gb(path: Path, folder: Path) -> float:
    """Peak resident memory of a new process that samples a large file."""
    write_conditions(folder / "large.root", N_LARGE)
    files = [str(folder / name) for name in ("large.root", "large_out.root")]
    command = [sys.executable, __file__, "--child", str(path), *files]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--config", default="weighted_wgan", help="name of a shipped configuration")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        sample(*options.child)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = checkpoint(folder, options.config)
        figures = {
            "in_memory_events_per_s": in_memory_rate(path),
            "root_to_root_events_per_s": file_rate(path, folder),
            "peak_memory_gb": peak_memory_gb(path, folder),
        }
    for key, value in figures.items():
        print(f"{key:>30} {value:,.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
