"""What does a command take before it does anything, and how much memory does a training take?

    python benchmarks/startup.py --json startup.json

`help_cpu_s`, `version_cpu_s`, `<verb>_help_cpu_s`: CPU seconds of the whole process for `calorefine --help`,
`--version` and `<verb> --help`; median of five.  `import_torch_cpu_s` is what the import of PyTorch alone takes here.
`fit_gb_1e5`: largest memory (all of the process) of `lightning fit -c configs/weighted_wgan.yaml` for two epochs on
10^5 events, the embedded sample's rows repeated, without weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import uproot

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("sample", "propagate", "reweight", "splot", "validate")
N_EVENTS, REPETITIONS = 100_000, 5


def measured(*arguments: str) -> tuple[float, float]:
    """CPU seconds and largest memory (GB) of a Python process that runs a module of the package with arguments."""
    command = [sys.executable, "-m", "calorefine", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(
            f"{' '.join(arguments)}: status {status}\n{process.stderr.read().decode() if process.stderr else ''}"
        )
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def seconds(*arguments: str) -> float:
    """Median CPU time."""
    return statistics.median(measured(*arguments)[0] for _ in range(REPETITIONS))


def import_seconds() -> float:
    """CPU seconds of a Python process that imports PyTorch."""
    process = subprocess.Popen([sys.executable, "-c", "import torch"])
    usage = os.wait4(process.pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def fit_gb(folder: Path) -> float:
    """Largest memory of a training."""
    with uproot.open(ROOT / "examples" / "data" / "electron_calibration.root") as file:
        given = file["events"].arrays(library="np")
    rows = np.resize(np.arange(len(given["event"])), N_EVENTS)
    table = {name: values[rows] for name, values in given.items()} | {"event": np.arange(N_EVENTS)}
    with uproot.recreate(folder / "events.root") as file:
        file.mktree("events", {name: values.dtype for name, values in table.items()}).extend(table)
    told = ["--data.files", str(folder / "events.root"), "--runs", str(folder / "runs"), "--trainer.max_epochs", "2"]
    told += [
        "--data.weights",
        "none",
        "--trainer.check_val_every_n_epoch",
        "1",
        "--trainer.enable_progress_bar",
        "false",
    ]
    return measured("fit", "-c", "configs/weighted_wgan.yaml", *told)[1]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures = {"help_cpu_s": seconds("--help"), "version_cpu_s": seconds("--version")}
    figures |= {f"{verb}_help_cpu_s": seconds(verb, "--help") for verb in VERBS}
    figures["import_torch_cpu_s"] = statistics.median(import_seconds() for _ in range(REPETITIONS))
    with tempfile.TemporaryDirectory() as name:
        figures["fit_gb_1e5"] = fit_gb(Path(name))
    for key, value in figures.items():
        print(f"{key:>24} {value:.3g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
