"""What do replicas cost?  Wall time of the nominal GAN and ten replicas over that of one fit, on two cores.

One fit is the command `lightning fit -c configs/weighted_wgan.yaml` from start to end; the eleven are the command
`calorefine ensemble` with two processes.  Both run alone, one after the other, in this order.

    python benchmarks/ensemble.py --json ensemble.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIT = "from calorefine.cli import lightning_main; lightning_main()"
ENSEMBLE = "from calorefine.cli import calorefine_main; calorefine_main()"


def seconds(code: str, *arguments: str) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--fit", default="configs/weighted_wgan.yaml", help="configuration")
    parser.add_argument("--epochs", help="instead of the configuration's")
    options = parser.parse_args()
    epochs = ["--trainer.max_epochs", options.epochs] if options.epochs else []
    with tempfile.TemporaryDirectory() as name:
        quiet = ["--runs", f"{name}/runs", "--trainer.enable_progress_bar", "false"]
        one = seconds(FIT, "fit", "-c", options.fit, *quiet, *epochs)
        print(f"one fit: {one:.0f} s", flush=True)
        more = [f"--options={json.dumps(epochs)}"] if epochs else []
        sizes = ["--replicas", "10", "--seeds", "0", "--processes", "2", "--output", f"{name}/ensemble"]
        eleven = seconds(ENSEMBLE, "ensemble", "--fit", options.fit, *sizes, *more)
    figures = {"seconds_1": one, "seconds_11": eleven, "cost_of_11_over_1": eleven / one}
    for key, value in figures.items():
        print(f"{key:>20} {value:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
