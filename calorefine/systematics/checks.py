"""What a reader of propagated observables has to know: events outside the domain, biases, too few replicas."""

from __future__ import annotations

from calorefine.observables import Measured
from calorefine.stats import error_of_error
from calorefine.systematics.bias import OF_MEAN, OF_NOMINAL, Bias, closure_bias, ensemble_bias
from calorefine.systematics.closure import Compared
from calorefine.systematics.systematics import MOST_ERROR_OF_ERROR, Systematics


def outside_lines(measured: Measured) -> list[str]:
    """Say which observables have events outside the training domain."""
    lines = []
    for name in measured.observables:
        counts = measured.outside_counts[measured.part(name)]
        if counts.any():
            where = f"{int(counts.sum())} events outside the training domain, in {int((counts > 0).sum())} bins"
            lines.append(f"'{name}': {where}")
        elif measured.outside[measured.part(name)].any():
            lines.append(f"'{name}': events outside the training domain lie beyond its bins, but count in its norm")
    return lines


def biases(systematics: Systematics, truth: Compared | None) -> dict[str, Bias]:
    """Test what should agree, by name of the comparison.

    Args:
        systematics: nominal values, covariance and replicas.
        truth: true values, if they are known.
    """
    tested = {OF_MEAN: ensemble_bias(systematics)} if "calibration" in systematics.replicas else {}
    if truth:
        tested[OF_NOMINAL] = closure_bias(systematics, truth.values, truth_covariance=truth.covariance)
    return tested


def replica_warnings(systematics: Systematics) -> list[str]:
    """Say what so few replicas or seeds can't tell."""
    counts = {name: len(rows) for name, rows in systematics.replicas.items()}
    lines = [
        f"WARNING: an error from {count} replicas of '{name}' is known to {error_of_error(count - 1):.0%}"
        for name, count in counts.items()
        if error_of_error(count - 1) > MOST_ERROR_OF_ERROR and systematics.sources[name].part_of is None
    ]
    if "training" in counts and "calibration" in counts:
        spread = systematics.relative_error
        above = [name for name in systematics.bins if spread(name, "training") > spread(name, "calibration")]
        if above:
            how = f"{counts['training']} seeds spread by more than {counts['calibration']} replicas"
            lines.append(
                f"WARNING: {', '.join(above)}: {how}, whose spread holds that of the training: too few of either"
            )
    return lines
