"""Real, impure data: electrons of CMS Open Data, with two subtractions of their background.

    python examples/04_cms_electrons.py Zee_Run2011A.csv

The file is in the CERN Open Data portal, record 545, "Zee_Run2011A.csv" (CMS collaboration, CC0): pairs of electron
candidates in proton collisions at 7 TeV.  About half of them are no electrons from a Z, and two independent methods
take those out: sWeights from a fit of the pair's mass, in bins of pt, and opposite minus same sign, as label fractions.
A flow and a WGAN learn shower shapes and isolations given pt, |eta| and the part of the detector, from the sWeights.
The efficiencies of four cuts are compared with both subtractions; errors are those of bootstrap replicas.

What it does is what these commands do, beside writing the table as a ROOT file with one row for each electron:

    calorefine splot -c examples/cms/splot.yaml --files electrons.root --output electrons_sw.root --replicas 50
    calorefine fractions -c examples/cms/fractions.yaml --files electrons.root --output electrons_os.root --replicas 50
    calorefine ensemble --fit examples/cms/flow.yaml --options '[--data.files, electrons.root]' --output flow ...
    calorefine sample --checkpoint flow/nominal/best.ckpt --conditions electrons_sw.root --n-per-event 5 ...
    calorefine propagate -c examples/cms/propagate.yaml --nominal flow/generated/nominal.root --weight sw_signal ...
    calorefine reweight --generated wgan/generated/nominal.root --reference electrons_sw.root ...
    calorefine report --output cms_electrons.html ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import uproot

from calorefine.cli import calorefine

CONFIGS = Path(__file__).resolve().parent / "cms"
PT_EDGES = (25, 32, 38, 45)
COPIES = 5  # generated at each condition
BRANCHES = {
    "pt": "pt_gev",
    "eta": "eta",
    "sigmaEtaEta": "sigma_eta_eta",
    "HoverE": "h_over_e",
    "isoTrack": "iso_track_gev",
    "isoEcal": "iso_ecal_gev",
    "isoHcal": "iso_hcal_gev",
}
CARRIED = "run,event,candidate,pt_gev,abs_eta,endcap,m_ee_gev,sw_signal"


def electrons(path: str) -> dict[str, np.ndarray]:
    """Read the pairs of a CSV file: columns (2 n,) with one row for each electron, a pair on two rows."""
    pairs = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    angle = np.cosh(pairs["eta1"] - pairs["eta2"]) - np.cos(pairs["phi1"] - pairs["phi2"])
    of_pair = {
        "run": pairs["Run"].astype(np.int64),
        "event": pairs["Event"].astype(np.int64),
        "m_ee_gev": np.sqrt(2 * pairs["pt1"] * pairs["pt2"] * angle),
        "same_sign": (pairs["Q1"] == pairs["Q2"]).astype(np.int32),
    }
    table = {name: np.repeat(values, 2) for name, values in of_pair.items()}
    table["candidate"] = np.tile(np.array([1, 2], np.int32), len(pairs))
    for name, branch in BRANCHES.items():
        table[branch] = np.stack([pairs[f"{name}1"], pairs[f"{name}2"]], axis=1).ravel().astype(np.float64)
    table["abs_eta"] = np.abs(table["eta"])
    table["e_had_gev"] = table["h_over_e"] * table["pt_gev"] * np.cosh(table["eta"])
    table["endcap"] = np.stack([pairs["type1"] == "EE", pairs["type2"] == "EE"], axis=1).ravel().astype(np.int32)
    return table


def write(table: dict[str, np.ndarray], path: Path) -> Path:
    """Write the rows as a TTree."""
    with uproot.recreate(path) as file:
        file.mktree("electrons", {name: values.dtype for name, values in table.items()}).extend(table)
    return path


def subtracted(data: Path, replicas: int) -> dict[str, tuple[Path, str]]:
    """Weigh the electrons in both ways: name of the subtraction to file and branch of the weight."""
    with_fit, with_signs = (data.with_name(f"{data.stem}_{end}.root") for end in ("sw", "os"))
    common = ["--files", str(data), "--replicas", str(replicas), "--overwrite", "true"]
    print(calorefine(["splot", "-c", str(CONFIGS / "splot.yaml"), "--output", str(with_fit), *common]))
    with uproot.open(with_fit) as file:
        same = file["electrons"]["same_sign"].array(library="np").astype(bool)
    background = float(np.sum(same) / np.sum(~same))  # as many of opposite sign as of the same
    shares = {"opposite": {"signal": 1 - background, "background": background}, "same": {"signal": 0, "background": 1}}
    fractions = ["--weights.init_args.fractions", json.dumps(shares)]
    print(
        calorefine(
            ["fractions", "-c", str(CONFIGS / "fractions.yaml"), "--output", str(with_signs), *fractions, *common]
        )
    )
    return {"sWeights": (with_fit, "sw_signal"), "opposite - same sign": (with_signs, "w_signal")}


def trained(model: str, data: Path, folder: Path, *, epochs: str | None, numbers: list[str]) -> list[str]:
    """Train a generator and so many replicas of it; return the members' names."""
    options = ["--data.files", str(data)]
    options += ["--trainer.max_epochs", epochs, "--trainer.check_val_every_n_epoch", epochs] if epochs else []
    fit = ["--fit", str(CONFIGS / f"{model}.yaml"), f"--options={json.dumps(options)}"]
    summary = calorefine(["ensemble", *fit, "--output", str(folder), *numbers])
    print(summary)
    return list(summary.ensemble.records)


def sampled(folder: Path, members: list[str], conditions: Path, carried: str = CARRIED) -> Path:
    """Generate electrons of each member at the conditions of a file; return the folder of the files."""
    output = folder / "generated"
    output.mkdir(exist_ok=True)
    for seed, name in enumerate(members):
        arguments = ["--checkpoint", str(folder / name / "best.ckpt"), "--conditions", str(conditions)]
        arguments += ["--output", str(output / f"{name}.root"), "--tree", "electrons", "--pass-through", carried]
        calorefine(["sample", *arguments, "--n-per-event", str(COPIES), "--seed", str(seed), "--overwrite", "true"])
    return output


def measured(nominal: Path, weight: str, calibration: dict[str, Any], output: Path) -> dict[str, np.ndarray]:
    """Efficiencies of the four cuts in bins of pt, and what belongs to them."""
    arguments = ["--nominal", str(nominal), "--weight", weight, "--calibration", json.dumps(calibration)]
    output_options = ["--output", str(output), "--overwrite", "true"]
    calorefine(["propagate", "-c", str(CONFIGS / "propagate.yaml"), *arguments, *output_options])
    with np.load(output.with_suffix(".npz")) as content:
        return dict(content)


def reweighted(generated: Path, reference: Path, folder: Path) -> Path:
    """Learn what corrects the nominal generator, and weigh its electrons."""
    common = ["--generated", str(generated), "--tree", "electrons", "--overwrite", "true"]
    fit = ["--reference", str(reference), "--reference-weight", "sw_signal", "--output", str(folder / "reweighter.pt")]
    print(calorefine(["reweight", *common, *fit]))
    output = folder / "weighted.root"
    apply = ["--apply", str(folder / "reweighter.pt"), "--output", str(output)]
    print(calorefine(["reweight", *common, *apply]))
    return output


def table_of(results: dict[str, dict[str, np.ndarray]]) -> str:
    """Efficiencies with their errors, one line for each cut and bin of pt."""
    names = [str(name) for name in next(iter(results.values()))["observables"]]
    lines = [f"{'efficiency':<16}{'pt > (GeV)':>10}" + "".join(f"{name:>24}" for name in results)]
    for k in range(len(names) * len(PT_EDGES)):
        cut, edge = names[k // len(PT_EDGES)], PT_EDGES[k % len(PT_EDGES)]
        values = (
            f"{r['nominal'][k]:.3f} +- {np.sqrt(r['covariance_calibration'][k, k]):.3f}" for r in results.values()
        )
        lines.append(f"{cut:<16}{edge:>10}" + "".join(f"{text:>24}" for text in values))
    return "\n".join(lines)


def main() -> None:
    """Subtract, train, sample, correct, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the CSV file of the CERN Open Data portal")
    parser.add_argument("--runs", default="runs/cms_electrons", help="folder for all that is written")
    parser.add_argument("--epochs", help="fewer epochs than the configurations say")
    parser.add_argument("--replicas", type=int, default=20, help="of each generator")
    parser.add_argument("--replicas-of-weights", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2, help="that train at the same time")
    options = parser.parse_args()
    folder = Path(options.runs).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = write(electrons(options.file), folder / "electrons.root")

    subtractions = subtracted(data, options.replicas_of_weights)
    results = {
        name: measured(path, weight, {"weights": f"{weight}_replica"}, folder / f"efficiencies_{path.stem}")
        for name, (path, weight) in subtractions.items()
    }
    reference = subtractions["sWeights"][0]
    for model in ("flow", "wgan"):
        numbers = ["--replicas", str(options.replicas), "--processes", str(options.processes)]
        members = trained(model, data, folder / model, epochs=options.epochs, numbers=numbers)
        generated = sampled(folder / model, members, reference)
        files = {"files": str(generated / "replica_*.root")}
        results[model] = measured(generated / "nominal.root", "sw_signal", files, folder / f"efficiencies_{model}")
    weighted = reweighted(folder / "wgan" / "generated" / "nominal.root", reference, folder / "wgan")
    print(table_of(results))

    page = ["--output", str(folder / "cms_electrons.html"), "--overwrite", "true", "--tree", "electrons"]
    page += ["--title", "Electrons of CMS Open Data", "--splot", str(reference.with_suffix(".json"))]
    page += ["--ensemble", str(folder / "wgan"), "--weighted", str(weighted), "--weighted.weight", "weight * sw_signal"]
    page += ["--reference", json.dumps({"files": str(reference), "weight": "sw_signal", "tree": "electrons"})]
    page += ["--reweighter", str(folder / "wgan" / "reweighter.json")]
    print(calorefine(["report", *page, "--systematics", str(folder / "efficiencies_wgan.npz")]))


if __name__ == "__main__":
    main()
