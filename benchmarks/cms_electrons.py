r"""Do real, impure data train a pure generator?  CMS Open Data electrons, half of them judged by the other half.

`FILE` is the CSV file of the CERN Open Data portal that `examples/04_cms_electrons.py` takes.  The events are divided
by a hash of run and event number, so that both electrons of an event are on one side.  One half trains: its own fit,
sWeights, positive weights and preprocessing, with the configurations of `examples/cms/`.  The other half judges:

* **AUC** of the classifier of `calorefine validate` (its function), of electrons generated at the conditions of the
  judging half and its own, both with its sWeights, twins together on each side of a split; the mean of three seeds of
  the training (and of the splits) with its standard error, minus the mean of the floor, which is the judging half
  against itself.  `unweighted` is the WGAN trained without weights.
* **Efficiencies** of four cuts in four bins of pt against both subtractions, generated and judging electrons with the
  same weights.  The error is that of the subtraction by bootstrap (the fit redone in each replica) and that of an
  ensemble of the generator; the share of the 32 comparisons within 2.5 of them.

The sWeighted half is equivalent to about 2000 events, so that one AUC and one floor are known to about 0.01 and 0.02;
`auc_error_*` holds the statistics of both halves of a split, `seed_error_*` is the spread of the three trainings.  The
settings were chosen on the training half, 60 % of it against the rest, among about 35 spectator fits (by goodness of
fit, and by agreement of the two subtractions), six trainings of the flow and six of the WGAN.  Two were changed after
first results of the judging half were seen: `positive.bounds` of the flow (by the training half's own marginals; the
AUC stayed) and the epochs of the WGAN (to as many updates as before on 60 %).  The tails of the peak were fixed after a
replica's fit of the judging half failed.  After that the columns (hadronic energy, absolute eta) and the WGAN's batches
were chosen again on four and two such splits of the training half, among nine flows and five WGANs.

Everything is kept in the folder `--work`, so that it can be run in parts:

    python benchmarks/cms_electrons.py FILE --only flow:1 --only flow:2
    python benchmarks/cms_electrons.py FILE --only wgan:replica_001,replica_002
    python benchmarks/cms_electrons.py FILE --json cms_electrons.json
"""

from __future__ import annotations

import argparse
import json
import runpy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calorefine import keys
from calorefine.cli import calorefine
from calorefine.errors import CalorefineWarning
from calorefine.fit.command import lightning

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = runpy.run_path(str(ROOT / "examples" / "04_cms_electrons.py"))
CONFIGS = ROOT / "examples" / "cms"
MODELS: dict[str, tuple[str, list[str]]] = {
    "flow": ("flow", []),
    "wgan": ("wgan", []),
    "unweighted": ("wgan", ["--data.weights", "none"]),
}
SEEDS = (1, 2, 3)
REPLICAS_OF_WEIGHTS = 100
LARGEST_PULL = 2.5


@dataclass(frozen=True)
class Halves:
    """The files.

    Args:
        work: folder of everything.
        training: electrons that train.
        subtractions: name to file of the judging electrons with their weights, and the branch of the weight.
    """

    work: Path
    training: Path
    subtractions: dict[str, tuple[Path, str]]

    @property
    def judging(self) -> Path:
        """Judging electrons with their sWeights."""
        return self.subtractions["sWeights"][0]


def prepared(file: str, work: Path) -> Halves:
    """Divide the events, and subtract the background of the judging half in both ways, once."""
    work.mkdir(parents=True, exist_ok=True)
    training, judging = work / "training.root", work / "judging.root"
    with_fit, with_signs = work / "judging_sw.root", work / "judging_os.root"
    if not with_signs.is_file():
        table = EXAMPLE["electrons"](file)
        event_key = keys.make_keys([table["run"], table["event"]])
        first = keys.uniform(keys.stream(event_key, "half")) >= 0.5
        for path, rows in ((training, first), (judging, ~first)):
            EXAMPLE["write"]({name: values[rows] for name, values in table.items()}, path)
        EXAMPLE["subtracted"](judging, REPLICAS_OF_WEIGHTS)
    subtractions = {"sWeights": (with_fit, "sw_signal"), "opposite - same sign": (with_signs, "w_signal")}
    return Halves(work, training, subtractions)


def validated(model: str, seed: int, halves: Halves) -> dict[str, Any]:
    """Train once, and tell generated electrons from those of the judging half: classifier and floor."""
    folder = halves.work / f"{model}_{seed}"
    result = folder / "validation.json"
    if not result.is_file():
        config, more = MODELS[model]
        arguments = ["fit", "-c", str(CONFIGS / f"{config}.yaml"), "--data.files", str(halves.training), *more]
        arguments += ["--runs", str(folder), "--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
        checkpoint = lightning(arguments).run_dir / "checkpoints" / "best.ckpt"
        generated = folder / "generated.root"
        sample = ["--checkpoint", str(checkpoint), "--conditions", str(halves.judging), "--output", str(generated)]
        carried = ["--tree", "electrons", "--pass-through", EXAMPLE["CARRIED"], "--overwrite", "true"]
        calorefine(["sample", *sample, *carried, "--seed", str(seed)])
        files = ["--generated", str(generated), "--reference", str(halves.judging), "--tree", "electrons"]
        weights = ["--generated.weight", "sw_signal", "--reference.weight", "sw_signal"]
        calorefine(["validate", *files, *weights, "--output", str(result), "--seed", str(seed)])
    return dict(json.loads(result.read_text())["classifier"])


def ensemble(model: str, halves: Halves, replicas: int, only: list[str] | None = None) -> Path:
    """Train the members that are missing, all or those named; return the ensemble's folder."""
    folder = halves.work / f"{model}_ensemble"
    fit = ["--fit", str(CONFIGS / f"{MODELS[model][0]}.yaml"), "--output", str(folder), "--replicas", str(replicas)]
    options = json.dumps(["--data.files", str(halves.training), *MODELS[model][1]])
    part = ["--only", f"[{','.join(only)}]"] if only else []
    print(calorefine(["ensemble", *fit, f"--options={options}", *part]), flush=True)
    return folder


def pulls(model: str, halves: Halves, replicas: int) -> dict[str, np.ndarray]:
    """Differences (16,) of generated and judging efficiencies over their error, by subtraction."""
    folder = ensemble(model, halves, replicas)
    members = ["nominal", *(f"replica_{k + 1:03d}" for k in range(replicas))]
    differences = {}
    for name, (path, weight) in halves.subtractions.items():
        generated = EXAMPLE["sampled"](folder, members, path, f"run,event,candidate,pt_gev,abs_eta,endcap,{weight}")
        files = {"files": [str(generated / f"{member}.root") for member in members[1:]]}
        output = folder / f"efficiencies_{weight}"
        made = EXAMPLE["measured"](generated / "nominal.root", weight, files, output)
        of_replicas = {"weights": f"{weight}_replica"}
        data = EXAMPLE["measured"](path, weight, of_replicas, halves.work / f"efficiencies_{weight}")
        variance = sum(np.diag(result["covariance_calibration"]) for result in (made, data))
        differences[name] = (made["nominal"] - data["nominal"]) / np.sqrt(variance)
        print(f"{model} against {name}")
        print(EXAMPLE["table_of"]({"generated": made, "data": data}))
        print("differences over errors:", np.round(differences[name], 1).tolist(), flush=True)
    return differences


def auc_figures(halves: Halves) -> dict[str, float]:
    """Means over the seeds, with their errors, minus the floor."""
    results = {model: [validated(model, seed, halves) for seed in SEEDS] for model in MODELS}
    floor = [one["floor"]["auc"] for one in results["flow"]]  # it knows nothing of the model
    figures = {"auc_floor": float(np.mean(floor)), "auc_floor_error": results["flow"][0]["floor"]["auc_error"]}
    for model, tests in results.items():
        aucs = [test["separation"]["auc"] for test in tests]
        figures[f"auc_{model}"] = float(np.mean(aucs))
        figures[f"seed_error_{model}"] = float(np.std(aucs, ddof=1) / np.sqrt(len(aucs)))
        figures[f"auc_error_{model}"] = float(np.mean([test["separation"]["auc_error"] for test in tests]))
        figures[f"excess_auc_{model}"] = figures[f"auc_{model}"] - figures["auc_floor"]
    return figures


def efficiency_figures(halves: Halves, replicas: int) -> dict[str, float]:
    """Share of the comparisons within `LARGEST_PULL` errors, by model."""
    figures = {}
    for model in ("flow", "wgan"):
        every = pulls(model, halves, replicas)
        joined = np.concatenate(list(every.values()))
        figures[f"efficiency_share_{model}"] = float(np.mean(np.abs(joined) < LARGEST_PULL))
        figures[f"efficiency_largest_{model}"] = float(np.abs(joined).max())
    return figures


def part(described: str, halves: Halves, replicas: int) -> None:
    """Do one part: `MODEL:SEED`, `MODEL:MEMBER,MEMBER` of its ensemble, or `MODEL:efficiencies`."""
    model, _, what = described.partition(":")
    if model not in MODELS or not what:
        raise SystemExit(f"--only {described}: expected MODEL:SEED, MODEL:MEMBER,... or MODEL:efficiencies")
    if what.isdecimal():
        found = validated(model, int(what), halves)
        print(f"{model}, seed {what}: AUC {found['separation']['auc']:.4f}, floor {found['floor']['auc']:.4f}")
    elif what == "efficiencies":
        pulls(model, halves, replicas)
    else:
        ensemble(model, halves, replicas, what.split(","))


def main() -> None:
    """Prepare, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the CSV file of the CERN Open Data portal")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--work", type=Path, default=Path("runs/cms_electrons_benchmark"), help="folder for everything")
    parser.add_argument("--only", action="append", help="a part, see above; may be repeated")
    parser.add_argument("--replicas", type=int, default=20, help="of each ensemble")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CalorefineWarning)
    halves = prepared(options.file, options.work.resolve())
    for described in options.only or ():
        part(described, halves, options.replicas)
    if options.only:
        return
    figures = auc_figures(halves) | efficiency_figures(halves, options.replicas)
    for key, value in figures.items():
        print(f"{key:>28} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
