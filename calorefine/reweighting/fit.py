"""Fit of a reweighter to two samples: one round after the other, the diagnostics, and the three files.

Where more than one round is allowed, a classifier trained anew decides on each further one: unless the area under its
curve comes closer to 0.5 by more than its error, the round is discarded and the fit ends.  In the conditional case it
sees generated events whose context is weighted to the reference's, since a difference of the contexts' spectra is not
to be corrected.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calorefine import stats
from calorefine.errors import ConfigError
from calorefine.events import Columns, Events
from calorefine.io.provenance import made_by, read_provenance
from calorefine.io.root import RootFiles
from calorefine.io.writer import not_an_input, replacing
from calorefine.reweighting.diagnostics import Diagnostics, diagnose
from calorefine.reweighting.network import NetworkRatio
from calorefine.reweighting.ratio import RatioEstimator
from calorefine.reweighting.replicas import bootstrap_copies, fit_replicas
from calorefine.reweighting.reweighter import Reweighter
from calorefine.twosample.classifier import separation
from calorefine.twosample.pair import Samples, read_samples

REPETITIONS = 4


@dataclass(frozen=True)
class RoundTest:
    """What a classifier finds after a round.

    Attributes:
        round: its number; 0 is before the first one.
        auc: area under the curve, 0.5 if the samples can't be told apart.
        auc_error: its standard error.
        kept: whether the round is part of the reweighter.
    """

    round: int
    auc: float
    auc_error: float
    kept: bool = True

    def better_than(self, other: RoundTest) -> bool:
        """Whether the AUC is closer to 0.5 by more than its error."""
        return abs(other.auc - 0.5) - abs(self.auc - 0.5) > self.auc_error

    def __str__(self) -> str:
        """One line for the terminal."""
        end = "" if self.kept else ": not closer to 0.5 by more than its error, discarded"
        return f"round {self.round}: AUC {self.auc:.4f} +- {self.auc_error:.4f}{end}"


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
        return [f"{told['n']} replicas, {fit}, {span}"]


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
    replica_repeats: int = 1,
    bootstrap_seed: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    write_page: Callable[..., None],
) -> FitSummary:
    """Fit a reweighter to two samples and write it with its diagnostics; the arguments are those of `reweight_files`.

    `write_page` shows diagnostics and reweighter on a page of a given path.

    Raises:
        CalorefineError: bad input; nothing is written.
        WeightError: negative generated weights, or weights without a positive sum.
    """
    path = _checked(output, reference, rounds, replicas)
    sources = RootFiles(generated, tree), RootFiles(str(reference), reference_tree or tree)
    weights = generated_weight, reference_weight
    paths = [path, *_beside(path)]
    for one in paths:
        not_an_input(one, [*sources[0].paths, *sources[1].paths])
    with ExitStack() as stack:
        beside = [stack.enter_context(replacing(one, overwrite=overwrite)) for one in paths]
        samples = read_samples(*sources, columns=columns, weights=weights)
        estimator = estimator or NetworkRatio()
        reweighter, history = _fit(samples, estimator, conditional=conditional, rounds=rounds, seed=seed)
        reweighter.provenance = _provenance(samples, sources, weights, estimator) | {
            "conditional": conditional,
            "rounds": len(reweighter.rounds),
            "history": [asdict(one) for one in history],
            "seed": seed,
        }
        if replicas:
            copies = bootstrap_copies(samples, sources[1], reference_weight, n=replicas, seed=bootstrap_seed)
            reweighter.replicas = fit_replicas(reweighter, copies, estimator, repeats=replica_repeats, seed=seed)
            reweighter.provenance["replicas"] = copies.to_dict() | {"repeats": replica_repeats}
        found = diagnose(reweighter, samples.generated, samples.reference, repetitions=REPETITIONS, seed=seed)
        reweighter.save(beside[0], overwrite=True)
        content = {"provenance": reweighter.provenance, "diagnostics": found.to_dict()}
        beside[1].write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_page(beside[2], found, reweighter, overwrite=True)
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


def _fit(
    samples: Samples, estimator: RatioEstimator, *, conditional: bool, rounds: int, seed: int
) -> tuple[Reweighter, list[RoundTest]]:
    """Learn the first round, and further ones as long as they help."""
    pair = samples.generated, samples.reference
    reweighter = Reweighter.fit(*pair, samples.columns, estimator=estimator, conditional=conditional, seed=seed)
    if rounds == 1:
        return reweighter, []
    test = _round_test(samples, reweighter, estimator, seed=seed)
    history = [test(None), test(reweighter)]
    while len(reweighter.rounds) < rounds:
        further = reweighter.improved(*pair, estimator=estimator, seed=seed)
        found = test(further)
        history.append(replace(found, kept=found.better_than(history[-1])))
        if not history[-1].kept:
            break
        reweighter = further
    return reweighter, history


def _round_test(
    samples: Samples, first: Reweighter, estimator: RatioEstimator, *, seed: int
) -> Callable[[Reweighter | None], RoundTest]:
    """Test of a reweighter on generated events that have the reference's context in the conditional case."""
    generated, reference = samples.generated, samples.reference
    if first.conditional and samples.columns.context:
        factors = first.context_factors(generated, reference, generated.weight, estimator, seed)
        generated = replace(generated, weight=generated.weight * factors)

    def test(reweighter: Reweighter | None) -> RoundTest:
        weight = generated.weight * (reweighter.factors(generated) if reweighter else 1.0)
        found = separation(replace(generated, weight=weight), reference, repetitions=REPETITIONS, seed=seed)
        return RoundTest(len(reweighter.rounds) if reweighter else 0, found.auc, found.auc_error)

    return test


def _provenance(
    samples: Samples, sources: tuple[RootFiles, RootFiles], weights: tuple[str, str], estimator: RatioEstimator
) -> dict[str, Any]:
    """Versions, samples and estimator, as JSON types."""
    pairs = zip(("generated", "reference"), (samples.generated, samples.reference), sources, weights, strict=True)
    described = {name: _described(events, source, weight) for name, events, source, weight in pairs}
    names = set(sources[0].branch_names())
    keyed = bool(samples.columns.key) and set(samples.columns.key_branches) <= names
    own = "branches" if keyed else "rows"
    described["generated"]["keys"] = "reference" if samples.twins == "rows" else own
    described["generated"]["provenance"] = read_provenance(sources[0].paths[0])
    options = {name: value for name, value in vars(estimator).items() if name != "given"}
    return {
        **made_by(),
        **described,
        "columns": samples.columns.to_dict(),
        "twins": samples.twins,
        "estimator": {"class": type(estimator).__name__, **options},
    }


def _described(events: Events, source: RootFiles, weight: str) -> dict[str, Any]:
    return {
        "files": [path.name for path in source.paths],
        "tree": source.tree,
        "weight": weight,
        "n": len(events),
        "sum_w": stats.sum_w(events.weight),
        "n_eff": stats.n_eff(events.weight),
    }
