"""Does a workflow that was killed end as an undisturbed one?  Five times SIGKILL at random moments, then compare.

The whole of `workflows/Snakefile` on an analytic toy, on two cores: a nominal WGAN, two bootstrap replicas, two other
seeds.  It runs once undisturbed, in a time T, and once killed: all processes of the workflow get SIGKILL after a time
drawn uniformly between 0 and T / 3, the workflow is unlocked and started again, until it was killed as often as asked;
then it runs to its end.  If it ends before, it begins again in a new folder.  Compared are, bit by bit, the parameters
and validation losses of every member, all branches of all ROOT files with events, and all arrays of `systematics.npz`.

    python benchmarks/workflow_kills.py --json workflow_kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uproot
import yaml

from calorefine.datasets import ImpureToy

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflows"
VERBS = ("splot", "ensemble", "sample", "reweight", "propagate", "report")
COLUMNS = {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]}
SPLOT = {
    "spectator": "m",
    "range": [0, 1],
    "species": {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}},
}


def write_toy(folder: Path, *, n: int = 1500, epochs: int = 60, **options: Any) -> Path:
    """Write samples and configurations; return the workflow's.

    Args:
        folder: where.
        n: number of events of the calibration sample, and of conditions.
        epochs: of each training.
        options: of the workflow, instead of those here.
    """
    toy = ImpureToy(fraction=0.3, resolution=0.05)
    write_events(folder / "calibration.root", toy.generate(n, seed=11))
    conditions = {name: values for name, values in toy.generate(n, seed=12).items() if name in ("c", "run", "event")}
    write_events(folder / "conditions.root", conditions)
    data = {"tree": "events", "columns": COLUMNS, "weights": {"class_path": "SPlot", "init_args": SPLOT}}
    small = {"generator_hidden": [16], "critic_hidden": [16]}
    fit = {
        "seed_everything": 4,
        "data": data | {"files": "given by the workflow", "batch_size": 256},
        "model": {"class_path": "WGAN", "init_args": small},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs, "check_val_every_n_epoch": 7, "log_every_n_steps": 5},
    }
    trees = {"n_trees": 20, "max_leaf_nodes": 4, "min_samples_leaf": 100, "n_folds": 2, "n_repeats": 1}
    estimator = {"class_path": "BoostingRatio", "init_args": trees}
    shape = {"class_path": "Histogram", "init_args": {"expression": "x", "bins": {"n": 5, "low": 0, "high": 3}}}
    configs: dict[str, Any] = {
        "fit": fit,
        "splot": {"tree": "events", "columns": COLUMNS, "splot": SPLOT},
        "reweight": {"tree": "events", "estimator": estimator},
        "propagate": {"tree": "events", "observables": {"x": shape}},
        "report": {"tree": "events"},
    }
    for name, content in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    own = {name: str(folder / f"{name}.yaml") for name in configs}
    own |= {name: str(folder / f"{name}.root") for name in ("calibration", "conditions")}
    own |= {f"{name}_pass_through": "run,event,c" for name in ("calibration", "conditions")}
    given: dict[str, Any] = {"replicas": 2, "seeds": 2, "fit_options": [], "reweight_options": [], "copies": 1}
    (folder / "workflow.yaml").write_text(yaml.safe_dump(own | given | options))
    return folder / "workflow.yaml"


def write_events(path: Path, table: dict[str, np.ndarray]) -> None:
    """Write a tree of events."""
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in table.items()}).extend(table)


def command(config: Path, folder: Path, *options: str) -> list[str]:
    """Snakemake in this folder, with the profile of this machine."""
    files = ["-s", str(WORKFLOW / "Snakefile"), "--configfile", str(config), "--directory", str(folder)]
    return [sys.executable, "-m", "snakemake", "--profile", str(WORKFLOW / "profiles" / "local"), *files, *options]


def start(config: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the workflow as a process group of its own; what it says goes to a log beside the folder."""
    folder.mkdir(exist_ok=True)
    scripts = str(Path(sys.executable).parent)  # `calorefine` of this environment
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command(config, folder, *options),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def finish(config: Path, folder: Path, *options: str) -> None:
    """Run the workflow to its end.

    Raises:
        RuntimeError: it fails.
    """
    if start(config, folder, *options).wait():
        log = folder.with_suffix(".log")
        raise RuntimeError(f"{folder}: the workflow failed; the end of {log}:\n{log.read_text()[-3000:]}")


def kill(process: subprocess.Popen[bytes]) -> list[str]:
    """SIGKILL to the workflow and all its jobs; return what they were doing."""
    os.killpg(process.pid, signal.SIGSTOP)  # else they go on while they are listed
    jobs = [words for group, words in processes() if group == process.pid]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while any(group == process.pid for group, _ in processes()):
        time.sleep(0.05)
    return sorted({verb for words in jobs for verb in VERBS if verb in words})


def processes() -> Iterator[tuple[int, list[str]]]:
    """Process group and words of the command of every living process."""
    shown = subprocess.run(["ps", "-ww", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    for line in shown.splitlines():
        group, state, *words = line.split()
        if not state.startswith("Z"):
            yield int(group), words


def run_killed(
    config: Path, parent: Path, *, kills: int, longest: float, rng: np.random.Generator
) -> tuple[list[Path], list[float]]:
    """Run the workflow in folders `killed_0`, ..., until it was killed as often as asked and all of them are finished.

    Args:
        config: of the workflow.
        parent: where the folders are.
        kills: how often.
        longest: time after which it is killed at the latest, s.
        rng: for the times.

    Returns:
        Folders, and the times.
    """
    folders, times = [parent / "killed_0"], []
    while len(times) < kills:
        wait = float(rng.uniform(0, longest))
        process = start(config, folders[-1])
        try:
            if process.wait(wait):
                raise RuntimeError(f"{folders[-1]}: the workflow failed, see {folders[-1].with_suffix('.log')}")
            folders.append(parent / f"killed_{len(folders)}")
        except subprocess.TimeoutExpired:
            doing = kill(process)
            times.append(wait)
            print(f"kill {len(times)} after {wait:.1f} s in {', '.join(doing) or 'no job'}", flush=True)
            finish(config, folders[-1], "--unlock")
    for folder in folders:
        finish(config, folder)
    return folders, times


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same, bit by bit, in the results of two runs."""
    first, second = (dict(results(folder / "work")) for folder in (one, other))
    found = [f"only one has {name}" for name in sorted(first.keys() ^ second.keys())]
    return found + [name for name in first if name in second and not same(first[name], second[name])]


def same(one: Any, other: Any) -> bool:
    """Whether two arrays or lists are equal, NaN included."""
    one, other = np.asarray(one), np.asarray(other)
    return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())


def results(work: Path) -> Iterator[tuple[str, Any]]:
    """Arrays by name: of members, events, and systematics."""
    for path in sorted(work.glob("ensemble/*/member.json")):
        member = path.parent
        state = torch.load(member / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        yield from ((f"{member.name}: {name}", tensor.numpy()) for name, tensor in state.items())
        yield f"{member.name}: val_loss", json.loads(path.read_text())["val_loss"]
    for path in sorted([*work.glob("*/*.root"), work / "calibration_sw.root", work / "closure.root"]):
        with uproot.open(path) as file:
            arrays = file["events"].arrays(library="np")
        yield from ((f"{path.relative_to(work)}: {name}", values) for name, values in arrays.items())
    with np.load(work / "systematics.npz", allow_pickle=False) as file:
        yield from ((f"systematics: {name}", file[name]) for name in file.files if file[name].dtype.kind in "fiub")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, kill, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the times")
    parser.add_argument("--folder", type=Path, help="keep everything here; a temporary folder if left out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        config = write_toy(folder)
        before = time.perf_counter()
        finish(config, folder / "whole")
        seconds = time.perf_counter() - before
        compared = sum(1 for _ in results(folder / "whole" / "work"))
        print(f"undisturbed: {seconds:.0f} s, {compared} arrays", flush=True)
        rng = np.random.default_rng(options.seed)
        folders, times = run_killed(config, folder, kills=options.kills, longest=seconds / 3, rng=rng)
        found = [line for one in folders for line in differences(folder / "whole", one)]
    figures = {"seed": options.seed, "seconds": seconds, "kills": len(times), "times": times, "runs": len(folders)}
    figures |= {"arrays": compared, "workflow_differences": len(found), "different": found}
    print(
        f"killed {len(times)} times in {len(folders)} runs: {len(found)} of {compared} arrays differ", *found, sep="\n"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
