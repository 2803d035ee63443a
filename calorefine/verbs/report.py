"""`calorefine report`: the files of a run in, one page out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calorefine.errors import ConfigError
from calorefine.io.provenance import recorded
from calorefine.pages.page import Section, Table, write_page
from calorefine.pages.run.bias import bias_part
from calorefine.pages.run.correction import correction_part
from calorefine.pages.run.features import features_part
from calorefine.pages.run.observables import observables_part
from calorefine.pages.run.propagated import Propagated
from calorefine.pages.run.provenance import Inputs, origin_part
from calorefine.pages.run.samples import Files
from calorefine.pages.run.section import Part
from calorefine.pages.run.spectator import spectator_part
from calorefine.pages.run.training import training_part
from calorefine.pages.run.truth import measured_truth
from calorefine.systematics.variations import Sample, Variations

TITLE = "Summary"


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
    generated: str | list[str] | None = None,
    weighted: str | list[str] | None = None,
    tree: str = "events",
    weight: str = "weight",
    calibration: Variations | None = None,
    reference: Sample | None = None,
    features: list[str] | None = None,
    bins: int = 40,
    reweighter: str | None = None,
    systematics: str | None = None,
    truth: Sample | None = None,
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
        generated: ROOT files of generated events before the correction; a path, a glob, or a list.
        weighted: ROOT files of the same events with the weights of the correction.
        tree: name of the tree of generated events, and of others that don't name theirs.
        weight: branch or expression of the weights of `weighted`.
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
    options = _options(dict(locals()))
    inputs = Inputs(
        tree, splot, ensemble, generated, weighted, reference, truth, reweighter, systematics, configs or {}
    )
    _check(inputs, Path(output))
    files = Files(generated, weighted, reference, tree, weight, calibration)
    found = Propagated.load(systematics) if systematics else None
    true = measured_truth(found, truth, tree) if found and truth else None
    parts = [
        bias_part(found, true),
        spectator_part(splot),
        training_part(ensemble),
        features_part(files, features=features, bins=bins),
        correction_part(reweighter),
        observables_part(found, true.of(found) if found and true else {}),
        origin_part(inputs, found, options),
    ]
    summary = _summary(Path(output), parts)
    first = _section(summary, parts)
    write_page(Path(output), title, sections=[first, *(one.section for one in parts)], overwrite=overwrite)
    return summary


def _check(inputs: Inputs, output: Path) -> None:
    """Refuse what can't be shown before anything is read.

    Raises:
        ConfigError: no input, a truth without observables, or a page that isn't one.
    """
    if output.suffix != ".html":
        raise ConfigError(f"output: {output} found, expected a name that ends in .html")
    if not inputs.files():
        raise ConfigError("no input is given, expected at least one of splot, ensemble, generated, weighted, ...")
    if inputs.truth and not inputs.systematics:
        raise ConfigError("truth: given without systematics, expected the .npz file of 'calorefine propagate' as well")


def _options(given: dict[str, Any]) -> str:
    """Options as JSON, which is YAML, without those that are left out."""
    plain = {
        name: asdict(value) if isinstance(value, Sample | Variations) else value
        for name, value in given.items()
        if value is not None
    }
    return json.dumps(plain, indent=1)


def _summary(output: Path, parts: Sequence[Part]) -> ReportSummary:
    alarms = [f"{one.section.title}: {text}" for one in parts for text in one.section.alarms]
    warnings = [f"{one.section.title}: {text}" for one in parts for text in one.section.warnings]
    return ReportSummary(output, alarms, warnings, [text for one in parts for text in one.missing])


def _section(summary: ReportSummary, parts: Sequence[Part]) -> Section:
    """Alarms and warnings of all stages, main numbers, what is missing."""
    text = [] if summary.alarms or summary.warnings else ["Nothing conspicuous was found."]
    if summary.missing:
        text.append(f"Missing: {'; '.join(summary.missing)}.")
    rows = [pair for one in parts for pair in one.numbers]
    tables = [Table("Main numbers", ("", "value"), rows)] if rows else []
    return Section(TITLE, text, summary.warnings, tables, alarms=summary.alarms)
