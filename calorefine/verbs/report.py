"""`calorefine report`: the files of a run in, one page out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calorefine.ensemble.members import Ensemble
from calorefine.errors import ConfigError, FileError, nearest
from calorefine.io.provenance import PROVENANCE_FILE, digest, read_provenance, recorded
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import expanded
from calorefine.io.writer import check_outputs
from calorefine.pages.bias import bias_section
from calorefine.pages.ensemble import ensemble_section
from calorefine.pages.features import features_section
from calorefine.pages.observables import observables_section
from calorefine.pages.page import Section, absent, collected, summary, write_page
from calorefine.pages.provenance import provenance_section
from calorefine.pages.reweighting import classifier_section
from calorefine.pages.splot import fits_of, splot_section
from calorefine.simulator_map import load_simulator
from calorefine.systematics.features import REFERENCE, REWEIGHTED, measure_features
from calorefine.systematics.propagated import Propagated
from calorefine.systematics.variations import Variations

NEEDED = {
    "systematics": "the .npz file of 'calorefine propagate'",
    "splot": "the JSON file that 'calorefine splot' writes beside its output",
    "ensemble": "the folder of 'calorefine ensemble'",
    "reweighter": "the JSON file that 'calorefine reweight' writes beside its output",
}


@dataclass(frozen=True)
class ReportSummary:
    """What the page says first.

    Attributes:
        output: the page.
        alarms: in red.
        warnings: in its color.
        missing: what isn't there.
    """

    output: Path
    alarms: list[str]
    warnings: list[str]
    missing: list[str]

    def __str__(self) -> str:
        """Report for the terminal."""
        lines = [f"ALARM: {text}" for text in self.alarms] + [f"WARNING: {text}" for text in self.warnings]
        lines += [f"missing: {text}" for text in self.missing]
        counts = f"{len(self.alarms)} alarms, {len(self.warnings)} warnings, {len(self.missing)} things missing"
        return "\n".join([*lines, f"{self.output}: {counts}"])


@recorded("report")
def report_files(
    *,
    output: str,
    title: str = "Report of a pipeline run",
    splot: str | None = None,
    ensemble: str | None = None,
    generated: WeightedFiles | None = None,
    weighted: WeightedFiles | None = None,
    tree: str = "events",
    calibration: Variations | None = None,
    reference: WeightedFiles | None = None,
    features: list[str] | None = None,
    bins: int = 40,
    reweighter: str | None = None,
    systematics: str | None = None,
    truth: WeightedFiles | None = None,
    configs: dict[str, str] | None = None,
    overwrite: bool = False,
) -> ReportSummary:
    """Write one page on a run of the pipeline: warnings first, then every stage with its pictures, and its provenance.

    All inputs are optional; the page names those that are missing.

    Args:
        output: the HTML file to write; it refers to no other file.
        title: heading of the page.
        splot: the JSON file of `calorefine splot`.
        ensemble: folder of `calorefine ensemble`.
        generated: generated events before the correction, with the reference's weight if that has one.
        weighted: the same events with the weights of the correction, such as the branch `weight`.
        tree: name of the tree in samples that don't name theirs.
        calibration: bootstrap replicas of `weighted`, for the systematic band: weights of its events, or files; its
            branch `weight_replica`, if left out and there is one.
        reference: events to compare features with, such as the sWeighted calibration sample.
        features: columns to show; those that the generated files were made with, if left out.
        bins: number of bins of the features.
        reweighter: the JSON file of `calorefine reweight`.
        systematics: the .npz file of `calorefine propagate`.
        truth: events in which the observables are what they should be, for validation: shows the bias.
        configs: verb, or fit, to the configuration that it ran with; they are shown in full.
        overwrite: replace an existing page.

    Returns:
        Alarms, warnings, and what is missing.

    Raises:
        CalorefineError: bad input; nothing is written.
    """
    target = Path(output)
    if target.suffix != ".html":
        raise ConfigError(f"output: {output} found, expected a name that ends in .html")
    check_outputs(target, overwrite=overwrite)
    if truth and not systematics:
        raise ConfigError("truth: given without systematics, expected the .npz file of 'calorefine propagate' as well")
    if weighted and weighted.weight == "none":
        raise ConfigError("weighted.weight: none given, expected the correction's, such as weight")
    given = {"generated": generated, "weighted": weighted, REFERENCE: reference}
    roles = {role: sample for role, sample in given.items() if sample}
    samples = {REWEIGHTED if role == "weighted" else role: sample for role, sample in roles.items()}
    members = Ensemble.load(ensemble) if ensemble else None
    singles = {"splot": splot, "reweighter": reweighter, "systematics": systematics}
    files = _files(singles, members, roles | ({"truth": truth} if truth else {}))
    propagated = Propagated.load(systematics) if systematics else None
    true = propagated.truth(truth, tree) if propagated and truth else None
    measured = None
    with collected() as warned:
        if set(samples) - {REFERENCE}:
            measured = measure_features(samples, calibration, tree=tree, names=features, bins=bins)
    needed = ("diagnostics", "provenance")
    diagnosed = _read(reweighter, needed, "calorefine reweight") if reweighter else {}
    provenances = _provenances(files, ensemble, diagnosed, propagated)
    parts = [
        bias_section(propagated, true) if propagated else _absent("Bias", "systematics"),
        _splot_section(splot) if splot else _absent("Calibration sample", "splot"),
        ensemble_section(members, load_simulator(members.checkpoint("nominal")).spec)
        if members
        else _absent("Training", "ensemble"),
        features_section(measured, roles, warned),
        classifier_section("Classifier test", reweighter, diagnosed["diagnostics"])
        if reweighter
        else _absent("Classifier test", "reweighter"),
        observables_section(propagated, true) if propagated else _absent("Observables", "systematics"),
        provenance_section(files, _digests(files), provenances, _configurations(configs or {})),
    ]
    first = summary(parts)
    write_page(target, title, sections=[first, *parts], overwrite=overwrite)
    missing = [text for part in parts for text in part.told("missing")]
    return ReportSummary(target, list(first.alarms), list(first.warnings), missing)


def _files(
    singles: Mapping[str, str | None], members: Ensemble | None, samples: Mapping[str, WeightedFiles]
) -> dict[str, list[Path]]:
    """All files by their role.

    Raises:
        ConfigError: there are none.
        FileError: a path or glob matches no file.
    """
    files = {role: [Path(name)] for role, name in singles.items() if name}
    files |= {"nominal checkpoint": [members.checkpoint("nominal")]} if members else {}
    files |= {role: expanded(sample.files) for role, sample in samples.items()}
    if not files:
        raise ConfigError("no input is given, expected at least one of splot, ensemble, generated, weighted, ...")
    return files


def _digests(files: Mapping[str, Sequence[Path]]) -> dict[Path, str]:
    """Digests of all files, and of the reweighters beside their diagnostics."""
    paths = [path for role in files.values() for path in role]
    beside = [path.with_suffix(".pt") for path in files.get("reweighter", [])]
    return {path: digest(path) for path in [*paths, *(path for path in beside if path.is_file())]}


def _absent(title: str, option: str) -> Section:
    return absent(title, option, NEEDED[option])


def _splot_section(name: str) -> Section:
    path, record = Path(name), _read(name, ("n_effective", "yields"), "calorefine splot")
    names = [path.with_name(f"{path.stem}{f'_{k}' if k else ''}.png") for k in range(len(fits_of(record)))]
    return splot_section(path, record, {one: one.read_bytes() if one.is_file() else None for one in names})


def _provenances(
    files: Mapping[str, Sequence[Path]],
    ensemble: str | None,
    reweighting: Mapping[str, Any],
    propagated: Propagated | None,
) -> dict[str, Mapping[str, Any]]:
    """What the files say of themselves, by role; nothing where a file doesn't tell."""
    provenances: dict[str, Mapping[str, Any]] = {
        role: read_provenance(files[role][0]) for role in ("generated", "weighted") if files.get(role)
    }
    for path in files.get("splot", []):
        root = path.with_suffix(".root")
        provenances["splot"] = read_provenance(root) if root.is_file() else {}
    if ensemble:
        path = Path(ensemble) / PROVENANCE_FILE
        provenances["ensemble"] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if reweighting:
        provenances["reweighter"] = reweighting["provenance"]
        if learned := reweighting["provenance"]["generated"].get("provenance"):
            provenances["learned from"] = learned
    if propagated:
        provenances["systematics"] = propagated.provenance
    return provenances


def _configurations(configs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Path and text of the configurations that are named."""
    texts = {}
    for verb, name in configs.items():
        _require_file(Path(name), f"configs.{verb}: ")
        texts[verb] = (name, Path(name).read_text(encoding="utf-8"))
    return texts


def _read(name: str, keys: Sequence[str], made_by: str) -> dict[str, Any]:
    """Read a JSON file of an earlier stage.

    Raises:
        FileError: there is no such file, or it isn't one of that stage.
    """
    path = Path(name)
    _require_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{path}: not JSON ({error}), expected a file of '{made_by}'") from error
    if lacking := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise FileError(f"{path}: has no '{lacking[0]}', expected a file of '{made_by}'")
    return dict(content)


def _require_file(path: Path, option: str = "") -> None:
    """Refuse the name of a file that isn't there.

    Raises:
        FileError: there is no such file.
    """
    if not path.is_file():
        siblings = [str(other) for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise FileError(f"{option}{path}: no such file{nearest(str(path), siblings)}")
