"""Fit of a reweighter to the events of two files, with the diagnostics: three files are written."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calorefine.errors import ConfigError
from calorefine.events import Columns
from calorefine.io.provenance import made_by
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import not_an_input, replacing
from calorefine.pages.reweighting import write_diagnostics
from calorefine.reweighting.boosting import BoostingRatio  # noqa: F401 (an estimator that options may name)
from calorefine.reweighting.diagnostics import Diagnostics, diagnose
from calorefine.reweighting.network import NetworkRatio
from calorefine.reweighting.ratio import RatioEstimator
from calorefine.reweighting.replicas import bootstrap_copies, fit_replicas
from calorefine.reweighting.reweighter import Reweighter
from calorefine.reweighting.rounds import REPETITIONS, RoundTest, fit_rounds
from calorefine.twosample.pair import Samples, read_samples, warn_of_columns


@dataclass(frozen=True)
class FitSummary:
    """What was learned, and the files written.

    Attributes:
        output: the reweighter; JSON and page have the same stem.
        reweighter: with what it was made from in its `provenance`.
        history: tests of the rounds; empty if only one was allowed.
        diagnostics: whether it does what it should.
    """

    output: Path
    reweighter: Reweighter
    history: list[RoundTest]
    diagnostics: Diagnostics

    def __str__(self) -> str:
        """Report for the terminal."""
        samples = []
        for name in ("generated", "reference"):
            one = self.reweighter.provenance[name]
            samples.append(
                f"{name}: {', '.join(one['files'])}, {one['n']} events, weight {one['weight']}, "
                f"sum {one['sum_w']:.6g}, n_eff {one['n_eff']:.1f}"
            )
        written = f"{self.output}: the reweighter; beside it " + " and ".join(
            path.name for path in _beside(self.output)
        )
        return "\n".join([str(self.diagnostics), *samples, *map(str, self.history), *self._replicas(), written])

    def _replicas(self) -> list[str]:
        told = self.reweighter.provenance.get("replicas")
        if told is None:
            return []
        fit = "weights fitted anew" if told["refit"] else "counts only: the fit behind the weights is not redone"
        span = f"n_eff of the reference {min(told['n_eff']):.1f} to {max(told['n_eff']):.1f}"
        slopes = ", ".join(f"{name} {slope:.2f}" for name, slope in told["slopes"].items())
        return [f"{told['n']} replicas, {fit}, {span}", f"part of a known shift that they recover: {slopes}"]


def fit_reweighter(
    *,
    generated: str,
    reference: str | None,
    output: str | None,
    tree: str = "events",
    reference_tree: str | None = None,
    generated_weight: str = "none",
    reference_weight: str = "none",
    columns: Columns | None = None,
    estimator: RatioEstimator | None = None,
    conditional: bool = True,
    rounds: int = 1,
    replicas: int = 0,
    bootstrap_seed: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> FitSummary:
    """Fit a reweighter to two samples and write it with its diagnostics; the arguments are those of `reweight_files`.

    Raises:
        CalorefineError: bad input; nothing is written.
        WeightError: negative generated weights, or weights without a positive sum.

    Warns:
        ColumnWarning: a feature tells the samples apart, or nothing, whatever else they are like; or single precision
            loses its digits.
    """
    path = _checked(output, reference, rounds, replicas)
    files = (
        WeightedFiles(generated, tree, generated_weight),
        WeightedFiles(str(reference), reference_tree or tree, reference_weight),
    )
    paths = [path, *_beside(path)]
    for one in paths:
        not_an_input(one, [*files[0].source.paths, *files[1].source.paths])
    with ExitStack() as stack:
        beside = [stack.enter_context(replacing(one, overwrite=overwrite)) for one in paths]
        samples = read_samples(*files, columns=columns)
        warn_of_columns(samples, f"{files[0].source} and {files[1].source}")
        estimator = estimator or NetworkRatio()
        reweighter, history = fit_rounds(samples, estimator, conditional=conditional, rounds=rounds, seed=seed)
        reweighter.provenance = _provenance(samples, files, estimator) | {
            "conditional": conditional,
            "rounds": len(reweighter.rounds),
            "history": [asdict(one) for one in history],
            "seed": seed,
        }
        if replicas:
            copies = bootstrap_copies(samples, files[1].source, reference_weight, n=replicas, seed=bootstrap_seed)
            reweighter.replicas, slopes = fit_replicas(reweighter, samples, copies)
            reweighter.provenance["replicas"] = copies.to_dict() | {"slopes": slopes}
        found = diagnose(reweighter, samples.generated, samples.reference, repetitions=REPETITIONS, seed=seed)
        reweighter.save(beside[0], overwrite=True)
        content = {"provenance": reweighter.provenance, "diagnostics": found.to_dict()}
        beside[1].write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_diagnostics(beside[2], found, reweighter, overwrite=True)
    return FitSummary(path, reweighter, history, found)


def _checked(output: str | None, reference: str | None, rounds: int, replicas: int) -> Path:
    """Path of the reweighter.

    Raises:
        ConfigError: an option of the fit is missing or can't be used.
    """
    if reference is None:
        raise ConfigError("reference: none given, expected a ROOT file to learn from, or --apply, a fitted reweighter")
    if output is None or Path(output).suffix != ".pt":
        raise ConfigError(f"output: {output} found, expected a name that ends in .pt; diagnostics go beside it")
    if rounds < 1:
        raise ConfigError(f"rounds: {rounds} found, expected at least 1")
    if replicas < 0:
        raise ConfigError(f"replicas: {replicas} found, expected 0 or more")
    return Path(output)


def _beside(output: Path) -> list[Path]:
    """Names of the diagnostics."""
    return [output.with_suffix(".json"), output.with_suffix(".html")]


def _provenance(
    samples: Samples, files: tuple[WeightedFiles, WeightedFiles], estimator: RatioEstimator
) -> dict[str, Any]:
    """Versions, samples and estimator, as JSON types."""
    events = {"generated": samples.generated, "reference": samples.reference}
    described = {
        name: {"files": [path.name for path in one.source.paths], **one.numbers(events[name].weight)}
        for name, one in zip(events, files, strict=True)
    }
    known = "branches" if files[0].is_keyed(samples.columns) else "rows"
    described["generated"]["keys"] = "reference" if samples.twins == "rows" else known
    described["generated"]["provenance"] = files[0].provenance
    return {
        **made_by(),
        **described,
        "columns": samples.columns.to_dict(),
        "twins": samples.twins,
        "estimator": {"class": type(estimator).__name__, **vars(estimator)},
    }
