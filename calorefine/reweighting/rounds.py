"""Rounds of a fit to two samples, one after the other, and the test that decides on each further one.

Where more than one round is allowed, a classifier trained anew decides on each further one: unless the area under its
curve comes closer to 0.5 by more than its error, the round is discarded and the fit ends.  In the conditional case it
sees generated events whose context is weighted to the reference's, since a difference of the contexts' spectra is not
to be corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from calorefine.reweighting.ratio import RatioEstimator
from calorefine.reweighting.reweighter import Reweighter
from calorefine.twosample.classifier import separation
from calorefine.twosample.pair import Samples

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


def fit_rounds(
    samples: Samples, estimator: RatioEstimator, *, conditional: bool, rounds: int, seed: int
) -> tuple[Reweighter, list[RoundTest]]:
    """Learn the first round, and further ones as long as they help."""
    pair = samples.generated, samples.reference
    reweighter = Reweighter.fit(*pair, samples.columns, estimator=estimator, conditional=conditional, seed=seed)
    if rounds == 1:
        return reweighter, []
    test = _round_test(samples, reweighter, seed=seed)
    history = [test(None), test(reweighter)]
    while len(reweighter.rounds) < rounds:
        further = reweighter.improved(*pair, estimator=estimator, seed=seed)
        found = test(further)
        history.append(replace(found, kept=found.better_than(history[-1])))
        if not history[-1].kept:
            break
        reweighter = further
    return reweighter, history


def _round_test(samples: Samples, first: Reweighter, *, seed: int) -> Callable[[Reweighter | None], RoundTest]:
    """Test of a reweighter on generated events that have the reference's context in the conditional case."""
    generated, reference = samples.generated, samples.reference
    generated = replace(generated, weight=generated.weight * first.context_factors(generated, reference))

    def test(reweighter: Reweighter | None) -> RoundTest:
        weight = generated.weight * (reweighter.factors(generated) if reweighter else 1.0)
        found = separation(replace(generated, weight=weight), reference, repetitions=REPETITIONS, seed=seed)
        return RoundTest(len(reweighter.rounds) if reweighter else 0, found.auc, found.auc_error)

    return test
