"""What array columns cost: `python benchmarks/arrays.py --json arrays.json`.

Prints, and writes as JSON:
- `dequantize_ms`: time to dequantize a batch of 512 x 504 with an atom at 0 in every cell, one thread, median
  CPU time of 50;
- `dequantize_scalars_ms`: likewise for 7 scalars;
- `setup_gb_6480`, `setup_s_6480`: largest memory (all of the process) and time of the set-up of 20 000 events of 6480
  cells, in a process of its own that reads them from a ROOT file.
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
from numpy.typing import NDArray

from calorefine import Column, Columns, EventDataModule
from calorefine.data.column_transforms import ColumnTransforms

CELLS, EVENTS = 6480, 20_000


def showers(n: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Cells (n, cells) that are 0 in 20 to 95 % of the events."""
    hit = rng.random((n, cells), np.float32) < rng.uniform(0.05, 0.8, cells).astype(np.float32)
    return rng.standard_gamma(2, (n, cells), np.float32) * hit


def dequantize_ms(columns: dict[str, Column], x: NDArray[np.float32]) -> float:
    """Median CPU time of a batch of 512."""
    fitted = ColumnTransforms().fit_described(x, np.ones(len(x)), columns)
    u, noise, times = fitted(torch.from_numpy(x[:512])), torch.Generator().manual_seed(0), []
    for _ in range(50):
        start = time.thread_time()
        fitted.dequantize(u, noise)
        times.append(time.thread_time() - start)
    return 1e3 * float(np.median(times))


def set_up(path: str) -> None:
    """Set up the events of a file; print seconds and GB."""
    columns = Columns({"cells": Column(shape=[CELLS], bounds=(0, None))}, {"energy": None}, ["event"])
    data = EventDataModule(files=path, tree="events", columns=columns)
    start = time.perf_counter()
    data.setup()
    print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))


def measured_set_up() -> list[float]:
    """Seconds and GB of `set_up` in a process of its own."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "showers.root"
        with uproot.recreate(path, compression=uproot.ZSTD(1)) as file:
            types = {"cells": np.dtype((np.float32, (CELLS,))), "energy": np.float64, "event": np.int64}
            tree = file.mktree("events", types)
            for first in range(0, EVENTS, 2000):
                event = np.arange(first, first + 2000)
                tree.extend({"cells": showers(2000, CELLS, rng), "energy": rng.uniform(1, 100, 2000), "event": event})
        command = [sys.executable, __file__, "--set-up", str(path)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--set-up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.set_up:
        set_up(options.set_up)
        return
    cells = showers(5000, 504, np.random.default_rng(0))
    figures = {
        "dequantize_ms": dequantize_ms({"cells": Column(shape=[504], bounds=(0, None))}, cells),
        "dequantize_scalars_ms": dequantize_ms({f"x{j}": Column(bounds=(0, None)) for j in range(7)}, cells[:, :7]),
    }
    figures["setup_s_6480"], figures["setup_gb_6480"] = measured_set_up()
    print(json.dumps(figures, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
