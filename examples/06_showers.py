"""From an HDF5 file of showers to a generator of them, and a page that tells how good it is.

    python examples/06_showers.py

Two thirds of the 4000 photon showers of `examples/data` train the generator that is told with `--config`, the others
judge it.  What it does is what these commands do:

    lightning fit -c configs/showers/shower_flow.yaml --data.files training.h5 --data.columns.key '[row]'
    calorefine sample --checkpoint .../best.ckpt --tree / --conditions reference.h5 --output generated.h5 \
        --pass_through incident_energies,entry_mm,row
    calorefine validate -c configs/validate_showers.yaml --generated generated.h5 --reference reference.h5 \
        --training training.h5 --checkpoint .../best.ckpt --output showers.json

The page is `showers.html` in the folder of the run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import h5py
import numpy as np

from calorefine import keys
from calorefine.cli import calorefine
from calorefine.fit.command import lightning

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "data" / "photon_showers.h5"
TRAINS = 2 / 3


def main() -> None:
    """Divide the showers, train, sample at the conditions of those that didn't train, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs", help="folder for the runs' folders")
    parser.add_argument("--config", default="shower_flow", help="name of a configuration in configs/showers")
    parser.add_argument("--epochs", help="fewer epochs than the configuration says")
    options = parser.parse_args()
    runs = Path(options.runs).resolve()
    os.chdir(ROOT)  # configurations name their files from here

    training, reference = divided(runs)
    fewer = ["--trainer.max_epochs", options.epochs] if options.epochs else []
    files = ["--data.files", str(training), "--data.columns.key", "[row]", "--runs", str(runs)]
    folder = lightning(["fit", "-c", f"configs/showers/{options.config}.yaml", *files, *fewer]).run_dir
    checkpoint, generated = folder / "checkpoints" / "best.ckpt", folder / "generated.h5"

    passed = ["--pass_through", "incident_energies,entry_mm,row"]
    where = ["--tree", "/", "--conditions", str(reference), "--output", str(generated)]
    print(calorefine(["sample", "--checkpoint", str(checkpoint), *where, *passed]))

    compared = ["--generated", str(generated), "--reference", str(reference), "--training", str(training)]
    told = ["--checkpoint", str(checkpoint), "--output", str(folder / "showers.json")]
    print(calorefine(["validate", "-c", "configs/validate_showers.yaml", *compared, *told]))


def divided(runs: Path) -> tuple[Path, Path]:
    """Write the showers that train and the others to two files, each with the number of the row as its key."""
    runs.mkdir(parents=True, exist_ok=True)
    with h5py.File(SAMPLE) as file:
        rows = np.arange(len(file["showers"]))
        trains = keys.uniform(keys.stream(keys.make_keys([rows]), "example")) < TRAINS
        paths = []
        for name, chosen in (("training", trains), ("reference", ~trains)):
            paths.append(runs / f"photon_showers_{name}.h5")
            with h5py.File(paths[-1], "w") as out:
                for dataset in file:
                    out.create_dataset(dataset, data=file[dataset][:][chosen], compression="gzip")
                out.create_dataset("row", data=rows[chosen])
    return paths[0], paths[1]


if __name__ == "__main__":
    main()
