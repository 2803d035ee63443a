"""Write the files of this folder; runs with version 0.1 of calorefine.

Later versions have to read them (`tests/test_written_before.py`), so that they are not written again.  The networks are
small and hardly trained.  From the root of a copy of version 0.1, with both files of this test in it:

    python tests/data/written_by_0.1/write.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import uproot
import yaml

from calorefine.cli import calorefine, lightning
from calorefine.datasets import ImpureToy
from calorefine.simulator import Simulator

HERE = Path(__file__).resolve().parent
COLUMNS = {
    "features": {"x": None, "b": {"bounds": [0, None]}, "a": None, "k": {"transform": "integer"}},
    "context": {"p_gev": {"expression": "P", "branch_unit": "MeV"}, "charge": {"categories": [-1, 1]}},
    "key": ["run", "event"],
}
GAN = {"generator_hidden": [8, 8], "critic_hidden": [8, 8], "latent_size": 4}
MODELS = {  # weights and recipe; `v` is positive
    "wgan": ("w", "WGAN", GAN),
    "cramer_gan": ("w", "CramerGAN", GAN),
    "flow": ("v", "Flow", {"hidden": [8], "n_bins": 4}),
    "flow_autoregressive": ("v", "Flow", {"hidden": [8], "n_bins": 4, "kind": "autoregressive"}),
    "library": ("v", "Library", {}),
    "library_5": ("v", "Library", {"neighbors": 5}),
}
NETWORK = {"hidden": [8], "updates": 200, "batch_size": 128, "n_folds": 2, "n_repeats": 1}
REWEIGHTERS = {
    "network": (("NetworkRatio", NETWORK), ["--replicas", "2"]),
    "network_joint": (("NetworkRatio", NETWORK), ["--conditional", "false"]),
    "trees": (("BoostingRatio", {"n_trees": 2, "max_leaf_nodes": 4, "n_folds": 2, "n_repeats": 1}), []),
}
SHAPES = {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}}


def events(n: int, *, seed: int, first: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Features x, b (not negative), a (0 in about half of the events) and k (a count); signed and positive weights."""
    rng = np.random.default_rng(seed)
    momentum, charge = rng.uniform(1000, 9000, n), rng.choice([-1, 1], n).astype(np.int32)
    return {
        "run": np.full(n, 7, np.uint32),
        "event": np.arange(first, first + n, dtype=np.int64),
        "P": momentum,
        "charge": charge,
        "x": rng.normal(momentum / 4000 + shift * charge, 1.0).astype(np.float32),
        "b": rng.gamma(2.0, momentum / 5000).astype(np.float32),
        "a": np.maximum(rng.normal(shift, 1.0, n), 0).astype(np.float32),
        "k": rng.poisson(momentum / 2500).astype(np.int32),
        "w": np.where(rng.random(n) < 0.2, -0.5, 1.25),
        "v": rng.uniform(0.2, 1.0, n),
    }


def write_root(path: str, table: dict[str, np.ndarray]) -> None:
    """Write a tree of these branches."""
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in table.items()}).extend(table)


def write_config(name: str) -> str:
    """Write the configuration of a training, and return its path."""
    weights, recipe, options = MODELS[name]
    content = {
        "seed_everything": 4,
        "data": {"files": "toy.root", "tree": "events", "columns": COLUMNS, "weights": weights, "batch_size": 128},
        "model": {"class_path": recipe, "init_args": options},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 2, "enable_progress_bar": False},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


def write_checkpoints() -> None:
    """One of each recipe as `lightning fit` leaves it, the larger ones and one GAN without the training's state."""
    for name in MODELS:
        run = lightning(["fit", "-c", write_config(name), "--runs", "runs"]).run_dir
        last = run / "checkpoints" / "last.ckpt"
        if name in ("library_5", "flow_autoregressive"):
            Simulator.load(last).save(f"{name}.ckpt")
        else:
            shutil.copy(last, f"{name}.ckpt")
    Simulator.load("wgan.ckpt").save("wgan_slim.ckpt")


def write_reweighters() -> None:
    """Networks with replicas, networks for the joint density, trees."""
    for name, ((estimator, options), more) in REWEIGHTERS.items():
        given = {
            "generated": "generated_toy.root",
            "reference": "toy.root",
            "reference_weight": "w",
            "columns": COLUMNS,
            "estimator": {"class_path": estimator, "init_args": options},
            "output": f"{name}.pt",
        }
        Path(f"{name}.yaml").write_text(yaml.safe_dump(given))
        calorefine(["reweight", "-c", f"{name}.yaml", *more])


def write_ensemble() -> None:
    """Three members, events of the nominal one, and observables with their spread."""
    given = ["--fit", "flow.yaml", "--output", "ensemble", "--replicas", "1", "--seeds", "1", "--processes", "1"]
    calorefine(["ensemble", *given, '--options=["--data.replica.refit","false"]'])
    given = ["--checkpoint", "ensemble/nominal/best.ckpt", "--conditions", "conditions.root"]
    calorefine(["sample", *given, "--output", "generated.root", "--pass_through", "run,event,P,charge"])
    variations = [f"1 + 0.2 * sin({k} * x)" for k in range(1, 9)]
    observables = {
        "mean_x": {"class_path": "Mean", "init_args": {"of": "x", "expression": "P", "edges": [1000, 9000]}},
        "spectrum": {"class_path": "Histogram", "init_args": {"expression": "x", "edges": [-1, 1, 3]}},
    }
    given = {"nominal": "generated.root", "calibration": {"weights": variations}}
    Path("p.yaml").write_text(yaml.safe_dump({**given, "observables": observables, "output": "systematics"}))
    calorefine(["propagate", "-c", "p.yaml"])


def write_splot() -> None:
    """The JSON file of a spectator fit."""
    write_root("mass.root", ImpureToy(fraction=0.3, resolution=0.05).generate(1500, seed=11))
    columns = {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]}
    splot = {"spectator": "m", "range": [0, 1], "species": SHAPES}
    given = {"files": "mass.root", "tree": "events", "output": "splot.root", "columns": columns, "splot": splot}
    Path("s.yaml").write_text(yaml.safe_dump(given))
    calorefine(["splot", "-c", "s.yaml"])


def write_expected(conditions: dict[str, np.ndarray], table: dict[str, np.ndarray]) -> None:
    """What version 0.1 makes of these files."""
    arrays = {f"conditions/{name}": values for name, values in conditions.items()}
    arrays |= {f"events/{name}": values for name, values in table.items()}
    np.savez_compressed(HERE / "expected.npz", **arrays)  # the inputs, which the results need
    sys.path.insert(0, str(HERE.parents[1]))
    from test_written_before import RESULTS

    for result, function in RESULTS.items():
        Path("results").mkdir(exist_ok=True)
        arrays |= {f"results/{result}:/{name}": values for name, values in function(Path("results")).items()}
    np.savez_compressed(HERE / "expected.npz", **arrays)


def main() -> None:
    """Write everything to a folder that is removed, and copy what is to stay."""
    conditions = events(60, seed=3, first=5000)
    conditions = {name: conditions[name] for name in ("run", "event", "P", "charge")}
    conditions["P"][:3] = [800.0, 9500.0, 20000.0]  # outside the training domain
    table = events(200, seed=4, first=200)  # some of them are among the events that the reweighters were trained on
    with tempfile.TemporaryDirectory(prefix="calorefine-") as folder, contextlib.chdir(folder):
        write_root("toy.root", events(500, seed=1, first=0, shift=0.4))
        write_root("generated_toy.root", events(500, seed=2, first=0))
        write_root("conditions.root", conditions)
        for write in (write_checkpoints, write_reweighters, write_ensemble, write_splot):
            write()
        kept = [*Path().glob("*.ckpt"), *Path().glob("*.pt"), Path("generated.root"), Path("systematics.npz")]
        kept += [Path("network.json"), Path("splot.json"), *Path("ensemble").glob("*/member.json")]
        for path in [*kept, *Path("ensemble").glob("*/best.ckpt")]:
            (HERE / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, HERE / path)
        for path in HERE.glob("**/*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")) + "\n")
        write_expected(conditions, table)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
