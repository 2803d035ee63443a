"""Do ensembles survive being killed?  SIGKILL at random moments, then once more to the end.

On an analytic toy, an ensemble (nominal, three replicas, one seed; two processes) runs once undisturbed.  Then it is
started in a new folder, killed with all its processes after a random time, five times in a row, and started once more.
The parameters of all members must be the same to the last bit.  `workflow_kills.py` does this to the workflow.

    python benchmarks/ensemble_kills.py --json kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uproot
import yaml

from calorefine import Simulator
from calorefine.datasets import ImpureToy

N_KILLS = 5
SHAPES = {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}}
SPLOT = {"spectator": "m", "range": [0, 1], "species": SHAPES}
COLUMNS = {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]}


def write_toy(folder: Path) -> None:
    """Data and configuration."""
    table = ImpureToy(fraction=0.4, resolution=0.05).generate(3000, seed=1)
    with uproot.recreate(folder / "calibration.root") as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    data = {"files": str(folder / "calibration.root"), "tree": "events", "columns": COLUMNS, "batch_size": 256}
    data["weights"] = {"class_path": "SPlot", "init_args": SPLOT}
    model = {"class_path": "WGAN", "init_args": {"generator_hidden": [32], "critic_hidden": [32]}}
    trainer = {"accelerator": "cpu", "max_epochs": 60, "check_val_every_n_epoch": 10, "log_every_n_steps": 50}
    content = {"seed_everything": 1, "data": data, "model": model, "trainer": trainer}
    (folder / "fit.yaml").write_text(yaml.safe_dump(content))


def ensemble_command(folder: Path, output: Path) -> list[str]:
    """The ensemble on the toy."""
    code = "from calorefine.cli import calorefine_main; calorefine_main()"
    options = ["--fit", str(folder / "fit.yaml"), "--output", str(output), "--replicas", "3", "--seeds", "1"]
    return [sys.executable, "-c", code, "ensemble", *options]


def finish(command: list[str], environment: dict[str, str]) -> float:
    """Run to the end; return the seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def killed(command: list[str], environment: dict[str, str], after: float) -> bool:
    """Run, and kill all its processes after so many seconds; whether it was still running."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def results(output: Path) -> dict[str, np.ndarray]:
    """All that must not depend on whether a run was killed."""
    found = {}
    for checkpoint in sorted(output.glob("**/best.ckpt")):
        if "runs" not in checkpoint.parts[len(output.parts) :]:
            state = Simulator.load(checkpoint).model.state_dict()
            found |= {f"{checkpoint.parent.name}/{key}": value.numpy() for key, value in state.items()}
    return found


def trial(name: str, folder: Path, seed: int) -> dict[str, float]:
    """Undisturbed, killed, compared."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    whole, disturbed = folder / f"{name}_whole", folder / f"{name}_killed"
    seconds = finish(ensemble_command(folder, whole), environment)
    print(f"{name}: undisturbed in {seconds:.0f} s", flush=True)
    rng, hits = np.random.default_rng(seed), 0
    for after in rng.uniform(2, max(seconds / 2, 3), N_KILLS):
        hits += killed(ensemble_command(folder, disturbed), environment, after)
        print(f"{name}: killed after {after:.1f} s", flush=True)
    finish(ensemble_command(folder, disturbed), environment)
    expected, found = results(whole), results(disturbed)
    same = expected.keys() == found.keys() and all(np.array_equal(expected[key], found[key]) for key in expected)
    print(f"{name}: {hits} kills, {len(expected)} arrays, {'identical' if same else 'DIFFERENT'}", flush=True)
    return {f"{name}_kills": hits, f"{name}_identical": float(same), f"{name}_arrays": len(expected)}


def main() -> None:
    """Run, kill, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    write_toy(folder)
    figures = trial("ensemble", folder, options.seed)
    shutil.rmtree(folder)
    for key, value in figures.items():
        print(f"{key:>20} {value:.0f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
