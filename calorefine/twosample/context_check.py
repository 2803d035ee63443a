"""Do generated and reference events have the same contexts?  If not, comparing their features compares contexts, too.

The usual cause is a weight on one side only: the sWeights of a reference turn its contexts into the signal's, while the
events generated at all of its conditions still have the mixture's.
"""

from __future__ import annotations

import warnings

from calorefine.errors import CalorefineError, CalorefineWarning
from calorefine.io.reductions import branches
from calorefine.io.sample import WeightedFiles
from calorefine.twosample.binned import context_values
from calorefine.twosample.cells import CellTest, compare_cells, group_of, quantile_cells
from calorefine.twosample.pair import Samples, read_samples

LEAST_P_VALUE = 1e-6
LEAST_DIFFERENCE = 1e-3  # of the events: below it doesn't matter, and twins of equal weight differ by rounding


def context_tests(samples: Samples) -> dict[str, CellTest]:
    """Compare each context column of the samples, with their weights; events of equal key are correlated."""
    made, target = samples.generated, samples.reference
    columns = [context_values(samples.columns, events) for events in (made, target)]
    weights, group = (made.weight, target.weight), group_of([made.event_key, target.event_key])
    found = {}
    for name, values in columns[1].items():
        cells = quantile_cells(columns[0][name][:, None], values[:, None], target.weight, weights=weights)
        found[name] = compare_cells(cells, weights, group)
    return found


def warn_of_contexts(samples: Samples, weights: tuple[str, str]) -> None:
    """Warn if a context column is distributed differently, beyond doubt, and say what to do.

    Args:
        samples: generated and reference events.
        weights: expressions of their weights, for the message.
    """
    tests = context_tests(samples).items()
    bad = {name: one for name, one in tests if one.p_value < LEAST_P_VALUE and one.difference > LEAST_DIFFERENCE}
    if not bad:
        return
    found = [f"'{name}' ({one.difference:.1%} of the events, p {one.p_value:.1g})" for name, one in bad.items()]
    shown = ", ".join(found)
    msg = f"context {shown}: distributed differently in generated events (weight '{weights[0]}') and in the reference "
    msg += f"(weight '{weights[1]}'), so that features differ for this reason alone; "
    warnings.warn(msg + _hint(weights), CalorefineWarning, stacklevel=3)


def _hint(weights: tuple[str, str]) -> str:
    if weights[0] == "none" and weights[1] != "none":
        names = ",".join(branches(weights[1]))
        return (
            f"weight both sides: calorefine sample at the reference's conditions with --pass_through {names}, then "
            f"--generated_weight '{weights[1]}'"
        )
    return "expected events generated at the reference's conditions, with the same weight on both sides"


def warn_of_file_contexts(generated: WeightedFiles, reference: WeightedFiles) -> None:
    """`warn_of_contexts` for the context that the generated file's provenance names, as far as both files tell it."""
    if not generated.provenance.get("columns", {}).get("context"):
        return
    try:
        samples = read_samples(generated, reference, columns=None)
    except CalorefineError:  # other files than those that belong together: there is no context to compare
        return
    warn_of_contexts(samples, (generated.weight, reference.weight))
