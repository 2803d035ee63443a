"""Tell electrons from background without training a classifier: the likelihood ratio of two flows.

    python examples/02_likelihood_ratio.py

One flow learns the electrons of the impure calibration sample, another one its background, each from positive weights
of its species.  The difference of their log densities is the log likelihood ratio, by Neyman and Pearson the best
classifier at given conditions.  Over a mixture of conditions the best one adds the log ratio of how probable these are
in each species, which a flow of the features doesn't know.

The truth of the sample serves only to see how good it is, on the tenth of the events that trained neither flow (they
chose the checkpoints).  What it does is what these commands do:

    lightning fit -c configs/conditional_flow.yaml
    lightning fit -c configs/conditional_flow.yaml --data.weights.init_args.target background
    calorefine log-prob --checkpoint .../000/checkpoints/best.ckpt --files ... --branch log_prob_signal --output ...
    calorefine log-prob --checkpoint .../001/checkpoints/best.ckpt --files ... --branch log_prob_background --output ...
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import uproot
from sklearn.metrics import roc_auc_score

from calorefine import keys
from calorefine.cli import calorefine
from calorefine.fit.command import lightning

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "data" / "electron_calibration.root"


def main() -> None:
    """Train twice, write the log densities, compare with the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs", help="folder for the runs' folders")
    parser.add_argument("--epochs", help="fewer epochs than the configuration says")
    options = parser.parse_args()
    runs = Path(options.runs).resolve()
    os.chdir(ROOT)  # the configuration names its files from here

    fewer = ["--trainer.max_epochs", options.epochs] if options.epochs else []
    files = SAMPLE
    for species in ("signal", "background"):
        target = ["--data.weights.init_args.target", species]
        fit = ["fit", "-c", "configs/conditional_flow.yaml", "--runs", str(runs), *target, *fewer]
        training = lightning(fit)
        folder, held_out = training.run_dir, training.datamodule.validation.event_key  # the same events for both
        output = folder / f"log_prob_{species}.root"
        where = ["--files", str(files), "--output", str(output), "--branch", f"log_prob_{species}"]
        print(calorefine(["log-prob", "--checkpoint", str(folder / "checkpoints" / "best.ckpt"), *where]))
        files = output

    with uproot.open(files) as file:
        events = file["events"].arrays(
            ["log_prob_signal", "log_prob_background", "true_signal", "f_front", "run", "event"], library="np"
        )
    unseen = np.isin(keys.make_keys([events["run"], events["event"]]), held_out)
    events = {name: values[unseen] for name, values in events.items()}
    truth, log_ratio = events["true_signal"], events["log_prob_signal"] - events["log_prob_background"]
    print(f"{len(truth)} held-out events: AUC of the likelihood ratio {roc_auc_score(truth, log_ratio):.3f}, ", end="")
    print(f"of f_front alone {roc_auc_score(truth, events['f_front']):.3f}")


if __name__ == "__main__":
    main()
