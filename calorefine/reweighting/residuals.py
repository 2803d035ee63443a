"""What a reweighting leaves: every column and every pair of columns, compared in cells (`calorefine.twosample.cells`).

The cells are those of the weights before and after, whichever have the smaller effective number.

Weights count as given: the noise of the training, which a perfect reweighting of a finite sample has as well, is left
out, so that a small p-value says that these samples can tell, not how much it matters.  For that see the difference,
half of the sum of the absolute differences of the cells' shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from calorefine import keys
from calorefine.events import Events
from calorefine.stats import FloatArray, sidak
from calorefine.twosample.cells import CellTest, compare_cells, quantile_cells


@dataclass(frozen=True)
class Residual:
    """A column, or a pair of columns, before and after.

    Attributes:
        columns: one name or two.
        chi2_before: of the cells.
        ndf_before: its degrees of freedom.
        chi2: after the reweighting.
        ndf: degrees of freedom of this one.
        p_value: of `chi2`.
        p_corrected: probability of one as small among as many independent tests.
        difference_before: half of the sum of the cells' absolute differences; not 0 by accident alone.
        difference: after the reweighting.
    """

    columns: tuple[str, ...]
    chi2_before: float
    ndf_before: int
    chi2: float
    ndf: int
    p_value: float
    p_corrected: float
    difference_before: float
    difference: float


def residuals(
    generated: Events, reference: Events, factors: FloatArray, names: list[str], *, conditional: bool
) -> list[Residual]:
    """Residuals of all columns and pairs, the least probable first.

    Args:
        generated: weights before.
        reference: weights of any sign.
        factors: (n,) of the reweighting.
        names: of features and context.
        conditional: leave out what concerns the context alone.
    """
    group = keys.group(generated.event_key, reference.event_key)
    weights = generated.weight, generated.weight * factors
    tables = [e.table for e in (generated, reference)]
    d, n_features = len(names), generated.x.shape[1]
    wanted = [*((j,) for j in range(d)), *combinations(range(d), 2)]
    found = []
    for columns in wanted:
        if conditional and min(columns) >= n_features:
            continue
        own, other = (table[:, columns] for table in tables)
        cells = quantile_cells(own, other, reference.weight, weights=(*weights, reference.weight))
        before, after = (compare_cells(cells, (weight, reference.weight), group) for weight in weights)
        if after.ndf > 0:
            found.append((tuple(names[j] for j in columns), before, after))
    return _ranked(found)


def _ranked(found: list[tuple[tuple[str, ...], CellTest, CellTest]]) -> list[Residual]:
    out = []
    for names, before, after in found:
        p = after.p_value
        numbers = {"p_value": p, "p_corrected": sidak(p, len(found))}
        differences = {"difference_before": before.difference, "difference": after.difference}
        out.append(Residual(names, before.chi2, before.ndf, after.chi2, after.ndf, **numbers, **differences))
    return sorted(out, key=lambda one: (one.p_value, -one.chi2 / one.ndf))
