"""Do generated and reference events have the same contexts?  If not, comparing their features compares contexts, too.

The usual cause is a weight on one side only: the sWeights of a reference turn its contexts into the signal's, while the
events generated at all of its conditions still have the mixture's.
"""

from __future__ import annotations

import warnings

from calorefine import keys
from calorefine.errors import CalorefineError, CalorefineWarning
from calorefine.io.reductions import branches
from calorefine.io.sample import WeightedFiles
from calorefine.twosample.binned import context_values
from calorefine.twosample.cells import CellTest, compare_cells, quantile_cells
from calorefine.twosample.pair import Samples, read_samples

LEAST_CONTEXT_P_VALUE = 1e-6
LEAST_DIFFERENCE = 1e-3  # of the events: below it doesn't matter, and paired events of equal weight differ by rounding


def context_tests(samples: Samples) -> dict[str, CellTest]:
    """Compare each context column of the samples, with their weights; events of equal key are correlated."""
    generated, reference = samples.generated, samples.reference
    weights, group = (generated.weight, reference.weight), keys.group(generated.event_key, reference.event_key)
    simulated, target = (context_values(samples.columns, events) for events in (generated, reference))
    cells = {n: quantile_cells(simulated[n][:, None], target[n][:, None], weights[1], weights=weights) for n in target}
    return {name: compare_cells(numbers, weights, group) for name, numbers in cells.items()}


def warn_of_contexts(samples: Samples, weights: tuple[str, str]) -> None:
    """Warn if a context column is distributed differently, beyond doubt, and say what to do.

    Args:
        samples: generated and reference events.
        weights: expressions of their weights, for the message.
    """
    different = ", ".join(
        f"'{name}' ({test.difference:.1%} of the events, p {test.p_value:.1g})"
        for name, test in context_tests(samples).items()
        if test.p_value < LEAST_CONTEXT_P_VALUE and test.difference > LEAST_DIFFERENCE
    )
    if different:
        where = f"generated events (weight '{weights[0]}') and in the reference (weight '{weights[1]}')"
        text = f"context {different}: distributed differently in {where}, so that features differ for this reason alone"
        warnings.warn(f"{text}; {_hint(weights)}", CalorefineWarning, stacklevel=3)


def _hint(weights: tuple[str, str]) -> str:
    if weights[0] == "none" and weights[1] != "none":
        names = ",".join(branches(weights[1]))
        return (
            f"weight both sides: calorefine sample at the reference's conditions with --pass_through {names}, then "
            f"--generated.weight '{weights[1]}'"
        )
    return "expected events generated at the reference's conditions, with the same weight on both sides"


def warn_of_file_contexts(generated: WeightedFiles, reference: WeightedFiles) -> None:
    """`warn_of_contexts` for the context that the generated file's provenance names, or say why it isn't compared."""
    if not generated.provenance.get("columns", {}).get("context"):
        return
    try:
        samples = read_samples(generated, reference, columns=None)
    except CalorefineError as error:
        text = "contexts are not compared, and features may differ for their reason alone"
        warnings.warn(f"{generated.source} and {reference.source}: {text}: {error}", CalorefineWarning, stacklevel=2)
        return
    warn_of_contexts(samples, (generated.weight, reference.weight))
