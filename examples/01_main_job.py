"""The main job on the embedded sample: train on impure data, sample a fast simulation, compare with pure electrons.

    python examples/01_main_job.py

What it does is what these commands do:

    lightning fit -c configs/weighted_wgan.yaml
    calorefine sample --checkpoint runs/weighted_wgan/000/checkpoints/best.ckpt \
        --conditions examples/data/electron_fastsim.root --output electron_fastsim_generated.root
    calorefine plot --generated ... --reference examples/data/electron_reference.root --output comparison.png
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from calorefine.cli import calorefine
from calorefine.fit.command import lightning

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data"


def main() -> None:
    """Train, sample twice, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "weighted_wgan.yaml"))
    parser.add_argument("--runs", default="runs", help="folder for the run's folder")
    parser.add_argument("--epochs", help="fewer epochs than the configuration says")
    options = parser.parse_args()
    runs = Path(options.runs).resolve()
    os.chdir(ROOT)  # the configuration names its files from here

    short = ["--trainer.max_epochs", options.epochs, "--trainer.check_val_every_n_epoch", options.epochs]
    fewer = short if options.epochs else []
    folder = lightning(["fit", "-c", options.config, "--runs", str(runs), *fewer]).run_dir

    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    sample("electron_fastsim", folder, checkpoint, carried="run,event,eta,pair_id,m_true_gev")
    sample("electron_reference", folder, checkpoint, carried="run,event")
    generated = folder / "electron_reference_generated.root"
    picture = ["--reference", str(DATA / "electron_reference.root"), "--output", str(folder / "comparison.png")]
    print(calorefine(["plot", "--generated", str(generated), *picture]))


def sample(name: str, folder: Path, checkpoint: str, *, carried: str) -> None:
    """Generate events at the conditions of one of the embedded files."""
    conditions, output = DATA / f"{name}.root", folder / f"{name}_generated.root"
    arguments = ["--checkpoint", checkpoint, "--conditions", str(conditions), "--output", str(output)]
    print(calorefine(["sample", *arguments, "--seed", "1", "--pass-through", carried]))


if __name__ == "__main__":
    main()
